"""Sending a workflow: what it begins with is published, and the result store hears of it.

    a prepared workflow ─▶ the first messages, confirmed ─▶ its record in the store

Invariant: what `start` returns from was confirmed, all of it. Sending the same again with the same `task_id` makes no
new task, because all ids follow from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from asyncq.broker import Broker, Publication
from asyncq.clock import Clock
from asyncq.interpreter import FlowRules, Interpreter, Source
from asyncq.keeping import keeping_or_default
from asyncq.outgoing import Lineage
from asyncq.program import Program
from asyncq.program import Workflow as Whole
from asyncq.recording import Recorder, moment_of, sent_update
from asyncq.sending_road import Publish, SendingRoad
from asyncq.settings import Settings
from asyncq.status import StatusUpdate, TaskState
from asyncq.workflow.preparing import Prepared

__all__ = ["WorkflowSending"]


class WorkflowSending:
    """Sends workflows for a client.

    Args:
        app: The app's name.
        broker: An open broker.
        settings: Timeouts, sizes and names.
        clock: For timestamps and delays.
        recorder: Writes what was sent into the result store; None where there is none.
    """

    def __init__(self, app: str, broker: Broker, settings: Settings, clock: Clock, recorder: Recorder | None) -> None:
        self._app = app
        self._broker = broker
        self._settings = settings
        self._clock = clock
        self._recorder = recorder

    async def start(self, program: Program, whole: Whole, lineage: Lineage, publish: Publish | None = None) -> None:
        """Publish what a program begins with, and return once the broker has confirmed all of it.

        Members of a group are published as they are needed, with their confirms pipelined.

        Args:
            program: The program.
            whole: What all of its messages know.
            lineage: Which task sends it, if one does.
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
        road = SendingRoad(self._broker, self._clock, self._app, settings.publish_timeout_s, self._note, publish)
        await Interpreter(road, self._clock, rules, Source(self._app, lineage.parent_id)).start(program, whole)

    async def note(self, sent: Prepared, lineage: Lineage) -> None:
        """Write into the result store which tasks a workflow has, so that any process can follow it.

        Args:
            sent: What the broker has taken.
            lineage: Which task has sent it, if one has.
        """
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
            workflow=sent.shape.to_json(),
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
