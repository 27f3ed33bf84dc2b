"""A tick that comes twice: it runs once where its end is known, and always where it is not."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from asyncq.clock import SystemClock
from asyncq.errors import LeaseLost, StoreUnavailable
from asyncq.life import RUNS, SENT_AT, new_life_after
from asyncq.message import ATTEMPT
from asyncq.outcome import (
    Cancelled,
    Drained,
    Expired,
    Failed,
    Failure,
    LostLease,
    Outcome,
    Postponed,
    Rejected,
    RetryLater,
    Snoozed,
    Succeeded,
    Throttled,
)
from asyncq.recording import Recorder
from asyncq.retry import Fixed, RetryPolicy
from asyncq.stores.memory import MemoryStore, Shelf
from asyncq.ticks import FIRE_TIME, SCHEDULE
from asyncq.worker.repeats import Repeats
from support import eventually
from worker_kit import Kit, LoneDelivery, make_kit, make_message

AT_MS = 1_767_225_600_000
TICK = {SCHEDULE: "often", FIRE_TIME: AT_MS, SENT_AT: AT_MS}
ERROR = Failure("builtins.OSError", "no")


class Work:
    """A worker's parts with one task, which fails as often as it is told to. `runs` counts."""

    def __init__(self, kit: Kit) -> None:
        self.kit = kit
        self.runs = 0
        self.failures = 0
        self.go = asyncio.Event()
        self.go.set()

        @kit.task(retry=RetryPolicy(max_attempts=2, backoff=Fixed(5), jitter=False))
        async def work() -> None:
            self.runs += 1
            await self.go.wait()
            if self.failures:
                self.failures -= 1
                raise OSError("no")

    def delivery(self, *, deliveries: int | None = None, **headers: Any) -> LoneDelivery:
        return self.kit.delivery("work", task_id="shop.often@1", headers={**TICK, **headers}, deliveries=deliveries)

    async def handle(self, *, deliveries: int | None = None, **headers: Any) -> LoneDelivery:
        delivery = self.delivery(deliveries=deliveries, **headers)
        await self.kit.slot.handle(delivery)
        return delivery


@pytest.fixture
async def work() -> Work:
    return Work(await make_kit())


async def worker_on(shelf: Shelf) -> Work:
    """Return a worker with a result store that others have too."""
    recorder = Recorder(MemoryStore(shelf), SystemClock())
    kit = await make_kit(recorder=recorder)
    await recorder.open()
    return Work(kit)


# --- what is remembered


async def test_a_tick_that_has_ended_is_not_run_a_second_time(caplog):
    """It is acked, counted and told of; nothing is published for it."""
    caplog.set_level(logging.INFO)
    work = Work(await make_kit())
    await work.handle()
    again = await work.handle()
    assert (work.runs, again.settled) == (1, "acked")
    assert work.kit.attempts.outcomes == {"Succeeded": 1, "Repeated": 1}
    assert work.kit.broker.log == ["ack", "ack"]
    assert "tick came again after its end" in caplog.text


async def test_a_tick_that_has_finally_failed_is_not_run_a_second_time(work):
    """Its end is the dead letter."""
    work.failures = 2
    await work.handle()
    await work.handle(**{ATTEMPT: 2})
    assert work.kit.attempts.outcomes == {"RetryLater": 1, "Failed": 1}
    await work.handle()
    assert work.runs == 2


async def test_a_tick_that_has_not_ended_runs_again(work):
    """Its first message has failed and waits for its retry: that is no end."""
    work.failures = 1
    await work.handle()
    await work.handle()
    assert work.kit.attempts.outcomes == {"RetryLater": 1, "Succeeded": 1}


@pytest.mark.parametrize("headers", [{ATTEMPT: 2}, {RUNS: 1}], ids=repr)
async def test_a_copy_always_runs(work, headers):
    """A retry, a snooze, a hand-back: somebody has decided that it shall."""
    await work.handle()
    await work.handle(**headers)
    assert work.runs == 2


async def test_a_tick_whose_lease_was_lost_before_the_ack_runs_again(work):
    """Whether its end was durable is not known."""
    work.go.clear()
    delivery = work.delivery()
    running = asyncio.create_task(work.kit.slot.handle(delivery))
    await eventually(lambda: work.runs == 1)
    delivery.fail_ack = LeaseLost("gone")
    work.go.set()
    await running
    assert work.kit.attempts.outcomes == {"LostLease": 1}
    await work.handle(deliveries=1)
    assert work.kit.attempts.outcomes == {"LostLease": 1, "Succeeded": 1}


