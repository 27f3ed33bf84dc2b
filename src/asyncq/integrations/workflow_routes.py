"""The status of workflows as routes of a web service: of the whole, and of each task."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Self

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from asyncq.errors import AsyncQError
from asyncq.integrations.dependencies import AsyncQDep, TaskId
from asyncq.integrations.http_errors import ErrorOut, http_error
from asyncq.integrations.status_models import TaskErrorOut, error_model
from asyncq.status import TaskState
from asyncq.workflow_handle import NodeStatus, WorkflowStatus

__all__ = ["WorkflowStatusOut", "WorkflowTaskOut", "workflow_router"]


class WorkflowTaskOut(BaseModel):
    """How far one task of a workflow is."""

    model_config = ConfigDict(frozen=True, json_schema_serialization_defaults_required=True)

    path: Annotated[str, Field(description="Its place in the workflow: `0`, or `1.0.2` for a member of a group.")]
    id: Annotated[str, Field(description="The task's id.")]
    task: Annotated[str, Field(description="The task's name.")]
    state: Annotated[TaskState, Field(description="Where it is. `unknown`: it was not sent yet.")]
    stopped: Annotated[bool, Field(description="Whether it never runs, because what comes before it has failed.")]
    error: Annotated[TaskErrorOut | None, Field(description="What went wrong.")] = None
    started_at: Annotated[datetime | None, Field(description="When its latest attempt began.")] = None
    finished_at: Annotated[datetime | None, Field(description="When it ended.")] = None

    @classmethod
    def of(cls, node: NodeStatus, *, tracebacks: bool = False) -> Self:
        """Return the model of a task's status."""
        status = node.status
        return cls(
            path=node.path,
            id=node.id,
            task=node.task,
            state=node.state,
            stopped=node.stopped,
            error=None if status.error is None else error_model(status.error, tracebacks=tracebacks),
            started_at=status.started_at,
            finished_at=status.finished_at,
        )


class WorkflowStatusOut(BaseModel):
    """How far a workflow is."""

    model_config = ConfigDict(frozen=True, json_schema_serialization_defaults_required=True)

    id: Annotated[str, Field(description="The workflow's id.")]
    state: Annotated[TaskState, Field(description="Where the whole is.")]
    final: Annotated[bool, Field(description="Whether it has ended, or cannot succeed any more.")]
    done: Annotated[int, Field(description="How many of its tasks have ended.")]
    total: Annotated[int, Field(description="How many there are.")]
    tasks: Annotated[list[WorkflowTaskOut], Field(description="Its tasks, in order; or those that have failed.")]

    @classmethod
    def of(cls, status: WorkflowStatus, *, all_tasks: bool = True, tracebacks: bool = False) -> Self:
        """Return the model of a workflow's status.

        Args:
            status: What a handle has told.
            all_tasks: Whether all tasks are in it, or only those that have failed.
            tracebacks: Whether errors show their tracebacks: to your own people, not to the world.
        """
        nodes = status.nodes if all_tasks else status.failed
        return cls(
            id=status.id,
            state=status.state,
            final=status.state.final,
            done=status.done,
            total=status.total,
            tasks=[WorkflowTaskOut.of(node, tracebacks=tracebacks) for node in nodes],
        )


def workflow_router(*, prefix: str = "/workflows", tracebacks: bool = False) -> APIRouter:
    """Return a route that tells how far workflows are, whoever has sent them. It reads the result store.

    `GET {prefix}/{id}` answers with a `WorkflowStatusOut`; `?all_tasks=false` leaves out tasks that have not failed. It
    answers 404 where no such workflow is known, 503 where the store is away. Results, events and cancelling are those
    of `task_router`, with the workflow's id.

    Args:
        prefix: Where the route is.
        tracebacks: Whether errors show where they were raised: for your own people, not for the world.
    """
    router = APIRouter(
        prefix=prefix, tags=["workflows"], responses={404: {"model": ErrorOut}, 503: {"model": ErrorOut}}
    )

    @router.get("/{workflow_id}")
    async def get_workflow_status(workflow_id: TaskId, app: AsyncQDep, *, all_tasks: bool = True) -> WorkflowStatusOut:
        """Say how far a workflow is, and each of its tasks."""
        try:
            status = await app.workflow(workflow_id).status()
        except AsyncQError as error:
            raise http_error(error) from error
        return WorkflowStatusOut.of(status, all_tasks=all_tasks, tracebacks=tracebacks)

    return router
