"""Delays: never early, each for itself, and only for queues that exist."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from asyncq.broker import Delay, Exchange, Publication
from asyncq.context import TaskContext
from asyncq.errors import InvalidOption
from asyncq.testing.conformance.bench import (
    QUEUE,
    WAIT_S,
    Bench,
    behaviour,
    eventually,
    make_message,
    nothing_comes,
    put,
    take,
)

TASKS = Exchange("asyncq.tasks", QUEUE)


@behaviour
async def test_a_delayed_message_is_never_early(bench: Bench) -> None:
    """Fractions of a second, down to less than a broker can tell apart."""
    async with bench.open() as broker, broker.consume(QUEUE, slots=1) as subscription:
        for seconds in (0.654, 0.1, 0.021, 0.0001):
            began = time.monotonic()
            await put(broker, to=TASKS, delay=Delay(seconds))
            (delivery,) = await take(subscription, 1)
            assert time.monotonic() - began >= seconds
            await delivery.ack()


@behaviour
async def test_no_delay_is_at_once(bench: Bench) -> None:
    """Zero, or a moment that has passed already."""
    async with bench.open() as broker:
        await put(broker, 1, first=1, delay=Delay(0))
        await put(broker, 1, first=2, delay=Delay(-60))
        await put(broker, 1, first=3)
    assert await bench.count(QUEUE) == 3


@behaviour
async def test_while_a_message_is_delayed_it_is_not_in_its_queue(bench: Bench) -> None:
    """It takes no slot, and nobody's memory."""
    async with bench.open() as broker, broker.consume(QUEUE, slots=1) as subscription:
        await put(broker, delay=Delay(3600))
        await nothing_comes(subscription)
        await subscription.stop()
        assert await bench.count(QUEUE) == 0


@behaviour
async def test_a_short_delay_overtakes_a_long_one(bench: Bench) -> None:
    """No message waits behind one that is due later."""
    async with bench.open() as broker, broker.consume(QUEUE, slots=4) as subscription:
        for number, seconds in enumerate((3600, 60, 0.1)):
            await put(broker, 1, first=number, delay=Delay(seconds))
        assert [item.message.task_id for item in await take(subscription, 1)] == ["task-2"]
        await nothing_comes(subscription)


@behaviour
async def test_many_delays_at_once_come_each_once_and_never_early(bench: Bench) -> None:
    """100 messages with delays of up to 1.2 seconds."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    chosen = random.Random(seed)
    delays = {f"task-{number}": chosen.uniform(0.01, 1.2) for number in range(100)}
    items = [Publication(make_message(number), TASKS, Delay(seconds)) for number, seconds in enumerate(delays.values())]
    async with bench.open() as broker, broker.consume(QUEUE, slots=20) as subscription:
        began = time.monotonic()
        assert await broker.publish_many(items, timeout_s=WAIT_S) == [None] * 100
        waited = {}
        async with asyncio.timeout(2 * WAIT_S):
            async for delivery in subscription:
                assert delivery.message.task_id not in waited
                waited[delivery.message.task_id] = time.monotonic() - began
                await delivery.ack()
                if len(waited) == len(delays):
                    break
        await nothing_comes(subscription)
    early = {task_id: seconds - delays[task_id] for task_id, seconds in waited.items() if seconds < delays[task_id]}
    assert not early


@behaviour
async def test_a_delay_that_may_be_rounded_up_is_still_never_early(bench: Bench) -> None:
    """Rounding goes one way only."""
    async with bench.open() as broker, broker.consume(QUEUE, slots=1) as subscription:
        began = time.monotonic()
        await put(broker, delay=Delay(0.457, at_most_s=0.6))
        (delivery,) = await take(subscription, 1)
        assert time.monotonic() - began >= 0.457
        await delivery.ack()


@behaviour
async def test_a_delay_outlives_the_connection_that_asked_for_it(bench: Bench) -> None:
    """The broker keeps it: who has sent it may leave."""
    async with bench.open() as broker:
        began = time.monotonic()
        await put(broker, delay=Delay(0.4))
    async with bench.open() as later, later.consume(QUEUE, slots=1) as subscription:
        await take(subscription, 1)
        assert time.monotonic() - began >= 0.4


@behaviour
async def test_a_delay_of_a_year_is_taken_and_one_of_two_years_is_refused(bench: Bench) -> None:
    """The error says how long a delay may be; what is no number is refused as well."""
    year_s = 365 * 86_400.0
    async with bench.open() as broker:
        await put(broker, delay=Delay(year_s))
        for seconds in (2 * year_s, float("inf"), float("nan")):
            with pytest.raises(InvalidOption, match="delay"):
                await put(broker, delay=Delay(seconds))
    assert await bench.count(QUEUE) == 0


@behaviour
async def test_a_delay_beyond_the_longest_leg_is_carried_in_stages(bench: Bench) -> None:
    """A worker that meets the message on its way sends it on. It runs once, not early, and as the first attempt."""
    app = bench.app()
    ran: list[tuple[float, int]] = []

    @app.task(pass_context=True)
    async def work(ctx: TaskContext) -> None:
        ran.append((time.time(), ctx.attempt))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asyncq.stages.LONGEST_LEG_S", 0.3)
        async with bench.working(app) as worker:
            due = time.time() + 1.0
            handle = await work.options(delay=1.0).send()
            await handle.result(WAIT_S)
            assert worker.stats().outcomes["Staged"] >= 1
    ((at, attempt),) = ran
    assert at >= due - 0.002  # the due time travels in whole milliseconds
    assert attempt == 1


@behaviour
async def test_a_queue_that_is_deleted_while_a_message_is_delayed_for_it_harms_no_other(bench: Bench) -> None:
    """The message finds no queue any more; those for other queues come as ever."""
    async with bench.open() as broker:
        await put(broker, 1, first=1, delay=Delay(0.2))
        await bench.delete_queue(QUEUE)
        async with bench.open() as other, other.consume(QUEUE, slots=3) as subscription:
            await put(other, 1, first=2, delay=Delay(0.4))
            await eventually(lambda: _arrived(subscription, "task-2"))


async def _arrived(subscription: object, task_id: str) -> bool:
    (delivery,) = await take(subscription, 1)  # type: ignore[arg-type]
    return delivery.message.task_id == task_id
