"""The tasks of one app: declaring them, finding them, importing the modules that declare them.

Invariant: a name stands for one function. Names are made of the app's name and the function's, never of a module's,
so that they are the same wherever the function is imported from, and when its file is run as a script.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar, Unpack, overload

from asyncq.callback import CallsBack
from asyncq.context import TaskContext
from asyncq.errors import ConfigurationError, DuplicateTask, InvalidOption, TaskDefinitionError, UnknownTask
from asyncq.keeping import keeping_of_options
from asyncq.middleware import checked_middleware
from asyncq.options import RunOptions, TaskOptions, time_limits_of
from asyncq.queue_names import check_app_name, check_queue_name
from asyncq.rate import Rate
from asyncq.retry import policies_of
from asyncq.scripts import make_script_importable
from asyncq.signature import Sender
from asyncq.task import (
    AnyTask,
    AsyncContextTask,
    AsyncTask,
    Declaration,
    ThreadContextTask,
    ThreadTask,
    make_task,
)

__all__ = ["ContextTaskDecorator", "TaskDecorator", "TaskRegistry", "queues_of"]

P = ParamSpec("P")
R = TypeVar("R")

MAX_TASK_NAME_BYTES = 255
"""A task's name travels as the message's `type`, which AMQP limits to 255 bytes."""


class TaskDecorator(Protocol):
    """What `@app.task(...)` returns."""

    # An `async def` function fits both overloads, and the first one counts: mypy's warning is about values whose
    # type does not say that they are coroutine functions.
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> ThreadTask[P, R]: ...


class ContextTaskDecorator(Protocol):
    """What `@app.task(pass_context=True, ...)` returns."""

    @overload
    def __call__(  # type: ignore[overload-overlap]  # see TaskDecorator
        self, function: Callable[Concatenate[TaskContext, P], Coroutine[Any, Any, R]], /
    ) -> AsyncContextTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[TaskContext, P], R], /) -> ThreadContextTask[P, R]: ...


class TaskRegistry:
    """The tasks of one app.

    Args:
        name: The app's name: the default of its tasks' queue, and the first part of their names.
        include: Modules that declare tasks; `load_included` imports them.
        sender: What sends the tasks.

    Raises:
        ConfigurationError: The name cannot be used; or the file that runs as the program is being imported a second
            time, so that there would be two apps.
    """

    def __init__(self, name: str, include: Sequence[str], sender: Sender) -> None:
        check_app_name(name)
        if isinstance(include, str):
            raise ConfigurationError(f"include={include!r} must be a list of modules: include=[{include!r}].")
        for module in include:
            if not isinstance(module, str):
                raise ConfigurationError(f"include= takes the names of modules, such as 'shop.tasks', not {module!r}.")
        make_script_importable(name)
        self.name = name
        self.include = tuple(include)
        self._sender = sender
        self._tasks: dict[str, AnyTask] = {}
        self._sources: dict[str, _Source] = {}

    @property
    def tasks(self) -> Mapping[str, AnyTask]:
        """The declared tasks by name; read-only, and always up to date."""
        return MappingProxyType(self._tasks)

    def get(self, name: str) -> AnyTask:
        """Return the task of this name.

        Raises:
            UnknownTask: There is none; the message names those that are spelt alike.
        """
        try:
            return self._tasks[name]
        except KeyError:
            raise UnknownTask(self._unknown(name)) from None

    @overload
    def task(  # type: ignore[overload-overlap]  # see TaskDecorator
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R]: ...
    @overload
    def task(self, function: Callable[P, R], /) -> ThreadTask[P, R]: ...
    @overload
    def task(self, /, *, pass_context: Literal[True], **options: Unpack[TaskOptions]) -> ContextTaskDecorator: ...
    @overload
    def task(self, /, *, pass_context: Literal[False] = False, **options: Unpack[TaskOptions]) -> TaskDecorator: ...
    def task(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        pass_context: bool = False,
        **options: Unpack[TaskOptions],
    ) -> Any:
        """Declare a function as a task; with parentheses or without.

        `async def` functions run on the worker's event loop, `def` functions in threads, or, with
        `run_in="process"`, in processes of their own.

        Args:
            function: The function, where the decorator is used without parentheses.
            pass_context: The function takes the `TaskContext` as its first parameter.
            **options: See `TaskOptions`: name, queue, retry, time_limit, soft_time_limit, run_in, max_concurrency,
                rate, reply, on_failure, keep, result_ttl, middleware.

        Raises:
            TaskDefinitionError: The function cannot be a task; the message names the parameter and the remedy.
            DuplicateTask: The name is taken by another function.
            InvalidQueueName: The queue's name cannot be used.
            InvalidOption: Another option cannot be used.
        """
        _check_options(options)

        def declare(function: Callable[..., Any]) -> AnyTask:
            declaration = self._declaration(function, options, pass_context=pass_context)
            task = make_task(function, declaration, self._sender)
            self._add(task)
            return task

        return declare if function is None else declare(function)

    def load_included(self) -> None:
        """Import the modules of `include`, so that their tasks are declared. A second call does nothing new.

        Raises:
            ConfigurationError: A module is missing, or fails while it is imported; its error is the cause.
        """
        for module in self.include:
            _import(module, f"AsyncQ({self.name!r}, include=[...])")

    def resolve(self) -> None:
        """Resolve the annotations that named something which did not exist when their task was declared.

        Raises:
            TaskDefinitionError: One still cannot be resolved, or cannot travel.
        """
        for task in self._tasks.values():
            task.resolve()

    def _declaration(
        self,
        function: Callable[..., Any],
        options: TaskOptions,
        *,
        pass_context: bool,
    ) -> Declaration:
        name, rate = options.get("name"), options.get("rate")
        if name is None:
            name = f"{self.name}.{_function_name(function)}"
            _check_task_name(name)
        queue = options.get("queue") or self.name
        time_limit_s, soft_time_limit_s = time_limits_of(options, "@task")
        return Declaration(
            name=name,
            queue=queue,
            run=RunOptions(
                retry=policies_of(options["retry"], "@task(retry=...)") if "retry" in options else None,
                time_limit_s=time_limit_s,
                rate=None if rate is None else Rate.of(rate, "@task(rate=...)"),
                on_failure=self._on_failure(options.get("on_failure"), name, queue),
                soft_time_limit_s=soft_time_limit_s,
                run_in=options.get("run_in"),
                max_concurrency=options.get("max_concurrency"),
                middleware=checked_middleware(options.get("middleware"), "@task(middleware=...)"),
            ),
            reply=options.get("reply", True),
            keeping=keeping_of_options(options.get("keep"), options.get("result_ttl"), "@task"),
            pass_context=pass_context,
        )

    def _on_failure(self, callback: Any, name: str, queue: str) -> CallsBack | None:
        """Return what calls back; a plain function is declared as a task, so that it runs at least once."""
        if callback is None:
            return None
        if callable(getattr(callback, "as_callback", None)):
            calls_back: CallsBack = callback
            return calls_back
        if not callable(callback):
            raise InvalidOption(
                f"@task(on_failure=...) takes a task, a signature or a function of a FailedTask, not {callback!r}."
            )
        task_name = f"{name}.on_failure"
        _check_task_name(task_name)
        task = make_task(
            callback, Declaration(name=task_name, queue=queue, run=RunOptions(), reply=False), self._sender
        )
        self._add(task)
        return task

    def _add(self, task: AnyTask) -> None:
        source = _Source.of(task)
        known = self._tasks.get(task.name)
        if known is not None and not source.replaces(self._sources[task.name]):
            raise DuplicateTask(
                f"The task name {task.name!r} is taken: it stands for {self._sources[task.name]}, and {source} "
                "would get it too. Give one of them another name: @app.task(name=...)."
            )
        self._tasks[task.name] = task
        self._sources[task.name] = source

    def _unknown(self, name: str) -> str:
        import difflib  # noqa: PLC0415 - only wanted where something is wrong

        close = difflib.get_close_matches(name, self._tasks, n=3)
        if close:
            hint = f"Did you mean {' or '.join(repr(item) for item in close)}?"
        elif self._tasks:
            hint = f"Its tasks are: {', '.join(sorted(self._tasks)[:20])}."
        else:
            hint = "It has no tasks: import the module that declares them, or name it in AsyncQ(include=[...])."
        return f"The app {self.name!r} has no task {name!r}. {hint}"


def queues_of(tasks: Mapping[str, AnyTask]) -> list[str]:
    """Return the queues that these tasks are sent to: their own, and those where one calls another back.

    Raises:
        InvalidOption: What was given as an `on_failure=` cannot be a callback.
    """
    queues = {task.queue for task in tasks.values()}
    for task in tasks.values():
        callback = None if task.run.on_failure is None else task.run.on_failure.as_callback()
        while callback is not None:
            if callback.task in tasks:  # another app's queue is for that app to declare
                queues.add(callback.queue)
            callback = callback.on_failure
    return sorted(queues)


def _check_options(options: TaskOptions) -> None:
    known = TaskOptions.__annotations__
    for name in options:
        if name not in known:
            raise InvalidOption(
                f"@task has no option {name!r}. Known options: pass_context, {', '.join(sorted(known))}."
            )
    if options.get("name") is not None:
        _check_task_name(options["name"])
    if options.get("queue") is not None:
        check_queue_name(options["queue"])
    policies_of(options.get("retry"), "@task(retry=...)")
    if not isinstance(options.get("reply", True), bool):
        raise InvalidOption(f"@task(reply=...) takes True or False, not {options['reply']!r}.")
    time_limits_of(options, "@task")
    if options.get("run_in") not in (None, "thread", "process"):
        raise InvalidOption(
            f'@task(run_in=...) takes "thread" or "process", for a `def` function, not {options["run_in"]!r}. An '
            "`async def` function runs on the worker's event loop."
        )
    limit = options.get("max_concurrency")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise InvalidOption(f"@task(max_concurrency=...) takes 1 or more attempts at once, not {limit!r}.")
    keeping_of_options(options.get("keep"), options.get("result_ttl"), "@task")
    if options.get("rate") is not None:
        Rate.of(options["rate"], "@task(rate=...)")


def _function_name(function: Callable[..., Any]) -> str:
    name = getattr(function, "__name__", None)
    if not isinstance(name, str) or not name.isidentifier():
        raise TaskDefinitionError(f"{function!r} has no name that a task could have. Give it one: @app.task(name=...).")
    return name


def _check_task_name(name: Any) -> None:
    if not isinstance(name, str) or not name or not name.isprintable() or name != name.strip():
        raise InvalidOption(f"@task(name=...) takes a printable name without spaces around it, not {name!r}.")
    if len(name.encode()) > MAX_TASK_NAME_BYTES:
        raise InvalidOption(
            f"The task name {name!r} has more than {MAX_TASK_NAME_BYTES} bytes, which AMQP cannot carry."
        )


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a function was declared, to tell a function that is declared again from a second one of its name."""

    function: str
    file: str | None
    line: int
    changed_ns: int
    interactive: bool

    @classmethod
    def of(cls, task: AnyTask) -> _Source:
        code = getattr(task.function, "__code__", None)
        names = getattr(task.function, "__globals__", {})
        file = None if code is None else code.co_filename
        return cls(
            function=f"{task.__module__}.{task.__qualname__}",
            file=file,
            line=0 if code is None else code.co_firstlineno,
            changed_ns=_changed_ns(file),
            interactive=names.get("__name__") == "__main__" and "__file__" not in names,
        )

    def replaces(self, known: _Source) -> bool:
        """Tell whether this is `known` once more: its module was reloaded, or typed in again at a prompt."""
        if self.function != known.function:
            return False
        if self.interactive:
            return True  # each change in a notebook's cell declares its functions anew
        # In a file that is the same as before, another line is another function.
        return self.file == known.file and (self.line == known.line or self.changed_ns != known.changed_ns)

    def __str__(self) -> str:
        return self.function if self.file is None else f"{self.function} ({self.file}:{self.line})"


def _changed_ns(file: str | None) -> int:
    try:
        return 0 if file is None else Path(file).stat().st_mtime_ns
    except OSError:
        return 0  # a prompt, or a module out of an archive


def _import(module: str, wanted_by: str) -> None:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(f"{error.name}.")):
            raise ConfigurationError(f"The module {module!r} of {wanted_by} failed to import: {error}.") from error
        raise ConfigurationError(
            f"There is no module {error.name!r}, which {wanted_by} names"
            f"{'' if module == error.name else f' as {module!r}'}. Check the spelling, and that its folder is on the "
            "path that Python imports from: the folder that you start in, or PYTHONPATH."
        ) from error
    except (Exception, SystemExit) as error:
        raise ConfigurationError(
            f"The module {module!r} of {wanted_by} failed to import: {type(error).__name__}: {error}"
        ) from error
