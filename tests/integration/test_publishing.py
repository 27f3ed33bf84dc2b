"""Publishing: confirmed, mandatory, persistent, or an error that says what happened."""

from __future__ import annotations

import asyncio
import time
from urllib.parse import quote

import aio_pika
import pytest

from asyncq import AsyncQ
from asyncq.broker import Queue, QueueSpec
from asyncq.errors import (
    AuthenticationFailed,
    BrokerUnavailable,
    MessageTooLarge,
    NotOpen,
    NotSent,
    PartlySent,
    PublishUncertain,
    Refused,
    VirtualHostNotFound,
    WrongLoop,
)
from asyncq.message import Message
from support import eventually

QUEUE = "shop"


def make_app(url: str, **settings) -> AsyncQ:
    app = AsyncQ("shop", broker=url, **settings)

    @app.task(reply=False)
    async def note(text: str) -> None:
        """Nobody runs it here."""

    return app


async def get_one(url: str, queue: str = QUEUE) -> aio_pika.abc.AbstractIncomingMessage:
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        message = await (await channel.get_queue(queue, ensure=False)).get(no_ack=True, timeout=5)
        assert message is not None
        return message


async def test_a_sent_task_is_a_persistent_json_message_that_any_client_can_read(broker_url):
    """The wire contract, seen by plain aio-pika."""
    async with make_app(broker_url) as app:
        await app.broker.ensure([QueueSpec(QUEUE)])
        handle = await app.tasks["shop.note"].options(headers={"shop-tenant": "a"}).send("hello")
        message = await get_one(broker_url)
    assert message.type == "shop.note"
    assert message.body == b'{"text":"hello"}'
    assert message.correlation_id == handle.id
    assert message.message_id not in (None, handle.id)
    assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
    assert message.content_type == "application/json"
    assert message.app_id == "shop"
    assert message.reply_to is None
    assert message.timestamp is not None
    ours = {"x-delivery-count", "asyncq-sent-at"}
    assert {name: value for name, value in message.headers.items() if name not in ours} == {"shop-tenant": "a"}


async def test_a_queue_that_is_full_refuses(broker_url):
    """The broker's nack is an error of the sender, not a lost message."""
    async with await aio_pika.connect(broker_url) as connection, connection.channel() as channel:
        arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
        queue = await channel.declare_queue("full", durable=True, arguments=arguments)
        async with make_app(broker_url) as app:
            await queue.bind("asyncq.tasks", "full")
            to_full = app.tasks["shop.note"].options(queue="full")
            with pytest.raises(PartlySent) as caught:
                await app.send_many([to_full.s("x") for _ in range(5)])
    refused = [error for error in caught.value.outcomes if isinstance(error, Refused)]
    assert len(refused) >= 3
    assert "'full'" in str(refused[0])


async def test_a_message_over_the_brokers_own_limit_is_named_as_such_and_publishing_goes_on(broker_url, node):
    """Where our setting is larger than the broker's max_message_size (16 MiB by default from 4.0 on)."""
    if node.version.startswith("3."):
        size, limit = 135_000_000, 512 * 1024 * 1024
    else:
        size, limit = 17_000_000, 512 * 1024 * 1024
    async with make_app(broker_url, max_message_bytes=limit) as app:
        await app.broker.ensure([QueueSpec(QUEUE)])
        task = app.tasks["shop.note"]
        with pytest.raises(MessageTooLarge, match="max size"):
            await task.send("x" * size)
        await task.send("fits")
    assert (await get_one(broker_url)).body == b'{"text":"fits"}'


async def test_our_exchange_deleted_under_a_running_producer_is_declared_again(broker_url):
    """Somebody tidied up in the management UI."""
    async with make_app(broker_url) as app:
        await app.broker.ensure([QueueSpec(QUEUE)])
        await app.tasks["shop.note"].send("before")
        async with await aio_pika.connect(broker_url) as connection, connection.channel() as channel:
            await channel.exchange_delete("asyncq.tasks")
        await app.tasks["shop.note"].send("after")


async def test_a_part_of_the_ladder_deleted_under_a_running_producer_is_declared_again(broker_url, management):
    """The message came back as unroutable, so it is safe to send it once more."""
    async with make_app(broker_url) as app:
        await app.broker.ensure([QueueSpec(QUEUE)])
        await app.tasks["shop.note"].options(delay=0.5).send("before")
        async with await aio_pika.connect(broker_url) as connection, connection.channel() as channel:
            for name in await management.queues():
                if ".delay." in name:
                    await channel.queue_delete(name)
        await app.tasks["shop.note"].options(delay=0.5).send("after")

        async def arrived() -> bool:
            return await management.ready(QUEUE) >= 1

        await eventually(arrived)
        assert (await get_one(broker_url)).body == b'{"text":"after"}'


async def test_after_the_brokers_connection_is_cut_sending_goes_on(broker_url, management):
    """What was not written waits for the new connection."""
    async with make_app(broker_url) as app:
        await app.broker.ensure([QueueSpec(QUEUE)])
        await app.tasks["shop.note"].send("before")
        await management.cut("publish")
        for n in range(20):
            try:
                await app.tasks["shop.note"].send(f"after {n}")
            except PublishUncertain:
                continue  # it was under way in the very moment of the cut
            break
        else:
            pytest.fail("sending did not resume")


