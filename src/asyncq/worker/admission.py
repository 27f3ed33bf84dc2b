"""Whether an attempt may begin in this worker, and what runs it.

    max_concurrency of its task ──▶ a thread, or a process, where it needs one ──▶ begin

Both are waited for in the slot, in the order of coming, for `PATIENCE_S` at most; then the message goes back to the
broker with a delay, uncounted, and perhaps another worker has room for it. The time limit begins after the wait.

Invariant: what was taken for an attempt that does not begin is given back.
"""

from __future__ import annotations

import contextvars
import random
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from asyncq.broker import Delivery
from asyncq.message import attempt_of
from asyncq.outcome import Cancelled, Drained, LostLease, Outcome, Postponed
from asyncq.worker.attempt import AnyTask, Attempt
from asyncq.worker.concurrency import Concurrency, Queue
from asyncq.worker.places import Taken
from asyncq.worker.process_pool.pool import ProcessPool
from asyncq.worker.revocations import is_of_any
from asyncq.worker.runners import ThreadPool, start_on_loop

__all__ = ["Admission", "Room", "Start"]

Start = Callable[[Attempt, Sequence[Any], Mapping[str, Any], contextvars.Context], None]
"""Begins an attempt, with its arguments and the context variables that its code sees."""

_COME_AGAIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Room:
    """Room for one attempt: one of the two is called.

    Attributes:
        start: Begins it.
        give_back: Lets somebody else have the room.
    """

    start: Start
    give_back: Callable[[], None]


_ON_LOOP = Room(start_on_loop, lambda: None)


class Admission:
    """The rooms of a worker.

    Args:
        threads: For `def` tasks.
        processes: For `run_in="process"`.
        concurrency: The limits of single tasks.
        cancelled: The ids of tasks that were cancelled; one may be while it waits here.
    """

    def __init__(
        self, threads: ThreadPool, processes: ProcessPool, concurrency: Concurrency, cancelled: Container[str]
    ) -> None:
        self._threads = threads
        self._processes = processes
        self._concurrency = concurrency
        self._cancelled = cancelled

    async def admit(self, delivery: Delivery, task: AnyTask) -> Room | Outcome:
        """Wait until the task may begin.

        Args:
            delivery: The lease; where it is lost meanwhile, or the task cancelled, it does not begin.
            task: What is to run.

        Returns:
            The room for it, to be used at once; or what becomes of the delivery.
        """
        limit = task.run.max_concurrency
        if limit is None and task.runs_in == "loop":
            return _ON_LOOP
        queue = None if limit is None else self._concurrency.of(task.name, limit)
        if queue is not None:
            if queue.is_full:
                return Postponed(queue.delay_s())
            taken = await queue.places.take()
            if taken != "taken":
                return _not_admitted(taken, queue)
        room: Room | Outcome | None = None
        try:
            room = self._gone(delivery) or await self._room(task)
            if isinstance(room, Room) and (gone := self._gone(delivery)) is not None:
                room.give_back()
                room = gone
        finally:
            if queue is not None and not isinstance(room, Room):
                queue.places.free()
        if not isinstance(room, Room):
            return room
        return room if queue is None else _counted(room, queue)

    def refuse(self) -> None:
        """Let nobody wait any more: the worker stops."""
        self._threads.refuse()
        self._processes.refuse()
        self._concurrency.refuse()

    def _gone(self, delivery: Delivery) -> Outcome | None:
        """Return why the task shall not begin any more, if it shall not."""
        if delivery.is_lost:
            return LostLease()
        if is_of_any(delivery.message, self._cancelled):
            return Cancelled(attempt_of(delivery.message) - 1)
        return None

    async def _room(self, task: AnyTask) -> Room | Outcome:
        if task.runs_in == "loop":
            return _ON_LOOP
        if task.runs_in == "thread":
            taken = await self._threads.place()
            return (
                Room(self._threads.start, self._threads.give_back) if taken == "taken" else _not_admitted(taken, None)
            )
        seat = await self._processes.seat()
        if isinstance(seat, str):
            return _not_admitted(seat, None)
        return Room(seat.start, seat.give_back)


def _not_admitted(taken: Taken, queue: Queue | None) -> Outcome:
    if taken == "stopping":
        return Drained()
    return Postponed(_COME_AGAIN_S * (1 + random.random()) if queue is None else queue.delay_s())  # noqa: S311 - no secret


def _counted(room: Room, queue: Queue) -> Room:
    def begin(attempt: Attempt, args: Sequence[Any], kwargs: Mapping[str, Any], variables: contextvars.Context) -> None:
        queue.began(attempt)
        attempt.on_code_end = lambda: queue.ended(attempt)
        room.start(attempt, args, kwargs, variables)

    def give_back() -> None:
        queue.places.free()
        room.give_back()

    return Room(begin, give_back)
