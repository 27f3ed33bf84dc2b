"""The seam: what a broker must do for asyncq.

No delivery tag, channel, nack, `x-` argument or broker version crosses it. Two adapters stand behind it:
RabbitMQ, and a broker in memory for tests.

Invariant: `publish` returns only when the broker has confirmed a routed message; every other ending is one of
the errors below. A delivery that is neither acked nor rejected comes back.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from asyncq.barrier import Barriers
from asyncq.errors import PublishError
from asyncq.history import FailedAttempt
from asyncq.journal import Journal
from asyncq.message import Message
from asyncq.outcome import Failure

__all__ = [
    "Address",
    "Broker",
    "BrokerState",
    "BrokerStatus",
    "DeadLetter",
    "DeadLetterRecord",
    "DeadLetters",
    "Delay",
    "Delivery",
    "Exchange",
    "Identity",
    "Mailbox",
    "Publication",
    "Queue",
    "QueueSpec",
    "ReplyTo",
    "Subscription",
    "TakenLetter",
    "Taking",
]

BrokerState = Literal["connecting", "ready", "blocked", "fatal", "closed"]


@dataclass(frozen=True, slots=True)
class Identity:
    """Who we are, for the names that people read in the management UI.

    Attributes:
        app: The app's name.
        role: `worker`, `producer`, `cli` ...
    """

    app: str
    role: str


@dataclass(frozen=True, slots=True)
class BrokerStatus:
    """The state of the connection to the broker, and the cause where it is not ready."""

    state: BrokerState
    cause: BaseException | None = None


@dataclass(frozen=True, slots=True)
class QueueSpec:
    """A task queue. Its dead-letter queue and its place on the delay ladder come with it.

    Attributes:
        name: Letters, digits, `.`, `_`, `-`.
        delivery_limit: After how many returned deliveries the broker itself dead-letters a message.
    """

    name: str
    delivery_limit: int = 50


@dataclass(frozen=True, slots=True)
class Queue:
    """The address of exactly one queue, whatever its bindings are. For copies."""

    name: str

    @property
    def queue(self) -> str:
        """The queue that a message for this address ends in."""
        return self.name

    def __str__(self) -> str:
        return f"queue {self.name!r}"


@dataclass(frozen=True, slots=True)
class Exchange:
    """The address of whatever is bound to `name` with `key`."""

    name: str
    key: str

    @property
    def queue(self) -> str:
        """The queue that a message for this address ends in: keys are queue names."""
        return self.key

    def __str__(self) -> str:
        return f"queue {self.key!r}"


@dataclass(frozen=True, slots=True)
class ReplyTo:
    """The address that a message gave for its reply."""

    name: str

    @property
    def queue(self) -> str:
        """The queue that a message for this address ends in."""
        return self.name

    def __str__(self) -> str:
        return f"reply queue {self.name!r}"


Address = Queue | Exchange | ReplyTo


@dataclass(frozen=True, slots=True)
class Delay:
    """How long the broker keeps a message before it delivers it.

    Attributes:
        seconds: Never delivered earlier than this.
        at_most_s: The delay may be rounded up as far as this, where that saves the broker work. None means exact.
    """

    seconds: float
    at_most_s: float | None = None


@dataclass(frozen=True, slots=True)
class Publication:
    """One message of `publish_many`."""

    message: Message
    to: Address
    delay: Delay | None = None


class Broker(Protocol):
    """A connection to one broker, or cluster."""

    async def open(self, identity: Identity) -> None:
        """Connect.

        Raises:
            BrokerUnavailable: Nobody answers.
            BrokerRefused: Wrong credentials, no such virtual host, no permission.
        """
        ...

    async def close(self) -> None:
        """Close every connection. Unsettled deliveries go back to their queues."""
        ...

    def status(self) -> BrokerStatus:
        """Return the present state."""
        ...

    async def ensure(self, queues: Collection[QueueSpec]) -> None:
        """Declare the queues, their dead-letter queues and what delays need to reach them. Idempotent.

        Raises:
            TopologyMismatch: One exists with other arguments.
            InvalidQueueName: A name cannot be used.
        """
        ...

    async def publish(self, message: Message, to: Address, *, delay: Delay | None = None, timeout_s: float) -> None:
        """Publish one message, and wait until the broker has confirmed it.

        Raises:
            Unroutable: No queue takes it. For a delayed message the destination is checked beforehand.
            Refused: The broker did not take it.
            MessageTooLarge: It was not sent.
            NotSent: It never left.
            PublishUncertain: It left, and no answer came.
        """
        ...

    async def publish_many(self, items: Sequence[Publication], *, timeout_s: float) -> list[PublishError | None]:
        """Publish many messages with their confirms pipelined.

        Returns:
            For each item None, or the error that it ended with.
        """
        ...

    def consume(self, queue: str, *, slots: int) -> AbstractAsyncContextManager[Subscription]:
        """Subscribe to a queue with so many slots: each holds one unsettled delivery at most. 0 take nothing yet."""
        ...

    def mailbox(self) -> AbstractAsyncContextManager[Mailbox]:
        """Open a reply queue of this process's own."""
        ...

    def dead_letters(self, queue: str) -> DeadLetters:
        """Return the dead letters of a task queue."""
        ...

    def barriers(self) -> Barriers:
        """Return the barriers of this namespace, at which the members of chords arrive."""
        ...

    def journal(self, name: str, *, keep_s: float) -> Journal:
        """Return a journal of this namespace.

        Args:
            name: What it is about: `cancellations`.
            keep_s: How long its entries are kept at least, in seconds.
        """
        ...


