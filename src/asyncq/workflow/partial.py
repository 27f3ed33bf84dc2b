"""A task that takes what came before it in a workflow, with the arguments that it has already.

Invariant: the arguments were checked when they were bound; `into` names an argument that is not among them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar, Unpack

from asyncq.keeping import KEEP_EVERYTHING, Keeping
from asyncq.options import Sending, SendOptions
from asyncq.signature import Declared, Sender
from asyncq.workflow.node import Node

__all__ = ["PartialSignature"]

R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True, slots=True, repr=False)
class PartialSignature(Node[R_co]):
    """A task for the middle of a workflow. `task.partial(...)` makes it; a task that is written as a step becomes one.

    Attributes:
        name: The task's name on the wire.
        body: The arguments that are bound, as a JSON object.
        into: The key of the argument that takes what came before; `WHOLE` where that is all of them.
        queue: The queue that it goes to unless `sending` names another.
        reply: Whether a result comes back unless `sending` says otherwise.
        decode: Reads the result's JSON into the declared return type.
        sending: The options of this step.
        keeping: What the result store keeps unless `sending` says otherwise.
        task: The declared task; None where this process does not have its code.
        sender: What sends the workflow; None where the workflow came from elsewhere.
    """

    name: str
    body: bytes
    into: str
    queue: str
    reply: bool
    decode: Callable[[bytes], R_co] = field(compare=False)
    sending: Sending = field(default_factory=Sending)
    keeping: Keeping = KEEP_EVERYTHING
    task: Declared | None = field(default=None, compare=False)
    sender: Sender | None = field(default=None, compare=False)

    def options(self, **options: Unpack[SendOptions]) -> PartialSignature[R_co]:
        """Return the same step with other options; those given before are replaced as a whole.

        Raises:
            InvalidOption: A value cannot be used.
        """
        return replace(self, sending=Sending.of(options))
