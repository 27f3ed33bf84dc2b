"""What is kept of a task in the result store, and for how long: as options, and as headers of a message.

What a send says travels with its message and wins over what the task's declaration says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from asyncq.errors import InvalidOption, MalformedMessage
from asyncq.message import HeaderValue, Message
from asyncq.signals import seconds_of

__all__ = [
    "KEEP",
    "KEEP_EVERYTHING",
    "RESULT_TTL",
    "Keep",
    "Keeping",
    "keeping_of",
    "keeping_of_options",
    "keeping_or_default",
]

Keep = Literal["result", "errors", "nothing"]
"""`result`: every state, progress, and the result or the error. `errors`: only how a task ended that did not succeed.
`nothing`: the store never hears of the task."""

KEEP = "asyncq-keep"
RESULT_TTL = "asyncq-result-ttl"

_LONGEST_TTL_S = 100 * 365 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Keeping:
    """What is kept, and for how long.

    Attributes:
        keep: What; None where nothing was said.
        ttl_s: For how long after the task's end, in seconds; None for the store's own time.
    """

    keep: Keep | None = None
    ttl_s: float | None = None

    def over(self, other: Keeping) -> Keeping:
        """Return this, and where it says nothing, what the other one says."""
        return Keeping(self.keep or other.keep, other.ttl_s if self.ttl_s is None else self.ttl_s)

    @property
    def states(self) -> bool:
        """Whether every state is kept."""
        return self.keep in {None, "result"}

    @property
    def failures(self) -> bool:
        """Whether it is kept how a task ended that did not succeed."""
        return self.keep != "nothing"

    def headers(self) -> dict[str, HeaderValue]:
        """Return what tells a worker of it."""
        headers: dict[str, HeaderValue] = {}
        if self.keep is not None:
            headers[KEEP] = self.keep
        if self.ttl_s is not None:
            headers[RESULT_TTL] = round(self.ttl_s * 1000)
        return headers


KEEP_EVERYTHING: Final = Keeping()


def keeping_of(message: Message) -> Keeping:
    """Return what a message says.

    Raises:
        MalformedMessage: A header says something else.
    """
    keep, ttl_ms = message.headers.get(KEEP), message.headers.get(RESULT_TTL)
    if keep is None and ttl_ms is None:
        return KEEP_EVERYTHING
    if keep is not None and keep not in get_args(Keep):
        raise MalformedMessage(
            f"Header {KEEP} of task {message.task_id} must be one of {', '.join(get_args(Keep))}, not {keep!r}."
        )
    if ttl_ms is not None and (isinstance(ttl_ms, bool) or not isinstance(ttl_ms, int) or ttl_ms < 1):
        raise MalformedMessage(
            f"Header {RESULT_TTL} of task {message.task_id} must be a number of milliseconds, not {ttl_ms!r}."
        )
    return Keeping(keep, None if ttl_ms is None else min(ttl_ms / 1000, _LONGEST_TTL_S))


def keeping_or_default(message: Message, default: Keeping = KEEP_EVERYTHING) -> Keeping:
    """Return what a message says, and where it says nothing, or what cannot be read, the default."""
    try:
        said = keeping_of(message)
    except MalformedMessage:  # it ends as such; that much is kept
        return default
    return default if said is KEEP_EVERYTHING else said.over(default)


def keeping_of_options(keep: Any, result_ttl: Any, where: str) -> Keeping:
    """Return the checked options.

    Args:
        keep: What was given as `keep=`.
        result_ttl: What was given as `result_ttl=`.
        where: Whose options these are, for messages: `@task`.

    Raises:
        InvalidOption: A value cannot be used.
    """
    if keep is not None and keep not in get_args(Keep):
        raise InvalidOption(f"{where}(keep=...) takes one of {', '.join(map(repr, get_args(Keep)))}, not {keep!r}.")
    if result_ttl is None:
        return Keeping(keep)
    ttl_s = seconds_of(result_ttl, f"{where}(result_ttl=...)")
    if not 0.001 <= ttl_s <= _LONGEST_TTL_S:
        raise InvalidOption(
            f"{where}(result_ttl=...) takes how long the result is kept after the task's end, from a millisecond to "
            f"100 years, not {result_ttl!r}. To keep nothing, say keep='nothing'."
        )
    return Keeping(keep, ttl_s)
