"""Expiry: what is sent, when a worker no longer runs a task, and what its sender hears."""

from __future__ import annotations

import asyncio
import json
import pickle
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from asyncq import AsyncQ, Fixed, Retry, RetryPolicy, Snooze, TaskContext, TaskExpired, TaskFailed
from asyncq.errors import InvalidOption, InvalidResult, MalformedMessage, MessageTooLarge
from asyncq.message import EXPIRES_AT, LATEST_MS, Message, ReplyType, expires_at_ms_of
from asyncq.outcome import Deferred, Expired, Failed, Failure, Outcome, Rejected, RetryLater, Snoozed, Succeeded
from asyncq.pending_reply import PendingReply
from asyncq.results import ResultHandle
from asyncq.testing.clock import ManualClock
from asyncq.testing.harness import Harness, running
from asyncq.worker.execution import Executed
from worker_kit import Kit, LoneDelivery, make_kit

FAILURE = Failure("builtins.ValueError", "no luck", "Traceback ...")


def shop() -> tuple[AsyncQ, list[int]]:
    """Return an app, and the numbers of the attempts of its task `work`, which returns `ctx.expires`."""
    app = AsyncQ("shop")
    attempts: list[int] = []

    @app.task(pass_context=True)
    async def work(ctx: TaskContext) -> str | None:
        attempts.append(ctx.attempt)
        return None if ctx.expires is None else ctx.expires.isoformat()

    return app, attempts


def outcomes(harness: Harness) -> dict[str, int]:
    assert harness._worker is not None
    return dict(harness._worker._attempts.outcomes)


# --- what is sent


@pytest.mark.parametrize(
    ("expires", "after_ms"),
    [
        (60, 60_000),
        (0.25, 250),
        (timedelta(minutes=2), 120_000),
        (0.000_01, 1),
        (datetime(2030, 1, 1, 0, 1, tzinfo=UTC), 60_000),
        (datetime(2030, 1, 1, 0, 0, 0, 999, tzinfo=UTC), 0),
    ],
)
async def test_the_expiry_travels_as_a_moment_in_milliseconds(expires: Any, after_ms: int) -> None:
    """Counted from the send; a moment is rounded down, so that nothing begins late."""
    app, _ = shop()
    async with running(app) as harness:
        sent_ms = harness.clock.now_ms()
        await app.tasks["shop.work"].options(expires=expires).send()
        assert harness.sent[0].headers[EXPIRES_AT] == sent_ms + after_ms


async def test_seconds_count_from_the_send_and_not_from_the_making_of_the_signature() -> None:
    """A signature is a value that may be sent again and again."""
    app, _ = shop()
    signature = app.tasks["shop.work"].s().options(expires=10)
    async with running(app) as harness:
        for _ in range(2):
            await harness.clock.advance(100)
            await app.send(signature)
            assert harness.sent[-1].headers[EXPIRES_AT] == harness.clock.now_ms() + 10_000


@pytest.mark.parametrize("due", ["delay", "eta"])
@pytest.mark.parametrize("expiry", ["relative", "absolute"])
async def test_a_task_that_would_expire_before_it_is_due_is_not_sent(due: str, expiry: str) -> None:
    """In every mixture of moments and seconds; the message names both options. One millisecond later is enough."""
    app, _ = shop()
    clock = ManualClock()
    task = app.tasks["shop.work"]

    def options(more: timedelta) -> Any:
        wait = timedelta(seconds=10)
        start = {"delay": wait} if due == "delay" else {"eta": clock.now() + wait}
        end = {"expires": wait + more} if expiry == "relative" else {"expires": clock.now() + wait + more}
        return {**start, **end}

    async with running(app, clock=clock) as harness:
        with pytest.raises(InvalidOption, match=rf"expires= .* is not after {due}="):
            await task.options(**options(timedelta(0))).send()
        assert not harness.sent
        await task.options(**options(timedelta(milliseconds=1))).send()


async def test_a_moment_that_is_over_is_sent_all_the_same_and_the_handle_says_so() -> None:
    """A deadline that was handed on may just have passed: that is no mistake of the program."""
    app, attempts = shop()
    async with running(app) as harness:
        handle = await app.tasks["shop.work"].options(expires=harness.clock.now() - timedelta(seconds=5)).send()
        with pytest.raises(TaskExpired):
            await handle.result(1)
    assert attempts == []


# --- what a worker does


