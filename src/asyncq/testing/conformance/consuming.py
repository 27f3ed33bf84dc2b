"""Consuming: slots, and what pauses, stops and holds do to them."""

from __future__ import annotations

import asyncio
import random

import pytest

from asyncq.broker import Publication, Queue, QueueSpec
from asyncq.errors import QueueGone
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


@behaviour
async def test_messages_come_in_the_order_of_their_publishing(bench: Bench) -> None:
    """One slot, one message after the other; those that wait, and those that come while it consumes."""
    async with bench.open() as broker:
        ids = await put(broker, 10)
        seen = []
        async with broker.consume(QUEUE, slots=1) as subscription:
            ids += await put(broker, 10, first=10)
            for _ in ids:
                (delivery,) = await take(subscription, 1)
                seen.append(delivery.message.task_id)
                await delivery.ack()
        assert seen == ids


@behaviour
async def test_a_priority_decides_the_order_only_where_the_broker_has_priorities(bench: Bench) -> None:
    """Asyncq's own senders give none; foreign ones may."""
    async with bench.open() as broker:
        for number, priority in enumerate([0, 9, 4]):
            await broker.publish(make_message(number, priority=priority), Queue(QUEUE), timeout_s=WAIT_S)
        seen = []
        async with broker.consume(QUEUE, slots=1) as subscription:
            for _ in range(3):
                (delivery,) = await take(subscription, 1)
                seen.append(delivery.message.task_id)
                await delivery.ack()
    in_order, by_priority = ["task-0", "task-1", "task-2"], ["task-1", "task-2", "task-0"]
    assert seen == (by_priority if bench.differs("priority overtakes") else in_order)


@behaviour
async def test_a_delivery_knows_its_queue_and_that_it_never_came_back(bench: Bench) -> None:
    """A first delivery has not been returned; a broker that does not know says None."""
    async with bench.open() as broker, broker.consume(QUEUE, slots=1) as subscription:
        await put(broker)
        (delivery,) = await take(subscription, 1)
        assert delivery.queue == QUEUE
        assert not delivery.deliveries
        assert not delivery.is_lost


@behaviour
async def test_each_slot_holds_one_unsettled_delivery(bench: Bench) -> None:
    """Three slots take three messages; the fourth waits until one of them is settled."""
    async with bench.open() as broker, broker.consume(QUEUE, slots=3) as subscription:
        await put(broker, 4)
        deliveries = await take(subscription, 3)
        await nothing_comes(subscription)
        await deliveries[1].ack()
        (fourth,) = await take(subscription, 1)
        assert fourth.message.task_id == "task-3"


@behaviour
async def test_slots_that_iterate_at_once_share_the_deliveries(bench: Bench) -> None:
    """Each delivery goes to one of them, and none is left out."""
    async with bench.open() as broker, broker.consume(QUEUE, slots=4) as subscription:
        seen: list[str] = []

        async def loop() -> None:
            async for delivery in subscription:
                await asyncio.sleep(0)
                seen.append(delivery.message.task_id)
                await delivery.ack()

        loops = [asyncio.create_task(loop()) for _ in range(4)]
        ids = await put(broker, 100)
        await eventually(lambda: len(seen) >= 100)
        await subscription.stop()
        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(*loops)
    assert sorted(seen) == sorted(ids)


@behaviour
async def test_two_subscriptions_share_a_queue(bench: Bench) -> None:
    """Of one connection, or of two; a busy one does not keep messages from the other."""
    async with bench.open() as broker, bench.open() as other:
        async with (
            broker.consume(QUEUE, slots=1) as one,
            broker.consume(QUEUE, slots=1) as two,
            other.consume(QUEUE, slots=1) as three,
        ):
            ids = await put(broker, 3)
            seen = [(await take(subscription, 1))[0].message.task_id for subscription in (one, two, three)]
        assert sorted(seen) == ids


