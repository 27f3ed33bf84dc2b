"""What a worker answers to those who ask it, and does for them: ping, active, stats, pause, resume, scale, drain.

    question ─▶ is it for this worker? ──yes──▶ do it ─▶ answer
                     └─ no ─▶ silence: only who is meant answers

Invariant: no question can hurt the worker. What it cannot do it answers with the reason, as `{"error": "..."}`.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import anyio
from pydantic import ValidationError

from asyncq.broker import Broker
from asyncq.clock import Clock
from asyncq.control import Control, Question, WorkerName
from asyncq.control_values import (
    MOST_SLOTS,
    Draining,
    Order,
    PoolStats,
    QueueState,
    RunningView,
    WorkerAnswer,
    WorkerPhase,
    WorkerPing,
    WorkerStatistics,
    WorkerTasks,
)
from asyncq.errors import AsyncQError, InvalidOption
from asyncq.loggers import get_logger
from asyncq.pauses import PauseNote
from asyncq.version import asyncq_version
from asyncq.worker.attempt import Attempt
from asyncq.worker.attempts import Attempts
from asyncq.worker.paused_queues import PausedQueues
from asyncq.worker.process_pool.pool import ProcessPool
from asyncq.worker.queues import WorkerQueues
from asyncq.worker.runners import ThreadPool
from asyncq.worker.vitals import loop_lag_s, resident_bytes

__all__ = ["Answering", "Pools", "Subject"]

log = get_logger("asyncq.worker")

_RETRY_PAUSE_S = 5.0


class Life(Protocol):
    """The life of the worker that is asked."""

    @property
    def phase(self) -> WorkerPhase:
        """Where it is in its life."""
        ...

    def retire(self) -> None:
        """Drain, and do not come back."""
        ...


@dataclass(frozen=True, slots=True)
class Pools:
    """What runs code beside the event loop."""

    threads: ThreadPool
    processes: ProcessPool


@dataclass(frozen=True, slots=True)
class Subject:
    """What the questions are about: one worker.

    Attributes:
        name: Which one it is.
        queues: Its queues.
        attempts: What runs.
        paused: Its paused queues.
        pools: Its threads and processes.
        life: How it lives.
    """

    name: WorkerName
    queues: WorkerQueues
    attempts: Attempts
    paused: PausedQueues
    pools: Pools
    life: Life


class Answering:
    """Answers for one worker.

    Args:
        broker: Where the questions come from.
        subject: The worker.
        clock: For times.
    """

    def __init__(self, broker: Broker, subject: Subject, clock: Clock) -> None:
        self._broker = broker
        self._subject = subject
        self._clock = clock
        self._began_s = clock.monotonic()
        name = subject.name
        self._who = {"name": name.name, "app": name.app, "host": name.host, "pid": name.pid}

    async def run(self) -> None:
        """Answer until cancelled. Raises nothing."""
        if not isinstance(self._broker, Control):
            return
        while True:
            try:
                async with self._broker.listen(self._subject.name) as questions, anyio.create_task_group() as group:
                    async for question in questions:
                        group.start_soon(self._take, question)
            except AsyncQError as error:
                log.warning("questions to this worker cannot be heard, trying again", cause=str(error))
            except Exception:  # a bug of ours in here must not end the worker
                log.exception("questions to this worker cannot be heard, trying again")
            else:
                return
            await asyncio.sleep(_RETRY_PAUSE_S)

    async def _take(self, question: Question) -> None:
        try:
            answer = await self._answer(question.body)
            if answer is not None:
                await question.answer(answer)
        except AsyncQError as error:
            log.warning("a question to this worker could not be answered", cause=str(error))
        except Exception:
            log.exception("a question to this worker could not be answered")

    async def _answer(self, body: bytes) -> bytes | None:
        """Return the answer; None where another worker is meant."""
        try:
            order = Order.model_validate_json(body)
        except ValidationError as error:
            return _refusal(f"This worker, of asyncq {asyncq_version()}, does not understand the question: {error}")
        if not order.is_for(self._subject.name):
            return None
        try:
            done = await self._do(order)
        except AsyncQError as error:
            return _refusal(str(error))
        except Exception as error:
            log.exception("a question to this worker has failed", question=order.do)
            return _refusal(f"Unexpected {type(error).__name__}: {error}. The worker's log has more.")
        return done.model_dump_json().encode()

    async def _do(self, order: Order) -> WorkerAnswer:
        match order.do:
            case "ping":
                return self._ping()
            case "active":
                return self._active()
            case "stats":
                return await self._stats()
            case "pause" | "resume":
                return self._pause_or_resume(order)
            case "scale":
                return self._scale(order)
            case "drain":
                return self._drain()

    # --- looking

    def _ping(self) -> WorkerPing:
        subject = self._subject
        return WorkerPing(
            **self._who,
            version=asyncq_version(),
            state=subject.life.phase,
            uptime_s=self._uptime_s(),
            queues=tuple(subject.queues.slots),
        )

    def _active(self) -> WorkerTasks:
        running = sorted(self._subject.attempts, key=lambda attempt: attempt.began_ms)
        views = self._subject.queues.views(self._subject.attempts)
        return WorkerTasks(**self._who, queues=views, running=tuple(map(_view, running)))

    async def _stats(self) -> WorkerStatistics:
        subject = self._subject
        lag_s = await loop_lag_s()
        processes = subject.pools.processes
        outcomes = dict(subject.attempts.outcomes)
        return WorkerStatistics(
            **self._who,
            state=subject.life.phase,
            uptime_s=self._uptime_s(),
            queues=subject.queues.views(subject.attempts),
            in_flight=len(subject.attempts),
            started=subject.attempts.started,
            outcomes=outcomes,
            retries=outcomes.get("RetryLater", 0),
            overdue=subject.attempts.overdue,
            threads_busy=subject.pools.threads.busy,
            connection=self._broker.status().state,
            memory_bytes=resident_bytes(),
            loop_lag_s=round(lag_s, 6),
            process_pool=PoolStats(places=processes.places, processes=len(processes.pids), busy=processes.busy),
        )

    def _uptime_s(self) -> float:
        return round(self._clock.monotonic() - self._began_s, 3)

    # --- changing

    def _pause_or_resume(self, order: Order) -> QueueState:
        queue = _given(order.queue, "queue")
        paused = self._subject.paused
        if order.everywhere:  # the journal says it too, sooner or later; what comes second changes nothing
            paused.take(PauseNote(queue, order.at_ms, order.pause_id, order.ends))
        elif order.do == "pause":
            paused.pause_here(queue)
        if order.do == "resume":
            paused.resume_here(queue)
        return self._queue_state(queue)

    def _scale(self, order: Order) -> QueueState:
        queue, slots = _given(order.queue, "queue"), _given(order.slots, "slots")
        if not 1 <= slots <= MOST_SLOTS:
            raise InvalidOption(f"A queue has 1 to {MOST_SLOTS} slots, not {slots}; to have none, pause it.")
        if queue in self._subject.queues.slots:
            self._subject.queues.scale(queue, slots)
        return self._queue_state(queue)

    def _queue_state(self, queue: str) -> QueueState:
        return QueueState(**self._who, queue=self._subject.queues.view(queue, self._subject.attempts))

    def _drain(self) -> Draining:
        already = self._subject.life.phase == "stopping"
        self._subject.life.retire()
        return Draining(**self._who, running=len(self._subject.attempts), already=already)


def _view(attempt: Attempt) -> RunningView:
    context, message = attempt.context, attempt.delivery.message
    progress = context.last_progress
    deadline = context.deadline
    return RunningView(
        task=attempt.task.name,
        task_id=message.task_id,
        attempt=attempt.number,
        queue=attempt.delivery.queue,
        since_ms=attempt.began_ms,
        seconds=round(attempt.seconds, 3),
        deadline_ms=None if deadline is None else round(deadline.timestamp() * 1000),
        stopping=attempt.interrupted,
        progress=None if progress is None else asdict(progress),
    )


def _given(value: Any, name: str) -> Any:
    if value is None:
        raise InvalidOption(f"The question needs {name!r}.")
    return value


def _refusal(text: str) -> bytes:
    return json.dumps({"error": text}).encode()
