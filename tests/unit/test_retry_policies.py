"""What a worker makes of a task's retry policies: which one decides, until when, and what the message carries."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from asyncq.app import AsyncQ
from asyncq.broker import Delay
from asyncq.context import TaskContext
from asyncq.errors import ConfigurationError, TaskFailed
from asyncq.history import FailedAttempt, history_of, history_text
from asyncq.message import ATTEMPT, FIRST_AT, HISTORY, MAX_HEADERS_BYTES, headers_size
from asyncq.outcome import Failed, Outcome, Rejected, RetryLater, Snoozed
from asyncq.retry import Exponential, Fixed, RetryDefaults, RetryPolicy
from asyncq.signals import Reject, Retry, Snooze
from asyncq.testing.harness import running
from asyncq.worker.execution import Executed
from worker_kit import Kit, make_kit

QUICK = RetryPolicy(on=ConnectionError, backoff=Fixed(1), jitter=False, max_attempts=10)
SLOW = RetryPolicy(on=OSError, backoff=Fixed(60), jitter=False, max_attempts=3)


async def kit_with(error: BaseException, **options: Any) -> Kit:
    """Return a worker's parts with a task `work` that raises."""
    kit = await make_kit()

    @kit.task(**options)
    async def work() -> None:
        raise error

    return kit


async def run(kit: Kit, attempt: int = 1, **headers: Any) -> Outcome:
    executed = await kit.execution.execute(kit.delivery("work", headers={ATTEMPT: attempt, **headers}))
    return executed.outcome


async def outcome_of(error: BaseException, attempt: int = 1, **options: Any) -> Outcome:
    return await run(await kit_with(error, **options), attempt)


async def run_and_settle(kit: Kit, **headers: Any) -> dict[str, Any]:
    """Run the task and return the headers of the copy that follows."""
    executed = await kit.execution.execute(kit.delivery("work", headers=headers))
    await kit.settlement.settle(executed)
    return dict(kit.broker.copies()[-1].message.headers)


def caused_by(error: BaseException, signal: Retry) -> Retry:
    signal.__cause__ = error
    return signal


def delay_of(outcome: Outcome) -> float:
    assert isinstance(outcome, RetryLater), outcome
    return outcome.delay_s


def reason_of(outcome: Outcome) -> str:
    assert isinstance(outcome, Failed), outcome
    return outcome.reason


# --- which policy


async def test_each_error_of_a_task_has_the_policy_that_matches_it_first() -> None:
    """The attempts are the task's, counted together; each policy has its own bound."""
    policies = [QUICK, SLOW]
    assert delay_of(await outcome_of(ConnectionError("x"), 3, retry=policies)) == 1
    assert delay_of(await outcome_of(PermissionError("x"), 2, retry=policies)) == 60
    assert reason_of(await outcome_of(PermissionError("x"), 3, retry=policies)) == "attempts exhausted"
    assert reason_of(await outcome_of(KeyError("x"), 1, retry=policies)) == "not retried by the policy"


@pytest.mark.parametrize("nothing", [None, (), []])
async def test_an_empty_policy_retries_nothing(nothing: Any) -> None:
    """As if none had been given."""
    assert reason_of(await outcome_of(ConnectionError("x"), retry=nothing)) == "no retry policy"


async def test_what_a_policy_must_never_retry_is_final() -> None:
    """Though a later policy would retry it."""
    first = RetryPolicy(on=ConnectionError, never=BrokenPipeError)
    assert reason_of(await outcome_of(BrokenPipeError(), retry=[first, SLOW])) == "not retried by the policy"


async def test_a_predicate_that_fails_means_no_retry_and_the_reason_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever it raises; the recorded error is the task's own."""
    for broken in (AttributeError("no status"), SystemExit(3)):

        def when(error: BaseException, broken: BaseException = broken) -> bool:
            raise broken

        outcome = await outcome_of(ConnectionError("x"), retry=[RetryPolicy(when=when), SLOW])
        assert isinstance(outcome, Failed)
        assert outcome.failure.type == "builtins.ConnectionError"
        kind = type(broken).__name__
        assert outcome.reason == f"when= of the retry policy failed: builtins.{kind}: {broken}"
    assert caplog.text.count("when= of a retry policy failed, so there is no retry") == 2


# --- defaults

APPS = RetryPolicy(backoff=Fixed(11), jitter=False)
QUEUES = RetryPolicy(backoff=Fixed(22), jitter=False)


