"""Consuming: slots with prefetch 1, leases, and what becomes of them."""

from __future__ import annotations

import asyncio
import contextlib

import aio_pika
import pytest

from asyncq import AsyncQ
from asyncq.broker import Delivery, Queue, QueueSpec, Subscription
from asyncq.errors import LeaseLost, PublishUncertain
from asyncq.message import Message, new_id
from proxy import proxy_of
from support import eventually

QUEUE = "shop"


@contextlib.asynccontextmanager
async def open_broker(url: str):
    app = AsyncQ("shop", broker=url)
    async with app.open(role="worker"):
        await app.broker.ensure([QueueSpec(QUEUE)])
        yield app.broker


async def put(broker, count: int) -> list[str]:
    ids = [new_id() for _ in range(count)]
    for task_id in ids:
        message = Message(type="shop.x", body=b"{}", task_id=task_id, message_id=new_id())
        await broker.publish(message, Queue(QUEUE), timeout_s=10)
    return ids


async def take(subscription: Subscription, count: int) -> list[Delivery]:
    async with asyncio.timeout(10):
        return [await anext(aiter(subscription)) for _ in range(count)]


async def test_each_slot_holds_one_unsettled_delivery_and_has_a_name_for_people(broker_url, management):
    """Three slots take three messages; the fourth waits for an ack."""
    async with open_broker(broker_url) as broker:
        await put(broker, 4)
        async with broker.consume(QUEUE, slots=3) as subscription:
            deliveries = await take(subscription, 3)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await anext(aiter(subscription))
            await deliveries[0].ack()
            await take(subscription, 1)

            async def consumers():
                found = await management.consumers(QUEUE)
                return len(found) == 3 and found

            found = await eventually(consumers)
            assert {item["consumer_tag"] for item in found} == {"shop.shop.1", "shop.shop.2", "shop.shop.3"}
            assert {item["prefetch_count"] for item in found} == {1}

            async def the_connection_is_shown() -> bool:
                shown = await management.connections()
                names = [item.get("client_properties", {}).get("connection_name", "") for item in shown]
                return any(name.startswith("asyncq shop worker-consume ") for name in names)

            await eventually(the_connection_is_shown)


async def test_a_cut_connection_loses_the_leases_and_consuming_goes_on(broker_url, management):
    """A late ack says LeaseLost; the broker delivers again, here."""
    async with open_broker(broker_url) as broker, broker.consume(QUEUE, slots=2) as subscription:
        ids = await put(broker, 1)
        (first,) = await take(subscription, 1)
        await management.cut("consume")
        async with asyncio.timeout(10):
            await first.lost()
        with pytest.raises(LeaseLost, match=ids[0]):
            await first.ack()
        (again,) = await take(subscription, 1)
        assert again.message.task_id == ids[0]
        await again.ack()


async def test_after_stop_nothing_is_taken_though_the_connection_comes_back(broker_url):
    """A worker that drains while its broker is away must not begin anew."""
    async with (
        proxy_of(broker_url) as proxy,
        open_broker(proxy.url) as broker,
        broker.consume(QUEUE, slots=3) as subscription,
    ):
        await proxy.refuse()
        await eventually(lambda: broker.status().state == "connecting")
        await subscription.stop()
        await proxy.listen()
        await eventually(lambda: broker.status().state == "ready", timeout=20)
        await put(broker, 3)
        for _ in range(5):
            with pytest.raises(StopAsyncIteration):
                async with asyncio.timeout(0.3):
                    await anext(aiter(subscription))
        await subscription.resume()
        with pytest.raises(StopAsyncIteration):
            await anext(aiter(subscription))


async def test_a_slot_freed_while_the_connection_is_away_consumes_again_and_a_held_one_does_not(broker_url):
    """Whatever the order of loss, freeing and coming back."""
    async with (
        proxy_of(broker_url) as proxy,
        open_broker(proxy.url) as broker,
        broker.consume(QUEUE, slots=2) as subscription,
    ):
        await put(broker, 2)
        first, second = await take(subscription, 2)
        await first.ack(hold=True)
        await second.ack(hold=True)
        for moment in range(8):
            proxy.cut()
            await asyncio.sleep(moment * 0.06)
            await first.free()
            await until_put(broker, 2)
            (again,) = await take(subscription, 1)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await anext(aiter(subscription))
            await again.ack()
            (again,) = await take(subscription, 1)
            await again.ack(hold=True)
            first = again


async def until_put(broker, count: int) -> None:
    """Put messages, also where the connection is cut in this very moment."""

    async def one() -> bool:
        try:
            await put(broker, 1)
        except PublishUncertain:
            return False
        return True

    for _ in range(count):
        await eventually(one, timeout=20)


async def test_a_hold_that_is_given_up_costs_the_other_slots_nothing(broker_url):
    """A call to the broker that is cut short would make the client close the channel of all."""
    async with open_broker(broker_url) as broker, broker.consume(QUEUE, slots=2) as subscription:
        await put(broker, 2)
        first, second = await take(subscription, 2)
        acking = asyncio.create_task(first.ack(hold=True))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        acking.cancel()
        await asyncio.wait({acking})
        await asyncio.sleep(0.3)
        assert not second.is_lost
        await second.ack()


async def test_a_channel_that_the_broker_closes_is_opened_again(broker_url):
    """An ack of a tag that it does not know is such an error: PRECONDITION_FAILED."""
    async with open_broker(broker_url) as broker, broker.consume(QUEUE, slots=2) as subscription:
        await put(broker, 1)
        (first,) = await take(subscription, 1)
        await subscription._channel.basic_ack(4711)
        async with asyncio.timeout(10):
            await first.lost()
        (again,) = await take(subscription, 1)
        assert again.message.task_id == first.message.task_id
        await again.ack()


async def test_a_lease_that_the_consumer_timeout_takes_is_lost_and_its_slot_consumes_again(broker_url, node):
    """From RabbitMQ 4.3 on the broker cancels that one consumer; until then it closes the channel, once a minute."""
    limited = not node.version.startswith("3.")
    async with await aio_pika.connect(broker_url) as connection, connection.channel() as channel:
        arguments = {"x-queue-type": "quorum"} | ({"x-consumer-timeout": 2000} if limited else {})
        await channel.declare_queue("limited", durable=True, arguments=arguments)
    async with open_broker(broker_url) as broker, broker.consume("limited", slots=2) as subscription:
        message = Message(type="shop.x", body=b"{}", task_id="late", message_id=new_id())
        await broker.publish(message, Queue("limited"), timeout_s=10)
        (first,) = await take(subscription, 1)
        if not limited:  # a queue of RabbitMQ 3.10 has no timeout of its own
            await first.ack()
            return
        async with asyncio.timeout(30):
            await first.lost()
        with pytest.raises(LeaseLost, match="late"):
            await first.ack()
        (again,) = await take(subscription, 1)
        assert again.message.task_id == "late"
        await again.ack()
