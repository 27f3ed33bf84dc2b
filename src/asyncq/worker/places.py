"""Places: so many things may run at once, and who comes later waits in the order of coming.

Invariant: a place is held by exactly one, from `take` to `free`; it is handed over to who has waited longest, so that
nobody who comes later overtakes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Literal

__all__ = ["PATIENCE_S", "Places", "Taken"]

PATIENCE_S = 30.0
"""How long a delivery waits in its slot for a place. Much longer, and the broker would take it back in the end: its
consumer timeout has begun, and the task's whole time limit is still to come."""

Taken = Literal["taken", "busy", "stopping"]


class Places:
    """So many places.

    Args:
        total: How many there are.
        patience_s: How long `take` waits for one, in seconds.
    """

    def __init__(self, total: int, patience_s: float = PATIENCE_S) -> None:
        self._total = total
        self._patience_s = patience_s
        self._held = 0
        self._refusing = False
        self._waiting: deque[asyncio.Future[Taken]] = deque()

    @property
    def total(self) -> int:
        """How many places there are."""
        return self._total

    @property
    def held(self) -> int:
        """How many are held."""
        return self._held

    @property
    def waiting(self) -> int:
        """How many wait for one."""
        return len(self._waiting)

    async def take(self) -> Taken:
        """Wait for a free place and take it.

        Returns:
            `taken`; `busy` where the patience is over; `stopping` where none is given away any more.
        """
        if self._held < self._total and not self._waiting:
            self._held += 1
            return "taken"
        if self._refusing:
            return "stopping"
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Taken] = loop.create_future()
        self._waiting.append(waiter)
        patience = loop.call_later(self._patience_s, self._tell, waiter, "busy")
        try:
            return await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled() and waiter.result() == "taken":
                self.free()
            elif waiter in self._waiting:
                self._waiting.remove(waiter)
            raise
        finally:
            patience.cancel()

    def resize(self, total: int) -> None:
        """Have so many places from now on. Those that are held stay so until they are given back."""
        self._total = total
        while self._waiting and self._held < total:
            self._held += 1  # for whoever has waited longest
            self.free()

    def free(self) -> None:
        """Give a place back: whoever has waited longest gets it."""
        while self._waiting and self._held <= self._total:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result("taken")
                return
        self._held -= 1

    def refuse(self) -> None:
        """Let nobody wait any more: the worker stops."""
        self._refusing = True
        for waiter in tuple(self._waiting):
            self._tell(waiter, "stopping")

    def _tell(self, waiter: asyncio.Future[Taken], what: Taken) -> None:
        if waiter in self._waiting:
            self._waiting.remove(waiter)
        if not waiter.done():
            waiter.set_result(what)
