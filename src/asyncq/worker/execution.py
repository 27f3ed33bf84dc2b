"""Run one delivery to its outcome.

    read (intake.py) ──▶ start (around.py, runners.py) ──▶ wait for the end (attempt.py) ──▶ decide (verdict.py)

Invariant: `execute` raises for nothing that a message or a task does, and it never acks: a delivery is settled by
its slot, once, and only after its outcome is durable.
"""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from asyncq.broker import Delivery
from asyncq.context import ContextServices, TaskContext, running
from asyncq.errors import MalformedMessage
from asyncq.loggers import get_logger
from asyncq.message import Message, attempt_of
from asyncq.middleware import Middleware
from asyncq.outcome import Cancelled, Failed, Failure, LostLease, Outcome, Repeated
from asyncq.retry import RetryDefaults
from asyncq.worker.admission import Admission, Room
from asyncq.worker.around import Around, Overrides
from asyncq.worker.attempt import AnyTask, Attempt, LeaseGone, Limits, Overdue
from asyncq.worker.attempts import Attempts
from asyncq.worker.intake import Call, Intake, Refusal
from asyncq.worker.limits import LimitRules
from asyncq.worker.recording import AttemptRecord, Recording
from asyncq.worker.repeats import Repeats
from asyncq.worker.revocations import Revocations
from asyncq.worker.traces import Traces
from asyncq.worker.verdict import decide

if TYPE_CHECKING:
    from asyncq.tracing.spans import AttemptSpan

__all__ = ["Executed", "Execution", "RunRules"]

log = get_logger("asyncq.worker")


@dataclass(frozen=True, slots=True)
class RunRules:
    """How attempts run where their task does not say it.

    Attributes:
        limits: How long an attempt may take, and by which clock.
        retry: The policies of tasks that have said nothing about theirs.
        revocations: The tasks that shall not run.
        repeats: The ticks that have run.
        middleware: The app's, from the outside to the inside.
        overrides: What stands in for which dependency.
        traces: Makes their spans.
    """

    limits: Limits
    retry: RetryDefaults
    revocations: Revocations = field(default_factory=Revocations)
    repeats: Repeats = field(default_factory=Repeats)
    middleware: tuple[Middleware, ...] = ()
    overrides: Overrides = field(default_factory=dict)
    traces: Traces = field(default_factory=Traces)


@dataclass(frozen=True, slots=True)
class Executed:
    """How a delivery ended.

    Attributes:
        delivery: The lease to settle. Not always the one that execution began with: it may have been renewed.
        number: The attempt's number; 1 where the message could not be read.
        outcome: How it ended.
        holding: The attempt whose thread goes on, and with it occupies the slot; None where the slot is free.
        record: What is noted of the attempt in the result store; None for nothing, or where nothing ran.
        ran_s: How long the attempt's code ran, in seconds; None where nothing ran, or it goes on.
        span: What traces tell of it; None for nothing.
    """

    delivery: Delivery
    number: int
    outcome: Outcome
    holding: Attempt | None = None
    record: AttemptRecord | None = None
    ran_s: float | None = None
    span: AttemptSpan | None = None

    @property
    def hold(self) -> bool:
        """Whether nothing new may come into the slot after the ack."""
        return self.holding is not None


