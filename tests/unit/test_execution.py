"""One delivery to its outcome: what is read, how it ends, and what the retry policy makes of it."""

import asyncio
import contextlib
import contextvars
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pydantic import BaseModel, field_validator, model_serializer

from asyncq.broker import BrokerStatus
from asyncq.context import TaskContext, current_context
from asyncq.errors import TimeLimitExceeded
from asyncq.message import ATTEMPT, UNKNOWN_SINCE
from asyncq.outcome import (
    Cancelled,
    Deferred,
    Drained,
    Failed,
    LostLease,
    Outcome,
    Rejected,
    RetryLater,
    Snoozed,
    Succeeded,
)
from asyncq.retry import Exponential, Fixed, RetryDefaults, RetryPolicy
from asyncq.signals import Reject, Retry, Snooze
from asyncq.worker.attempt import GRACE_S
from asyncq.worker.attempts import LEASE_PATIENCE_S
from asyncq.worker.execution import Executed
from support import eventually
from worker_kit import Kit, make_kit

POLICY = RetryPolicy(on=ValueError, max_attempts=3, backoff=Fixed(5), jitter=False)


async def run(kit: Kit, name: str, body: Any = None, **fields: Any) -> Outcome:
    return (await kit.execution.execute(kit.delivery(name, body, **fields))).outcome


async def run_while_time_passes(kit: Kit, name: str, seconds: float) -> Executed:
    running = asyncio.create_task(kit.execution.execute(kit.delivery(name)))
    await kit.clock.advance(seconds)
    return await asyncio.wait_for(running, GRACE_S / 2)  # so no grace can have passed by the machine's time


async def outcome_of(error: BaseException | type[BaseException], attempt: int = 1, **options: Any) -> Outcome:
    """Return the outcome of a task that raises."""
    kit = await make_kit(defaults=RetryDefaults(app=options.pop("app_retry", ())))

    @kit.task(**options)
    async def work() -> None:
        raise error

    return await run(kit, "work", headers={ATTEMPT: attempt})


# --- it runs


async def test_the_result_of_a_task_is_its_value_as_json() -> None:
    """Both kinds of functions."""
    kit = await make_kit()

    @kit.task()
    async def add(a: int, b: int = 2) -> int:
        return a + b

    @kit.task()
    def join(words: list[str]) -> str:
        return " ".join(words)

    assert await run(kit, "add", {"a": 1}) == Succeeded(b"3")
    assert await run(kit, "join", {"words": ["a", "b"]}) == Succeeded(b'"a b"')


async def test_a_task_sees_its_attempt_and_its_deadline() -> None:
    """In the context that is passed, and in the current one."""
    kit = await make_kit()

    @kit.task(pass_context=True, time_limit_s=30)
    async def look(ctx: TaskContext) -> list[Any]:
        assert current_context() is ctx
        assert ctx.deadline is not None
        return [ctx.task_id, ctx.attempt, ctx.queue, (ctx.deadline - kit.clock.now()).total_seconds(), ctx.cancelled]

    assert await run(kit, "look", headers={ATTEMPT: 2}) == Succeeded(b'["task-1",2,"work",30.0,false]')


async def test_a_thread_sees_the_current_context() -> None:
    """Context variables go into the thread."""
    kit = await make_kit()

    @kit.task()
    def look() -> str:
        return f"{current_context().task_name} {threading.current_thread() is threading.main_thread()}"

    assert await run(kit, "look") == Succeeded(b'"look False"')


async def test_no_context_variable_of_one_attempt_reaches_the_next() -> None:
    """Each attempt starts from a clean copy."""
    kit = await make_kit()
    seen = contextvars.ContextVar("seen", default=0)

    @kit.task()
    async def count() -> int:
        seen.set(seen.get() + 1)
        return seen.get()

    @kit.task()
    def count_in_thread() -> int:
        seen.set(seen.get() + 1)
        return seen.get()

    for name in ("count", "count", "count_in_thread", "count_in_thread"):
        assert await run(kit, name) == Succeeded(b"1")


# --- what is not run


