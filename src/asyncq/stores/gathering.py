"""Writes that come at the same time go together.

While one batch is on its way, the updates that come meanwhile wait, and go as the next one: a worker with fifty slots
needs a few round trips, not fifty transactions. Who is alone waits for nobody.

Invariant: a caller returns after its own updates are kept, or hears why not. Who is cancelled holds up nobody; what it
has handed over may be written all the same.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from asyncq.errors import StoreUnavailable
from asyncq.status import StatusUpdate

__all__ = ["Gathering"]

_MAX_AT_ONCE = 500

_Handed = tuple[Sequence[StatusUpdate], "asyncio.Future[None]"]


class Gathering:
    """What one store's writers have handed over.

    Args:
        write: Writes a batch. Writing the same again must do no harm.
    """

    def __init__(self, write: Callable[[Sequence[StatusUpdate]], Awaitable[None]]) -> None:
        self._write = write
        self._waiting: deque[_Handed] = deque()
        self._running: asyncio.Task[None] | None = None

    async def write(self, updates: Sequence[StatusUpdate]) -> None:
        """Write updates, together with those of others.

        Raises:
            StoreUnavailable: As the store says, of the whole batch.
        """
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((updates, written))
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        await written

    async def drain(self) -> None:
        """Wait until all that was handed over is written, or cannot be."""
        while self._running is not None:
            await asyncio.wait([self._running])

    async def _run(self) -> None:
        try:
            while self._waiting:
                await self._write_together(self._take())
        finally:
            self._running = None
            while self._waiting:  # only where the loop is being stopped
                self._waiting.popleft()[1].cancel()

    def _take(self) -> list[_Handed]:
        """Return those who wait, oldest first, as many as go together."""
        batch: list[_Handed] = []
        size = 0
        while self._waiting and (not batch or size + len(self._waiting[0][0]) <= _MAX_AT_ONCE):
            updates, written = self._waiting.popleft()
            if not written.done():
                batch.append((updates, written))
                size += len(updates)
        return batch

    async def _write_together(self, batch: Sequence[_Handed]) -> None:
        try:
            await self._write([update for updates, _ in batch for update in updates])
        except StoreUnavailable as error:
            # Those who wait behind them would wait for the same: no call takes longer than one may.
            _fail((*batch, *self._waiting), error)
            self._waiting.clear()
        except Exception as error:  # noqa: BLE001 - it belongs to whoever called
            await self._write_apart(batch, error)
        except BaseException:
            for _, written in batch:
                written.cancel()
            raise
        else:
            for _, written in batch:
                if not written.done():
                    written.set_result(None)

    async def _write_apart(self, batch: Sequence[_Handed], error: Exception) -> None:
        """Write each call's updates alone, as the error may be the fault of one of them."""
        if len(batch) == 1:
            _fail(batch, error)
            return
        for one in batch:
            await self._write_together([one])


def _fail(batch: Sequence[_Handed], error: Exception) -> None:
    for _, written in batch:
        if written.done():
            continue
        if isinstance(error, StoreUnavailable):  # several raise it, each with a traceback of its own
            own = StoreUnavailable(str(error))
            own.__cause__ = error.__cause__
            written.set_exception(own)
        else:
            written.set_exception(error)
