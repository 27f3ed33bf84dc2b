"""Sending: from a signature to a confirmed message, and from replies to handles.

    signature ─▶ message (ids, reply_to, headers) ─▶ broker.publish ─▶ handle
    mailbox ─▶ reply ─▶ the pending reply of its task id ─▶ whoever waits at a handle

Invariant: a handle is returned only for a message that the broker has confirmed. Replies: see reply_reader.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar, cast

from asyncq.body import ON_FAILURE, with_key
from asyncq.broker import Broker, Exchange, Publication
from asyncq.canceller import Canceller
from asyncq.clock import Clock
from asyncq.context import TaskContext, current_context
from asyncq.controller import Controller
from asyncq.errors import (
    InvalidOption,
    NoContext,
    PartlySent,
    PublishError,
)
from asyncq.loggers import get_logger
from asyncq.message import DUE_AT, Message, deadline_ms_of, new_id, root_id_of
from asyncq.outbox import Outbox
from asyncq.outgoing import Lineage, headers_and_delay
from asyncq.pending_reply import PendingReply
from asyncq.program import Program
from asyncq.program import Workflow as Whole
from asyncq.queue_names import check_queue_name
from asyncq.recording import Recorder, sent_update
from asyncq.reply_reader import ReplyReader
from asyncq.results import ResultHandle
from asyncq.sending_road import Publish
from asyncq.settings import Settings
from asyncq.signature import Signature
from asyncq.workflow.preparing import Prepared, prepared
from asyncq.workflow.reading import reading_of
from asyncq.workflow.workflow import Workflow
from asyncq.workflow_handle import WorkflowHandle
from asyncq.workflow_progress.outcome import Reading
from asyncq.workflow_sending import WorkflowSending

if TYPE_CHECKING:
    from asyncq.tracing.spans import Tracing

__all__ = ["Client"]

log = get_logger("asyncq.client")

R = TypeVar("R")

_NOBODY = Lineage()

_IN_FLIGHT = 1000
"""How many confirms `send_many` waits for at once: enough to fill the pipe, few enough to bound the memory."""


class Client:
    """Sends signatures through a broker; the `Sender` that tasks know.

    Args:
        app: The app's name, for `app_id`.
        broker: An open broker.
        settings: Timeouts and names.
        clock: For timestamps, `eta` and `expires`.
        recorder: Writes what was sent into the result store; None where there is none.
        tracing: Makes the spans of what is sent; None for none.

    Attributes:
        recorder: The same.
        tracing: The same.
        canceller: Cancels tasks by their ids.
        controller: Asks workers.
        outbox: Publishes what it sends.
    """

    def __init__(
        self,
        app: str,
        broker: Broker,
        settings: Settings,
        clock: Clock,
        recorder: Recorder | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.recorder = recorder
        self.tracing = tracing
        self.canceller = Canceller(broker, settings, clock)
        self.controller = Controller(app, broker, settings, clock)
        self.outbox = Outbox(broker, settings.publish_timeout_s, tracing)
        self._app = app
        self._broker = broker
        self._settings = settings
        self._clock = clock
        self._tasks_exchange = f"{settings.namespace}.tasks"
        self._checked_queues: set[str] = set()
        self._replies = ReplyReader(broker, settings.publish_timeout_s)
        self._workflows = WorkflowSending(
            app,
            broker,
            settings,
            clock,
            recorder,
            canceller=self.canceller,
            pending=self._replies.pending,
            publish_many=self.outbox.publish_many,
        )

    async def close(self) -> None:
        """Stop reading replies. Whoever still waits for one is told."""
        await self._replies.close()
        if self.recorder is not None:
            await self.recorder.close()

    async def send_signature(self, signature: Signature[R]) -> ResultHandle[R]:
        """Publish the signature, and return once the broker has confirmed it.

        Raises:
            Unroutable: There is no such queue.
            InvalidOption: It would expire before it is due.
            PublishError: One of its other subclasses says what happened, and whether sending again is safe.
        """
        publication, handle = await self._prepare(signature)
        await self._send(signature, publication)
        return handle

    async def call_signature(self, signature: Signature[R]) -> R:
        """Publish the signature and wait for its result.

        Raises:
            TaskFailed: The task has finally failed.
            TaskExpired: Its `expires=` was over before it could run, or run again.
            ResultTimeout: No result within the send's `timeout=`, or `call_timeout_s` of the settings.
            PublishError: As `send_signature`.
        """
        publication, handle = await self._prepare(signature, reply=True)
        await self._send(signature, publication)
        timeout_s = signature.sending.timeout_s
        return await handle.result(self._settings.call_timeout_s if timeout_s is None else timeout_s)

    async def send_by(self, what: Signature[Any] | Workflow[Any], publish: Publish) -> None:
        """Send a signature or a workflow by another way to the broker, without a reply.

        Args:
            what: What to send.
            publish: Returns once the broker has confirmed a message. What it raises passes unchanged.

        Raises:
            InvalidOption: It would expire before it is due.
            PartlySent: Some of a workflow's first messages were not taken.
        """
        if isinstance(what, Workflow):
            ready = prepared(what, self._clock.now_ms())
            await self._workflows.send(ready, reading_of(what), _lineage(), None, publish)
            return
        publication, _ = await self._prepare(what, reply=False)
        await self._send(what, publication, publish)

    async def send_many(self, signatures: Iterable[Signature[R]]) -> list[ResultHandle[R]]:
        """Publish many signatures with their confirms pipelined. The iterable is read as it is needed.

        Returns:
            A handle for each, in order.

        Raises:
            PartlySent: Some were not taken; its `outcomes` tell which, and why.
        """
        outcomes: list[ResultHandle[R] | PublishError] = []
        source = iter(signatures)
        try:
            while batch := list(islice(source, _IN_FLIGHT)):
                outcomes += await self._send_batch(batch)
        except Exception as error:
            if not outcomes:
                raise
            raise PartlySent(
                f"The first {len(outcomes)} tasks were handled, and `outcomes` of this error has a handle or an error "
                f"for each. None after them was sent, because one of those cannot be: {error}",
                outcomes,
            ) from error
        errors = [item for item in outcomes if isinstance(item, PublishError)]
        if errors:
            raise PartlySent(
                f"{len(errors)} of {len(outcomes)} tasks were not, or perhaps not, sent; `outcomes` of this error has "
                f"a handle or an error for each. The first error: {errors[0]}",
                outcomes,
            ) from errors[0]
        return [item for item in outcomes if isinstance(item, ResultHandle)]

    # --- workflows

    async def send_workflow(self, workflow: Workflow[R]) -> WorkflowHandle[R]:
        """Publish what a workflow begins with, and return once the broker has confirmed all of it.

        Raises:
            InvalidWorkflow: It begins with a task that takes what came before.
            PartlySent: Some of its first messages were not taken.
            PublishError: Its other subclasses say what happened.
            BrokerError: The queue of a chord could not be made.
        """
        ready = prepared(workflow, self._clock.now_ms())
        return cast("WorkflowHandle[R]", await self.send_prepared(ready, reading_of(workflow)))

    async def call_workflow(self, workflow: Workflow[R]) -> R:
        """Publish what a workflow begins with and wait for its result; raises what both raise."""
        if workflow.sending.reply is False:
            workflow = workflow.sent_with(replace(workflow.sending, reply=True))
        handle = await self.send_workflow(workflow)
        timeout_s = workflow.sending.timeout_s
        return await handle.result(self._settings.call_timeout_s if timeout_s is None else timeout_s)

    async def send_prepared(self, ready: Prepared, reading: Reading) -> WorkflowHandle[Any]:
        """Publish what a prepared workflow begins with, whose result is read so; see `send_workflow`."""
        reply_to = await self._replies.address() if ready.reply else None
        return await self._workflows.send(ready, reading, _lineage(), reply_to)

    def workflow_of(self, workflow_id: str, workflow: Workflow[R] | None) -> WorkflowHandle[R]:
        """Return a handle for a workflow that anybody has sent.

        Args:
            workflow_id: Its id.
            workflow: Which workflow it is; None where only the result store knows.
        """
        return self._workflows.handle_of(workflow_id, workflow)

    async def send_program(
        self, program: Program, workflow: Whole, *, expect: Sequence[str] = ()
    ) -> dict[str, PendingReply]:
        """Publish what a compiled workflow begins with, and return once the broker has confirmed all of it.

        Args:
            program: What it was compiled to.
            workflow: What all of its messages know; `reply_to` and `sent_ms` are set here.
            expect: The ids whose ends are wanted here, the workflow's own among them.

        Returns:
            What will come of each of these ids. Raises what `WorkflowSending.start` raises.
        """
        reply_to = await self._replies.address() if expect else None
        pending = {id_: self._replies.expect(id_) for id_ in expect}
        whole = replace(workflow, reply_to=reply_to, sent_ms=self._clock.now_ms())
        await self._workflows.start(program, whole, _lineage())
        return pending

    async def _send_batch(self, batch: Sequence[Signature[R]]) -> list[ResultHandle[R] | PublishError]:
        prepared = [await self._prepare(signature) for signature in batch]
        errors = await self.outbox.publish_many([publication for publication, _ in prepared])
        sent = [
            (signature, publication.message)
            for signature, (publication, _), error in zip(batch, prepared, errors, strict=True)
            if error is None
        ]
        await self._note(sent)
        return [handle if error is None else error for (_, handle), error in zip(prepared, errors, strict=True)]

    async def _send(
        self,
        signature: Signature[Any],
        publication: Publication,
        publish: Publish | None = None,
    ) -> None:
        await self.outbox.publish(publication, publish)
        await self._note([(signature, publication.message)])

    async def _note(self, sent: Sequence[tuple[Signature[Any], Message]]) -> None:
        """Write into the result store that the broker has these: only now is it known."""
        if self.recorder is None:
            return
        now_ms = self._clock.now_ms()
        updates = [
            sent_update(message, signature.sending.queue or signature.queue, keeping, now_ms)
            for signature, message in sent
            if (keeping := signature.sending.keeping.over(signature.keeping)).states
        ]
        if updates:
            await self.recorder.note(updates)

    def handle_of(self, task_id: str, task: str | None, decode: Callable[[bytes], R]) -> ResultHandle[R]:
        """Return a handle for a task that anybody has sent.

        Args:
            task_id: Its id.
            task: Its name, where another one's id is to be refused.
            decode: Reads the result's JSON.
        """
        # The store knows more than the first reply: a dead letter may have been sent back since, and lives again.
        pending = self._replies.pending.get(task_id) if self.recorder is None else None
        return ResultHandle(
            task_id,
            pending if isinstance(pending, PendingReply) else None,
            decode,
            self.recorder,
            task,
            is_sent=False,
            cancel=lambda: self.canceller.cancel([task_id]),
        )

    # --- messages

    async def _prepare(
        self, signature: Signature[R], *, reply: bool | None = None
    ) -> tuple[Publication, ResultHandle[R]]:
        if not isinstance(signature, Signature):
            raise InvalidOption(f"A signature is sent, such as `task.s(1, 2)`, not {signature!r}.")
        sending = signature.sending
        queue = sending.queue or signature.queue
        if queue not in self._checked_queues:
            check_queue_name(queue)
            self._checked_queues.add(queue)
        if reply is None:
            reply = signature.reply if sending.reply is None else sending.reply
        task_id = sending.task_id or new_id()
        now_ms = self._clock.now_ms()
        keeping = sending.keeping.over(signature.keeping)
        headers, delay = headers_and_delay(sending, keeping, _lineage(), now_ms)
        pending, reply_to = None, None
        if reply:
            reply_to = await self._replies.address()
            pending = self._replies.expect(task_id)
        body = signature.body
        if sending.says_on_failure:
            body = with_key(body, ON_FAILURE, b"null" if sending.on_failure is None else sending.on_failure.to_json())
        message = Message(
            type=signature.name,
            body=body,
            task_id=task_id,
            message_id=new_id(),
            reply_to=reply_to,
            headers=headers,
            timestamp_ms=now_ms,
            app_id=self._app,
        )
        publication = Publication(message, Exchange(self._tasks_exchange, queue), delay)
        due_at_ms = headers.get(DUE_AT)

        async def cancel() -> None:
            await self.canceller.cancel([task_id], due_at_ms)

        # Of a task whose states are not kept, its replies know more than the store.
        recorder = self.recorder if keeping.states else None
        return publication, ResultHandle(task_id, pending, signature.decode, recorder, signature.name, cancel=cancel)


def _lineage() -> Lineage:
    """Return which task sends this one, if one does. What has a deadline passes it on."""
    context = _sending_task()
    if context is None:
        return _NOBODY
    message = context.message
    return Lineage(context.task_id, root_id_of(message), deadline_ms_of(message))


def _sending_task() -> TaskContext | None:
    try:
        return current_context()
    except NoContext:
        return None
