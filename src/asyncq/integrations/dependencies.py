"""What routes take as parameters: the open app, and the id of a task."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Path
from fastapi.requests import HTTPConnection
from pydantic import AfterValidator

from asyncq.app import AsyncQ
from asyncq.errors import InvalidOption, NotOpen
from asyncq.options import checked_id

__all__ = ["STATE", "AsyncQDep", "TaskId", "current_app"]

STATE = "asyncq_app"
"""The name under which the lifespan leaves the app for the routes."""


def _task_id(text: str) -> str:
    try:
        return checked_id(text)
    except InvalidOption as error:
        raise ValueError(str(error)) from error


TaskId = Annotated[
    str,
    Path(description="The task's id, as its send has returned it.", pattern=r"^[^\x00-\x1f\x7f]+$"),
    AfterValidator(_task_id),
]
"""A task's id in a route's path; what can be none is answered with 422."""


def current_app(connection: HTTPConnection) -> AsyncQ:
    """Return the open app of the service that a request came to; `AsyncQDep` in a route's parameters.

    Raises:
        NotOpen: The service has none, or its lifespan was not run.
    """
    # Servers hand the lifespan's state to mounted services too; a client in a test may hand on none.
    app = getattr(connection.state, STATE, None) or getattr(connection.app.state, STATE, None)
    if not isinstance(app, AsyncQ):
        raise NotOpen(
            "No asyncq app is open in this service. Write FastAPI(lifespan=asyncq_lifespan(app)); and in a test, use "
            "a client that runs the lifespan."
        )
    return app


AsyncQDep = Annotated[AsyncQ, Depends(current_app)]
"""The open app, as a route's parameter: `async def route(app: AsyncQDep)`."""
