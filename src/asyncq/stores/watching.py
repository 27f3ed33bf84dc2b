"""Waiting for the changes of a record: told by the store where it can tell, looking again where it cannot.

What a store tells is only a hint to look: it may come twice, late, or be lost with a connection. So everyone who
watches looks again after a while on their own, and the final state is never missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager

from asyncq.errors import StoreUnavailable
from asyncq.loggers import get_logger
from asyncq.status import TaskStatus

__all__ = ["Bell", "follow"]

log = get_logger("asyncq.stores")

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 1.0
_PAUSE_GROWTH = 1.5
_TOLD_PAUSE_S = 5.0


class Bell:
    """Who in this loop waits for the change of which record."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = {}

    @contextmanager
    def heard(self, key: str) -> Iterator[asyncio.Event]:
        """Give an event that is set at each ring for this record."""
        event = asyncio.Event()
        self._waiting.setdefault(key, set()).add(event)
        try:
            yield event
        finally:
            self._waiting[key].discard(event)
            if not self._waiting[key]:
                del self._waiting[key]

    def ring(self, key: str) -> None:
        """Tell those who wait for a record to look."""
        for event in self._waiting.get(key, ()):
            event.set()

    def ring_all(self) -> None:
        """Tell everybody to look: something may have been missed."""
        for key in self._waiting:
            self.ring(key)


async def follow(
    look: Callable[[], Awaitable[tuple[TaskStatus | None, bool]]], rung: asyncio.Event, store: str
) -> AsyncIterator[TaskStatus]:
    """Iterate what `look` sees, each time it is something new, up to the first final state, or until it is gone.

    Args:
        look: Returns the present status, and whether the store tells of changes.
        rung: Set when it has told of one.
        store: The store's name, for the log.
    """
    last: TaskStatus | None = None
    pause = _FIRST_PAUSE_S
    away = False
    while True:
        rung.clear()
        told = False
        try:
            status, told = await look()
        except StoreUnavailable as error:
            if not away:
                log.warning("a task is watched while its store is away", store=store, error=str(error))
            status, away = None, True
        else:
            away = False
        if status is None and last is not None and not away:
            return  # it was deleted, or has expired: nobody will write of it any more
        if status is not None and status != last:
            last = status
            pause = _FIRST_PAUSE_S
            yield status
            if status.state.final:
                return
        with contextlib.suppress(TimeoutError):
            # Those who watch one task in many processes should not all come at the same moment.
            async with asyncio.timeout((_TOLD_PAUSE_S if told else pause) * random.uniform(1, 1.2)):  # noqa: S311
                await rung.wait()
        pause = min(pause * _PAUSE_GROWTH, _LONGEST_PAUSE_S)
