"""A circuit breaker: after so many failures one after the other, calls are not made for a while.

    closed ──── so many failures in a row ────▶ open ──── its time is over, and somebody asks ────▶ half-open
       ▲                                          ▲                                                 │       │
       │                                          └──────────────── the probe fails ────────────────┘       │
       └───────────────────────────────────── the probe succeeds ───────────────────────────────────────────┘

Half-open lets one call through, the probe. Calls that began before the breaker changed its state say nothing about
now, so their ends are not counted: each call has a permit with the number of the era in which it began.

Pure: the clock is passed in. It belongs to one event loop of one process; other processes learn by themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

PROBE_PATIENCE_S = 1.0


class CircuitOpen(Exception):
    """The call is not to be made now.

    Attributes:
        wait_s: When to ask again, in seconds.
    """

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"open for another {wait_s:.1f} s")
        self.wait_s = wait_s


class State(StrEnum):
    """What the breaker does with a call: makes it, refuses it, or waits for the end of a probe."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class CircuitBreaker:
    """The breaker of one called service.

    Each call asks `admit()` and tells its end by one of `succeeded`, `failed` and `dropped`.

    Args:
        failures: So many in a row open it.
        open_s: How long it stays open before a probe, in seconds.
        clock: Returns seconds, and never goes back: `time.monotonic`.

    Attributes:
        state: What it does with calls.
    """

    def __init__(self, *, failures: int, open_s: float, clock: Callable[[], float]) -> None:
        self.state = State.CLOSED
        self._limit = failures
        self._open_s = open_s
        self._clock = clock
        self._failures = 0
        self._open_until = 0.0
        self._era = 0

    def admit(self) -> int:
        """Return the permit for a call, to be handed back with its end.

        Raises:
            CircuitOpen: Not now.
        """
        if self.state is State.HALF_OPEN:
            raise CircuitOpen(min(PROBE_PATIENCE_S, self._open_s))  # nobody knows how long the probe takes
        if self.state is State.OPEN:
            left_s = self._open_until - self._clock()
            if left_s > 0:
                raise CircuitOpen(left_s)
            self._change(State.HALF_OPEN)
        return self._era

    def succeeded(self, permit: int) -> bool:
        """Note that a call went well. Returns whether that has closed the breaker."""
        if permit != self._era:
            return False
        self._failures = 0
        if self.state is State.CLOSED:
            return False
        self._change(State.CLOSED)
        return True

    def failed(self, permit: int) -> bool:
        """Note that a call failed. Returns whether that has opened the breaker."""
        if permit != self._era:
            return False
        self._failures += 1
        if self.state is State.CLOSED and self._failures < self._limit:
            return False
        self._open_until = self._clock() + self._open_s
        self._change(State.OPEN)
        return True

    def dropped(self, permit: int) -> None:
        """Note that a call ended without saying anything about the service: it was cancelled, for example.

        The next one may be the probe in its place, at once.
        """
        if permit == self._era and self.state is State.HALF_OPEN:
            self._change(State.OPEN)

    def _change(self, state: State) -> None:
        self.state = state
        self._era += 1
