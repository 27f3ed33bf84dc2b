"""What a worker does with a circuit breaker: what it counts, what it logs, and how a pause begins and ends."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from asyncq import AsyncQ, CircuitBreaker, Fixed, Reject, Retry, RetryPolicy, Snooze
from asyncq.breaker import BreakerDefaults
from asyncq.context import TaskContext
from asyncq.errors import MessageTooLarge
from asyncq.message import EXPIRES_AT
from asyncq.outcome import (
    Cancelled,
    Deferred,
    Drained,
    Expired,
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
from asyncq.settings import Settings
from asyncq.testing.harness import running
from asyncq.worker.pausing import QueueBreaker
from asyncq.worker.worker import Worker
from support import eventually
from worker_kit import App, Kit, make_kit, make_message

FIVE = CircuitBreaker(at_least=5, pause=30)
ERROR = Failure("builtins.ConnectionError", "card 1234")


@contextlib.asynccontextmanager
async def working(kit: Kit, breaker: CircuitBreaker | None = FIVE, slots: int = 2) -> AsyncIterator[Worker]:
    """Run a worker for the queue `work`, and let it drain in the end."""
    app = App(kit.tasks, kit.broker, Settings(drain_timeout_s=5), breakers=BreakerDefaults(breaker))
    no_sender: Any = None
    worker = Worker(app, no_sender, {"work": slots}, kit.clock)
    task = asyncio.create_task(worker.run())
    await eventually(lambda: kit.node.is_consumed("work"))
    try:
        yield worker
    finally:
        worker.stop()
        await asyncio.wait_for(task, 10)


def put(kit: Kit, count: int, first: int = 0) -> None:
    for n in range(first, first + count):
        kit.broker.put("work", make_message("work", {"n": n}, task_id=str(n)))


def state_of(worker: Worker) -> str:
    return worker.stats().breakers["work"]


# --- what counts


@pytest.mark.parametrize(
    ("outcome", "counts_as"),
    [
        (Succeeded(b"1"), "success"),
        (RetryLater(ERROR, 1, None), "failure"),
        (Failed(ERROR, "no retry policy"), "failure"),
        (Failed(ERROR, "attempts exhausted"), "failure"),
        (Failed(ERROR, "delivered too often"), "nothing"),
        (Failed(ERROR, "result not serialisable"), "nothing"),
        (Rejected(ERROR, "invalid arguments"), "nothing"),
        (Snoozed(1), "nothing"),
        (Deferred(1, 1), "nothing"),
        (Cancelled(), "nothing"),
        (Expired(1, 2, ERROR), "nothing"),
        (Drained(), "nothing"),
        (LostLease(), "nothing"),
        (Repeated(), "nothing"),
    ],
    ids=repr,
)
async def test_only_the_work_itself_decides(outcome: Outcome, counts_as: str) -> None:
    """On trial after a pause, one delivery is enough to see what it counts as."""
    kit = await make_kit()
    breaker = await trial(kit)
    await breaker.ended(outcome, kit.clock.monotonic())
    assert breaker.state == {"success": "closed", "failure": "open", "nothing": "half-open"}[counts_as]


async def trial(kit: Kit) -> QueueBreaker:
    """Return a breaker whose next counted delivery decides."""
    breaker = QueueBreaker("work", CircuitBreaker(at_least=1), kit.clock)
    await breaker.ended(Failed(ERROR, "no retry policy"), kit.clock.monotonic())
    kit.clock.move(30)
    assert breaker.state == "half-open"
    return breaker


async def test_a_message_that_is_not_run_again_because_it_came_back_too_often_says_nothing() -> None:
    """It may be what kills workers; that is one message."""
    kit = await make_kit()
    runs = []

    @kit.task()
    async def work() -> None:
        runs.append(1)

    breaker = await trial(kit)
    await kit.slot.handle(kit.delivery("work", deliveries=1000), breaker)
    assert kit.attempts.outcomes == {"Failed": 1}
    assert (runs, breaker.state) == ([], "half-open")


async def test_a_result_that_does_not_fit_says_nothing_and_one_too_large_was_work_done() -> None:
    """Both end as failed."""
    kit = await make_kit()

    @kit.task()
    async def odd() -> int:
        return "no number"  # type: ignore[return-value]

    @kit.task()
    async def work() -> int:
        return 1

    breaker = await trial(kit)
    await kit.slot.handle(kit.delivery("odd"), breaker)
    assert (kit.attempts.outcomes, breaker.state) == ({"Failed": 1}, "half-open")
    kit.broker.fail("reply", MessageTooLarge("too large"))
    await kit.slot.handle(kit.delivery("work", reply_to="caller"), breaker)
    assert (kit.attempts.outcomes, breaker.state) == ({"Failed": 2}, "closed")


async def test_an_attempt_that_fails_counts_also_where_its_message_expires_with_it() -> None:
    """What becomes of the message is another thing."""
    kit = await make_kit()

    @kit.task(retry=RetryPolicy(backoff=Fixed(60), jitter=False))
    async def work() -> None:
        raise ConnectionError

    breaker = await trial(kit)
    expires = {EXPIRES_AT: kit.clock.now_ms() + 1000}
    await kit.slot.handle(kit.delivery("work", headers=expires), breaker)
    assert kit.attempts.outcomes == {"Expired": 1}
    assert breaker.state == "open"


async def test_time_limits_and_retries_count_and_rejections_and_snoozes_do_not() -> None:
    """In a running app: each attempt is one."""
    app = AsyncQ("shop", breaker=CircuitBreaker(at_least=100))
    policy = RetryPolicy(on=KeyError, backoff=Fixed(1), max_attempts=2)
    snoozes = [1, 1]

    @app.task(retry=policy, time_limit=10)
    async def work(what: str) -> None:
        match what:
            case "fails":
                raise KeyError  # two attempts
            case "asks for another":
                raise Retry(after=1)  # two attempts
            case "is rejected":
                raise Reject
            case "snoozes":
                if snoozes:
                    raise Snooze(snoozes.pop())

    async with running(app) as harness:
        assert harness._worker is not None
        breaker = harness._worker._queues.breakers["shop"]._breaker
        harness.faults.hang(work)
        for what in ("hangs", "fails", "asks for another", "is rejected", "snoozes"):
            await work.send(what)
            await harness.run_until_idle()
        assert breaker.counts() == (5, 6)


# --- the pause


async def test_the_slots_pause_and_go_on_by_the_workers_clock(caplog: pytest.LogCaptureFixture) -> None:
    """Each step is in the log, with figures, and without anything that a message carries."""
    caplog.set_level("INFO")
    kit = await make_kit()
    failed, done, fault = [], [], True

    @kit.task()
    async def work(n: int) -> None:
        if fault:
            failed.append(n)
            raise ConnectionError("card 1234")
        done.append(n)

    put(kit, 20)
    async with working(kit, slots=1) as worker:
        await eventually(lambda: state_of(worker) == "open")
        await kit.clock.advance(29.9)
        assert (failed, state_of(worker)) == ([0, 1, 2, 3, 4], "open")
        await kit.clock.advance(0.2)
        await eventually(lambda: failed == [0, 1, 2, 3, 4, 5])
        assert state_of(worker) == "open"
        await kit.clock.advance(29.8)
        assert len(failed) == 6
        fault = False
        await kit.clock.advance(0.3)
        await eventually(lambda: done == list(range(6, 20)))
        assert state_of(worker) == "closed"
    told = [record.getMessage() for record in caplog.records if "slots" in record.getMessage()]
    opened, on_trial, again, on_trial_again, closed = told
    assert opened == (
        "nearly every delivery of this queue fails, so its slots pause queue='work' failed=5 of=5 share=1.0 "
        "pause_s=30.0 error='builtins.ConnectionError'"
    )
    assert (
        on_trial
        == on_trial_again
        == ("the pause is over: the slots of this queue work, and the first delivery decides queue='work'")
    )
    assert again == (
        "the first delivery after the pause has failed too, so the slots of this queue pause again queue='work' "
        "pause_s=30.0 error='builtins.ConnectionError'"
    )
    assert closed == "a delivery has succeeded, so the slots of this queue go on as before queue='work'"


async def test_attempts_that_run_when_the_pause_begins_finish_undisturbed() -> None:
    """They decide nothing, and nothing takes their place."""
    kit = await make_kit()
    go_on, ended, failed = asyncio.Event(), [], []

    @kit.task()
    async def long(n: int) -> None:
        await go_on.wait()
        ended.append(n)

    @kit.task()
    async def work(n: int) -> None:
        failed.append(n)
        raise ConnectionError

    for n in range(2):
        kit.broker.put("work", make_message("long", {"n": n}, task_id=f"long-{n}"))
    put(kit, 20)
    async with working(kit, slots=4) as worker:
        await eventually(lambda: state_of(worker) == "open")
        await eventually(lambda: worker.stats().running == 2)
        so_far = len(failed)
        assert so_far <= 6  # the other slot's attempt ran when it opened
        go_on.set()
        await eventually(lambda: sorted(ended) == [0, 1])
        await kit.clock.advance(29)
        assert (len(failed), state_of(worker)) == (so_far, "open")


async def test_what_had_come_and_was_not_started_runs_first_after_the_pause() -> None:
    """Each once, with its attempt and the broker's count as they were."""
    kit = await make_kit()
    seen, fault = [], True

    @kit.task(pass_context=True)
    async def work(ctx: TaskContext, n: int) -> None:
        seen.append((n, ctx.attempt, ctx.message.headers.get("x-delivery-count", 0)))
        if fault:
            raise ConnectionError

    put(kit, 12)
    async with working(kit, slots=3) as worker:
        await eventually(lambda: state_of(worker) == "open")
        await kit.clock.advance(1)
        before = len(seen)
        assert before <= 7
        fault = False
        await kit.clock.advance(30)
        await eventually(lambda: len(seen) == 12)
    assert sorted(seen) == [(n, 1, 0) for n in range(12)]
    assert [n for n, _, _ in seen[before:]] == list(range(before, 12))