@behaviour
async def test_subscriptions_of_two_queues_do_not_mix(bench: Bench) -> None:
    """Each gets what is for its queue."""
    async with (
        bench.open(QueueSpec("one"), QueueSpec("two")) as broker,
        broker.consume("one", slots=2) as ones,
        broker.consume("two", slots=2) as twos,
    ):
        await put(broker, 1, first=1, to=Queue("one"))
        await put(broker, 1, first=2, to=Queue("two"))
        assert [item.message.task_id for item in await take(twos, 1)] == ["task-2"]
        assert [item.message.task_id for item in await take(ones, 1)] == ["task-1"]
        await nothing_comes(ones)


@behaviour
async def test_what_is_acked_is_gone(bench: Bench) -> None:
    """It comes to no later subscription."""
    async with bench.open() as broker:
        await put(broker, 2)
        async with broker.consume(QUEUE, slots=1) as subscription:
            for _ in range(2):
                (delivery,) = await take(subscription, 1)
                await delivery.ack()
            await nothing_comes(subscription)
    assert await bench.count(QUEUE) == 0


@behaviour
async def test_a_paused_subscription_takes_nothing_until_it_is_resumed(bench: Bench) -> None:
    """What was taken before stays ours, and can be acked meanwhile."""
    async with bench.open() as broker, broker.consume(QUEUE, slots=2) as subscription:
        await put(broker, 1)
        (before,) = await take(subscription, 1)
        await subscription.pause()
        await put(broker, 2, first=1)
        await nothing_comes(subscription)
        assert not before.is_lost
        await before.ack()
        await nothing_comes(subscription)
        await subscription.resume()
        assert {item.message.task_id for item in await take(subscription, 2)} == {"task-1", "task-2"}


@behaviour
async def test_what_a_pause_finds_not_started_is_kept_for_the_resume_and_counts_nothing(bench: Bench) -> None:
    """Whoever iterates gets nothing of it meanwhile; then each message comes once, before what is in the queue."""
    async with bench.open() as broker, broker.consume(QUEUE, slots=3) as subscription:
        ids = await put(broker, 5)
        (started,) = await take(subscription, 1)
        await asyncio.sleep(0.3)  # by now the others have arrived, and nobody has asked for them
        await subscription.pause()
        await nothing_comes(subscription)
        await started.ack()
        await nothing_comes(subscription)
        await subscription.resume()
        seen = [started]
        for _ in range(4):
            (delivery,) = await take(subscription, 1)
            seen.append(delivery)
            await delivery.ack()
        assert [item.message.task_id for item in seen] == ids
        assert [item.deliveries or 0 for item in seen] == [0] * 5
        await nothing_comes(subscription)
    assert await bench.count(QUEUE) == 0


@behaviour
async def test_a_pause_stops_also_what_is_on_its_way_to_a_slot_that_waits(bench: Bench) -> None:
    """Messages that are published while it begins are not given to anybody before the resume."""
    async with bench.open() as broker, broker.consume(QUEUE, slots=2) as subscription:
        for round_ in range(5):
            waiting = asyncio.ensure_future(anext(aiter(subscription)))
            await asyncio.sleep(0)
            publishing = asyncio.ensure_future(put(broker, 2, first=2 * round_))
            await asyncio.sleep(0)
            was_early = waiting.done()
            await subscription.pause()
            await publishing
            await asyncio.wait({waiting}, timeout=0.1)
            assert waiting.done() == was_early
            await subscription.resume()
            first = await asyncio.wait_for(waiting, WAIT_S)
            for delivery in (first, *await take(subscription, 1)):
                await delivery.ack()


