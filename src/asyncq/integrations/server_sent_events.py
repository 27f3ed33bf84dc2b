"""A task's life as server-sent events, for `EventSource` in a browser: one event for each status, the final one last.

Invariant: each event holds the whole status, and its id says which one that is. So an event that is left out or comes
twice does no harm, and who connects again with the last id gets what is new, or hears that there is nothing more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable

import anyio

from asyncq.errors import AsyncQError
from asyncq.loggers import get_logger
from asyncq.status import TaskStatus

__all__ = ["event_id", "events_of"]

log = get_logger("asyncq.integrations")

_KEEP_ALIVE = ": the task goes on\n\n"


def event_id(status: TaskStatus) -> str:
    """Return what a client says by `Last-Event-ID` when this status was the last one that it has seen."""
    moment = "" if status.updated_at is None else f"{status.updated_at.timestamp():.6f}"
    return f"{status.attempt}-{status.state}-{moment}"


async def events_of(
    statuses: AsyncIterator[TaskStatus],
    data_of: Callable[[TaskStatus], str],
    *,
    seen: str | None = None,
    keep_alive_s: float = 15.0,
) -> AsyncIterator[str]:
    """Write statuses as server-sent events.

    Args:
        statuses: Those of one task, as they change. It is let go of when this iterator is closed.
        data_of: Writes one as a line of JSON.
        seen: The client's `Last-Event-ID`: that status is left out.
        keep_alive_s: A comment is sent after so many seconds without an event, so that proxies keep the connection,
            and the server notices that the client has gone.
    """
    # One place: what a slow client has not taken yet holds up the reading, and is not piled up.
    coming: asyncio.Queue[TaskStatus | None] = asyncio.Queue(1)
    reading = asyncio.create_task(_read(statuses, coming), name="asyncq events")
    try:
        while True:
            try:
                async with asyncio.timeout(keep_alive_s):
                    status = await coming.get()
            except TimeoutError:
                yield _KEEP_ALIVE
                continue
            if status is None:
                break
            if event_id(status) != seen:
                yield f"id: {event_id(status)}\ndata: {data_of(status)}\n\n"
    finally:
        reading.cancel()
        # The server's cancel scope would end this wait at once, and leave the reading to itself.
        with anyio.CancelScope(shield=True):
            await asyncio.wait({reading})


async def _read(statuses: AsyncIterator[TaskStatus], coming: asyncio.Queue[TaskStatus | None]) -> None:
    # The response has begun, so it can only end; an EventSource asks again, and gets an error as the response's status.
    try:
        async for status in statuses:
            await coming.put(status)
    except AsyncQError as error:
        log.warning("a stream of events ends early", error=str(error))
    except Exception:
        log.exception("a stream of events ends early")
    finally:
        if isinstance(statuses, AsyncGenerator):
            await statuses.aclose()
    await coming.put(None)