@pytest.mark.parametrize(
    ("body", "reason", "words"),
    [
        (b"not json", "malformed message", "not JSON"),
        (b"\xff\xfe", "malformed message", "not JSON"),
        (b"[1, 2]", "malformed message", "array"),
        (b"null", "malformed message", "null"),
        (b"", "malformed message", "not JSON"),
        ({"a": "one"}, "invalid arguments", "valid integer"),
        ({}, "invalid arguments", "required"),
        ({"a": 1, "z": 1}, "invalid arguments", "z"),
    ],
)
async def test_a_body_that_does_not_fit_is_rejected_with_the_reason(body: Any, reason: str, words: str) -> None:
    """At once: it would never fit."""
    kit = await make_kit()

    @kit.task(retry=RetryPolicy())
    async def work(a: int) -> None:
        raise AssertionError("must not run")

    outcome = await run(kit, "work", body)
    assert isinstance(outcome, Rejected)
    assert outcome.reason == reason
    assert words in outcome.failure.message


@pytest.mark.parametrize("value", ["three", 0, -1, True, 1.5, b"2"])
async def test_a_foreign_attempt_number_that_is_none_is_rejected(value: object) -> None:
    """The error names the header."""
    outcome = await outcome_of(AssertionError("must not run"), attempt=value)  # type: ignore[arg-type]
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "malformed message"
    assert "asyncq-attempt" in outcome.failure.message


@pytest.mark.parametrize("content_type", [None, "", "application/json; charset=utf-8", "Application/JSON"])
async def test_json_is_taken_under_every_name_that_producers_give_it(content_type: str | None) -> None:
    """A foreign producer may leave the content type out."""
    kit = await make_kit()

    @kit.task()
    async def work() -> None:
        pass

    assert await run(kit, "work", content_type=content_type) == Succeeded(b"null")


@pytest.mark.parametrize(
    "fields",
    [
        {"content_type": "application/x-python-serialize"},
        {"content_type": "text/plain"},
        {"content_encoding": "gzip"},
        {"type": ""},
        {"headers": {UNKNOWN_SINCE: "yesterday"}, "type": "nobody"},
    ],
)
async def test_what_is_no_task_message_is_rejected(fields: dict[str, Any]) -> None:
    """Another content type, an encoding, no type."""
    kit = await make_kit()

    @kit.task()
    async def work() -> None:
        raise AssertionError("must not run")

    outcome = await run(kit, fields.pop("type", "work"), **fields)
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "malformed message"


async def test_a_validator_that_raises_anything_rejects_the_message() -> None:
    """What pydantic does: it lets an exception that is no ValueError through."""

    class Odd(BaseModel):
        value: int

        def __init__(self, **values: Any) -> None:
            raise KeyError("odd")

    kit = await make_kit()

    @kit.task()
    async def work(odd: Odd) -> None:
        raise AssertionError("must not run")

    outcome = await run(kit, "work", {"value": 1})
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "invalid arguments"


async def test_an_unknown_task_waits_once_and_is_then_rejected() -> None:
    """The first meeting is remembered in a header, and the wait ends when the patience is over."""
    kit = await make_kit(patience_s=25)
    first = await run(kit, "shop.nobody")
    assert first == Deferred(kit.clock.now_ms(), 10)
    since = {UNKNOWN_SINCE: kit.clock.now_ms()}
    kit.clock.move(20)
    assert await run(kit, "shop.nobody", headers=since) == Deferred(since[UNKNOWN_SINCE], 5)
    kit.clock.move(5)
    last = await run(kit, "shop.nobody", headers=since)
    assert isinstance(last, Rejected)
    assert last.reason == "unknown task"
    assert last.failure.type == "asyncq.errors.UnknownTask"
    assert "'shop.nobody'" in last.failure.message


async def test_a_clock_that_is_ahead_does_not_make_the_wait_longer() -> None:
    """The time of the first meeting may come from another machine."""
    kit = await make_kit(patience_s=25)
    outcome = await run(kit, "nobody", headers={UNKNOWN_SINCE: kit.clock.now_ms() + 3_600_000})
    assert outcome == Deferred(kit.clock.now_ms(), 10)


