"""What a running task knows and can do: `TaskContext`, and `current_context()` for helper code.

Invariant: nothing here can fail a task because of the broker. One context belongs to one attempt.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from contextvars import ContextVar, Token
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic

from pydantic import ValidationError
from typing_extensions import TypeVar  # with a default, which Python 3.11's has not

from asyncq.body import FAILED, object_of
from asyncq.errors import BrokerError, MalformedMessage, NoContext, NoResources
from asyncq.loggers import get_logger
from asyncq.message import LATEST_MS, Headers, Message, expires_at_ms_of
from asyncq.results import Progress
from asyncq.sync import TaskSync

if TYPE_CHECKING:  # its import takes longer than all of asyncq's
    from structlog.typing import FilteringBoundLogger

    from asyncq.failed_task import FailedTask

__all__ = ["ContextServices", "TaskContext", "current_context", "log_values", "no_lifespan", "running"]

ResourcesT = TypeVar("ResourcesT", default=Any)


def no_lifespan() -> Any:
    """Say that there are no resources.

    Raises:
        NoResources: Always.
    """
    raise NoResources(
        "This app has no resources: ctx.resources is what its lifespan yields. Give it one: "
        "`@app.lifespan` above `async def lifespan(app): ... yield resources ...`."
    )


@dataclass(frozen=True, slots=True)
class ContextServices:
    """What a worker lends to the attempts that it runs: made once, shared by all contexts.

    Attributes:
        publish_progress: Publishes one update to the sender of a message.
        sync_of: Makes the blocking calls of a context.
        resources: Returns what the app's lifespan has yielded.
    """

    publish_progress: Callable[[Message, Progress], Awaitable[None]]
    sync_of: Callable[[TaskContext], TaskSync]
    resources: Callable[[], Any] = no_lifespan


class TaskContext(Generic[ResourcesT]):
    """One attempt of a task, as the task's own code sees it.

    Annotated as `TaskContext[Resources]`, its `resources` have that type for type checkers.

    Args:
        message: The message that is being run.
        queue: The queue that it came from.
        attempt: The number of this attempt.
        services: The worker's.
        deadline_ms: When the time limit, or the deadline, ends, in milliseconds since the epoch; None where there is
            none.
        on_progress: Called with each progress update, before it is published.

    Attributes:
        message: The message that is being run.
        queue: The queue that it came from.
        attempt: The number of this attempt; 1 is the first.
    """

    __slots__ = (
        "_cancelled",
        "_deadline_ms",
        "_log",
        "_on_progress",
        "_progress",
        "_services",
        "_soft_limit_reached",
        "_sync",
        "attempt",
        "message",
        "queue",
    )

    def __init__(
        self,
        message: Message,
        queue: str,
        attempt: int,
        services: ContextServices,
        deadline_ms: int | None = None,
        on_progress: Callable[[Progress], object] | None = None,
    ) -> None:
        self.message = message
        self.queue = queue
        self.attempt = attempt
        self._services = services
        self._deadline_ms = deadline_ms
        self._on_progress = on_progress
        self._progress: Progress | None = None
        self._cancelled = False
        self._soft_limit_reached = False
        self._log: FilteringBoundLogger | None = None
        self._sync: TaskSync | None = None

    def __repr__(self) -> str:
        return f"TaskContext({self.task_name!r}, task_id={self.task_id!r}, attempt={self.attempt})"

    @property
    def task_id(self) -> str:
        """The task's id: the same for every attempt."""
        return self.message.task_id

    @property
    def task_name(self) -> str:
        """The task's name on the wire."""
        return self.message.type

    @property
    def headers(self) -> Headers:
        """The message's headers; read-only."""
        return MappingProxyType(self.message.headers)

    @property
    def deadline(self) -> datetime | None:
        """When this attempt is stopped: an aware `datetime` in UTC, or None.

        It is the end of its time limit, or the `deadline=` of its send, whichever comes first.
        """
        if self._deadline_ms is None:
            return None
        return datetime.fromtimestamp(min(self._deadline_ms, LATEST_MS) / 1000, UTC)

    @property
    def last_progress(self) -> Progress | None:
        """What this attempt has told last by `progress()`; None where it has told nothing."""
        return self._progress

    @property
    def expires(self) -> datetime | None:
        """From when on no attempt of this task may begin: an aware `datetime` in UTC, or None.

        It does not end an attempt that has begun; a task whose work is then worth nothing looks here.
        """
        expires_ms = expires_at_ms_of(self.message)
        return None if expires_ms is None else datetime.fromtimestamp(expires_ms / 1000, UTC)

    @property
    def failed(self) -> FailedTask | None:
        """The task that has finally failed, where this one is its `on_failure` with arguments of its own; else None."""
        if b'failed"' not in self.message.body:
            return None
        value = object_of(self.message.body).get(FAILED)
        if value is None:
            return None
        from asyncq.failed_task import FailedTask  # noqa: PLC0415 - its model is made when it is first needed

        try:
            return FailedTask.model_validate(value)
        except ValidationError as error:
            raise MalformedMessage(f"{FAILED} of task {self.task_id} tells of no failed task: {error}") from error

    @property
    def cancelled(self) -> bool:
        """Whether this attempt shall stop: it was cancelled, its time is up, the worker stops, or its lease is lost.

        An `async def` task is cancelled by the loop, a task in a process of its own is killed half a second later. A
        thread cannot be stopped: a `def` task that takes long asks here now and then, and returns or raises.
        """
        return self._cancelled

    def mark_cancelled(self) -> None:
        """Ask the task to stop. For the worker."""
        self._cancelled = True

    @property
    def soft_limit_reached(self) -> bool:
        """Whether this attempt's soft time limit is over.

        Where the code can be interrupted, `SoftTimeLimit` has been raised in it. Nothing can be raised in a thread
        without harm, so a `def` task that takes long asks here now and then.
        """
        return self._soft_limit_reached

    def mark_soft_limit(self) -> None:
        """Tell the task that its soft time limit is over. For the worker."""
        self._soft_limit_reached = True

    @property
    def log(self) -> FilteringBoundLogger:
        """A logger that has the task's id, name and attempt bound to it: `ctx.log.info("sent", to=address)`."""
        if self._log is None:
            self._log = get_logger("asyncq.task").bind(task_id=self.task_id, task=self.task_name, attempt=self.attempt)
        return self._log

    @property
    def resources(self) -> ResourcesT:
        """What the app's lifespan has yielded: a database pool, an HTTP client.

        Raises:
            NoResources: The app has no lifespan, or the task runs in a process of its own.
        """
        resources: ResourcesT = self._services.resources()
        return resources

    @property
    def sync(self) -> TaskSync:
        """Blocking `send`, `call` and `progress`, for `def` tasks. They use the worker's connections."""
        if self._sync is None:
            self._sync = self._services.sync_of(self)
        return self._sync

    async def progress(self, done: float, total: float | None = None, label: str | None = None, **details: Any) -> None:
        """Tell how far this task is: its sender, and whoever looks into the result store.

        A sender that wants no reply is told nothing, and the store keeps an update every half a second
        (`progress_interval_s` of the settings), and the last one. Where the broker does not take the update, that is
        logged, and the task goes on.

        Args:
            done: How much is done.
            total: Of how much.
            label: What the task is at, for people.
            **details: Whatever else is worth saying; JSON values.

        Raises:
            TypeError: A number is none, the label is no text, or a detail is no JSON value.
        """
        update = Progress(_number("done", done), _number("total", total), _text(label), _json_object(details))
        self._progress = update
        if self._on_progress is not None:
            self._on_progress(update)
        try:
            await self._services.publish_progress(self.message, update)
        except BrokerError as error:
            self.log.warning("progress was not published", error=str(error), done=done, total=total)


