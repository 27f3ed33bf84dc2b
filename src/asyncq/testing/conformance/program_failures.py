"""Programs that do not come to their end: what fails, is refused, expires or is cancelled on the way."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest

from asyncq.barrier import Member
from asyncq.broker import Queue
from asyncq.callback import Callback
from asyncq.errors import PartlySent, QueueGone
from asyncq.failed_member import FailedMember
from asyncq.failed_task import FailedTask
from asyncq.message import derived_id, new_id
from asyncq.options import Sending
from asyncq.program import Step
from asyncq.testing.conformance.bench import (
    QUEUE,
    WAIT_S,
    Bench,
    behaviour,
    dead_letter,
    dead_letters,
    eventually,
    make_message,
)
from asyncq.testing.conformance.flows import Flow


@behaviour
async def test_a_failed_step_ends_its_chain_and_tells_the_workflow(bench: Bench) -> None:
    """The rest does not run; the dead letter can go on with it later."""
    flow = Flow(bench)
    failing = flow.step("fail", x=7)
    async with bench.working(flow.app):
        kind, error = await flow.failure(failing, flow.step("double", "x"), expect=[failing.id])
        assert (kind, error["type"], error["message"]) == ("failed", "builtins.ValueError", "no 7")
        assert error["task_id"] == failing.id
        assert (await flow.end(flow.pending[failing.id])).type == "failed"
        letter = await dead_letter(flow.app.broker)
        assert b"shop.double" in letter.message.body
    assert flow.names() == ["fail"]


@behaviour
async def test_failed_members_stop_their_chord_which_names_them(bench: Bench) -> None:
    """What follows does not run."""
    flow = Flow(bench)
    bad = flow.step("fail", x=1)
    fork = flow.fork(flow.step("add", x=1, y=1), bad, (flow.step("fail", x=2), flow.step("double", "x")))
    async with bench.working(flow.app):
        kind, error = await flow.failure(fork, flow.step("total", "values"))
    assert (kind, error["type"]) == ("failed", "asyncq.errors.ChordFailed")
    assert [(item["index"], item["error_message"]) for item in error["members"]] == [(1, "no 1"), (2, "no 2")]
    assert error["members"][0]["task_id"] == bad.id
    assert bad.id in error["message"]
    assert flow.names() == ["add", "fail", "fail"]


@behaviour
async def test_a_chord_that_collects_errors_gives_them_in_the_places_of_values(bench: Bench) -> None:
    """As values that pydantic reads."""
    flow = Flow(bench)
    got: list[list[int | FailedMember]] = []

    @flow.app.task
    async def report(values: list[int | FailedMember]) -> int:
        got.append(values)
        return len(values)

    bad = flow.step("fail", x=1)
    fork = flow.fork(flow.step("add", x=1, y=1), bad, errors="collect")
    async with bench.working(flow.app):
        assert await flow.value(fork, flow.step("report", "values")) == 2
    ((value, failed),) = got
    assert value == 2
    assert isinstance(failed, FailedMember)
    assert (failed.failed, failed.index, failed.task_id, failed.error_message) == ("failed", 1, bad.id, "no 1")


@behaviour
async def test_a_chord_in_a_chord_fails_outwards(bench: Bench) -> None:
    """Up to the one that collects, if there is one."""
    flow = Flow(bench)
    inner = (flow.fork(flow.step("fail", x=1), flow.step("note")), flow.step("total", "values"))
    async with bench.working(flow.app):
        kind, error = await flow.failure(flow.fork(inner, flow.step("note")), flow.step("total", "values"))
    assert (kind, error["type"]) == ("failed", "asyncq.errors.ChordFailed")
    assert error["members"][0]["error_type"] == "asyncq.errors.ChordFailed"
    flow = Flow(bench)
    inner = (flow.fork(flow.step("fail", x=1), flow.step("note")), flow.step("total", "values"))
    outer = flow.fork(inner, flow.step("note"), errors="collect")
    async with bench.working(flow.app):
        first, second = await flow.value(outer, flow.step("total", "values"))
    assert (first["error_type"], second) == ("asyncq.errors.ChordFailed", "noted")


@behaviour
async def test_a_failed_workflow_calls_back_once_with_an_id_of_its_own(bench: Bench) -> None:
    """Whichever step has failed."""
    flow = Flow(bench)
    told: list[tuple[str, FailedTask]] = []

    @flow.app.task(pass_context=True)
    async def tell(ctx: Any, failed: FailedTask) -> None:
        told.append((ctx.task_id, failed))

    fork = flow.fork(flow.step("fail", x=1), flow.step("fail", x=2))
    async with bench.working(flow.app):
        await flow.failure(fork, flow.step("total", "values"), on_failure=Callback("shop.tell", QUEUE), name="sums")
        await eventually(lambda: told)
    ((task_id, failed),) = told
    assert task_id == derived_id(flow.id, "$on_failure")
    assert (failed.task, failed.task_id, failed.error_type) == ("sums", flow.id, "asyncq.errors.ChordFailed")


@behaviour
async def test_unknown_tasks_and_arguments_that_do_not_fit_end_the_workflow(bench: Bench) -> None:
    """With a dead letter where it stopped."""
    flow = Flow(bench, unknown_task_patience_s=0)
    async with bench.working(flow.app):
        kind, error = await flow.failure(flow.step("note"), flow.step("nobody"), flow.step("note"))
        assert (kind, error["type"]) == ("rejected", "asyncq.errors.UnknownTask")
        letter = await dead_letter(flow.app.broker)
        assert letter.message.type == "shop.nobody"
    flow = Flow(bench)
    async with bench.working(flow.app):
        fork = flow.fork(flow.step("note"), flow.step("note"))
        kind, error = await flow.failure(fork, flow.step("double", "x"), flow.step("note"))
    assert kind == "rejected"
    assert "int" in error["message"]


@behaviour
async def test_what_expires_in_a_chord_arrives_as_expired(bench: Bench) -> None:
    """The chord does not wait for ever for what never runs."""
    flow = Flow(bench)
    late = flow.step("note", options={"expires": 0.001})
    async with flow.app:
        pending = await flow.send(flow.fork(late, flow.step("note")), flow.step("total", "values"))
        await asyncio.sleep(0.01)
        async with bench.working(Flow(bench).app):
            message = await flow.end(pending)
    assert message.type == "failed"
    assert b"expired" in message.body


@behaviour
async def test_a_step_whose_time_is_over_before_it_is_due_ends_as_expired(bench: Bench) -> None:
    """And arrives so, where it is a member of a chord."""
    flow = Flow(bench)

    def late() -> Step:
        sending = Sending(delay_s=60.0, expires_ms=int(time.time() * 1000) + 5000)
        return replace(flow.step("double", "x"), sending=sending)

    async with bench.working(flow.app):
        kind, _ = await flow.failure(flow.step("add", x=1, y=1), late())
        assert kind == "expired"
        flow.id = new_id()
        member = (flow.step("add", x=1, y=1), late())
        got = await flow.value(flow.fork(member, flow.step("note"), errors="collect"), flow.step("total", "values"))
    assert (got[0]["failed"], got[1]) == ("expired", "noted")


@behaviour
async def test_a_cancelled_workflow_stops_what_runs_what_waits_and_what_follows(bench: Bench) -> None:
    """By its one id. What the steps have sent on their own goes on."""
    flow = Flow(bench)
    begun = asyncio.Event()

    @flow.app.task
    async def forever(x: int = 0) -> int:
        begun.set()
        await asyncio.sleep(2 * WAIT_S)
        return x

    members = [flow.step("forever"), flow.step("note", options={"delay": 0.5})]
    async with bench.working(flow.app):
        pending = await flow.send(flow.step("note"), flow.fork(*members), flow.step("total", "values"))
        await asyncio.wait_for(begun.wait(), WAIT_S)
        await flow.app.cancel(flow.id)
        assert (await flow.end(pending)).type == "cancelled"
        assert await dead_letters(flow.app.broker) == []
    assert flow.names() == ["note"]


@behaviour
async def test_a_result_too_large_to_pass_on_fails_its_task(bench: Bench) -> None:
    """Before anybody is told that it has succeeded. So does a list that is too large, and it is the chord's failure."""
    flow = Flow(bench, max_message_bytes=20_000)

    @flow.app.task(reply=False)
    async def big(size: int = 15_000) -> str:
        return size * "x"

    @flow.app.task
    async def take(text: str, padding: str = "") -> int:
        return len(text)

    async with bench.working(flow.app):
        follower = flow.step("take", "text", padding=8000 * "y")
        kind, error = await flow.failure(flow.step("big"), follower)
        assert (kind, error["type"]) == ("failed", "asyncq.errors.ResultTooLarge")
        letter = await dead_letter(flow.app.broker)
        assert letter.record is not None
        assert letter.record.reason == "the result cannot be passed on"
        flow.id = new_id()
        fork = flow.fork(flow.step("big"), flow.step("big"))
        kind, error = await flow.failure(fork, flow.step("total", "values"))
        assert (kind, error["type"]) == ("failed", "asyncq.errors.ResultTooLarge")