async def test_a_message_that_was_delivered_too_often_is_not_run_again() -> None:
    """It may be what kills the workers."""
    kit = await make_kit(poison_after=5)

    @kit.task()
    async def work() -> int:
        return 1

    assert await run(kit, "work", deliveries=4) == Succeeded(b"1")
    outcome = await run(kit, "work", deliveries=5)
    assert isinstance(outcome, Failed)
    assert outcome.reason == "delivered too often"


# --- how it fails


async def test_without_a_policy_the_first_failure_is_final() -> None:
    """With the error's type, text and traceback."""
    outcome = await outcome_of(ValueError("no luck"))
    assert isinstance(outcome, Failed)
    assert outcome.reason == "no retry policy"
    assert (outcome.failure.type, outcome.failure.message) == ("builtins.ValueError", "no luck")
    assert "raise error" in outcome.failure.traceback


async def test_an_error_that_the_policy_names_is_retried_with_its_backoff_until_the_attempts_are_used_up() -> None:
    """The cap of the backoff bounds the rounding."""
    for attempt in (1, 2):
        outcome = await outcome_of(ValueError("no"), attempt, retry=POLICY)
        assert isinstance(outcome, RetryLater)
        assert (outcome.delay_s, outcome.at_most_s) == (5, 5)
    outcome = await outcome_of(ValueError("no"), 3, retry=POLICY)
    assert isinstance(outcome, Failed)
    assert outcome.reason == "attempts exhausted"


async def test_a_backoff_is_never_rounded_past_its_cap() -> None:
    """`at_most_s` is the cap."""
    policy = RetryPolicy(backoff=Exponential(first=1, factor=10, max=60), jitter=False)
    outcome = await outcome_of(ValueError("no"), 3, retry=policy)
    assert isinstance(outcome, RetryLater)
    assert (outcome.delay_s, outcome.at_most_s) == (60, 60)


async def test_an_error_that_the_policy_does_not_name_is_final() -> None:
    """The reason tells it from a task without a policy."""
    outcome = await outcome_of(KeyError("x"), retry=POLICY)
    assert isinstance(outcome, Failed)
    assert outcome.reason == "not retried by the policy"


async def test_retry_after_is_exact_and_counts_as_an_attempt() -> None:
    """With the policy's number of attempts."""
    outcome = await outcome_of(Retry(after=60), 2, retry=POLICY)
    assert isinstance(outcome, RetryLater)
    assert (outcome.delay_s, outcome.at_most_s) == (60, None)
    assert isinstance(await outcome_of(Retry(after=60), 3, retry=POLICY), Failed)


async def test_retry_without_a_policy_uses_the_apps_one() -> None:
    """Four attempts where the app has none either."""
    own = RetryPolicy(backoff=Fixed(7), jitter=False, max_attempts=2)
    outcome = await outcome_of(Retry(), 1, app_retry=(own,))
    assert isinstance(outcome, RetryLater)
    assert outcome.delay_s == 7
    assert isinstance(await outcome_of(Retry(), 2, app_retry=(own,)), Failed)
    assert isinstance(await outcome_of(Retry(), 3), RetryLater)
    assert isinstance(await outcome_of(Retry(), 4), Failed)


async def test_the_cause_of_a_retry_is_the_recorded_error() -> None:
    """`raise Retry() from error`, and the exception that was being handled."""
    kit = await make_kit()

    def connect() -> None:
        raise ConnectionError("gone")

    @kit.task()
    async def named() -> None:
        try:
            connect()
        except ConnectionError as error:
            raise Retry from error

    @kit.task()
    async def handled() -> None:
        try:
            connect()
        except ConnectionError:
            raise Retry  # noqa: B904 - what people write

    for name in ("named", "handled"):
        outcome = await run(kit, name, headers={ATTEMPT: 4})
        assert isinstance(outcome, Failed)
        assert outcome.reason == "attempts exhausted"
        assert (outcome.failure.type, outcome.failure.message) == ("builtins.ConnectionError", "gone")


