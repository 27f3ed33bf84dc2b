"""From how the code ended to the attempt's outcome: signals, time limit, retry policies.

Pure, but for the log when a policy's `when=` fails. Invariant: every ending has an outcome, and a result that does not
fit is never retried: the work was done.
"""

from __future__ import annotations

from asyncq.errors import ResultNotSerialisable, TimeLimitExceeded
from asyncq.loggers import get_logger
from asyncq.outcome import (
    Cancelled,
    Drained,
    Failed,
    Failure,
    LostLease,
    Outcome,
    Rejected,
    RetryLater,
    Snoozed,
    Succeeded,
)
from asyncq.retry import RetryDefaults, RetryPolicy, leaves_of, policy_for
from asyncq.signals import Reject, Retry, Signal, Snooze
from asyncq.worker.attempt import Attempt, Decided, Ending, LeaseGone, Overdue, Raised, Returned
from asyncq.worker.process_pool.returned import FromProcess

__all__ = ["decide"]

log = get_logger("asyncq.worker")

_STANDARD_POLICY = RetryPolicy()


def decide(attempt: Attempt, ending: Ending, defaults: RetryDefaults) -> Outcome:
    """Return the outcome of an attempt.

    Args:
        attempt: What ran.
        ending: How its code ended.
        defaults: The policies of a task that has said nothing about its own.
    """
    match ending:
        case Returned(value):
            return _succeeded(attempt, value)
        case Raised(error):
            return _raised(attempt, error, defaults)
        case Decided(outcome):
            return outcome
        case Overdue():
            return _interrupted(attempt, None, defaults)
        case LeaseGone():  # not an end of the code
            return LostLease()


def _succeeded(attempt: Attempt, value: object) -> Outcome:
    """The work was done, even where a limit was reached meanwhile: running it again would do it twice."""
    if isinstance(value, FromProcess):
        return value.outcome()
    try:
        return Succeeded(attempt.task.results.encode(value))
    except ResultNotSerialisable as error:
        return Failed(Failure.of(error), "result not serialisable")
    except BaseException as error:  # noqa: BLE001 - a serialiser of the user's may raise anything; nothing awaits here
        return Failed(Failure.of(error), "result not serialisable")


def _raised(attempt: Attempt, error: BaseException, defaults: RetryDefaults) -> Outcome:
    signal = _signal_in(error)
    # A task that is cancelled asks for nothing more: somebody has said that it shall not go on.
    if signal is not None and attempt.interrupted != "cancel":
        return _signalled(attempt, signal, error, defaults)
    if attempt.interrupted is not None:
        return _interrupted(attempt, error, defaults)
    return _failed(attempt, error, defaults)


def _signal_in(error: BaseException) -> Signal | None:
    """Return the signal that was raised, or that came out of an `asyncio.TaskGroup` in an exception group.

    Of several, a Reject wins over a Retry, the longest delay over shorter ones. A Snooze beside an error is not
    obeyed: it counts no attempt, so the error could come back for ever and nobody would hear of it.
    """
    leaves = list(leaves_of(error))
    for kind in (Reject, Retry):
        signals = [leaf for leaf in leaves if isinstance(leaf, kind)]
        if signals:
            return max(signals, key=_delay_s)
    if all(isinstance(leaf, Signal) for leaf in leaves):
        return max((leaf for leaf in leaves if isinstance(leaf, Signal)), key=_delay_s)
    return None


def _delay_s(signal: Signal) -> float:
    return signal.after_s or 0.0 if isinstance(signal, (Retry, Snooze)) else 0.0


def _signalled(attempt: Attempt, signal: Signal, raised: BaseException, defaults: RetryDefaults) -> Outcome:
    match signal:
        case Retry():
            return _retried(attempt, signal, raised, defaults)
        case Snooze():
            return Snoozed(signal.after_s)
        case Reject():
            return Rejected(Failure.of(signal if _is_alone(signal, raised) else raised), str(signal.reason))
        case _:
            return _failed(attempt, signal, defaults)


def _retried(attempt: Attempt, signal: Retry, raised: BaseException, defaults: RetryDefaults) -> Outcome:
    cause = _cause_of(signal)
    failure = Failure.of((cause or signal) if _is_alone(signal, raised) else raised)
    # A task that has switched the defaults off has asked for this retry all the same: it goes by their rhythm.
    policies = attempt.task.run.retry or defaults.of(attempt.delivery.queue) or defaults.app or (_STANDARD_POLICY,)
    policy = policies[0]
    if cause is not None:
        try:
            policy = policy_for(policies, cause) or policy
        except BaseException:
            log.exception("when= of a retry policy failed, so the task's first policy holds", task=attempt.task.name)
    return _again(attempt, failure, policy, signal.after_s)


def _is_alone(signal: Signal, raised: BaseException) -> bool:
    return list(leaves_of(raised)) == [signal]


def _cause_of(signal: Retry) -> BaseException | None:
    """What the task ran into: `from exc`, or the exception that was being handled when it raised the signal."""
    if signal.__cause__ is not None:
        return signal.__cause__
    return None if signal.__suppress_context__ else signal.__context__


def _interrupted(attempt: Attempt, error: BaseException | None, defaults: RetryDefaults) -> Outcome:
    """The code ended, or did not, because we told it to stop: what it raised then is our doing."""
    if attempt.interrupted == "cancel":
        return Cancelled()
    if attempt.interrupted == "drain":
        return Drained()
    if attempt.interrupted == "lease":
        return LostLease()
    limits = attempt.limits
    exceeded = TimeLimitExceeded(
        f"Task {attempt.task.name} was stopped after {limits.limit_s:g} s, at the deadline of its send."
        if limits.by_deadline
        else f"Task {attempt.task.name} ran longer than its time limit of {limits.limit_s:g} s."
    )
    exceeded.__cause__ = error
    return _failed(attempt, exceeded, defaults)


def _failed(attempt: Attempt, error: BaseException, defaults: RetryDefaults) -> Outcome:
    own, failure = attempt.task.run.retry, Failure.of(error)
    policies = defaults.of(attempt.delivery.queue) if own is None else own
    if not policies:
        return Failed(failure, "no retry policy")
    try:
        policy = policy_for(policies, error)
    except BaseException as broken:
        log.exception("when= of a retry policy failed, so there is no retry", task=attempt.task.name)
        return Failed(failure, f"when= of the retry policy failed: {_in_words(broken)}")
    if policy is None:
        return Failed(failure, "not retried by the policy")
    return _again(attempt, failure, policy, None)


def _again(attempt: Attempt, failure: Failure, policy: RetryPolicy, after_s: float | None) -> Outcome:
    """Return the retry that the policy allows, or the failure that says why it does not.

    Args:
        attempt: The one that failed.
        failure: What is recorded of it.
        policy: Its attempts and its time bound every retry.
        after_s: The exact delay that the task has asked for; None for the policy's backoff.
    """
    if attempt.number >= policy.max_attempts:
        return Failed(failure, "attempts exhausted")
    left_s = policy.left_s(attempt.since_first_s)
    delay_s = policy.delay_s(attempt.number) if after_s is None else after_s
    if delay_s > left_s:
        return Failed(failure, "time for retries exhausted")
    at_most_s = min(policy.backoff.cap_s, left_s) if after_s is None else None
    return RetryLater(failure, delay_s, at_most_s, attempt.first_ms)


def _in_words(error: BaseException) -> str:
    record = Failure.of(error)
    return f"{record.type}: {record.message}"