async def outcome_with(error: BaseException, defaults: RetryDefaults, **options: Any) -> Outcome:
    kit = await make_kit(defaults=defaults)

    @kit.task(**options)
    async def work() -> None:
        raise error

    return await run(kit)


async def test_the_tasks_own_policy_wins_over_the_queues_and_that_over_the_apps() -> None:
    """Not one after the other: the nearest one alone decides."""
    app, both = RetryDefaults((APPS,)), RetryDefaults((APPS,), {"work": (QUEUES,), "other": (SLOW,)})
    assert delay_of(await outcome_with(KeyError(), app)) == 11
    assert delay_of(await outcome_with(KeyError(), both)) == 22
    assert delay_of(await outcome_with(ConnectionError(), both, retry=QUICK)) == 1
    assert reason_of(await outcome_with(KeyError(), both, retry=QUICK)) == "not retried by the policy"


@pytest.mark.parametrize("nothing", [None, ()])
async def test_a_task_or_a_queue_can_switch_the_defaults_off(nothing: Any) -> None:
    """By an explicit nothing; without the option they hold."""
    both = RetryDefaults((APPS,), {"work": (QUEUES,)})
    assert reason_of(await outcome_with(KeyError(), both, retry=nothing)) == "no retry policy"
    assert reason_of(await outcome_with(KeyError(), RetryDefaults((APPS,), {"work": ()}))) == "no retry policy"


async def test_retry_in_a_task_without_policies_goes_by_the_nearest_default() -> None:
    """Also where they are switched off: the task asks for this one itself."""
    both = RetryDefaults((APPS,), {"work": (QUEUES,)})
    assert delay_of(await outcome_with(Retry(), both)) == 22
    assert delay_of(await outcome_with(Retry(), both, retry=None)) == 22
    assert delay_of(await outcome_with(Retry(), RetryDefaults((APPS,), {"work": ()}))) == 11
    assert 0.5 <= delay_of(await outcome_with(Retry(), RetryDefaults())) <= 1


def test_an_app_takes_defaults_for_itself_and_for_queues() -> None:
    """One policy, several, or none."""
    app = AsyncQ("shop", retry=APPS, queues={"mail": {"retry": [QUICK, SLOW]}, "once": {"retry": None}, "plain": {}})
    assert app.retry_defaults.of("shop") == app.retry_defaults.of("plain") == (APPS,)
    assert app.retry_defaults.of("mail") == (QUICK, SLOW)
    assert app.retry_defaults.of("once") == ()
    assert AsyncQ("shop").retry_defaults.of("shop") == ()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"retry": 3}, r"AsyncQ\(retry=...\) takes a RetryPolicy"),
        ({"queues": ["mail"]}, "takes options by the queue's name"),
        ({"queues": {"mail": APPS}}, "takes the queue's options"),
        ({"queues": {"mail": {"retry": 3}}}, "'mail'.*takes a RetryPolicy"),
        ({"queues": {"mail": {"retries": 3}}}, "no option 'retries'.*retry"),
        ({"queues": {"mail#": {"retry": APPS}}}, "mail#"),
    ],
)
def test_defaults_that_cannot_be_used_are_refused_at_once(options: Any, words: str) -> None:
    """When the app is made; the message says where."""
    with pytest.raises(ConfigurationError, match=words):
        AsyncQ("shop", **options)


async def test_a_default_holds_for_tasks_that_say_nothing_in_a_running_app() -> None:
    """By the queue that the message came out of, not by the one that the task is declared for."""
    app = AsyncQ("shop", queues={"patient": {"retry": RetryPolicy(backoff=Fixed(3600), jitter=False)}})
    runs: list[int] = []

    @app.task(pass_context=True)
    async def flaky(ctx: TaskContext) -> str:
        runs.append(ctx.attempt)
        if ctx.attempt < 3:
            raise ConnectionError
        return ctx.queue

    async with running(app, queues={"shop": 1, "patient": 1}) as harness:
        once = await flaky.send()
        again = await flaky.options(queue="patient").send()
        await harness.run_until_idle()
        with pytest.raises(TaskFailed):
            await once.result(timeout=1)
        assert await again.result(timeout=1) == "patient"
    assert sorted(runs) == [1, 1, 2, 3]


# --- raise Retry


async def test_retry_goes_by_the_policy_of_its_cause() -> None:
    """Its backoff and its attempts."""
    policies = [QUICK, SLOW]
    assert delay_of(await outcome_of(caused_by(PermissionError(), Retry()), 2, retry=policies)) == 60
    assert reason_of(await outcome_of(caused_by(PermissionError(), Retry(after=5)), 3, retry=policies)) == (
        "attempts exhausted"
    )
    assert delay_of(await outcome_of(caused_by(ConnectionError(), Retry(after=5)), 3, retry=policies)) == 5


