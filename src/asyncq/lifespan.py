"""The lifespan of an app: what its tasks need is there before the first one runs, and closed after the last one.

    @app.lifespan
    async def lifespan(app: AsyncQ) -> AsyncIterator[Resources]:
        async with httpx.AsyncClient() as client:
            yield Resources(client)

Invariant: only a worker enters it. A process that sends tasks, and a scheduler, open nothing of it.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from asyncq.errors import InvalidOption

__all__ = ["Lifespan", "OpenLifespan", "checked_lifespan"]

Lifespan = Callable[[Any], AbstractAsyncContextManager[Any] | AsyncIterator[Any]]
"""A function of the app that yields once: an async generator, or what `asynccontextmanager` has made of one."""

OpenLifespan = Callable[[Any], AbstractAsyncContextManager[Any]]


def checked_lifespan(given: Any, where: str) -> OpenLifespan:
    """Return the lifespan that was given as a function of the app that returns a context manager.

    Args:
        given: What the user gave.
        where: Its place, for the error message.

    Raises:
        InvalidOption: It is no function that yields once, or takes more than the app.
    """
    form = "Write it as `async def lifespan(app): ...` with one `yield` between what opens and what closes."
    if not callable(given) or inspect.iscoroutinefunction(given):
        missing = "it has no `yield`" if callable(given) else "it is no function"
        raise InvalidOption(f"{where} cannot use {given!r}: {missing}. {form}")
    try:
        inspect.signature(given).bind(None)
    except (TypeError, ValueError):
        raise InvalidOption(f"{where} cannot use {given!r}: it must take one argument, the app. {form}") from None
    return asynccontextmanager(given) if inspect.isasyncgenfunction(given) else given