async def test_an_expired_task_is_not_run_and_its_handle_says_when_it_expired_and_when_it_was_met(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is counted and logged once, and is no dead letter."""
    app, attempts = shop()
    started, go_on = asyncio.Event(), asyncio.Event()

    @app.task
    async def occupy() -> None:
        started.set()
        await go_on.wait()

    async with running(app, queues={"shop": 1}) as harness:
        sent = harness.clock.now()
        await occupy.send()
        await started.wait()
        handle = await app.tasks["shop.work"].options(expires=30).send()
        harness.clock.move(60)
        go_on.set()
        with pytest.raises(TaskExpired) as caught:
            await handle.result(1)
        await harness.settle()
        assert outcomes(harness) == {"Succeeded": 1, "Expired": 1}
        assert harness.node.count("shop.dead") == 0
    assert attempts == []
    error = caught.value
    assert (error.task_id, error.error) == (handle.id, None)
    assert (error.expires - sent, error.met - sent) == (timedelta(seconds=30), timedelta(seconds=60))
    assert str(error) == (
        f"task {handle.id} expired at 2030-01-01 00:00:30.000+00:00 and was not run: "
        "a worker met it at 2030-01-01 00:01:00.000+00:00"
    )
    (line,) = [line for line in caplog.messages if "expired" in line]
    assert f"task_id={handle.id!r}" in line
    assert "expires='2030-01-01T00:00:30.000+00:00'" in line


async def test_a_task_that_comes_in_time_runs_and_sees_its_expiry() -> None:
    """Also after a delay, and also when it then runs for longer than that."""
    app, attempts = shop()

    @app.task
    async def slow() -> str:
        harness.clock.move(100)
        return "done"

    async with running(app) as harness:
        expires = harness.clock.now() + timedelta(seconds=11)
        with harness.clock.jumping():
            assert await app.tasks["shop.work"].options(delay=10, expires=11).call() == expires.isoformat()
            assert await app.tasks["shop.work"].call() is None
            assert await slow.options(expires=50).call() == "done"
    assert attempts == [1, 1]


async def test_blocking_handles_raise_it_as_well() -> None:
    """`app.sync` in a thread, against the same worker."""
    app, _ = shop()
    task = app.tasks["shop.work"]
    async with running(app) as harness:
        over = harness.clock.now() - timedelta(seconds=1)
        handle = await asyncio.to_thread(app.sync.send, task.s().options(expires=over))
        with pytest.raises(TaskExpired):
            await asyncio.to_thread(handle.result, 5)
        with pytest.raises(TaskExpired):
            await asyncio.to_thread(app.sync.call, task.s().options(expires=over))
        with pytest.raises(TaskExpired):
            await task.options(expires=over).call()


async def read(kit: Kit, name: str = "work", **fields: Any) -> Outcome:
    return (await kit.execution.execute(kit.delivery(name, **fields))).outcome


async def test_a_task_expires_at_its_very_millisecond() -> None:
    """One before, it begins."""
    kit = await make_kit()

    @kit.task()
    async def work() -> None: ...

    now_ms = kit.clock.now_ms()
    assert await read(kit, headers={EXPIRES_AT: now_ms + 1}) == Succeeded(b"null")
    assert await read(kit, headers={EXPIRES_AT: now_ms}) == Expired(now_ms, now_ms)


@pytest.mark.parametrize("value", ["soon", "1750000000123", 1.5, True, 0, -5, LATEST_MS + 1, 1_750_000_000_123_456, []])
async def test_a_malformed_header_makes_a_malformed_message(value: Any) -> None:
    """Microseconds included: they would be a moment after the year 9999."""
    kit = await make_kit()
    outcome = await read(kit, headers={EXPIRES_AT: value})
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "malformed message"
    assert EXPIRES_AT in outcome.failure.message


async def test_an_unknown_task_waits_no_longer_than_it_lives() -> None:
    """Then it has expired: it is no dead letter for its unknown name."""
    kit = await make_kit()
    expires_ms = kit.clock.now_ms() + 3_000
    first = await read(kit, "later", headers={EXPIRES_AT: expires_ms})
    assert first == Deferred(kit.clock.now_ms(), 3.0)
    kit.clock.move(3)
    assert await read(kit, "later", headers={EXPIRES_AT: expires_ms}) == Expired(expires_ms, expires_ms)


async def test_what_may_kill_workers_is_a_dead_letter_although_it_has_expired() -> None:
    """It has failed, and somebody has to see it."""
    kit = await make_kit(poison_after=3)

    @kit.task()
    async def work() -> None: ...

    outcome = await read(kit, headers={EXPIRES_AT: 1}, deliveries=3)
    assert isinstance(outcome, Failed)
    assert outcome.reason == "delivered too often"


async def test_an_expired_message_is_not_judged_by_its_arguments() -> None:
    """Nobody wants to know any more."""
    kit = await make_kit()

    @kit.task()
    async def work(a: int) -> None: ...

    assert isinstance(await read(kit, body=b"no JSON", headers={EXPIRES_AT: 1}), Expired)


# --- attempts after the first one


@pytest.mark.parametrize("how", ["retry", "policy", "snooze"])
async def test_what_would_run_again_too_late_ends_at_once(how: str) -> None:
    """Its sender hears of it early, with the last error, which is kept among the dead letters; a snooze has none."""
    app = AsyncQ("shop")
    runs: list[int] = []

    @app.task(pass_context=True, retry=RetryPolicy(backoff=Fixed(20), jitter=False, max_attempts=9))
    async def fragile(ctx: TaskContext) -> None:
        runs.append(ctx.attempt)
        if how == "snooze":
            raise Snooze(20)
        error = ConnectionError(f"gone {ctx.attempt}")
        if how == "policy":
            raise error
        raise Retry(after=20) from error

    async with running(app) as harness:
        sent = harness.clock.now()
        handle = await fragile.options(expires=50).send()
        with pytest.raises(TaskExpired) as caught, harness.clock.jumping():
            await handle.result(10)
        await harness.settle()
        assert harness.node.delayed == 0
        letters = [letter async for letter in app.dead_letters("shop").browse()]
        assert outcomes(harness) == {"Snoozed" if how == "snooze" else "RetryLater": 2, "Expired": 1}
    assert runs == ([1, 1, 1] if how == "snooze" else [1, 2, 3])
    records = [letter.record for letter in letters if letter.record is not None]
    assert [(record.reason, record.attempts, len(record.history)) for record in records] == (
        [] if how == "snooze" else [("expired", 3, 3)]
    )
    error = caught.value
    assert (error.met - sent, error.expires - sent) == (timedelta(seconds=40), timedelta(seconds=50))
    assert error.error == (None if how == "snooze" else "builtins.ConnectionError: gone 3")
    assert "before its next attempt could begin" in str(error)


async def test_a_retry_that_had_to_wait_behind_others_tells_of_its_last_error() -> None:
    """It was in time when it was made, and met too late."""
    app = AsyncQ("shop")

    @app.task(retry=RetryPolicy(backoff=Fixed(20), jitter=False))
    async def fragile() -> None:
        raise ConnectionError("gone")

    started, go_on = asyncio.Event(), asyncio.Event()

    @app.task
    async def occupy() -> None:
        started.set()
        await go_on.wait()

    async with running(app, queues={"shop": 1}) as harness:
        handle = await fragile.options(expires=30).send()
        await harness.settle()
        await occupy.send()
        await started.wait()
        harness.clock.move(60)
        go_on.set()
        with pytest.raises(
            TaskExpired, match=r"and was not run.*last error was builtins.ConnectionError: gone"
        ) as caught:
            await handle.result(1)
        (letter,) = [letter async for letter in app.dead_letters("shop").browse()]
    assert caught.value.met - caught.value.expires == timedelta(seconds=30)
    assert letter.record is not None
    assert (letter.record.reason, letter.record.attempts) == ("expired", 1)
    assert [attempt.message for attempt in letter.record.history] == ["gone"]


async def test_a_task_that_has_used_up_its_attempts_has_failed_and_not_expired() -> None:
    """Its error is a dead letter."""
    app = AsyncQ("shop")

    @app.task
    async def fragile() -> None:
        raise ConnectionError("gone")

    async with running(app) as harness:
        with pytest.raises(TaskFailed):
            await fragile.options(expires=1).call()
        assert harness.node.count("shop.dead") == 1


# --- settlement


async def settle(kit: Kit, outcome: Outcome, **fields: Any) -> tuple[Outcome, LoneDelivery]:
    delivery = kit.delivery("work", **{"reply_to": "caller", **fields})
    return await kit.settlement.settle(Executed(delivery, 1, outcome)), delivery


async def test_the_answer_comes_before_the_ack() -> None:
    """A crash between the two duplicates the answer, and loses nothing. The error is durable first."""
    kit = await make_kit()
    expired = Expired(1000, 2000, FAILURE, 1)
    outcome, _ = await settle(kit, expired)
    assert outcome == expired
    assert kit.broker.log == ["dead letter", "reply expired", "ack"]
    (reply,) = kit.broker.replies()
    assert json.loads(reply.body) == {
        "expires_at": 1000,
        "met_at": 2000,
        "error": {"type": "builtins.ValueError", "message": "no luck"},
    }


async def test_an_answer_that_is_too_large_goes_without_the_error() -> None:
    """That it has expired is what counts."""
    kit = await make_kit()
    kit.broker.fail("reply", MessageTooLarge("too large"))
    await settle(kit, Expired(1000, 2000, FAILURE))
    assert json.loads(kit.broker.replies()[0].body) == {"expires_at": 1000, "met_at": 2000}
    assert kit.broker.log == ["dead letter", "reply expired", "ack"]


async def test_what_has_never_failed_and_expires_is_no_dead_letter() -> None:
    """Nobody wants it any more, and there is no error to see."""
    kit = await make_kit()
    _, delivery = await settle(kit, Expired(1000, 2000))
    assert kit.broker.log == ["reply expired", "ack"]
    assert delivery.settled == "acked"


async def test_an_expired_failure_that_cannot_be_parked_is_left_to_the_brokers_own_dead_lettering() -> None:
    """Acked, its error would be nowhere."""
    kit = await make_kit()
    kit.broker.fail("dead letter", MessageTooLarge("too large"))
    _, delivery = await settle(kit, Expired(1000, 2000, FAILURE, 1))
    assert kit.broker.log == ["reply expired", "reject"]
    assert delivery.settled == "rejected"


async def test_a_retry_is_not_rounded_up_past_the_expiry() -> None:
    """A policy's backoff may be; then the task would be met too late for nothing. The copy keeps the header."""
    kit = await make_kit()
    expires_ms = kit.clock.now_ms() + 10_000
    await settle(kit, RetryLater(FAILURE, 9.9, 60), headers={EXPIRES_AT: expires_ms})
    await settle(kit, RetryLater(FAILURE, 5, 6), headers={EXPIRES_AT: expires_ms})
    first, second = kit.broker.copies()
    assert first.delay is not None
    assert first.delay.at_most_s == 10
    assert second.delay is not None
    assert second.delay.at_most_s == 6
    assert first.message.headers[EXPIRES_AT] == expires_ms


@pytest.mark.parametrize(
    ("outcome", "settled"),
    [
        (RetryLater(FAILURE, 10, 60), "Expired"),
        (RetryLater(FAILURE, 9.999, 60), "RetryLater"),
        (Snoozed(10), "Expired"),
        (Snoozed(9.999), "Snoozed"),
        (Deferred(1, 10), "Deferred"),
    ],
)
async def test_only_what_is_due_after_its_expiry_ends(outcome: Outcome, settled: str) -> None:
    """An unknown task goes on waiting: who knows its name may get it meanwhile."""
    kit = await make_kit()
    ended, delivery = await settle(kit, outcome, headers={EXPIRES_AT: kit.clock.now_ms() + 10_000})
    assert type(ended).__name__ == settled
    assert delivery.settled == "acked"


# --- the handle, the error, the header


def handle_of(body: bytes) -> ResultHandle[Any]:
    pending = PendingReply()
    pending.feed(Message(type=ReplyType.EXPIRED, body=body, task_id="t", message_id="m"))
    return ResultHandle("t", pending, bytes)


@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b"{}", b'{"expires_at": 1, "met_at": 1e99}', b'{"expires_at": ""}']
)
async def test_an_answer_that_cannot_be_read_says_that_the_task_has_expired(body: bytes) -> None:
    """From a worker in another language, say."""
    with pytest.raises(InvalidResult, match="Task t has expired"):
        await handle_of(body).result()


def test_the_error_survives_pickling() -> None:
    """As it does on its way out of a process pool."""
    error = TaskExpired("t", datetime(2030, 1, 1, tzinfo=UTC), datetime(2030, 1, 2, tzinfo=UTC), "a: b")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_the_latest_moment_is_one_that_a_context_can_show() -> None:
    """Beyond it the header is refused."""
    message = Message(type="work", body=b"", task_id="t", message_id="m", headers={EXPIRES_AT: LATEST_MS})
    assert expires_at_ms_of(message) == LATEST_MS
    assert datetime.fromtimestamp(LATEST_MS / 1000, UTC).year == 9999
    with pytest.raises(MalformedMessage, match="milliseconds"):
        expires_at_ms_of(replace(message, headers={EXPIRES_AT: LATEST_MS + 1}))
