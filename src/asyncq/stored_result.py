"""From what a result store, or the reply queue, knows of a task to the task's outcome.

Invariant: nothing is guessed. A status is turned into the task's own result or the task's own failure; where neither
is known, the error says what is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar

from asyncq.errors import (
    InvalidResult,
    ResultError,
    ResultNotKept,
    TaskCancelled,
    TaskExpired,
    TaskFailed,
    TaskRejected,
    WrongTask,
)
from asyncq.status import TaskState, TaskStatus

__all__ = ["check_task", "invalid_result", "outcome_of"]

R = TypeVar("R")

_LONG_AGO = datetime.fromtimestamp(0, UTC)


def check_task(status: TaskStatus, task: str | None) -> None:
    """Refuse a status that belongs to another task.

    Args:
        status: What is known of the id.
        task: The task that the handle was made from; None for any.

    Raises:
        WrongTask: It belongs to another one.
    """
    if task is not None and status.task is not None and status.task != task:
        raise WrongTask(
            f"The id {status.id} belongs to a task {status.task!r}, and this handle was made for {task!r}: its result "
            "has another type. Use the handle of that task, or app.handle(id), which takes any."
        )


def outcome_of(status: TaskStatus, decode: Callable[[bytes], R]) -> R:
    """Return the result of a task that has ended, or raise its failure.

    Args:
        status: A final one.
        decode: Reads the result's JSON.

    Raises:
        TaskFailed: It has failed; `TaskRejected` where it was not run.
        TaskCancelled: It was cancelled.
        TaskExpired: Its time was over.
        ResultNotKept: It has succeeded, and its result was not to be kept.
        InvalidResult: What is kept does not fit the declared return type.
    """
    if status.state is not TaskState.SUCCEEDED:
        raise _failure_of(status)
    if status.result is None:
        raise ResultNotKept(
            f"Task {status.id} has succeeded, but its result was not kept: it was declared or sent with keep='errors'."
        )
    try:
        return decode(status.result)
    except ValueError as error:
        raise invalid_result(status.id, error) from error


def invalid_result(task_id: str, error: ValueError) -> InvalidResult:
    """Return the error for a result that does not fit."""
    return InvalidResult(
        f"The result of task {task_id} does not fit the return type that its task declares here: {error}"
    )


def _failure_of(status: TaskStatus) -> ResultError:
    error = status.error
    if status.state is TaskState.CANCELLED:
        return TaskCancelled(f"Task {status.id} was cancelled.")
    if status.state is TaskState.EXPIRED:
        met = status.finished_at or status.updated_at or _LONG_AGO
        told = None if error is None else f"{error.type}: {error.message}"
        return TaskExpired(status.id, status.not_after or met, met, told)
    kind = TaskRejected if status.rejected else TaskFailed
    if error is None:
        return kind(status.id, "unknown", "The result store does not say what went wrong.")
    return kind(status.id, error.type, error.message, error.traceback)
