"""A worker: the slots of some queues in one process, from start to drain.

    run() ─▶ declare queues ─▶ read what is cancelled ─▶ slots consume ──stop()──▶ nothing new; running tasks may finish
                                                                                        │ drain timeout
                                                                                        ▼
                                       async tasks are cancelled, all that runs is handed back ─▶ run() returns

What each failure does: a lost connection is the broker adapter's to mend, and the slots go on; a deleted queue is
declared again, and its slots consume anew; a broker that refuses us drains the worker and is raised by `run()`.

Invariant: when `run()` returns, every delivery of this worker is settled, handed back, or left unacked to the broker.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import anyio

from asyncq.breaker import BreakerState
from asyncq.broker import QueueSpec
from asyncq.clock import Clock
from asyncq.context import TaskContext
from asyncq.control import WorkerName
from asyncq.control_values import WorkerPhase
from asyncq.errors import AsyncQError, InvalidOption
from asyncq.interpreter import FlowRules
from asyncq.loggers import get_logger
from asyncq.signature import Sender
from asyncq.sync import LoopBridge
from asyncq.worker.admission import Admission
from asyncq.worker.answering import Answering, Pools, Subject
from asyncq.worker.attempt import GRACE_S, AnyTask, Limits
from asyncq.worker.attempts import Attempts
from asyncq.worker.callbacks import Callbacks
from asyncq.worker.cancelling import Cancelling
from asyncq.worker.cleaning import keep_clean
from asyncq.worker.concurrency import Concurrency
from asyncq.worker.consuming import QueueConsumer
from asyncq.worker.continuing import Continuing
from asyncq.worker.execution import Execution, RunRules
from asyncq.worker.exit_codes import DRAINED, HANDED_BACK, RESTART
from asyncq.worker.intake import Intake
from asyncq.worker.lifespan import run_in_lifespan
from asyncq.worker.needs import WorkerApp
from asyncq.worker.paused_queues import PausedQueues
from asyncq.worker.pausing import QueueBreaker
from asyncq.worker.process_pool.pool import ProcessPool, cores
from asyncq.worker.publishing import Publishing
from asyncq.worker.queues import WorkerQueues
from asyncq.worker.recording import Recording
from asyncq.worker.repeats import Repeats
from asyncq.worker.revocations import Revocations
from asyncq.worker.runners import ThreadPool
from asyncq.worker.services import make_services
from asyncq.worker.settlement import Settlement
from asyncq.worker.slot import Observer, Slot
from asyncq.worker.traces import Traces
from asyncq.worker.watchdog import Watchdog

__all__ = ["RunningTask", "Worker", "WorkerStats"]

log = get_logger("asyncq.worker")

_SETTLE_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class RunningTask:
    """One attempt that runs at the moment.

    Attributes:
        context: What its code sees of it. One task id can run twice at once; this tells the two apart.
    """

    task: str
    task_id: str
    attempt: int
    queue: str
    seconds: float
    context: TaskContext


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """What a worker has done so far.

    Attributes:
        running: How many attempts run.
        threads_busy: How many threads run code, abandoned code included.
        processes_busy: How many processes run code.
        overdue: How many attempts were given up, and their code goes on.
        outcomes: How many deliveries ended how: `Succeeded`, `RetryLater`, `Failed` ...
        breakers: The state of each queue's circuit breaker: `closed`, `open` (its slots pause), `half-open` (the
            first delivery after the pause decides). Queues without one are not in it.
    """

    running: int
    threads_busy: int
    processes_busy: int
    overdue: int
    outcomes: Mapping[str, int]
    breakers: Mapping[str, BreakerState]


class Worker:
    """Runs an app's tasks.

    Args:
        app: The app, open.
        sender: What `ctx.sync` sends by.
        queues: Slots for each queue.
        clock: Where the time comes from.
        grace_s: How long interrupted code may take for its `finally` blocks, in seconds.

    Attributes:
        clock: Where the time comes from.
        observers: Hear of each delivery that was settled; they must be in it before `run()`.
        on_retire: Called when somebody has asked this worker to drain for good; None for nothing.

    Raises:
        InvalidOption: No queue, or a queue without slots.
    """

    def __init__(
        self, app: WorkerApp, sender: Sender, queues: Mapping[str, int], clock: Clock, *, grace_s: float = GRACE_S
    ) -> None:
        if not queues:
            raise InvalidOption("A worker needs a queue to consume, for example {'mail': 10}.")
        for queue, slots in queues.items():
            if slots < 1:
                raise InvalidOption(f"Queue {queue!r} needs 1 slot or more, not {slots!r}.")
        self._broker = broker = app.broker
        self._settings = settings = app.settings
        self._grace_s = grace_s
        self._sender = sender
        self.clock = clock
        self._specs = [QueueSpec(queue, settings.delivery_limit) for queue in queues]
        self._attempts = Attempts(broker, clock)
        self._paused = PausedQueues(broker, settings, clock)
        self._revocations = Revocations(clock, settings.cancellations_kept_s)
        keep_s = settings.cancellations_kept_s
        self._cancelling = Cancelling(broker, keep_s, self._revocations, self._attempts, self._paused)
        self._threads = ThreadPool(places=settings.threads or sum(queues.values()))
        self._processes = ProcessPool(settings.task_processes or cores(), sender, settings.process_max_tasks)
        self._admission = Admission(self._threads, self._processes, Concurrency(clock), self._revocations)
        breakers = {
            queue: QueueBreaker(queue, rules, clock)
            for queue in queues
            if (rules := app.breakers.of(queue)) is not None
        }
        self._queues = WorkerQueues(
            queues, breakers, self._paused, lambda total: self._threads.resize(settings.threads or total)
        )
        self._app = app
        self._control_name = WorkerName(app.name, socket.gethostname(), os.getpid(), os.urandom(4).hex())
        self._name = self._control_name.name
        self._recording = Recording(
            app.recorder,
            app.tasks,
            self._name,
            interval_s=settings.progress_interval_s,
            lease_s=settings.time_limit_s,
        )
        self.observers: list[Observer] = []
        self._watchdog = Watchdog(
            self._attempts, self._threads, settings.blocked_loop_after_s, self._processes.running_in
        )
        self._stop_requested = asyncio.Event()
        self._consuming = asyncio.Event()
        self._to_restart = False
        self._handed_back = False
        self._fatal: AsyncQError | None = None
        self.on_retire: Callable[[], object] | None = None
        self._attempts.on_given_up = self._look_at_abandoned

    # --- what others see

    @property
    def threads_abandoned(self) -> int:
        """How much code goes on although the worker has ended, threads and asyncio tasks that ignore cancellation.

        None of it can be stopped, and it would hold up the end of the process: leave it by `os._exit`.
        """
        going_on = (*self._attempts, *self._attempts.given_up())
        on_loop = [item for item in going_on if item.code is not None]  # middleware of a thread may go on there, too
        return self._threads.busy + len(on_loop)

    @property
    def queues(self) -> Mapping[str, int]:
        """Slots for each queue."""
        return dict(self._queues.slots)

    @property
    def phase(self) -> WorkerPhase:
        """Where it is in its life."""
        if self._stop_requested.is_set():
            return "stopping"
        return "consuming" if self._consuming.is_set() else "starting"

    def running(self) -> list[RunningTask]:
        """Return what runs at the moment."""
        return [
            RunningTask(
                attempt.task.name,
                attempt.delivery.message.task_id,
                attempt.number,
                attempt.delivery.queue,
                attempt.seconds,
                attempt.context,
            )
            for attempt in self._attempts
        ]

    def stats(self) -> WorkerStats:
        """Return what was done so far."""
        return WorkerStats(
            running=len(self._attempts),
            threads_busy=self._threads.busy,
            processes_busy=self._processes.busy,
            overdue=self._attempts.overdue,
            outcomes=dict(self._attempts.outcomes),
            breakers={queue: breaker.state for queue, breaker in self._queues.breakers.items()},
        )

    def dump(self) -> None:
        """Tell in the log what runs at the moment, with the stacks. Safe in a signal's handler, and in any thread."""
        self._watchdog.dump()

    # --- life

    async def run(self) -> int:
        """Work until `stop()`.

        Returns:
            How it went, as an exit code: `DRAINED`, `HANDED_BACK` or `RESTART` of `asyncq.worker.exit_codes`.

        Raises:
            TaskDefinitionError: A task with `run_in="process"` cannot be imported by another process.
            TopologyMismatch: A queue exists with other arguments.
            InvalidQueueName: A queue cannot be called so.
            BrokerRefused: The broker will not have us any more; or this user may not read what is cancelled.
            QueueGone: The stream of what is cancelled is missing, and this app declares nothing.
            LifespanFailed: The app's lifespan raised something.
        """
        try:
            await self._processes.check(self._process_tasks())
            return await run_in_lifespan(self._app.open_lifespan(), self._stop_requested, self._run)
        finally:
            await self._processes.close()

    def _process_tasks(self) -> list[AnyTask]:
        """Return the tasks of these queues that run in processes."""
        tasks = self._app.tasks.values()
        return [task for task in tasks if task.runs_in == "process" and task.queue in self._queues.slots]

    async def _run(self, resources: Callable[[], Any]) -> int:
        await self._broker.ensure(self._specs)
        slot = self._make_slot(resources)
        consumers = self._queues.begin({spec.name: self._make_consumer(spec, slot) for spec in self._specs})

        async def consume(consumer: QueueConsumer) -> None:
            try:
                await consumer.run()
            except AsyncQError as error:
                self._fatal = self._fatal or error
                self.stop()

        self._watchdog.start()
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._make_answering().run)
                group.start_soon(self._follow_cancellations)
                group.start_soon(self._paused.keep)
                if await self._cancellations_are_known():
                    for consumer in consumers:
                        group.start_soon(consume, consumer)
                    group.start_soon(self._say_when_it_consumes)
                if self._app.recorder is not None:
                    group.start_soon(keep_clean, self._app.recorder)
                await self._stop_requested.wait()
                await self._drain()
                await self._end_leftovers()
                group.cancel_scope.cancel()
        finally:
            for attempt in self._attempts:
                attempt.interrupt("drain")
            self._threads.close()
            self._watchdog.stop()
        log.info("worker stopped", abandoned=self.threads_abandoned, outcomes=dict(self._attempts.outcomes))
        if self._fatal is not None:
            raise self._fatal
        if self._to_restart:
            return RESTART
        return HANDED_BACK if self._handed_back else DRAINED

    async def consuming(self) -> None:
        """Wait until every queue is consumed."""
        await self._consuming.wait()

    async def _say_when_it_consumes(self) -> None:
        for consumer in self._queues.consumers.values():
            await consumer.consuming.wait()
        if not self._stop_requested.is_set():
            log.info("worker consumes", queues=self.queues)
            self._consuming.set()

    def restart(self, why: str) -> None:
        """Drain as by `stop()`, and let `run()` return `RESTART`.

        Args:
            why: What is told in the log.
        """
        if not self._stop_requested.is_set():
            log.info("draining to be started again", why=why)
            self._to_restart = True
            self.stop()

    def restart_after(self, tasks: int) -> None:
        """Restart as soon as so many attempts have begun."""

        def count() -> None:
            if self._attempts.started >= tasks:
                self.restart(f"{self._attempts.started} tasks were begun")

        self._attempts.on_start = count

    async def _follow_cancellations(self) -> None:
        try:
            await self._cancelling.run()
        except AsyncQError as error:
            self._fatal = self._fatal or error
            self.stop()

    async def _cancellations_are_known(self) -> bool:
        """Wait for it; return False where the worker is to stop before."""
        waiting = [asyncio.ensure_future(event.wait()) for event in (self._cancelling.began, self._stop_requested)]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for future in waiting:
                future.cancel()
        return self._cancelling.began.is_set() and not self._stop_requested.is_set()

    def stop(self) -> None:
        """Drain, and let `run()` return: take nothing new, let what runs finish, hand back what takes too long."""
        self._stop_requested.set()

    def retire(self) -> None:
        """Drain as by `stop()`, and let whoever supervises this process know that no other one shall take its place."""
        if self.on_retire is not None:
            self.on_retire()
        self._to_restart = False
        self.stop()

    async def _drain(self) -> None:
        timeout_s = self._settings.drain_timeout_s
        log.info("draining", running=len(self._attempts), timeout_s=timeout_s)
        self._admission.refuse()
        self._let_go_of_threads()
        # By the machine's time: a process manager waits for the end of this process, and kills it when it has waited.
        deadline = anyio.current_time() + timeout_s
        with anyio.move_on_after(max(timeout_s, _SETTLE_TIMEOUT_S)):
            consumers = self._queues.consumers.values()
            await asyncio.gather(*(consumer.stop() for consumer in consumers), return_exceptions=True)
        with anyio.CancelScope(deadline=deadline):
            await self._all_ended()
            return
        self._recording.give_up()
        self._handed_back = len(self._attempts) > 0
        if self._handed_back:  # with no time to drain, the slots that are free have not ended either
            log.warning("drain timeout: what still runs is handed back", running=len(self._attempts))
        self._let_go_of_threads()
        for attempt in self._attempts:
            attempt.interrupt("drain")
        with anyio.move_on_after(self._grace_s + _SETTLE_TIMEOUT_S):
            await self._all_ended()

    def _look_at_abandoned(self) -> None:
        """Make room for a new worker where too many threads go on here that nobody can stop."""
        abandoned = sum(attempt.in_thread for attempt in self._attempts.given_up())
        if abandoned < self._settings.max_abandoned_threads or self._stop_requested.is_set():
            return
        log.error("too many threads go on although their time limit is over: the worker drains", abandoned=abandoned)
        self._to_restart = True
        self.stop()

    async def _all_ended(self) -> None:
        for consumer in self._queues.consumers.values():
            await consumer.ended.wait()

    def _let_go_of_threads(self) -> None:
        """Free the slots that wait for threads which were given up: their deliveries are settled."""
        for attempt in self._attempts.given_up():
            attempt.stop_waiting()

    async def _end_leftovers(self) -> None:
        """Cancel code that no slot waits for any more, because its lease is lost."""
        for attempt in self._attempts:
            attempt.interrupt("drain")
        codes = [attempt.code for attempt in self._attempts if attempt.code is not None]
        if codes:
            await asyncio.wait(codes, timeout=self._grace_s)

    def _make_consumer(self, spec: QueueSpec, slot: Slot) -> QueueConsumer:
        slots, breaker = self._queues.slots[spec.name], self._queues.breakers.get(spec.name)
        return QueueConsumer(self._broker, spec, slots, slot, breaker)

    def _make_answering(self) -> Answering:
        pools = Pools(self._threads, self._processes)
        subject = Subject(self._control_name, self._queues, self._attempts, self._paused, pools, self)
        return Answering(self._broker, subject, self.clock)

    def _make_slot(self, resources: Callable[[], Any]) -> Slot:
        settings, broker, clock = self._settings, self._broker, self.clock
        intake = Intake(
            self._app.tasks,
            clock,
            unknown_task_patience_s=settings.unknown_task_patience_s,
            # Before the broker does: it tells nobody, and knows no error.
            poison_after=min(settings.poison_after, settings.delivery_limit),
        )
        timeout_s = settings.publish_timeout_s
        bridge = LoopBridge(asyncio.get_running_loop())
        services = make_services(broker, self._sender, bridge, clock, timeout_s=timeout_s, resources=resources)
        limits = Limits(clock, settings.time_limit_s, self._grace_s)
        repeats = Repeats(self._app.recorder)
        app, revocations = self._app, self._revocations
        middleware, traces = tuple(app.middlewares), Traces(app.tracing)
        rules = RunRules(limits, app.retry_defaults, revocations, repeats, middleware, app.dependency_overrides, traces)
        execution = Execution(intake, self._attempts, self._admission, rules, services, self._recording)
        execution.prepare(app.tasks.values())
        publishing = Publishing(broker, clock, app.tracing, timeout_s=timeout_s, delivery_limit=settings.delivery_limit)
        callbacks = Callbacks(self._app.tasks, publishing, clock, exchange=f"{settings.namespace}.tasks")
        flow = FlowRules(f"{settings.namespace}.tasks", settings.max_message_bytes, settings.chord_kept_s)
        continuing = Continuing(broker, publishing, callbacks, self._recording, clock, flow, timeout_s=timeout_s)
        settlement = Settlement(publishing, continuing, self._recording, clock, self._name, settings.max_result_bytes)
        return Slot(execution, settlement, self._attempts, clock, self.observers, traces)