async def test_retry_without_a_cause_that_a_policy_matches_goes_by_the_first_policy() -> None:
    """The task's word counts: it is retried."""
    policies = [QUICK, RetryPolicy(on=Retry, backoff=Fixed(99))]
    for signal in (Retry(), caused_by(KeyError("x"), Retry())):
        assert delay_of(await outcome_of(signal, 9, retry=policies)) == 1
        assert reason_of(await outcome_of(signal, 10, retry=policies)) == "attempts exhausted"


async def test_retry_is_made_though_a_predicate_fails(caplog: pytest.LogCaptureFixture) -> None:
    """Only which policy it goes by is in question; the first one is taken."""

    def when(error: BaseException) -> bool:
        raise AttributeError("no status")

    policies = [RetryPolicy(when=when, backoff=Fixed(7), jitter=False), SLOW]
    assert delay_of(await outcome_of(caused_by(KeyError("x"), Retry()), retry=policies)) == 7
    assert "when= of a retry policy failed" in caplog.text


# --- time


async def test_a_retry_that_would_begin_after_max_time_is_not_made() -> None:
    """The time runs from the beginning of the first attempt that failed, by the worker's clock."""
    policy = RetryPolicy(max_time=timedelta(minutes=1), backoff=Fixed(20), jitter=False, max_attempts=100)
    kit = await kit_with(ConnectionError("x"), retry=policy)
    begin_ms = kit.clock.now_ms()
    outcome = await run(kit)
    assert isinstance(outcome, RetryLater)
    assert outcome.first_ms == begin_ms
    kit.clock.move(40)
    assert delay_of(await run(kit, 3, **{FIRST_AT: begin_ms})) == 20
    kit.clock.move(0.001)
    assert reason_of(await run(kit, 3, **{FIRST_AT: begin_ms})) == "time for retries exhausted"


async def test_a_backoff_is_not_rounded_past_max_time() -> None:
    """The ladder may round up to the cap, but not further than the time allows."""
    policy = RetryPolicy(max_time=50, backoff=Exponential(first=45, max=600), jitter=False)
    outcome = await outcome_of(ConnectionError("x"), retry=policy)
    assert isinstance(outcome, RetryLater)
    assert (outcome.delay_s, outcome.at_most_s) == (45, 50)


async def test_max_time_bounds_what_a_task_asks_for() -> None:
    """`Retry(after=...)` is exact, or it is not made."""
    policy = RetryPolicy(max_time=60)
    assert delay_of(await outcome_of(Retry(after=60), retry=policy)) == 60
    assert reason_of(await outcome_of(Retry(after=61), retry=policy)) == "time for retries exhausted"


async def test_a_clock_that_is_ahead_does_not_give_retries_more_time() -> None:
    """The header may come from another machine."""
    policy = RetryPolicy(max_time=60, backoff=Fixed(61), jitter=False)
    kit = await kit_with(ConnectionError("x"), retry=policy)
    ahead_ms = kit.clock.now_ms() + 3_600_000
    assert reason_of(await run(kit, 2, **{FIRST_AT: ahead_ms})) == "time for retries exhausted"


async def test_the_first_retry_remembers_when_the_first_attempt_began_and_later_ones_keep_it() -> None:
    """The time that the attempt itself took counts."""
    kit = await make_kit()

    @kit.task(retry=RetryPolicy(max_attempts=5))
    async def work() -> None:
        kit.clock.move(3)
        raise ConnectionError

    begin_ms = kit.clock.now_ms()
    first = await run_and_settle(kit)
    assert (first[ATTEMPT], first[FIRST_AT]) == (2, begin_ms)
    kit.clock.move(10)
    second = await run_and_settle(kit, **first)
    assert (second[ATTEMPT], second[FIRST_AT]) == (3, begin_ms)


async def test_a_snooze_takes_nothing_from_the_attempts_or_from_max_time() -> None:
    """Neither before the first failure nor after it."""
    kit = await kit_with(Snooze(300))
    before = await run_and_settle(kit)
    assert before[ATTEMPT] == 1
    assert FIRST_AT not in before
    first_ms = kit.clock.now_ms() - 10_000
    after = await run_and_settle(kit, **{ATTEMPT: 2, FIRST_AT: first_ms})
    assert (after[ATTEMPT], after[FIRST_AT]) == (2, first_ms + 300_000)