async def test_a_tick_that_was_sent_back_from_the_dead_letters_runs(work):
    """That is another life of it."""
    await work.handle()
    await work.handle(**new_life_after(work.delivery().message, AT_MS + 1))
    assert work.runs == 2


@pytest.mark.parametrize("missing", [SCHEDULE, FIRE_TIME, SENT_AT])
async def test_other_tasks_run_as_often_as_they_are_sent(work, missing):
    """A program may use one id twice."""
    headers = {name: value for name, value in TICK.items() if name != missing}
    for _ in range(2):
        await work.kit.slot.handle(work.kit.delivery("work", headers=headers))
    assert work.runs == 2


async def test_another_tick_of_the_schedule_runs(work):
    """Its id and its fire time are others."""
    await work.handle()
    later = {**TICK, FIRE_TIME: AT_MS + 1000, SENT_AT: AT_MS + 1000}
    await work.kit.slot.handle(work.kit.delivery("work", task_id="shop.often@2", headers=later))
    assert work.runs == 2


@pytest.mark.parametrize(
    ("outcome", "is_end"),
    [
        (Succeeded(b"1"), True),
        (Failed(ERROR, "attempts exhausted"), True),
        (Rejected(ERROR, "never"), True),
        (Cancelled(), True),
        (Expired(1, 2), True),
        (RetryLater(ERROR, 1, None), False),
        (Snoozed(1), False),
        (Postponed(1), False),
        (Throttled(1, 1), False),
        (Drained(), False),
        (LostLease(), False),
    ],
    ids=repr,
)
async def test_only_ends_are_remembered(outcome: Outcome, is_end: bool) -> None:
    """Whatever else becomes of a tick, it is still to run."""
    repeats = Repeats()
    message = make_message("work", headers=TICK)
    repeats.ended(message, outcome)
    assert await repeats.has(LoneDelivery(message, [])) is is_end


async def test_the_memory_is_bounded() -> None:
    """The oldest ticks are forgotten first."""
    repeats = Repeats(remembered=2)
    messages = [make_message("work", task_id=f"t{number}", headers=TICK) for number in range(3)]
    for message in messages:
        repeats.ended(message, Succeeded(b"1"))
    assert [await repeats.has(LoneDelivery(message, [])) for message in messages] == [False, True, True]


# --- what the result store knows


async def test_a_tick_that_has_ended_in_another_worker_is_not_run():
    """The result store knows."""
    shelf = Shelf()
    first, second = await worker_on(shelf), await worker_on(shelf)
    await first.handle()
    await second.handle()
    await second.handle(deliveries=1)
    assert (first.runs, second.runs) == (1, 0)
    assert second.kit.attempts.outcomes == {"Repeated": 2}


async def test_a_tick_that_has_not_ended_in_another_worker_runs():
    """It was started there, and perhaps that worker is dead."""
    shelf = Shelf()
    first, second = await worker_on(shelf), await worker_on(shelf)
    first.go.clear()
    running = asyncio.create_task(first.handle())
    store = MemoryStore(shelf)
    await store.open()
    await eventually(lambda: _state(store, "started"))
    await second.handle()
    first.go.set()
    await running
    assert (first.runs, second.runs) == (1, 1)


async def test_a_failed_tick_that_is_delivered_again_runs():
    """The worker that wrote of its end may have died before it sent the error callback. A second message is none."""
    shelf = Shelf()
    first, second = await worker_on(shelf), await worker_on(shelf)
    first.failures = 2
    await first.handle()
    await first.handle(**{ATTEMPT: 2})
    await second.handle()
    assert second.runs == 0
    await second.handle(deliveries=1)
    assert second.runs == 1


async def test_the_end_of_another_life_says_nothing():
    """The id was used by somebody else, or its dead letter was sent back and has ended."""
    shelf = Shelf()
    first, second = await worker_on(shelf), await worker_on(shelf)
    await first.handle(**{SENT_AT: AT_MS + 1})
    await second.handle()
    assert second.runs == 1


async def test_without_the_store_a_tick_runs(caplog):
    """Rather twice than never; and the store is not asked for each of them while it is away."""
    shelf = Shelf()
    first, second = await worker_on(shelf), await worker_on(shelf)
    await first.handle()
    asked = []

    async def away(ids):
        asked.append(ids)
        raise StoreUnavailable("away")

    second.kit.recording._recorder._store.read = away
    await second.handle()
    assert (second.runs, len(asked)) == (1, 1)
    assert await second.kit.recording._recorder.glance("t") is None
    assert len(asked) <= 2


async def _state(store: MemoryStore, wanted: str) -> bool:
    (found,) = await store.read(["shop.often@1"])
    return found is not None and found.state == wanted
