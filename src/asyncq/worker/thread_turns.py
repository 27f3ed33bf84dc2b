"""Turns of the event loop between busy threads.

Python lets a thread that computes go on for 5 ms before another one gets its turn. With 50 such threads the event loop
waits a quarter of a second for each of its turns, and much longer on a machine that has other work; then heartbeats are
late, and the broker takes everything back that runs. So with many threads busy the turns become shorter: all of them
together take about as long as ten of them did. It costs threads that compute some of their speed (half of it was
measured with 50 of them); those that wait for something notice nothing, and what computes belongs into a process.

Invariant: while no pool has many busy threads, the interval is what the program has set.
"""

from __future__ import annotations

import sys
import threading

__all__ = ["take_turns"]

_ROUND_S = 0.05

_lock = threading.Lock()
_busy = 0
_usual_s: float | None = None


def take_turns(more: int) -> None:
    """Count threads that begin to run a task, or end.

    Args:
        more: How many more there are; less than 0 for those that end.
    """
    global _busy, _usual_s  # noqa: PLW0603 - the interval belongs to the whole process
    with _lock:
        _busy += more
        usual_s = _usual_s if _usual_s is not None else sys.getswitchinterval()
        wanted_s = _ROUND_S / _busy if _busy else usual_s
        if wanted_s < usual_s:
            _usual_s = usual_s
            sys.setswitchinterval(wanted_s)
        elif _usual_s is not None:
            sys.setswitchinterval(usual_s)
            _usual_s = None