@behaviour
async def test_a_chord_whose_queue_is_gone_says_so(bench: Bench) -> None:
    """It has expired, or somebody has deleted it."""
    flow = Flow(bench)
    fork = flow.fork(flow.step("note"), flow.step("note"))
    async with flow.app:
        pending = await flow.send(fork, flow.step("total", "values"))
        await bench.delete_queue(f"asyncq.chord.{fork.id}")
        async with bench.working(Flow(bench).app):
            message = await flow.end(pending)
    assert message.type == "failed"
    assert b"asyncq.errors.ChordExpired" in message.body


@behaviour
async def test_a_late_member_of_a_workflow_that_was_sent_twice_is_no_failure(bench: Bench) -> None:
    """After `PartlySent` what is sent again may come first, and the chord is done without the first copy."""
    flow = Flow(bench)
    runs: list[int] = []
    told: list[FailedTask] = []
    go_on = asyncio.Event()

    @flow.app.task
    async def slow_at_first(x: int) -> int:
        runs.append(x)
        if len(runs) == 1:
            await asyncio.wait_for(go_on.wait(), WAIT_S)
        return x

    @flow.app.task
    async def tell(failed: FailedTask) -> None:
        told.append(failed)

    first, second = flow.step("slow_at_first", x=1), flow.step("add", x=2, y=0)
    fork, last = flow.fork(first, second), flow.step("total", "values")
    callback = Callback(f"{QUEUE}.tell", QUEUE)
    async with bench.working(flow.app) as worker:
        members = ((first,), (replace(second, queue="nowhere"),))
        with pytest.raises(PartlySent):
            await flow.send(replace(fork, members=members), last, on_failure=callback)
        await eventually(lambda: runs)
        assert await flow.value(fork, last, on_failure=callback, is_new=False) == 3
        go_on.set()
        await eventually(lambda: worker.stats().outcomes.get("Succeeded", 0) >= 4)
        flow.id = new_id()
        assert await flow.value(flow.step("note")) == "noted"  # it comes behind all that was sent before
    assert told == []