class Execution:
    """Executes deliveries.

    Args:
        intake: Reads them.
        attempts: The table of what runs.
        admission: Whether an attempt may begin, and what runs it.
        rules: Limits and defaults.
        services: What the worker lends to running code.
        recording: Notes what runs in the result store.
    """

    def __init__(
        self,
        intake: Intake,
        attempts: Attempts,
        admission: Admission,
        rules: RunRules,
        services: ContextServices,
        recording: Recording,
    ) -> None:
        self._intake = intake
        self._attempts = attempts
        self._admission = admission
        self._rules = rules
        self._limits = LimitRules(rules.limits)
        self._around = Around(rules.middleware, rules.retry, rules.overrides)
        self._services = services
        self._recording = recording
        self._tells_start = log.is_enabled_for(logging.DEBUG)  # asked once: this is the fast path
        self._clean = contextvars.copy_context()  # each attempt starts from this, not from what another one has set

    def prepare(self, tasks: Iterable[AnyTask]) -> None:
        """Look at what tasks depend on, before any of them runs.

        Raises:
            TaskDefinitionError: It cannot be had.
        """
        self._around.prepare(tasks)

    async def execute(self, delivery: Delivery) -> Executed:
        """Run one delivery, or wait for the attempt that already runs for it.

        A failing task is an outcome, not an exception of this function.

        Args:
            delivery: The unsettled message. The caller settles it.

        Returns:
            How it ended, after the task's retry policy has been applied.
        """
        number = 1
        try:
            attempt = self._attempts.adopt(delivery)
            if attempt is None:
                if await self._rules.repeats.has(delivery):
                    return Executed(delivery, number, Repeated())
                if not self._rules.revocations.is_current:
                    await self._rules.revocations.wait_until_current()
                # Last, and `admit` looks again where it waits: who is cancelled in the middle of a wait is not run.
                if self._rules.revocations.has(delivery.message):
                    return Executed(delivery, number, Cancelled(_attempts_so_far(delivery.message)))
                call = self._intake.read(delivery)
                number = call.attempt
                if isinstance(call, Refusal):
                    return Executed(delivery, number, call.outcome)
                room = await self._admission.admit(delivery, call.task)
                if not isinstance(room, Room):
                    return Executed(delivery, number, room)
                attempt = self._start(delivery, call, room)
            return await self._follow(attempt)
        except Exception as error:
            log.exception("asyncq itself failed while it ran a task", task=delivery.message.type, queue=delivery.queue)
            return Executed(delivery, number, Failed(Failure.of(error), "internal error"))

    def ended(self, executed: Executed, outcome: Outcome) -> None:
        """Hear how a delivery was settled. Raises nothing."""
        self._rules.repeats.ended(executed.delivery.message, outcome)

    def _start(self, delivery: Delivery, call: Call, room: Room) -> Attempt:
        task = call.task
        limits = self._limits.of(task, delivery.message)
        deadline_ms = limits.clock.now_ms() + int(limits.limit_s * 1000)
        record = self._recording.begin(delivery, call.attempt)
        on_progress = None if record is None else record.progressed
        context = TaskContext(delivery.message, delivery.queue, call.attempt, self._services, deadline_ms, on_progress)
        attempt = Attempt(delivery, task, call.attempt, context, limits)
        attempt.record = record
        self._attempts.add(attempt)
        args = (context, *call.args) if task.pass_context else call.args
        variables = self._clean.copy()
        variables.run(running(context).__enter__)
        self._rules.traces.begin(attempt, variables)
        if self._tells_start:
            message = delivery.message
            keys = {"task": task.name, "task_id": message.task_id, "attempt": call.attempt, "queue": delivery.queue}
            log.debug("task started", **keys, limit_s=round(limits.limit_s, 3))
        self._around.start(room, attempt, args, call.kwargs, variables)
        return attempt

    async def _follow(self, attempt: Attempt) -> Executed:
        delivery = attempt.delivery
        ending = await attempt.ending()
        if isinstance(ending, LeaseGone):  # the attempt goes on, in the table and without this slot
            return Executed(delivery, attempt.number, LostLease())
        if attempt.span is not None:
            attempt.span.stop()
        self._attempts.remove(attempt)
        overdue = isinstance(ending, Overdue)
        if overdue:
            self._warn_overdue(attempt)
        outcome = decide(attempt, ending, self._rules.retry)
        holding = attempt if overdue and attempt.in_thread and attempt.given_up_for == "limit" else None
        return Executed(delivery, attempt.number, outcome, holding, attempt.record, attempt.seconds, attempt.span)

    def _warn_overdue(self, attempt: Attempt) -> None:
        log.warning(
            "a thread cannot be stopped: it goes on and keeps its slot"
            if attempt.in_thread
            else "an async task ignores its cancellation and goes on",
            task=attempt.task.name,
            task_id=attempt.delivery.message.task_id,
            attempt=attempt.number,
            seconds=round(attempt.seconds, 3),
            given_up=self._attempts.overdue,
        )


def _attempts_so_far(message: Message) -> int:
    try:
        return attempt_of(message) - 1
    except MalformedMessage:
        return 0