async def test_snooze_and_reject_are_instructions() -> None:
    """Neither asks the retry policy."""
    assert await outcome_of(Snooze(5), 9, retry=POLICY) == Snoozed(5.0)
    outcome = await outcome_of(Reject("not for us"), retry=RetryPolicy())
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "not for us"


async def test_a_reason_that_is_no_text_is_recorded_as_text() -> None:
    """It goes into a header of the dead letter."""
    reason: Any = KeyError("k")
    outcome = await outcome_of(Reject(reason))
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "'k'"


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(3),
        KeyboardInterrupt(),
        asyncio.CancelledError(),
        GeneratorExit(),
        BaseExceptionGroup("g", [SystemExit()]),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("in_thread", [False, True], ids=["async", "thread"])
async def test_nothing_that_a_task_raises_ends_the_worker(error: BaseException, in_thread: bool) -> None:
    """Each of these is a failure like any other."""
    kit = await make_kit()

    def fail() -> None:
        raise error

    async def fail_async() -> None:
        raise error

    kit.task()(fail if in_thread else fail_async)
    outcome = await run(kit, "fail" if in_thread else "fail_async")
    assert isinstance(outcome, Failed)
    assert outcome.failure.type.endswith(type(error).__name__)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=lambda error: type(error).__name__)
async def test_nothing_that_a_validator_or_a_serialiser_raises_ends_the_worker(error: BaseException) -> None:
    """They run on the worker's own loop, and are the user's code as well."""
    kit = await make_kit()

    class Reading(BaseModel):
        n: int

        @field_validator("n")
        @classmethod
        def check(cls, n: int) -> int:
            raise error

    class Writing(BaseModel):
        @model_serializer
        def write(self) -> int:
            raise error

    @kit.task()
    async def read(x: Reading) -> None: ...

    @kit.task()
    async def write() -> Writing:
        return Writing()

    outcome = await run(kit, "read", {"n": 1})
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "invalid arguments"
    outcome = await run(kit, "write")
    assert isinstance(outcome, Failed)
    assert outcome.reason == "result not serialisable"


async def test_an_error_whose_text_ends_the_process_is_a_failure_all_the_same() -> None:
    """Its class and its traceback are recorded."""

    class Odd(Exception):
        def __str__(self) -> str:  # noqa: PLE0307 - that is the point
            sys.exit(1)

    outcome = await outcome_of(Odd())
    assert isinstance(outcome, Failed)
    assert outcome.failure.type.endswith("Odd")
    assert "raised SystemExit" in outcome.failure.message


async def test_a_function_that_hands_out_a_coroutine_fails_with_a_hint() -> None:
    """A decorator that is `def` hides that the function is `async def`: nothing would have run."""
    kit = await make_kit()

    async def inner() -> int:
        return 1

    def work() -> Any:
        return inner()

    kit.task()(work)
    outcome = await run(kit, "work")
    assert isinstance(outcome, Failed)
    assert outcome.failure.type == "builtins.TypeError"
    assert "async def" in outcome.failure.message


async def test_sys_exit_in_a_task_that_retries_everything_is_still_final() -> None:
    """The default policy names `Exception`, and SystemExit is none."""
    kit = await make_kit()

    @kit.task(retry=RetryPolicy())
    async def leave() -> None:
        sys.exit("bye")

    outcome = await run(kit, "leave")
    assert isinstance(outcome, Failed)
    assert outcome.failure.message == "bye"


async def test_a_task_that_cancels_itself_has_failed() -> None:
    """We did not ask for it."""
    kit = await make_kit()

    @kit.task()
    async def odd() -> None:
        current = asyncio.current_task()
        assert current is not None
        current.cancel()
        await asyncio.sleep(10)

    outcome = await run(kit, "odd")
    assert isinstance(outcome, Failed)
    assert outcome.failure.type == "asyncio.exceptions.CancelledError"


