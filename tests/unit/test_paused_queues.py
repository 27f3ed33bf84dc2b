"""When a worker repeats the entries of pauses that go on, so that the journal does not forget them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from asyncq.broker import Identity
from asyncq.cancellations import JOURNAL
from asyncq.journal import Entry
from asyncq.memory.broker import MemoryBroker
from asyncq.memory.node import MemoryNode
from asyncq.pauses import PauseNote
from asyncq.settings import Settings
from asyncq.testing.clock import ManualClock
from asyncq.worker.paused_queues import PausedQueues

KEEP_S = 100.0


class Bench:
    """One worker's paused queues, and the journal."""

    def __init__(self, broker: MemoryBroker, clock: ManualClock) -> None:
        self.broker = broker
        self.clock = clock
        self.paused = self.new_worker()

    def new_worker(self) -> PausedQueues:
        return PausedQueues(self.broker, Settings(cancellations_kept_s=KEEP_S), self.clock)

    def note(self, pause_id: str = "p1", *, age_s: float = 0.0) -> PauseNote:
        return PauseNote("mail", self.clock.now_ms() - round(age_s * 1000), pause_id)

    async def notes(self) -> list[PauseNote | None]:
        found: list[PauseNote | None] = []
        async with self.broker.journal(JOURNAL, keep_s=KEEP_S).follow() as following:
            async for heard in following:
                if not isinstance(heard, Entry):
                    break
                found.append(PauseNote.read(heard.body))
        return found


@asynccontextmanager
async def opened() -> AsyncIterator[Bench]:
    clock = ManualClock()
    broker = MemoryBroker(Settings(), MemoryNode(clock))
    await broker.open(Identity("tests", "worker"))
    try:
        yield Bench(broker, clock)
    finally:
        await broker.close()


@pytest.mark.parametrize(("age_s", "repeats"), [(0, False), (25, False), (51, True), (99, True)])
async def test_an_entry_is_repeated_by_its_own_age_and_not_by_the_workers(age_s: float, repeats: bool) -> None:
    """Where workers are replaced every day, none of them lives for half of the seven days."""
    async with opened() as bench:
        bench.paused.take(bench.note(age_s=age_s))
        await bench.paused.repeat_what_is_due()
        assert [note is not None and note.id for note in await bench.notes()] == (["p1"] if repeats else [])


async def test_a_pause_outlives_workers_that_live_for_a_short_time_only() -> None:
    """Each reads what the one before has repeated."""
    async with opened() as bench:
        first = bench.note()
        await bench.broker.journal(JOURNAL, keep_s=KEEP_S).append(first.to_json(), timeout_s=5)
        for _ in range(20):  # each lives for a fifth of the time that entries are kept
            worker = bench.new_worker()
            for note in await bench.notes():
                assert note is not None
                worker.take(note)
            assert worker.how("mail") == "everywhere", "the journal has forgotten the pause"
            await bench.clock.advance(KEEP_S / 5)
            await worker.repeat_what_is_due()
        assert {(note.id, note.at_ms) for note in await bench.notes() if note is not None} == {(first.id, first.at_ms)}


async def test_who_hears_a_repetition_waits_anew() -> None:
    """The pause itself is old by then."""
    async with opened() as bench:
        note = bench.note(age_s=500)
        bench.paused.take(PauseNote(note.queue, note.at_ms, note.id, again_ms=bench.clock.now_ms()))
        await bench.paused.repeat_what_is_due()
        assert await bench.notes() == []


async def test_each_pause_of_a_queue_is_repeated() -> None:
    """A resume ends those that the journal has: one that only old workers knew of would go on, and come back."""
    async with opened() as bench:
        bench.paused.take(bench.note("p1", age_s=60))
        bench.paused.take(bench.note("p2", age_s=60))
        await bench.paused.repeat_what_is_due()
        assert {note.id for note in await bench.notes() if note is not None} == {"p1", "p2"}
