"""One queue in memory: messages in their order, and the consumers that they are handed to.

    publish ─▶ ready ──a consumer has a free slot──▶ unsettled ──ack──▶ gone
                 ▲                                      │ reject ─────▶ dead letters
                 └──lease lost: back to the front, counted ◀┘           ▲
                                     │ more often than the limit ───────┘

Pure: it knows no event loop and no lock; its node calls it under one.

Invariant: a message is in exactly one place, ready or with one consumer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from asyncq.barrier import Member

__all__ = ["Consumer", "MemoryBarrier", "MemoryQueue", "Stored"]


@dataclass(frozen=True, slots=True)
class Stored:
    """A message as a queue keeps it: encoded.

    Attributes:
        properties: The AMQP properties, as bytes.
        body: The body.
        number: Its place in the order of publishing; messages that come back take it again.
        returns: How often it came back without being settled.
        key: The queue that it was for, where it found none.
    """

    properties: bytes
    body: bytes
    number: int
    returns: int = 0
    key: str = ""


class Consumer(Protocol):
    """Who takes messages from a queue."""

    @property
    def wants(self) -> bool:
        """Whether a slot is free and may be filled."""
        ...

    @property
    def kept(self) -> int:
        """How many messages it has taken and keeps while it is paused."""
        ...

    def take(self, stored: Stored) -> None:
        """Take one message; it is the consumer's until it is settled or given back."""
        ...

    def queue_gone(self) -> None:
        """Hear that the queue was deleted, with all that was in it."""
        ...


class MemoryQueue:
    """One queue.

    Args:
        name: Its name.
        delivery_limit: After how many returns a message is dead-lettered; None for never.
        dead_letter: Takes a message that was rejected, or came back too often, with the reason.
    """

    def __init__(self, name: str, delivery_limit: int | None, dead_letter: Callable[[Stored, str], None]) -> None:
        self.name = name
        self.delivery_limit = delivery_limit
        self.ready: deque[Stored] = deque()
        self.unsettled = 0
        self._dead_letter = dead_letter
        self._consumers: deque[Consumer] = deque()

    @property
    def is_consumed(self) -> bool:
        """Whether somebody consumes it."""
        return bool(self._consumers)

    @property
    def is_wanted(self) -> bool:
        """Whether somebody would take another message at once."""
        return any(consumer.wants for consumer in self._consumers)

    @property
    def busy(self) -> int:
        """How many messages are being worked on, or would be at once."""
        kept = sum(consumer.kept for consumer in self._consumers)
        return self.unsettled - kept + (len(self.ready) if self.is_wanted else 0)

    def put(self, stored: Stored) -> None:
        """Take in a message at the end, and hand out what can be."""
        self.ready.append(stored)
        self.dispatch()

    def subscribe(self, consumer: Consumer) -> None:
        """Add a consumer, and hand it what is ready."""
        self._consumers.append(consumer)
        self.dispatch()

    def unsubscribe(self, consumer: Consumer) -> None:
        """Remove a consumer. What it holds it gives back itself."""
        if consumer in self._consumers:
            self._consumers.remove(consumer)

    def dispatch(self) -> None:
        """Hand out what is ready, to consumers in turn, as long as one has a free slot."""
        refused = 0
        while self.ready and refused < len(self._consumers):
            consumer = self._consumers[0]
            self._consumers.rotate(-1)
            if consumer.wants:
                refused = 0
                self.unsettled += 1
                consumer.take(self.ready.popleft())
            else:
                refused += 1

    def settled(self) -> None:
        """Forget one message that was handed out: it was acked."""
        self.unsettled -= 1

    def rejected(self, stored: Stored) -> None:
        """Dead-letter one that was handed out."""
        self.unsettled -= 1
        self._dead_letter(stored, "rejected")

    def returned(self, stored: Stored) -> None:
        """Take one back that was handed out and not settled: to its old place, and counted."""
        self.unsettled -= 1
        back = replace(stored, returns=stored.returns + 1)
        if self.delivery_limit is not None and back.returns > self.delivery_limit:
            self._dead_letter(back, "delivery_limit")
            return
        place = 0
        while place < len(self.ready) and self.ready[place].number < back.number:
            place += 1
        self.ready.insert(place, back)

    def given_back(self, held: Sequence[Stored]) -> None:
        """Take back, to their old places and uncounted, what was taken out by a look."""
        self.unsettled -= len(held)
        self.ready = deque(sorted((*held, *self.ready), key=lambda stored: stored.number))
        self.dispatch()

    def delete(self) -> None:
        """End all consumers."""
        consumers, self._consumers = tuple(self._consumers), deque()
        self.ready.clear()
        for consumer in consumers:
            consumer.queue_gone()


@dataclass(slots=True)
class MemoryBarrier:
    """What the queue of one chord holds; see `asyncq.memory.barrier`.

    Attributes:
        head: What was left when it was opened; None when it is done.
        until_s: When it expires, by the clock's monotonic time.
        members: Who has arrived, by their places.
        is_held: Whether somebody has gathered them.
        was_held: Whether somebody has done so before.
        opened: How often it was opened.
    """

    head: bytes | None
    until_s: float
    members: dict[int, Member] = field(default_factory=dict)
    is_held: bool = False
    was_held: bool = False
    opened: int = 0
