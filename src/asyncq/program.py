"""Programs: what a workflow is compiled to when it is sent, and what travels in its messages.

    chain(a, b, c)         Step a · Step b · Step c
    chord([a, b], c)       Fork [(Step a), (Step b)] · Step c

A task's message carries its `Place`: the rest of its program, and the barrier at which a member's last value arrives.
So whoever settles the task knows how to go on, and nothing is kept elsewhere but the chord's own queue.

Pure values; `program_json.py` writes and reads them, `interpreter.py` goes on with them.

Invariant: ids are part of the program. The sender, a second settlement after a crash, and a handle all know the same
ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from asyncq.callback import Callback
from asyncq.keeping import KEEP_EVERYTHING, Keeping
from asyncq.message import derived_id
from asyncq.options import Sending

__all__ = ["UNNAMED", "WHOLE", "Arrival", "Errors", "Fork", "Place", "Program", "Step", "Workflow", "node_id"]

UNNAMED: Final = "workflow"

WHOLE: Final = "$"
"""The `into` of a step whose task takes one model as its message: the value that came before is all its arguments."""

Errors = Literal["stop", "collect"]
"""What becomes of a fork whose members have failed. `stop`: it fails, with all that failed. `collect`: its list has
a `FailedMember` in the place of each."""


@dataclass(frozen=True, slots=True)
class Step:
    """One task.

    Attributes:
        id: Its task id; see `node_id`.
        task: Its name on the wire.
        queue: Where it is sent.
        arguments: A JSON object.
        into: The argument that takes the value of what came before; `WHOLE` for all of them; None where that value is
            not wanted, or nothing came before.
        items: For a chunk: a JSON array of objects, each with the arguments of one call over `arguments`. The task's
            value is the list of what these calls return.
        sending: The options of the send. Its `queue`, `task_id` and `reply` are said elsewhere in here; times from
            now are counted from when the step is sent.
        keeping: What the result store keeps.
        reply: Whether its own end is told to the workflow's sender.
    """

    id: str
    task: str
    queue: str
    arguments: bytes = b"{}"
    into: str | None = None
    items: bytes | None = None
    sending: Sending = field(default_factory=Sending)
    keeping: Keeping = KEEP_EVERYTHING
    reply: bool = True


@dataclass(frozen=True, slots=True)
class Fork:
    """Programs that run beside each other, each with the value that came before.

    Attributes:
        id: Of the fork; its barrier is called so.
        members: The programs. One that is empty has the value that came before as its own.
        errors: What becomes of it when members fail.
        joined: Whether the list of the members' values is wanted though nothing follows. Where something follows, or
            the fork is a part of another one that is joined, it always is.
    """

    id: str
    members: tuple[Program, ...]
    errors: Errors = "stop"
    joined: bool = False


Program = tuple[Step | Fork, ...]
"""Steps and forks, one after the other, each with the value of the one before."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """Where the last value of a member goes.

    Attributes:
        chord: The id of the fork whose barrier that is.
        index: The member's place in the list.
        size: How many members there are.
        kept_until_ms: Until when the barrier stands for certain, in milliseconds since the epoch.
    """

    chord: str
    index: int
    size: int
    kept_until_ms: int


@dataclass(frozen=True, slots=True)
class Workflow:
    """What all messages of a workflow know.

    Attributes:
        id: Its id, and the id under which its end is told and recorded.
        reply_to: The sender's reply queue, where the end is wanted.
        on_failure: What is sent when the workflow has finally failed.
        keeping: What the result store keeps of the workflow itself.
        name: For people: what the store calls it.
        deadline_ms: By when its work must be done, in milliseconds since the epoch; each step has it.
        sent_ms: When it was sent, in milliseconds since the epoch; a workflow that is sent again has a later life.
        is_new: Whether its id was made for this send, so that nobody can have sent it before. Of one that was sent
            twice each member comes twice, and one that finds its barrier gone is no sign that it has expired.
    """

    id: str
    reply_to: str | None = None
    on_failure: Callback | None = None
    keeping: Keeping = KEEP_EVERYTHING
    name: str = UNNAMED
    deadline_ms: int | None = None
    sent_ms: int = 0
    is_new: bool = True


@dataclass(frozen=True, slots=True)
class Place:
    """The place of one task in its workflow.

    Attributes:
        workflow: The workflow.
        then: What follows; of what was read from a message, the next element alone.
        tail: What follows that, as JSON that nobody has looked at yet; a long chain is not read anew at each step.
        chord: Where the value goes in the end; None outside of joined forks.
        ends: Whether the end of the program is the end of the workflow: not in a fork that is not joined, of which
            each member has an end of its own.
    """

    workflow: Workflow
    then: Program = ()
    tail: bytes = b""
    chord: Arrival | None = None
    ends: bool = True

    @property
    def has_more(self) -> bool:
        """Whether anything follows."""
        return bool(self.then or self.tail)


def node_id(workflow_id: str, path: str) -> str:
    """Return the id of a node: the same one for everybody who knows the workflow.

    Args:
        workflow_id: The workflow's.
        path: Its place in the tree, `0` or `2.5.1`: the element of the program, the member of a fork, its element ...
    """
    return derived_id(workflow_id, path)
