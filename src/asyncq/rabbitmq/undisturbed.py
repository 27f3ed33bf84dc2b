"""Work that a cancelled caller does not cut short: closing a connection, and opening and closing a channel.

A closing that is cut short leaves the connection open for as long as the process lives. And aiormq does not survive
a cancellation at every step of opening and closing a channel: it can send the broker a command for a channel that is
closed already, and the broker then closes the connection, for everybody on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["undisturbed"]

T = TypeVar("T")

_undisturbed: set[asyncio.Task[Any]] = set()


async def undisturbed(work: Coroutine[Any, Any, T]) -> T:
    """Do the work and return what it returns; where the caller is cancelled, the work goes on without it."""
    task = asyncio.create_task(work)
    _undisturbed.add(task)  # the event loop itself holds tasks only weakly
    task.add_done_callback(_undisturbed.discard)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_see)
        raise


def _see(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()  # nobody is left to hear of it, and asyncio would complain
