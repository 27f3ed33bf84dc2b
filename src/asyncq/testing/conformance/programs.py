"""Programs: chains, forks, joins and what is nested in each other, to their values."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel

from asyncq.barrier import Member
from asyncq.errors import QueueGone
from asyncq.message import new_id
from asyncq.options import SendOptions
from asyncq.program import WHOLE
from asyncq.retry import Fixed, RetryPolicy
from asyncq.signals import Snooze
from asyncq.testing.conformance.bench import WAIT_S, Bench, behaviour
from asyncq.testing.conformance.flows import Flow


@behaviour
async def test_a_chain_hands_each_value_on_and_tells_the_last_one_under_the_workflows_id(bench: Bench) -> None:
    """Each step takes the value before it into its own parameter; one that wants none, takes none."""
    flow = Flow(bench)
    steps = [flow.step("note"), flow.step("add", x=1, y=2), flow.step("double", "x"), flow.step("add", "y", x=5)]
    async with bench.working(flow.app):
        assert await flow.value(*steps) == 11
    assert flow.ran == [("note", steps[0].id), ("add", steps[1].id), ("double", steps[2].id), ("add", steps[3].id)]


@behaviour
async def test_a_chord_gives_the_list_in_order_to_what_follows(bench: Bench) -> None:
    """However the members end; each runs once, and so does what follows. Its queue is gone then."""
    flow = Flow(bench)
    fork = flow.fork(*(flow.step("add", x=number, y=0) for number in range(10)))
    async with bench.working(flow.app):
        assert await flow.value(fork, flow.step("total", "values"), flow.step("double", "x")) == 90
        assert flow.names() == ["add"] * 10 + ["double", "total"]
        with pytest.raises(QueueGone):
            await flow.app.broker.barriers().arrive(
                fork.id, 10, Member(0, "succeeded", b"0", "t", "x"), timeout_s=WAIT_S
            )


@behaviour
async def test_a_fork_in_the_middle_gives_each_member_the_value_before_it(bench: Bench) -> None:
    """Members may be chains."""
    flow = Flow(bench)
    fork = flow.fork(flow.step("double", "x"), (flow.step("add", "x", y=1), flow.step("double", "x")))
    async with bench.working(flow.app):
        assert await flow.value(flow.step("add", x=1, y=2), fork, flow.step("total", "values")) == 6 + 8


@behaviour
async def test_a_joined_group_that_nothing_follows_is_told_as_one_list(bench: Bench) -> None:
    """Under the workflow's id."""
    flow = Flow(bench)
    fork = flow.fork(flow.step("add", x=1, y=1), flow.step("note"), joined=True)
    async with bench.working(flow.app):
        assert await flow.value(fork) == [2, "noted"]


@behaviour
async def test_members_of_a_group_that_is_not_joined_end_each_for_itself(bench: Bench) -> None:
    """There is no queue for them, and nothing is told under the workflow's id."""
    flow = Flow(bench)
    members = [flow.step("add", x=number, y=0) for number in range(3)]
    async with bench.working(flow.app):
        whole = await flow.send(flow.fork(*members), expect=[member.id for member in members])
        for number, member in enumerate(members):
            assert (await flow.end(flow.pending[member.id])).body == b"%d" % number
        assert whole.final is None


@behaviour
async def test_forks_in_forks_are_joined_from_the_inside_out(bench: Bench) -> None:
    """A chord as a member of a chord, a group as one, and a chord whose end is a group."""
    flow = Flow(bench)
    inner = (flow.fork(flow.step("add", x=1, y=1), flow.step("add", x=2, y=2)), flow.step("total", "values"))
    group = (flow.fork(flow.step("add", x=3, y=3), flow.step("add", x=4, y=4)),)
    last = flow.fork(flow.step("total", "values"), flow.step("note"), joined=True)
    async with bench.working(flow.app):
        value = await flow.value(flow.fork(inner, group, flow.step("note")), last)
    assert value == [[6, [6, 8], "noted"], "noted"]


@behaviour
async def test_empty_forks_and_members_go_on_at_once(bench: Bench) -> None:
    """An empty group is []; an empty member has the value that came before. The sender ends what holds no task."""
    flow = Flow(bench)
    async with bench.working(flow.app):
        assert await flow.value(flow.fork(), flow.step("total", "values")) == 0
    flow = Flow(bench)
    async with bench.working(flow.app):
        assert await flow.value(flow.step("add", x=1, y=1), flow.fork((), flow.step("double", "x"), joined=True)) == [
            2,
            4,
        ]
    flow = Flow(bench)
    async with bench.working(flow.app):
        assert await flow.value(flow.fork((flow.fork(),), (flow.fork(),)), flow.step("total", "values")) == [[], []]
    flow = Flow(bench)
    async with flow.app:
        assert await flow.value() is None
        flow.id = new_id()
        assert await flow.value(flow.fork(joined=True)) == []


@behaviour
async def test_a_step_whose_task_takes_one_model_gets_the_value_as_its_message(bench: Bench) -> None:
    """All of it."""
    flow = Flow(bench)

    class Order(BaseModel):
        number: int

    @flow.app.task
    async def make() -> Order:
        return Order(number=7)

    @flow.app.task
    async def ship(order: Order) -> int:
        return order.number

    async with bench.working(flow.app):
        assert await flow.value(flow.step("make"), flow.step("ship", WHOLE)) == 7


