"""`max_concurrency`: so many attempts of a task run in a worker at once.

    a place is free ──▶ run
    all are held, fewer than that wait already ──▶ wait in the slot, so that the next one is there when a place is free
    enough wait already, or the patience is over ──▶ back to the broker, delayed to its probable turn

A slot that waits works on nothing else, so only a few wait; and what is delayed must neither come back again and again
nor leave the places empty. So a worker reckons when the turn of each will be: from how long the task takes here, and
how many are on their way before it. While nothing has ended yet, those that run tell that it takes at least as long as
they have taken, so the delays of what comes back grow with it. A reckoning that was wrong costs one more delay, of no
attempt.

Invariant: a place is held until the code has really ended, so never more than `max_concurrency` run, given-up threads
included.
"""

from __future__ import annotations

import heapq
import random

from asyncq.clock import Clock
from asyncq.worker.places import Places

__all__ = ["Concurrency", "Queue", "turn_s"]

SOONEST_S, LATEST_S = 1.0, 300.0
_FIRST_GUESS_S = 0.2
_WEIGHT = 0.2


class Concurrency:
    """The concurrency limits of a worker's tasks.

    Args:
        clock: For how long attempts take.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._queues: dict[str, Queue] = {}

    def of(self, task: str, limit: int) -> Queue:
        """Return the queue before the places of a task."""
        queue = self._queues.get(task)
        if queue is None:
            queue = self._queues[task] = Queue(limit, self._clock)
        return queue

    def refuse(self) -> None:
        """Let nobody wait any more: the worker stops."""
        for queue in self._queues.values():
            queue.places.refuse()


class Queue:
    """Who waits for the places of one task.

    Args:
        limit: How many places there are.
        clock: For how long attempts take.

    Attributes:
        places: The places.
    """

    def __init__(self, limit: int, clock: Clock) -> None:
        self.places = Places(limit)
        self._clock = clock
        self._mean_s = _FIRST_GUESS_S
        self._running: dict[object, float] = {}
        self._away: list[float] = []  # when those that were delayed come back; a heap

    @property
    def is_full(self) -> bool:
        """Whether enough wait for a place already."""
        return self.places.waiting >= self.places.total

    def began(self, attempt: object) -> None:
        """Note that an attempt runs in a place that was taken."""
        self._running[attempt] = self._clock.monotonic()

    def ended(self, attempt: object) -> None:
        """Free its place, and learn how long it has held it."""
        seconds = self._clock.monotonic() - self._running.pop(attempt)
        self._mean_s += _WEIGHT * (seconds - self._mean_s)
        self.places.free()

    def delay_s(self) -> float:
        """Return how far away the turn of one more is, in seconds, and count it as on its way."""
        now_s = self._clock.monotonic()
        while self._away and self._away[0] <= now_s:
            heapq.heappop(self._away)
        ages = [now_s - began_s for began_s in self._running.values()]
        takes_s = max(self._mean_s, sum(ages) / len(ages)) if ages else self._mean_s
        before = self.places.waiting + len(self._away) + 1
        delay_s = turn_s(takes_s * before / self.places.total, random.random())  # noqa: S311 - no secret
        heapq.heappush(self._away, now_s + delay_s)
        return delay_s


def turn_s(seconds: float, draw: float) -> float:
    """Return a delay up to a turn, within bounds, and a little spread, so that those at a bound do not come together.

    Args:
        seconds: How far away the turn is.
        draw: A random number from 0 to 1.
    """
    return min(max(seconds, SOONEST_S), LATEST_S) * (1 + 0.2 * draw)