@pytest.mark.parametrize("value", ["three", object(), {1: object()}])
async def test_a_result_that_does_not_fit_is_never_retried(value: object) -> None:
    """The work was done; running it again would do it twice."""
    kit = await make_kit()

    @kit.task(retry=RetryPolicy())
    async def work() -> int:
        return value  # type: ignore[return-value]

    outcome = await run(kit, "work")
    assert isinstance(outcome, Failed)
    assert outcome.reason == "result not serialisable"
    assert outcome.failure.type == "asyncq.errors.ResultNotSerialisable"


async def test_an_error_that_cannot_be_printed_is_recorded() -> None:
    """The user's own `__str__` may raise."""

    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    outcome = await outcome_of(Odd())
    assert isinstance(outcome, Failed)
    assert "RuntimeError" in outcome.failure.message


# --- time limits


async def test_an_async_task_is_cancelled_once_at_its_limit_and_may_await_in_its_finally() -> None:
    """A plain cancel, so that cleaning up works."""
    kit = await make_kit()
    cleaned = []

    @kit.task(time_limit_s=30, pass_context=True)
    async def slow(ctx: TaskContext) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.02)
            await asyncio.sleep(0.02)
            cleaned.append(ctx.cancelled)

    outcome = (await run_while_time_passes(kit, "slow", 30)).outcome
    assert cleaned == [True]
    assert isinstance(outcome, Failed)
    assert outcome.failure.type == "asyncq.errors.TimeLimitExceeded"
    assert "30 s" in outcome.failure.message


async def test_a_task_is_left_alone_until_its_limit() -> None:
    """Not a moment less than it was promised."""
    kit = await make_kit()
    go_on = asyncio.Event()

    @kit.task(time_limit_s=30)
    async def long() -> str:
        await go_on.wait()
        return "done"

    running = asyncio.create_task(run(kit, "long"))
    await kit.clock.advance(29.999)
    (attempt,) = kit.attempts
    assert attempt.interrupted is None
    assert attempt.seconds == pytest.approx(29.999)
    go_on.set()
    assert await running == Succeeded(b'"done"')
    assert kit.clock.next_due_s is None


@pytest.mark.parametrize(
    ("policy", "kind"),
    [
        (RetryPolicy(), Failed),
        (RetryPolicy(on=TimeoutError), Failed),
        (RetryPolicy(on=TimeLimitExceeded), RetryLater),
        (None, Failed),
    ],
)
async def test_a_time_limit_is_retried_only_where_the_policy_names_it(policy: Any, kind: type[Outcome]) -> None:
    """A task that ran into its limit once mostly does so again."""
    kit = await make_kit()

    @kit.task(time_limit_s=30, retry=policy)
    async def slow() -> None:
        await asyncio.sleep(60)

    assert isinstance((await run_while_time_passes(kit, "slow", 30)).outcome, kind)


async def test_the_apps_time_limit_holds_for_tasks_without_one() -> None:
    """`time_limit_s` of the settings."""
    kit = await make_kit(time_limit_s=90)

    @kit.task()
    async def slow() -> None:
        await asyncio.sleep(60)

    outcome = (await run_while_time_passes(kit, "slow", 90)).outcome
    assert isinstance(outcome, Failed)
    assert "90 s" in outcome.failure.message


async def test_a_task_that_finishes_within_its_grace_has_succeeded() -> None:
    """It has done its work; running it again would do it twice."""
    kit = await make_kit()

    @kit.task(time_limit_s=30)
    async def late() -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        return "done"

    assert (await run_while_time_passes(kit, "late", 30)).outcome == Succeeded(b'"done"')


async def test_what_a_task_raises_because_it_was_cancelled_is_the_cause_of_its_time_limit() -> None:
    """The record shows both."""
    kit = await make_kit()

    @kit.task(time_limit_s=30)
    async def slow() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise ConnectionError("half done") from None

    outcome = (await run_while_time_passes(kit, "slow", 30)).outcome
    assert isinstance(outcome, Failed)
    assert outcome.failure.type == "asyncq.errors.TimeLimitExceeded"
    assert "half done" in outcome.failure.traceback


