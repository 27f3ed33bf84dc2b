"""A sent workflow, seen from outside: its status, its progress, and its result.

    the ends of its tasks, from the reply queue or from the result store ─▶ `workflow_progress` ─▶ whoever waits here

Nothing is written down for a workflow but the ends of its tasks and, where they do not tell it, why the whole has
failed. So its sender needs no store, and a stranger with the store no reply.

Invariant: a handle never guesses; see `results.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, Generic, TypeVar, cast

from asyncq.errors import NoReply, NoResultStore, NotOpen, ReplyLost, ResultStoreError, ResultTimeout
from asyncq.recording import Recorder
from asyncq.signals import seconds_of
from asyncq.status import Progress, TaskState
from asyncq.workflow_progress.outcome import Reading, failure_of, own_failure, value_of, whole_value
from asyncq.workflow_progress.replies import WorkflowReplies
from asyncq.workflow_progress.shape import WorkflowShape
from asyncq.workflow_progress.status import NodeStatus, WorkflowStatus
from asyncq.workflow_progress.stored import StoredWorkflow, shape_in
from asyncq.workflow_progress.tracking import Tracker

__all__ = ["NodeStatus", "WorkflowHandle", "WorkflowStatus"]

R = TypeVar("R")

_LOOK_EACH_S = 20.0
_LAST_LOOK_S = 2.0
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_PAUSE_BY_LOOK = 4.0
"""So many times as long as a look has taken is waited before the next one: large workflows do not busy the store."""


class WorkflowHandle(Generic[R]):
    """One sent workflow, seen from outside.

    Its sender sees it through the reply queue, any process through the app's result store. `workflow.send()` makes
    handles, and so does `app.workflow(id)`.

    Attributes:
        id: The workflow's id; that of each task follows from it and from the task's place.
    """

    __slots__ = ("__weakref__", "_cancel", "_is_sent", "_reading", "_recorder", "_replies", "_shape", "id")

    def __init__(  # noqa: PLR0913 - the client makes handles, and nobody else
        self,
        id: str,  # noqa: A002 - the public name
        reading: Reading,
        *,
        shape: WorkflowShape | None = None,
        replies: WorkflowReplies | None = None,
        recorder: Recorder | None = None,
        cancel: Callable[[], Awaitable[None]] | None = None,
        is_sent: bool = True,
    ) -> None:
        self.id = id
        self._reading = reading
        self._shape = shape
        self._replies = replies
        self._recorder = recorder
        self._cancel = cancel
        self._is_sent = is_sent

    def __repr__(self) -> str:
        return f"WorkflowHandle({self.id!r})"

    def read_as(self, reading: Reading) -> WorkflowHandle[Any]:
        """Return a handle of the same workflow whose results are read in another way.

        Args:
            reading: Reads the JSON of each; for a group a list, with one for each member.
        """
        return WorkflowHandle(
            self.id,
            reading,
            shape=self._shape,
            replies=self._replies,
            recorder=self._recorder,
            cancel=self._cancel,
            is_sent=self._is_sent,
        )

    async def result(self, timeout: float | timedelta | None = None) -> R:
        """Wait for the end and return the result: that of the last task, or of a group a list, in order.

        Args:
            timeout: How long to wait, in seconds or as a `timedelta`. None waits for ever.

        Raises:
            TaskFailed: A task has finally failed, and those behind it do not run; `task_id` is that task's. Members of
                a group that were begun go on.
            ChordFailed: Members of a chord have; its `members` names them.
            ChordExpired: A chord's members took longer than its queue is kept.
            TaskCancelled: It was cancelled.
            TaskExpired: A task's `expires=` was over before it could run.
            ResultTimeout: It has not ended in time; as `TaskNotFound` where the result store knows nothing of it.
            ReplyLost: The reply queue was lost, and there is no result store.
            NoReply: It was sent with `reply=False`, and there is no result store.
            NoResultStore: Another process has sent it, and there is no result store.
            ResultNotKept: It has succeeded, and its result was not to be kept.
            InvalidResult: A result does not fit the declared return type.
        """
        timeout_s = None if timeout is None else seconds_of(timeout, "result(timeout=...)")
        try:
            async with asyncio.timeout(timeout_s):
                replies = self._replies
                if replies is not None:
                    await self._replied(replies)
                    if replies.over and replies.lost is None:
                        return self._outcome_of_replies(replies)
                    if self._recorder is None:
                        raise replies.lost or ReplyLost(f"The reply queue of workflow {self.id} was lost.")
                async for seen in self._looks():
                    if seen.over:
                        return self._outcome_of_store(seen)
                raise ReplyLost(f"The app was closed while workflow {self.id} was waited for.")
        except TimeoutError:
            return await self._last_look(timeout_s or 0.0)

    async def status(self) -> WorkflowStatus:
        """Return what is known at this moment, of the whole and of each task.

        With a result store that is what the store says. Without one, its sender knows which tasks have ended.

        Raises:
            NoReply, NoResultStore: There is neither a reply queue for it here nor a result store.
            TaskNotFound: The result store knows no such workflow.
            StoreUnavailable: The result store cannot be reached.
        """
        if self._recorder is not None:
            seen = await self._stored(whole=True)
            await seen.look()
            return seen.status()
        return self._replies_or_raise().status()

    async def updates(self) -> AsyncIterator[Progress]:
        """Iterate how far it is, as tasks end, up to the workflow's end, or until the reply queue is lost.

        `done` is how many tasks have ended, `total` how many there are, `label` the name of one that has ended last.
        Many ends at once make one update. Of a workflow that fails, `done` stays below `total`.

        Raises:
            NoReply, NoResultStore: There is neither a reply queue for it here nor a result store.
            TaskNotFound: The result store knows no such workflow.
        """
        replies = self._replies
        last = -1
        if replies is None:
            async for seen in self._looks():
                if seen.tracker.done != last:
                    last = seen.tracker.done
                    yield _progress(seen.tracker, seen.latest)
                if seen.over:
                    return
            return
        while True:
            if replies.tracker.done != last:
                last = replies.tracker.done
                yield _progress(replies.tracker, replies.latest)
                continue  # whoever took it may have let time pass
            if replies.over:
                return
            await replies.changed()

    async def cancel(self) -> bool:
        """Let no more of its tasks run, and stop those that do. Returns when the broker has confirmed that.

        See `ResultHandle.cancel` for what becomes of each task. `result()` raises `TaskCancelled` as soon as a worker
        has come to a cancelled task; or returns the result, where the workflow was faster.

        Returns:
            False where it has ended, as this handle knows already: nothing was asked for then.

        Raises:
            InvalidOption: Cancelling is switched off, by `cancellations_kept_s=0`.
            PublishError: The broker did not take it, or it is unknown whether it did. Cancelling again is safe.
            BrokerError: It could not be kept: a permission is missing, or the broker has no streams.
        """
        if self._cancel is None:
            raise NotOpen(f"The handle of workflow {self.id} belongs to no open app. Use `await app.cancel(id)`.")
        if self._replies is not None and self._replies.tracker.ended:  # a group that has failed may still be running
            return False
        await self._cancel()
        return True

    # --- the reply queue

    async def _replied(self, replies: WorkflowReplies) -> None:
        """Wait until it is over; where replies may have been lost on the way, until the store says that."""
        recorder = self._recorder
        if recorder is None:
            await replies.end()
            return
        while not replies.over:
            try:
                async with asyncio.timeout(_LOOK_EACH_S):
                    await replies.end()
            except TimeoutError:
                with suppress(ResultStoreError):
                    seen = await self._stored(whole=False)
                    await seen.look()
                    if seen.over:
                        return

    def _replies_or_raise(self) -> WorkflowReplies:
        if self._replies is not None:
            return self._replies
        if self._is_sent:
            raise NoReply(
                f"Workflow {self.id} was sent with reply=False, so no result comes back. Send it with reply=True, or "
                "give the app a result store."
            )
        raise NoResultStore(
            f"Nothing can be asked about workflow {self.id} here: this app has no result store. Set ASYNCQ_RESULTS, "
            "for example to sqlite:///results.db, in this process and in the workers; or AsyncQ(results=...)."
        )

    # --- the result store

    async def _stored(self, *, whole: bool) -> StoredWorkflow:
        recorder = self._recorder
        if recorder is None:
            self._replies_or_raise()
            raise AssertionError
        if self._shape is None:
            self._shape = await shape_in(recorder, self.id)
        return StoredWorkflow(self.id, self._shape, recorder, whole=whole)

    async def _looks(self) -> AsyncIterator[StoredWorkflow]:
        """Yield what the store knows, again and again; a store that is away is waited for."""
        now = asyncio.get_running_loop().time
        seen: StoredWorkflow | None = None
        while True:
            began_s = now()
            try:
                seen = seen or await self._stored(whole=False)
                await seen.look()
            except ResultStoreError:
                pause_s = _LONGEST_PAUSE_S
            except NotOpen:
                return
            else:
                yield seen
                looked_s = now() - began_s
                pause_s = min(_LONGEST_PAUSE_S, max(_FIRST_PAUSE_S, _PAUSE_BY_LOOK * looked_s))
            await asyncio.sleep(pause_s)

    # --- the end

    def _outcome_of_replies(self, replies: WorkflowReplies) -> R:
        own = replies.own_status()
        if own.state is TaskState.SUCCEEDED:
            return cast("R", whole_value(own, self._reading))
        if replies.tracker.failures:
            raise failure_of(self.id, replies.tracker, replies.known)
        if not replies.tracker.ended:
            raise own_failure(own, replies.own)
        return cast("R", value_of(self.id, replies.shape.line, self._reading, replies.known))

    def _outcome_of_store(self, seen: StoredWorkflow) -> R:
        if seen.own.state is TaskState.SUCCEEDED:
            return cast("R", whole_value(seen.own, self._reading))
        if seen.tracker.failures:
            raise failure_of(self.id, seen.tracker, seen.known)
        if not seen.tracker.ended:
            raise own_failure(seen.own)
        assert self._shape is not None  # noqa: S101 - whoever has looked knows it
        return cast("R", value_of(self.id, self._shape.line, self._reading, seen.known))

    async def _last_look(self, timeout_s: float) -> R:
        """Return what the store has after all, or raise the error for a wait that was too short, with what is known."""
        begin = f"No result of workflow {self.id} within {timeout_s:g} s."
        goes_on = "Call result() again to go on waiting."
        tracker: Tracker | None = None if self._replies is None else self._replies.tracker
        if self._recorder is not None:
            try:
                async with asyncio.timeout(_LAST_LOOK_S):
                    seen = await self._stored(whole=False)
                    await seen.look()
            except (ResultStoreError, TimeoutError) as error:
                if isinstance(error, ResultTimeout):
                    raise
                cause = str(error) or "no answer"
                raise ResultTimeout(
                    f"{begin} {goes_on} The result store {self._recorder.shown} could not be asked: {cause}"
                ) from None
            if seen.over:
                return self._outcome_of_store(seen)
            tracker = seen.tracker
        assert tracker is not None  # noqa: S101 - without a store, there are replies
        raise ResultTimeout(f"{begin} {tracker.done} of its {len(tracker.nodes)} tasks have ended. {goes_on}")


def _progress(tracker: Tracker, latest: str | None) -> Progress:
    failed = sum(node.failed for node in tracker.nodes.values()) if tracker.failures else 0
    return Progress(tracker.done, len(tracker.nodes), latest, {"failed": failed} if failed else {})
