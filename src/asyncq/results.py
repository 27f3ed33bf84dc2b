"""What a sender gets back: a handle, progress, and the result.

Invariant: a handle never guesses. It returns the task's own result, raises the task's own failure, or says that
it does not know.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import Generic, TypeVar

from asyncq.errors import (
    InvalidResult,
    NoReply,
    NotOpen,
    ReplyLost,
    ResultTimeout,
    TaskCancelled,
    TaskExpired,
    TaskFailed,
    TaskRejected,
)
from asyncq.message import Message, ReplyType
from asyncq.signals import seconds_of
from asyncq.status import Progress

__all__ = ["PendingReply", "Progress", "ResultHandle", "on_wait"]

R = TypeVar("R")

_MAX_KEPT_UPDATES = 256
# What reading a foreign body may raise; the third one comes from JSON that is nested some thousand deep.
_UNREADABLE = (ValueError, TypeError, RecursionError, KeyError, AttributeError)

on_wait: ContextVar[Callable[[asyncio.Future[None]], object] | None] = ContextVar("asyncq_on_wait", default=None)
"""Called with what each wait for a reply waits for, in the waiting code's own context. For tests that move the time:
they have to know which tasks do nothing but wait for another one's end."""


class PendingReply:
    """What has arrived for one task id. The client fills it; handles read it.

    Only the latest updates are kept (256), so that a handle that nobody reads stays small.
    """

    __slots__ = ("__weakref__", "_final", "_updates", "_updates_seen", "_waiters", "lost")

    def __init__(self) -> None:
        self._final: Message | None = None
        self._updates: deque[Progress] = deque(maxlen=_MAX_KEPT_UPDATES)
        self._updates_seen = 0
        self._waiters: list[asyncio.Future[None]] = []
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

    async def changed(self) -> None:
        """Wait for the next thing that arrives."""
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


class ResultHandle(Generic[R]):
    """The sender's end of one sent task.

    Attributes:
        id: The task's id: the same for every attempt.
    """

    __slots__ = ("__weakref__", "_cancel", "_decode", "_pending", "id")

    def __init__(
        self,
        id: str,  # noqa: A002 - the public name
        pending: PendingReply | None,
        decode: Callable[[bytes], R],
        cancel: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.id = id
        self._pending = pending
        self._decode = decode
        self._cancel = cancel

    def __repr__(self) -> str:
        return f"ResultHandle({self.id!r})"

    async def result(self, timeout: float | timedelta | None = None) -> R:
        """Wait for the task's end and return its result, validated against the declared return type.

        Args:
            timeout: How long to wait, in seconds or as a `timedelta`. None waits for ever.

        Raises:
            TaskFailed: The task has finally failed.
            TaskRejected: It was never run, or rejected its message.
            TaskExpired: Its `expires=` was over before it could run, or run again.
            TaskCancelled: It was cancelled, before it ran or while it did.
            ResultTimeout: Nothing came in time. The task goes on; calling again goes on waiting.
            NoReply: The task was sent with `reply=False`.
            ReplyLost: The reply queue was lost. The task itself is not affected.
            InvalidResult: The reply does not fit the declared return type.
        """
        pending = self._pending_or_raise()
        timeout_s = None if timeout is None else seconds_of(timeout, "result(timeout=...)")
        try:
            async with asyncio.timeout(timeout_s):
                while pending.final is None and pending.lost is None:
                    await pending.changed()
        except TimeoutError:
            raise ResultTimeout(
                f"No result of task {self.id} within {timeout_s:g} s. It may still be waiting in its queue or running; "
                "call result() again to go on waiting."
            ) from None
        if pending.final is not None:
            return self._read(pending.final)
        raise pending.lost or ReplyLost(f"The reply queue was lost while task {self.id} was waited for.")

    async def cancel(self) -> bool:
        """Let the task not run, or stop it where it runs. Returns when the broker has confirmed it to be cancelled.

        A running `async def` task is cancelled within a second; a `def` task sees `ctx.cancelled`. One that waits in
        its queue, for its delay or for a retry does not run any more. `result()` then raises `TaskCancelled`, as soon
        as a worker has come to the task; or returns the result, where the task was faster.

        Returns:
            False where the task has ended, as this handle knows already: nothing was asked for then.

        Raises:
            InvalidOption: Cancelling is switched off, by `cancellations_kept_s=0`.
            PublishError: The broker did not take it, or it is unknown whether it did. Cancelling again is safe.
            BrokerError: It could not be kept: a permission is missing, or the broker has no streams.
        """
        if self._cancel is None:
            raise NotOpen(f"The handle of task {self.id} belongs to no open app. Use `await app.cancel(id)`.")
        if self._pending is not None and self._pending.final is not None:
            return False
        await self._cancel()
        return True

    async def updates(self) -> AsyncIterator[Progress]:
        """Iterate the task's progress, as it comes, until the task ends or the reply queue is lost.

        Raises:
            NoReply: The task was sent with `reply=False`.
        """
        pending = self._pending_or_raise()
        seen = 0
        while True:
            fresh, seen = pending.updates_after(seen)
            for update in fresh:
                yield update
            if pending.updates_after(seen)[0]:
                continue
            if pending.final is not None or pending.lost is not None:
                return
            await pending.changed()

    def _pending_or_raise(self) -> PendingReply:
        if self._pending is None:
            raise NoReply(
                f"Task {self.id} was sent with reply=False, so no result comes back. Send it with reply=True."
            )
        return self._pending

    def _read(self, reply: Message) -> R:
        if reply.type == ReplyType.SUCCEEDED:
            try:
                return self._decode(reply.body)
            except ValueError as error:
                raise InvalidResult(
                    f"The result of task {self.id} does not fit the return type that its task declares here: {error}"
                ) from error
        if reply.type == ReplyType.CANCELLED:
            raise TaskCancelled(f"Task {self.id} was cancelled.")
        if reply.type == ReplyType.EXPIRED:
            raise _expired(self.id, reply.body)
        kind = TaskRejected if reply.type == ReplyType.REJECTED else TaskFailed
        raise kind(self.id, *_error(reply.body))


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
