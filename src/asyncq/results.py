"""A sent task, seen from outside: a handle, its progress, and the result.

Invariant: a handle never guesses. It returns the task's own result, raises the task's own failure, or says that
it does not know.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any, Generic, Literal, TypeVar, overload

from asyncq.errors import (
    NoReply,
    NoResultStore,
    NotOpen,
    ReplyLost,
    ResultError,
    ResultStoreError,
    ResultTimeout,
    TaskNotFound,
)
from asyncq.pending_reply import PendingReply, outcome_of_reply, status_of_reply
from asyncq.recording import Recorder
from asyncq.signals import seconds_of
from asyncq.status import Progress, TaskState, TaskStatus
from asyncq.stored_result import check_task, outcome_of

__all__ = ["Progress", "ResultHandle", "gather_results"]

R = TypeVar("R")

_WAITED_FOR_AT_ONCE = 100
_LOOK_EACH_S = 20.0
_LAST_LOOK_S = 2.0


class ResultHandle(Generic[R]):
    """One sent task, seen from outside.

    Its sender sees it through the reply queue, any process through the app's result store. `send()` makes handles,
    and so do `app.handle(id)` and `task.handle(id)`.

    Attributes:
        id: The task's id: the same for every attempt.
    """

    __slots__ = ("__weakref__", "_cancel", "_decode", "_is_sent", "_pending", "_recorder", "_task", "id")

    def __init__(  # noqa: PLR0913 - the client makes handles, and nobody else
        self,
        id: str,  # noqa: A002 - the public name
        pending: PendingReply | None,
        decode: Callable[[bytes], R],
        recorder: Recorder | None = None,
        task: str | None = None,
        *,
        is_sent: bool = True,
        cancel: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.id = id
        self._pending = pending
        self._decode = decode
        self._recorder = recorder
        self._task = task
        self._is_sent = is_sent
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
            TaskCancelled: It was cancelled.
            TaskExpired: Its `expires=` was over before it could run, or run again.
            ResultTimeout: It has not ended in time; as `TaskNotFound` where the result store knows nothing of it.
            ReplyLost: The reply queue was lost, and there is no result store.
            NoReply: The task was sent with `reply=False`, and there is no result store.
            NoResultStore: Another process has sent it, and there is no result store.
            ResultNotKept: It has succeeded, and its result was not to be kept.
            InvalidResult: The result does not fit the declared return type.
            WrongTask: The id belongs to another task.
        """
        timeout_s = None if timeout is None else seconds_of(timeout, "result(timeout=...)")
        try:
            async with asyncio.timeout(timeout_s):
                if self._pending is not None:
                    await self._replied(self._pending)
                    if self._pending.final is not None:
                        return outcome_of_reply(self.id, self._pending.final, self._decode)
                    if self._recorder is None:
                        raise self._pending.lost or ReplyLost(f"The reply queue of task {self.id} was lost.")
                return await self._stored_result()
        except TimeoutError:
            return await self._last_look(timeout_s)

    async def status(self) -> TaskStatus:
        """Return what is known of the task at this moment.

        With a result store that is what the store says. Without one, its sender knows what the replies have told.
        A task that nothing is known of is UNKNOWN, which is not the same as queued.

        Raises:
            NoReply, NoResultStore: There is neither a reply queue for it here nor a result store.
            StoreUnavailable: The result store cannot be reached.
            WrongTask: The id belongs to another task.
        """
        if self._recorder is None:
            return self._replied_status()
        status = (await self._recorder.read([self.id]))[0]
        check_task(status, self._task)
        return status

    async def statuses(self) -> AsyncIterator[TaskStatus]:
        """Iterate the task's statuses as they change, beginning with the present one, up to its end.

        With a result store, through it; else through the reply queue, until that is lost.

        Raises:
            NoReply, NoResultStore: There is neither a reply queue for it here nor a result store.
            WrongTask: The id belongs to another task.
        """
        if self._recorder is not None:
            async for status in self._recorder.watch(self.id):
                check_task(status, self._task)
                yield status
            return
        last = None
        while True:
            status = self._replied_status()
            if status != last:
                last = status
                yield status
                continue  # whoever took it may have let time pass
            pending = self._pending
            if pending is None or pending.final is not None or pending.lost is not None:
                return
            await pending.changed()

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

        For the sender through the reply queue; for others through the result store, which does not keep every step.

        Raises:
            NoReply: The task was sent with `reply=False`, and there is no result store.
            NoResultStore: Another process has sent it, and there is no result store.
            WrongTask: The id belongs to another task.
        """
        if self._pending is None:
            last = None
            async for status in self._recorder_or_raise().watch(self.id):
                check_task(status, self._task)
                if status.progress is not None and status.progress != last:
                    last = status.progress
                    yield last
            return
        pending = self._pending
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

    async def _replied(self, pending: PendingReply) -> None:
        """Wait for the final reply, until none can come, or until the store has the end.

        A reply can be lost on the way, and its task has ended all the same: so the store is looked at now and then.
        """
        if self._recorder is None:
            await pending.end()
            return
        while pending.final is None and pending.lost is None:
            try:
                async with asyncio.timeout(_LOOK_EACH_S):
                    await pending.end()
            except TimeoutError:
                with suppress(ResultStoreError):
                    if (await self._recorder.read([self.id]))[0].state.final:
                        return

    async def _stored_result(self) -> R:
        """Return the result once the store has it."""
        recorder = self._recorder_or_raise()
        async for status in recorder.watch(self.id):
            check_task(status, self._task)
            if status.state.final:
                return outcome_of(status, self._decode)
        if recorder.is_closed:
            raise ReplyLost(f"The app was closed while task {self.id} was waited for.")
        raise self._not_found(f"The record of task {self.id} is gone.")

    async def _last_look(self, timeout_s: float | None) -> R:
        """Return what the store has after all, or raise the error for a wait that was too short, with what is known."""
        begin = f"No result of task {self.id} within {timeout_s:g} s."
        goes_on = "It may still be waiting in its queue or running; call result() again to go on waiting."
        if self._recorder is None:
            raise ResultTimeout(f"{begin} {goes_on}")
        try:
            async with asyncio.timeout(_LAST_LOOK_S):
                (status,) = await self._recorder.read([self.id])
        except (ResultStoreError, TimeoutError) as error:
            cause = str(error) or "no answer"
            raise ResultTimeout(
                f"{begin} {goes_on} The result store {self._recorder.shown} could not be asked: {cause}"
            ) from None
        check_task(status, self._task)
        if status.state.final:
            return outcome_of(status, self._decode)
        if status.state is not TaskState.UNKNOWN:
            raise ResultTimeout(f"{begin} It is {status.state}; call result() again to go on waiting.")
        if self._pending is not None:
            raise ResultTimeout(f"{begin} {goes_on}")
        raise self._not_found(begin)

    def _not_found(self, begin: str) -> TaskNotFound:
        return TaskNotFound(
            f"{begin} The result store {self._recorder_or_raise().shown} knows nothing of it: the id may be wrong, the "
            "task sent without this store and not begun yet, kept with keep='nothing' or keep='errors', or forgotten "
            "after its result_ttl."
        )

    def _recorder_or_raise(self) -> Recorder:
        if self._recorder is None:
            raise self._nothing_to_ask()
        return self._recorder

    def _nothing_to_ask(self) -> NoReply | NoResultStore:
        if self._is_sent:
            return NoReply(
                f"Task {self.id} was sent with reply=False, so no result comes back. Send it with reply=True, or give "
                "the app a result store."
            )
        return NoResultStore(
            f"Nothing can be asked about task {self.id} here: this app has no result store. Set ASYNCQ_RESULTS, for "
            "example to sqlite:///results.db, in this process and in the workers; or AsyncQ(results=...)."
        )

    def _replied_status(self) -> TaskStatus:
        """Return what the replies have told."""
        pending = self._pending
        if pending is None:
            raise self._nothing_to_ask()
        if pending.final is not None:
            return replace(status_of_reply(self.id, pending.final), task=self._task, progress=pending.latest)
        state = TaskState.UNKNOWN if pending.latest is None else TaskState.STARTED
        return TaskStatus(self.id, state, task=self._task, progress=pending.latest)


@overload
async def gather_results(
    handles: Iterable[ResultHandle[R]],
    timeout: float | timedelta | None = None,
    *,
    return_errors: Literal[False] = False,
) -> list[R]: ...
@overload
async def gather_results(
    handles: Iterable[ResultHandle[R]], timeout: float | timedelta | None = None, *, return_errors: Literal[True]
) -> list[R | ResultError]: ...
async def gather_results(
    handles: Iterable[ResultHandle[Any]],
    timeout: float | timedelta | None = None,
    *,
    return_errors: bool = False,
) -> list[Any]:
    """Wait for many tasks and return their results, in order.

    Args:
        handles: Their handles.
        timeout: How long to wait for all of them together, in seconds or as a `timedelta`. None waits for ever.
        return_errors: Put a task's error in the place of its result, in place of raising the first one.

    Raises:
        ResultError: The first failure that is met, as `ResultHandle.result` raises it; the others go on.
        ResultTimeout: They have not all ended in time.
    """
    timeout_s = None if timeout is None else seconds_of(timeout, "gather_results(timeout=...)")
    deadline = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
    places = asyncio.Semaphore(_WAITED_FOR_AT_ONCE)

    async def one(handle: ResultHandle[Any]) -> Any:
        async with places:
            left_s = None if deadline is None else max(0.0, deadline - asyncio.get_running_loop().time())
            try:
                return await handle.result(left_s)
            except ResultError as error:
                if not return_errors:
                    raise
                return error

    waits = [asyncio.ensure_future(one(handle)) for handle in handles]
    try:
        return await asyncio.gather(*waits)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
