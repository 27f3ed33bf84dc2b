"""What chains, groups and chords have in common: they are sent as a whole, printed, drawn and written as JSON."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Self, TypeVar, Unpack

from asyncq.errors import InvalidWorkflow
from asyncq.options import Sending, SendOptions
from asyncq.signature import Sender, Signature
from asyncq.workflow.node import Node
from asyncq.workflow.partial import PartialSignature
from asyncq.workflow_handle import WorkflowHandle

__all__ = ["Leaf", "Workflow", "leaves"]

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

Leaf = Signature[Any] | PartialSignature[Any]


class Workflow(Node[R_co]):
    """A chain, a group or a chord. `chain(...)`, `group(...)`, `chord(...)`, `then` and `|` make them.

    Attributes:
        kind: "chain", "group" or "chord".
        sending: The options of the whole: those that it shares are the defaults of its parts.
        parts: What it is made of, in order.
    """

    __slots__ = ()
    kind: ClassVar[str]

    @property
    @abstractmethod
    def sending(self) -> Sending:
        """The options of the whole."""

    @property
    @abstractmethod
    def parts(self) -> tuple[Node[Any], ...]:
        """What it is made of, in order."""

    @abstractmethod
    def options(self, **options: Unpack[SendOptions]) -> Self:
        """Return the same workflow with options for the whole; those given before are replaced.

        `delay` and `eta` hold back its beginning; `expires` and `deadline`, in seconds, count from when it is sent;
        `task_id` is its id; `timeout` is how long `call` waits; `on_failure` is sent once, when the whole has failed.
        All others are the defaults of its parts, which their own options come before.

        Raises:
            InvalidOption: A value cannot be used.
        """

    @abstractmethod
    def sent_with(self, sending: Sending) -> Self:
        """Return the same workflow with these options for the whole."""

    async def send(self) -> WorkflowHandle[R_co]:
        """Publish what the workflow begins with, and return once the broker has confirmed it.

        Raises:
            InvalidWorkflow: It begins with a task that takes what came before, and nothing did.
            NotOpen: The app was not entered.
            PublishError: The broker did not take it, or it is unknown whether it did.
        """
        return await self.sender().send_workflow(self)

    async def call(self) -> R_co:
        """Publish the workflow and wait for its result.

        Raises:
            ResultError: A part has failed, or no result came in time (`options(timeout=...)`).
            Exception: And all that `send` raises.
        """
        return await self.sender().call_workflow(self)

    def sender(self) -> Sender:
        """Return the app of its tasks.

        Raises:
            InvalidWorkflow: No part of it belongs to an app of this process.
        """
        for leaf in leaves(self):
            if leaf.sender is not None:
                return leaf.sender
        raise InvalidWorkflow(f"This {self.kind} has no task of an app in this process. Send it by `app.send(...)`.")

    def draw(self) -> str:
        """Return the workflow as a Mermaid flowchart, which GitHub and many editors show as a picture."""
        from asyncq.workflow.drawing import mermaid  # noqa: PLC0415 - it draws workflows

        return mermaid(self)

    def to_json(self) -> str:
        """Return the workflow as JSON text; `app.workflow_from_json` reads it."""
        from asyncq.workflow.serialising import to_json  # noqa: PLC0415 - it writes workflows

        return to_json(self)


def leaves(node: Node[Any]) -> Iterator[Leaf]:
    """Yield the tasks of a workflow, in the order in which they were written."""
    if isinstance(node, Workflow):
        for part in node.parts:
            yield from leaves(part)
    elif isinstance(node, Signature | PartialSignature):
        yield node
