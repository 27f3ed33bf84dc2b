"""A workflow that is ready to be sent: with its id, and compiled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from asyncq.life import SENT_AT
from asyncq.message import RESERVED_HEADER_PREFIX, HeaderValue, new_id
from asyncq.program import Program
from asyncq.program import Workflow as Whole
from asyncq.workflow.compiling import compiled
from asyncq.workflow.workflow import Workflow
from asyncq.workflow_progress.shape import WorkflowShape, shape_of

__all__ = ["Prepared", "prepared"]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A workflow that is ready to be sent.

    Attributes:
        program: What it was compiled to.
        whole: What all of its messages know, but for the address of its sender.
        reply: Whether its end is wanted here.
        due_at_ms: When it begins at the earliest, in milliseconds since the epoch; None for at once.
        headers: What only its first messages have: those of the fire time that sends it.
    """

    program: Program
    whole: Whole
    reply: bool
    due_at_ms: int | None
    headers: Mapping[str, HeaderValue]

    @property
    def shape(self) -> WorkflowShape:
        """Its tasks."""
        return shape_of(self.program)


def prepared(workflow: Workflow[Any], now_ms: int) -> Prepared:
    """Return a workflow with its id and its program.

    Args:
        workflow: The workflow.
        now_ms: The time, in milliseconds since the epoch.

    Raises:
        InvalidWorkflow: It begins with a task that takes what came before.
        InvalidOption: A task would expire before it is due.
        InvalidQueueName: No queue can be called as an option says.
    """
    ours = {name: value for name, value in workflow.sending.headers.items() if name.startswith(RESERVED_HEADER_PREFIX)}
    if ours:
        users = {name: value for name, value in workflow.sending.headers.items() if name not in ours}
        workflow = workflow.sent_with(replace(workflow.sending, headers=users))
    sending = workflow.sending
    workflow_id = sending.task_id or new_id()
    delay_s, _ = sending.times_at(now_ms)
    sent_ms = ours.get(SENT_AT, now_ms)  # a tick was sent at its fire time, whenever that is
    whole = Whole(
        workflow_id,
        on_failure=sending.on_failure,
        keeping=sending.keeping,
        name=workflow.kind,
        deadline_ms=sending.deadline_at(now_ms),
        sent_ms=sent_ms,
        is_new=sending.task_id is None,
    )
    due_at_ms = now_ms + round(delay_s * 1000) if delay_s > 0 else None
    return Prepared(compiled(workflow, workflow_id, now_ms), whole, sending.reply is not False, due_at_ms, ours)