@behaviour
async def test_steps_say_where_they_come_from_and_keep_their_options(bench: Bench) -> None:
    """The root is the workflow; the parent is the task that has sent them. A delay is counted from the send."""
    flow = Flow(bench)
    seen: list[Any] = []

    @flow.app.task(pass_context=True)
    async def look(ctx: Any, x: int = 0) -> int:
        seen.append(ctx)
        return x

    options: SendOptions = {"headers": {"shop": "a"}, "delay": 0.1, "time_limit": 5}
    first, second = flow.step("look"), flow.step("look", "x", options)
    async with bench.working(flow.app):
        assert await flow.value(first, second) == 0
    one, two = [context.message for context in seen]
    assert (one.task_id, two.task_id) == (first.id, second.id)
    assert one.headers["asyncq-root-id"] == two.headers["asyncq-root-id"] == flow.id
    assert "asyncq-parent-id" not in one.headers
    assert two.headers["asyncq-parent-id"] == first.id
    assert (two.headers["shop"], two.headers["asyncq-time-limit-ms"]) == ("a", 5000)


@behaviour
async def test_retries_and_snoozes_keep_their_place_in_the_workflow(bench: Bench) -> None:
    """Copies carry it, and a member's second attempt counts for the chord."""
    flow = Flow(bench)
    soon = RetryPolicy(backoff=Fixed(0.02), jitter=False, max_attempts=3)
    tries: list[str] = []

    @flow.app.task(retry=soon)
    async def shaky(x: int) -> int:
        tries.append("shaky")
        if tries.count("shaky") < 3:
            raise ConnectionError("not yet")
        return x

    @flow.app.task
    async def sleepy(x: int) -> int:
        tries.append("sleepy")
        if tries.count("sleepy") < 2:
            raise Snooze(0.02)
        return x

    fork = flow.fork(flow.step("shaky", x=1), flow.step("sleepy", x=2))
    async with bench.working(flow.app):
        assert await flow.value(fork, flow.step("total", "values")) == 3
    assert sorted(tries) == ["shaky"] * 3 + ["sleepy"] * 2


@behaviour
async def test_what_arrives_twice_counts_once(bench: Bench) -> None:
    """A member that ran twice, after a crash, neither completes the chord early nor fills a second place."""
    flow = Flow(bench)
    async with flow.app:
        barriers = flow.app.broker.barriers()
        await barriers.open("c1", b"head", keep_s=60, timeout_s=WAIT_S)
        first, second = (Member(index, "succeeded", b"%d" % index, f"t{index}", "x") for index in (0, 1))
        for _ in range(3):
            assert await barriers.arrive("c1", 2, first, timeout_s=WAIT_S) is None
        gathered = await barriers.arrive("c1", 2, second, timeout_s=WAIT_S)
        assert gathered is not None
        assert (gathered.head, list(gathered.members)) == (b"head", [first, second])
        await gathered.done()


@behaviour
async def test_what_was_gathered_and_not_done_is_gathered_again(bench: Bench) -> None:
    """By whoever arrives again. A success counts more than an error that came before."""
    flow = Flow(bench)
    async with flow.app:
        barriers = flow.app.broker.barriers()
        await barriers.open("c2", b"head", keep_s=60, timeout_s=WAIT_S)
        await barriers.arrive("c2", 2, Member(0, "failed", b"{}", "t0", "x"), timeout_s=WAIT_S)
        member = Member(1, "succeeded", b"1", "t1", "x")
        gathered = await barriers.arrive("c2", 2, member, timeout_s=WAIT_S)
        assert gathered is not None
        assert not gathered.was_held
        await gathered.give_back()
        better = Member(0, "succeeded", b"0", "t0", "x")
        again = await barriers.arrive("c2", 2, better, timeout_s=WAIT_S)
        assert again is not None
        assert again.was_held
        assert list(again.members) == [better, member]
        await again.done()


@behaviour
async def test_who_comes_while_its_own_client_holds_the_members_waits_as_well(bench: Bench) -> None:
    """It may be the same task, which has come again because the one that holds them has lost its lease."""
    flow = Flow(bench)
    member = Member(0, "succeeded", b"0", "t0", "x")
    async with flow.app:
        barriers = flow.app.broker.barriers()
        for chord in ("given-back", "done"):
            await barriers.open(chord, b"head", keep_s=60, timeout_s=WAIT_S)
            held = await barriers.arrive(chord, 1, member, timeout_s=WAIT_S)
            assert held is not None
            again = asyncio.ensure_future(barriers.arrive(chord, 1, member, timeout_s=WAIT_S))
            _, pending = await asyncio.wait({again}, timeout=0.3)
            assert pending
            if chord == "done":
                await held.done()
                assert await again is None
            else:
                await held.give_back()
                gathered = await again
                assert gathered is not None
                await gathered.done()


@behaviour
async def test_a_barrier_that_was_opened_twice_takes_in_who_comes_late(bench: Bench) -> None:
    """Its members come twice, and the second time is no sign that it has expired. Opened once more, it works again."""
    flow = Flow(bench)
    members = [Member(index, "succeeded", b"%d" % index, f"t{index}", "x") for index in range(3)]
    async with flow.app:
        barriers = flow.app.broker.barriers()
        for _ in range(2):
            await barriers.open("c5", b"head", keep_s=60, timeout_s=WAIT_S)
        *early, gathered = [await barriers.arrive("c5", 3, member, timeout_s=WAIT_S) for member in members]
        assert early == [None, None]
        assert gathered is not None
        await gathered.done()
        for member in (*members, *members):
            assert await barriers.arrive("c5", 3, member, timeout_s=WAIT_S) is None
        await barriers.open("c5", b"new head", keep_s=60, timeout_s=WAIT_S)
        gathered = await barriers.arrive("c5", 3, members[0], timeout_s=WAIT_S)
        assert gathered is not None
        assert (gathered.head, list(gathered.members)) == (b"new head", members)
        await gathered.done()
        with pytest.raises(QueueGone):
            await barriers.arrive("c5", 3, members[0], timeout_s=WAIT_S)