@behaviour
async def test_pauses_amid_the_work_count_no_message_as_returned_and_lose_none(bench: Bench) -> None:
    """However often: what is on its way when a pause begins comes once, and as if nothing had been."""
    async with bench.open() as broker:
        messages = [make_message(number) for number in range(500)]
        await broker.publish_many([Publication(item, Queue(QUEUE)) for item in messages], timeout_s=WAIT_S)
        seen: list[str] = []
        counted: list[str] = []
        async with broker.consume(QUEUE, slots=4) as subscription:

            async def loop() -> None:
                async for delivery in subscription:
                    seen.append(delivery.message.task_id)
                    if delivery.deliveries:
                        counted.append(delivery.message.task_id)
                    await asyncio.sleep(random.uniform(0, 0.002))
                    await delivery.ack()

            loops = [asyncio.create_task(loop()) for _ in range(4)]
            while len(seen) < len(messages):
                await asyncio.sleep(random.uniform(0, 0.01))
                await subscription.pause()
                await asyncio.sleep(random.uniform(0, 0.005))
                await subscription.resume()
            await subscription.stop()
            async with asyncio.timeout(WAIT_S):
                await asyncio.gather(*loops)
    assert sorted(seen) == sorted(item.task_id for item in messages)
    assert counted == []


@behaviour
async def test_a_slot_that_is_busy_over_a_pause_gets_no_second_delivery_by_the_resume(bench: Bench) -> None:
    """Each slot holds one unsettled delivery, as ever."""
    async with bench.open() as broker, broker.consume(QUEUE, slots=2) as subscription:
        await put(broker, 5)
        first, second = await take(subscription, 2)
        for _ in range(3):
            await subscription.pause()
            await subscription.resume()
        await nothing_comes(subscription)
        await first.ack()
        (third,) = await take(subscription, 1)
        await nothing_comes(subscription)
        await second.ack()
        (fourth,) = await take(subscription, 1)
        await nothing_comes(subscription)
        assert [third.message.task_id, fourth.message.task_id] == ["task-2", "task-3"]


@behaviour
async def test_stop_hands_back_also_what_a_pause_has_kept(bench: Bench) -> None:
    """It is there for others, as if nobody had taken it; and the iteration ends at once."""
    async with bench.open() as broker:
        ids = await put(broker, 3)
        async with broker.consume(QUEUE, slots=2) as subscription:
            await asyncio.sleep(0.3)  # by now two have arrived
            await subscription.pause()
            await subscription.stop()
            with pytest.raises(StopAsyncIteration):
                await anext(aiter(subscription))
        async with broker.consume(QUEUE, slots=3) as again:
            back = await take(again, 3)
            assert sorted(item.message.task_id for item in back) == ids
            assert [item.deliveries or 0 for item in back] == [0, 0, 0]
            await nothing_comes(again)


@behaviour
async def test_the_last_of_pause_and_resume_counts(bench: Bench) -> None:
    """However they are mixed."""
    async with bench.open() as broker, broker.consume(QUEUE, slots=3) as subscription:
        for _ in range(5):
            await asyncio.gather(subscription.pause(), subscription.resume())
            await put(broker, 3)
            for delivery in await take(subscription, 3):
                await delivery.ack()
        await asyncio.gather(subscription.resume(), subscription.pause())
        await put(broker, 1)
        await nothing_comes(subscription)


@behaviour
async def test_stop_hands_back_what_was_not_started_and_counts_nothing(bench: Bench) -> None:
    """What was started can still be acked; the rest is there for others, as if nobody had taken it."""
    async with bench.open() as broker:
        ids = await put(broker, 4)
        async with broker.consume(QUEUE, slots=3) as subscription:
            (started,) = await take(subscription, 1)
            await asyncio.sleep(0.3)  # by now the others have arrived, and nobody has asked for them
            await subscription.stop()
            with pytest.raises(StopAsyncIteration):
                await anext(aiter(subscription))
            assert not started.is_lost
            await started.ack()
        async with broker.consume(QUEUE, slots=4) as again:
            back = await take(again, 3)
            assert {item.message.task_id for item in back} == set(ids) - {started.message.task_id}
            assert [item.deliveries or 0 for item in back] == [0, 0, 0]
            await nothing_comes(again)


