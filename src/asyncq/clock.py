"""Time behind one small seam, so that tests can move it.

Invariant: nothing outside this module reads the system's clocks to decide when work happens.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

__all__ = ["Clock", "SystemClock", "Timer"]


class Timer(Protocol):
    """A callback that waits for its time."""

    def cancel(self) -> None:
        """Call it no more. Nothing happens where it was called already."""
        ...


class Clock(Protocol):
    """Where the time comes from."""

    def now_ms(self) -> int:
        """Return the wall-clock time in milliseconds since the epoch."""
        ...

    def monotonic(self) -> float:
        """Return seconds on a clock that never goes back. Only differences mean something."""
        ...

    def call_later(self, seconds: float, callback: Callable[..., object], *args: object) -> Timer:
        """Call back on the running event loop after so many seconds of this clock."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now_ms(self) -> int:
        """Return the wall-clock time in milliseconds since the epoch."""
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        """Return seconds on a clock that never goes back."""
        return time.monotonic()

    def call_later(self, seconds: float, callback: Callable[..., object], *args: object) -> Timer:
        """Call back on the running event loop after so many seconds."""
        return asyncio.get_running_loop().call_later(seconds, callback, *args)
