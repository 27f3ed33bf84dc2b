"""The brokers that the conformance suite runs on."""

from __future__ import annotations

import aio_pika

from asyncq.broker import Broker
from asyncq.memory.broker import MemoryBroker
from asyncq.memory.node import MemoryNode
from asyncq.rabbitmq.adapter import RabbitMQ
from asyncq.settings import Settings
from proxy import Proxy


class RabbitMQUnderTest:
    """A virtual host of a RabbitMQ node, reached through a proxy that can cut connections.

    Args:
        version: The node's version.
        url: The virtual host's AMQP URL.
        proxy: A listening proxy before it.
    """

    def __init__(self, version: str, url: str, proxy: Proxy) -> None:
        self.name = "RabbitMQ " + ".".join(version.split(".")[:2])
        self._url = url
        self._proxy = proxy

    def make(self, settings: Settings) -> Broker:
        return RabbitMQ(settings.model_copy(update={"broker_url": self._proxy.url}))

    async def delete_queue(self, name: str) -> None:
        async with await aio_pika.connect(self._url) as connection, connection.channel() as channel:
            await channel.queue_delete(name)

    async def cut(self, broker: Broker) -> None:
        assert self._proxy.cut()

    async def count(self, queue: str) -> int:
        async with await aio_pika.connect(self._url) as connection, connection.channel() as channel:
            found = await channel.declare_queue(queue, passive=True)
            return found.declaration_result.message_count or 0


class MemoryUnderTest:
    """A node in memory of its own."""

    name = "memory"

    def __init__(self) -> None:
        self._node = MemoryNode()

    def make(self, settings: Settings) -> Broker:
        return MemoryBroker(settings, self._node)

    async def delete_queue(self, name: str) -> None:
        self._node.delete_queue(name)

    async def cut(self, broker: Broker) -> None:
        assert isinstance(broker, MemoryBroker)
        broker.lose_connection()

    async def count(self, queue: str) -> int:
        return self._node.count(queue)
