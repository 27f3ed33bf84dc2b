"""The status of a task as a value, and the rules by which the events of its life make it one.

Producer and workers write `StatusUpdate`s, each for itself and in any order: a producer's update can come after the
worker's, a worker whose lease is lost may still write. `merge` says what stands in the end, for every store alike.

A status has two parts. The facts of its birth (task, queue, when it was queued, parent, root, workflow) are filled in
from whatever update knows them. All the rest belongs to one update alone, the one that counts:

1. A later life begins from nothing, and an earlier one says nothing any more: a dead letter that was sent back, an id
   that is used again. See `life.py`.
2. A final state counts more than one that is not, and stays.
3. Of two ends, that of the higher attempt counts; of one attempt a success, else the first one.
4. Else the higher attempt counts more; of one attempt, the later run; of one run, that another one follows; then the
   later time.

Invariant: the order of arrival does not matter, but for two ends of the same kind of one attempt, where nobody knows
better: the first one stays.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from asyncq.outcome import Failure

__all__ = ["Progress", "StatusUpdate", "TaskState", "TaskStatus", "merge"]

_UNENDED_KEPT_S = 7 * 24 * 3600.0


class TaskState(StrEnum):
    """Where a task is in its life."""

    UNKNOWN = "unknown"
    """Nothing is recorded of it. That is not the same as queued."""
    QUEUED = "queued"
    SCHEDULED = "scheduled"
    """Sent with a delay: not due yet, or due and not started."""
    STARTED = "started"
    RETRYING = "retrying"
    """An attempt has ended, and another one follows at `retry_at`."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def final(self) -> bool:
        """Whether the task's life has ended."""
        return self in _FINAL


