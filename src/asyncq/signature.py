"""A task with bound arguments, checked and encoded, not sent yet; and what can send it.

Invariant: a signature is a value. Its arguments were validated when it was made, so sending it cannot fail on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, Unpack, overload

from pydantic_core import from_json

from asyncq.arguments import Arguments
from asyncq.body import ITEMS
from asyncq.callback import DEEPEST, Callback
from asyncq.errors import InvalidOption
from asyncq.keeping import KEEP_EVERYTHING, Keeping
from asyncq.options import Sending, SendOptions
from asyncq.results import ResultHandle
from asyncq.return_values import Results
from asyncq.workflow.node import Node
from asyncq.workflow_handle import WorkflowHandle
from asyncq.workflow_progress.outcome import Reading

if TYPE_CHECKING:  # workflows are made of signatures
    from asyncq.workflow.partial import PartialSignature
    from asyncq.workflow.preparing import Prepared
    from asyncq.workflow.workflow import Workflow

__all__ = ["Declared", "Sender", "Signature", "callback_of"]

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

_CHUNK = b'{"%b":' % ITEMS.encode()


@dataclass(frozen=True, slots=True, repr=False)
class Signature(Node[R_co]):
    """One task message before it is sent; in a workflow, a step that has all of its arguments.

    Attributes:
        name: The task's name on the wire.
        body: The arguments, as a JSON object.
        queue: The queue that it goes to unless `sending` names another.
        reply: Whether a result comes back unless `sending` says otherwise.
        decode: Reads the result's JSON into the declared return type.
        sending: The options of this send.
        keeping: What the result store keeps unless `sending` says otherwise.
        immutable: In a workflow: it takes nothing of what came before. `task.si(...)` says so.
        task: The declared task; None where this process does not have its code.
        sender: What sends it in a workflow; None where it came from elsewhere.
    """

    name: str
    body: bytes
    queue: str
    reply: bool
    decode: Callable[[bytes], R_co] = field(compare=False)
    sending: Sending = field(default_factory=Sending)
    keeping: Keeping = KEEP_EVERYTHING
    immutable: bool = False
    task: Declared | None = field(default=None, compare=False)
    sender: Sender | None = field(default=None, compare=False)

    @property
    def calls(self) -> int | None:
        """How many calls a chunk makes; None for a task that is called once."""
        return len(from_json(self.body)[ITEMS]) if self.body.startswith(_CHUNK) else None

    def options(self, **options: Unpack[SendOptions]) -> Signature[R_co]:
        """Return the same signature with other options; those given before are replaced as a whole.

        Raises:
            InvalidOption: A value cannot be used.
        """
        return replace(self, sending=Sending.of(options))

    @overload
    def taking(self, argument: None) -> Signature[R_co]: ...
    @overload
    def taking(self, argument: str) -> PartialSignature[R_co]: ...
    def taking(self, argument: str | None) -> Signature[R_co] | PartialSignature[R_co]:
        """Return the step that takes what comes before it in a workflow as one argument more.

        For tasks without their code here, as `app.signature("other.resize", {"width": 80}).taking("image")`; of others,
        `task.partial(...)` is checked.

        Args:
            argument: Its name in the message; None for nothing, as `task.si(...)`.

        Raises:
            InvalidWorkflow: The signature has that argument already, or it is none of the task's.
        """
        from asyncq.workflow.binding import taking  # noqa: PLC0415 - it makes partial signatures, of signatures

        return replace(self, immutable=True) if argument is None else taking(self, argument)

    def as_callback(self) -> Callback:
        """Return what is sent where this signature is an `on_failure=`.

        Raises:
            InvalidOption: It has options that a callback cannot have.
        """
        return callback_of(self.name, self.queue, self.body, self.sending)


def callback_of(task: str, queue: str, arguments: bytes | None, sending: Sending) -> Callback:
    """Return the callback of a task with the options of a send.

    Raises:
        InvalidOption: An option is none of a callback's.
    """
    # Moments would be over by then, its id follows from the failed task's, and nobody waits for its result.
    unusable = {
        "eta": sending.eta_ms,
        "expires": sending.expires_ms or sending.expires_s,
        "task_id": sending.task_id,
        "timeout": sending.timeout_s,
        "time_limit": sending.time_limit_s,
        "soft_time_limit": sending.soft_time_limit_s,
        "deadline": sending.deadline_ms or sending.deadline_s,
        "reply": sending.reply or None,
    }
    for option, value in unusable.items():
        if value is not None:
            raise InvalidOption(
                f"on_failure={task!r}: a callback has no {option}=; it may have queue=, delay=, headers= and "
                "on_failure= of its own."
            )
    callback = Callback(
        task, sending.queue or queue, arguments, sending.headers, sending.delay_s or 0.0, sending.on_failure
    )
    if callback.depth > DEEPEST:
        raise InvalidOption(f"on_failure={task!r}: callbacks of callbacks go {DEEPEST} deep, and not {callback.depth}.")
    return callback


class Declared(Protocol):
    """A task, as far as its signatures know it."""

    @property
    def name(self) -> str:
        """Its name on the wire."""
        ...

    @property
    def arguments(self) -> Arguments:
        """What it takes."""
        ...

    @property
    def results(self) -> Results[Any]:
        """What it returns."""
        ...


class Sender(Protocol):
    """What a task needs to be sent. Tasks know this, and no app."""

    async def send_signature(self, signature: Signature[R]) -> ResultHandle[R]:
        """Publish the signature, and return once the broker has confirmed it."""
        ...

    async def call_signature(self, signature: Signature[R]) -> R:
        """Publish the signature and wait for its result."""
        ...

    async def send_workflow(self, workflow: Workflow[R]) -> WorkflowHandle[R]:
        """Publish what a workflow begins with, and return once the broker has confirmed it."""
        ...

    async def call_workflow(self, workflow: Workflow[R]) -> R:
        """Publish what a workflow begins with and wait for its result."""
        ...

    def handle_of(self, task_id: str, task: str | None, decode: Callable[[bytes], R]) -> ResultHandle[R]:
        """Return a handle for a task that anybody has sent."""
        ...

    async def send_prepared(self, ready: Prepared, reading: Reading) -> WorkflowHandle[Any]:
        """Publish what a prepared workflow begins with, and return once the broker has confirmed it."""
        ...

    def workflow_of(self, workflow_id: str, workflow: Workflow[R] | None) -> WorkflowHandle[R]:
        """Return a handle for a workflow that anybody has sent."""
        ...