async def test_a_worker_that_stops_in_the_pause_drains_at_once() -> None:
    """The clock need not move; what was kept is in the queue again."""
    kit = await make_kit()

    @kit.task()
    async def work(n: int) -> None:
        raise ConnectionError

    put(kit, 20)
    async with working(kit) as worker:
        await eventually(lambda: state_of(worker) == "open")
    failed = worker.stats().outcomes["Failed"]
    assert worker.stats().outcomes == {"Failed": failed}
    assert kit.node.count("work") == 20 - failed
    assert kit.node.count("work.dead") == failed
    assert kit.clock.next_due_s is None


async def test_a_queue_that_is_deleted_in_the_pause_stays_paused_and_goes_on_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is declared again at once; the new subscription begins paused."""
    monkeypatch.setattr("asyncq.worker.consuming._FIRST_PAUSE_S", 0.01)
    kit = await make_kit()
    done, fault = [], True

    @kit.task()
    async def work(n: int) -> None:
        if fault:
            raise ConnectionError
        done.append(n)

    put(kit, 20)
    async with working(kit) as worker:
        await eventually(lambda: state_of(worker) == "open")
        fault = False
        first = kit.broker.subscriptions["work"]
        kit.node.delete_queue("work")
        await eventually(lambda: kit.broker.subscriptions["work"] is not first and kit.node.is_consumed("work"))
        put(kit, 3, first=100)
        await kit.clock.advance(29)
        assert (done, state_of(worker)) == ([], "open")
        await kit.clock.advance(2)
        await eventually(lambda: sorted(done) == [100, 101, 102])
        assert state_of(worker) == "closed"


async def test_a_pause_that_ends_while_there_is_no_subscription_is_over_for_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between a lost queue and the new one."""
    monkeypatch.setattr("asyncq.worker.consuming._FIRST_PAUSE_S", 0.2)
    kit = await make_kit()
    done, fault = [], True

    @kit.task()
    async def work(n: int) -> None:
        if fault:
            raise ConnectionError
        done.append(n)

    put(kit, 20)
    async with working(kit) as worker:
        await eventually(lambda: state_of(worker) == "open")
        fault = False
        (consumer,) = worker._queues.consumers.values()
        kit.node.delete_queue("work")
        await eventually(lambda: consumer._subscription is None)
        kit.clock.move(30)
        put(kit, 3, first=100)
        await eventually(lambda: sorted(done) == [100, 101, 102])
        assert state_of(worker) == "closed"


