"""A worker's parts, put together on the broker in memory and on a clock that tests move.

`WatchedBroker` is the shipped broker; it writes down what it was asked, and fails when it was told to. A
`LoneDelivery` needs no broker: it is for tests that hand one delivery to one part of the worker.
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

from asyncq.breaker import BreakerDefaults
from asyncq.broker import Address, DeadLetter, Delay, Identity, Publication, Queue, QueueSpec, ReplyTo
from asyncq.errors import AsyncQError, LeaseLost
from asyncq.interpreter import FlowRules
from asyncq.memory.broker import MemoryBroker
from asyncq.memory.consumer import MemorySubscription
from asyncq.memory.node import MemoryNode
from asyncq.message import Message, new_id
from asyncq.middleware import Middleware
from asyncq.options import RunOptions
from asyncq.rabbitmq.topology import Names
from asyncq.recording import Recorder
from asyncq.retry import RetryDefaults, policies_of
from asyncq.settings import Settings
from asyncq.sync import LoopBridge
from asyncq.task import Declaration, make_task
from asyncq.testing.clock import ManualClock
from asyncq.tracing.spans import Tracing
from asyncq.worker.admission import Admission
from asyncq.worker.attempt import AnyTask, Limits
from asyncq.worker.attempts import Attempts
from asyncq.worker.callbacks import Callbacks
from asyncq.worker.concurrency import Concurrency
from asyncq.worker.continuing import Continuing
from asyncq.worker.execution import Execution, RunRules
from asyncq.worker.intake import Intake
from asyncq.worker.process_pool.pool import ProcessPool
from asyncq.worker.publishing import Publishing
from asyncq.worker.recording import Recording
from asyncq.worker.repeats import Repeats
from asyncq.worker.revocations import Revocations
from asyncq.worker.runners import ThreadPool
from asyncq.worker.services import make_services
from asyncq.worker.settlement import Settlement
from asyncq.worker.slot import Slot
from asyncq.worker.traces import Traces

SETTINGS = Settings()
NAMES = Names(SETTINGS.namespace)


class LoneDelivery:
    """One delivery of no broker. `settled` tells how it was settled: `acked`, `released`, `rejected`, or None."""

    def __init__(self, message: Message, log: list[str], *, deliveries: int | None = None) -> None:
        self.message = message
        self.queue = "work"
        self.deliveries = deliveries
        self.settled: str | None = None
        self.fail_ack: Exception | None = None
        self._lost = asyncio.get_running_loop().create_future()
        self._log = log

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

    async def free(self) -> None: ...

    async def release(self) -> None:
        self._settle("released")

    async def reject(self) -> None:
        self._settle("rejected")
        self._log.append("reject")

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


class WatchedBroker(MemoryBroker):
    """The broker in memory, watched.

    Attributes:
        log: The order of what happened: `publish`, `dead letter`, `reply succeeded`; a lone delivery adds its `ack`.
        attempted: What was to be published, failures included.
        published: What was taken.
        declared: The queues that were declared.
        subscriptions: The last one of each queue.
    """

    def __init__(self, node: MemoryNode) -> None:
        super().__init__(SETTINGS, node)
        self.node = node
        self.log: list[str] = []
        self.attempted: list[Message] = []
        self.published: list[Publication] = []
        self.declared: list[str] = []
        self.subscriptions: dict[str, MemorySubscription] = {}
        self._failures: defaultdict[str, deque[AsyncQError]] = defaultdict(deque)

    def fail(self, what: str, *errors: AsyncQError) -> None:
        """Let the next publishes of a kind fail: `publish`, `dead letter`, `reply`."""
        self._failures[what].extend(errors)

    def put(self, queue: str, message: Message) -> None:
        """Put a message into a queue, as a producer does."""
        self.node.declare(NAMES, [QueueSpec(queue, SETTINGS.delivery_limit)])
        assert self.node.put(queue, message)

    def end(self, queue: str, error: Exception) -> None:
        """Let the subscription of a queue end with an error of the adapter."""
        self.subscriptions[queue]._finish(error)

    def replies(self) -> list[Message]:
        return [item.message for item in self.published if isinstance(item.to, ReplyTo)]

    def copies(self) -> list[Publication]:
        return [item for item in self.published if item.to == Queue("work")]

    async def ensure(self, queues: Collection[QueueSpec]) -> None:
        self.declared += [spec.name for spec in queues]
        await super().ensure(queues)

    async def publish(self, message: Message, to: Address, *, delay: Delay | None = None, timeout_s: float) -> None:
        is_letter = to.queue == NAMES.dead_queue("work")
        kind = "reply" if isinstance(to, ReplyTo) else "dead letter" if is_letter else "publish"
        self.attempted.append(message)
        if self._failures[kind]:
            raise self._failures[kind].popleft()
        await super().publish(message, to, delay=delay, timeout_s=timeout_s)
        self.log.append(f"reply {message.type}" if kind == "reply" else kind)
        self.published.append(Publication(message, to, delay))

    @contextlib.asynccontextmanager
    async def consume(self, queue: str, *, slots: int) -> AsyncIterator[MemorySubscription]:
        async with super().consume(queue, slots=slots) as subscription:
            self.subscriptions[queue] = subscription
            yield subscription


class Kit:
    """A worker's parts. `make_kit` makes one: its broker is open, and has the queues `work` and `caller`."""

    def __init__(
        self,
        *,
        time_limit_s: float = 60,
        patience_s: float = 300,
        poison_after: int = SETTINGS.poison_after,
        defaults: RetryDefaults | None = None,
        places: int = 4,
        recorder: Recorder | None = None,
        middleware: Sequence[Middleware] = (),
        overrides: Mapping[Callable[..., Any], Callable[..., Any]] | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.clock = ManualClock()
        self.node = MemoryNode(self.clock)
        self.node.announced = True
        self.node.declare(NAMES, [QueueSpec("work", SETTINGS.delivery_limit)])
        self.node.declare_own("caller", NAMES)
        self.broker = WatchedBroker(self.node)
        self.tasks: dict[str, AnyTask] = {}
        self.attempts = Attempts(self.broker, self.clock)
        self.threads = ThreadPool(places)
        self.intake = Intake(self.tasks, self.clock, unknown_task_patience_s=patience_s, poison_after=poison_after)
        sender: Any = None  # nothing here sends tasks
        services = make_services(self.broker, sender, LoopBridge(asyncio.get_running_loop()), self.clock, timeout_s=1)
        self.revocations = Revocations(self.clock, keep_s=3600)
        limits = Limits(self.clock, time_limit_s)
        traces = Traces(tracing)
        rules = RunRules(
            limits,
            defaults or RetryDefaults(),
            self.revocations,
            Repeats(recorder),
            tuple(middleware),
            {} if overrides is None else overrides,
            traces,
        )
        self.recording = Recording(recorder, self.tasks, "host:1", interval_s=0.5, lease_s=time_limit_s)
        self.processes = ProcessPool(2, sender)
        self.admission = Admission(self.threads, self.processes, Concurrency(self.clock), self.revocations)
        self.execution = Execution(self.intake, self.attempts, self.admission, rules, services, self.recording)
        self.publishing = Publishing(
            self.broker, self.clock, tracing, timeout_s=1, delivery_limit=SETTINGS.delivery_limit
        )
        self.callbacks = Callbacks(self.tasks, self.publishing, self.clock, exchange="asyncq.tasks")
        self.continuing = Continuing(
            self.broker,
            self.publishing,
            self.callbacks,
            self.recording,
            self.clock,
            FlowRules("asyncq.tasks", 16 * 1024 * 1024, 3600),
            timeout_s=30,
        )
        self.settlement = Settlement(self.publishing, self.continuing, self.recording, self.clock, worker="host:1")
        self.slot = Slot(self.execution, self.settlement, self.attempts, self.clock, traces=traces)

    def task(self, **options: Any) -> Callable[[Callable[..., Any]], AnyTask]:
        """Declare a function as a task of queue `work`, named as the function."""

        def declare(function: Callable[..., Any]) -> AnyTask:
            retry = policies_of(options["retry"], "retry=") if "retry" in options else None
            run = RunOptions(
                retry,
                options.get("time_limit_s"),
                soft_time_limit_s=options.get("soft_time_limit_s"),
                run_in=options.get("run_in"),
                max_concurrency=options.get("max_concurrency"),
                middleware=tuple(options.get("middleware", ())),
            )
            declaration = Declaration(
                name=function.__name__, queue="work", run=run, pass_context=options.get("pass_context", False)
            )
            no_sender: Any = None
            task = make_task(function, declaration, no_sender)
            self.tasks[task.name] = task
            return task

        return declare

    def delivery(self, name: str, body: Any = None, **fields: Any) -> LoneDelivery:
        """Return a delivery of a message; `body` is bytes, or what becomes JSON."""
        deliveries = fields.pop("deliveries", None)
        return LoneDelivery(make_message(name, body, **fields), self.broker.log, deliveries=deliveries)

    async def letters(self) -> list[DeadLetter]:
        """Return the dead letters of queue `work`."""
        return [letter async for letter in self.broker.dead_letters("work").browse()]


async def make_kit(**options: Any) -> Kit:
    """Return the parts of a worker, their broker open. See `Kit` for the options."""
    kit = Kit(**options)
    await kit.broker.open(Identity("shop", "worker"))
    return kit


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
    broker: WatchedBroker
    settings: Settings
    retry_defaults: RetryDefaults = field(default_factory=RetryDefaults)
    breakers: BreakerDefaults = field(default_factory=BreakerDefaults)
    recorder: Recorder | None = None
    name: str = "shop"
    middlewares: Sequence[Middleware] = ()
    tracing: Tracing | None = None
    dependency_overrides: Mapping[Callable[..., Any], Callable[..., Any]] = field(default_factory=dict)
    lifespan: AbstractAsyncContextManager[Any] | None = None

    def open_lifespan(self) -> AbstractAsyncContextManager[Any] | None:
        return self.lifespan


__all__ = ["App", "Kit", "LoneDelivery", "WatchedBroker", "make_kit", "make_message"]
