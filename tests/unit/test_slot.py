"""The loop of a slot: what it survives, and what it does with a thread that goes on."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator

import pytest
from pydantic import TypeAdapter

from asyncq.errors import LeaseLost, QueueGone
from asyncq.memory.consumer import MemorySubscription
from asyncq.message import ATTEMPT
from asyncq.retry import Fixed, RetryPolicy
from asyncq.worker.attempt import GRACE_S
from support import eventually
from worker_kit import Kit, make_kit, make_message


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asyncq.worker.slot._PAUSE_AFTER_BUG_S", 0.01)


@contextlib.asynccontextmanager
async def slots(kit: Kit, number: int = 2) -> AsyncIterator[MemorySubscription]:
    """Run slots on the queue `work`."""
    async with kit.broker.consume("work", slots=number) as subscription:
        loops = [asyncio.create_task(kit.slot.loop(subscription)) for _ in range(number)]
        yield subscription
        await subscription.stop()
        await asyncio.wait_for(asyncio.gather(*loops), 5)


async def test_slots_work_off_a_queue_each_one_delivery_at_a_time() -> None:
    """As many at once as there are slots, and never more."""
    kit = await make_kit()
    running, most, done = 0, 0, []

    @kit.task()
    async def work(n: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        done.append(n)

    for n in range(50):
        kit.broker.put("work", make_message("work", {"n": n}, task_id=str(n)))
    async with slots(kit, 5):
        await eventually(lambda: len(done) == 50)
    assert sorted(done) == list(range(50))
    assert most == 5
    assert kit.attempts.outcomes == {"Succeeded": 50}


async def test_a_task_that_fails_twice_succeeds_at_its_third_attempt() -> None:
    """Through the queue, with the attempt's number in the message."""
    kit = await make_kit()
    attempts = []

    @kit.task(retry=RetryPolicy(backoff=Fixed(1)), pass_context=True)
    async def work(ctx: object) -> None:
        attempts.append(ctx.attempt)  # type: ignore[attr-defined]
        if len(attempts) < 3:
            raise ValueError

    kit.broker.put("work", make_message("work"))
    async with slots(kit):
        for number in (1, 2, 3):
            await eventually(lambda: kit.node.busy == 0)
            assert len(attempts) == number
            await kit.clock.advance(1)
    assert attempts == [1, 2, 3]


async def test_a_bug_of_ours_costs_one_delivery_and_not_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    """The delivery is among the dead letters: given back, it would meet the bug again, and so for ever."""
    kit = await make_kit()
    done = []

    @kit.task()
    async def work(n: int) -> None:
        done.append(n)

    settle, broken = kit.settlement.settle, [1]

    async def settle_with_a_bug(executed: object) -> object:
        if broken:
            broken.pop()
            raise ZeroDivisionError
        return await settle(executed)  # type: ignore[arg-type]

    kit.settlement.settle = settle_with_a_bug  # type: ignore[method-assign,assignment]
    kit.broker.put("work", make_message("work", {"n": 1}, task_id="1"))
    kit.broker.put("work", make_message("work", {"n": 2}, task_id="2"))
    async with slots(kit, 1):
        await eventually(lambda: kit.attempts.outcomes["Succeeded"] == 1)
    assert done == [1, 2]
    (letter,) = await kit.letters()
    assert letter.record is not None
    assert (letter.record.reason, letter.record.failure.type) == ("internal error", "builtins.ZeroDivisionError")
    assert "could not be settled" in caplog.text


async def test_a_settlement_that_always_has_a_bug_neither_loops_nor_loses_the_message() -> None:
    """The broker's own dead letter is the last way."""
    kit = await make_kit()
    runs = []

    @kit.task()
    async def work() -> None:
        runs.append(1)

    async def settle_with_a_bug(executed: object) -> object:
        raise ZeroDivisionError

    kit.settlement.settle = settle_with_a_bug  # type: ignore[method-assign,assignment]
    delivery = kit.delivery("work")
    await kit.slot.handle(delivery)
    assert delivery.settled == "rejected"
    assert runs == [1]


async def test_a_cancellation_that_nobody_asked_for_does_not_end_the_slot() -> None:
    """The AMQP client ends waiting calls with one when its connection is stuck."""
    kit = await make_kit()

    @kit.task()
    async def work() -> None:
        pass

    async def settle(executed: object) -> object:
        raise asyncio.CancelledError

    kit.settlement.settle = settle  # type: ignore[method-assign,assignment]
    delivery = kit.delivery("work")
    await asyncio.create_task(kit.slot.handle(delivery))
    assert delivery.settled == "rejected"


