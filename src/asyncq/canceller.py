"""Cancelling, from the sender's side: ids become entries of the journal `cancellations`.

    cancel(a) ─┐
    cancel(b) ─┼─▶ one batch ─▶ an entry for each 200 ids ─▶ confirmed ─▶ all of them return
    cancel(c) ─┘   what comes while it is under way is the next batch

Hundreds of handles that are cancelled at once are a few entries, so workers hear of all of them at once.

Invariant: a call returns only when the broker has confirmed its ids, and raises only what became of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from asyncq.broker import Broker
from asyncq.cancellations import JOURNAL, checked_ids, entries_of
from asyncq.clock import Clock
from asyncq.errors import InvalidOption
from asyncq.loggers import get_logger
from asyncq.settings import Settings

__all__ = ["Canceller"]

log = get_logger("asyncq.client")


class _Batch:
    """Ids that go together. `done` is set when they are confirmed."""

    __slots__ = ("done", "ids")

    def __init__(self) -> None:
        self.ids: dict[str, None] = {}
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Canceller:
    """Cancels tasks by their ids.

    Args:
        broker: An open broker.
        settings: For how long cancellations are kept.
        clock: For their times.
    """

    def __init__(self, broker: Broker, settings: Settings, clock: Clock) -> None:
        self._broker = broker
        self._settings = settings
        self._clock = clock
        self._open: dict[bool, _Batch] = {}
        self._writing = asyncio.Lock()
        self._writers: set[asyncio.Task[None]] = set()

    async def cancel(self, ids: Iterable[str], due_ms: int | None = None) -> None:
        """Let these tasks not run, or stop them where they run; see `AsyncQ.cancel`.

        Args:
            ids: Theirs.
            due_ms: When they are due, in milliseconds since the epoch, where that is known.
        """
        keep_ms = self._settings.cancellations_kept_s * 1000
        if due_ms is not None and due_ms - self._clock.now_ms() > keep_ms > 0:
            log.warning(
                "the cancelled task is due after its cancellation may be forgotten; raise cancellations_kept_s",
                due_ms=due_ms,
                cancellations_kept_s=self._settings.cancellations_kept_s,
            )
        await self._append(ids, undone=False)

    async def undo(self, ids: Iterable[str]) -> None:
        """Let these tasks run again; see `AsyncQ.undo_cancel`."""
        await self._append(ids, undone=True)

    async def _append(self, ids: Iterable[str], *, undone: bool) -> None:
        checked = checked_ids(ids)
        if self._settings.cancellations_kept_s <= 0:
            raise InvalidOption(
                "Cancelling is switched off in this app: cancellations_kept_s is 0 (ASYNCQ_CANCELLATIONS_KEPT_S)."
            )
        if not checked:
            return
        batch = self._open.get(undone)
        if batch is None:
            batch = self._open[undone] = _Batch()
            writer = asyncio.create_task(self._write(batch, undone=undone), name="asyncq cancels")
            self._writers.add(writer)
            writer.add_done_callback(self._writers.discard)
        batch.ids.update(dict.fromkeys(checked))
        await asyncio.shield(batch.done)  # whoever is cancelled meanwhile does not stop the others

    async def _write(self, batch: _Batch, *, undone: bool) -> None:
        try:
            async with self._writing:
                del self._open[undone]
                journal = self._broker.journal(JOURNAL, keep_s=self._settings.cancellations_kept_s)
                for entry in entries_of(tuple(batch.ids), self._clock.now_ms(), undone=undone):
                    await journal.append(entry.to_json(), timeout_s=self._settings.publish_timeout_s)
        except BaseException as error:
            batch.done.set_exception(error if isinstance(error, Exception) else ConnectionError("the app was closed"))
            batch.done.exception()  # seen: perhaps nobody waits any more, and asyncio would complain
            if not isinstance(error, Exception):
                raise
        else:
            batch.done.set_result(None)