_LARGEST = sys.float_info.max


def _number(name: str, value: Any) -> Any:
    if value is None and name == "total":
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -_LARGEST <= value <= _LARGEST:
        raise TypeError(f"progress({name}=...) takes a finite number, not {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    return "one so large" if isinstance(value, int) and abs(value) > _LARGEST else repr(value)


def _text(label: Any) -> str | None:
    if label is not None and not isinstance(label, str):
        raise TypeError(f"progress(label=...) takes a string, not {label!r}")
    return label


def _json_object(details: dict[str, Any]) -> dict[str, Any]:
    if details:
        try:
            json.dumps(details, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise TypeError(f"progress(...) takes JSON values as details: {error}") from error
    return details


_current: ContextVar[TaskContext] = ContextVar("asyncq_context")


class running:  # noqa: N801 - a context manager, used as a function
    """Make a context the current one within a `with` block.

    Code that a thread runs sees it when the thread was given a copy of the context variables.
    """

    __slots__ = ("_context", "_token")

    def __init__(self, context: TaskContext) -> None:
        self._context = context
        self._token: Token[TaskContext] | None = None

    def __enter__(self) -> TaskContext:
        self._token = _current.set(self._context)
        return self._context

    def __exit__(self, *_: object) -> None:
        if self._token is not None:
            _current.reset(self._token)


def current_context() -> TaskContext:
    """Return the context of the task that is running, for code that was not given it.

    Raises:
        NoContext: No task is running here.
    """
    try:
        return _current.get()
    except LookupError:
        raise NoContext(
            "No task is running here. current_context() works in a task, and in what it calls or starts; "
            "a thread that you start yourself needs contextvars.copy_context().run(...)."
        ) from None


def log_values() -> dict[str, Any]:
    """Return what a log line says of the task that is running here; nothing where none is."""
    context = _current.get(None)
    if context is None:
        return {}
    return {
        "task_id": context.task_id,
        "task": context.task_name,
        "attempt": context.attempt,
        "queue": context.queue,
    }
