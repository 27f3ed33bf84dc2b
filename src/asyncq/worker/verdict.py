"""From how the code ended to the attempt's outcome: signals, time limit, retry policy.

Pure. Invariant: every ending has an outcome, and a result that does not fit is never retried: the work was done.
"""

from __future__ import annotations

from asyncq.errors import ResultNotSerialisable, TimeLimitExceeded
from asyncq.outcome import Drained, Failed, Failure, LostLease, Outcome, Rejected, RetryLater, Snoozed, Succeeded
from asyncq.retry import RetryPolicy
from asyncq.signals import Reject, Retry, Signal, Snooze
from asyncq.worker.attempt import Attempt, Ending, LeaseGone, Overdue, Raised, Returned

__all__ = ["decide"]

_STANDARD_POLICY = RetryPolicy()


def decide(attempt: Attempt, ending: Ending, default_retry: RetryPolicy | None) -> Outcome:
    """Return the outcome of an attempt.

    Args:
        attempt: What ran.
        ending: How its code ended.
        default_retry: The app's policy for `raise Retry(...)` in a task that has none; None is the standard one.
    """
    match ending:
        case Returned(value):
            return _succeeded(attempt, value)
        case Raised(error):
            if isinstance(error, Signal):
                return _signalled(attempt, error, default_retry)
            if attempt.interrupted is not None:
                return _interrupted(attempt, error)
            return _failed(attempt, error)
        case Overdue():
            return _interrupted(attempt, None)
        case LeaseGone():  # not an end of the code
            return LostLease()


def _succeeded(attempt: Attempt, value: object) -> Outcome:
    """The work was done, even where a limit was reached meanwhile: running it again would do it twice."""
    try:
        return Succeeded(attempt.task.results.encode(value))
    except ResultNotSerialisable as error:
        return Failed(Failure.of(error), "result not serialisable")
    except BaseException as error:  # noqa: BLE001 - a serialiser of the user's may raise anything; nothing awaits here
        return Failed(Failure.of(error), "result not serialisable")


def _signalled(attempt: Attempt, signal: Signal, default_retry: RetryPolicy | None) -> Outcome:
    match signal:
        case Retry():
            return _retried(attempt, signal, attempt.task.run.retry or default_retry or _STANDARD_POLICY)
        case Snooze():
            return Snoozed(signal.after_s)
        case Reject():
            return Rejected(Failure.of(signal), str(signal.reason))
        case _:
            return _failed(attempt, signal)


def _retried(attempt: Attempt, signal: Retry, policy: RetryPolicy) -> Outcome:
    failure = Failure.of(_cause_of(signal))
    if attempt.number >= policy.max_attempts:
        return Failed(failure, "attempts exhausted")
    if signal.after_s is not None:
        return RetryLater(failure, signal.after_s, None)
    return RetryLater(failure, policy.delay_s(attempt.number), policy.backoff.cap_s)


def _cause_of(signal: Retry) -> BaseException:
    """What the task ran into: `from exc`, or the exception that was being handled when it raised the signal."""
    if signal.__cause__ is not None:
        return signal.__cause__
    if signal.__context__ is not None and not signal.__suppress_context__:
        return signal.__context__
    return signal


def _interrupted(attempt: Attempt, error: BaseException | None) -> Outcome:
    """The code ended, or did not, because we told it to stop: what it raised then is our doing."""
    if attempt.interrupted == "drain":
        return Drained()
    if attempt.interrupted == "lease":
        return LostLease()
    exceeded = TimeLimitExceeded(
        f"Task {attempt.task.name} ran longer than its time limit of {attempt.limits.limit_s:g} s."
    )
    exceeded.__cause__ = error
    return _failed(attempt, exceeded)


def _failed(attempt: Attempt, error: BaseException) -> Outcome:
    policy, failure = attempt.task.run.retry, Failure.of(error)
    if policy is None:
        return Failed(failure, "no retry policy")
    if not policy.matches(error):
        return Failed(failure, "not retried by the policy")
    if attempt.number >= policy.max_attempts:
        return Failed(failure, "attempts exhausted")
    return RetryLater(failure, policy.delay_s(attempt.number), policy.backoff.cap_s)