@pytest.mark.parametrize("value", ["yesterday", 0, -5, True, 1.5])
async def test_a_beginning_that_is_no_time_makes_a_malformed_message(value: object) -> None:
    """The error names the header."""
    outcome = await run(await kit_with(AssertionError("must not run")), **{FIRST_AT: value})
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "malformed message"
    assert "asyncq-first-at" in outcome.failure.message


async def test_a_dead_letter_keeps_no_beginning() -> None:
    """Sent back by whatever tool, its time would be up already."""
    kit = await kit_with(ConnectionError("x"), retry=RetryPolicy(max_attempts=2))
    executed = await kit.execution.execute(kit.delivery("work", headers={ATTEMPT: 2, FIRST_AT: 1}))
    await kit.settlement.settle(executed)
    (letter,) = await kit.letters()
    assert FIRST_AT not in letter.message.headers


# --- groups


async def raised_by_task_group(*errors: BaseException) -> BaseException:
    """Return what a TaskGroup raises whose children raise all these at once."""

    async def fail(error: BaseException) -> None:
        raise error

    async def fail_together() -> None:
        async with asyncio.TaskGroup() as group:
            for error in errors:
                group.create_task(fail(error))

    with pytest.raises(BaseExceptionGroup) as caught:
        await fail_together()
    assert len(caught.value.exceptions) == len(errors)
    return caught.value


async def test_a_task_group_is_retried_where_the_policy_matches_each_of_its_errors() -> None:
    """All by one policy; the whole group is recorded."""
    alike = await raised_by_task_group(ConnectionError("a"), ConnectionError("b"))
    outcome = await outcome_of(alike, retry=[QUICK, SLOW])
    assert delay_of(outcome) == 1
    assert isinstance(outcome, RetryLater)
    assert outcome.failure.type == "builtins.ExceptionGroup"
    related = await raised_by_task_group(ConnectionError("a"), PermissionError("b"))
    assert delay_of(await outcome_of(related, retry=[QUICK, SLOW])) == 60
    mixed = await raised_by_task_group(ConnectionError("a"), KeyError("b"))
    assert reason_of(await outcome_of(mixed, retry=[QUICK, SLOW])) == "not retried by the policy"


async def test_a_signal_out_of_a_task_group_counts_as_raised() -> None:
    """The TaskGroup has cancelled its siblings."""
    assert delay_of(await outcome_of(await raised_by_task_group(Retry(after=5)))) == 5
    assert await outcome_of(await raised_by_task_group(Snooze(5))) == Snoozed(5)
    nested = ExceptionGroup("outer", [await raised_by_task_group(Reject("why"))])
    outcome = await outcome_of(nested, retry=RetryPolicy())
    assert isinstance(outcome, Rejected)
    assert (outcome.reason, outcome.failure.type) == ("why", "asyncq.signals.Reject")


async def test_a_retry_out_of_a_task_group_goes_by_its_cause() -> None:
    """Which is what is recorded."""
    raised = await raised_by_task_group(caused_by(PermissionError("x"), Retry()))
    outcome = await outcome_of(raised, retry=[QUICK, SLOW])
    assert delay_of(outcome) == 60
    assert isinstance(outcome, RetryLater)
    assert outcome.failure.type == "builtins.PermissionError"


async def test_of_several_signals_the_rejection_wins_and_then_the_longest_retry() -> None:
    """What was asked for later would be too early for one of them."""
    raised = await raised_by_task_group(Retry(), Retry(after=60), Retry(after=5), Snooze(900))
    assert delay_of(await outcome_of(raised)) == 60
    assert await outcome_of(await raised_by_task_group(Snooze(5), Snooze(7))) == Snoozed(7)
    raised = await raised_by_task_group(Retry(after=60), Reject("why"), ConnectionError("x"))
    assert isinstance(await outcome_of(raised, retry=RetryPolicy()), Rejected)


async def test_a_retry_beside_an_error_is_made_and_both_are_recorded() -> None:
    """The group is the error."""
    outcome = await outcome_of(await raised_by_task_group(Retry(after=5), KeyError("x")))
    assert delay_of(outcome) == 5
    assert isinstance(outcome, RetryLater)
    assert outcome.failure.type == "builtins.ExceptionGroup"
    assert "KeyError: 'x'" in outcome.failure.traceback


async def test_a_snooze_beside_an_error_is_not_obeyed() -> None:
    """It counts no attempt: the error could come back for ever, and nobody would hear of it."""
    raised = await raised_by_task_group(Snooze(5), ConnectionError("x"))
    assert reason_of(await outcome_of(raised)) == "no retry policy"