_FINAL = frozenset({TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED, TaskState.EXPIRED})
_BEFORE_START = frozenset({TaskState.QUEUED, TaskState.SCHEDULED})
_RANK = {state: rank for rank, state in enumerate(TaskState)}
_LONG_AGO = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a task is.

    Attributes:
        done: How much is done.
        total: Of how much, or None.
        label: What the task is at, for people.
        details: Whatever else the task says; JSON values.
    """

    done: float
    total: float | None = None
    label: str | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TaskStatus:
    """What is known of a task.

    All times are aware. None stands for what is not known, or does not belong to the state.

    Attributes:
        id: The task's id.
        state: Where it is.
        task: The task's name.
        queue: The queue that it was sent to.
        attempt: The latest attempt, from 1; 0 before the first one.
        worker: Who runs it, or ran it last: host and process id.
        progress: How far it is, or was in the end.
        result: What it has returned, as JSON.
        error: What went wrong: of a final failure, or of the attempt before the one that follows.
        queued_at: When it was sent.
        life: When this life of it was sent, in milliseconds since the epoch; 0 where that is not known. A dead letter
            that is sent back has a new one, and so has an id that is used again.
        run: Which run of its attempt this is: the later, the greater.
        due_at: When it may start at the earliest, where it was sent with a delay.
        not_after: From when on no attempt may begin: the `expires=` or the `deadline=` of its send.
        started_at: When its latest attempt began.
        retry_at: When its next attempt begins.
        finished_at: When it ended.
        updated_at: When the update that counts was made, by the clock of who made it.
        parent_id: The task that has sent it.
        root_id: The task at the beginning of it all.
        reason: Why it has failed for good, in a few words: `attempts exhausted`.
        rejected: Whether it was not run for what its message is, or has rejected that.
        workflow: Of a workflow's id: which tasks it has, see `workflow_progress/shape.py`.
        expires_at: When this record may be forgotten.
    """

    id: str
    state: TaskState = TaskState.UNKNOWN
    task: str | None = None
    queue: str | None = None
    attempt: int = 0
    worker: str | None = None
    progress: Progress | None = None
    result: bytes | None = None
    error: Failure | None = None
    queued_at: datetime | None = None
    due_at: datetime | None = None
    not_after: datetime | None = None
    started_at: datetime | None = None
    retry_at: datetime | None = None
    finished_at: datetime | None = None
    updated_at: datetime | None = None
    parent_id: str | None = None
    root_id: str | None = None
    reason: str | None = None
    rejected: bool = False
    workflow: str | None = None
    life: int = 0
    run: int = 0
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class StatusUpdate:
    """What one event of a task's life writes.

    An update tells all that holds after it, not what has changed: a final one brings `started_at` and the last
    progress with it, if they are to be seen with the result. Progress is a STARTED update that has some.

    Attributes:
        id: The task's id.
        state: Where the task is now. Not UNKNOWN.
        at: When this happened; aware.
        attempt: Which attempt, from 1; 0 for QUEUED and SCHEDULED, as none has begun.
        task: The task's name.
        queue: The queue that it was sent to.
        worker: Host and process id.
        progress: How far it is.
        result: What it has returned, as JSON.
        error: What went wrong.
        queued_at: When it was sent; for QUEUED and SCHEDULED that is `at`, unless set.
        due_at: When it may start at the earliest.
        not_after: From when on no attempt may begin.
        started_at: When this attempt began; for STARTED that is `at`, unless set.
        retry_at: When the next attempt begins.
        parent_id: The task that has sent it.
        root_id: The task at the beginning of it all.
        reason: Why it has failed for good.
        rejected: Whether it was not run for what its message is, or has rejected that.
        workflow: Of a workflow's id: which tasks it has.
        ttl_s: How long the record is kept after its end, in seconds; None for the store's own time.
        life: When this life of the task was sent, in milliseconds since the epoch; 0 where that is not known.
        run: Which run of its attempt this is.

    Raises:
        ValueError: An event cannot be so.
    """

    id: str
    state: TaskState
    at: datetime
    attempt: int = 0
    task: str | None = None
    queue: str | None = None
    worker: str | None = None
    progress: Progress | None = None
    result: bytes | None = None
    error: Failure | None = None
    queued_at: datetime | None = None
    due_at: datetime | None = None
    not_after: datetime | None = None
    started_at: datetime | None = None
    retry_at: datetime | None = None
    parent_id: str | None = None
    root_id: str | None = None
    reason: str | None = None
    rejected: bool = False
    workflow: str | None = None
    ttl_s: float | None = None
    life: int = 0
    run: int = 0

    def __post_init__(self) -> None:
        before_start = self.state in _BEFORE_START
        if self.state is TaskState.UNKNOWN:
            raise ValueError("UNKNOWN is not a state that an event leads to.")
        if self.attempt != 0 if before_start else self.attempt < 0:
            raise ValueError(f"The attempt of a task that is {self.state} cannot be {self.attempt}.")
        for name in ("at", "queued_at", "due_at", "not_after", "started_at", "retry_at"):
            moment = getattr(self, name)
            if moment is not None and moment.tzinfo is None:
                raise ValueError(f"{name} needs a time zone: datetime.now(UTC), not {moment!r}.")

    def expires_at(self, store_ttl_s: float | None = None) -> datetime | None:
        """Return when the record may be forgotten; None for never.

        What has not ended is kept for a week at least after its last change, or after the time that it waits for:
        a time to live of a minute means the result, not a task that runs for an hour.

        Args:
            store_ttl_s: The store's own time, in seconds; None for ever.
        """
        ttl_s = store_ttl_s if self.ttl_s is None else self.ttl_s
        if ttl_s is None:
            return None
        if self.state in _FINAL:
            return self.at + timedelta(seconds=ttl_s)
        latest = max(moment for moment in (self.at, self.due_at, self.retry_at) if moment is not None)
        return latest + timedelta(seconds=max(ttl_s, _UNENDED_KEPT_S))


_NOTHING = TaskStatus("")


def merge(stored: TaskStatus | None, update: StatusUpdate, store_ttl_s: float | None = None) -> TaskStatus:
    """Return what holds after an update.

    Args:
        stored: What was known; None for nothing.
        update: What has happened, not necessarily after that.
        store_ttl_s: How long the store keeps what says nothing of it, in seconds; None for ever.
    """
    if stored is None or stored.state is TaskState.UNKNOWN:
        return _status_of(update, store_ttl_s)
    if update.life != stored.life:
        return _status_of(update, store_ttl_s) if update.life > stored.life else stored
    if _counts_more(update, stored):
        return _status_of(update, store_ttl_s, stored)
    return _filled(stored, _status_of(update, store_ttl_s))


def _counts_more(update: StatusUpdate, stored: TaskStatus) -> bool:
    """Tell whether an update of the same life takes the place of what is there."""
    was_final, is_final = stored.state in _FINAL, update.state in _FINAL
    if was_final != is_final:
        return is_final
    if update.attempt != stored.attempt:
        return update.attempt > stored.attempt
    if is_final:
        return update.state is TaskState.SUCCEEDED and stored.state is not TaskState.SUCCEEDED
    return _order(update.run, update.state, update.at) > _order(stored.run, stored.state, stored.updated_at)


def _order(run: int, state: TaskState, at: datetime | None) -> tuple[int, int, datetime]:
    return run, _RANK[state], at or _LONG_AGO


def _status_of(update: StatusUpdate, store_ttl_s: float | None, before: TaskStatus | None = None) -> TaskStatus:
    """Return what an update says, with the facts of its birth that only the status before it knows."""
    state, at = update.state, update.at
    known = _NOTHING if before is None else before
    return TaskStatus(
        id=update.id,
        state=state,
        task=update.task or known.task,
        queue=update.queue or known.queue,
        attempt=update.attempt,
        worker=update.worker,
        progress=update.progress,
        result=update.result,
        error=update.error,
        queued_at=_earlier(update.queued_at or (at if state in _BEFORE_START else None), known.queued_at),
        due_at=_earlier(update.due_at, known.due_at),
        not_after=update.not_after or known.not_after,
        started_at=update.started_at or (at if state is TaskState.STARTED else None),
        retry_at=update.retry_at,
        finished_at=at if state in _FINAL else None,
        updated_at=at,
        parent_id=update.parent_id or known.parent_id,
        root_id=update.root_id or known.root_id,
        reason=update.reason,
        rejected=update.rejected,
        workflow=update.workflow or known.workflow,
        life=update.life,
        run=update.run,
        expires_at=update.expires_at(store_ttl_s),
    )


def _filled(status: TaskStatus, other: TaskStatus) -> TaskStatus:
    """Return a status with the facts of its birth that only the other one knows."""
    return replace(
        status,
        task=status.task or other.task,
        queue=status.queue or other.queue,
        queued_at=_earlier(status.queued_at, other.queued_at),
        due_at=_earlier(status.due_at, other.due_at),
        not_after=status.not_after or other.not_after,
        parent_id=status.parent_id or other.parent_id,
        root_id=status.root_id or other.root_id,
        workflow=status.workflow or other.workflow,
    )


def _earlier(one: datetime | None, other: datetime | None) -> datetime | None:
    if one is None or other is None:
        return one or other
    return min(one, other)