async def test_an_async_task_that_ignores_its_cancellation_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    """Its end is watched and logged."""
    kit = await make_kit()
    release = asyncio.Event()

    @kit.task(time_limit_s=30)
    async def stubborn() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    try:
        executed = await run_while_time_passes(kit, "stubborn", 30 + GRACE_S)
        assert isinstance(executed.outcome, Failed)
        assert not executed.hold
        assert kit.attempts.overdue == 1
        assert "ignores its cancellation" in caplog.text
    finally:
        release.set()
    await eventually(lambda: kit.attempts.overdue == 0)
    assert "has ended" in caplog.text


async def test_a_thread_that_overruns_is_given_up_and_keeps_its_place(caplog: pytest.LogCaptureFixture) -> None:
    """It is told by `ctx.cancelled`, counted, and warned of."""
    kit = await make_kit()
    go_on, seen = threading.Event(), []

    @kit.task(time_limit_s=30, pass_context=True)
    def stubborn(ctx: TaskContext) -> None:
        go_on.wait(10)
        seen.append(ctx.cancelled)

    executed = await run_while_time_passes(kit, "stubborn", 30 + GRACE_S)
    assert isinstance(executed.outcome, Failed)
    assert executed.outcome.failure.type == "asyncq.errors.TimeLimitExceeded"
    assert executed.hold
    assert (kit.threads.busy, kit.attempts.overdue, len(kit.attempts)) == (1, 1, 0)
    assert "a thread cannot be stopped" in caplog.text
    go_on.set()
    await eventually(lambda: (kit.threads.busy, kit.attempts.overdue) == (0, 0))
    assert seen == [True]


# --- the worker stops


async def drain_while_running(kit: Kit, name: str, started: Callable[[], Awaitable[object]]) -> Outcome:
    running = asyncio.create_task(run(kit, name))
    await started()
    for attempt in kit.attempts:
        attempt.interrupt("drain")
    await kit.clock.advance(GRACE_S)
    return await running


async def test_a_task_that_the_stopping_worker_cancels_is_handed_back() -> None:
    """Whatever its cleaning up raises is our doing."""
    kit = await make_kit()
    started = asyncio.Event()

    @kit.task(retry=RetryPolicy(on=Exception))
    async def long() -> None:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            raise ConnectionError("closing")

    assert await drain_while_running(kit, "long", started.wait) == Drained()


async def test_a_task_that_is_cancelled_before_its_first_step_is_handed_back() -> None:
    """Not a line of it runs, and still its end is noticed."""
    kit = await make_kit()

    @kit.task()
    async def long() -> None:
        raise AssertionError("must not run")

    running = asyncio.create_task(run(kit, "long"))  # its grace never ends: the clock stands still
    while not len(kit.attempts):
        await asyncio.sleep(0)
        for attempt in kit.attempts:
            attempt.interrupt("drain")
    assert await asyncio.wait_for(running, 2) == Drained()


async def test_a_thread_of_a_stopping_worker_is_handed_back_and_abandoned() -> None:
    """The thread goes on; somebody else runs the task again."""
    kit = await make_kit()
    started, go_on = threading.Event(), threading.Event()

    @kit.task()
    def long() -> None:
        started.set()
        go_on.wait(10)

    assert await drain_while_running(kit, "long", lambda: eventually(started.is_set)) == Drained()
    assert kit.threads.busy == 1
    go_on.set()
    await eventually(lambda: kit.threads.busy == 0)


# --- cancelled


async def test_a_cancelled_thread_has_until_its_time_limit_to_look_and_then_keeps_its_place() -> None:
    """It is not given up before; what becomes of it in the end is its cancellation, not its limit."""
    kit = await make_kit()
    started, go_on = threading.Event(), threading.Event()

    @kit.task(time_limit_s=30)
    def long() -> None:
        started.set()
        go_on.wait(10)

    running = asyncio.create_task(kit.execution.execute(kit.delivery("long")))
    await eventually(started.is_set)
    (attempt,) = kit.attempts
    kit.attempts.cancel({"task-1"})
    assert attempt.context.cancelled
    await kit.clock.advance(29)
    assert not running.done()
    await kit.clock.advance(1 + GRACE_S)
    executed = await asyncio.wait_for(running, GRACE_S / 2)
    assert executed.outcome == Cancelled()
    assert executed.hold
    go_on.set()
    await eventually(lambda: kit.threads.busy == 0)


