"""Subscriptions that get more slots, or fewer, or none: the same through every broker."""

from __future__ import annotations

import asyncio
import random

from asyncq.broker import Delivery, Subscription
from asyncq.testing.conformance.bench import QUEUE, WAIT_S, Bench, behaviour, eventually, nothing_comes, put, take


@behaviour
async def test_more_slots_take_more_at_once_and_no_more_than_that(bench: Bench) -> None:
    """Those that there were go on undisturbed."""
    async with bench.open() as broker, broker.consume(QUEUE, slots=1) as subscription:
        await put(broker, 5)
        (first,) = await take(subscription, 1)
        await nothing_comes(subscription)
        await subscription.resize(3)
        more = await take(subscription, 2)
        await nothing_comes(subscription)
        for delivery in (first, *more):
            await delivery.ack()
        rest = await take(subscription, 2)
        assert sorted(item.message.task_id for item in (first, *more, *rest)) == [f"task-{n}" for n in range(5)]


@behaviour
async def test_with_fewer_slots_what_runs_finishes_and_brings_nothing_new(bench: Bench) -> None:
    """A slot that is given up ends with its delivery."""
    async with bench.open() as broker, broker.consume(QUEUE, slots=3) as subscription:
        await put(broker, 5)
        running = await take(subscription, 3)
        await subscription.resize(1)
        brought = []
        for delivery in running:
            await delivery.ack()
        brought += await take(subscription, 1)
        await nothing_comes(subscription)
        await brought[0].ack()
        brought += await take(subscription, 1)
        assert sorted(item.message.task_id for item in (*running, *brought)) == [f"task-{n}" for n in range(5)]


@behaviour
async def test_slots_at_rest_are_given_up_before_those_that_work(bench: Bench) -> None:
    """So no more than are wanted are at work, at once."""
    async with bench.open() as broker, broker.consume(QUEUE, slots=4) as subscription:
        await put(broker, 4)
        first, second, third, fourth = await take(subscription, 4)
        await first.ack()
        await second.ack()
        await nothing_comes(subscription)  # by then they may be given up: nothing is on its way to them
        await subscription.resize(2)
        await put(broker, 2, first=4)
        await nothing_comes(subscription)
        await third.ack()
        (fifth,) = await take(subscription, 1)
        assert fifth.message.task_id == "task-4"
        await fourth.ack()
        await take(subscription, 1)


@behaviour
async def test_without_slots_all_is_handed_back_uncounted_for_others_to_take(bench: Bench) -> None:
    """What was brought and not started; what runs may finish. With slots again it takes up its work."""
    async with bench.open() as broker, broker.consume(QUEUE, slots=3) as subscription:
        await put(broker, 3)
        (running,) = await take(subscription, 1)
        await asyncio.sleep(0.3)  # by now the others have arrived
        await subscription.resize(0)
        async with broker.consume(QUEUE, slots=3) as others:
            back = await take(others, 2)
            assert [item.deliveries or 0 for item in back] == [0, 0]
            assert sorted(item.message.task_id for item in back) == ["task-1", "task-2"]
            for delivery in back:
                await delivery.ack()
        await running.ack()
        await put(broker, first=3)
        await nothing_comes(subscription)
        await subscription.resize(1)
        (again,) = await take(subscription, 1)
        assert again.message.task_id == "task-3"


@behaviour
async def test_a_subscription_may_begin_without_slots(bench: Bench) -> None:
    """It takes nothing until it has some."""
    async with bench.open() as broker, broker.consume(QUEUE, slots=0) as subscription:
        await put(broker, 2)
        await nothing_comes(subscription)
        await subscription.resize(2)
        await take(subscription, 2)


@behaviour
async def test_the_number_of_slots_is_kept_over_a_lost_connection(bench: Bench) -> None:
    """As it was asked for last, also where that was while there was none."""
    async with bench.open() as broker, broker.consume(QUEUE, slots=3) as subscription:
        await subscription.resize(0)
        await bench.cut(broker)
        await subscription.resize(2)
        await eventually(lambda: broker.status().state == "ready")
        for number in range(4):
            await eventually(lambda: _is_put(bench, number))  # noqa: B023 - it is asked within this turn of the loop
        await take(subscription, 2)
        await nothing_comes(subscription)


async def _is_put(bench: Bench, number: int) -> bool:
    async with bench.open() as other:
        await put(other, first=number)
    return True


@behaviour
async def test_a_pause_goes_on_whatever_becomes_of_the_number_of_slots(bench: Bench) -> None:
    """Each has its own reason; the resume finds the slots that there are then."""
    async with bench.open() as broker, broker.consume(QUEUE, slots=2) as subscription:
        await subscription.pause()
        await subscription.resize(3)
        await put(broker, 4)
        await nothing_comes(subscription)
        await subscription.resize(1)
        await subscription.resume()
        await take(subscription, 1)
        await nothing_comes(subscription)


@behaviour
async def test_nothing_is_lost_or_comes_twice_while_the_slots_change_under_load(bench: Bench) -> None:
    """Up and down, to nothing and back, at random."""
    seed = random.randrange(10**9)
    print(f"seed {seed}")
    draw = random.Random(seed)
    seen: list[str] = []
    counted: list[int] = []

    async def work(subscription: Subscription) -> None:
        async for delivery in subscription:
            await _note(delivery, seen, counted, draw)

    async with bench.open() as broker, broker.consume(QUEUE, slots=4) as subscription:
        loops = [asyncio.create_task(work(subscription)) for _ in range(8)]
        ids = []
        for number in range(12):
            ids += await put(broker, 10, first=10 * number)
            await subscription.resize(draw.randrange(9))
        await subscription.resize(8)
        await eventually(lambda: len(seen) >= len(ids))
        await subscription.stop()
        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(*loops)
    assert sorted(seen) == sorted(ids)
    assert counted == []
    async with bench.open():
        assert await bench.count(QUEUE) == 0


async def _note(delivery: Delivery, seen: list[str], counted: list[int], draw: random.Random) -> None:
    seen.append(delivery.message.task_id)
    if delivery.deliveries:
        counted.append(delivery.deliveries)
    await asyncio.sleep(draw.random() / 100)
    await delivery.ack()
