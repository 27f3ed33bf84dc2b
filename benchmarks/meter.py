"""Counts what a worker process handles, and tells its rate from inside.

The first part of the messages is not timed: the process is still starting its consumers then.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from pathlib import Path

__all__ = ["Meter", "SharedMeter", "metered"]

_COUNT = "BENCH_COUNT"
_WARM_UP = "BENCH_WARM_UP"


def metered(count: int, warm_up: int) -> dict[str, str]:
    """Return the variables that tell a worker's meter how many messages there are, and how many are not timed."""
    return {_COUNT: str(count), _WARM_UP: str(warm_up)}


def _expected() -> tuple[int, int]:
    return int(os.environ.get(_COUNT, "0")), int(os.environ.get(_WARM_UP, "0"))


class Meter:
    """Prints one JSON line, `{"count": ..., "seconds": ..., "cpu_s": ...}`, when all messages were handled.

    It is told how many there are, and how many of them are not timed, by the environment.
    """

    def __init__(self) -> None:
        self._total, self._warm_up = _expected()
        self._count = 0
        self._started = self._cpu = 0.0

    def tick(self) -> None:
        """Count one message."""
        self._count += 1
        if self._count == self._warm_up:
            self._started, self._cpu = time.perf_counter(), time.process_time()
        elif self._count == self._total:
            _tell(self._total - self._warm_up, time.perf_counter() - self._started, time.process_time() - self._cpu)


class SharedMeter:
    """The same for a worker of several threads, or of processes that were forked from the one that makes this."""

    def __init__(self) -> None:
        self._total, self._warm_up = _expected()
        self._main = os.getpid()
        self._count = multiprocessing.Value("q", 0)
        self._started = multiprocessing.Array("d", 2)

    def tick(self) -> None:
        """Count one message."""
        with self._count.get_lock():
            self._count.value += 1
            count = self._count.value
            if count == self._warm_up:
                self._started[:] = time.monotonic(), _family_cpu_s(self._main)
            elif count == self._total:
                started, cpu_s = self._started
                _tell(count - self._warm_up, time.monotonic() - started, _family_cpu_s(self._main) - cpu_s)


def _tell(count: int, seconds: float, cpu_s: float) -> None:
    print(json.dumps({"count": count, "seconds": seconds, "cpu_s": cpu_s}), flush=True)


def _family_cpu_s(pid: int) -> float:
    """Return the CPU time of a process and its children."""
    family = [str(pid), *Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    # The name of the program, in parentheses, may have spaces; the 12th and 13th field after it are the times.
    fields = [Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split() for each in family]
    return sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")
