"""What is published for each outcome, in which order, and what a failing publish does."""

import asyncio
import json
from typing import Any

import pytest

from asyncq.broker import Delay, Queue
from asyncq.errors import LeaseLost, MessageTooLarge, NotSent, PublishUncertain, Refused
from asyncq.message import ATTEMPT, UNKNOWN_SINCE
from asyncq.outcome import (
    Cancelled,
    Deferred,
    Drained,
    Failed,
    Failure,
    LostLease,
    Outcome,
    Rejected,
    Repeated,
    RetryLater,
    Snoozed,
    Succeeded,
)
from asyncq.worker.execution import Executed
from worker_kit import Kit, LoneDelivery, make_kit

FAILURE = Failure("builtins.ValueError", "no luck", "Traceback ...")


async def settle(kit: Kit, outcome: Outcome, *, attempt: int = 1, **fields: Any) -> LoneDelivery:
    delivery = kit.delivery("work", **{"reply_to": "caller", **fields})
    await kit.settlement.settle(Executed(delivery, attempt, outcome))
    return delivery


@pytest.fixture
async def parts(monkeypatch: pytest.MonkeyPatch) -> Kit:
    """A worker's parts, with short pauses between the repeats of a publish."""
    monkeypatch.setattr("asyncq.worker.publishing._FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr("asyncq.worker.publishing._LONGEST_PAUSE_S", 0.002)
    return await make_kit()


# --- the order


@pytest.mark.parametrize(
    ("outcome", "order"),
    [
        (Succeeded(b"1"), ["reply succeeded", "ack"]),
        (RetryLater(FAILURE, 5, 60), ["publish", "ack"]),
        (Snoozed(5), ["publish", "ack"]),
        (Deferred(1, 5), ["publish", "ack"]),
        (Failed(FAILURE, "no retry policy"), ["dead letter", "reply failed", "ack"]),
        (Rejected(FAILURE, "invalid arguments"), ["dead letter", "reply rejected", "ack"]),
        (Cancelled(), ["reply cancelled", "ack"]),
        (Drained(), ["publish", "ack"]),
        (LostLease(), []),
        (Repeated(), ["ack"]),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, list) else "",
)
async def test_what_follows_is_published_before_the_ack(parts: Kit, outcome: Outcome, order: list[str]) -> None:
    """A crash between the two duplicates, never loses."""
    await settle(parts, outcome)
    assert parts.broker.log == order


async def test_a_reply_carries_the_task_id_and_the_result(parts: Kit) -> None:
    """And goes to the address that the message gave."""
    await settle(parts, Succeeded(b'{"a": 1}'), task_id="t-7")
    (reply,) = parts.broker.replies()
    assert (reply.type, reply.task_id, reply.body) == ("succeeded", "t-7", b'{"a": 1}')


async def test_without_a_reply_address_nothing_is_answered(parts: Kit) -> None:
    """The result is not wanted."""
    delivery = await settle(parts, Succeeded(b"1"), reply_to=None)
    assert parts.broker.log == ["ack"]
    assert delivery.settled == "acked"


@pytest.mark.parametrize(
    ("outcome", "attempt", "delay"),
    [
        (RetryLater(FAILURE, 5, 60), 3, Delay(5, 60)),
        (Snoozed(5), 2, Delay(5)),
        (Drained(), 2, None),
    ],
)
async def test_only_a_retry_counts_as_an_attempt(
    parts: Kit, outcome: Outcome, attempt: int, delay: Delay | None
) -> None:
    """The copy goes to the queue that the message came from, without what must not be copied."""
    headers = {ATTEMPT: 2, UNKNOWN_SINCE: 5, "mine": "kept", "x-death": "dropped"}
    await settle(parts, outcome, attempt=2, headers=headers)
    (copy,) = parts.broker.copies()
    assert copy.delay == delay
    assert copy.to == Queue("work")
    assert copy.message.headers[ATTEMPT] == attempt
    assert copy.message.headers["mine"] == "kept"
    assert "x-death" not in copy.message.headers
    assert copy.message.task_id == "task-1"


async def test_a_deferred_message_remembers_when_it_was_first_met(parts: Kit) -> None:
    """So that its wait is one wait; and what is known again forgets it."""
    await settle(parts, Deferred(12345, 10))
    assert parts.broker.copies()[0].message.headers[UNKNOWN_SINCE] == 12345
    await settle(parts, Snoozed(1), headers={UNKNOWN_SINCE: 12345})
    assert UNKNOWN_SINCE not in parts.broker.copies()[1].message.headers


async def test_a_dead_letter_says_why(parts: Kit) -> None:
    """The message's own body, with the error beside it."""
    await settle(parts, Failed(FAILURE, "attempts exhausted"), attempt=4, headers={ATTEMPT: 4})
    (letter,) = await parts.letters()
    assert letter.message.body == b"{}"
    assert letter.record is not None
    assert (letter.record.failure, letter.record.reason, letter.record.attempts) == (FAILURE, "attempts exhausted", 4)
    assert (letter.record.queue, letter.record.worker) == ("work", "host:1")
    assert letter.record.failed_at_ms == parts.clock.now_ms()


async def test_a_failure_is_answered_with_type_message_and_traceback(parts: Kit) -> None:
    """As JSON."""
    await settle(parts, Failed(FAILURE, "no retry policy"))
    (reply,) = parts.broker.replies()
    assert json.loads(reply.body) == {
        "type": "builtins.ValueError",
        "message": "no luck",
        "traceback": "Traceback ...",
    }


# --- publishes that fail


async def test_a_publish_that_fails_is_repeated_with_the_same_ids(parts: Kit) -> None:
    """The ack comes after the one that was confirmed."""
    parts.broker.fail("publish", NotSent("no connection"), PublishUncertain("no answer"), Refused("full"))
    delivery = await settle(parts, RetryLater(FAILURE, 5, None))
    assert len(parts.broker.attempted) == 4
    assert len({message.message_id for message in parts.broker.attempted}) == 1
    assert delivery.settled == "acked"


@pytest.mark.parametrize("what", ["reply", "dead letter", "publish"])
async def test_when_the_lease_ends_meanwhile_nothing_is_acked(parts: Kit, what: str) -> None:
    """The broker delivers it again."""
    error = NotSent("no connection") if what == "reply" else PublishUncertain("no answer")
    parts.broker.fail(what, *[error] * 100_000)
    outcome = {"reply": Succeeded(b"1"), "dead letter": Failed(FAILURE, "x"), "publish": Snoozed(1)}[what]
    delivery = parts.delivery("work", reply_to="caller")
    settling = asyncio.create_task(parts.settlement.settle(Executed(delivery, 1, outcome)))
    await asyncio.sleep(0.01)
    assert not settling.done()
    delivery.lose()
    assert await asyncio.wait_for(settling, 5) == LostLease()
    assert delivery.settled is None


async def test_a_reply_that_nobody_waits_for_is_no_fault(parts: Kit, caplog: pytest.LogCaptureFixture) -> None:
    """The producer is gone, and its queue with it."""
    parts.node.delete_queue("caller")
    for outcome in (Succeeded(b"1"), Failed(FAILURE, "x")):
        assert (await settle(parts, outcome)).settled == "acked"
    assert not caplog.records


async def test_a_reply_queue_that_refuses_does_not_keep_the_task_from_its_end(parts: Kit) -> None:
    """It may be full for ever, and it is somebody else's."""
    parts.broker.fail("reply", *[Refused("full")] * 100)
    assert (await settle(parts, Succeeded(b"1"))).settled == "acked"


@pytest.mark.parametrize("outcome", [Succeeded(b"1"), Failed(FAILURE, "x")])
async def test_a_reply_address_that_costs_the_connection_is_given_up(parts: Kit, outcome: Outcome) -> None:
    """Each try ends the publishes of everybody else."""
    parts.broker.fail("reply", *[PublishUncertain("connection lost")] * 100)
    assert (await settle(parts, outcome)).settled == "acked"
    assert 1 < sum(message.type != "work" for message in parts.broker.attempted) < 10


async def test_a_result_too_large_for_a_reply_makes_the_task_fail(parts: Kit) -> None:
    """With a dead letter, and an answer that says so."""
    parts.broker.fail("reply", MessageTooLarge("20 MB"))
    await settle(parts, Succeeded(b"1" * 100))
    assert parts.broker.log == ["dead letter", "reply failed", "ack"]
    assert json.loads(parts.broker.replies()[0].body)["type"] == "asyncq.errors.ResultTooLarge"


async def test_a_dead_letter_that_cannot_be_published_is_left_to_the_brokers_own_reject(parts: Kit) -> None:
    """Last, after the reply, in place of the ack."""
    parts.broker.fail("dead letter", MessageTooLarge("20 MB"))
    delivery = await settle(parts, Failed(FAILURE, "x"))
    assert parts.broker.log == ["reply failed", "reject"]
    assert delivery.settled == "rejected"


async def test_a_dead_letter_queue_that_refuses_for_good_gives_way_to_the_brokers_own_reject(parts: Kit) -> None:
    """After several tries."""
    parts.broker.fail("dead letter", *[Refused("full")] * 8)
    assert (await settle(parts, Failed(FAILURE, "x"))).settled == "rejected"


async def test_a_retry_that_cannot_be_published_is_a_dead_letter(parts: Kit) -> None:
    """It must not be lost, and must not loop."""
    parts.broker.fail("publish", MessageTooLarge("20 MB"))
    await settle(parts, RetryLater(FAILURE, 5, None))
    assert parts.broker.log == ["dead letter", "reply failed", "ack"]


async def test_a_retry_that_cannot_be_published_keeps_its_cause(parts: Kit) -> None:
    """The reason says what became of the copy; the error is the task's own."""
    parts.broker.fail("publish", MessageTooLarge("20 MB"))
    await settle(parts, RetryLater(FAILURE, 5, None))
    (letter,) = await parts.letters()
    record = letter.record
    assert record is not None
    assert record.failure == FAILURE
    assert record.reason == "could not be published again: 20 MB"


@pytest.mark.parametrize("outcome", [RetryLater(FAILURE, 1e10, None), Snoozed(1e10)])
async def test_a_delay_of_centuries_is_a_dead_letter(parts: Kit, outcome: Outcome) -> None:
    """Given back, the task would ask for it again, and so for ever."""
    delivery = await settle(parts, outcome)
    assert parts.broker.log == ["dead letter", "reply failed", "ack"]
    assert delivery.settled == "acked"


async def test_a_copy_without_its_queue_declares_the_queue_again(parts: Kit) -> None:
    """Somebody deleted it, or its place on the ladder."""
    parts.node.delete_queue("work")
    delivery = await settle(parts, Snoozed(1))
    assert parts.broker.declared == ["work"]
    assert delivery.settled == "acked"
    parts.clock.move(1)
    assert parts.node.count("work") == 1


async def test_a_lease_that_is_gone_at_the_ack_is_left_to_the_broker(parts: Kit) -> None:
    """The outcome that is reported says so."""
    delivery = parts.delivery("work")
    delivery.fail_ack = LeaseLost("gone")
    assert await parts.settlement.settle(Executed(delivery, 1, Succeeded(b"1"))) == LostLease()


async def test_a_failure_reply_that_is_too_large_is_sent_without_its_traceback(parts: Kit) -> None:
    """A small max_message_bytes must not hide the failure."""
    parts.broker.fail("reply", MessageTooLarge("1 KB"))
    await settle(parts, Failed(FAILURE, "x"))
    assert json.loads(parts.broker.replies()[0].body)["traceback"] == ""
