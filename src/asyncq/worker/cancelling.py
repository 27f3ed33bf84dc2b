"""Cancelling in a worker: follow the journal, remember what shall not run, and stop what runs.

    journal ─▶ read to its end ─▶ the slots begin ─▶ follow it live ─┬─▶ revocations: asked for each delivery
                                                                     ├─▶ running attempts: interrupted
                                                                     └─▶ paused queues: their slots take nothing

Invariant: no delivery is run before all cancellations are known that the broker had confirmed when the worker began,
or, after a lost connection, when it was back. A worker that may not read them does not work, for it would run what
somebody has cancelled.
"""

from __future__ import annotations

import asyncio

from asyncq.broker import Broker
from asyncq.cancellations import JOURNAL, Cancellation
from asyncq.errors import AsyncQError
from asyncq.journal import CaughtUp, Entry, Heard, Interrupted
from asyncq.loggers import get_logger
from asyncq.pauses import PauseNote
from asyncq.worker.attempts import Attempts
from asyncq.worker.paused_queues import PausedQueues
from asyncq.worker.revocations import Revocations

__all__ = ["Cancelling"]

log = get_logger("asyncq.worker")

_PAUSE_AFTER_BUG_S = 1.0


class Cancelling:
    """Keeps one worker's revocations.

    Args:
        broker: Where the journal is.
        keep_s: How long cancellations are kept, in seconds; 0 switches cancelling off.
        revocations: What is kept up to date.
        attempts: What runs here.
        paused: The queues that are paused: the journal has their entries too.

    Attributes:
        began: Set when the journal was read to its end for the first time.
    """

    def __init__(
        self, broker: Broker, keep_s: float, revocations: Revocations, attempts: Attempts, paused: PausedQueues
    ) -> None:
        self._broker = broker
        self._keep_s = keep_s
        self._revocations = revocations
        self._attempts = attempts
        self._paused = paused
        self.began = asyncio.Event()

    async def run(self) -> None:
        """Follow the journal until cancelled.

        Raises:
            AsyncQError: It cannot be read, and trying again is no use.
        """
        if self._keep_s <= 0:
            self.began.set()
            return
        self._revocations.fall_behind()
        while True:
            try:
                async with self._broker.journal(JOURNAL, keep_s=self._keep_s).follow() as following:
                    async for heard in following:
                        self._take(heard)
            except AsyncQError:
                raise
            except Exception:  # a bug of ours in here must not end the worker
                log.exception("cancellations cannot be read, trying again")
            self._revocations.fall_behind()
            await asyncio.sleep(_PAUSE_AFTER_BUG_S)

    def _take(self, heard: Heard) -> None:
        match heard:
            case Entry(body):
                self._take_entry(body)
            case CaughtUp():
                if not self.began.is_set():
                    log.debug("cancellations are known", cancelled=len(self._revocations))
                self.began.set()
                # Only now: what was cancelled and taken back meanwhile has to go on.
                self._attempts.cancel(self._revocations)
                self._revocations.catch_up()
            case Interrupted():
                self._revocations.fall_behind()

    def _take_entry(self, body: bytes) -> None:
        if (note := PauseNote.read(body)) is not None:
            self._paused.take(note)
            return
        cancellation = Cancellation.read(body)
        if cancellation is None:
            log.warning("an entry among the cancellations cannot be read, it is left alone", size=len(body))
        elif cancellation.undone:
            self._revocations.remove(cancellation.ids)
        else:
            self._revocations.add(cancellation.ids, cancellation.at_ms)
            if self._revocations.is_current:
                self._attempts.cancel(frozenset(cancellation.ids))
