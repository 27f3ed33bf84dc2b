"""What a worker writes into the result store: of the attempts that it runs, and of how tasks end.

    started, progress, retrying   good to know: noted in the background, the latest news of a task only
    the end                       must be kept before the ack: tried again and again while the lease lasts; then the
                                  message is handed back, and the task runs again

A task that ends at once is never noted as started: its end tells when it began.

Invariant: nothing is noted of an attempt after its end, or after its lease was lost. What is on its way then does no
harm: an end counts more (`asyncq.status.merge`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from asyncq.broker import Delivery
from asyncq.errors import LeaseLost, NotOpen, ResultStoreError
from asyncq.keeping import KEEP_EVERYTHING, Keeping, keeping_or_default
from asyncq.life import replays_of, runs_of
from asyncq.loggers import get_logger
from asyncq.message import Message
from asyncq.outcome import Failure
from asyncq.program import Workflow
from asyncq.recording import Recorder, birth_of, moment_of
from asyncq.results import Progress
from asyncq.status import StatusUpdate, TaskState
from asyncq.task import AnyTask

__all__ = ["AttemptRecord", "End", "NotKept", "Recording"]

log = get_logger("asyncq.worker")

_STARTED_AFTER_S = 0.02
_FIRST_TRY_S = 2.0
_LAST_TRY_S = 0.5
_DELIVERIES = 1000
_MAY_BE_TOO_LARGE = 64 * 1024
_REPLY_AFTER_S = 1.0
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_LEAST_PATIENCE_S = 60.0


class NotKept(Exception):
    """The end of a task could not be written for as long as its lease lasts."""


@dataclass(frozen=True, slots=True)
class End:
    """How a task ended, as far as the store is concerned.

    Attributes:
        state: A final one.
        result: What it has returned, as JSON.
        failure: What went wrong.
        reason: Why it has failed for good.
        rejected: Whether it was not run for what its message is, or has rejected that.
        attempts: How many have run; None for the number of the present one.
    """

    state: TaskState
    result: bytes | None = None
    failure: Failure | None = None
    reason: str | None = None
    rejected: bool = False
    attempts: int | None = None


class AttemptRecord:
    """What is noted of one attempt while it runs. Belongs to the worker's loop.

    Args:
        recorder: Writes it.
        update: Returns the update of a STARTED attempt, for a time in milliseconds since the epoch and what else holds.
        lease: Its delivery.
        interval_s: How much time is between two notes of progress, in seconds.

    Attributes:
        lease: Its delivery; a redelivery may take its place.
        latest: How far it is.
        began_s: When it began, by the loop's time.
        started_at: When that was.
    """

    __slots__ = (
        "_ended",
        "_interval_s",
        "_noted_s",
        "_recorder",
        "_started_ms",
        "_timer",
        "_update",
        "began_s",
        "latest",
        "lease",
        "started_at",
    )

    def __init__(
        self, recorder: Recorder, update: Callable[..., StatusUpdate], lease: Delivery, interval_s: float
    ) -> None:
        self.lease = lease
        self.latest: Progress | None = None
        self._recorder = recorder
        self._update = update
        self._interval_s = interval_s
        self._started_ms = recorder.clock.now_ms()
        self.started_at = moment_of(self._started_ms)
        loop = asyncio.get_running_loop()
        self.began_s = loop.time()
        self._noted_s = float("-inf")
        self._ended = False
        self._timer: asyncio.TimerHandle | None = loop.call_later(_STARTED_AFTER_S, self._note)

    def progressed(self, progress: Progress) -> None:
        """Note how far it is, now or as soon as the interval allows."""
        if self._ended:
            return
        self.latest = progress
        loop = asyncio.get_running_loop()
        wait_s = self._noted_s + self._interval_s - loop.time()
        if wait_s <= 0:
            self._note()
        elif self._timer is None:
            self._timer = loop.call_later(wait_s, self._note)

    def end(self) -> None:
        """Note nothing any more."""
        self._ended = True
        self._stop_timer()
        self._recorder.forget(self.lease.message.task_id)

    def _note(self) -> None:
        self._stop_timer()
        if self._ended or self.lease.is_lost:
            return
        at_ms = self._started_ms
        if self.latest is not None:
            at_ms = self._recorder.clock.now_ms()
            self._noted_s = asyncio.get_running_loop().time()
        self._recorder.note_soon(self._update(at_ms, started_at=self.started_at, progress=self.latest))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Recording:
    """Writes for one worker.

    Args:
        recorder: The app's way to its store; None where it has none.
        tasks: What the app knows of its tasks.
        worker: Host and process id.
        interval_s: How much time is between two notes of progress of one task, in seconds.
        lease_s: How long a delivery may surely be kept, in seconds.
    """

    def __init__(
        self,
        recorder: Recorder | None,
        tasks: Mapping[str, AnyTask],
        worker: str,
        *,
        interval_s: float,
        lease_s: float,
    ) -> None:
        self._recorder = recorder
        self._tasks = tasks
        self._worker = worker
        self._interval_s = interval_s
        self._lease_s = lease_s
        self._given_up = asyncio.Event()

    def begin(self, delivery: Delivery, number: int) -> AttemptRecord | None:
        """Return the record of an attempt that starts; None where nothing is noted of it."""
        recorder = self._recorder
        if recorder is None or not self._keeping(delivery.message).states:
            return None
        # Made when it is noted: most attempts end before that.
        update = partial(self._update, delivery, number, TaskState.STARTED)
        return AttemptRecord(recorder, update, delivery, self._interval_s)

    async def again(
        self, delivery: Delivery, number: int, record: AttemptRecord | None, due_ms: int, failure: Failure | None
    ) -> None:
        """Note that the attempt is over and another run follows.

        Args:
            delivery: The one that was run.
            number: Its attempt.
            record: Of the attempt; where there is none, nothing was noted before, and nothing is now.
            due_ms: When it runs again, in milliseconds since the epoch.
            failure: What went wrong, if it did.
        """
        if record is None or self._recorder is None:
            return
        record.end()
        update = self._update(
            delivery,
            number,
            TaskState.RETRYING,
            self._recorder.clock.now_ms(),
            started_at=record.started_at,
            progress=record.latest,
            retry_at=moment_of(due_ms),
            error=failure,
        )
        await self._recorder.note([update])

    async def tell(
        self,
        delivery: Delivery,
        number: int,
        record: AttemptRecord | None,
        end: End,
        reply: Callable[[], Awaitable[None]],
    ) -> None:
        """Write how the task ended, and answer its sender: both before the ack.

        The sender hears of it last, so that whoever has the result finds the end in the store as well; but it does
        not wait for a store that is away.

        Args:
            delivery: The one that was run.
            number: Its attempt.
            record: Of the attempt, if there is one.
            end: How it ended.
            reply: Answers.

        Raises:
            NotKept: The store was away for as long as the lease lasts.
            LeaseLost: There is nothing to settle any more.
        """
        if record is not None:
            record.end()
        update = self._end_update(delivery, number, record, end)
        if update is None:
            await reply()
        elif delivery.message.reply_to is None:
            await self._keep(delivery, record, update)
        elif len(end.result or b"") > _MAY_BE_TOO_LARGE:
            await reply()  # first: a result that is too large for it makes a failure of the success
            await self._keep(delivery, record, update)
        else:
            await self._keep_then(reply, delivery, record, update)

    async def tell_workflow(
        self, delivery: Delivery, workflow: Workflow, end: End, reply: Callable[[], Awaitable[None]]
    ) -> None:
        """Write how a workflow ended, and answer its sender, who does not wait for a store that is away; as `tell`.

        Args:
            delivery: Of the task that it ended with.
            workflow: The workflow.
            end: How it ended.
            reply: Answers.

        Raises:
            NotKept, LeaseLost: As `tell`.
        """
        keeping = workflow.keeping
        is_kept = keeping.states if end.state is TaskState.SUCCEEDED else keeping.failures
        if self._recorder is None or not is_kept:
            await reply()
            return
        update = StatusUpdate(
            id=workflow.id,
            state=end.state,
            at=moment_of(self._recorder.clock.now_ms()),
            attempt=1,
            task=workflow.name,
            worker=self._worker,
            result=end.result,
            error=end.failure,
            reason=end.reason,
            rejected=end.rejected,
            queued_at=moment_of(workflow.sent_ms) if workflow.sent_ms else None,
            root_id=workflow.id,
            ttl_s=keeping.ttl_s,
            life=workflow.sent_ms,
        )
        if workflow.reply_to is None:
            await self._keep(delivery, None, update)
        else:
            await self._keep_then(reply, delivery, None, update)

    async def _keep_then(
        self,
        reply: Callable[[], Awaitable[None]],
        delivery: Delivery,
        record: AttemptRecord | None,
        update: StatusUpdate,
    ) -> None:
        writing = asyncio.ensure_future(self._keep(delivery, record, update))
        try:
            await asyncio.wait({writing}, timeout=_REPLY_AFTER_S)
            if writing.done():
                writing.result()
            await reply()
            await writing
        finally:
            if not writing.done():
                writing.cancel()
                await asyncio.gather(writing, return_exceptions=True)

    def give_up(self) -> None:
        """Try no longer: the worker stops. What is being tried goes back to its queue."""
        self._given_up.set()

    async def _keep(self, delivery: Delivery, record: AttemptRecord | None, update: StatusUpdate) -> None:
        """Write an end, for as long as it takes."""
        recorder = self._recorder
        assert recorder is not None  # noqa: S101 - for the type checker: there is an update
        try:
            async with asyncio.timeout(_FIRST_TRY_S):
                await recorder.write([update])
        except (ResultStoreError, NotOpen, TimeoutError) as error:
            began_s = None if record is None else record.began_s
            await self._keep_trying(recorder, delivery, began_s, update, str(error) or "no answer")

    async def _keep_trying(
        self, recorder: Recorder, delivery: Delivery, began_s: float | None, update: StatusUpdate, cause: str
    ) -> None:
        now_s = asyncio.get_running_loop().time
        until_s = max((now_s() if began_s is None else began_s) + self._lease_s, now_s() + _LEAST_PATIENCE_S)
        lost = asyncio.ensure_future(delivery.lost())
        given_up = asyncio.ensure_future(self._given_up.wait())
        pause_s = _FIRST_PAUSE_S
        try:
            while True:
                log.warning(
                    "the end of a task cannot be written into the result store, trying again",
                    task=update.task,
                    task_id=update.id,
                    pause_s=pause_s,
                    cause=cause,
                )
                await asyncio.wait({lost, given_up}, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
                pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
                writing = asyncio.ensure_future(recorder.write([update]))
                left_s = max(0.0, until_s - now_s())
                await asyncio.wait({writing, lost, given_up}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
                if not writing.done() and not lost.done():  # one that stops has tried once more, for a moment
                    await asyncio.wait({writing, lost}, timeout=_LAST_TRY_S, return_when=asyncio.FIRST_COMPLETED)
                if writing.done() and writing.exception() is None:
                    return
                cause = await _cause_of(writing)
                if lost.done():
                    raise LeaseLost(f"The delivery of task {update.id} is no longer ours.")
                if given_up.done() or now_s() >= until_s:
                    raise NotKept(cause)
        finally:
            lost.cancel()
            given_up.cancel()

    # --- updates

    def _end_update(
        self, delivery: Delivery, number: int, record: AttemptRecord | None, end: End
    ) -> StatusUpdate | None:
        """Return what is written of an end; None where it is not to be kept."""
        if self._recorder is None:
            return None
        keeping = self._keeping(delivery.message)
        succeeded = end.state is TaskState.SUCCEEDED
        # The failure of the life before a replay is there: it must not stay as the last word.
        corrects = keeping.failures and replays_of(delivery.message) > 0
        if not (keeping.states or corrects if succeeded else keeping.failures):
            return None
        return self._update(
            delivery,
            number if end.attempts is None else end.attempts,
            end.state,
            self._recorder.clock.now_ms(),
            result=end.result if keeping.states else None,
            error=end.failure,
            reason=end.reason,
            rejected=end.rejected,
            started_at=None if record is None else record.started_at,
            progress=None if record is None else record.latest,
        )

    def _update(self, delivery: Delivery, number: int, state: TaskState, at_ms: int, **more: Any) -> StatusUpdate:
        message = delivery.message
        return StatusUpdate(
            state=state,
            at=moment_of(at_ms),
            attempt=number,
            worker=self._worker,
            run=runs_of(message) * _DELIVERIES + min(delivery.deliveries or 0, _DELIVERIES - 1),
            **more,
            **birth_of(message, delivery.queue, self._keeping(message)),
        )

    def _keeping(self, message: Message) -> Keeping:
        task = self._tasks.get(message.type)
        default = KEEP_EVERYTHING if task is None else task.keeping
        return keeping_or_default(message, default)


async def _cause_of(writing: asyncio.Future[None]) -> str:
    """Return why a write was in vain. One that is still under way is left alone; it does no harm if it comes through.

    Raises:
        Exception: What is no fault of the store's.
    """
    if not writing.done():
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        return "no answer"
    error = writing.exception()
    if error is not None and not isinstance(error, (ResultStoreError, NotOpen)):
        raise error
    return str(error)
