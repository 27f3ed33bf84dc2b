"""A broker in memory behind the seam `asyncq.broker`, and a worker's parts put together on it.

It keeps what the seam promises: a publish is in the queue when it returns, a delivery that is not settled comes
back when its lease ends, a held slot takes nothing new. Tests may let it fail: `fail` gives the next publishes an
error, `end_leases` is a lost connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from asyncq.broker import (
    Address,
    BrokerStatus,
    DeadLetter,
    DeadLetterRecord,
    Delay,
    Exchange,
    Identity,
    Mailbox,
    Publication,
    Queue,
    QueueSpec,
)
from asyncq.clock import SystemClock
from asyncq.errors import LeaseLost, PublishError, QueueGone, Unroutable
from asyncq.message import Message, new_id
from asyncq.options import RunOptions
from asyncq.retry import RetryPolicy
from asyncq.settings import Settings
from asyncq.sync import LoopBridge
from asyncq.task import Declaration, make_task
from asyncq.worker.attempt import AnyTask, Limits
from asyncq.worker.attempts import Attempts
from asyncq.worker.execution import Execution, RunRules
from asyncq.worker.intake import Intake
from asyncq.worker.publishing import Publishing
from asyncq.worker.runners import ThreadPool
from asyncq.worker.services import make_services
from asyncq.worker.settlement import Settlement
from asyncq.worker.slot import Slot


class MemoryDelivery:
    """One delivery. `settled` tells how it was settled: `acked`, `released`, `rejected`, or None."""

    def __init__(
        self,
        message: Message,
        queue: str = "work",
        *,
        deliveries: int | None = None,
        log: list[str] | None = None,
        subscription: MemorySubscription | None = None,
    ) -> None:
        self.message = message
        self.queue = queue
        self.deliveries = deliveries
        self.settled: str | None = None
        self.held = False
        self.freed = False
        self.fail_ack: Exception | None = None
        self._lost = asyncio.get_running_loop().create_future()
        self._log = log if log is not None else []
        self._subscription = subscription

    def lose(self) -> None:
        """End the lease, as a lost connection does."""
        if not self._lost.done():
            self._lost.set_result(None)

    @property
    def is_lost(self) -> bool:
        return self._lost.done()

    async def ack(self, *, hold: bool = False) -> None:
        self._settle("acked")
        self._log.append("ack")
        self.held = hold
        if self._subscription is not None:
            self._subscription.settled(self, hold=hold)

    async def free(self) -> None:
        self.freed = True
        if self._subscription is not None:
            self._subscription.freed()

    async def release(self) -> None:
        self._settle("released")
        if self._subscription is not None:
            self._subscription.back(self.message)
            self._subscription.settled(self, hold=False)

    async def reject(self) -> None:
        self._settle("rejected")
        self._log.append("reject")
        if self._subscription is not None:
            self._subscription.settled(self, hold=False)

    async def lost(self) -> None:
        await asyncio.shield(self._lost)

    def _settle(self, how: str) -> None:
        if self._lost.done():
            raise LeaseLost(f"the lease of {self.message.task_id} is gone")
        if self.fail_ack is not None:
            error, self.fail_ack = self.fail_ack, None
            raise error
        assert self.settled is None, f"settled twice: {self.settled}, then {how}"
        self.settled = how


class MemorySubscription:
    """The deliveries of one queue, at most one for each free slot."""

    def __init__(self, broker: MemoryBroker, queue: str, slots: int) -> None:
        self._broker = broker
        self._queue = queue
        self._free = slots
        self._open: set[MemoryDelivery] = set()
        self._changed = asyncio.Condition()
        self._stopped = False
        self._gone: QueueGone | None = None

    def __aiter__(self) -> AsyncIterator[MemoryDelivery]:
        return self

    async def __anext__(self) -> MemoryDelivery:
        while True:
            if self._gone is not None:
                raise self._gone
            if self._stopped:
                raise StopAsyncIteration
            waiting = self._broker.queues[self._queue]
            if self._free and waiting:
                message = waiting.popleft()
                self._free -= 1
                delivery = MemoryDelivery(message, self._queue, log=self._broker.log, subscription=self)
                self._open.add(delivery)
                return delivery
            async with self._changed:
                await self._changed.wait()

    @property
    def open(self) -> tuple[MemoryDelivery, ...]:
        return tuple(self._open)

    def settled(self, delivery: MemoryDelivery, *, hold: bool) -> None:
        self._open.discard(delivery)
        self._free += not hold
        self.wake()

    def freed(self) -> None:
        self._free += 1
        self.wake()

    def back(self, message: Message) -> None:
        self._broker.queues[self._queue].appendleft(message)

    def end_leases(self) -> None:
        """What a lost connection does: every lease ends, the messages come again, with the same ids."""
        for delivery in sorted(self._open, key=lambda item: item.message.task_id, reverse=True):
            delivery.lose()
            self.back(delivery.message)
        self._free += len(self._open)
        self._open.clear()
        self.wake()

    def delete(self) -> None:
        """What the deletion of the queue does."""
        for delivery in self._open:
            delivery.lose()
        self._gone = QueueGone(f"queue {self._queue!r} was deleted")
        self.wake()

    def wake(self) -> None:
        async def notify() -> None:
            async with self._changed:
                self._changed.notify_all()

        self._broker.background(notify())

    async def pause(self) -> None:
        raise NotImplementedError

    async def resume(self) -> None:
        raise NotImplementedError

    async def stop(self) -> None:
        self._stopped = True
        async with self._changed:
            self._changed.notify_all()


class MemoryDeadLetters:
    def __init__(self, broker: MemoryBroker, queue: str) -> None:
        self._broker = broker
        self._queue = queue

    async def put(self, message: Message, record: DeadLetterRecord, *, timeout_s: float) -> None:
        self._broker.raise_failure("dead letter")
        self._broker.log.append("dead letter")
        self._broker.dead[self._queue].append(DeadLetter(message, record))

    async def browse(self, *, limit: int | None = None) -> AsyncIterator[DeadLetter]:
        for letter in list(self._broker.dead[self._queue])[:limit]:
            yield letter


@dataclass(frozen=True)
class Published:
    """One publish that was taken."""

    message: Message
    to: Address
    delay: Delay | None


@dataclass
class MemoryBroker:
    """Queues in memory. `log` is the order of what happened: `publish`, `dead letter`, `reply succeeded`, `ack`."""

    queues: dict[str, deque[Message]] = field(default_factory=lambda: defaultdict(deque))
    dead: dict[str, list[DeadLetter]] = field(default_factory=lambda: defaultdict(list))
    published: list[Published] = field(default_factory=list)
    attempted: list[Message] = field(default_factory=list)
    declared: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    unroutable: set[str] = field(default_factory=set)
    subscriptions: list[MemorySubscription] = field(default_factory=list)
    delays: bool = False
    _failures: dict[str, deque[PublishError]] = field(default_factory=lambda: defaultdict(deque))
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def fail(self, what: str, *errors: PublishError) -> None:
        """Let the next publishes of a kind fail: `publish`, `dead letter`, `reply`."""
        self._failures[what].extend(errors)

    def raise_failure(self, what: str) -> None:
        if self._failures[what]:
            raise self._failures[what].popleft()

    def background(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def replies(self, address: str = "caller") -> list[Message]:
        return [item.message for item in self.published if getattr(item.to, "name", None) == address]

    def copies(self, queue: str = "work") -> list[Published]:
        return [item for item in self.published if item.to == Queue(queue)]

    async def open(self, identity: Identity) -> None: ...

    async def close(self) -> None: ...

    def status(self) -> BrokerStatus:
        return BrokerStatus("ready")

    async def ensure(self, queues: Collection[QueueSpec]) -> None:
        self.declared += [spec.name for spec in queues]

    async def publish(self, message: Message, to: Address, *, delay: Delay | None = None, timeout_s: float) -> None:
        self.attempted.append(message)
        is_queue = isinstance(to, (Queue, Exchange))
        self.raise_failure("publish" if is_queue else "reply")
        if to.name in self.unroutable:
            raise Unroutable(f"there is no queue {to.name!r}")
        self.log.append("publish" if is_queue else f"reply {message.type}")
        self.published.append(Published(message, to, delay))
        if is_queue and not (delay and self.delays):
            self.put(to.key if isinstance(to, Exchange) else to.name, message)

    def put(self, queue: str, message: Message) -> None:
        self.queues[queue].append(message)
        for subscription in self.subscriptions:
            subscription.wake()

    async def publish_many(self, items: Sequence[Publication], *, timeout_s: float) -> list[PublishError | None]:
        for item in items:
            await self.publish(item.message, item.to, delay=item.delay, timeout_s=timeout_s)
        return [None] * len(items)

    @contextlib.asynccontextmanager
    async def consume(self, queue: str, *, slots: int) -> AsyncIterator[MemorySubscription]:
        subscription = MemorySubscription(self, queue, slots)
        self.subscriptions.append(subscription)
        yield subscription
        self.subscriptions.remove(subscription)

    def mailbox(self) -> AbstractAsyncContextManager[Mailbox]:
        raise NotImplementedError

    def dead_letters(self, queue: str) -> MemoryDeadLetters:
        return MemoryDeadLetters(self, queue)


class HandClock(SystemClock):
    """The wall clock stands still until a test moves it."""

    def __init__(self, now_ms: int = 1_800_000_000_000) -> None:
        self.ms = now_ms

    def now_ms(self) -> int:
        return self.ms


class Kit:
    """A worker's parts on a broker in memory."""

    def __init__(
        self,
        *,
        time_limit_s: float = 60,
        grace_s: float = 0.05,
        patience_s: float = 300,
        delivery_limit: int = 50,
        default_retry: RetryPolicy | None = None,
        places: int = 4,
        lease_patience_s: float = 60.0,
    ) -> None:
        self.broker = MemoryBroker()
        self.clock = HandClock()
        self.tasks: dict[str, AnyTask] = {}
        self.attempts = Attempts(self.broker, self.clock, lease_patience_s)
        self.threads = ThreadPool(places)
        self.intake = Intake(self.tasks, self.clock, unknown_task_patience_s=patience_s, delivery_limit=delivery_limit)
        sender: Any = None  # nothing here sends tasks
        services = make_services(self.broker, sender, LoopBridge(asyncio.get_running_loop()), self.clock, timeout_s=1)
        rules = RunRules(Limits(self.clock, time_limit_s, grace_s), default_retry)
        self.execution = Execution(self.intake, self.attempts, self.threads, rules, services)
        self.publishing = Publishing(self.broker, self.clock, timeout_s=1, delivery_limit=delivery_limit)
        self.settlement = Settlement(self.publishing, self.clock, worker="host:1")
        self.slot = Slot(self.execution, self.settlement, self.attempts, self.clock)

    def task(self, **options: Any) -> Callable[[Callable[..., Any]], AnyTask]:
        """Declare a function as a task of queue `work`, named as the function."""

        def declare(function: Callable[..., Any]) -> AnyTask:
            run = RunOptions(options.get("retry"), options.get("time_limit_s"))
            declaration = Declaration(
                name=function.__name__, queue="work", run=run, pass_context=options.get("pass_context", False)
            )
            no_sender: Any = None
            task = make_task(function, declaration, no_sender)
            self.tasks[task.name] = task
            return task

        return declare

    def delivery(self, name: str, body: Any = None, **fields: Any) -> MemoryDelivery:
        """Return a delivery of a message; `body` is bytes, or what becomes JSON."""
        deliveries = fields.pop("deliveries", None)
        message = make_message(name, body, **fields)
        return MemoryDelivery(message, "work", deliveries=deliveries, log=self.broker.log)


def make_message(name: str, body: Any = None, **fields: Any) -> Message:
    """Return a message as a producer sends it."""
    raw = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()
    return Message(
        **{"type": name, "body": raw, "task_id": "task-1", "message_id": new_id(), **fields},
    )


@dataclass(frozen=True)
class App:
    """What a `Worker` needs of an app."""

    tasks: Mapping[str, AnyTask]
    broker: MemoryBroker
    settings: Settings
    default_retry: RetryPolicy = field(default_factory=RetryPolicy)


__all__ = ["App", "HandClock", "Kit", "MemoryBroker", "MemoryDelivery", "MemorySubscription", "make_message"]
