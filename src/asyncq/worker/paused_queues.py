"""Which queues of a worker are paused by somebody: everywhere, as the journal says, or here, as this worker was told.

    journal ─▶ Pauses ─┐
                       ├─▶ is_paused(queue) ──changed──▶ the queue's slots are given up, or had again
    told here ─────────┘

The journal forgets what is old. So workers repeat the entry of a pause that goes on, long before that; each at a moment
of its own, and whoever hears a repetition waits anew.

Invariant: a queue is paused as long as one of the two says so. Its circuit breaker is another matter.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from asyncq.broker import Broker
from asyncq.cancellations import JOURNAL
from asyncq.clock import Clock
from asyncq.errors import AsyncQError
from asyncq.loggers import get_logger
from asyncq.pauses import PauseNote, Pauses
from asyncq.settings import Settings

__all__ = ["PausedQueues"]

log = get_logger("asyncq.worker")

_LOOKS = 40
"""How often, within `cancellations_kept_s`, a worker looks whether a pause is to be repeated."""
_SHORTEST_LOOK_S = 1.0
_LONGEST_LOOK_S = 600.0


class PausedQueues:
    """The paused queues, as far as this worker knows.

    Args:
        broker: Where the journal is.
        settings: For how long it keeps entries.
        clock: For the age of what it keeps.

    Attributes:
        on_change: Called with a queue that was paused or resumed.
    """

    def __init__(self, broker: Broker, settings: Settings, clock: Clock) -> None:
        self._broker = broker
        self._keep_s = settings.cancellations_kept_s
        self._timeout_s = settings.publish_timeout_s
        self._clock = clock
        self._everywhere = Pauses()
        self._here: set[str] = set()
        self._repeat_at_s: dict[str, float] = {}
        self.on_change: Callable[[str], object] = lambda _: None

    def how(self, queue: str) -> Literal["everywhere", "here"] | None:
        """Return by whose wish a queue is paused; None where it is not."""
        if self._everywhere.of(queue):
            return "everywhere"
        return "here" if queue in self._here else None

    def take(self, note: PauseNote) -> None:
        """Take an entry of the journal."""
        before = self.how(note.queue)
        self._everywhere.take(note)
        # From less than half of its time on, and not all workers at once. The entry's age counts and not ours: where no
        # worker lives for long, none of them would ever repeat it.
        age_s = max(0, self._clock.now_ms() - note.noted_ms) / 1000
        wait_s = max(0.0, self._keep_s * random.uniform(0.3, 0.5) - age_s)  # noqa: S311 - no secret
        self._repeat_at_s[note.queue] = self._clock.monotonic() + wait_s
        self._tell(note.queue, before)

    def pause_here(self, queue: str) -> None:
        """Let this worker alone take nothing from a queue, until it is told otherwise or ends."""
        before = self.how(queue)
        self._here.add(queue)
        self._tell(queue, before)

    def resume_here(self, queue: str) -> None:
        """Undo `pause_here`. A pause of all workers goes on."""
        before = self.how(queue)
        self._here.discard(queue)
        self._tell(queue, before)

    def _tell(self, queue: str, before: str | None) -> None:
        now = self.how(queue)
        if (now is None) != (before is None):
            log.info("queue paused" if now else "queue resumed", queue=queue, by=now or before)
            self.on_change(queue)

    async def keep(self) -> None:
        """Repeat the entries of pauses that go on, until cancelled."""
        if self._keep_s <= 0:
            return
        look_s = min(_LONGEST_LOOK_S, max(_SHORTEST_LOOK_S, self._keep_s / _LOOKS))
        while True:
            await asyncio.sleep(look_s)
            await self.repeat_what_is_due()

    async def repeat_what_is_due(self) -> None:
        """Repeat the entries that the journal would forget before long."""
        now_s = self._clock.monotonic()
        for queue in self._everywhere.current:
            if self._repeat_at_s.get(queue, 0.0) <= now_s:
                # Each of them: a resume can end only those that the journal still has.
                for note in tuple(self._everywhere.of(queue).values()):
                    await self._repeat(replace(note, again_ms=self._clock.now_ms()))

    async def _repeat(self, note: PauseNote) -> None:
        try:
            journal = self._broker.journal(JOURNAL, keep_s=self._keep_s)
            await journal.append(note.to_json(), timeout_s=self._timeout_s)
        except AsyncQError as error:  # it is tried again with the next look
            log.warning("the pause of a queue could not be noted again", queue=note.queue, cause=str(error))
