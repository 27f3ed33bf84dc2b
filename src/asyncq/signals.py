"""What a task's code raises to say how its attempt ends: `Retry`, `Reject`, `Snooze`.

They are instructions, not failures of the program. `raise Retry() from exc` keeps `exc` as the error that is
recorded when the attempts are used up.
"""

from __future__ import annotations

from datetime import timedelta

from asyncq.errors import InvalidOption

__all__ = ["Reject", "Retry", "Signal", "Snooze", "seconds_of"]


def seconds_of(value: float | timedelta, what: str) -> float:
    """Return a duration in seconds.

    Args:
        value: Seconds, or a `timedelta`.
        what: The option's name, for the error message.

    Raises:
        InvalidOption: The value is no number, negative, infinite or not a number.
    """
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidOption(f"{what} takes seconds or a timedelta, not {value!r}.")
    if not 0 <= value < float("inf"):
        raise InvalidOption(f"{what} must be zero or more, and finite, not {value!r}.")
    return float(value)


class Signal(Exception):
    """The base of the instructions that a task can raise."""


class Retry(Signal):
    """Run this task again later. Counts as an attempt.

    Args:
        reason: Why, for the log and the record. The cause (`from exc`) is recorded in its place where there is one.
        after: Exact delay, in seconds or as a `timedelta`. Without it the policy's backoff decides.
    """

    def __init__(self, reason: str = "", *, after: float | timedelta | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.after_s = None if after is None else seconds_of(after, "Retry(after=...)")


class Reject(Signal):
    """Put this message into the dead-letter queue now, without another attempt.

    Args:
        reason: Why; it is recorded with the dead letter.
    """

    def __init__(self, reason: str = "rejected by the task") -> None:
        super().__init__(reason)
        self.reason = reason


class Snooze(Signal):
    """Run this task again later, without counting an attempt.

    Args:
        after: Exact delay, in seconds or as a `timedelta`.
    """

    def __init__(self, after: float | timedelta) -> None:
        super().__init__(after)
        self.after_s = seconds_of(after, "Snooze(...)")
