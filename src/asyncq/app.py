"""`AsyncQ`: the front door. It declares tasks, opens connections, sends, and makes workers.

Thin: everything that it does is done by a module below it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from asyncq.breaker import DEFAULT_BREAKER, CircuitBreaker, breaker_defaults_of
from asyncq.broker import Broker, Identity, QueueSpec
from asyncq.client import Client
from asyncq.clock import Clock, SystemClock
from asyncq.errors import AccessRefused, AlreadyOpen, InvalidOption, NotOpen, WrongLoop
from asyncq.importable import refuse_while_imported
from asyncq.leadership import Leadership
from asyncq.lifespan import Lifespan, checked_lifespan
from asyncq.loggers import Redact, checked_redact, get_logger
from asyncq.loop_thread import AppSync
from asyncq.middleware import Middleware, checked_middleware
from asyncq.options import QueueOptions, retry_defaults_of
from asyncq.queue_names import check_queue_name
from asyncq.recording import Recorder, recorder_of
from asyncq.registry import queues_of
from asyncq.retry import RetryPolicy
from asyncq.scheduler.declared import ScheduleOptions, Schedules
from asyncq.sending_app import SendingApp
from asyncq.sends import SendObserver
from asyncq.settings import Settings, load_settings
from asyncq.signature import Signature
from asyncq.tracing.switch import tracing_of
from asyncq.workflow.workflow import Workflow

if TYPE_CHECKING:
    from asyncq.dead_letters.queue import DeadLetterQueue
    from asyncq.scheduler.service import Scheduler
    from asyncq.task_results import TaskResults
    from asyncq.tracing.spans import Tracing
    from asyncq.worker.worker import Worker

__all__ = ["AsyncQ"]

log = get_logger("asyncq.app")

R = TypeVar("R")
L = TypeVar("L", bound=Lifespan)

BrokerFactory = Callable[[Settings], Broker]


class AsyncQ(SendingApp):
    """An app: its tasks, its settings, and its way to the broker.

    Args:
        name: Letters, digits, `.`, `_`, `-`. The default prefix of its tasks' names, and their default queue.
        broker: The broker's URL (several, separated by commas, are tried in turn); without it
            `ASYNCQ_BROKER_URL`. `memory://` is a broker in this process, for tests and for trying things out. Or a
            function that makes another broker from the settings.
        include: Modules with more of its tasks; a worker imports them before it consumes.
        retry: The retry policies of tasks that have none of their own: one, or several. Without it, and without
            those of the queue, a failure is final.
        breaker: When the slots of a queue pause, because nearly every delivery fails; None for never. Queues may
            have their own.
        queues: What is special about some queues, by their names; see `asyncq.options.QueueOptions`.
        schedules: When tasks run by themselves, by the task's name: a timing, such as `Cron("0 8 * * *")` or a number
            of seconds, or a mapping of `when`, `arguments`, the options of `schedule()` and those of a send.
        results: The URL of the result store, such as `sqlite:///results.db`; without it `ASYNCQ_RESULTS`, or none.
        middleware: What runs around each attempt in a worker, from the outside to the inside: `async def` functions
            of an `AttemptInfo` and a `CallNext`. See `asyncq.middleware`.
        lifespan: What a worker enters before it consumes, and leaves after its last task: an async generator of this
            app, or an async context manager. What it yields is `ctx.resources`. See `asyncq.lifespan`.
        redact: Sees each line of a worker's log before it is written, as a dict, and returns what is written.
        **settings: Any field of `asyncq.settings.Settings`, in place of its `ASYNCQ_*` variable.

    Attributes:
        dependency_overrides: What stands in for which dependency: `app.dependency_overrides[session] = fake_session`
            in a test. Workers look here at each attempt.
        redact: The redaction hook, for who configures the logs.

    Raises:
        ConfigurationError: The name or a setting cannot be used.

    Example:
        >>> app = AsyncQ("shop")
        >>> @app.task
        ... async def add(a: int, b: int) -> int:
        ...     return a + b
        >>> add
        Task('shop.add')
    """

    def __init__(  # noqa: PLR0913 - what an app can be told
        self,
        name: str,
        *,
        broker: str | BrokerFactory | None = None,
        include: Sequence[str] = (),
        retry: RetryPolicy | Sequence[RetryPolicy] | None = None,
        breaker: CircuitBreaker | None = DEFAULT_BREAKER,
        queues: Mapping[str, QueueOptions] | None = None,
        schedules: Mapping[str, Any] | None = None,
        results: str | None = None,
        middleware: Sequence[Middleware] = (),
        lifespan: Lifespan | None = None,
        redact: Redact | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(name, include, self)
        url = broker if isinstance(broker, str) else None
        self.settings = load_settings(**({"broker_url": url} if url is not None else {}), results=results, **settings)
        self.retry_defaults = retry_defaults_of(retry, queues or {})
        self.breakers = breaker_defaults_of(breaker, queues or {})
        self.schedules = Schedules(schedules or {}, self.settings.timezone)
        self.middlewares = list(checked_middleware(middleware, "AsyncQ(middleware=...)"))
        self.redact = checked_redact(redact)
        self.dependency_overrides: dict[Callable[..., Any], Callable[..., Any]] = {}
        self._lifespan = None if lifespan is None else checked_lifespan(lifespan, "AsyncQ(lifespan=...)")
        self.sync = AppSync(self._connect)
        self._broker_factory: BrokerFactory = broker if callable(broker) else _broker_at_url
        self._clock: Clock = SystemClock()
        self._send_observers: list[SendObserver] = []
        self._broker: Broker | None = None
        self._client: Client | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = os.getpid()
        self._entered = 0
        self._opening: asyncio.Lock | None = None

    # --- life

    async def __aenter__(self) -> Self:
        await self._enter("producer")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._leave()

    @asynccontextmanager
    async def open(self, *, role: str = "producer") -> AsyncIterator[Self]:
        """Open the app's connections, as `async with app:` does.

        Args:
            role: What this process is, for the connections' names in the management UI.

        Raises:
            BrokerUnavailable: No broker answers.
            BrokerRefused: Wrong credentials, no such virtual host, a missing permission.
            WrongLoop: The app is open in another event loop of this process.
        """
        await self._enter(role)
        try:
            yield self
        finally:
            await self._leave()

    @contextmanager
    def using(
        self, broker: BrokerFactory, clock: Clock | None = None, *, resources: Any = None, **settings: Any
    ) -> Iterator[Self]:
        """Let the app use another broker, another clock and other settings until the block ends: for tests.

        Args:
            broker: Makes the broker from the settings.
            clock: For timestamps, delays and limits; by default the machine's.
            resources: What `ctx.resources` is meanwhile, in place of what the app's lifespan yields; None for that.
            **settings: Fields of `asyncq.settings.Settings` that differ meanwhile.

        Raises:
            AlreadyOpen: The app, or its `sync`, is open: what is open would go on with the other broker.
            ConfigurationError: A setting cannot be used.
        """
        if self._entered > 0 or self.sync.is_open:
            raise AlreadyOpen(
                f"The app {self.name!r} is open, so its broker cannot be changed. Do it before `async with app:`, and "
                "after `app.sync.close()` where app.sync was used."
            )
        before = self._broker_factory, self._clock, self.settings, self._lifespan
        self.settings = load_settings(**{**self.settings.model_dump(), **settings})
        self._broker_factory, self._clock = broker, clock or SystemClock()
        if resources is not None:
            self._lifespan = lambda _: nullcontext(resources)
        try:
            yield self
        finally:
            self.sync.close()
            self._broker_factory, self._clock, self.settings, self._lifespan = before

    async def _enter(self, role: str) -> None:
        loop = asyncio.get_running_loop()
        if self._pid != os.getpid() or (self._loop is not None and self._loop.is_closed()):
            self._forget()  # after a fork, or after a loop that ended without leaving the app
        if self._loop is not loop and (self._entered > 0 or (self._opening is not None and self._opening.locked())):
            raise WrongLoop(
                f"The app {self.name!r} is open in another event loop of this process. One app lives in one loop: "
                "use app.sync from other threads, or make a second AsyncQ."
            )
        if self._opening is None or self._loop is not loop:
            self._loop, self._opening = loop, asyncio.Lock()
        async with self._opening:
            if self._entered == 0:
                await self._open_broker(role)
            self._entered += 1

    async def _open_broker(self, role: str) -> None:
        self.resolve()
        self._broker, self._client = await self._connect(role)

    async def _connect(self, role: str) -> tuple[Broker, Client]:
        """Open a broker, with the queues of this app's tasks: who sends first need not wait for the first worker."""
        refuse_while_imported(self.name)
        recorder, tracing = recorder_of(self.settings, self._clock), tracing_of(self.settings)
        broker = self._broker_factory(self.settings)
        await broker.open(Identity(self.name, role))
        try:
            await self._ensure_queues(broker)
            if recorder is not None:
                await recorder.open()
        except BaseException:
            await broker.close()
            raise
        client = Client(self.name, broker, self.settings, self._clock, recorder, tracing)
        client.outbox.observers = self._send_observers
        return broker, client

    async def _ensure_queues(self, broker: Broker) -> None:
        try:
            await broker.ensure([QueueSpec(name, self.settings.delivery_limit) for name in self._queues()])
        except AccessRefused as error:
            log.warning("queues cannot be declared by this user, so they must exist", cause=str(error))

    def _queues(self) -> list[str]:
        return queues_of(self.tasks)

    async def _leave(self) -> None:
        self._entered -= 1
        if self._entered > 0:
            return
        broker, client = self._broker, self._client
        self._broker = self._client = None
        try:
            if client is not None:
                await client.close()
        finally:
            if broker is not None:
                await broker.close()

    def _forget(self) -> None:
        self._broker = self._client = self._loop = self._opening = None
        self._entered = 0
        self._pid = os.getpid()

    @property
    def broker(self) -> Broker:
        """The open broker.

        Raises:
            NotOpen: The app was not entered.
        """
        if self._broker is None or self._pid != os.getpid():
            raise NotOpen(self._not_open())
        return self._broker

    @property
    def recorder(self) -> Recorder | None:
        """The open way to the result store; None where the app has none. For workers and integrations."""
        return self._open_client().recorder

    @property
    def tracing(self) -> Tracing | None:
        """What makes the spans of this app while it is open; None where it makes none. For workers."""
        return self._open_client().tracing

    @property
    def results(self) -> TaskResults:
        """What the result store knows of all tasks: listing, reading many, preparing, cleaning."""
        from asyncq.task_results import TaskResults  # noqa: PLC0415 - for who needs it only

        return TaskResults(lambda: self.recorder, lambda: recorder_of(self.settings, self._clock))

    def _open_client(self) -> Client:
        if self._client is None or self._pid != os.getpid():
            raise NotOpen(self._not_open())
        if asyncio.get_running_loop() is not self._loop:
            raise WrongLoop(
                f"The app {self.name!r} is open in another event loop. Send there, or use app.sync from other threads."
            )
        return self._client

    def _not_open(self) -> str:
        return (
            f"The app {self.name!r} is not open. Write `async with app:` around the code that sends, or use app.sync "
            "in code without an event loop."
        )

    def observe_sends(self, observer: SendObserver) -> None:
        """Let a function hear of each task that this process sends from now on, and how the broker has answered.

        Args:
            observer: Called with an `asyncq.sends.Sent`, in the sender's event loop. It must take no time.
        """
        self._send_observers.append(observer)

    # --- working

    def worker(self, queues: Mapping[str, int] | None = None) -> Worker:
        """Return a worker for this app's tasks; `await worker.run()` inside `async with app:` starts it.

        Args:
            queues: Slots for each queue. Without it: every queue that the app's tasks name, with the settings' slots.

        Raises:
            ConfigurationError: An included module cannot be imported.
            NotOpen: The app was not entered.
        """
        # Producers never run a worker: they need not pay for its import.
        from asyncq.worker.worker import Worker  # noqa: PLC0415

        self.load_included()
        self.resolve()
        if queues is None:
            queues = dict.fromkeys(self._queues() or [self.name], self.settings.slots)
        return Worker(self, self._open_client(), queues, self._clock)

    def middleware(self, function: Middleware) -> Middleware:
        """Let a function run around each attempt, inside of the middleware that the app has so far: `@app.middleware`.

        A worker takes what there is when it starts.

        Raises:
            InvalidOption: It is no `async def` function of two parameters.
        """
        self.middlewares.extend(checked_middleware([function], "@app.middleware"))
        return function

    def lifespan(self, function: L) -> L:
        """Let workers enter a function's context before they consume, and leave it after their last task.

        Raises:
            InvalidOption: It is no function of the app that yields once; or the app has a lifespan already.
        """
        if self._lifespan is not None:
            raise InvalidOption(
                f"The app {self.name!r} has a lifespan already. Open all that it needs in one function."
            )
        self._lifespan = checked_lifespan(function, "@app.lifespan")
        return function

    def open_lifespan(self) -> AbstractAsyncContextManager[Any] | None:
        """Return the app's lifespan, to be entered; None where it has none. For workers."""
        return None if self._lifespan is None else self._lifespan(self)

    def schedule(
        self, name: str, task: Signature[Any] | Workflow[Any] | str, when: Any, **options: Unpack[ScheduleOptions]
    ) -> None:
        """Let a task or a workflow run by itself, wherever a scheduler runs: `asyncq scheduler`, `worker --scheduler`.

        Args:
            name: Of the schedule: letters, digits, `.`, `_`, `-`. It is part of its tasks' ids.
            task: A signature or a workflow, with arguments and the options of the send; or the name of a task without
                arguments.
            when: `Cron`, `Every` or `At`; a number of seconds or a `timedelta` means `Every`.
            **options: See `asyncq.scheduler.declared.ScheduleOptions`.

        Raises:
            InvalidOption: A value cannot be used, or there is such a schedule already.
        """
        self.schedules.add(name, task if isinstance(task, Workflow) else self.signature(task), when, options)

    def scheduler(self) -> Scheduler:
        """Return a scheduler for this app; `await scheduler.run()` inside `async with app:` starts it.

        Raises:
            ConfigurationError: An included module cannot be imported, or a schedule cannot be used.
            NotOpen: The app was not entered.
        """
        from asyncq.scheduler.service import Scheduler  # noqa: PLC0415 - for who needs it only
        from asyncq.scheduler.work import Work  # noqa: PLC0415

        client, broker = self._open_client(), self.broker
        if not isinstance(broker, Leadership):
            raise InvalidOption(f"{type(broker).__name__} has no leadership, so no scheduler can run on it.")
        self.load_included()
        self.resolve()
        scheduled = self.schedules.resolve(self.signature, self.tasks)
        timeout_s = self.settings.publish_timeout_s
        work = Work(self.name, scheduled, self.schedules.tz, client.send_by, self._clock, timeout_s)
        return Scheduler(work, broker)

    def dead_letters(self, queue: str) -> DeadLetterQueue:
        """Return the dead letters of a task queue: to count, look at, send back, remove.

        Args:
            queue: The task queue; or `asyncq.unroutable`, for what had nowhere to go.

        Raises:
            NotOpen: The app was not entered.
            InvalidQueueName: No task queue has such a name.
        """
        from asyncq.dead_letters.queue import DeadLetterQueue  # noqa: PLC0415 - for who needs it only

        if queue != f"{self.settings.namespace}.unroutable":
            check_queue_name(queue)
        return DeadLetterQueue(
            queue, self.broker, self._clock, self._check_body, self.settings.publish_timeout_s, self.recorder
        )

    def _check_body(self, task: str, body: bytes) -> None:
        known = self.tasks.get(task)
        if known is not None:
            known.arguments.decode(body)


def _broker_at_url(settings: Settings) -> Broker:
    # Each program needs one of them only; and who brings another broker need not load the AMQP client.
    if settings.broker_url.startswith("memory:"):
        from asyncq.memory.broker import MemoryBroker  # noqa: PLC0415
        from asyncq.memory.node import node_of  # noqa: PLC0415

        return MemoryBroker(settings, node_of(settings.broker_url))
    from asyncq.rabbitmq.adapter import RabbitMQ  # noqa: PLC0415

    return RabbitMQ(settings)
