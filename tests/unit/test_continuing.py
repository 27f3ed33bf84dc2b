"""How settlement goes on with a workflow: in which order, and what a publish that fails, or a missing barrier, does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import repeat
from typing import Any

import pytest

from asyncq.errors import AccessRefused, LeaseLost, PublishUncertain, Refused, Unroutable
from asyncq.interpreter import FlowRules, Interpreter, Source
from asyncq.life import RUNS
from asyncq.memory.barrier import MemoryBarriers
from asyncq.message import ATTEMPT, Message
from asyncq.outcome import Cancelled, Failed, Failure, Outcome, Succeeded
from asyncq.program import Arrival, Errors, Fork, Place, Program, Step, Workflow
from asyncq.program_json import place_in, with_place
from asyncq.worker.execution import Executed
from worker_kit import Kit, LoneDelivery, make_kit

FAILURE = Failure("builtins.ValueError", "no luck")
FLOW = Workflow("flow", "caller")
NEXT = Step("next", "work.more", "work", into="x")


@pytest.fixture
async def parts(monkeypatch: pytest.MonkeyPatch) -> Kit:
    """A worker's parts, with short pauses between the repeats of a publish."""
    monkeypatch.setattr("asyncq.worker.publishing._FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr("asyncq.worker.publishing._LONGEST_PAUSE_S", 0.002)
    kit = await make_kit()
    await kit.broker.ensure([])
    kit.node.declare(kit.broker._names, [spec_of("work")])
    return kit


def spec_of(queue: str):
    from asyncq.broker import QueueSpec

    return QueueSpec(queue)


async def settle(kit: Kit, outcome: Outcome, place: Place, *, deliveries: int | None = None, **fields) -> LoneDelivery:
    body = with_place(b'{"a": 1}', place)
    delivery = kit.delivery("work", **{"reply_to": "caller", "body": body, **fields})
    delivery.deliveries = deliveries
    await kit.settlement.settle(Executed(delivery, 1, outcome))
    return delivery


def tasks(kit: Kit) -> list:
    return [item.message for item in kit.broker.published if item.message.type == "work.more"]


@pytest.mark.parametrize(
    ("outcome", "then", "order"),
    [
        (Succeeded(b"1"), (NEXT,), ["reply succeeded", "publish", "ack"]),
        (Succeeded(b"1"), (), ["reply succeeded", "reply succeeded", "ack"]),
        (Failed(FAILURE, "no retry policy"), (NEXT,), ["dead letter", "reply failed", "reply failed", "ack"]),
        (Cancelled(), (NEXT,), ["reply cancelled", "reply cancelled", "ack"]),
    ],
)
async def test_what_follows_comes_after_the_reply_and_before_the_ack(
    parts: Kit, outcome: Outcome, then: Program, order: list[str]
) -> None:
    """The task's own end is told first, then the workflow's, if that is its end."""
    await settle(parts, outcome, Place(FLOW, then))
    assert parts.broker.log == order
    ids = [reply.task_id for reply in parts.broker.replies()]
    assert ids == (["task-1"] if "publish" in order else ["task-1", "flow"])


async def test_the_next_step_has_the_value_the_rest_and_where_it_comes_from(parts: Kit) -> None:
    """And answers the workflow's sender."""
    last = Step("last", "work.more", "work")
    await settle(parts, Succeeded(b'{"b": 1.10}'), Place(FLOW, (NEXT, last)), headers={"traceparent": "t"})
    (message,) = tasks(parts)
    assert (message.task_id, message.reply_to, message.headers["traceparent"]) == ("next", "caller", "t")
    assert b'"x":{"b": 1.10}' in message.body
    place = place_in(message.body)
    assert place is not None
    assert place.then == (last,)
    assert (message.headers["asyncq-root-id"], message.headers["asyncq-parent-id"]) == ("flow", "task-1")


async def test_only_what_may_be_there_already_says_that_it_may_not_be_alone(parts: Kit) -> None:
    """A redelivered task's followers, and what was published with an unknown outcome."""
    fork = Fork("f", tuple((Step(f"m{number}", "work.more", "work"),) for number in range(3)), joined=True)
    parts.broker.fail("publish", PublishUncertain("no answer"))
    await settle(parts, Succeeded(b"1"), Place(FLOW, (fork,)))
    marked = {message.task_id: message.headers.get(RUNS) for message in tasks(parts)}
    assert marked == {"m0": 1, "m1": None, "m2": None}
    parts.broker.published.clear()
    await settle(parts, Succeeded(b"1"), Place(FLOW, (NEXT,)), deliveries=1)
    (message,) = tasks(parts)
    assert message.headers[RUNS] == 1


async def test_a_refused_follower_ends_the_workflow_and_not_the_task(parts: Kit) -> None:
    """It is told under the workflow's id; the task has succeeded."""
    parts.broker.fail("publish", *[Unroutable("no such queue")] * 20)
    delivery = await settle(parts, Succeeded(b"1"), Place(FLOW, (NEXT,)))
    assert delivery.settled == "acked"
    first, second = parts.broker.replies()
    assert (first.type, first.task_id, second.type, second.task_id) == ("succeeded", "task-1", "failed", "flow")
    assert json.loads(second.body)["type"] == "asyncq.errors.Unroutable"


@pytest.mark.parametrize("errors", ["stop", "collect"])
async def test_a_member_that_is_refused_has_failed_and_the_others_run(
    parts: Kit, monkeypatch: pytest.MonkeyPatch, errors: Errors
) -> None:
    """It arrives at the barrier with its own name; the last one of the others goes on."""
    members = tuple((Step(f"m{number}", "work.more", "work"),) for number in range(3))
    fork = Fork("f", members, errors)
    publish, answers = (
        parts.broker.publish,
        {"m0": repeat(Refused("full")), "m1": iter([PublishUncertain("no answer")])},
    )

    async def publish_some(message: Message, *more: Any, **options: Any) -> None:
        if (error := next(answers.get(message.task_id, iter(())), None)) is not None:
            raise error
        await publish(message, *more, **options)

    monkeypatch.setattr(parts.broker, "publish", publish_some)
    await settle(parts, Succeeded(b"1"), Place(FLOW, (fork, NEXT)))
    assert [(message.task_id, message.headers.get(RUNS)) for message in tasks(parts)] == [("m2", None), ("m1", 1)]
    for message in tasks(parts):
        delivery = parts.delivery("work", body=message.body, task_id=message.task_id)
        await parts.settlement.settle(Executed(delivery, 1, Succeeded(b"1")))
    if errors == "stop":
        (told,) = [reply for reply in parts.broker.replies() if reply.task_id == "flow"]
        failed = json.loads(told.body)["members"]
    else:
        failed = [member for member in json.loads(tasks(parts)[-1].body)["x"] if member != 1]
    assert [(item["index"], item["task_id"], item["task"], item["error_type"]) for item in failed] == [
        (0, "m0", "work.more", "asyncq.errors.Refused")
    ]


async def test_a_group_within_a_chord_that_cannot_be_begun_has_failed(
    parts: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own barrier could not be made; it is named by its first task."""
    inner = Fork("inner", ((Step("m0", "work.more", "work"),),), joined=True)
    fork = Fork("f", ((Step("first", "work.more", "work"),), (inner,)))
    opened = MemoryBarriers.open

    async def refuse_the_inner_one(self: MemoryBarriers, chord: str, head: bytes, **more: float) -> None:
        if chord == "inner":
            raise AccessRefused("no permission")
        await opened(self, chord, head, **more)

    monkeypatch.setattr(MemoryBarriers, "open", refuse_the_inner_one)
    await settle(parts, Succeeded(b"1"), Place(FLOW, (fork, NEXT)))
    (message,) = tasks(parts)
    delivery = parts.delivery("work", body=message.body, task_id=message.task_id)
    await parts.settlement.settle(Executed(delivery, 1, Succeeded(b"1")))
    (told,) = [reply for reply in parts.broker.replies() if reply.task_id == "flow"]
    (failed,) = json.loads(told.body)["members"]
    assert (failed["index"], failed["task_id"], failed["error_type"]) == (1, "m0", "asyncq.errors.AccessRefused")


async def test_a_lost_lease_leaves_the_rest_to_who_gets_the_task(parts: Kit) -> None:
    """Nothing is acked, nothing is told of the workflow."""
    parts.broker.fail("publish", *[PublishUncertain("no answer")] * 20)
    delivery = parts.delivery("work", reply_to="caller", body=with_place(b"{}", Place(FLOW, (NEXT,))))
    delivery.lose()
    with pytest.raises(LeaseLost):
        await parts.settlement._settle(Executed(delivery, 1, Succeeded(b"1")), Succeeded(b"1"))
    assert [reply.task_id for reply in parts.broker.replies()] == ["task-1"]


ARRIVAL = Arrival("gone", 0, 2, 2**42)


@pytest.mark.parametrize(
    ("fields", "chord", "ends"),
    [
        ({}, ARRIVAL, ["asyncq.errors.ChordExpired"]),
        ({"deliveries": 1}, ARRIVAL, []),
        ({"headers": {RUNS: 1}}, ARRIVAL, []),
        ({"headers": {ATTEMPT: 2}}, ARRIVAL, []),
        ({"deliveries": 1}, Arrival("gone", 0, 2, 1), ["asyncq.errors.ChordExpired"]),
    ],
)
async def test_a_missing_barrier_was_done_or_has_expired(parts: Kit, fields: dict, chord: Arrival, ends: list) -> None:
    """Who comes for the first time has not been there before; and what is old enough may have expired."""
    delivery = await settle(parts, Succeeded(b"1"), Place(FLOW, (), chord=chord), **fields)
    assert delivery.settled == "acked"
    told = [reply for reply in parts.broker.replies() if reply.task_id == "flow"]
    assert [json.loads(reply.body)["type"] for reply in told] == ends


@pytest.mark.parametrize(("kept_until_ms", "is_told"), [(2**42, False), (1, True)])
async def test_a_member_of_what_may_have_been_sent_twice_is_not_the_first(
    parts: Kit, kept_until_ms: int, is_told: bool
) -> None:
    """Its chord was done by those of the other time, while it stands for certain."""
    again = replace(FLOW, is_new=False)
    await settle(parts, Succeeded(b"1"), Place(again, (), chord=replace(ARRIVAL, kept_until_ms=kept_until_ms)))
    assert bool([reply for reply in parts.broker.replies() if reply.task_id == "flow"]) == is_told


async def test_a_barrier_is_removed_after_what_follows_is_confirmed(parts: Kit) -> None:
    """Else a crash in between would lose it."""
    fork = Fork("f", ((Step("m0", "work.more", "work"),), (Step("m1", "work.more", "work"),)))
    await settle(parts, Succeeded(b"1"), Place(FLOW, (fork, NEXT)))
    first, second = tasks(parts)
    for message in (first, second):
        parts.broker.fail("publish", *([Unroutable("not yet")] if message is second else []))
        delivery = parts.delivery("work", body=message.body, task_id=message.task_id)
        await parts.settlement.settle(Executed(delivery, 1, Succeeded(b'"v"')))
    follower = tasks(parts)[-1]
    assert (follower.task_id, b'"x":["v","v"]' in follower.body) == ("next", True)
    assert "asyncq.chord.f" not in parts.node.queues


async def test_how_long_barriers_stand_follows_from_delays_and_limits(parts: Kit) -> None:
    """Beyond them, they stand for what the settings say."""
    opened: list[float] = []

    class Watched:
        async def open_barrier(self, chord: str, head: bytes, keep_s: float) -> None:
            opened.append(keep_s)

        async def publish_many(self, items: Sequence[object]) -> list[None]:
            return [None for _ in items]

    from asyncq.options import Sending

    late = Step("a", "work.more", "work", sending=Sending(delay_s=100.0, time_limit_s=5.0))
    inner = Fork("g", ((late, late), (late,)))
    interpreter = Interpreter(Watched(), parts.clock, FlowRules("asyncq.tasks", 10**6, 7.0), Source(None))  # type: ignore[arg-type]
    await interpreter.start((Fork("f", ((inner,), (late,)), joined=True),), FLOW)
    assert opened == [7 + 210, 7 + 210]