async def test_a_report_that_fails_does_not_settle_the_delivery_twice(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was acked already; a second ack would close the channel of all slots."""
    kit = await make_kit()

    @kit.task()
    async def work() -> None:
        pass

    def write(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("asyncq.worker.report.Report.write", write)
    delivery = kit.delivery("work")
    await kit.slot.handle(delivery)
    assert delivery.settled == "acked"
    assert not kit.broker.copies()
    assert not await kit.letters()
    assert "could not be reported" in caplog.text


async def test_a_bug_in_execution_is_a_failed_task_with_its_error(caplog: pytest.LogCaptureFixture) -> None:
    """It is among the dead letters, so it neither loops nor is lost."""
    kit = await make_kit()

    @kit.task()
    async def work() -> None:
        pass

    del kit.execution._rules  # what decides about limits is broken
    kit.broker.put("work", make_message("work"))
    async with slots(kit):
        (letter,) = await eventually(kit.letters)
    assert letter.record is not None
    assert letter.record.reason == "internal error"
    assert "asyncq itself failed" in caplog.text


async def test_a_lease_that_is_gone_does_not_trouble_the_loop() -> None:
    """The next delivery comes as if nothing had been; this one comes again."""
    kit = await make_kit()
    done = []

    @kit.task()
    async def work(n: int) -> None:
        done.append(n)
        if len(done) == 1:
            kit.broker.lose_connection()

    for n in (1, 2):
        kit.broker.put("work", make_message("work", {"n": n}, task_id=str(n)))
    async with slots(kit, 1):
        await eventually(lambda: kit.attempts.outcomes == {"LostLease": 1, "Succeeded": 2})
    assert done == [1, 1, 2]


async def test_attempts_that_lose_their_leases_take_the_redeliveries_and_run_once() -> None:
    """Every slot is busy when the connection is lost, and still each redelivery finds its attempt."""
    kit = await make_kit()
    runs, go_on = [], asyncio.Event()

    @kit.task()
    async def long(n: int) -> None:
        runs.append(n)
        await go_on.wait()

    for n in range(3):
        kit.broker.put("work", make_message("long", {"n": n}, task_id=str(n)))
    async with slots(kit, 3):
        await eventually(lambda: len(runs) == 3)
        await kit.clock.advance(1)  # an attempt looks after its lease from then on
        first = {attempt.delivery for attempt in kit.attempts}
        kit.broker.lose_connection()
        await eventually(lambda: not any(attempt.delivery in first for attempt in kit.attempts))
        assert not any(attempt.orphaned for attempt in kit.attempts)
        go_on.set()
        await eventually(lambda: kit.attempts.outcomes == {"LostLease": 3, "Succeeded": 3})
    assert sorted(runs) == [0, 1, 2]


async def test_a_thread_that_goes_on_keeps_its_slot_until_it_returns() -> None:
    """Its delivery is settled; nothing new comes into its slot, and the other slot goes on."""
    kit = await make_kit()
    go_on, running, most = threading.Event(), 0, 0

    @kit.task(time_limit_s=30)
    def stubborn() -> None:
        go_on.wait(10)

    @kit.task()
    async def work(n: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1

    def put_work() -> None:
        for n in range(6):
            kit.broker.put("work", make_message("work", {"n": n}, task_id=str(n)))

    kit.broker.put("work", make_message("stubborn"))
    async with slots(kit, 2):
        await eventually(lambda: kit.threads.busy == 1)
        await kit.clock.advance(30 + GRACE_S)
        await eventually(kit.letters)
        put_work()
        await eventually(lambda: kit.attempts.outcomes["Succeeded"] == 6)
        assert most == 1
        go_on.set()
        await eventually(lambda: kit.threads.busy == 0)
        put_work()
        await eventually(lambda: kit.attempts.outcomes["Succeeded"] == 12)
        assert most == 2


async def test_a_deleted_queue_ends_the_loop_with_its_error() -> None:
    """Whoever runs the loop decides what then."""
    kit = await make_kit()
    async with kit.broker.consume("work", slots=1) as subscription:
        loop = asyncio.create_task(kit.slot.loop(subscription))
        await asyncio.sleep(0)
        kit.node.delete_queue("work")
        with pytest.raises(QueueGone):
            await asyncio.wait_for(loop, 5)


async def test_a_delivery_that_cannot_be_rejected_either_is_left_to_the_broker() -> None:
    """Nothing is raised."""
    kit = await make_kit()

    @kit.task()
    async def work() -> None:
        pass

    async def settle_with_a_bug(executed: object) -> object:
        raise ZeroDivisionError

    kit.settlement.settle = settle_with_a_bug  # type: ignore[method-assign,assignment]
    for error in (RuntimeError("broken"), LeaseLost("gone")):
        delivery = kit.delivery("work")
        delivery.fail_ack = error
        await kit.slot.handle(delivery)
        assert delivery.settled is None


async def test_neither_arguments_nor_results_that_do_not_validate_get_into_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A validation error quotes them. What the task itself says is the task's to answer for."""
    caplog.set_level("DEBUG")
    kit = await make_kit()

    @kit.task()
    async def work(card: int) -> int:
        return card

    @kit.task(retry=RetryPolicy(max_attempts=2))
    async def inner(card: str) -> int:
        return TypeAdapter(int).validate_python(card)

    @kit.task()
    async def result(card: str) -> int:
        return card  # type: ignore[return-value]

    for name, attempt in (("work", 1), ("inner", 1), ("inner", 2), ("result", 1)):
        await kit.slot.handle(kit.delivery(name, {"card": "secret-number"}, headers={ATTEMPT: attempt}))
    assert kit.attempts.outcomes == {"Rejected": 1, "RetryLater": 1, "Failed": 2}
    assert "ValidationError" in caplog.text
    assert "secret-number" not in caplog.text
