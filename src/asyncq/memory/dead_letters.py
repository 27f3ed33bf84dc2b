"""Dead letters in memory, written as RabbitMQ's adapter writes them."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from asyncq.broker import DeadLetter, DeadLetterRecord, Queue
from asyncq.errors import Unroutable
from asyncq.memory.node import MemoryNode
from asyncq.message import Message
from asyncq.rabbitmq.common_errors import no_dead_letters
from asyncq.rabbitmq.dead_letters import PublishTo, letter_of, record_from
from asyncq.rabbitmq.topology import Names

__all__ = ["MemoryDeadLetters"]


class MemoryDeadLetters:
    """See `asyncq.broker.DeadLetters`.

    Args:
        node: Where the queue is.
        names: The names of what asyncq declares.
        queue: The task queue.
        publish: Publishes one message.
    """

    def __init__(self, node: MemoryNode, names: Names, queue: str, publish: PublishTo) -> None:
        self._node = node
        self._names = names
        self._queue = queue
        self._dead = names.dead_queue(queue)
        self._publish = publish

    async def put(self, message: Message, record: DeadLetterRecord, *, timeout_s: float) -> None:
        """Park a copy of the message. Where the dead-letter queue was deleted, it is declared again."""
        letter = letter_of(message, record)
        try:
            await self._publish(letter, Queue(self._dead), timeout_s=timeout_s)
        except Unroutable:
            self._node.declare_own(self._dead, self._names)
            await self._publish(letter, Queue(self._dead), timeout_s=timeout_s)

    async def browse(self, *, limit: int | None = None) -> AsyncGenerator[DeadLetter, None]:
        """Look at what is parked now, oldest first. Nothing is changed by looking.

        Args:
            limit: How many to look at; None means all.

        Raises:
            QueueGone: There is no such dead-letter queue.
        """
        parked = self._node.browse(self._dead)
        if parked is None:
            raise no_dead_letters(self._dead, self._queue)
        for message in parked[:limit]:
            yield DeadLetter(message, record_from(message.headers))