class Subscription(Protocol):
    """The deliveries of one queue. Several slots may iterate it at once; each delivery goes to one of them."""

    def __aiter__(self) -> AsyncIterator[Delivery]:
        """Iterate until `stop()`. Raises `QueueGone` when the queue is deleted and cannot be had again."""
        ...

    async def pause(self) -> None:
        """Start nothing from this moment on, and take nothing more than one message for each free slot.

        What was brought and not started is kept for `resume()`.
        """
        ...

    async def resume(self) -> None:
        """Take deliveries again."""
        ...

    async def resize(self, slots: int) -> None:
        """Have so many slots from now on, 0 for none.

        A slot that is given up finishes what it has started and takes nothing more; what was brought to it and not
        started is handed back. Those that are at rest are given up first.
        """
        ...

    async def stop(self) -> None:
        """Take nothing new, hand back what was not started, and end the iteration."""
        ...


class Delivery(Protocol):
    """The broker handing one message over."""

    @property
    def message(self) -> Message:
        """What was sent."""
        ...

    @property
    def queue(self) -> str:
        """The queue it came from."""
        ...

    @property
    def deliveries(self) -> int | None:
        """How often it has come back to the broker without being settled; None where unknown."""
        ...

    @property
    def is_lost(self) -> bool:
        """Whether the lease is known to be gone."""
        ...

    async def ack(self, *, hold: bool = False) -> None:
        """Tell the broker that the message is done with.

        Args:
            hold: Bring nothing new into this slot until `free()`: a thread that goes on still occupies it.

        Raises:
            LeaseLost: The delivery is no longer ours.
        """
        ...

    async def free(self) -> None:
        """Open a slot again that `ack(hold=True)` has closed."""
        ...

    async def release(self) -> None:
        """Give the message back. Not counted as a failed attempt.

        Raises:
            LeaseLost: The delivery is no longer ours.
        """
        ...

    async def reject(self) -> None:
        """Let the broker dead-letter the message itself.

        Raises:
            LeaseLost: The delivery is no longer ours.
        """
        ...

    async def lost(self) -> None:
        """Return when the lease is gone; never, while it lasts."""
        ...


class Mailbox(Protocol):
    """A reply queue."""

    @property
    def address(self) -> str:
        """What goes into `reply_to`. It changes when the queue was lost and a new one was opened."""
        ...

    def __aiter__(self) -> AsyncIterator[Message]:
        """Iterate the replies. Raises `ReplyLost` when the queue is gone; iterate again for the new one."""
        ...


@dataclass(frozen=True, slots=True)
class DeadLetterRecord:
    """Why a message was dead-lettered.

    Attributes:
        failure: The error.
        reason: In words: `attempts exhausted`, `no retry policy`, `invalid arguments` ...
        failed_at_ms: Milliseconds since the epoch.
        attempts: How often it ran.
        queue: The task queue.
        worker: Host and process id.
        history: The last attempts that failed, oldest first, this one included; at most 10, and 8 KB.
    """

    failure: Failure
    reason: str
    failed_at_ms: int
    attempts: int
    queue: str
    worker: str
    history: tuple[FailedAttempt, ...] = ()


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A parked message.

    Attributes:
        message: As it is parked.
        record: Why it is here; None where the broker itself has put it here.
        queue: The task queue that it came out of, or never reached; None where that is not known.
        failed_at_ms: When it was parked, in milliseconds since the epoch; None where that is not known.
        broker_reason: The broker's own word, where it has put it here: `rejected`, `delivery_limit`, `expired` ...
    """

    message: Message
    record: DeadLetterRecord | None
    queue: str | None = None
    failed_at_ms: int | None = None
    broker_reason: str | None = None


class DeadLetters(Protocol):
    """The dead-letter queue of one task queue; or the queue for what had nowhere to go, by its own name."""

    async def put(self, message: Message, record: DeadLetterRecord, *, timeout_s: float) -> None:
        """Park a copy of the message. Raises what `Broker.publish` raises."""
        ...

    async def count(self) -> int:
        """Return how many are parked. What somebody looks at in this moment is not counted.

        Raises:
            QueueGone: There is no such dead-letter queue.
        """
        ...

    def browse(self, *, limit: int | None = None) -> AsyncIterator[DeadLetter]:
        """Look at what is parked, oldest first. Nothing is changed by looking."""
        ...

    def take(self) -> AbstractAsyncContextManager[Taking]:
        """Take what is parked out of others' reach, to settle or to keep each letter.

        When the block ends, whatever was not settled is where it was. So it is after a crash, and after a lost
        connection, which is raised.
        """
        ...


class TakenLetter(Protocol):
    """One letter that was taken."""

    @property
    def letter(self) -> DeadLetter:
        """The letter."""
        ...


class Taking(Protocol):
    """Letters that were taken, oldest first, each of them once, and no more than were there at the beginning.

    Each is undecided until it is settled or kept. An adapter may give kept ones back meanwhile, while none is
    undecided: so decide soon.
    """

    @property
    def total(self) -> int:
        """How many there were at the beginning."""
        ...

    def __aiter__(self) -> AsyncIterator[TakenLetter]:
        """Iterate the letters. Raises `BrokerError` where the connection is lost, or the queue is gone."""
        ...

    async def settle(self, taken: Sequence[TakenLetter]) -> None:
        """Remove letters. When this returns, the broker has heard it.

        Raises:
            BrokerError: The connection was lost: they may still be there.
        """
        ...

    def keep(self, taken: TakenLetter) -> None:
        """Decide that a letter stays."""
        ...
