"""asyncq in FastAPI: the app's life with the service's, the app in routes, the status of tasks, errors as answers.

All of it is three lines, and each stands alone: `FastAPI(lifespan=asyncq_lifespan(app))`,
`api.include_router(task_router())`, `add_error_handlers(api)`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Header, HTTPException, Response
from fastapi.responses import StreamingResponse

from asyncq.app import AsyncQ
from asyncq.errors import AsyncQError, InvalidOption
from asyncq.integrations.dependencies import STATE, AsyncQDep, TaskId, current_app
from asyncq.integrations.http_errors import ErrorOut, NothingKnown, add_error_handlers, http_error
from asyncq.integrations.server_sent_events import event_id, events_of
from asyncq.integrations.status_models import TaskErrorOut, TaskStatusOut, status_model
from asyncq.integrations.workflow_routes import WorkflowStatusOut, WorkflowTaskOut, workflow_router
from asyncq.status import TaskState, TaskStatus

__all__ = [
    "AsyncQDep",
    "TaskErrorOut",
    "TaskId",
    "TaskStatusOut",
    "WorkflowStatusOut",
    "WorkflowTaskOut",
    "add_error_handlers",
    "asyncq_lifespan",
    "current_app",
    "status_model",
    "task_router",
    "workflow_router",
]

OwnLifespan = Callable[[FastAPI], AbstractAsyncContextManager[Mapping[str, Any] | None]]
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[Mapping[str, Any]]]


LastEventId = Annotated[
    str | None, Header(description="What an `EventSource` sends when it connects again: the id of the last event.")
]

_NO_PROXY_KEEPS_IT = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # the second one is for nginx


def asyncq_lifespan(app: AsyncQ, *others: AsyncQ, then: OwnLifespan | None = None) -> Lifespan:
    """Return a lifespan for `FastAPI(lifespan=...)`: apps are open from before the first request to the end.

    Args:
        app: The app that `AsyncQDep` gives.
        *others: More apps that the service sends to.
        then: A lifespan of your own. It runs inside, where the apps are open, and its state is handed on.

    Raises:
        BrokerUnavailable: On start: no broker answers. The service does not start then.
        BrokerRefused: On start: wrong credentials, no such virtual host, a missing permission.
    """

    @asynccontextmanager
    async def lifespan(api: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with AsyncExitStack() as stack:
            for each in (app, *others):
                await _open(stack, each)
            setattr(api.state, STATE, app)
            state = await stack.enter_async_context(then(api)) if then is not None else None
            yield {STATE: app, **(state or {})}

    return lifespan


def task_router(
    *, prefix: str = "/tasks", tracebacks: bool = False, keep_alive_s: float = 15.0, cancelling: bool = True
) -> APIRouter:
    """Return routes that tell how far tasks are, whoever has sent them, and cancel them. They read the result store.

    `GET {prefix}/{id}` answers with a `TaskStatusOut`. `GET {prefix}/{id}/events` sends one after the other as
    server-sent events, up to the end. `DELETE {prefix}/{id}` lets a task not run, or stops it. All answer 404 where
    nothing is known of the id, 503 where the store is away. Who knows an id may see its task, and cancel it: protect
    the routes as any others, by `include_router(..., dependencies=[...])`.

    Args:
        prefix: Where the routes are.
        tracebacks: Whether errors show where they were raised: for your own people, not for the world.
        keep_alive_s: A comment is sent after so many seconds without an event.
        cancelling: Whether there is a DELETE.
    """
    router = APIRouter(prefix=prefix, tags=["tasks"], responses={404: {"model": ErrorOut}, 503: {"model": ErrorOut}})

    @router.get("/{task_id}")
    async def get_task_status(task_id: TaskId, app: AsyncQDep) -> TaskStatusOut[Any]:
        """Say how far a task is, with its result or its error."""
        return TaskStatusOut[Any].of(await _known(app, task_id), tracebacks=tracebacks)

    @router.get(
        "/{task_id}/events",
        response_class=EventStream,
        responses={
            200: {"description": "A `TaskStatusOut` as the data of each event; the last one is final."},
            204: {"description": "The client has seen the final one already. An `EventSource` does not come again."},
        },
    )
    async def get_task_events(task_id: TaskId, app: AsyncQDep, last_event_id: LastEventId = None) -> Response:
        """Send the task's status as it changes, as server-sent events."""
        status = await _known(app, task_id)
        if status.state.final and event_id(status) == last_event_id:
            return Response(status_code=204)

        def data_of(status: TaskStatus) -> str:
            return TaskStatusOut[Any].of(status, tracebacks=tracebacks).model_dump_json()

        statuses = app.handle(task_id).statuses()
        events = events_of(statuses, data_of, seen=last_event_id, keep_alive_s=keep_alive_s)
        return EventStream(events, headers=_NO_PROXY_KEEPS_IT)

    if cancelling:
        _add_cancelling(router)
    return router


def _add_cancelling(router: APIRouter) -> None:
    @router.delete(
        "/{task_id}",
        status_code=202,
        response_model=TaskStatusOut[Any],
        responses={
            200: {"model": TaskStatusOut[Any], "description": "The task has ended already."},
            202: {"description": "It is cancelled as soon as a worker comes to it, or sees it. Its status as it was."},
            501: {"model": ErrorOut},
        },
    )
    async def cancel_task(task_id: TaskId, app: AsyncQDep, response: Response) -> TaskStatusOut[Any]:
        """Let a task not run, or stop it where it runs."""
        status = await _known(app, task_id)
        if status.state.final:
            response.status_code = 200
        else:
            try:
                await app.cancel(task_id)
            except InvalidOption as error:  # the id has been looked at, so it is cancelling that is switched off
                raise HTTPException(501, "This service cancels no tasks.") from error
            except AsyncQError as error:
                raise http_error(error) from error
        return TaskStatusOut[Any].of(status)


class EventStream(StreamingResponse):
    """A response of server-sent events."""

    media_type = "text/event-stream"


async def _open(stack: AsyncExitStack, app: AsyncQ) -> None:
    try:
        await stack.enter_async_context(app.open(role="web"))
    except AsyncQError as error:
        # The server prints all that led to it; the message says it.
        raise error.with_traceback(None) from None
    stack.push_async_callback(asyncio.to_thread, app.sync.close)  # what `def` routes have opened


async def _known(app: AsyncQ, task_id: str) -> TaskStatus:
    """Return what is known of a task, or raise what the router answers."""
    try:
        status = await app.handle(task_id).status()
    except AsyncQError as error:
        raise http_error(error) from error
    if status.state is TaskState.UNKNOWN:
        raise NothingKnown
    return status