async def test_a_cancelled_thread_of_a_stopping_worker_is_not_handed_back() -> None:
    """Nobody is to run it again."""
    kit = await make_kit()
    started, go_on = threading.Event(), threading.Event()

    @kit.task()
    def long() -> None:
        started.set()
        go_on.wait(10)

    async def begun_and_cancelled() -> None:
        await eventually(started.is_set)
        kit.attempts.cancel({"task-1"})

    assert await drain_while_running(kit, "long", begun_and_cancelled) == Cancelled()
    go_on.set()
    await eventually(lambda: kit.threads.busy == 0)


async def test_an_async_task_that_ignores_its_cancellation_is_given_up_as_cancelled() -> None:
    """Its sender hears of it after the grace."""
    kit = await make_kit()
    release = asyncio.Event()

    @kit.task()
    async def stubborn() -> None:
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()

    running = asyncio.create_task(kit.execution.execute(kit.delivery("stubborn")))
    await eventually(lambda: len(kit.attempts))
    await asyncio.sleep(0)
    kit.attempts.cancel({"another"})
    kit.attempts.cancel({"task-1"})
    await kit.clock.advance(GRACE_S)
    assert (await asyncio.wait_for(running, 2)).outcome == Cancelled()
    release.set()
    await eventually(lambda: kit.attempts.overdue == 0)


async def test_a_thread_task_that_is_cancelled_while_it_waits_for_a_thread_never_runs() -> None:
    """And the thread is there for the next one."""
    kit = await make_kit(places=1)
    go_on = threading.Event()

    @kit.task()
    def first() -> None:
        go_on.wait(10)

    @kit.task()
    def second() -> None:
        raise AssertionError("must not run")

    @kit.task()
    def third() -> int:
        return 3

    running = asyncio.create_task(run(kit, "first"))
    await eventually(lambda: kit.threads.busy == 1)
    waiting = asyncio.create_task(kit.execution.execute(kit.delivery("second", task_id="second")))
    await asyncio.sleep(0)
    kit.revocations.add(["second"], kit.clock.now_ms())
    go_on.set()
    assert (await asyncio.wait_for(waiting, 5)).outcome == Cancelled(attempts=0)
    assert isinstance(await running, Succeeded)
    assert await run(kit, "third") == Succeeded(b"3")


async def test_a_delivery_waits_while_the_cancellations_are_behind() -> None:
    """It may be one of those that are not known yet."""
    kit = await make_kit()

    @kit.task()
    async def work() -> None:
        raise AssertionError("must not run")

    kit.revocations.fall_behind()
    running = asyncio.create_task(kit.execution.execute(kit.delivery("work", headers={ATTEMPT: 3})))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not running.done()
    kit.revocations.add(["task-1"], kit.clock.now_ms())
    kit.revocations.catch_up()
    assert (await asyncio.wait_for(running, 5)).outcome == Cancelled(attempts=2)


# --- leases


async def start_and_lose(kit: Kit, delivery: Any, started: asyncio.Event) -> "asyncio.Task[Any]":
    running = asyncio.create_task(kit.execution.execute(delivery))
    await started.wait()
    delivery.lose()
    return running


async def test_a_redelivery_becomes_the_new_lease_of_the_attempt_that_still_runs() -> None:
    """Not a second run; the outcome goes with the new lease."""
    kit = await make_kit()
    started, go_on, runs = asyncio.Event(), asyncio.Event(), []

    @kit.task()
    async def long() -> str:
        runs.append(1)
        started.set()
        await go_on.wait()
        return "done"

    first = kit.delivery("long", message_id="m1")
    running = await start_and_lose(kit, first, started)
    second = kit.delivery("long", message_id="m1")
    again = asyncio.create_task(kit.execution.execute(second))
    lost = await running
    assert (lost.delivery, lost.outcome) == (first, LostLease())
    go_on.set()
    executed = await again
    assert (executed.delivery, executed.outcome) == (second, Succeeded(b'"done"'))
    assert runs == [1]
    assert len(kit.attempts) == 0