async def test_a_worker_without_a_breaker_goes_on_whatever_fails() -> None:
    """`breaker=None`."""
    kit = await make_kit()

    @kit.task()
    async def work(n: int) -> None:
        raise ConnectionError

    put(kit, 50)
    async with working(kit, breaker=None) as worker:
        await eventually(lambda: worker.stats().outcomes.get("Failed") == 50)
        assert worker.stats().breakers == {}


async def test_a_pause_or_a_resume_that_fails_is_told_and_ends_no_slot(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then it is as without a breaker, until the next time."""
    kit = await make_kit()
    done, fault = [], True

    @kit.task()
    async def work(n: int) -> None:
        if fault:
            raise ConnectionError
        done.append(n)

    async def broken(subscription: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("asyncq.memory.consumer.MemorySubscription.pause", broken)
    monkeypatch.setattr("asyncq.memory.consumer.MemorySubscription.resume", broken)
    put(kit, 20)
    async with working(kit) as worker:
        await eventually(lambda: worker.stats().outcomes.get("Failed") == 20)
        assert state_of(worker) == "open"
        fault = False
        await kit.clock.advance(30)
        put(kit, 1)
        await eventually(lambda: done == [0])
        assert state_of(worker) == "closed"
    assert "the slots could not be paused" in caplog.text
    assert "the slots could not be resumed" in caplog.text


# --- in a user's test


async def test_a_paused_queue_is_idle_until_the_clock_moves() -> None:
    """`settle` returns, and `run_until_idle` goes through all pauses, as through all delays."""
    app = AsyncQ("shop")
    runs, fault = [], True

    @app.task
    async def work(n: int) -> int:
        runs.append(n)
        if fault:
            raise ConnectionError
        return n

    async with running(app, queues={"shop": 3}) as harness:
        handles = [await work.send(n) for n in range(50)]
        await harness.settle()
        paused_at = len(runs)
        assert 20 <= paused_at < 23
        assert harness.clock.monotonic() == 0
        fault = False
        await harness.run_until_idle()
        assert harness.clock.monotonic() == 30
        assert await handles[-1].result(timeout=10) == 49
    assert sorted(runs) == list(range(50))


async def test_a_queue_that_never_recovers_ends_all_the_same() -> None:
    """Each pause passes at once."""
    app = AsyncQ("shop", retry=RetryPolicy(backoff=Fixed(1), max_attempts=3))
    runs = []

    @app.task
    async def work(n: int) -> None:
        runs.append(n)
        raise ConnectionError

    async with running(app, queues={"shop": 3}) as harness:
        for n in range(30):
            await work.send(n)
        await harness.run_until_idle()
        assert harness.node.count("shop.dead") == 30
    assert sorted(runs) == sorted(3 * list(range(30)))
