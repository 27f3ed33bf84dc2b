"""What the worker and a process of its pool say to each other, and how that travels through a socket.

A frame is one of the values below, pickled, behind its length: both ends are this package, of one version. What comes
from users travels inside as JSON (arguments, results) or as values of the standard library.

Invariant: reading a frame imports no module of a user's.
"""

from __future__ import annotations

import pickle  # see the invariant: each end reads only what the other one wrote
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from asyncq.importable import Place
from asyncq.message import Message
from asyncq.options import Sending
from asyncq.results import Progress
from asyncq.worker.process_pool.raised import RaisedError
from asyncq.workflow.preparing import Prepared

__all__ = [
    "LENGTH",
    "Answer",
    "Ask",
    "AskCancel",
    "AskHandle",
    "AskNext",
    "AskProgress",
    "AskResult",
    "AskSend",
    "AskStatus",
    "AskedFor",
    "Cancel",
    "Ended",
    "Load",
    "Loaded",
    "Ready",
    "Refused",
    "Result",
    "Run",
    "Soften",
    "Stop",
    "Unfit",
    "Wrote",
    "packed",
    "unpacked",
]

LENGTH = struct.Struct("!Q")


def packed(frame: object) -> bytes:
    """Return a frame as it travels."""
    body = pickle.dumps(frame, protocol=5)
    return LENGTH.pack(len(body)) + body


def unpacked(body: bytes) -> Any:
    """Return the frame of which this is the pickled form."""
    return pickle.loads(body)  # noqa: S301 - it comes from the other end of our own socket


# --- to the process


@dataclass(frozen=True, slots=True)
class Load:
    """Import the function of a task, to see that it can be done, and to be warm."""

    task: str
    place: Place


@dataclass(frozen=True, slots=True)
class Run:
    """Run a task.

    Attributes:
        number: Of this run, in this process.
        message: What was delivered.
        place: Where the function is.
        pass_context: Whether the function takes the context.
        queue: Where the message came from.
        attempt: The attempt's number.
        deadline_ms: When it is stopped, in milliseconds since the epoch.
        soft_limit_s: Its soft limit, in seconds, for the message of the error.
        trace: The trace context of the attempt, as headers; empty for none.
    """

    number: int
    message: Message
    place: Place
    pass_context: bool
    queue: str
    attempt: int
    deadline_ms: int | None
    soft_limit_s: float | None
    trace: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Soften:
    """Raise `SoftTimeLimit` in this run."""

    number: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """Tell this run, by `ctx.cancelled`, that it is stopped; the kill follows."""

    number: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of an `Ask`: a value, or an error."""

    number: int
    value: Any = None
    error: RaisedError | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """End in peace."""


# --- to the worker


@dataclass(frozen=True, slots=True)
class Ready:
    """The process is up."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A task's function is imported; or why not."""

    error: RaisedError | None


@dataclass(frozen=True, slots=True)
class Result:
    """The task returned; its value as JSON."""

    json: bytes


@dataclass(frozen=True, slots=True)
class Unfit:
    """The task returned what does not fit, or cannot be written as JSON."""

    error: RaisedError


@dataclass(frozen=True, slots=True)
class Refused:
    """The arguments could not be read, so it was not run."""

    reason: str
    error: RaisedError


@dataclass(frozen=True, slots=True)
class Ended:
    """A run has ended."""

    number: int
    ending: Result | Unfit | Refused | RaisedError


@dataclass(frozen=True, slots=True)
class AskProgress:
    """Publish an update."""

    update: Progress


@dataclass(frozen=True, slots=True)
class AskSend:
    """Send a task. The answer is the number of its handle, and its id; for `call` the JSON of its result."""

    name: str
    body: bytes
    queue: str
    reply: bool
    sending: Sending
    call: bool


@dataclass(frozen=True, slots=True)
class AskResult:
    """Wait for the result of a handle; its JSON is the answer, for a group a list of such."""

    handle: int
    timeout_s: float | None


@dataclass(frozen=True, slots=True)
class AskHandle:
    """Make a handle for a task that anybody has sent; its number is the answer."""

    task_id: str
    task: str | None


@dataclass(frozen=True, slots=True)
class AskStatus:
    """Read the status of a handle's task, or workflow."""

    handle: int


@dataclass(frozen=True, slots=True)
class AskCancel:
    """Cancel a handle's task, or workflow."""

    handle: int


@dataclass(frozen=True, slots=True)
class AskNext:
    """Wait for a handle's next update, or its next status; None where there is none any more."""

    handle: int
    of: Literal["updates", "statuses"]


@dataclass(frozen=True, slots=True)
class AskSendWorkflow:
    """Send a workflow. The answer is the number of its handle."""

    ready: Prepared


@dataclass(frozen=True, slots=True)
class AskWorkflow:
    """Make a handle for a workflow that anybody has sent; its number is the answer."""

    workflow_id: str


AskedFor = (
    AskProgress | AskSend | AskSendWorkflow | AskHandle | AskWorkflow | AskResult | AskStatus | AskCancel | AskNext
)


@dataclass(frozen=True, slots=True)
class Ask:
    """Something that only the worker can do.

    Attributes:
        number: Of this question.
        what: To be done.
        trace: The trace context of the code that asks, as headers; empty for none.
    """

    number: int
    what: AskedFor
    trace: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Wrote:
    """A line for the log.

    Attributes:
        logger: The logger's name.
        level: Its number in `logging`.
        event: The text.
        values: What belongs to it, as JSON has it; None where the record has only its text.
        trace: A traceback as text.
        task: What the line says of the task that has written it, and of its span.
    """

    logger: str
    level: int
    event: str
    values: dict[str, Any] | None
    trace: str | None
    task: dict[str, Any]