async def test_a_lost_lease_frees_its_slot_while_the_attempt_goes_on() -> None:
    """Otherwise no slot would be free for the redelivery."""
    kit = await make_kit()
    started, go_on, runs = asyncio.Event(), asyncio.Event(), []

    @kit.task()
    async def long() -> str:
        runs.append(1)
        started.set()
        await go_on.wait()
        return "done"

    running = await start_and_lose(kit, kit.delivery("long", message_id="m1"), started)
    await kit.clock.advance(1)  # an attempt looks after its lease from then on
    assert (await running).outcome == LostLease()
    assert len(kit.attempts) == 1
    second = kit.delivery("long", message_id="m1")
    again = asyncio.create_task(kit.execution.execute(second))
    await eventually(lambda: not any(attempt.orphaned for attempt in kit.attempts))
    go_on.set()
    assert (await again).outcome == Succeeded(b'"done"')
    assert runs == [1]


async def test_the_outcome_of_an_attempt_that_ends_without_a_lease_is_dropped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The broker delivers it again; a redelivery after the end is a run of its own."""
    kit = await make_kit()
    started, go_on, runs = asyncio.Event(), asyncio.Event(), []

    @kit.task()
    async def long() -> None:
        runs.append(1)
        started.set()
        await go_on.wait()

    running = await start_and_lose(kit, kit.delivery("long", message_id="m1"), started)
    await kit.clock.advance(1)
    await running
    go_on.set()
    await eventually(lambda: len(kit.attempts) == 0)
    assert "its outcome is dropped" in caplog.text
    assert await run(kit, "long", message_id="m1") == Succeeded(b"null")
    assert runs == [1, 1]


async def test_an_attempt_whose_lease_does_not_come_back_is_cancelled() -> None:
    """Another worker has it. While there is no connection, nothing can come back, and that time does not count."""
    kit = await make_kit()
    started, cancelled = asyncio.Event(), []

    @kit.task(pass_context=True, time_limit_s=3600)
    async def long(ctx: TaskContext) -> None:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.append(ctx.cancelled)

    running = await start_and_lose(kit, kit.delivery("long"), started)
    await kit.clock.advance(1)
    assert (await running).outcome == LostLease()
    await kit.clock.advance(LEASE_PATIENCE_S / 2)
    kit.broker.status = lambda: BrokerStatus("connecting")  # type: ignore[method-assign]
    await kit.clock.advance(600)
    del kit.broker.status
    await kit.clock.advance(LEASE_PATIENCE_S / 2 - 1)
    assert cancelled == []
    await kit.clock.advance(1)
    assert cancelled == [True]
    assert len(kit.attempts) == 0


@pytest.mark.parametrize("difference", [{"message_id": None}, {"task_id": "other"}, {"body": {"x": 2}}, {}])
async def test_a_message_that_only_resembles_a_running_one_is_run_by_itself(difference: dict[str, Any]) -> None:
    """No message id, another task or other arguments; or the running one still has its lease (`{}`)."""
    kit = await make_kit()
    started, go_on, runs = asyncio.Event(), asyncio.Event(), []

    @kit.task()
    async def long(x: int) -> None:
        runs.append(x)
        started.set()
        await go_on.wait()

    same = {"message_id": "m1", "body": {"x": 1}}
    first = kit.delivery("long", **{**same, **({"message_id": None} if "message_id" in difference else {})})
    running = asyncio.create_task(kit.execution.execute(first))
    await started.wait()
    if difference:
        first.lose()
    second = asyncio.create_task(kit.execution.execute(kit.delivery("long", **{**same, **difference})))
    await eventually(lambda: len(runs) == 2)
    go_on.set()
    assert (await second).outcome == Succeeded(b"null")
    await running
    await eventually(lambda: len(kit.attempts) == 0)
