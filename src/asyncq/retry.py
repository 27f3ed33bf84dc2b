"""Retry policies: whether a failed attempt is followed by another, and when.

Pure: a policy sees an exception, an attempt number and a random number, and answers with a delay or None.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from asyncq.errors import InvalidOption, TimeLimitExceeded

__all__ = ["Backoff", "Exponential", "Fixed", "RetryPolicy"]

DEFAULT_MAX_ATTEMPTS = 4  # the first run and three retries, as with Celery


def _check(what: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise InvalidOption(f"{what} takes seconds, zero or more, not {value!r}.")


@dataclass(frozen=True, slots=True)
class Fixed:
    """The same delay before every retry.

    Args:
        delay: Seconds.
    """

    delay: float

    def __post_init__(self) -> None:
        _check("Fixed(delay=...)", self.delay)

    @property
    def cap_s(self) -> float:
        """The longest delay that this backoff may give, in seconds."""
        return self.delay

    def delay_s(self, attempt: int) -> float:  # noqa: ARG002 - the shape of every backoff
        """Return the delay after the given failed attempt (1 is the first), in seconds."""
        return self.delay


@dataclass(frozen=True, slots=True)
class Exponential:
    """A delay that grows by a factor with each attempt, up to a cap.

    Args:
        first: The delay after the first attempt, in seconds.
        factor: What each further delay is multiplied with; 1 or more.
        max: The longest delay, in seconds.
    """

    first: float = 1.0
    factor: float = 2.0
    max: float = 600.0

    def __post_init__(self) -> None:
        _check("Exponential(first=...)", self.first)
        _check("Exponential(max=...)", self.max)
        if not 1 <= self.factor < float("inf"):
            raise InvalidOption(f"Exponential(factor=...) must be 1 or more, not {self.factor!r}.")

    @property
    def cap_s(self) -> float:
        """The longest delay that this backoff may give, in seconds."""
        return self.max

    def delay_s(self, attempt: int) -> float:
        """Return the delay after the given failed attempt (1 is the first), in seconds."""
        try:
            return min(self.max, self.first * float(self.factor) ** (attempt - 1))
        except OverflowError:
            return self.max


Backoff = Fixed | Exponential


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When a failed attempt is followed by another.

    Args:
        on: Exception classes that are worth a retry, their subclasses included. `TimeLimitExceeded` is retried
            only where it is named itself: it is a `TimeoutError`, but a task that ran into its limit once mostly
            does so again.
        max_attempts: How often the task may run in all, the first run included.
        backoff: The delay before each retry.
        jitter: Take a random delay between half the backoff's and the whole of it, so that tasks that failed
            together do not come back together.
    """

    on: tuple[type[BaseException], ...] | type[BaseException] = (Exception,)
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    backoff: Backoff = Exponential()
    jitter: bool = True

    def __post_init__(self) -> None:
        classes = self.on if isinstance(self.on, tuple) else (self.on,)
        for item in classes:
            if not (isinstance(item, type) and issubclass(item, BaseException)):
                raise InvalidOption(f"RetryPolicy(on=...) takes exception classes, not {item!r}.")
        object.__setattr__(self, "on", classes)
        if isinstance(self.max_attempts, bool) or not isinstance(self.max_attempts, int) or self.max_attempts < 1:
            raise InvalidOption(f"RetryPolicy(max_attempts=...) must be 1 or more, not {self.max_attempts!r}.")

    def matches(self, error: BaseException) -> bool:
        """Tell whether this kind of error is worth a retry."""
        classes = self.on if isinstance(self.on, tuple) else (self.on,)
        if isinstance(error, TimeLimitExceeded):
            return any(issubclass(item, TimeLimitExceeded) for item in classes)
        return isinstance(error, classes)

    def delay_s(self, attempt: int, *, draw: float | None = None) -> float:
        """Return the delay after a failed attempt, in seconds.

        Args:
            attempt: The number of the attempt that failed; 1 is the first.
            draw: A number from 0 to 1 in place of a random one.
        """
        delay_s = self.backoff.delay_s(attempt)
        if not self.jitter:
            return delay_s
        return delay_s * (0.5 + 0.5 * (random.random() if draw is None else draw))  # noqa: S311 - no secret
