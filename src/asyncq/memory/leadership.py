"""Leadership in memory: the first candidate consumes the leader's queue, the others wait for their turn.

What is in the queue, and what a leader does with it, is the same as on RabbitMQ; see `asyncq.rabbitmq.tokens`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from asyncq.broker import Address, Delay, Queue
from asyncq.errors import BrokerError, LeaseLost
from asyncq.memory.consumer import MemorySubscription
from asyncq.memory.node import MemoryNode
from asyncq.message import Message
from asyncq.rabbitmq.tokens import HELD_AT_ONCE, TokenNote, Tokens, over_message, seed
from asyncq.rabbitmq.topology import Names

__all__ = ["MemoryCampaign", "MemoryTerm"]

Publish = Callable[[Message, Address, Delay | None], Awaitable[None]]


class MemoryTerm:
    """See `asyncq.leadership.Term`."""

    def __init__(self, subscription: MemorySubscription, publish: Publish) -> None:
        self._subscription = subscription
        self._publish = publish
        self._over = asyncio.Event()
        self._tokens = Tokens(self._put, self.lost)
        self._reader = asyncio.create_task(self._read(), name=f"asyncq leader of {subscription.queue}")

    @property
    def states(self) -> Mapping[str, bytes]:
        """See `asyncq.leadership.Term.states`."""
        return self._tokens.states

    @property
    def is_lost(self) -> bool:
        """See `asyncq.leadership.Term.is_lost`."""
        return self._over.is_set()

    async def begin(self) -> None:
        """Wait until we have seen what predecessors left."""
        await self._put(seed())
        await self._tokens.begin()

    def end(self) -> None:
        """Give up: what is held goes back to the queue."""
        self._over.set()
        self._subscription.close()

    async def close(self) -> None:
        """End the term."""
        self.end()
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    async def save(self, name: str, state: bytes, *, timeout_s: float) -> None:
        """See `asyncq.leadership.Term.save`."""
        del timeout_s  # nothing here takes time
        self._check()
        await self._tokens.save(name, state)

    async def publish(self, message: Message, to: Address, *, delay: Delay | None = None, timeout_s: float) -> None:
        """See `asyncq.leadership.Term.publish`."""
        del timeout_s
        self._check()
        await self._publish(message, to, delay)

    async def note(self) -> TokenNote:
        """See `asyncq.leadership.Term.note`."""
        return await self._tokens.note()

    async def lost(self) -> None:
        """See `asyncq.leadership.Term.lost`."""
        await self._over.wait()

    def _check(self) -> None:
        if self.is_lost:
            raise over_message()

    async def _put(self, message: Message) -> None:
        await self._publish(message, Queue(self._subscription.queue), None)

    async def _read(self) -> None:
        try:
            async for delivery in self._subscription:
                with contextlib.suppress(LeaseLost):
                    await self._tokens.arrived(delivery.message, delivery.ack)
        except BrokerError:
            pass  # the queue was deleted
        finally:
            self._over.set()


class MemoryCampaign(AsyncIterator[MemoryTerm]):
    """The candidature of one client for one queue; see `asyncq.leadership.Leadership.campaign`.

    Args:
        node: Where the queue is.
        names: How queues are called.
        queue: The leader's queue.
        publish: Publishes by the client.
    """

    def __init__(self, node: MemoryNode, names: Names, queue: str, publish: Publish) -> None:
        self._node = node
        self._names = names
        self._queue = queue
        self._publish = publish
        self._term: MemoryTerm | None = None

    def lose_connection(self) -> None:
        """Do what a lost connection does: the term ends, and the next candidate leads."""
        if self._term is not None:
            self._term.end()
            self._node.resign(self._queue, self)

    async def close(self) -> None:
        """End the present term, and stand no longer."""
        term, self._term = self._term, None
        if term is not None:
            await term.close()
        self._node.resign(self._queue, self)

    async def __anext__(self) -> MemoryTerm:
        while True:
            await self.close()
            await self._turn()
            self._node.declare_leaders(self._queue, self._names)
            subscription = MemorySubscription(self._node, self._queue, HELD_AT_ONCE, self._hand_back)
            try:
                subscription.open()
                self._term = MemoryTerm(subscription, self._publish)
                await self._term.begin()
            except BrokerError:  # its queue was deleted, or it has lost its connection meanwhile
                continue
            except BaseException:
                await self.close()
                raise
            return self._term

    async def _hand_back(self, message: Message) -> None:
        await self._publish(message, Queue(self._queue), None)

    async def _turn(self) -> None:
        """Wait until nobody else leads."""
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()
        unlisten = self._node.listen(lambda: self._node.call(loop, changed.set))
        try:
            while not self._node.lead(self._queue, self):
                await changed.wait()
                changed.clear()
        finally:
            unlisten()
