"""Retries, signals and final failures of tasks, with a worker on the broker."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest

from asyncq.context import TaskContext
from asyncq.errors import TaskFailed, TaskRejected
from asyncq.retry import Exponential, Fixed, RetryPolicy
from asyncq.signals import Reject, Retry, Snooze
from asyncq.testing.conformance.bench import (
    QUEUE,
    WAIT_S,
    Bench,
    behaviour,
    dead_letter,
    dead_letters,
    eventually,
)

SOON = RetryPolicy(backoff=Fixed(0.02), jitter=False, max_attempts=3)


@behaviour
async def test_a_task_that_fails_is_tried_again_until_it_succeeds(bench: Bench) -> None:
    """Attempts 1, 2 and 3 of one task id, each a message of its own; nothing is left behind."""
    app = bench.app()
    seen = []

    @app.task(retry=SOON, pass_context=True)
    async def flaky(ctx: TaskContext, x: int) -> int:
        seen.append((ctx.attempt, ctx.message))
        if ctx.attempt < 3:
            raise ConnectionError("not yet")
        return x * 2

    async with bench.working(app) as worker:
        handle = await flaky.options(headers={"tenant": "a"}).send(4)
        assert await handle.result(WAIT_S) == 8
        await eventually(lambda: worker.stats().outcomes == {"RetryLater": 2, "Succeeded": 1})
        assert await dead_letters(app.broker) == []
    assert [attempt for attempt, _ in seen] == [1, 2, 3]
    messages = [message for _, message in seen]
    assert [message.headers.get("asyncq-attempt") for message in messages] == [None, 2, 3]
    assert {(message.task_id, message.body, message.headers["tenant"]) for message in messages} == {
        (handle.id, b'{"x":4}', "a")
    }
    assert len({message.message_id for message in messages}) == 3
    assert len({message.reply_to for message in messages}) == 1
    assert await bench.count(QUEUE) == 0


@behaviour
async def test_backoff_is_waited_for(bench: Bench) -> None:
    """No attempt is early, and each wait is longer than the one before."""
    app = bench.app()
    starts: list[float] = []

    @app.task(retry=RetryPolicy(backoff=Exponential(first=0.1, factor=3), jitter=False, max_attempts=3))
    async def flaky() -> None:
        starts.append(time.monotonic())
        raise ConnectionError

    async with bench.working(app):
        with pytest.raises(TaskFailed):
            await flaky.call()
    assert starts[1] - starts[0] >= 0.1
    assert starts[2] - starts[1] >= 0.3


@behaviour
async def test_a_task_whose_attempts_are_used_up_is_a_dead_letter_with_its_error(bench: Bench) -> None:
    """Of `raise Retry` that is what the task ran into. The sender hears of it as well; the body is its own."""
    app = bench.app()

    def connect() -> None:
        raise ConnectionError("the host is gone")

    @app.task(retry=SOON)
    async def doomed(x: int) -> None:
        try:
            connect()
        except ConnectionError as error:
            raise Retry from error

    before_ms = time.time() * 1000
    async with bench.working(app):
        handle = await doomed.send(4)
        with pytest.raises(TaskFailed) as caught:
            await handle.result(WAIT_S)
        letter = await dead_letter(app.broker)
    assert (caught.value.type, caught.value.message) == ("builtins.ConnectionError", "the host is gone")
    assert (letter.message.body, letter.message.type, letter.message.task_id) == (b'{"x":4}', "shop.doomed", handle.id)
    record = letter.record
    assert record is not None
    assert (record.failure.type, record.failure.message) == ("builtins.ConnectionError", "the host is gone")
    assert 'raise ConnectionError("the host is gone")' in record.failure.traceback
    assert (record.reason, record.attempts, record.queue) == ("attempts exhausted", 3, QUEUE)
    assert before_ms - 1 <= record.failed_at_ms <= time.time() * 1000 + 1
    assert record.worker


@behaviour
async def test_without_a_policy_the_first_failure_is_final(bench: Bench) -> None:
    """Nobody has said that running it twice is harmless."""
    app = bench.app()
    runs = []

    @app.task
    async def fragile() -> None:
        runs.append(1)
        raise ConnectionError

    async with bench.working(app):
        with pytest.raises(TaskFailed):
            await fragile.call()
        letter = await dead_letter(app.broker)
    assert letter.record is not None
    assert (letter.record.reason, letter.record.attempts, runs) == ("no retry policy", 1, [1])


@behaviour
async def test_an_error_that_the_policy_does_not_name_is_final(bench: Bench) -> None:
    """A fault in the code does not mend itself."""
    app = bench.app()

    @app.task(retry=RetryPolicy(on=ConnectionError, backoff=Fixed(0.02)))
    async def wrong() -> None:
        raise KeyError("x")

    async with bench.working(app):
        with pytest.raises(TaskFailed, match="KeyError"):
            await wrong.call()
        letter = await dead_letter(app.broker)
    assert letter.record is not None
    assert letter.record.reason == "not retried by the policy"


@behaviour
async def test_of_several_policies_the_first_that_names_the_error_decides(bench: Bench) -> None:
    """The attempts are the task's; each policy has its own bound for them."""
    app = bench.app(retry=RetryPolicy(max_attempts=9))  # not asked: the task has policies of its own
    raised: list[str] = []
    refused = RetryPolicy(on=ConnectionError, never=BrokenPipeError, max_attempts=3, backoff=Fixed(0.02))
    missing = RetryPolicy(on=LookupError, max_attempts=2, backoff=Fixed(0.02))

    @app.task(retry=[refused, missing])
    async def fragile(error: str) -> None:
        raised.append(error)
        raise {"refused": ConnectionError, "missing": KeyError, "broken": BrokenPipeError, "wrong": ValueError}[error]

    async with bench.working(app):
        for error in ("refused", "missing", "broken", "wrong"):
            with pytest.raises(TaskFailed):
                await fragile.call(error)
        letters = await dead_letters(app.broker)
    assert Counter(raised) == {"refused": 3, "missing": 2, "broken": 1, "wrong": 1}
    assert [letter.record.reason for letter in letters if letter.record is not None] == [
        "attempts exhausted",
        "attempts exhausted",
        "not retried by the policy",
        "not retried by the policy",
    ]