@behaviour
async def test_stop_ends_the_iteration_of_every_slot_for_good(bench: Bench) -> None:
    """Those that wait, and those that ask later; resuming does not begin anew."""
    async with bench.open() as broker, broker.consume(QUEUE, slots=3) as subscription:

        async def loop() -> None:
            async for _ in subscription:
                raise AssertionError("there was nothing to take")

        loops = [asyncio.create_task(loop()) for _ in range(3)]
        await asyncio.sleep(0)
        await subscription.stop()
        await subscription.stop()
        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(*loops)
        await put(broker)
        await subscription.resume()
        for _ in range(2):
            with pytest.raises(StopAsyncIteration):
                await anext(aiter(subscription))
    assert await bench.count(QUEUE) == 1


@behaviour
async def test_a_held_slot_takes_nothing_until_it_is_freed(bench: Bench) -> None:
    """The message is acked all the same; the other slots go on."""
    async with bench.open() as broker, broker.consume(QUEUE, slots=2) as subscription:
        await put(broker, 4)
        first, second = await take(subscription, 2)
        await first.ack(hold=True)
        await nothing_comes(subscription)
        await second.ack()
        (third,) = await take(subscription, 1)
        await nothing_comes(subscription)
        await first.free()
        (fourth,) = await take(subscription, 1)
        assert [third.message.task_id, fourth.message.task_id] == ["task-2", "task-3"]


@behaviour
async def test_a_held_slot_stays_held_over_pause_and_resume(bench: Bench) -> None:
    """Only freeing opens it; freed while paused, it opens with the resume."""
    async with bench.open() as broker, broker.consume(QUEUE, slots=1) as subscription:
        await put(broker, 2)
        (first,) = await take(subscription, 1)
        await first.ack(hold=True)
        await subscription.pause()
        await subscription.resume()
        await nothing_comes(subscription)
        await subscription.pause()
        await first.free()
        await nothing_comes(subscription)
        await subscription.resume()
        await take(subscription, 1)


@behaviour
async def test_a_queue_that_does_not_exist_cannot_be_consumed(bench: Bench) -> None:
    """The error names it; other subscriptions are not touched."""
    async with bench.open() as broker, broker.consume(QUEUE, slots=1) as subscription:
        with pytest.raises(QueueGone, match="'nowhere'"):
            async with broker.consume("nowhere", slots=1):
                pass
        await put(broker)
        (delivery,) = await take(subscription, 1)
        await delivery.ack()


@behaviour
async def test_a_deleted_queue_ends_the_iteration_of_its_subscription_alone(bench: Bench) -> None:
    """Every slot that waits is told; the subscription of another queue goes on."""
    async with (
        bench.open(QueueSpec(QUEUE), QueueSpec("other")) as broker,
        broker.consume(QUEUE, slots=2) as subscription,
        broker.consume("other", slots=1) as others,
    ):
        waiting = [asyncio.ensure_future(anext(aiter(subscription))) for _ in range(2)]
        await asyncio.sleep(0)
        await bench.delete_queue(QUEUE)
        for ended in await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), WAIT_S):
            assert isinstance(ended, QueueGone)
            assert repr(QUEUE) in str(ended)
        await put(broker, to=Queue("other"))
        (delivery,) = await take(others, 1)
        await delivery.ack()


@behaviour
async def test_messages_of_a_megabyte_are_consumed_beside_small_ones(bench: Bench) -> None:
    """Each comes whole."""
    sizes = [10, 1_000_000, 10, 1_000_000]
    async with bench.open() as broker, broker.consume(QUEUE, slots=4) as subscription:
        for number, size in enumerate(sizes):
            await broker.publish(make_message(number, body=b"x" * size), Queue(QUEUE), timeout_s=WAIT_S)
        deliveries = await take(subscription, 4)
        assert sorted(len(item.message.body) for item in deliveries) == sorted(sizes)
