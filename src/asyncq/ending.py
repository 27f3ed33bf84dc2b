"""How things of a workflow end, as values: tasks, forks and the whole; and what their members' ends make of a fork.

Invariant: every end has a body that is JSON: a value, or an error as replies tell it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic_core import from_json, to_json

from asyncq.barrier import Member
from asyncq.errors import QueueGone
from asyncq.failed_member import FailedMember
from asyncq.message import ReplyType, cut_text
from asyncq.outcome import Failure
from asyncq.program import Arrival

__all__ = [
    "CHORD_EXPIRED",
    "CHORD_FAILED",
    "Ending",
    "chord_expired",
    "chord_failed",
    "error_of",
    "failed_of",
    "in_short",
    "list_of",
]

CHORD_FAILED = "asyncq.errors.ChordFailed"
CHORD_EXPIRED = "asyncq.errors.ChordExpired"

_MEMBERS_TOLD = 100
_MEMBERS_NAMED = 5
_TEXT_BYTES = 500
_FAILED_AS: Final[Mapping[str, Literal["rejected", "cancelled", "expired"]]] = {
    ReplyType.REJECTED: "rejected",
    ReplyType.CANCELLED: "cancelled",
    ReplyType.EXPIRED: "expired",
}


@dataclass(frozen=True, slots=True)
class Ending:
    """How a task, a fork or a workflow has ended.

    Attributes:
        kind: A `ReplyType`.
        body: Its value, or its error, as JSON.
        task_id: The task that it ended with.
        task: That task's name.
    """

    kind: str
    body: bytes
    task_id: str = ""
    task: str = ""

    @property
    def is_success(self) -> bool:
        """Whether there is a value."""
        return self.kind == ReplyType.SUCCEEDED

    @classmethod
    def of_failure(cls, kind: str, failure: Failure, **more: Any) -> Ending:
        """Return the ending of what has failed, with its error as it is told in replies."""
        error = {"type": failure.type, "message": failure.message, "traceback": failure.traceback}
        return cls(kind, to_json(error), **more)


def list_of(members: Sequence[Member]) -> bytes:
    """Return the list of the members' values as JSON, with a `FailedMember` in the place of each that has none."""
    return b"[%b]" % b",".join(
        member.body if member.kind == ReplyType.SUCCEEDED else failed_of(member).model_dump_json().encode()
        for member in members
    )


def error_of(kind: str, body: bytes) -> tuple[str, str]:
    """Return type and message of an error, from the body of a reply; both empty for what was cancelled."""
    try:
        value = from_json(body)
    except ValueError:
        value = None
    fields: dict[str, Any] = value if isinstance(value, dict) else {}
    if kind == ReplyType.EXPIRED:
        error = fields.get("error")
        inner = error if isinstance(error, dict) else {}
        return "asyncq.errors.TaskExpired", str(inner.get("message", "its time was over before it could run"))
    return str(fields.get("type", "")), str(fields.get("message", ""))


def in_short(ending: Ending) -> bytes:
    """Return the body by which an end arrives at a barrier: of an error no more than `failed_of` tells.

    Whoever gathers thousands of members holds them all, so tracebacks stay with the dead letters.
    """
    if ending.kind not in {ReplyType.FAILED, ReplyType.REJECTED}:
        return ending.body
    kind, message = (cut_text(text, _TEXT_BYTES) for text in error_of(ending.kind, ending.body))
    return to_json({"type": kind, "message": message})


def failed_of(member: Member) -> FailedMember:
    """Return what is told of a member that has no value."""
    kind, message = error_of(member.kind, member.body)
    return FailedMember(
        failed=_FAILED_AS.get(member.kind, "failed"),
        index=member.index,
        task_id=member.task_id,
        task=member.task,
        error_type=cut_text(kind, _TEXT_BYTES),
        error_message=cut_text(message, _TEXT_BYTES),
    )


def chord_failed(failed: Sequence[FailedMember], size: int) -> Ending:
    """Return the ending of a fork of which some members have failed; where all are cancelled, so is it."""
    if all(member.failed == ReplyType.CANCELLED for member in failed):
        return Ending(ReplyType.CANCELLED, b"null", failed[0].task_id, failed[0].task)
    named = "; ".join(
        f"member {member.index} ({member.task} {member.task_id}) {member.failed}"
        + (f" with {member.error_type}: {member.error_message}" if member.error_type else "")
        for member in failed[:_MEMBERS_NAMED]
    )
    more = len(failed) - _MEMBERS_NAMED
    error = {
        "type": CHORD_FAILED,
        "message": f"{len(failed)} of {size} members brought no value, so what follows them does not run: {named}"
        + (f"; and {more} more" if more > 0 else ""),
        "traceback": "",
        "members": [member.model_dump() for member in failed[:_MEMBERS_TOLD]],
    }
    return Ending(ReplyType.FAILED, to_json(error), failed[0].task_id, failed[0].task)


def chord_expired(arrival: Arrival, ending: Ending, error: QueueGone) -> Ending:
    """Return the ending of a workflow whose member came to a barrier that was gone."""
    text = (
        f"Member {arrival.index} of {arrival.size} came to the barrier of chord {arrival.chord}, and it was gone: its "
        "members took longer than it was kept (chord_kept_s), or somebody has deleted its queue. What follows does not "
        f"run. {error}"
    )
    failure = Failure(CHORD_EXPIRED, text)
    return Ending.of_failure(ReplyType.FAILED, failure, task_id=ending.task_id, task=ending.task)
