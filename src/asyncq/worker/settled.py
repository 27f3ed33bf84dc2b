"""What a worker tells of each delivery that it has settled, to whoever counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from asyncq.outcome import Outcome

__all__ = ["Observer", "Settled"]


class Settled(NamedTuple):
    """A delivery that was settled. One is made for each message, which a tuple is fastest at.

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
