"""Consuming in memory: a subscription has n slots, each with one unsettled delivery at most.

A lease is the right to settle one delivery. It ends with the subscription, with a lost connection, and with the
queue; a late ack raises `LeaseLost`, as it does with RabbitMQ.

Invariant: a message that is handed out is settled once, given back once, or gone with its queue.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable

from asyncq.errors import AsyncQError
from asyncq.memory.node import MemoryNode
from asyncq.memory.queues import MemoryQueue, Stored
from asyncq.message import Message
from asyncq.rabbitmq.common_errors import lease_lost, queue_gone
from asyncq.rabbitmq.properties import read_message

__all__ = ["MemoryDelivery", "MemorySubscription"]


class MemoryDelivery:
    """One delivery; see `asyncq.broker.Delivery`."""

    __slots__ = ("_gone", "_holding", "_subscription", "deliveries", "is_lost", "message", "queue", "stored")

    def __init__(self, subscription: MemorySubscription, stored: Stored) -> None:
        self.stored = stored
        self.message = _message_of(stored)
        self.queue = subscription.queue
        self.deliveries = stored.returns or None
        self.is_lost = False
        self._subscription = subscription
        self._holding = False
        self._gone: asyncio.Future[None] | None = None

    async def ack(self, *, hold: bool = False) -> None:
        """See `asyncq.broker.Delivery.ack`."""
        self._holding = self._holding or hold
        self._subscription.settle(self, MemoryQueue.settled, hold=hold)

    async def free(self) -> None:
        """See `asyncq.broker.Delivery.free`."""
        if self._holding:
            self._holding = False
            self._subscription.free()

    async def release(self) -> None:
        """See `asyncq.broker.Delivery.release`. As with RabbitMQ, it is published again, and acked."""
        if self.is_lost:
            raise lease_lost(self.message.task_id)
        await self._subscription.hand_back(self.message)
        await self.ack()

    async def reject(self) -> None:
        """See `asyncq.broker.Delivery.reject`."""
        self._subscription.settle(self, lambda queue: queue.rejected(self.stored), hold=False)

    async def lost(self) -> None:
        """See `asyncq.broker.Delivery.lost`."""
        if self.is_lost:
            return
        if self._gone is None:
            self._gone = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._gone)

    def lose(self) -> None:
        """End the lease."""
        self.is_lost = True
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)


def _message_of(stored: Stored) -> Message:
    message = read_message(stored.properties, stored.body)
    if not stored.returns:
        return message
    # RabbitMQ's quorum queues tell it by this header.
    return dataclasses.replace(message, headers={**message.headers, "x-delivery-count": stored.returns})


class MemorySubscription:
    """The deliveries of one queue; see `asyncq.broker.Subscription`.

    Args:
        node: Where the queue is.
        queue: Its name.
        slots: How many deliveries may be unsettled at once.
        hand_back: Publishes a message to the end of its queue again.
    """

    def __init__(
        self, node: MemoryNode, queue: str, slots: int, hand_back: Callable[[Message], Awaitable[None]]
    ) -> None:
        self.queue = queue
        self.hand_back = hand_back
        self._node = node
        self._slots = slots
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Queue[MemoryDelivery | None] = asyncio.Queue()
        self._kept: list[MemoryDelivery] = []  # while paused: brought, and not started
        self._unsettled: set[MemoryDelivery] = set()
        self._held = 0
        self._paused = False
        self._stopped = False
        self._end: AsyncQError | None = None

    # --- iteration

    def __aiter__(self) -> AsyncIterator[MemoryDelivery]:
        return self

    async def __anext__(self) -> MemoryDelivery:
        while True:
            delivery = await self._arrived.get()
            if delivery is None:
                self._arrived.put_nowait(None)  # for the other slots that iterate
                if self._end is not None:
                    raise self._end
                raise StopAsyncIteration
            if not delivery.is_lost:
                return delivery

    # --- life

    def open(self) -> None:
        """Start consuming.

        Raises:
            QueueGone: There is no such queue.
        """
        with self._node.changing():
            queue = self._node.find(self.queue)
            if queue is None:
                raise queue_gone(self.queue)
            queue.subscribe(self)

    def close(self) -> None:
        """End the subscription: what is unsettled goes back to the queue."""
        self._stopped = True
        self._finish(None)
        with self._node.changing():
            self._leave()
            self.lose_leases()

    async def pause(self) -> None:
        """See `asyncq.broker.Subscription.pause`."""
        with self._node.changing():
            self._paused = True
            self._kept += self._unstarted()

    async def resume(self) -> None:
        """See `asyncq.broker.Subscription.resume`."""
        with self._node.changing():
            self._paused = False
            kept, self._kept = self._kept, []
            for delivery in kept:
                self._arrived.put_nowait(delivery)
        self._dispatch()

    async def resize(self, slots: int) -> None:
        """See `asyncq.broker.Subscription.resize`."""
        with self._node.changing():
            self._slots = slots
            unstarted = [*self._unstarted(), *self._kept]
            surplus = max(0, len(self._unsettled) + self._held - slots)
            stays, goes = (unstarted[:-surplus], unstarted[-surplus:]) if surplus else (unstarted, [])
            self._kept = stays if self._paused else []
            for delivery in () if self._paused else stays:
                self._arrived.put_nowait(delivery)
        for delivery in goes:
            if not delivery.is_lost:
                await delivery.release()
        self._dispatch()

    async def stop(self) -> None:
        """See `asyncq.broker.Subscription.stop`."""
        if self._stopped:
            return
        self._stopped = True
        with self._node.changing():
            self._leave()
            unstarted, self._kept = [*self._kept, *self._unstarted()], []
        for delivery in unstarted:
            if not delivery.is_lost:
                await delivery.release()
        self._finish(None)

    def lose_leases(self) -> None:
        """End all leases, as a lost connection does: the messages come again, counted."""
        with self._node.changing():
            unsettled, self._unsettled = self._unsettled, set()
            queue = self._node.find(self.queue)
            for delivery in unsettled:
                delivery.lose()
                if queue is not None:
                    queue.returned(delivery.stored)
            if queue is not None:
                queue.dispatch()

    def settle(self, delivery: MemoryDelivery, how: Callable[[MemoryQueue], None], *, hold: bool) -> None:
        """Settle a delivery, and let the next one into its slot.

        Raises:
            LeaseLost: It is no longer ours.
        """
        with self._node.changing():
            self._held += hold
            if delivery not in self._unsettled:
                raise lease_lost(delivery.message.task_id)
            self._unsettled.discard(delivery)
            queue = self._node.find(self.queue)
            if queue is not None:
                how(queue)
                queue.dispatch()

    def free(self) -> None:
        """Open a held slot again."""
        self._held -= 1
        self._dispatch()

    def _dispatch(self) -> None:
        with self._node.changing():
            queue = self._node.find(self.queue)
            if queue is not None:
                queue.dispatch()

    def _leave(self) -> None:
        queue = self._node.find(self.queue)
        if queue is not None:
            queue.unsubscribe(self)

    def _unstarted(self) -> list[MemoryDelivery]:
        """Take out what waits for a slot. The end of the iteration stays."""
        unstarted, ended = [], False
        while not self._arrived.empty():
            delivery = self._arrived.get_nowait()
            if delivery is None:
                ended = True
            else:
                unstarted.append(delivery)
        if ended:
            self._arrived.put_nowait(None)
        return unstarted

    def _finish(self, error: AsyncQError | None) -> None:
        self._end = self._end or error
        self._arrived.put_nowait(None)

    # --- what the queue calls, from any thread

    @property
    def wants(self) -> bool:
        """See `asyncq.memory.queues.Consumer.wants`."""
        if self._stopped or self._paused or self._loop.is_closed():  # a loop may end without leaving its app
            return False
        return len(self._unsettled) + self._held < self._slots

    @property
    def kept(self) -> int:
        """See `asyncq.memory.queues.Consumer.kept`."""
        return sum(not delivery.is_lost for delivery in self._kept)

    def take(self, stored: Stored) -> None:
        """See `asyncq.memory.queues.Consumer.take`."""
        delivery = MemoryDelivery(self, stored)
        self._unsettled.add(delivery)
        self._node.call(self._loop, self._arrive, delivery)

    def _arrive(self, delivery: MemoryDelivery) -> None:
        if self._paused:  # another thread had handed it over before
            with self._node.changing():
                self._kept.append(delivery)
        else:
            self._arrived.put_nowait(delivery)

    def queue_gone(self) -> None:
        """See `asyncq.memory.queues.Consumer.queue_gone`."""
        unsettled, self._unsettled = self._unsettled, set()
        for delivery in unsettled:
            self._node.call(self._loop, delivery.lose)
        self._node.call(self._loop, self._finish, queue_gone(self.queue))
