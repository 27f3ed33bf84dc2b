"""One delivery, and the slot that holds it: who may settle it, for how long, and what the slot does next.

A lease is the right to settle one delivery. It ends with its channel, and with the broker's cancel notification for
its consumer; see `consumer.py`.

Invariant: nothing is settled after its lease is gone: the broker has given it to somebody else by then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import aiormq.exceptions as amqp
from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from pamqp import commands

from asyncq.message import Message
from asyncq.rabbitmq.common_errors import lease_lost
from asyncq.rabbitmq.properties import message_from

__all__ = ["ConsumerSlot", "RabbitDelivery"]


class Owner(Protocol):
    """The subscription of a delivery.

    Attributes:
        queue: The queue's name.
        hand_back: Publishes a message to the end of the queue again.
    """

    queue: str
    hand_back: Callable[[Message], Awaitable[None]]

    async def settling(self, slot: ConsumerSlot) -> None:
        """Hear that the slot's delivery is about to be settled."""
        ...

    async def hold(self, number: int) -> None:
        """Bring nothing new into this slot."""
        ...

    async def free(self, number: int) -> None:
        """Open a held slot again."""
        ...


class ConsumerSlot:
    """One consumer. Its lease is a future that is done when the lease is gone.

    Since `free_since`, by the loop's clock, it holds no delivery; while it holds one, by its prefetch of 1 no other
    can be on its way to it.
    """

    __slots__ = ("changing", "channel", "free_since", "gone", "number", "tag")

    def __init__(self, number: int, tag: str, channel: Channel, gone: asyncio.Future[None]) -> None:
        self.number = number
        self.tag = tag
        self.channel = channel
        self.gone = gone
        self.changing = asyncio.Lock()
        self.free_since: float | None = gone.get_loop().time()

    def settled(self) -> None:
        """Note that its delivery was settled: the broker sends the next one, if it still consumes."""
        self.free_since = self.gone.get_loop().time()


class RabbitDelivery:
    """One delivery; see `asyncq.broker.Delivery`."""

    __slots__ = ("_delivery_tag", "_slot", "_subscription", "deliveries", "message", "queue")

    def __init__(self, subscription: Owner, slot: ConsumerSlot, delivered: DeliveredMessage, delivery_tag: int) -> None:
        properties = delivered.header.properties
        self._subscription = subscription
        self._slot = slot
        self._delivery_tag = delivery_tag
        self.message = message_from(properties, delivered.body)
        self.queue = subscription.queue
        self.deliveries = _deliveries(properties)

    @property
    def is_lost(self) -> bool:
        """Whether the lease is gone."""
        return self._slot.gone.done()

    @property
    def slot(self) -> int:
        """The number of the slot that holds it."""
        return self._slot.number

    async def ack(self, *, hold: bool = False) -> None:
        """See `asyncq.broker.Delivery.ack`."""
        if hold:
            # The ack alone would bring the next message into a slot that a thread still occupies.
            await self._subscription.hold(self._slot.number)
        else:
            await self._subscription.settling(self._slot)
        self._check_lease()
        try:
            await self._slot.channel.basic_ack(self._delivery_tag, wait=False)
        except _CHANNEL_ERRORS as error:
            raise lease_lost(self.message.task_id) from error
        self._slot.settled()

    async def free(self) -> None:
        """See `asyncq.broker.Delivery.free`."""
        await self._subscription.free(self._slot.number)

    async def release(self) -> None:
        """See `asyncq.broker.Delivery.release`.

        A requeue counts as a delivery before RabbitMQ 4.3, and clusters can be mixed: so it is published again,
        and acked.
        """
        self._check_lease()
        await self._subscription.hand_back(self.message)
        await self.ack()

    async def reject(self) -> None:
        """See `asyncq.broker.Delivery.reject`."""
        await self._subscription.settling(self._slot)
        self._check_lease()
        try:
            await self._slot.channel.basic_reject(self._delivery_tag, requeue=False, wait=False)
        except _CHANNEL_ERRORS as error:
            raise lease_lost(self.message.task_id) from error
        self._slot.settled()

    async def lost(self) -> None:
        """See `asyncq.broker.Delivery.lost`."""
        await asyncio.shield(self._slot.gone)

    def _check_lease(self) -> None:
        if self._slot.gone.done():
            raise lease_lost(self.message.task_id)


_CHANNEL_ERRORS = (amqp.ChannelInvalidStateError, amqp.AMQPError, ConnectionError)


def _deliveries(properties: commands.Basic.Properties) -> int | None:
    """Return how often a quorum queue has had this message back. Classic queues do not count."""
    count = (properties.headers or {}).get("x-delivery-count")
    return count if isinstance(count, int) else None
