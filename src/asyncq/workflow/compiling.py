"""Compile a workflow to the program that its messages carry.

Options are resolved here: a task's own come first, then those of the part around it, then of the whole, and last what
the task's declaration says. Headers are merged, name by name.

Invariant: the ids of the program follow from the workflow's id and the places alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from asyncq.body import ITEMS
from asyncq.errors import InvalidWorkflow
from asyncq.keeping import KEEP_EVERYTHING, Keeping
from asyncq.options import Sending
from asyncq.program import Errors, Fork, Program, Step, node_id
from asyncq.queue_names import check_queue_name
from asyncq.signature import Signature
from asyncq.workflow.connecting import check_beginning
from asyncq.workflow.node import Node
from asyncq.workflow.partial import PartialSignature
from asyncq.workflow.values import Chain, Chord, Group
from asyncq.workflow.workflow import Leaf, Workflow

__all__ = ["compiled"]

_DEEPEST = 40
"""How deep groups may be in groups. JSON is read 200 levels deep, and what is read is sent as a part of other JSON."""

_BEFORE_ITEMS = len(b'{"%b":' % ITEMS.encode())


@dataclass(frozen=True, slots=True)
class _Around:
    """What a part gets from what is around it.

    Attributes:
        defaults: The options that it shares.
        delay_s: How much later it begins, where it is at the beginning of what is around it.
        eta_ms: When it begins, as `delay_s`.
    """

    defaults: Sending
    delay_s: float | None = None
    eta_ms: int | None = None

    def within(self, sending: Sending) -> _Around:
        """Return what the parts of a part get that has options itself."""
        says_when = sending.delay_s is not None or sending.eta_ms is not None
        when = sending if says_when else self
        return _Around(_over(sending, self.defaults), when.delay_s, when.eta_ms)

    def later(self) -> _Around:
        """Return what a part gets that is not at the beginning."""
        return _Around(self.defaults)


@dataclass(frozen=True, slots=True)
class _Said:
    """The options of one task, as a step has them: some are fields of the step itself."""

    sending: Sending
    queue: str | None
    reply: bool | None
    keeping: Keeping


def compiled(workflow: Workflow[Any], workflow_id: str, now_ms: int) -> Program:
    """Return the program of a workflow that is sent now.

    The `task_id`, `timeout` and `on_failure` of the whole are no part of it.

    Args:
        workflow: The workflow.
        workflow_id: Its id.
        now_ms: In milliseconds since the epoch; from here `expires` and `deadline` of the whole are counted.

    Raises:
        InvalidWorkflow: It begins with a task that takes what came before, or is nested too deep.
        InvalidOption: A task would expire before it is due.
        InvalidQueueName: No queue can be called as an option says.
    """
    check_beginning(workflow)
    whole = workflow.sending
    _, expires_ms = whole.times_at(now_ms)
    deadline_ms = whole.deadline_at(now_ms)
    fixed = replace(
        whole,
        expires_s=None,
        expires_ms=expires_ms,
        deadline_s=None,
        deadline_ms=deadline_ms,
        on_failure=None,
        says_on_failure=False,
    )
    compiler = _Compiler(workflow_id, now_ms)
    return compiler.program(workflow, "", _Around(Sending()).within(fixed), is_whole=True)


class _Compiler:
    def __init__(self, workflow_id: str, now_ms: int) -> None:
        self._id = workflow_id
        self._now_ms = now_ms
        self._checked_queues: set[str] = set()
        self._own: Sending | None = None
        self._around: _Around | None = None
        self._said = _Said(Sending(), None, None, KEEP_EVERYTHING)

    def program(self, node: Node[Any], prefix: str, around: _Around, *, is_whole: bool = False) -> Program:
        """Return the program of a part.

        Args:
            node: The part.
            prefix: Its place, `2.5.`; nothing for the whole.
            around: The options around it.
            is_whole: Its options are in `around` already.
        """
        program: list[Step | Fork] = []
        self._append(program, node, prefix, around, is_whole=is_whole)
        return tuple(program)

    def _append(
        self, program: list[Step | Fork], node: Node[Any], prefix: str, around: _Around, *, is_whole: bool = False
    ) -> None:
        if isinstance(node, Workflow) and not is_whole:
            around = around.within(node.sending)
        if isinstance(node, Chain):
            for number, step in enumerate(node.steps):
                self._append(program, step, prefix, around.later() if number else around)
        elif isinstance(node, Group):
            program.append(self._fork(node, f"{prefix}{len(program)}", around, "stop"))
        elif isinstance(node, Chord):
            header = around.within(node.header.sending)
            program.append(self._fork(node.header, f"{prefix}{len(program)}", header, node.errors))
            self._append(program, node.body, prefix, around.later() if node.header.members else around)
        elif isinstance(node, Signature | PartialSignature):
            program.append(self._step(node, f"{prefix}{len(program)}", around))

    def _fork(self, group: Group[Any], path: str, around: _Around, errors: Errors) -> Fork:
        if path.count(".") > 2 * (_DEEPEST - 1):  # two parts a level: the element, and the member
            raise InvalidWorkflow(f"Groups and chords may be {_DEEPEST} deep in each other, and these are deeper.")
        members = tuple(
            self.program(member, f"{path}.{number}.", around) for number, member in enumerate(group.members)
        )
        return Fork(node_id(self._id, path), members, errors)

    def _step(self, leaf: Leaf, path: str, around: _Around) -> Step:
        said = self._resolved(leaf.sending, around)
        queue = self._checked(said.queue or leaf.queue)
        is_chunk = isinstance(leaf, Signature) and leaf.calls is not None
        return Step(
            node_id(self._id, path),
            leaf.name,
            queue,
            b"{}" if is_chunk else leaf.body,
            leaf.into if isinstance(leaf, PartialSignature) else None,
            leaf.body[_BEFORE_ITEMS:-1] if is_chunk else None,
            said.sending,
            said.keeping.over(leaf.keeping),
            leaf.reply if said.reply is None else said.reply,
        )

    def _resolved(self, own: Sending, around: _Around) -> _Said:
        """Return the options of a task. Members of a large group have the same ones, one after the other."""
        if own is not self._own or around is not self._around:
            inside = around.within(own)
            defaults = inside.defaults
            sending = replace(
                defaults,
                delay_s=inside.delay_s,
                eta_ms=inside.eta_ms,
                queue=None,
                reply=None,
                keeping=KEEP_EVERYTHING,
            )
            sending.times_at(self._now_ms)  # what never runs is refused here
            self._own, self._around = own, around
            self._said = _Said(sending, defaults.queue, defaults.reply, defaults.keeping)
        return self._said

    def _checked(self, queue: str) -> str:
        if queue not in self._checked_queues:
            check_queue_name(queue)
            self._checked_queues.add(queue)
        return queue


def _over(own: Sending, around: Sending) -> Sending:
    """Return options that are shared, with those of what is around them where they say nothing."""
    expiry = own if (own.expires_s or own.expires_ms) is not None else around
    deadline = own if own.says_deadline else around
    callback = own if own.says_on_failure else around
    return Sending(
        expires_s=expiry.expires_s,
        expires_ms=expiry.expires_ms,
        queue=own.queue or around.queue,
        headers={**around.headers, **own.headers},
        reply=around.reply if own.reply is None else own.reply,
        on_failure=callback.on_failure,
        says_on_failure=callback.says_on_failure,
        time_limit_s=around.time_limit_s if own.time_limit_s is None else own.time_limit_s,
        soft_time_limit_s=around.soft_time_limit_s if own.soft_time_limit_s is None else own.soft_time_limit_s,
        deadline_s=deadline.deadline_s,
        deadline_ms=deadline.deadline_ms,
        says_deadline=deadline.says_deadline,
        keeping=own.keeping.over(around.keeping),
    )
