"""Retry policies: whether a failed attempt is followed by another, and when.

Pure: a policy sees an exception, an attempt number and a random number. Only `when=` is the user's code; what it
raises goes to the caller.

A task has a sequence of policies: its own, else those of the queue that its message came out of, else the app's. They
are asked in order, and the first one that has something to say decides:

    names the error in `never`                              no retry, whatever later policies say
    names it in `on`, and its `when` agrees                 this policy's attempts, time and backoff hold
    neither                                                 the next policy is asked; after the last: no retry
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from asyncq.errors import InvalidOption, TimeLimitExceeded
from asyncq.signals import seconds_of

__all__ = [
    "Backoff",
    "Exponential",
    "Fixed",
    "Linear",
    "RetryDefaults",
    "RetryPolicy",
    "leaves_of",
    "policies_of",
    "policy_for",
]

DEFAULT_MAX_ATTEMPTS = 4  # the first run and three retries, as with Celery

Classes = tuple[type[BaseException], ...] | type[BaseException]


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
class Linear:
    """A delay that grows by the same step with each attempt, up to a cap.

    Args:
        first: The delay after the first attempt, in seconds.
        step: What each further delay is longer by, in seconds.
        max: The longest delay, in seconds.
    """

    first: float = 1.0
    step: float = 1.0
    max: float = 600.0

    def __post_init__(self) -> None:
        _check("Linear(first=...)", self.first)
        _check("Linear(step=...)", self.step)
        _check("Linear(max=...)", self.max)

    @property
    def cap_s(self) -> float:
        """The longest delay that this backoff may give, in seconds."""
        return self.max

    def delay_s(self, attempt: int) -> float:
        """Return the delay after the given failed attempt (1 is the first), in seconds."""
        return min(self.max, self.first + self.step * float(attempt - 1))


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
        if not isinstance(self.factor, (int, float)) or not 1 <= self.factor < float("inf"):
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
            return self.max if self.first else 0.0


Backoff = Fixed | Linear | Exponential


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When a failed attempt is followed by another.

    An `ExceptionGroup`, as `asyncio.TaskGroup` raises it, is retried where every error in it is: one that is not
    worth a retry would only fail again. A class that is itself a group is compared with the group as a whole.

    Args:
        on: Exception classes that are worth a retry, their subclasses included. `TimeLimitExceeded` is retried
            only where it is named itself: it is a `TimeoutError`, but a task that ran into its limit once mostly
            does so again.
        never: Exception classes that are never retried, whatever `on` says, and whatever later policies of the
            same task say.
        when: Asked about an error that the classes allow: True retries it. It runs on the worker's event loop, so it
            must not block. Where it raises, there is no retry.
        max_attempts: How often the task may run in all, the first run included.
        max_time: A retry that would begin later than this after the first attempt's beginning is not made. In
            seconds or as a `timedelta`; None is no limit.
        backoff: The delay before each retry.
        jitter: Take a random delay between half the backoff's and the whole of it, so that tasks that failed
            together do not come back together.
    """

    on: Classes = (Exception,)
    never: Classes = ()
    when: Callable[[BaseException], bool] | None = None
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    max_time: float | timedelta | None = None
    backoff: Backoff = Exponential()
    jitter: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "on", _classes("on", self.on))
        object.__setattr__(self, "never", _classes("never", self.never))
        if self.when is not None and (not callable(self.when) or inspect.iscoroutinefunction(self.when)):
            raise InvalidOption(
                f"RetryPolicy(when=...) takes a plain function of the error that returns True or False, not "
                f"{self.when!r}."
            )
        if isinstance(self.max_attempts, bool) or not isinstance(self.max_attempts, int) or self.max_attempts < 1:
            raise InvalidOption(f"RetryPolicy(max_attempts=...) must be 1 or more, not {self.max_attempts!r}.")
        if self.max_time is not None:
            object.__setattr__(self, "max_time", seconds_of(self.max_time, "RetryPolicy(max_time=...)"))
        if not isinstance(self.backoff, Backoff):
            raise InvalidOption(f"RetryPolicy(backoff=...) takes Fixed, Linear or Exponential, not {self.backoff!r}.")

    def forbids(self, error: BaseException) -> bool:
        """Tell whether `never` names the error, or, of a group, one that is in it."""
        never = _classes("never", self.never)
        return isinstance(error, never) or any(isinstance(leaf, never) for leaf in leaves_of(error))

    def matches(self, error: BaseException) -> bool:
        """Tell whether this error is worth a retry. Raises what `when` raises."""
        if self.forbids(error):
            return False
        on = _classes("on", self.on)
        groups = tuple(item for item in on if issubclass(item, BaseExceptionGroup))
        errors = [error] if isinstance(error, groups) else list(leaves_of(error))
        return all(_named(leaf, on) for leaf in errors) and (
            self.when is None or all(self.when(leaf) for leaf in errors)
        )

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

    def left_s(self, elapsed_s: float) -> float:
        """Return how long the next retry may still be away, in seconds; infinity without `max_time`.

        Args:
            elapsed_s: How long ago the first attempt began.
        """
        return float("inf") if self.max_time is None else seconds_of(self.max_time, "max_time") - elapsed_s


@dataclass(frozen=True, slots=True)
class RetryDefaults:
    """The policies of tasks that have said nothing about theirs.

    Args:
        app: Of all queues that have none of their own.
        queues: By the name of the queue; an empty sequence means that nothing is retried there.
    """

    app: tuple[RetryPolicy, ...] = ()
    queues: Mapping[str, tuple[RetryPolicy, ...]] = field(default_factory=dict)

    def of(self, queue: str) -> tuple[RetryPolicy, ...]:
        """Return the policies of tasks that come out of this queue."""
        return self.queues.get(queue, self.app)


def policy_for(policies: Sequence[RetryPolicy], error: BaseException) -> RetryPolicy | None:
    """Return the policy that retries this error, or None. Raises what a policy's `when` raises."""
    for policy in policies:
        if policy.forbids(error):
            return None
        if policy.matches(error):
            return policy
    return None


def policies_of(value: Any, what: str) -> tuple[RetryPolicy, ...]:
    """Return what a user gave as policies: one, a sequence of them, or None for none.

    Args:
        value: What was given.
        what: The option's name, for the error message.

    Raises:
        InvalidOption: It is something else.
    """
    if value is None:
        return ()
    policies = (value,) if isinstance(value, RetryPolicy) else value
    if not isinstance(policies, Sequence) or not all(isinstance(policy, RetryPolicy) for policy in policies):
        raise InvalidOption(f"{what} takes a RetryPolicy, a list of them, or None, not {value!r}.")
    return tuple(policies)


def leaves_of(error: BaseException) -> Iterator[BaseException]:
    """Iterate the errors of a group, those of the groups in it included; of any other error: itself."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves_of(inner)
    else:
        yield error


def _named(error: BaseException, classes: tuple[type[BaseException], ...]) -> bool:
    if isinstance(error, TimeLimitExceeded):
        return any(issubclass(item, TimeLimitExceeded) for item in classes)
    return isinstance(error, classes)


def _classes(what: str, given: Classes) -> tuple[type[BaseException], ...]:
    classes = given if isinstance(given, tuple) else (given,)
    for item in classes:
        if not (isinstance(item, type) and issubclass(item, BaseException)):
            raise InvalidOption(f"RetryPolicy({what}=...) takes exception classes, not {item!r}.")
    return classes
