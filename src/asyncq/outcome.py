"""How an attempt can end: a closed set of values. Settlement is one `match` over it.

Execution produces an `Outcome`; it never acknowledges, and settlement never runs user code.
"""

from __future__ import annotations

import traceback as traceback_module
from dataclasses import dataclass

from asyncq.message import cut_text

__all__ = [
    "Cancelled",
    "Deferred",
    "Drained",
    "Expired",
    "Failed",
    "Failure",
    "LostLease",
    "Outcome",
    "Postponed",
    "Rejected",
    "Repeated",
    "RetryLater",
    "Snoozed",
    "Staged",
    "Succeeded",
    "Throttled",
]

REMOTE_TRACEBACK = "__asyncq_traceback__"
"""The attribute of an exception that was raised in another process, and has its traceback as text."""

_QUOTING = {"pydantic_core._pydantic_core.ValidationError", "asyncq.errors.ResultNotSerialisable"}
_MESSAGE_BYTES = 4 * 1024
_TRACEBACK_BYTES = 8 * 1024


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as it is recorded: what travels in dead letters and replies.

    Attributes:
        type: The exception's class, with its module.
        message: The exception's text.
        traceback: The traceback as text, cut to 8 KB.
    """

    type: str
    message: str
    traceback: str = ""

    @property
    def quotes_arguments(self) -> bool:
        """Whether its text quotes arguments or results of the task, which belong into no log and no trace."""
        return self.type in _QUOTING

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Return the record of an exception."""
        kind = type(error)
        try:
            text = str(error)
        except BaseException as broken:  # noqa: BLE001 - the user's own __str__ may raise anything
            text = f"<{kind.__qualname__}.__str__ raised {type(broken).__qualname__}>"
        trace = getattr(error, REMOTE_TRACEBACK, None) or "".join(traceback_module.format_exception(error))
        return cls(
            type=f"{kind.__module__}.{kind.__qualname__}",
            message=cut_text(text, _MESSAGE_BYTES),
            traceback=cut_text(trace, _TRACEBACK_BYTES),
        )


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The task returned. `result` is its value as JSON."""

    result: bytes


@dataclass(frozen=True, slots=True)
class RetryLater:
    """The attempt failed and another follows.

    Attributes:
        failure: What went wrong this time.
        delay_s: Seconds until the next attempt.
        at_most_s: How far the delay may be rounded up, in seconds; None where it is exact.
        first_ms: When the first attempt that failed began, in milliseconds since the epoch; None where it is unknown.
    """

    failure: Failure
    delay_s: float
    at_most_s: float | None
    first_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Snoozed:
    """The task asked to run again after `delay_s` seconds. No attempt is counted."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class Postponed:
    """There was no place for the task in this worker: it was not run, and comes again after `delay_s` seconds."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class Deferred:
    """The task's name is unknown here, and perhaps not for long: a rolling deploy sends new names to old workers.

    Attributes:
        since_ms: When a worker first met the message, in milliseconds since the epoch.
        delay_s: Seconds until it is looked at again.
    """

    since_ms: int
    delay_s: float


@dataclass(frozen=True, slots=True)
class Staged:
    """A long delay is not over yet: the message goes on to its next leg. It was not run, and no attempt is counted.

    Attributes:
        until_ms: When the task is due, in milliseconds since the epoch.
        delay_s: Seconds until then.
    """

    until_ms: int
    delay_s: float


@dataclass(frozen=True, slots=True)
class Throttled:
    """The task is over its rate here: the message waits for its turn. It was not run, and no attempt is counted.

    Attributes:
        until_ms: When its turn is, in milliseconds since the epoch.
        delay_s: Seconds until then.
    """

    until_ms: int
    delay_s: float


@dataclass(frozen=True, slots=True)
class Failed:
    """The task has finally failed: `reason` says why no other attempt follows."""

    failure: Failure
    reason: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """The message was not run, or the task rejected it."""

    failure: Failure
    reason: str


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Somebody asked for the task not to run, or to stop.

    Attributes:
        attempts: How many have begun; None for the number of the present one, which has.
    """

    attempts: int | None = None


@dataclass(frozen=True, slots=True)
class Expired:
    """The task's time is over, or would be before its next attempt: it does not run any more.

    Attributes:
        expires_ms: From when on it must not begin, in milliseconds since the epoch.
        met_ms: When a worker saw that, by its own clock, in milliseconds since the epoch.
        failure: What went wrong in the last attempt; None where none has failed.
        attempts: How many have run.
    """

    expires_ms: int
    met_ms: int
    failure: Failure | None = None
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class Drained:
    """The worker stops, and the attempt was interrupted. The same attempt runs again elsewhere."""


@dataclass(frozen=True, slots=True)
class LostLease:
    """The broker took the delivery back while it ran. It is, or will be, somebody else's."""


@dataclass(frozen=True, slots=True)
class Repeated:
    """A tick of a schedule came a second time, after its end: it was not run again, and nobody waits for it."""


Outcome = (
    Succeeded
    | RetryLater
    | Snoozed
    | Postponed
    | Deferred
    | Staged
    | Throttled
    | Failed
    | Rejected
    | Cancelled
    | Expired
    | Drained
    | LostLease
    | Repeated
)
