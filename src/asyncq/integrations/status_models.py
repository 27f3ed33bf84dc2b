"""A task's status as a pydantic model: what a web service answers, and what its OpenAPI page shows.

Invariant: a result leaves as the JSON that the store holds, once it was seen to fit the declared type.
"""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import Annotated, Any, Generic, ParamSpec, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SerializationInfo, field_serializer
from pydantic_core import from_json

from asyncq.errors import InvalidResult
from asyncq.outcome import Failure
from asyncq.return_values import Results
from asyncq.status import Progress, TaskState, TaskStatus
from asyncq.task import Task

__all__ = ["TaskErrorOut", "TaskStatusOut", "error_model", "status_model"]

P = ParamSpec("P")
R = TypeVar("R")

_Type = Annotated[str, Field(description="The exception's class, with its module.")]
_Message = Annotated[str, Field(description="The exception's text.")]
_Traceback = Annotated[str | None, Field(description="Where it was raised; left out unless the service shows it.")]


class TaskErrorOut(BaseModel):
    """What went wrong in a task."""

    type: _Type
    message: _Message
    traceback: _Traceback = None


class TaskStatusOut(BaseModel, Generic[R]):
    """How far a task is. Write the type of its result in brackets: `TaskStatusOut[Receipt]`.

    `TaskStatusOut[Receipt].of(await handle.status())` makes one.
    """

    # Made from what was recorded, never by a client; so all fields are there in the schema that clients see.
    model_config = ConfigDict(frozen=True, json_schema_serialization_defaults_required=True)

    id: Annotated[str, Field(description="The task's id.")]
    state: Annotated[TaskState, Field(description="Where the task is. `unknown`: nothing is recorded of it.")]
    final: Annotated[bool, Field(description="Whether the task has ended, so that nothing here will change.")]
    task: Annotated[str | None, Field(description="The task's name.")] = None
    queue: Annotated[str | None, Field(description="The queue that it was sent to.")] = None
    attempt: Annotated[int, Field(description="The latest attempt, from 1; 0 before the first one.")] = 0
    progress: Annotated[Progress | None, Field(description="How far it is, or was in the end.")] = None
    result: Annotated[R | None, Field(description="What it has returned, once it has succeeded.")] = None
    error: Annotated[
        TaskErrorOut | None, Field(description="What went wrong: in the end, or in the attempt before the next one.")
    ] = None
    reason: Annotated[str | None, Field(description="Why no other attempt follows, where it has failed.")] = None
    queued_at: Annotated[datetime | None, Field(description="When it was sent.")] = None
    due_at: Annotated[datetime | None, Field(description="When it may start, where it was sent with a delay.")] = None
    not_after: Annotated[datetime | None, Field(description="From when on no attempt begins any more.")] = None
    started_at: Annotated[datetime | None, Field(description="When its latest attempt began.")] = None
    retry_at: Annotated[datetime | None, Field(description="When its next attempt begins.")] = None
    finished_at: Annotated[datetime | None, Field(description="When it ended.")] = None
    parent_id: Annotated[str | None, Field(description="The task that has sent it.")] = None
    root_id: Annotated[str | None, Field(description="The task at the beginning of it all.")] = None

    _stored_result: bytes | None = PrivateAttr(default=None)

    @classmethod
    def of(cls, status: TaskStatus, *, tracebacks: bool = False) -> Self:
        """Return the model of a status.

        Args:
            status: What a handle, or a listing, has told.
            tracebacks: Whether an error shows its traceback: to your own people, not to the world.

        Raises:
            InvalidResult: The result does not fit the type in brackets.
        """
        model = cls(
            id=status.id,
            state=status.state,
            final=status.state.final,
            task=status.task,
            queue=status.queue,
            attempt=status.attempt,
            progress=status.progress,
            result=None if status.result is None else cls._read(status),
            error=None if status.error is None else error_model(status.error, tracebacks=tracebacks),
            reason=status.reason,
            queued_at=status.queued_at,
            due_at=status.due_at,
            not_after=status.not_after,
            started_at=status.started_at,
            retry_at=status.retry_at,
            finished_at=status.finished_at,
            parent_id=status.parent_id,
            root_id=status.root_id,
        )
        model._stored_result = status.result
        return model

    # No annotation of what it returns: that would take the place of the result's own type in the schema.
    @field_serializer("result")
    def _write_result(self, value: Any, info: SerializationInfo):  # type: ignore[no-untyped-def]  # noqa: ANN202
        if self._stored_result is None or not info.mode_is_json():
            return value
        return from_json(self._stored_result)

    @classmethod
    def _read(cls, status: TaskStatus) -> Any:
        arguments = cls.__pydantic_generic_metadata__["args"]
        try:
            return _results_of(arguments[0] if arguments else Any).decode(status.result or b"")
        except ValueError as error:
            raise InvalidResult(f"The result of task {status.id} does not fit its type here: {error}") from error


def status_model(task: Task[P, R]) -> type[TaskStatusOut[R]]:
    """Return `TaskStatusOut` of what a task returns, for a route's `response_model=`.

    Args:
        task: The declared task.

    Raises:
        TaskDefinitionError: Its return type names something that does not exist (yet).
    """
    return TaskStatusOut[task.results.annotation]  # type: ignore[name-defined]


@cache
def _results_of(annotation: Any) -> Results[Any]:
    return Results.of(annotation, task="status")


def error_model(failure: Failure, *, tracebacks: bool) -> TaskErrorOut:
    """Return the model of an error; with its traceback where that is to be seen."""
    return TaskErrorOut(
        type=failure.type, message=failure.message, traceback=(failure.traceback or None) if tracebacks else None
    )
