"""Which attempts wait for the reply of another task.

A task that waits for another one is busy as the broker sees it, and yet only the clock can move it on, where the
other one waits for its time.

Invariant: a reply counts as heard from the moment on that its reader has it, not when the waiting code goes on: so
in between the app is not idle.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from asyncq.context import TaskContext, current_context
from asyncq.errors import NoContext

__all__ = ["Waits"]


class Waits:
    """The waits for replies in running attempts. Safe with threads.

    Args:
        changed: Called when an attempt begins to wait, from its thread.
    """

    def __init__(self, changed: Callable[[], object]) -> None:
        self._changed = changed
        self._waits: dict[asyncio.Future[None], TaskContext] = {}
        self._lock = threading.Lock()

    @property
    def waiting(self) -> list[TaskContext]:
        """The attempts that wait at the moment."""
        with self._lock:
            return [context for waiter, context in self._waits.items() if not waiter.done()]

    def add(self, waiter: asyncio.Future[None]) -> None:
        """Take in a wait; see `asyncq.pending_reply.on_wait`."""
        try:
            context = current_context()
        except NoContext:
            return
        with self._lock:
            self._waits[waiter] = context
        waiter.add_done_callback(self._forget)
        self._changed()

    def _forget(self, waiter: asyncio.Future[None]) -> None:
        with self._lock:
            self._waits.pop(waiter, None)
