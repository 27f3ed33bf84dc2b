"""Sending a workflow: what it begins with is published, and the result store hears of it.

    a prepared workflow ─▶ the first messages, confirmed ─▶ its record in the store ─▶ handle

Invariant: what `start` returns from was confirmed, all of it. Sending the same again with the same `task_id` makes no
new task, because all ids follow from it.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic_core import from_json

from asyncq.broker import Broker, Publication
from asyncq.canceller import Canceller
from asyncq.clock import Clock
from asyncq.interpreter import FlowRules, Interpreter, Source
from asyncq.keeping import keeping_or_default
from asyncq.message import HeaderValue
from asyncq.outgoing import Lineage
from asyncq.pending_reply import PendingReply
from asyncq.program import Program
from asyncq.program import Workflow as Whole
from asyncq.recording import Recorder, moment_of, sent_update
from asyncq.sending_road import Publish, PublishMany, SendingRoad, one_by_one
from asyncq.settings import Settings
from asyncq.status import StatusUpdate, TaskState
from asyncq.workflow.preparing import Prepared, prepared
from asyncq.workflow.reading import reading_of
from asyncq.workflow.workflow import Workflow
from asyncq.workflow_handle import WorkflowHandle
from asyncq.workflow_progress.outcome import Reading
from asyncq.workflow_progress.replies import WorkflowReplies
from asyncq.workflow_progress.shape import WorkflowShape

__all__ = ["WorkflowSending"]


class WorkflowSending:
    """Sends workflows for a client.

    Args:
        app: The app's name.
        broker: An open broker.
        settings: Timeouts, sizes and names.
        clock: For timestamps and delays.
        recorder: Writes what was sent into the result store; None where there is none.
        canceller: Cancels workflows by their ids.
        pending: Where the client looks for whom a reply is.
        publish_many: Publishes messages, and returns what became of each.
    """

    def __init__(  # noqa: PLR0913 - the client's parts, put together by it alone
        self,
        app: str,
        broker: Broker,
        settings: Settings,
        clock: Clock,
        recorder: Recorder | None,
        *,
        canceller: Canceller,
        pending: MutableMapping[str, PendingReply | WorkflowReplies],
        publish_many: PublishMany,
    ) -> None:
        self._app = app
        self._broker = broker
        self._settings = settings
        self._clock = clock
        self._recorder = recorder
        self._canceller = canceller
        self._pending = pending
        self._publish_many = publish_many

    async def send(
        self,
        ready: Prepared,
        reading: Reading,
        lineage: Lineage,
        reply_to: str | None,
        publish: Publish | None = None,
    ) -> WorkflowHandle[Any]:
        """Publish what a workflow begins with, and return once the broker has confirmed all of it.

        Args:
            ready: The workflow.
            reading: How its result is read.
            lineage: Which task sends it, if one does.
            reply_to: The sender's reply queue, where its ends are wanted.
            publish: Another way to the broker than the usual one.

        Raises:
            Exception: What `start` raises.
        """
        whole, shape = replace(ready.whole, reply_to=reply_to), ready.shape
        replies = None if reply_to is None else self._expected(WorkflowReplies(whole.id, shape))
        await self.start(ready.program, whole, lineage, headers=ready.headers, publish=publish)
        await self._note_whole(ready, shape, lineage)
        recorder = self._recorder if whole.keeping.states else None

        async def cancel() -> None:
            await self._canceller.cancel([whole.id], ready.due_at_ms)

        return WorkflowHandle(whole.id, reading, shape=shape, replies=replies, recorder=recorder, cancel=cancel)

    def handle_of(self, workflow_id: str, workflow: Workflow[Any] | None) -> WorkflowHandle[Any]:
        """Return a handle for a workflow that anybody has sent.

        Args:
            workflow_id: Its id.
            workflow: Which workflow it is; None where only the result store knows.
        """
        pending = self._pending.get(workflow_id) if self._recorder is None else None
        return WorkflowHandle(
            workflow_id,
            from_json if workflow is None else reading_of(workflow),
            shape=None if workflow is None else prepared(workflow, self._clock.now_ms()).shape,
            replies=pending if isinstance(pending, WorkflowReplies) else None,
            recorder=self._recorder,
            cancel=lambda: self._canceller.cancel([workflow_id]),
            is_sent=False,
        )

    def _expected(self, replies: WorkflowReplies) -> WorkflowReplies:
        before = self._pending.get(replies.id)
        if isinstance(before, WorkflowReplies) and before.shape == replies.shape and not before.over:
            return before  # sent again: both handles hear of it
        for id_ in replies.ids:
            self._pending[id_] = replies
        return replies

    async def start(
        self,
        program: Program,
        whole: Whole,
        lineage: Lineage,
        *,
        headers: Mapping[str, HeaderValue] | None = None,
        publish: Publish | None = None,
    ) -> None:
        """Publish what a program begins with, and return once the broker has confirmed all of it.

        Members of a group are published as they are needed, with their confirms pipelined.

        Args:
            program: The program.
            whole: What all of its messages know.
            lineage: Which task sends it, if one does.
            headers: What its first messages have beside their own headers.
            publish: Another way to the broker than the usual one.

        Raises:
            PartlySent: Some of its first messages were not taken.
            PublishError: Its other subclasses say what happened; nothing was sent, or that is not known.
            InvalidOption: A step would expire before it is due.
            BrokerError: The queue of a chord could not be made.
        """
        settings = self._settings
        ends = [end for end in (whole.deadline_ms, lineage.deadline_ms) if end is not None]
        whole = replace(whole, deadline_ms=min(ends, default=None))
        rules = FlowRules(f"{settings.namespace}.tasks", settings.max_message_bytes, settings.chord_kept_s)
        publish_many = self._publish_many if publish is None else one_by_one(publish)
        road = SendingRoad(
            self._broker,
            self._clock,
            self._app,
            settings.publish_timeout_s,
            self._note,
            publish_many,
            is_new=whole.is_new,
        )
        source = Source(self._app, lineage.parent_id, headers or {})
        await Interpreter(road, self._clock, rules, source).start(program, whole)

    async def _note_whole(self, sent: Prepared, shape: WorkflowShape, lineage: Lineage) -> None:
        """Write into the result store which tasks a workflow has, so that any process can follow it."""
        whole = sent.whole
        if self._recorder is None or not whole.keeping.states:
            return
        update = StatusUpdate(
            id=whole.id,
            state=TaskState.QUEUED if sent.due_at_ms is None else TaskState.SCHEDULED,
            at=moment_of(self._clock.now_ms()),
            task=whole.name,
            queued_at=moment_of(whole.sent_ms),
            due_at=None if sent.due_at_ms is None else moment_of(sent.due_at_ms),
            parent_id=lineage.parent_id,
            root_id=lineage.root_id or whole.id,
            ttl_s=whole.keeping.ttl_s,
            life=whole.sent_ms,
            workflow=shape.to_json(),
        )
        await self._recorder.note([update])

    async def _note(self, items: Sequence[Publication]) -> None:
        """Write into the result store that the broker has these messages."""
        if self._recorder is None:
            return
        now_ms = self._clock.now_ms()
        updates = [
            sent_update(item.message, item.to.queue, keeping, now_ms)
            for item in items
            if (keeping := keeping_or_default(item.message)).states
        ]
        if updates:
            await self._recorder.note(updates)
