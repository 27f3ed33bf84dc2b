"""What an app tells of each task that it sends, to whoever counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from asyncq.errors import MessageTooLarge, NotSent, PublishUncertain, Refused, Unroutable

__all__ = ["SendObserver", "SendOutcome", "Sent", "outcome_of"]

SendOutcome = Literal["confirmed", "unroutable", "refused", "too_large", "not_sent", "uncertain", "error"]

_OUTCOMES: tuple[tuple[type[Exception], SendOutcome], ...] = (
    (Unroutable, "unroutable"),
    (MessageTooLarge, "too_large"),
    (Refused, "refused"),
    (NotSent, "not_sent"),
    (PublishUncertain, "uncertain"),
)


@dataclass(frozen=True, slots=True)
class Sent:
    """A task that was sent, or was to be.

    Attributes:
        task: Its name.
        queue: Where it was sent.
        outcome: How the broker answered: `confirmed`, or the error that the sender got.
    """

    task: str
    queue: str
    outcome: SendOutcome


SendObserver = Callable[[Sent], None]
"""Called in the sender's loop, after the broker's answer. It must take no time, and raise nothing."""


def outcome_of(error: Exception | None) -> SendOutcome:
    """Return what an error of a publish says in a word."""
    if error is None:
        return "confirmed"
    return next((word for kind, word in _OUTCOMES if isinstance(error, kind)), "error")
