"""A clock for tests: it stands still until it is moved.

    clock.move(60)              a minute passes: each timer is called at its own time, in their order
    await clock.advance(60)     the same, and between two timers the app does all that it can
    with clock.jumping(): ...   inside, a harness lets time jump to the next timer whenever the app is idle

Time is counted in whole nanoseconds, so that ten moves of 0.1 s are a second.

Invariant: time only goes forward, and when a timer is called, the clock shows the timer's own time.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
import math
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta

__all__ = ["ManualClock"]

_START = datetime(2030, 1, 1, tzinfo=UTC)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

_SLACK_NS = 1000
"""How much later than the end of a move a timer may be and is still called by it.

Who adds and subtracts seconds as floats is sometimes off by the last bit, finds a timer a trifle too early, and waits
for the rest. Below a microsecond, that is nothing that `now()` shows, and the next move does not count it.
"""

_TURNS = 10  # of the event loop, where no harness can tell when all is done


class _ManualTimer:
    """A callback with its time; see `asyncq.clock.Timer`."""

    __slots__ = ("_call", "_context", "_loop", "_on_cancel", "due_ns", "is_waiting")

    def __init__(self, due_ns: int, call: Callable[[], object], on_cancel: Callable[[], None]) -> None:
        self.due_ns = due_ns
        self.is_waiting = True
        self._call = call
        self._on_cancel = on_cancel
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()

    @property
    def is_dead(self) -> bool:
        """Whether it can be forgotten: cancelled, or its event loop has ended."""
        return not self.is_waiting or self._loop.is_closed()

    def cancel(self) -> None:
        """Call it no more."""
        if self.is_waiting:
            self.is_waiting = False
            self._on_cancel()

    def fire(self) -> None:
        """Call back: at once where its event loop is the running one, else soon."""
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            here = False
        if here:
            self._run()
            return
        with suppress(RuntimeError):  # its loop was closed this moment
            self._loop.call_soon_threadsafe(self._run)

    def _run(self) -> None:
        if self.is_waiting:
            self.is_waiting = False
            self._context.run(self._call)


class ManualClock:
    """A clock that stands still until it is moved; see `asyncq.clock.Clock`. It may be used from any thread.

    Args:
        start: What it shows at first; with a time zone.

    Attributes:
        settle: Waits until the app is idle; `advance` awaits it between timers. A harness sets it.

    Raises:
        ValueError: `start` has no time zone.
    """

    def __init__(self, start: datetime = _START) -> None:
        if start.tzinfo is None:
            raise ValueError(f"The start {start} has no time zone. Write datetime(..., tzinfo=UTC).")
        self.settle: Callable[[], Awaitable[None]] | None = None
        self._start_ns = (start - _EPOCH) // _MICROSECOND * 1000
        self._ns = 0
        self._timers: list[tuple[int, int, _ManualTimer]] = []
        self._numbers = itertools.count()
        self._cancelled = 0
        self._jumping = 0
        self._jump_listeners: list[Callable[[], object]] = []
        self._lock = threading.RLock()

    # --- what it shows

    def now(self) -> datetime:
        """Return the time it shows, in UTC."""
        return _EPOCH + (self._start_ns + self._ns) // 1000 * _MICROSECOND

    def now_ms(self) -> int:
        """Return the time it shows in milliseconds since the epoch."""
        return (self._start_ns + self._ns) // 1_000_000

    def monotonic(self) -> float:
        """Return by how many seconds it was moved so far."""
        return self._ns / 1_000_000_000

    @property
    def next_due_s(self) -> float | None:
        """In how many seconds the next timer is due; None where none waits."""
        with self._lock:
            timer = self._first()
            return None if timer is None else max(0, timer.due_ns - self._ns) / 1_000_000_000

    # --- timers

    def call_later(self, seconds: float, callback: Callable[..., object], *args: object) -> _ManualTimer:
        """Call back on the running event loop when the clock was moved by so many seconds; soon, where it is 0."""
        # However short, a time that is not over needs a move: else a timer that finds itself too early and waits for
        # the rest would be called again and again.
        ns = 0 if seconds <= 0 else max(1, round(seconds * 1_000_000_000))
        with self._lock:
            timer = _ManualTimer(self._ns + ns, lambda: callback(*args), self._forget_cancelled)
            if ns:
                heapq.heappush(self._timers, (timer.due_ns, next(self._numbers), timer))
        if not ns:
            asyncio.get_running_loop().call_soon(timer.fire)
        return timer

    # --- moving

    def move(self, time: float | timedelta) -> None:
        """Let time pass: call each timer that becomes due, at its own time, in their order, new ones included.

        What the callbacks start has no chance to run meanwhile: `advance` gives it one.

        Args:
            time: How long, in seconds.

        Raises:
            ValueError: It is negative, or no number.
        """
        target = self._target(time)
        while self._fire_next(target):
            pass
        self._reach(target)

    async def advance(self, time: float | timedelta) -> None:
        """Let time pass as `move` does, and before and after each timer let the app do all that it can.

        Args:
            time: How long, in seconds.

        Raises:
            ValueError: It is negative, or no number.
        """
        target = self._target(time)
        await self._settle()
        while self._fire_next(target):
            await self._settle()
        self._reach(target)

    def jump(self) -> bool:
        """Move to the time of the next timer and call it, with all of the same time.

        Returns:
            Whether there was one.
        """
        return self._fire_next(None)

    # --- jumping

    @property
    def is_jumping(self) -> bool:
        """Whether time is to jump to the next timer whenever the app is idle."""
        return self._jumping > 0

    @contextmanager
    def jumping(self) -> Iterator[None]:
        """Within the block, let time jump to the next timer whenever the app is idle. A harness does the jumping."""
        self._jumping += 1
        try:
            for listener in tuple(self._jump_listeners):
                listener()
            yield
        finally:
            self._jumping -= 1

    def on_jumping(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Call back whenever jumping begins.

        Returns:
            A function that ends this.
        """
        self._jump_listeners.append(callback)

        def stop() -> None:
            with suppress(ValueError):
                self._jump_listeners.remove(callback)

        return stop

    # --- inside

    def _target(self, time: float | timedelta) -> int:
        seconds = time.total_seconds() if isinstance(time, timedelta) else time
        if seconds < 0:
            raise ValueError(f"Time only goes forward: the clock cannot be moved by {seconds:g} seconds.")
        if not math.isfinite(seconds):
            raise ValueError(f"The clock cannot be moved by {seconds} seconds. Move it by a number of seconds.")
        return self._ns // 1000 * 1000 + round(seconds * 1_000_000_000)

    def _first(self) -> _ManualTimer | None:
        while self._timers:
            timer = self._timers[0][2]
            if not timer.is_dead:
                return timer
            heapq.heappop(self._timers)
            self._cancelled = max(0, self._cancelled - 1)
        return None

    def _forget_cancelled(self) -> None:
        """Let go of the cancelled timers when they are the most part: short attempts leave one each."""
        with self._lock:
            self._cancelled += 1
            if self._cancelled * 2 > len(self._timers):
                self._timers = [entry for entry in self._timers if not entry[2].is_dead]
                heapq.heapify(self._timers)
                self._cancelled = 0

    def _fire_next(self, target: int | None) -> bool:
        """Move to the next timer up to this time, and call all of its time. Return whether there was one."""
        with self._lock:
            first = self._first()
            if first is None or (target is not None and first.due_ns > target + _SLACK_NS):
                return False
            self._reach(first.due_ns)
        while (timer := self._pop(first.due_ns)) is not None:
            timer.fire()
        return True

    def _pop(self, due_ns: int) -> _ManualTimer | None:
        with self._lock:
            timer = self._first()
            if timer is None or timer.due_ns > due_ns:
                return None
            heapq.heappop(self._timers)
            return timer

    def _reach(self, ns: int) -> None:
        with self._lock:
            self._ns = max(self._ns, ns)

    async def _settle(self) -> None:
        if self.settle is not None:
            await self.settle()
            return
        for _ in range(_TURNS):
            await asyncio.sleep(0)