@behaviour
async def test_a_barrier_that_nobody_came_to_goes_away_by_itself(bench: Bench) -> None:
    """Arriving says so."""
    flow = Flow(bench)
    async with flow.app:
        barriers = flow.app.broker.barriers()
        await barriers.open("c3", b"head", keep_s=0.1, timeout_s=WAIT_S)

        async def is_gone() -> bool:
            try:
                await barriers.arrive("c3", 5, Member(0, "succeeded", b"1", "t", "x"), timeout_s=WAIT_S)
            except QueueGone:
                return True
            await asyncio.sleep(0.2)
            return False

        await eventually(is_gone)


@behaviour
async def test_a_replayed_dead_letter_goes_on_with_its_workflow(bench: Bench) -> None:
    """What follows it runs, with the value that it has in the end."""
    flow = Flow(bench)
    tries: list[int] = []

    @flow.app.task
    async def mended(x: int) -> int:
        tries.append(x)
        if len(tries) == 1:
            raise ValueError("broken")
        return x

    last = flow.step("double", "x")
    async with bench.working(flow.app):
        await flow.failure(flow.step("mended", x=4), last)
        await dead_letter(flow.app.broker)
        await flow.app.dead_letters(QUEUE).replay()
        await eventually(lambda: flow.ran == [("double", last.id)])
    assert tries == [4, 4]


@pytest.mark.parametrize("body", [b'{"$workflow": 5}', b'{"$workflow": {"id": "w", "then": [{"task": "x"}]}}'])
@pytest.mark.asyncio
async def test_a_place_that_cannot_be_read_makes_a_dead_letter(bench: Bench, body: bytes) -> None:
    """Before the task runs."""
    flow = Flow(bench)
    async with bench.working(flow.app):
        message = make_message(type="shop.note", body=body)
        await flow.app.broker.publish(message, Queue(QUEUE), timeout_s=WAIT_S)
        letter = await dead_letter(flow.app.broker)
        assert letter.record is not None
        assert letter.record.reason == "malformed message"
    assert flow.ran == []
