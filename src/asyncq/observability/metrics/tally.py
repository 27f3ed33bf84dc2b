"""Counting what happens with each message, in plain numbers: these are added to the metrics once a second.

    the event loop, for each message ──▶ Tally, Sums ──once a second, or at a scrape──▶ prometheus_client

A metric of `prometheus_client` takes a lock, and more, for each figure: that alone would cost a worker 5 % of its time.

Invariant: only the event loop counts. What is new is taken by one thread at a time, which may be any: whoever owns the
tallies has a lock for that, and what was taken before is theirs alone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from prometheus_client import Histogram

from asyncq.outcome import Outcome

__all__ = ["SummedHistogram", "Sums", "Tally"]


class SummedHistogram(Histogram):
    """A histogram that also takes many observations at once, which `prometheus_client`'s own cannot."""

    def add(self, counts: Sequence[int], total: float) -> None:
        """Add observations.

        Args:
            counts: How many there were in each bucket; the last one is without an upper bound.
            total: The sum of them.
        """
        self._sum.inc(total)
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)


class Sums:
    """Observations of one time series of a histogram.

    Args:
        bounds: The buckets' upper bounds, but for the last one, which has none.
    """

    __slots__ = ("_bounds", "_counts", "_seen_counts", "_seen_total", "_total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0
        self._seen_counts, self._seen_total = self._counts.copy(), 0.0

    def observe(self, amount: float) -> None:
        """Count one observation."""
        # In this order: whoever takes the count in another thread must find its amount in the total as well.
        self._total += amount
        self._counts[bisect_left(self._bounds, amount)] += 1

    def new(self) -> tuple[list[int], float] | None:
        """Return what has come since the last time, for a `SummedHistogram`; None where nothing has."""
        counts, total = self._counts.copy(), self._total
        if counts == self._seen_counts:
            return None
        new = [count - seen for count, seen in zip(counts, self._seen_counts, strict=True)], total - self._seen_total
        self._seen_counts, self._seen_total = counts, total
        return new


class Tally:
    """What was counted of one task of one queue.

    Args:
        queue: The queue.
        task: The task, as the label tells it.
        kinds: How a delivery can end.
        runs: How long attempts ran, in seconds.
        waits: How long what was run had waited, in seconds; one for all tasks of the queue.
    """

    __slots__ = ("_seen", "outcomes", "queue", "runs", "task", "waits")

    def __init__(self, queue: str, task: str, kinds: Sequence[type[Outcome]], runs: Sums, waits: Sums) -> None:
        self.queue = queue
        self.task = task
        # Every kind from the start: who reads in another thread must not meet a dictionary that grows.
        self.outcomes = dict.fromkeys(kinds, 0)
        self.runs = runs
        self.waits = waits
        self._seen = self.outcomes.copy()

    def new_outcomes(self) -> list[tuple[type[Outcome], int]]:
        """Return how many deliveries have ended how since the last time."""
        now = self.outcomes.copy()
        found = [(kind, count - self._seen[kind]) for kind, count in now.items() if count != self._seen[kind]]
        self._seen = now
        return found
