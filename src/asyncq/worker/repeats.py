"""A tick that comes a second time: what a scheduler has sent twice runs once, where that can be known.

A leader that dies makes its successor send the ticks of its last second again, with the same ids. So a worker
remembers which ticks have ended in it, and asks the app's result store, if there is one, for those that ended in other
workers.

Only ends count, and only for the first message of a tick. A copy of it (a retry, a snooze, a hand-back) always runs,
and so does what the broker delivers again, unless its own end is known here. From the store, a redelivery learns of
success and cancellation only: a task that has failed is written down before its error callback is sent, and a worker
that died between the two has left the callback to the next one.

Invariant: no tick is dropped that has not ended; where nothing can be known, it runs.
"""

from __future__ import annotations

from asyncq.broker import Delivery
from asyncq.life import RUNS, life_of
from asyncq.message import ATTEMPT, Message
from asyncq.outcome import Cancelled, Expired, Failed, Outcome, Rejected, Succeeded
from asyncq.recording import Recorder
from asyncq.status import TaskState
from asyncq.ticks import FIRE_TIME, SCHEDULE

__all__ = ["Repeats"]

_REMEMBERED = 10_000
_ENDS = (Succeeded, Failed, Rejected, Cancelled, Expired)
_NOTHING_LEFT_TO_DO = frozenset({TaskState.SUCCEEDED, TaskState.CANCELLED})

_Tick = tuple[str, int]


class Repeats:
    """The ticks that need not run again. Belongs to the worker's loop.

    Args:
        recorder: The app's way to its result store; None where it has none.
        remembered: How many ended ticks are remembered; the oldest are forgotten first.
    """

    def __init__(self, recorder: Recorder | None = None, remembered: int = _REMEMBERED) -> None:
        self._recorder = recorder
        self._remembered = remembered
        self._ended: dict[_Tick, None] = {}

    async def has(self, delivery: Delivery) -> bool:
        """Tell whether this is a tick that has ended already. Raises nothing, and takes a second at most."""
        message = delivery.message
        tick = _tick_of(message)
        if tick is None or message.headers.get(ATTEMPT, 1) != 1 or RUNS in message.headers:
            return False
        if tick in self._ended:
            return True
        status = None if self._recorder is None else await self._recorder.glance(message.task_id)
        if status is None or status.life != life_of(message):
            return False
        return status.state in _NOTHING_LEFT_TO_DO or (status.state.final and not delivery.deliveries)

    def ended(self, message: Message, outcome: Outcome) -> None:
        """Remember a tick whose end is settled.

        Args:
            message: What was delivered.
            outcome: What was settled.
        """
        if not isinstance(outcome, _ENDS) or (tick := _tick_of(message)) is None:
            return
        self._ended.pop(tick, None)
        self._ended[tick] = None
        if len(self._ended) > self._remembered:
            del self._ended[next(iter(self._ended))]


def _tick_of(message: Message) -> _Tick | None:
    """Return which tick this is; None for what is none, and for one that was sent back from the dead letters."""
    headers, life = message.headers, life_of(message)
    return (message.task_id, life) if SCHEDULE in headers and life and headers.get(FIRE_TIME) == life else None
