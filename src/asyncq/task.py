"""A declared task: a function with a name, a queue, and typed ways to send it.

Invariant: a task knows what it is and how it is sent (`Sender`), and no app. Calling it runs the function here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, ParamSpec, TypeVar, Unpack

from pydantic import ValidationError

from asyncq.annotations import signature_of
from asyncq.arguments import Arguments
from asyncq.callback import Callback
from asyncq.context import TaskContext
from asyncq.errors import InvalidOption, TaskDefinitionError
from asyncq.importable import refuse_local
from asyncq.keeping import KEEP_EVERYTHING, Keeping
from asyncq.options import RunOptions, Sending, SendOptions
from asyncq.results import ResultHandle
from asyncq.return_values import Results
from asyncq.signature import Sender, Signature, callback_of
from asyncq.workflow.binding import bound
from asyncq.workflow.mapping import chunked, mapped, starmapped
from asyncq.workflow.node import Takes
from asyncq.workflow.partial import PartialSignature
from asyncq.workflow.values import Group

__all__ = [
    "AnyTask",
    "AsyncContextTask",
    "AsyncTask",
    "Declaration",
    "RunsIn",
    "Task",
    "TaskWithOptions",
    "ThreadContextTask",
    "ThreadTask",
    "make_task",
]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
M = TypeVar("M")

RunsIn = Literal["loop", "thread", "process"]

_DEFAULTS = Sending()


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """What `@app.task` was told, with the defaults filled in.

    Attributes:
        name: The task's name on the wire.
        queue: The queue that it is sent to unless a send says otherwise.
        run: How it runs in a worker.
        reply: Whether senders get a result back unless they say otherwise.
        pass_context: Whether the function's first parameter gets the context.
        keeping: What the result store keeps unless a send says otherwise.
    """

    name: str
    queue: str
    run: RunOptions
    reply: bool = True
    pass_context: bool = False
    keeping: Keeping = KEEP_EVERYTHING


class Task(Generic[P, R]):
    """A declared task. `@app.task` makes them.

    `P` are the parameters that travel (without the context), `R` is what the function returns; for an `async def`
    function what awaiting it returns.

    Attributes:
        name: The task's name on the wire.
        queue: The queue that it is sent to unless a send says otherwise.
        run: How it runs in a worker.
        reply: Whether senders get a result back unless they say otherwise.
        pass_context: Whether the function's first parameter gets the context.
        keeping: What the result store keeps unless a send says otherwise.
        is_async: Whether the function is `async def`.
        runs_in: Where it runs in a worker: on its event loop, in a thread, or in a process of its own.
        function: The function itself.
        arguments: Its parameters as JSON.
        results: Its return type as JSON.
    """

    def __init__(self, function: Callable[..., Any], declaration: Declaration, sender: Sender) -> None:
        self.name = declaration.name
        self.queue = declaration.queue
        self.run = declaration.run
        self.reply = declaration.reply
        self.pass_context = declaration.pass_context
        self.keeping = declaration.keeping
        self.is_async = _is_async(function)
        self.runs_in: RunsIn = "loop" if self.is_async else declaration.run.run_in or "thread"
        self.function = function
        self.arguments = Arguments.of(function, pass_context=self.pass_context, task=self.name)
        self.results: Results[R] = Results.of(
            signature_of(function, f"task {self.name!r}").return_annotation, function=function, task=self.name
        )
        self._sender = sender
        # What help(), doctest and inspect ask for.
        self.__wrapped__ = function
        self.__doc__ = function.__doc__
        self.__module__ = getattr(function, "__module__", type(self).__module__)
        self.__name__ = getattr(function, "__name__", self.name)
        self.__qualname__ = getattr(function, "__qualname__", self.__name__)

    def __repr__(self) -> str:
        return f"Task({self.name!r})"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function here and now, without a broker: for unit tests, and for one task that uses another."""
        return self.function(*args, **kwargs)

    def resolve(self) -> None:
        """Resolve annotations that named something which did not exist at declaration.

        Raises:
            TaskDefinitionError: They still cannot be resolved.
            InvalidOption: What was given as `on_failure=` cannot be a callback.
        """
        self.arguments.resolve()
        if self.arguments.dependencies and self.runs_in == "process":
            names = ", ".join(self.arguments.dependencies)
            raise TaskDefinitionError(
                f"task {self.name!r} runs in a process of its own, and its dependencies ({names}) live in the "
                "worker's. Make what it needs in its own code; or leave run_in= out."
            )
        self.results.resolve()
        if self.run.on_failure is not None:
            self.run.on_failure.as_callback()

    def s(self, /, *args: P.args, **kwargs: P.kwargs) -> Signature[R]:
        """Bind arguments, and return the task ready to be sent.

        Raises:
            pydantic.ValidationError: A value does not fit its parameter.
            TypeError: Missing, unknown or too many arguments.
        """
        return self._signature(args, kwargs, _DEFAULTS)

    def si(self, /, *args: P.args, **kwargs: P.kwargs) -> Signature[R]:
        """Bind arguments, as `s` does, for a step of a workflow that takes nothing of what came before it."""
        return replace(self.s(*args, **kwargs), immutable=True)

    def partial(self, /, *args: Any, **kwargs: Any) -> PartialSignature[R]:
        """Bind some of the arguments: the first of the others takes what comes before the task in a workflow.

        Raises:
            InvalidWorkflow: The task takes no such argument, or none is left, or more than one that has no default.
            pydantic.ValidationError: A value does not fit its parameter.
        """
        return self._partial(args, kwargs, _DEFAULTS)

    def map(self: Takes[T, M], items: Iterable[T], /) -> Group[list[M]]:
        """Return the group that calls the task once with each item: a message for each.

        Raises:
            pydantic.ValidationError: An item does not fit the first parameter.
        """
        return mapped(self, items)

    def starmap(self, items: Iterable[tuple[Any, ...]], /) -> Group[list[R]]:
        """Return the group that calls the task once with each tuple of arguments: a message for each.

        Raises:
            pydantic.ValidationError: A value does not fit its parameter.
            TypeError: Missing or too many arguments.
        """
        return starmapped(self, items)

    def chunks(self, items: Iterable[Any], size: int, /, *, star: bool = False) -> Group[list[list[R]]]:
        """Return the group that calls the task once with each item, `size` items a message.

        A chunk is one task: its items run one after the other, under one time limit; where one fails, the chunk has
        failed, and a retry runs all of them again.

        Args:
            items: The items, or with `star=True` tuples of arguments.
            size: How many calls a message makes.
            star: Each item is a tuple of arguments, as for `starmap`.

        Raises:
            InvalidWorkflow: The size is no positive number.
            pydantic.ValidationError: A value does not fit its parameter.
        """
        return chunked(self, items, size, star=star)

    async def send(self, /, *args: P.args, **kwargs: P.kwargs) -> ResultHandle[R]:
        """Publish the task, and return once the broker has confirmed it.

        Raises:
            pydantic.ValidationError: A value does not fit its parameter.
            TypeError: Missing, unknown or too many arguments.
            NotOpen: The app was not entered.
            PublishError: The broker did not take it, or it is unknown whether it did.
        """
        return await self._sender.send_signature(self._signature(args, kwargs, _DEFAULTS))

    async def call(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Publish the task and wait for its result.

        Raises:
            ResultError: The task failed, or no result came in time (`options(timeout=...)`).
            Exception: And all that `send` raises.
        """
        return await self._sender.call_signature(self._signature(args, kwargs, _DEFAULTS))

    def handle(self, task_id: str) -> ResultHandle[R]:
        """Return a handle for a task of this kind that any process has sent, typed as this one's.

        Args:
            task_id: The task's id.

        Raises:
            NotOpen: The app was not entered.
            InvalidOption: That is no id.
        """
        return self._sender.handle_of(task_id, self.name, self.results.decode)

    def options(self, **options: Unpack[SendOptions]) -> TaskWithOptions[P, R]:
        """Return the task with options for one send: `await task.options(delay=10).send(...)`.

        Raises:
            InvalidOption: A value cannot be used.
        """
        return TaskWithOptions(self, Sending.of(options))

    def as_callback(self) -> Callback:
        """Return what is sent where this task is an `on_failure=`: it gets the `FailedTask` as its arguments.

        Raises:
            InvalidOption: It takes other arguments.
        """
        return self._callback(_DEFAULTS)

    def _callback(self, sending: Sending) -> Callback:
        from asyncq.failed_task import EXAMPLE  # noqa: PLC0415 - its model is made when it is first needed

        try:
            self.arguments.encode_named(EXAMPLE)
        except Exception as error:
            if not _is_about_arguments(error):
                raise InvalidOption(
                    f"on_failure={self!r}: its only parameter must take a FailedTask, or a model of some of its fields "
                    f"with extra='ignore'. For other arguments bind them, {self.__name__}.s(...), and read "
                    f"current_context().failed. ({_first_line(error)})"
                ) from error
        return callback_of(self.name, self.queue, None, sending)

    def _signature(self, args: tuple[Any, ...], kwargs: dict[str, Any], sending: Sending) -> Signature[R]:
        body = self.arguments.encode(args, kwargs)
        return Signature(
            self.name,
            body,
            self.queue,
            self.reply,
            self.results.decode,
            sending,
            self.keeping,
            task=self,
            sender=self._sender,
        )

    def _partial(self, args: tuple[Any, ...], kwargs: dict[str, Any], sending: Sending) -> PartialSignature[R]:
        body, into = bound(self.arguments, self.name, args, kwargs)
        return PartialSignature(
            self.name,
            body,
            into,
            self.queue,
            self.reply,
            self.results.decode,
            sending,
            self.keeping,
            self,
            self._sender,
        )


class TaskWithOptions(Generic[P, R]):
    """A task with the options of a send. `Task.options` makes them; they can be used again."""

    __slots__ = ("_sending", "_task")

    def __init__(self, task: Task[P, R], sending: Sending) -> None:
        self._task = task
        self._sending = sending

    def __repr__(self) -> str:
        return f"{self._task!r}.options({self._sending!r})"

    def s(self, /, *args: P.args, **kwargs: P.kwargs) -> Signature[R]:
        """Bind arguments, as `Task.s` does."""
        return self._task._signature(args, kwargs, self._sending)  # noqa: SLF001 - the two are one concept

    def si(self, /, *args: P.args, **kwargs: P.kwargs) -> Signature[R]:
        """Bind arguments, as `Task.si` does."""
        return replace(self.s(*args, **kwargs), immutable=True)

    def partial(self, /, *args: Any, **kwargs: Any) -> PartialSignature[R]:
        """Bind some of the arguments, as `Task.partial` does."""
        return self._task._partial(args, kwargs, self._sending)  # noqa: SLF001 - the two are one concept

    def map(self: Takes[T, M], items: Iterable[T], /) -> Group[list[M]]:
        """Return the group that calls the task once with each item, as `Task.map` does."""
        return mapped(self, items)

    def starmap(self, items: Iterable[tuple[Any, ...]], /) -> Group[list[R]]:
        """Return the group that calls the task once with each tuple, as `Task.starmap` does."""
        return starmapped(self, items)

    def chunks(self, items: Iterable[Any], size: int, /, *, star: bool = False) -> Group[list[list[R]]]:
        """Return the group that makes `size` calls a message, as `Task.chunks` does."""
        return chunked(self, items, size, star=star)

    def as_callback(self) -> Callback:
        """Return what is sent where this is an `on_failure=`, as `Task.as_callback` does."""
        return self._task._callback(self._sending)  # noqa: SLF001 - the two are one concept

    async def send(self, /, *args: P.args, **kwargs: P.kwargs) -> ResultHandle[R]:
        """Publish the task with these options, as `Task.send` does."""
        return await self._task._sender.send_signature(self.s(*args, **kwargs))  # noqa: SLF001 - the two are one concept

    async def call(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Publish the task with these options and wait for its result, as `Task.call` does."""
        return await self._task._sender.call_signature(self.s(*args, **kwargs))  # noqa: SLF001 - the two are one concept


AnyTask = Task[..., Any]


# The four kinds differ in how they are called here, and only in the eyes of a type checker.


class AsyncTask(Task[P, R]):
    """A task of an `async def` function."""

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Return the function's coroutine, to be awaited here."""
        coroutine: Coroutine[Any, Any, R] = self.function(*args, **kwargs)
        return coroutine


class ThreadTask(Task[P, R]):
    """A task of a `def` function; a worker runs it in a thread."""

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here and now."""
        result: R = self.function(*args, **kwargs)
        return result


class AsyncContextTask(Task[P, R]):
    """A task of an `async def` function that takes the context first."""

    def __call__(self, context: TaskContext, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Return the function's coroutine, to be awaited here."""
        coroutine: Coroutine[Any, Any, R] = self.function(context, *args, **kwargs)
        return coroutine


class ThreadContextTask(Task[P, R]):
    """A task of a `def` function that takes the context first; a worker runs it in a thread."""

    def __call__(self, context: TaskContext, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here and now."""
        result: R = self.function(context, *args, **kwargs)
        return result


def make_task(function: Callable[..., Any], declaration: Declaration, sender: Sender) -> AnyTask:
    """Make the kind of task that fits the function.

    Raises:
        TaskDefinitionError: The function cannot be a task.
    """
    _refuse_non_functions(function, declaration.name)
    _refuse_place(function, declaration)
    kinds: dict[tuple[bool, bool], type[AnyTask]] = {
        (True, False): AsyncTask,
        (False, False): ThreadTask,
        (True, True): AsyncContextTask,
        (False, True): ThreadContextTask,
    }
    return kinds[_is_async(function), declaration.pass_context](function, declaration, sender)


def _refuse_place(function: Callable[..., Any], declaration: Declaration) -> None:
    """Refuse to run a function where it cannot run."""
    run_in = declaration.run.run_in
    if run_in is not None and _is_async(function):
        raise TaskDefinitionError(
            f"task {declaration.name!r} has run_in={run_in!r}, and its function is `async def`, which runs on the "
            "worker's event loop. Make it `def`, or leave run_in= out."
        )
    if run_in == "process":
        refuse_local(function, declaration.name)


def _is_about_arguments(error: Exception) -> bool:
    """Tell whether only the failed task's arguments do not fit: the example has none, and a user's may be typed."""
    return isinstance(error, ValidationError) and all("arguments" in item["loc"] for item in error.errors())


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(str(part) for part in first['loc']) or 'the arguments'}: {first['msg']}"
    return f"{type(error).__name__}: {error}"


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - an object with an async __call__
    )


def _refuse_non_functions(function: Any, name: str) -> None:
    if isinstance(function, Task):
        raise TaskDefinitionError(f"task {name!r}: {function!r} is a task already. Declare its function a second time.")
    if isinstance(function, type) or not callable(function):
        raise TaskDefinitionError(f"task {name!r}: {function!r} is no function.")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TaskDefinitionError(
            f"task {name!r} is a generator, and a task returns once. Return a list, "
            "and tell how far it is by progress()."
        )
    owner, _, _ = getattr(function, "__qualname__", "").rpartition(".")
    first = next(iter(signature_of(function, f"task {name!r}").parameters), None)
    if owner and not owner.endswith("<locals>") and first in {"self", "cls"}:
        raise TaskDefinitionError(
            f"task {name!r} is a method of {owner}, and its object cannot travel. Declare a function at module level."
        )
