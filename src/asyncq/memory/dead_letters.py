"""Dead letters in memory, written as RabbitMQ's adapter writes them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from asyncq.broker import DeadLetter, DeadLetterRecord, Queue, TakenLetter
from asyncq.errors import Unroutable
from asyncq.memory.node import MemoryNode
from asyncq.memory.queues import MemoryQueue, Stored
from asyncq.message import Message
from asyncq.rabbitmq.common_errors import no_dead_letters
from asyncq.rabbitmq.dead_letters import PublishTo, letter_of, record_from
from asyncq.rabbitmq.letter_origin import letter_from, parked_in
from asyncq.rabbitmq.properties import read_message
from asyncq.rabbitmq.topology import Names

__all__ = ["MemoryDeadLetters", "MemoryTaking"]


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
        self._parked = parked_in(names, queue)
        self._publish = publish

    async def put(self, message: Message, record: DeadLetterRecord, *, timeout_s: float) -> None:
        """Park a copy of the message. Where the dead-letter queue was deleted, it is declared again."""
        letter = letter_of(message, record)
        try:
            await self._publish(letter, Queue(self._parked), timeout_s=timeout_s)
        except Unroutable:
            self._node.declare_own(self._parked, self._names)
            await self._publish(letter, Queue(self._parked), timeout_s=timeout_s)

    async def count(self) -> int:
        """Return how many are parked. What somebody looks at in this moment is not counted.

        Raises:
            QueueGone: There is no such dead-letter queue.
        """
        return len(self._ready())

    async def browse(self, *, limit: int | None = None) -> AsyncGenerator[DeadLetter, None]:
        """Look at what is parked now, oldest first. Nothing is changed by looking.

        Args:
            limit: How many to look at; None means all.

        Raises:
            QueueGone: There is no such dead-letter queue.
        """
        for stored in self._ready()[:limit]:
            yield self._letter(stored)

    @asynccontextmanager
    async def take(self) -> AsyncIterator[MemoryTaking]:
        """See `asyncq.broker.DeadLetters.take`."""
        queue, held = self._hold()
        taking = MemoryTaking(self._node, queue, [_Taken(self._letter(one), one) for one in held])
        try:
            yield taking
        finally:
            taking.end()

    def _ready(self) -> tuple[Stored, ...]:
        ready = self._node.browse(self._parked)
        if ready is None:
            raise no_dead_letters(self._parked, self._queue)
        return ready

    def _hold(self) -> tuple[MemoryQueue, list[Stored]]:
        """Take all that is ready out of the queue."""
        with self._node.changing():
            queue = self._node.find(self._parked)
            if queue is None:
                raise no_dead_letters(self._parked, self._queue)
            held = list(queue.ready)
            queue.ready.clear()
            queue.unsettled += len(held)
            return queue, held

    def _letter(self, stored: Stored) -> DeadLetter:
        message = read_message(stored.properties, stored.body)
        return letter_from(
            message, record_from(message.headers), names=self._names, parked=self._parked, key=stored.key
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Taken:
    """See `asyncq.broker.TakenLetter`."""

    letter: DeadLetter
    stored: Stored


class MemoryTaking:
    """See `asyncq.broker.Taking`.

    Args:
        node: Where the queue is.
        queue: The queue.
        taken: What was taken out of it.
    """

    def __init__(self, node: MemoryNode, queue: MemoryQueue, taken: Sequence[_Taken]) -> None:
        self._node = node
        self._queue = queue
        self._taken = taken
        self._held = {one.stored.number: one.stored for one in taken}
        self.total = len(taken)

    async def __aiter__(self) -> AsyncIterator[_Taken]:
        for one in self._taken:
            yield one

    async def settle(self, taken: Sequence[TakenLetter]) -> None:
        """See `asyncq.broker.Taking.settle`."""
        with self._node.changing():
            for one in taken:
                if isinstance(one, _Taken) and self._held.pop(one.stored.number, None) is not None:
                    self._queue.settled()

    def keep(self, taken: TakenLetter) -> None:
        """See `asyncq.broker.Taking.keep`. All are given back in the end."""

    def end(self) -> None:
        """Give back what was not settled."""
        with self._node.changing():
            self._queue.given_back(list(self._held.values()))  # where it was deleted meanwhile, they are gone with it