@behaviour
async def test_a_retry_that_would_begin_after_max_time_is_not_made(bench: Bench) -> None:
    """The time counts from the first attempt on, also where later attempts fail in another way."""
    app = bench.app()
    starts: list[float] = []

    @app.task(retry=RetryPolicy(max_time=0.5, max_attempts=1000, backoff=Fixed(0.15), jitter=False))
    async def hopeless() -> None:
        starts.append(time.monotonic())
        raise ConnectionError

    async with bench.working(app):
        with pytest.raises(TaskFailed):
            await hopeless.call()
        letter = await dead_letter(app.broker)
    assert letter.record is not None
    assert (letter.record.reason, letter.record.attempts) == ("time for retries exhausted", len(starts))
    assert 2 <= len(starts) <= 4  # at 0, 0.15, 0.3 and 0.45 s; a slow machine gets to fewer


@behaviour
async def test_the_history_of_the_attempts_survives_to_the_dead_letter(bench: Bench) -> None:
    """Oldest first, snoozes left out; each entry says what, when and where."""
    app = bench.app()
    runs: list[int] = []

    @app.task(retry=SOON, pass_context=True)
    async def doomed(ctx: TaskContext) -> None:
        runs.append(ctx.attempt)
        if len(runs) == 2:
            raise Snooze(0.02)
        raise ConnectionError(f"no host in attempt {ctx.attempt}: \N{WARNING SIGN}")

    before_ms = time.time() * 1000
    async with bench.working(app):
        with pytest.raises(TaskFailed):
            await doomed.call()
        letter = await dead_letter(app.broker)
    assert runs == [1, 2, 2, 3]
    record = letter.record
    assert record is not None
    assert [(item.attempt, item.type, item.message) for item in record.history] == [
        (attempt, "builtins.ConnectionError", f"no host in attempt {attempt}: \N{WARNING SIGN}")
        for attempt in (1, 2, 3)
    ]
    times = [item.failed_at_ms for item in record.history]
    assert before_ms - 1 <= times[0] <= times[1] <= times[2] == record.failed_at_ms
    assert {item.worker for item in record.history} == {record.worker}


