"""One run through a dead-letter queue that sends letters back, or removes them.

    taken ─▶ meant? ──no──▶ kept
               │ yes
               ▼
             batch ─▶ act: published and confirmed (a purge: nothing) ─▶ settled: gone from the dead-letter queue
                        └─ not taken by the broker ─▶ kept, with the reason

Invariant: a letter is settled only after its copy is confirmed. So it is in the dead-letter queue or in its target, or,
after a crash in between, in both; and only the letters of one batch can be in between. A batch that has begun is
finished when the run is cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from asyncq.broker import DeadLetter, DeadLetters, TakenLetter, Taking
from asyncq.clock import Clock
from asyncq.dead_letters.filters import DeadLetterFilter
from asyncq.dead_letters.tally import RunTally
from asyncq.errors import InvalidOption

__all__ = ["BATCH", "Act", "Pace", "Run"]

BATCH = 100
"""How many letters are under way at once: as many can be doubled by a crash."""

Act = Callable[[Sequence[DeadLetter]], Awaitable[list[str | None]]]
"""Does what is to be done with letters; returns for each None, or why it stays."""

_BATCHES_A_SECOND = 10
_SLOWEST = 0.01


class Pace:
    """How many letters a second.

    Args:
        rate: Letters a second; None for as many as can be.
        clock: What it goes by.

    Raises:
        InvalidOption: The rate cannot be used.
    """

    def __init__(self, rate: float | None, clock: Clock) -> None:
        if rate is not None and (
            isinstance(rate, bool) or not isinstance(rate, (int, float)) or not _SLOWEST <= rate < float("inf")
        ):
            raise InvalidOption(
                f"rate= takes letters a second, at least {_SLOWEST:g}, not {rate!r}. For less, replay a few with "
                "limit= from time to time."
            )
        self._rate = rate
        self._clock = clock
        self._free_at = clock.monotonic()
        self.batch = BATCH if rate is None else max(1, min(BATCH, int(rate / _BATCHES_A_SECOND)))

    async def wait(self, letters: int) -> None:
        """Wait until so many may go."""
        if self._rate is None:
            return
        now = self._clock.monotonic()
        wait_s = self._free_at - now
        self._free_at = max(now, self._free_at) + letters / self._rate
        if wait_s > 0:
            over = asyncio.Event()
            timer = self._clock.call_later(wait_s, over.set)
            try:
                await over.wait()
            finally:
                timer.cancel()


@dataclass(frozen=True, slots=True)
class Run:
    """One run.

    Attributes:
        letters: The dead-letter queue.
        where: Which letters are meant.
        tally: Where it is counted.
        clock: For the letters' age.
        told: Called after each batch, and from time to time.
    """

    letters: DeadLetters
    where: DeadLetterFilter
    tally: RunTally
    clock: Clock
    told: Callable[[], None]

    async def look(self, stays: Callable[[DeadLetter], str | None]) -> None:
        """Look what the run would do, and change nothing.

        Args:
            stays: Tells of a letter why it would stay, or None.
        """
        tally, now_ms = self.tally, self.clock.now_ms()
        tally.total = await self.letters.count()
        if tally.is_full():
            return
        async with aclosing(self.letters.browse()) as letters:  # type: ignore[type-var]
            async for letter in letters:
                tally.examined += 1
                if self.where.matches(letter, now_ms):
                    tally.matches(letter)
                    reason = stays(letter)
                    if reason is None:
                        tally.done += 1
                    else:
                        tally.fails(letter, reason)
                self._tell_sometimes()
                if tally.is_full():
                    break
        self.told()

    async def act(self, act: Act, pace: Pace) -> None:
        """Act on the letters that are meant, oldest first.

        Args:
            act: What is done with a batch of them.
            pace: How many a second.
        """
        tally, now_ms = self.tally, self.clock.now_ms()
        batch: list[TakenLetter] = []
        if tally.is_full():  # a look that takes one would put it behind the others
            tally.total = await self.letters.count()
            return
        async with self.letters.take() as taking:
            tally.total = taking.total
            async for taken in taking:
                tally.examined += 1
                if self.where.matches(taken.letter, now_ms):
                    tally.matches(taken.letter)
                    batch.append(taken)
                else:
                    taking.keep(taken)
                if len(batch) >= pace.batch:
                    await self._do(taking, batch, act, pace)
                    batch = []
                else:
                    self._tell_sometimes()
                if tally.is_full():
                    break
            if batch:
                await self._do(taking, batch, act, pace)
        self.told()

    async def _do(self, taking: Taking, batch: Sequence[TakenLetter], act: Act, pace: Pace) -> None:
        await pace.wait(len(batch))
        try:
            await _finished(self._act_on(taking, batch, act))
        finally:
            self.told()

    async def _act_on(self, taking: Taking, batch: Sequence[TakenLetter], act: Act) -> None:
        outcomes = await act([taken.letter for taken in batch])
        done = []
        for taken, reason in zip(batch, outcomes, strict=True):
            if reason is None:
                done.append(taken)
            else:
                self.tally.fails(taken.letter, reason)
                taking.keep(taken)
        await taking.settle(done)
        self.tally.done += len(done)

    def _tell_sometimes(self) -> None:
        if self.tally.examined % BATCH == 0:
            self.told()


async def _finished(batch: Coroutine[Any, Any, None]) -> None:
    """Do a batch; where the run is cancelled meanwhile, finish it first. A second cancellation does not wait."""
    task = asyncio.create_task(batch)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # seen: the run ends anyway
        raise