async def test_a_frozen_broker_makes_a_publish_uncertain_within_its_timeout(private_node):
    """It left, and no answer came: the error says so, and what is safe."""
    app = make_app(private_node.url, publish_timeout_s=1)
    async with app:
        await app.broker.ensure([QueueSpec(QUEUE)])
        await app.tasks["shop.note"].send("before")
        private_node.freeze()
        try:
            started = time.monotonic()
            with pytest.raises(PublishUncertain, match="same task_id"):
                await app.tasks["shop.note"].send("under way")
            assert time.monotonic() - started < 5
        finally:
            private_node.thaw()


async def test_a_broker_that_is_down_makes_a_publish_not_sent_and_one_that_comes_back_takes_it(private_node):
    """Not sent and uncertain are told apart; a send whose timeout lasts is carried over the restart."""
    url = private_node.url
    app = make_app(url)
    async with app:
        await app.broker.ensure([QueueSpec(QUEUE)])
        await asyncio.to_thread(private_node.stop)
        await eventually(lambda: app.broker.status().state == "connecting")
        quick = make_app(url, connect_timeout_s=0.5)
        with pytest.raises(BrokerUnavailable, match="No RabbitMQ can be reached"):
            async with quick:
                pass
        sending = asyncio.create_task(app.tasks["shop.note"].send("patient"))
        await asyncio.to_thread(private_node.start)
        await sending
        assert app.broker.status().state == "ready"
        assert (await get_one(url)).body == b'{"text":"patient"}'


async def test_a_memory_alarm_blocks_sends_visibly_and_they_go_on_after_it(private_node):
    """The state is `blocked`, the error says so, nothing was sent."""
    app = make_app(private_node.url, publish_timeout_s=1)
    async with app:
        await app.broker.ensure([QueueSpec(QUEUE)])
        await asyncio.to_thread(private_node.rabbitmqctl, "set_vm_memory_high_watermark", "0.00001")
        try:
            with pytest.raises((NotSent, PublishUncertain)):  # the broker tells of the alarm at the first publish
                await app.tasks["shop.note"].send("first")
            await eventually(lambda: app.broker.status().state == "blocked")
            with pytest.raises(NotSent, match="blocked by an alarm"):
                await app.tasks["shop.note"].send("second")
            async with make_app(private_node.url, publish_timeout_s=0.5) as other:
                with pytest.raises((NotSent, PublishUncertain)):
                    await other.tasks["shop.note"].send("first")
                await eventually(lambda: other.broker.status().state == "blocked")
                message = Message(type="shop.note", body=b"{}", task_id="a", message_id="b")
                waiting = asyncio.create_task(other.broker.publish(message, Queue(QUEUE), timeout_s=60))
                await asyncio.sleep(0)  # it has begun, and waits for the end of the alarm
            with pytest.raises(NotSent, match="Nothing was sent"):
                await waiting
        finally:
            await asyncio.to_thread(private_node.rabbitmqctl, "set_vm_memory_high_watermark", "0.6")
        await eventually(lambda: app.broker.status().state == "ready")
        await app.tasks["shop.note"].send("third")


async def test_an_absent_broker_a_wrong_password_and_an_unknown_vhost_are_told_apart(broker_url):
    """Each error says what to check."""
    with pytest.raises(BrokerUnavailable, match="ASYNCQ_BROKER_URL"):
        async with make_app("amqp://127.0.0.1:1/", connect_timeout_s=1):
            pass
    scheme, rest = broker_url.split("://")
    host = rest.split("@")[1]
    with pytest.raises(AuthenticationFailed, match="'nobody'"):
        async with make_app(f"{scheme}://nobody:wrong@{host}"):
            pass
    with pytest.raises(VirtualHostNotFound, match="add_vhost no-such-vhost"):
        async with make_app(f"{broker_url.rsplit('/', 1)[0]}/no-such-vhost"):
            pass


async def test_a_user_deleted_under_a_running_producer_is_fatal_and_said_so(private_node):
    """Trying for ever would hide it."""
    private_node.api("PUT", "/users/shortlived", {"password": "p", "tags": ""})
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    private_node.api("PUT", "/permissions/%2F/shortlived", everything)
    host = private_node.url.split("@")[1]
    app = make_app(f"amqp://shortlived:p@{host}")
    async with app:
        await app.broker.ensure([QueueSpec(QUEUE)])
        await app.tasks["shop.note"].send("before")
        await asyncio.to_thread(private_node.api, "DELETE", "/users/shortlived")
        # Newer brokers close a deleted user's connections themselves.
        for connection in await asyncio.to_thread(private_node.api, "GET", "/connections"):
            if connection.get("user") == "shortlived":
                name = quote(connection["name"], safe="")
                await asyncio.to_thread(
                    private_node.api,
                    "DELETE",
                    f"/connections/{name}",
                )
        await eventually(lambda: app.broker.status().state == "fatal", timeout=15)
        assert isinstance(app.broker.status().cause, AuthenticationFailed)
        with pytest.raises(NotSent, match="shortlived"):
            await app.tasks["shop.note"].send("after")


async def test_an_app_that_was_not_entered_says_what_to_write(broker_url):
    """And one that is open in another loop says that."""
    app = make_app(broker_url)
    with pytest.raises(NotOpen, match="async with app"):
        await app.tasks["shop.note"].send("x")
    async with app:

        def elsewhere() -> None:
            async def enter() -> None:
                async with app:
                    pass

            asyncio.run(enter())

        with pytest.raises(WrongLoop, match="another event loop"):
            await asyncio.to_thread(elsewhere)