@behaviour
async def test_retry_after_is_exact_and_a_snooze_is_no_attempt(bench: Bench) -> None:
    """Neither comes early; the app's policy serves a task that has none."""
    app = bench.app()
    runs: list[tuple[int, float]] = []

    @app.task(pass_context=True)
    async def patient(ctx: TaskContext) -> None:
        runs.append((ctx.attempt, time.monotonic()))
        if len(runs) == 1:
            raise Snooze(0.3)
        if len(runs) == 2:
            raise Retry(after=0.4)

    async with bench.working(app):
        await patient.call()
    assert [attempt for attempt, _ in runs] == [1, 1, 2]
    assert runs[1][1] - runs[0][1] >= 0.3
    assert runs[2][1] - runs[1][1] >= 0.4


@behaviour
async def test_a_task_can_reject_its_message(bench: Bench) -> None:
    """It is not tried again; sender and dead letter have the reason."""
    app = bench.app()

    @app.task(retry=SOON)
    async def picky() -> None:
        raise Reject("wrong country")

    async with bench.working(app):
        with pytest.raises(TaskRejected, match="wrong country"):
            await picky.call()
        letter = await dead_letter(app.broker)
    assert letter.record is not None
    assert (letter.record.reason, letter.record.attempts) == ("wrong country", 1)


@behaviour
async def test_a_time_limit_ends_a_task_and_its_finally_runs(bench: Bench) -> None:
    """It fails as TimeLimitExceeded, and is not tried again unless the policy names that."""
    app = bench.app()
    cleaned = []

    @app.task(time_limit=0.1, retry=SOON)
    async def slow() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.01)
            cleaned.append(1)

    async with bench.working(app):
        with pytest.raises(TaskFailed) as caught:
            await slow.call()
    assert caught.value.type == "asyncq.errors.TimeLimitExceeded"
    assert cleaned == [1]


@behaviour
async def test_a_result_that_cannot_be_written_is_a_failure_and_no_retry(bench: Bench) -> None:
    """The work was done."""
    app = bench.app()
    runs = []

    @app.task(retry=SOON)
    async def odd() -> int:
        runs.append(1)
        return "none"  # type: ignore[return-value]

    async with bench.working(app):
        with pytest.raises(TaskFailed) as caught:
            await odd.call()
        letter = await dead_letter(app.broker)
    assert caught.value.type == "asyncq.errors.ResultNotSerialisable"
    assert letter.record is not None
    assert (letter.record.reason, runs) == ("result not serialisable", [1])


@behaviour
async def test_a_result_that_is_too_large_for_a_reply_is_a_failure_that_says_so(bench: Bench) -> None:
    """In place of a caller that waits for ever."""
    app = bench.app(max_message_bytes=100_000)

    @app.task
    async def big() -> str:
        return "x" * 200_000

    async with bench.working(app):
        with pytest.raises(TaskFailed) as caught:
            await big.call()
    assert caught.value.type == "asyncq.errors.ResultTooLarge"


@behaviour
async def test_a_task_that_fails_behind_an_unset_reply_is_dead_lettered_all_the_same(bench: Bench) -> None:
    """A failure never depends on somebody who waits."""
    app = bench.app()

    @app.task(reply=False)
    async def broken() -> None:
        raise ValueError("no")

    async with bench.working(app):
        handle = await broken.send()
        letter = await dead_letter(app.broker)
    assert letter.message.task_id == handle.id
