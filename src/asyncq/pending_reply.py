"""What comes back on a reply queue: kept for its task until somebody reads it, and turned into the task's outcome.

Invariant: what a reply says is read as it is, or an error says that it cannot be.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TypeVar

from asyncq.errors import InvalidResult, ReplyLost, TaskCancelled, TaskExpired, TaskFailed, TaskRejected
from asyncq.message import Message, ReplyType
from asyncq.outcome import Failure
from asyncq.status import Progress, TaskState, TaskStatus
from asyncq.stored_result import invalid_result

__all__ = ["PendingReply", "Waitable", "on_wait", "outcome_of_reply", "status_of_reply"]

R = TypeVar("R")

_MAX_KEPT_UPDATES = 256
# What reading a foreign body may raise; the third one comes from JSON that is nested some thousand deep.
_UNREADABLE = (ValueError, TypeError, RecursionError, KeyError, AttributeError)

on_wait: ContextVar[Callable[[asyncio.Future[None]], object] | None] = ContextVar("asyncq_on_wait", default=None)
"""Called with what each wait for a reply waits for, in the waiting code's own context. For tests that move the time:
they have to know which tasks do nothing but wait for another one's end."""


class Waitable:
    """Something that changes, and that can be waited for."""

    __slots__ = ("__weakref__", "_waiters")

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[None]] = []

    async def changed(self) -> None:
        """Wait for the next change."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        if (tell := on_wait.get()) is not None:
            tell(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


class PendingReply(Waitable):
    """What has arrived for one task id. The client fills it; handles read it.

    Only the latest updates are kept (256), so that a handle that nobody reads stays small.
    """

    __slots__ = ("_final", "_updates", "_updates_seen", "lost")

    def __init__(self) -> None:
        super().__init__()
        self._final: Message | None = None
        self._updates: deque[Progress] = deque(maxlen=_MAX_KEPT_UPDATES)
        self._updates_seen = 0
        self.lost: ReplyLost | None = None

    def feed(self, message: Message) -> None:
        """Take a reply. The first final one counts: a redelivered task may answer twice."""
        if message.type == ReplyType.PROGRESS:
            update = _progress(message.body)
            if update is not None:
                self._updates.append(update)
                self._updates_seen += 1
        elif self._final is None:
            self._final = message
        self._wake()

    def lose(self, error: ReplyLost) -> None:
        """Note that the reply queue is gone. A reply that is here already stays."""
        if self._final is None:
            self.lost = error
            self._wake()

    @property
    def final(self) -> Message | None:
        """The final reply, once it is here."""
        return self._final

    def updates_after(self, seen: int) -> tuple[list[Progress], int]:
        """Return the updates that came after the first `seen` ones and are still kept, and how many there were."""
        fresh = min(self._updates_seen - seen, len(self._updates))
        return (list(self._updates)[-fresh:] if fresh else []), self._updates_seen

    @property
    def latest(self) -> Progress | None:
        """The latest progress."""
        return self._updates[-1] if self._updates else None

    async def end(self) -> None:
        """Wait for the final reply, or until none can come."""
        while self._final is None and self.lost is None:
            await self.changed()


def outcome_of_reply(task_id: str, reply: Message, decode: Callable[[bytes], R]) -> R:
    """Return the result of a task that has ended, or raise its failure.

    Args:
        task_id: Whose reply it is.
        reply: A final one.
        decode: Reads the result's JSON.

    Raises:
        TaskFailed: It has failed; `TaskRejected` where it was not run.
        TaskCancelled: It was cancelled.
        TaskExpired: Its time was over.
        InvalidResult: The result does not fit the declared return type.
    """
    if reply.type == ReplyType.SUCCEEDED:
        try:
            return decode(reply.body)
        except ValueError as error:
            raise invalid_result(task_id, error) from error
    if reply.type == ReplyType.CANCELLED:
        raise TaskCancelled(f"Task {task_id} was cancelled.")
    if reply.type == ReplyType.EXPIRED:
        raise _expired(task_id, reply.body)
    kind = TaskRejected if reply.type == ReplyType.REJECTED else TaskFailed
    raise kind(task_id, *_error(reply.body))


def status_of_reply(task_id: str, reply: Message) -> TaskStatus:
    """Return what a final reply says."""
    if reply.type == ReplyType.SUCCEEDED:
        return TaskStatus(task_id, TaskState.SUCCEEDED, result=reply.body)
    if reply.type == ReplyType.CANCELLED:
        return TaskStatus(task_id, TaskState.CANCELLED)
    if reply.type == ReplyType.EXPIRED:
        return TaskStatus(task_id, TaskState.EXPIRED)
    is_rejected = reply.type == ReplyType.REJECTED
    return TaskStatus(task_id, TaskState.FAILED, error=Failure(*_error(reply.body)), rejected=is_rejected)


def _progress(body: bytes) -> Progress | None:
    try:
        value = json.loads(body)
        return Progress(value["done"], value.get("total"), value.get("label"), value.get("details") or {})
    except _UNREADABLE:
        return None  # progress is a courtesy: a broken one must not hide the result


def _expired(task_id: str, body: bytes) -> TaskExpired | InvalidResult:
    try:
        value = json.loads(body)
        expires, met = (datetime.fromtimestamp(value[name] / 1000, UTC) for name in ("expires_at", "met_at"))
        error = value.get("error")
        return TaskExpired(task_id, expires, met, None if error is None else f"{error['type']}: {error['message']}")
    except (*_UNREADABLE, OverflowError, OSError) as cause:
        invalid = InvalidResult(f"Task {task_id} has expired, but its reply does not say when: {cause!r}")
        invalid.__cause__ = cause
        return invalid


def _error(body: bytes) -> tuple[str, str, str]:
    try:
        value = json.loads(body)
        return str(value["type"]), str(value.get("message", "")), str(value.get("traceback", ""))
    except _UNREADABLE:
        return "unknown", body[:1000].decode(errors="replace"), ""
