"""Counts what a worker process handles, and tells its rate from inside.

The first part of the messages is not timed: the process is still starting its consumers then.
"""

from __future__ import annotations

import json
import os
import time

__all__ = ["Meter", "metered"]

_COUNT = "BENCH_COUNT"
_WARM_UP = "BENCH_WARM_UP"


def metered(count: int, warm_up: int) -> dict[str, str]:
    """Return the variables that tell a worker's meter how many messages there are, and how many are not timed."""
    return {_COUNT: str(count), _WARM_UP: str(warm_up)}


class Meter:
    """Prints one JSON line, `{"count": ..., "seconds": ..., "cpu_s": ...}`, when all messages were handled.

    It is told how many there are, and how many of them are not timed, by the environment.
    """

    def __init__(self) -> None:
        self._total = int(os.environ.get(_COUNT, "0"))
        self._warm_up = int(os.environ.get(_WARM_UP, "0"))
        self._count = 0
        self._started = self._cpu = 0.0

    def tick(self) -> None:
        """Count one message."""
        self._count += 1
        if self._count == self._warm_up:
            self._started, self._cpu = time.perf_counter(), time.process_time()
        elif self._count == self._total:
            seconds, cpu_s = time.perf_counter() - self._started, time.process_time() - self._cpu
            print(json.dumps({"count": self._total - self._warm_up, "seconds": seconds, "cpu_s": cpu_s}), flush=True)
