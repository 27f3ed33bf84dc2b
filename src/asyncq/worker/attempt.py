"""One attempt while it runs: its lease, its limit, its end.

    running ──the code ends──▶ Returned, Raised
       │
       ├──limit, drain, cancel──▶ interrupted once ──grace──▶ Overdue: the code goes on, and nobody waits for it
       │
       └──lease lost──▶ LeaseGone for its slot, which goes on to other work. The attempt runs on as an orphan:
                        a redelivery adopts it (a new lease, not a second run), or its outcome is dropped

Invariant: one slot at most waits for an attempt, and it is told exactly one ending.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from asyncq.broker import Delivery
from asyncq.clock import Clock
from asyncq.context import TaskContext
from asyncq.message import first_at_ms_of
from asyncq.outcome import Outcome
from asyncq.task import Task
from asyncq.worker.recording import AttemptRecord

if TYPE_CHECKING:
    from asyncq.tracing.spans import AttemptSpan

__all__ = [
    "GRACE_S",
    "AnyTask",
    "Attempt",
    "Decided",
    "Ending",
    "Interruption",
    "LeaseGone",
    "Limits",
    "Overdue",
    "Raised",
    "Returned",
]

AnyTask = Task[..., Any]

GRACE_S = 2.0
"""How long interrupted code may take for its `finally` blocks before it is given up."""

_LEASE_WATCH_AFTER_S = 1.0  # short attempts pay nothing for it: they notice a lost lease when they ack

Interruption = Literal["limit", "drain", "lease", "cancel"]


@dataclass(frozen=True, slots=True)
class Limits:
    """How long an attempt may take.

    Attributes:
        clock: What the times go by.
        limit_s: Until it is interrupted.
        grace_s: How long it may go on after that, until it is given up.
        soft_limit_s: Until it is asked to come to an end by itself; None for never.
        by_deadline: Whether `limit_s` ends at the deadline of its send.
    """

    clock: Clock
    limit_s: float
    grace_s: float = GRACE_S
    soft_limit_s: float | None = None
    by_deadline: bool = False


@dataclass(frozen=True, slots=True)
class Returned:
    """The code returned."""

    value: Any


@dataclass(frozen=True, slots=True)
class Raised:
    """The code raised; whatever it was, it is only a value here."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class Decided:
    """The code ended, and the middleware around it has said how."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Overdue:
    """The code was told to stop and goes on after its grace."""


@dataclass(frozen=True, slots=True)
class LeaseGone:
    """The broker took the delivery back; the code goes on."""


Ending = Returned | Raised | Decided | Overdue | LeaseGone


class Attempt:
    """One run of a task's code for one delivery.

    Args:
        delivery: The lease. A redelivery may take its place.
        task: What runs.
        number: 1 for the first attempt.
        context: What the code sees of it.
        limits: How long it may take.

    Attributes:
        began_ms: When it began, in milliseconds since the epoch.
        code: The asyncio task that runs the code, or the middleware around it; None for a thread.
        inner_end: Where the end of the code goes while a middleware waits for it; None where it is the attempt's end.
        interrupted: Why it was told to stop, if it was: the first reason.
        given_up_for: Why its grace has begun, if it has: the reason that it is given up for where it goes on.
        finished: Whether the code has come to an end.
        orphaned: Whether its lease is lost.
        on_orphaned: Called when the lease is lost.
        on_late_end: Called when the code ends and no slot waits for it any more.
        on_code_end: Called when the code ends, however late.
        on_interrupt: Stops code that is no asyncio task.
        on_soft_limit: Raises `SoftTimeLimit` in the code, where that can be done.
        record: What is noted of it in the result store; None for nothing.
        span: What traces tell of it; None for nothing.
    """

    __slots__ = (
        "_clock",
        "_ending",
        "_lease_watch",
        "_loop",
        "_return_waiter",
        "_soft_timer",
        "_started",
        "_timer",
        "_waiter",
        "began_ms",
        "code",
        "context",
        "delivery",
        "finished",
        "given_up_for",
        "inner_end",
        "interrupted",
        "limits",
        "number",
        "on_code_end",
        "on_interrupt",
        "on_late_end",
        "on_orphaned",
        "on_soft_limit",
        "orphaned",
        "record",
        "span",
        "task",
    )

    def __init__(self, delivery: Delivery, task: AnyTask, number: int, context: TaskContext, limits: Limits) -> None:
        self.delivery = delivery
        self.task = task
        self.number = number
        self.context = context
        self.limits = limits
        self.code: asyncio.Task[None] | None = None
        self.inner_end: asyncio.Future[Returned | Raised] | None = None
        self.interrupted: Interruption | None = None
        self.given_up_for: Interruption | None = None
        self.finished = False
        self.orphaned = False
        self.on_orphaned: Callable[[Attempt], None] | None = None
        self.on_late_end: Callable[[Attempt], None] | None = None
        self.on_code_end: Callable[[], None] | None = None
        self.on_interrupt: Callable[[], None] | None = None
        self.on_soft_limit: Callable[[], None] | None = None
        self.record: AttemptRecord | None = None
        self.span: AttemptSpan | None = None
        self._ending: Ending | None = None
        self._waiter: asyncio.Future[Ending] | None = None
        self._return_waiter: asyncio.Future[None] | None = None
        self._lease_watch: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._clock = clock = limits.clock
        self._started = clock.monotonic()
        self.began_ms = clock.now_ms()
        self._timer = clock.call_later(min(limits.limit_s, _LEASE_WATCH_AFTER_S), self._look)
        soft_s = limits.soft_limit_s
        self._soft_timer = None if soft_s is None else clock.call_later(soft_s, self._soft_limit)

    @property
    def in_thread(self) -> bool:
        """Whether the code runs in a thread, which nobody can stop."""
        return self.task.runs_in == "thread"

    @property
    def is_given_up(self) -> bool:
        """Whether it has an end already, although its code goes on."""
        return self._ending is not None and not self.finished

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return self._clock.monotonic() - self._started

    @property
    def first_ms(self) -> int:
        """When the first attempt that failed began, in milliseconds since the epoch; this one, where none did."""
        # A time from the future comes from a clock that is ahead: it must not give the retries more time.
        return min(first_at_ms_of(self.delivery.message) or self.began_ms, self.began_ms)

    @property
    def since_first_s(self) -> float:
        """How long ago that was, in seconds."""
        return max(0, self._clock.now_ms() - self.first_ms) / 1000

    async def ending(self) -> Ending:
        """Wait for the end, as far as a slot is concerned."""
        if self._ending is not None:
            return self._ending
        waiter: asyncio.Future[Ending] = self._loop.create_future()
        self._waiter = waiter
        return await waiter

    async def returned(self) -> None:
        """Wait until the code has really come to its end, however late; or until `stop_waiting()`."""
        if not self.finished:
            self._return_waiter = self._loop.create_future()
            await self._return_waiter

    def stop_waiting(self) -> None:
        """End `returned()`: the worker stops."""
        if self._return_waiter is not None and not self._return_waiter.done():
            self._return_waiter.set_result(None)

    def code_ended(self, ending: Returned | Raised | Decided) -> None:
        """Take the end of the code. The runner calls this once, on the loop."""
        if self.finished:
            return
        if self.inner_end is not None and not isinstance(ending, Decided):
            inner_end, self.inner_end = self.inner_end, None
            self.on_interrupt = self.on_soft_limit = None  # they were for the code, and middleware goes on
            if not inner_end.done():
                inner_end.set_result(ending)
            return
        self.finished = True
        self._timer.cancel()
        if self._soft_timer is not None:
            self._soft_timer.cancel()
        self._stop_watching()
        self.stop_waiting()
        if self.on_code_end is not None:
            self.on_code_end()
        self.on_code_end = self.on_interrupt = self.on_soft_limit = None  # they lead back to this attempt
        late = self._ending is not None or self.orphaned
        if self._ending is None:
            self._end(ending)
        if late and self.on_late_end is not None:
            self.on_late_end(self)

    def interrupt(self, why: Interruption) -> None:
        """Tell the code to stop, once: an async task is cancelled, a process is killed a little later.

        A thread can only look at `ctx.cancelled`.

        One plain cancel, so that awaits in the code's `finally` blocks work. A thread that is cancelled has until its
        time limit to look: what it returns until then counts, for the work was done. Middleware around it that waits at
        the moment is cancelled as code on the loop is.
        """
        if self._ending is not None or self.given_up_for is not None:
            return
        self.interrupted = self.interrupted or why
        self.context.mark_cancelled()
        if why == "cancel" and self.in_thread and self.code is None:
            return
        self.given_up_for = why
        self._timer.cancel()
        self._timer = self._clock.call_later(self.limits.grace_s, self._give_up)
        if self.code is not None:
            self.code.cancel()
            # A task that is cancelled before its first step never runs a line, its own report included.
            self.code.add_done_callback(lambda _: self.code_ended(Raised(asyncio.CancelledError())))
        elif self.on_interrupt is not None:
            self.on_interrupt()

    def watch_lease(self) -> None:
        """Learn of a lost lease while the code runs, not only when it acks."""
        if self._lease_watch is None and not self.finished:
            self._lease_watch = self._loop.create_task(self._watch_lease(self.delivery))

    def adopt(self, delivery: Delivery) -> None:
        """Take a redelivery as the new lease."""
        self._release_slot()
        self.delivery = delivery
        self.orphaned = False
        self._lease_watch = None
        self.watch_lease()
        if self.record is not None:
            self.record.lease = delivery

    def _soft_limit(self) -> None:
        """Ask the code to come to an end by itself."""
        if self.finished or self.interrupted is not None:
            return
        self.context.mark_soft_limit()
        if self.on_soft_limit is not None:
            self.on_soft_limit()

    def _look(self) -> None:
        """Start what only a longer attempt needs."""
        remaining_s = self.limits.limit_s - self.seconds
        if remaining_s <= 0:
            self.interrupt("limit")
            return
        self.watch_lease()
        self._timer = self._clock.call_later(remaining_s, self.interrupt, "limit")

    def _stop_watching(self) -> None:
        if self._lease_watch is not None:
            self._lease_watch.cancel()

    def _give_up(self) -> None:
        if self._ending is None and not self.finished:
            self._stop_watching()  # its delivery is about to be settled: what becomes of the lease is no matter
            self._end(Overdue())

    def _end(self, ending: Ending) -> None:
        self._ending = ending
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(ending)

    def _release_slot(self) -> None:
        """Let the slot of a lost lease go on to other work."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(LeaseGone())

    async def _watch_lease(self, delivery: Delivery) -> None:
        await delivery.lost()
        if self.finished or self.delivery is not delivery:
            return
        self.orphaned = True
        self._release_slot()
        if self.on_orphaned is not None:
            self.on_orphaned(self)
