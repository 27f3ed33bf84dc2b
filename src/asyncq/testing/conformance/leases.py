"""Leases: a delivery that is neither acked nor rejected comes back, and whose it is then."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from asyncq.broker import Broker, Delay, Delivery, QueueSpec
from asyncq.errors import LeaseLost, PublishUncertain, QueueGone
from asyncq.testing.conformance.bench import (
    QUEUE,
    WAIT_S,
    Bench,
    behaviour,
    dead_letter,
    dead_letters,
    eventually,
    nothing_comes,
    put,
    take,
)


async def _lost(delivery: Delivery) -> None:
    async with asyncio.timeout(WAIT_S):
        await delivery.lost()


@behaviour
async def test_a_released_message_comes_again_and_is_not_counted(bench: Bench) -> None:
    """Behind those that wait: it is given back to the end of its queue."""
    async with bench.open() as broker, broker.consume(QUEUE, slots=1) as subscription:
        await put(broker, 2)
        (first,) = await take(subscription, 1)
        await first.release()
        (second,) = await take(subscription, 1)
        await second.ack()
        (again,) = await take(subscription, 1)
        assert [first.message.task_id, second.message.task_id, again.message.task_id] == ["task-0", "task-1", "task-0"]
        assert not again.deliveries
        assert again.message.body == first.message.body
        await again.ack()
    assert await bench.count(QUEUE) == 0


@behaviour
async def test_a_rejected_message_is_a_dead_letter_without_a_record(bench: Bench) -> None:
    """The broker puts it there itself; also one that came with a delay."""
    async with bench.open() as broker, broker.consume(QUEUE, slots=1) as subscription:
        await put(broker, 1, first=1)
        await put(broker, 1, first=2, delay=Delay(0.05))
        for _ in range(2):
            (delivery,) = await take(subscription, 1)
            await delivery.reject()
        await eventually(lambda: _holds(broker, 2))
        letters = await dead_letters(broker)
        assert {(letter.message.task_id, letter.record) for letter in letters} == {("task-1", None), ("task-2", None)}
        await nothing_comes(subscription)


async def _holds(broker: Broker, count: int) -> bool:
    return len(await dead_letters(broker)) == count


@behaviour
async def test_unsettled_deliveries_come_back_when_their_subscription_ends(bench: Bench) -> None:
    """Counted: it may be the message that ends those who take it."""
    async with bench.open() as broker:
        ids = await put(broker, 3)
        async with broker.consume(QUEUE, slots=3) as subscription:
            deliveries = await take(subscription, 3)
            await deliveries[1].ack()
        async with broker.consume(QUEUE, slots=3) as subscription:
            back = await take(subscription, 2)
            assert sorted(item.message.task_id for item in back) == [ids[0], ids[2]]
            assert [item.deliveries for item in back] == [1, 1]


@behaviour
async def test_unsettled_deliveries_come_back_when_their_broker_is_closed(bench: Bench) -> None:
    """In front of what waited: they come before it, in any order among themselves."""
    async with bench.open() as other:
        async with bench.open() as broker, broker.consume(QUEUE, slots=2) as subscription:
            ids = await put(broker, 4)
            await take(subscription, 2)
            await broker.close()

        async def all_back() -> bool:
            return await bench.count(QUEUE) == 4

        await eventually(all_back)
        async with other.consume(QUEUE, slots=1) as subscription:
            seen = []
            for _ in ids:
                (delivery,) = await take(subscription, 1)
                seen.append(delivery.message.task_id)
                await delivery.ack()
        assert (set(seen[:2]), seen[2:]) == (set(ids[:2]), ids[2:])


@behaviour
async def test_a_message_that_comes_back_too_often_is_a_dead_letter(bench: Bench) -> None:
    """With a limit of 2 it is delivered three times; the broker dead-letters it, so without a record."""
    async with bench.open(QueueSpec(QUEUE, delivery_limit=2)) as broker:
        await put(broker)
        for returned in range(3):
            async with broker.consume(QUEUE, slots=1) as subscription:
                (delivery,) = await take(subscription, 1)
                assert (delivery.deliveries or 0) == returned
                assert await dead_letters(broker) == []
        letter = await dead_letter(broker)
        assert (letter.message.task_id, letter.record) == ("task-0", None)
    assert await bench.count(QUEUE) == 0


@behaviour
async def test_a_lost_connection_ends_the_leases_and_says_so(bench: Bench) -> None:
    """Whoever waits for it is told, and whoever settles too late gets an error that names the task."""
    async with bench.open() as broker, broker.consume(QUEUE, slots=3) as subscription:
        await put(broker, 3)
        deliveries = await take(subscription, 3)
        assert not any(delivery.is_lost for delivery in deliveries)
        await bench.cut(broker)
        for delivery in deliveries:
            await _lost(delivery)
            assert delivery.is_lost
        for delivery, settle in zip(deliveries, ("ack", "release", "reject"), strict=True):
            with pytest.raises(LeaseLost, match=delivery.message.task_id):
                await getattr(delivery, settle)()


@behaviour
async def test_after_a_lost_connection_its_messages_come_again_here_and_are_counted(bench: Bench) -> None:
    """Those that were not settled; those that waited are not counted. Consuming goes on by itself."""
    async with bench.open() as broker, broker.consume(QUEUE, slots=2) as subscription:
        await put(broker, 4)
        first, second = await take(subscription, 2)
        await first.ack()
        (third,) = await take(subscription, 1)
        await bench.cut(broker)
        await _lost(third)
        again = set()
        for _ in range(3):
            (delivery,) = await take(subscription, 1)
            again.add((delivery.message.task_id, delivery.deliveries or 0))
            await delivery.ack()
        assert again == {("task-1", 1), ("task-2", 1), ("task-3", 0)}
        assert second.is_lost


@behaviour
async def test_after_a_lost_connection_publishing_and_consuming_go_on(bench: Bench) -> None:
    """What is published while the broker is away waits for it, within its timeout."""
    async with bench.open() as broker, broker.consume(QUEUE, slots=1) as subscription:
        for number in range(5):
            await bench.cut(broker)
            with contextlib.suppress(PublishUncertain):  # it was under way in the very moment of the cut
                await put(broker, 1, first=number)
            await put(broker, 1, first=100 + number)
            while True:
                (delivery,) = await take(subscription, 1)
                with contextlib.suppress(LeaseLost):  # delivered in the very moment of the cut
                    await delivery.ack()
                    if delivery.message.task_id == f"task-{100 + number}":
                        break


@behaviour
async def test_a_subscription_that_was_stopped_takes_nothing_after_a_lost_connection(bench: Bench) -> None:
    """A worker that drains must not begin anew."""
    async with bench.open() as broker, broker.consume(QUEUE, slots=2) as subscription:
        await subscription.stop()
        await bench.cut(broker)
        await eventually(lambda: _can_publish(broker))
        with pytest.raises(StopAsyncIteration):
            await anext(aiter(subscription))


async def _can_publish(broker: Broker) -> bool:
    try:
        await put(broker)
    except PublishUncertain:
        return False
    return True


@behaviour
async def test_paused_and_held_slots_stay_so_after_a_lost_connection(bench: Bench) -> None:
    """Freeing and resuming open them, as ever."""
    async with bench.open() as broker, broker.consume(QUEUE, slots=1) as subscription:
        await put(broker)
        (first,) = await take(subscription, 1)
        await first.ack(hold=True)
        await bench.cut(broker)
        await eventually(lambda: _can_publish(broker))
        await nothing_comes(subscription)
        await subscription.pause()
        await first.free()
        await bench.cut(broker)
        await eventually(lambda: _can_publish(broker))
        await nothing_comes(subscription)
        await subscription.resume()
        await take(subscription, 1)


@behaviour
async def test_what_a_pause_has_kept_comes_again_after_a_lost_connection(bench: Bench) -> None:
    """Once each, when it is resumed: the leases that were kept are gone."""
    async with bench.open() as broker, broker.consume(QUEUE, slots=2) as subscription:
        ids = await put(broker, 2, first=10)
        await asyncio.sleep(0.3)  # by now they have arrived
        await subscription.pause()
        await bench.cut(broker)
        await eventually(lambda: _can_publish(broker))  # a message more, or several, of another id
        await nothing_comes(subscription)
        await subscription.resume()
        back: list[str] = []
        while not set(ids) <= set(back):
            (delivery,) = await take(subscription, 1)
            back.append(delivery.message.task_id)
            await delivery.ack()
        assert [back.count(task_id) for task_id in ids] == [1, 1]


@behaviour
async def test_a_queue_that_is_deleted_in_a_pause_ends_the_iteration_after_it(bench: Bench) -> None:
    """At the latest when it is resumed; whoever waits is told."""
    async with bench.open() as broker, broker.consume(QUEUE, slots=2) as subscription:
        await subscription.pause()
        await bench.delete_queue(QUEUE)
        waiting = [asyncio.ensure_future(anext(aiter(subscription))) for _ in range(2)]
        await asyncio.sleep(0)
        await subscription.resume()
        for ended in await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), WAIT_S):
            assert isinstance(ended, QueueGone)


@behaviour
async def test_a_deleted_queue_ends_the_leases_of_its_deliveries(bench: Bench) -> None:
    """A late ack says so, though the message is gone with the queue."""
    async with bench.open() as broker, broker.consume(QUEUE, slots=2) as subscription:
        await put(broker)
        (delivery,) = await take(subscription, 1)
        await bench.delete_queue(QUEUE)
        await _lost(delivery)
        with pytest.raises(LeaseLost, match="task-0"):
            await delivery.ack()
        with pytest.raises(QueueGone):
            await take(subscription, 1)


@behaviour
async def test_losing_the_lease_is_nothing_to_wait_for_while_it_lasts(bench: Bench) -> None:
    """And giving up the wait is nothing to the lease."""
    async with bench.open() as broker, broker.consume(QUEUE, slots=1) as subscription:
        await put(broker)
        (delivery,) = await take(subscription, 1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await delivery.lost()
        assert not delivery.is_lost
        await delivery.ack()
    assert await bench.count(QUEUE) == 0
