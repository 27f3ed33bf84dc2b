"""The reply queue of one client, in memory.

Invariant: a reply that was published is iterated once, or lost with its queue, and then `ReplyLost` says so. It is
unsettled until its reader comes for the next one, so `MemoryNode.busy` counts what nobody has heard yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from asyncq.errors import ReplyLost
from asyncq.memory.node import MemoryNode
from asyncq.memory.queues import MemoryQueue, Stored
from asyncq.message import Message
from asyncq.rabbitmq.common_errors import reply_queue_gone
from asyncq.rabbitmq.properties import read_message
from asyncq.rabbitmq.topology import Names

__all__ = ["MemoryMailbox"]


class MemoryMailbox:
    """A reply queue; see `asyncq.broker.Mailbox`.

    Args:
        node: Where the queue is.
        names: How it is called.
        app: Whose it is.
    """

    def __init__(self, node: MemoryNode, names: Names, app: str) -> None:
        self._node = node
        self._names = names
        self._app = app
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Queue[tuple[MemoryQueue, Message] | ReplyLost | None] = asyncio.Queue()
        self._queue: MemoryQueue
        self._read_from: MemoryQueue | None = None
        self._closed = False
        self.address = ""
        self._open()

    def _open(self) -> None:
        self.address = self._names.reply_queue(self._app)
        with self._node.changing():
            self._queue = self._node.declare_own(self.address, self._names)
            self._queue.subscribe(self)

    def close(self) -> None:
        """Delete the queue: nobody will read it any more."""
        self._closed = True
        self._node.delete_queue(self.address)
        self._arrived.put_nowait(None)

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        self._settle()
        item = await self._arrived.get()
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, ReplyLost):
            raise item
        self._read_from, message = item
        return message

    def _settle(self) -> None:
        queue, self._read_from = self._read_from, None
        if queue is not None:
            with self._node.changing():
                queue.settled()

    # --- what the queue calls, from any thread

    @property
    def wants(self) -> bool:
        """See `asyncq.memory.queues.Consumer.wants`."""
        return True

    @property
    def kept(self) -> int:
        """See `asyncq.memory.queues.Consumer.kept`: a mailbox is never paused."""
        return 0

    def take(self, stored: Stored) -> None:
        """See `asyncq.memory.queues.Consumer.take`."""
        item = self._queue, read_message(stored.properties, stored.body)
        self._node.call(self._loop, self._arrived.put_nowait, item)

    def queue_gone(self) -> None:
        """See `asyncq.memory.queues.Consumer.queue_gone`: a new queue takes its place."""
        if not self._closed:
            error = reply_queue_gone(self.address)
            self._open()
            self._node.call(self._loop, self._arrived.put_nowait, error)
