"""A worker goes on with the workflow that a task belongs to, when the task has ended: before its ack.

    succeeded                              what follows is published; or the value arrives at the barrier; or it is the
                                           workflow's own result
    failed, rejected, cancelled, expired   the rest does not run: the error arrives at the barrier; or it is the
                                           workflow's own end, with its error callback

Each publish is repeated while the lease of the task lasts, as all of settlement is. After a crash all of it is done
once more by whoever gets the task, with the same ids.

Where the broker finally refuses what follows (no permission, a full queue), that is a failure of what follows: it
arrives at the barrier, or ends the workflow; and the task's own end stays what it was. Of a fork, that is each member
for itself: the others run.

Invariant: when a method returns, nothing is left to be done for the workflow by this delivery.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from pydantic_core import to_json

from asyncq.barrier import Gathered, Member
from asyncq.broker import Broker, Delivery, Publication
from asyncq.clock import Clock
from asyncq.ending import Ending, error_of
from asyncq.errors import (
    BrokerError,
    LeaseLost,
    MalformedMessage,
    MessageTooLarge,
    PublishError,
    QueueGone,
    ResultTooLarge,
)
from asyncq.interpreter import FlowRules, Interpreter, Source
from asyncq.life import replays_of, runs_of
from asyncq.loggers import get_logger
from asyncq.message import HeaderValue, Message, ReplyType, attempt_of
from asyncq.outcome import Failure
from asyncq.program import Arrival, Place, Workflow
from asyncq.program_json import place_in, with_raw_key
from asyncq.status import TaskState
from asyncq.worker.callbacks import Callbacks
from asyncq.worker.publishing import Publishing
from asyncq.worker.recording import End, NotKept, Recording

__all__ = ["Continuing", "Following"]

log = get_logger("asyncq.worker")

_TRACE = ("traceparent", "tracestate")
_STATES = {
    ReplyType.SUCCEEDED: TaskState.SUCCEEDED,
    ReplyType.CANCELLED: TaskState.CANCELLED,
    ReplyType.EXPIRED: TaskState.EXPIRED,
}


class Continuing:
    """Goes on with the workflows of a worker's tasks.

    Args:
        broker: Its barriers.
        publishing: Publishes what follows.
        callbacks: Sends the error callbacks of workflows.
        recording: Writes the ends of workflows into the result store.
        clock: For timestamps and delays.
        rules: What holds for all workflows.
        timeout_s: How long one publish waits for its confirm.
    """

    def __init__(  # noqa: PLR0913 - the parts of settlement, put together by the worker alone
        self,
        broker: Broker,
        publishing: Publishing,
        callbacks: Callbacks,
        recording: Recording,
        clock: Clock,
        rules: FlowRules,
        *,
        timeout_s: float,
    ) -> None:
        self.broker = broker
        self.publishing = publishing
        self.callbacks = callbacks
        self.recording = recording
        self.clock = clock
        self.rules = rules
        self.timeout_s = timeout_s

    def following(self, delivery: Delivery) -> Following | None:
        """Return what goes on after this task; None where it belongs to no workflow, as most do."""
        message = delivery.message
        try:
            place = place_in(message.body)
        except MalformedMessage:  # it was rejected for that
            return None
        return None if place is None else Following(self, delivery, place)


class Following:
    """What goes on after one task. It is the `Road` of an interpreter, too: the way that lasts while the lease does."""

    def __init__(self, parts: Continuing, delivery: Delivery, place: Place) -> None:
        self._parts = parts
        self._delivery = delivery
        self._place = place
        message = delivery.message
        trace: dict[str, HeaderValue] = {name: message.headers[name] for name in _TRACE if name in message.headers}
        source = Source(message.app_id, message.task_id, trace, _is_repeat(delivery))
        self._interpreter = Interpreter(self, parts.clock, parts.rules, source)

    def check(self, result: bytes) -> None:
        """See whether the result can be passed on, before anybody is told of it.

        Raises:
            ResultTooLarge: What follows would have too large a message.
            MalformedMessage: What follows cannot take it.
        """
        try:
            self._interpreter.check(self._place, result, len(self._delivery.message.body))
        except MessageTooLarge as error:
            raise ResultTooLarge(
                f"The task has succeeded, but its result of {len(result)} bytes cannot be passed on: {error} Return "
                "less: put large data into a file or an object store, and return its name."
            ) from error

    async def succeeded(self, result: bytes) -> None:
        """Go on with the result.

        Raises:
            LeaseLost: Whoever gets the task now goes on.
        """
        await self._go_on(self._ending(ReplyType.SUCCEEDED, result))

    async def failed(self, kind: str, failure: Failure) -> None:
        """Let the rest not run.

        Args:
            kind: FAILED, REJECTED, or EXPIRED for what has failed and then expired.
            failure: What went wrong.

        Raises:
            LeaseLost: Whoever gets the task now does it.
        """
        message = self._delivery.message
        await self._go_on(Ending.of_failure(kind, failure, task_id=message.task_id, task=message.type))

    async def ended(self, kind: str, body: bytes) -> None:
        """Let the rest not run, where nothing has failed: the task was cancelled, or has expired.

        Args:
            kind: A `ReplyType`.
            body: What its reply says.

        Raises:
            LeaseLost: Whoever gets the task now does it.
        """
        await self._go_on(self._ending(kind, body))

    def _ending(self, kind: str, body: bytes) -> Ending:
        return Ending(kind, body, self._delivery.message.task_id, self._delivery.message.type)

    async def _go_on(self, ending: Ending) -> None:
        try:
            await self._interpreter.go_on(self._place, ending)
        except LeaseLost:
            raise
        except (BrokerError, MalformedMessage) as error:
            message = self._delivery.message
            log.error(  # noqa: TRY400 - our own traceback says nothing more
                "the end of a task could not be brought to its chord, so its workflow ends here",
                task=message.type,
                task_id=message.task_id,
                workflow=self._place.workflow.id,
                cause=str(error),
            )
            failure = Failure.of(error)
            failed = Ending.of_failure(ReplyType.FAILED, failure, task_id=message.task_id, task=message.type)
            await self.end(self._place.workflow, failed)

    # --- the road

    async def publish(self, item: Publication) -> None:
        """See `asyncq.interpreter.Road.publish`."""
        await self._parts.publishing.follower(self._delivery, item)

    async def publish_many(self, items: Sequence[Publication]) -> Sequence[PublishError | None]:
        """See `asyncq.interpreter.Road.publish_many`."""
        return await self._parts.publishing.followers(self._delivery, items)

    async def open_barrier(self, chord: str, head: bytes, keep_s: float) -> None:
        """See `asyncq.interpreter.Road.open_barrier`."""
        parts = self._parts

        async def open_it() -> None:
            await parts.broker.barriers().open(chord, head, keep_s=keep_s, timeout_s=parts.timeout_s)

        await parts.publishing.persist(self._delivery, open_it)

    async def arrive(self, arrival: Arrival, member: Member, *, is_repeat: bool) -> Gathered | None:
        """See `asyncq.interpreter.Road.arrive`."""
        parts = self._parts
        tries = 0

        async def bring() -> Gathered | None:
            nonlocal tries
            tries += 1
            return await parts.broker.barriers().arrive(arrival.chord, arrival.size, member, timeout_s=parts.timeout_s)

        try:
            return await parts.publishing.persist(self._delivery, bring)
        except QueueGone:
            # What has arrived before finds the barrier gone when the others have come, and what follows was done. So
            # does one whose lease is lost: whoever has got its task meanwhile has brought it.
            is_lost = self._delivery.is_lost
            may_be_done = is_repeat or is_lost or tries > 1 or not self._place.workflow.is_new
            if may_be_done and parts.clock.now_ms() < arrival.kept_until_ms:
                log.info(
                    "a member of a chord has come a second time, after the chord was done",
                    task_id=self._delivery.message.task_id,
                    chord=arrival.chord,
                )
                return None
            raise

    async def end(self, workflow: Workflow, ending: Ending) -> None:
        """See `asyncq.interpreter.Road.end`."""
        parts, delivery = self._parts, self._delivery
        body = ending.body
        if ending.task_id and ending.kind in {ReplyType.FAILED, ReplyType.REJECTED}:
            body = with_raw_key(body, "task_id", to_json(ending.task_id))
        error_type, error_message = ("", "") if ending.is_success else error_of(ending.kind, ending.body)
        failure = (
            None if ending.kind in {ReplyType.SUCCEEDED, ReplyType.CANCELLED} else Failure(error_type, error_message)
        )

        async def reply() -> None:
            if workflow.reply_to is not None:
                try:
                    await parts.publishing.reply_to(delivery, workflow.reply_to, ending.kind, body, task_id=workflow.id)
                except MessageTooLarge as error:
                    log.warning("the end of a workflow was not told", workflow=workflow.id, cause=str(error))

        end = End(
            _STATES.get(ending.kind, TaskState.FAILED),
            ending.body if ending.is_success else None,
            failure,
            None if failure is None else f"task {ending.task or 'unknown'} {ending.task_id}",
            rejected=ending.kind == ReplyType.REJECTED,
        )
        try:
            await parts.recording.tell_workflow(delivery, workflow, end, reply)
        except NotKept as error:
            log.error(  # noqa: TRY400 - the traceback of our own waiting says nothing more
                "the result store never took the end of a workflow", workflow=workflow.id, cause=str(error)
            )
            await reply()  # perhaps for the second time, which does no harm; nobody else would tell it
        if failure is not None and workflow.on_failure is not None:
            await parts.callbacks.call_for_workflow(delivery, workflow, failure, datetime.now(UTC))


def _is_repeat(delivery: Delivery) -> bool:
    """Tell whether this task may have ended before: then what follows may have been done before."""
    message: Message = delivery.message
    return bool(delivery.deliveries) or runs_of(message) > 0 or replays_of(message) > 0 or attempt_of(message) > 1
