"""What a worker tells of each delivery that it has settled, to whoever counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from asyncq.life import SENT_AT
from asyncq.message import DUE_AT, LATEST_MS, HeaderValue, Message
from asyncq.outcome import Outcome

__all__ = ["Observer", "Settled", "waited_s_of"]


@dataclass(frozen=True, slots=True)
class Settled:
    """A delivery that was settled.

    Attributes:
        task: The task's name, as the message says it: perhaps no task of this worker.
        queue: Where it came from.
        outcome: What was settled: not always how the attempt ended, because a result can be too large, or the lease
            lost.
        seconds: From the delivery to its ack.
        ran_s: How long the attempt's code ran, in seconds; None where nothing ran.
        waited_s: How long it had waited in its queue, in seconds: since it was sent, or since it was due. None where
            nothing ran, or the message does not tell.
    """

    task: str
    queue: str
    outcome: Outcome
    seconds: float
    ran_s: float | None
    waited_s: float | None


Observer = Callable[[Settled], None]
"""Called in the worker's loop, after the ack. It must take no time."""


def waited_s_of(message: Message, began_ms: int) -> float | None:
    """Return how long a message had waited before it was begun, in seconds; None where it does not tell.

    Two machines' clocks differ: what seems to have been begun before it was sent, or due, has not waited.

    Args:
        message: What was run.
        began_ms: When, in milliseconds since the epoch.
    """
    sent_ms = _moment(message.headers.get(SENT_AT)) or _moment(message.timestamp_ms)
    since_ms = max(_moment(message.headers.get(DUE_AT)), sent_ms)
    return max(0, began_ms - since_ms) / 1000 if since_ms else None


def _moment(value: HeaderValue) -> int:
    is_time = isinstance(value, int) and not isinstance(value, bool) and 0 < value <= LATEST_MS
    return value if is_time else 0