# --- history


async def test_retries_and_the_dead_letter_carry_the_history_of_the_attempts() -> None:
    """Type, message, time, worker and number of each, the last one included."""
    kit = await make_kit()

    @kit.task(retry=RetryPolicy(max_attempts=3), pass_context=True)
    async def work(ctx: TaskContext) -> None:
        raise ConnectionError(f"number {ctx.attempt}")

    begin_ms = kit.clock.now_ms()
    headers: dict[str, Any] = {}
    for _ in range(2):
        headers = await run_and_settle(kit, **headers)
        kit.clock.move(10)
    executed = await kit.execution.execute(kit.delivery("work", headers=headers))
    await kit.settlement.settle(executed)
    (letter,) = await kit.letters()
    assert letter.record is not None
    assert letter.record.history == tuple(
        FailedAttempt(
            attempt=number,
            failed_at_ms=begin_ms + (number - 1) * 10_000,
            type="builtins.ConnectionError",
            message=f"number {number}",
            worker="host:1",
        )
        for number in (1, 2, 3)
    )


async def test_a_snooze_keeps_the_history_and_adds_nothing() -> None:
    """It is no failure."""
    kit = await kit_with(Snooze(5))
    history = history_text([FailedAttempt(1, 2, "t", "m", "w")])
    assert (await run_and_settle(kit, **{ATTEMPT: 2, HISTORY: history}))[HISTORY] == history


@pytest.mark.parametrize("foreign", ["yesterday", 7, b"\xff", {"a": 1}])
async def test_a_foreign_history_that_cannot_be_read_is_replaced(foreign: object) -> None:
    """It is no reason to refuse the message."""
    kit = await kit_with(ConnectionError("x"), retry=RetryPolicy())
    headers = await run_and_settle(kit, **{HISTORY: foreign})
    assert [entry.message for entry in history_of(headers)] == ["x"]


async def test_headers_stay_within_their_limit_with_the_largest_history_and_error() -> None:
    """Foreign headers make room; what says why the message is here stays."""
    history = tuple(FailedAttempt(number, 2, "t" * 200, "\0" * 500, "w" * 200) for number in range(10))
    kit = await kit_with(ConnectionError("\0" * 100_000))
    executed = await kit.execution.execute(
        kit.delivery("work", headers={HISTORY: history_text(history), "mine": "x" * 60_000})
    )
    await kit.settlement.settle(executed)
    (letter,) = await kit.letters()
    assert headers_size(letter.message.headers) <= MAX_HEADERS_BYTES
    assert letter.record is not None
    assert letter.record.history[-1].type == "builtins.ConnectionError"
    assert len(letter.record.history) > 1


async def test_hours_of_retries_and_snoozes_end_when_the_time_for_retries_is_over() -> None:
    """A task group in a running app: errors every hour, a snooze of a day, which takes nothing from the five hours."""
    app = AsyncQ("shop")
    hours: list[float] = []

    async def child(number: int) -> None:
        if number == 1:
            raise Snooze(timedelta(days=1)) if len(hours) == 3 else ConnectionError("gone")
        await asyncio.Event().wait()  # until the group cancels it

    @app.task(
        retry=RetryPolicy(on=ConnectionError, max_time=5 * 3600, max_attempts=99, backoff=Fixed(3600), jitter=False)
    )
    async def doomed() -> None:
        hours.append((harness.clock.now_ms() - begin_ms) / 3_600_000)
        async with asyncio.TaskGroup() as group:
            for number in (1, 2):
                group.create_task(child(number))

    async with running(app) as harness:
        begin_ms = harness.clock.now_ms()
        await doomed.options(reply=False).send()
        await harness.run_until_idle()
        (letter,) = [letter async for letter in app.dead_letters("shop").browse()]
    assert hours == [0, 1, 2, 26, 27, 28, 29]
    assert letter.record is not None
    assert (letter.record.reason, letter.record.attempts) == ("time for retries exhausted", 6)
    assert [entry.attempt for entry in letter.record.history] == [1, 2, 3, 4, 5, 6]


# --- settlement


async def test_the_delay_of_a_retry_is_published_as_decided() -> None:
    """Exact where the task has asked for it."""
    kit = await kit_with(Retry(after=5))
    executed = await kit.execution.execute(kit.delivery("work"))
    assert isinstance(executed, Executed)
    await kit.settlement.settle(executed)
    assert kit.broker.copies()[0].delay == Delay(5)
