"""Failure injection: this task fails twice, that one hangs.

    faults.fail(charge_card, times=2, error=ConnectionError("the bank is away"))
    faults.hang(make_report)

Faults befall what a worker runs. A task that is called like a function, by a test or by another task, has none. A task
with `run_in="process"` runs in a thread from its first fault on: the test's own process decides how it fails.

Invariant: a task's own function runs when no fault is left for it, and all is as before when the test ends.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from asyncq.context import TaskContext, current_context
from asyncq.errors import NoContext, UnknownTask
from asyncq.task import RunsIn, Task

__all__ = ["Faults"]

AnyTask = Task[..., Any]

_LOOK_EVERY_S = 0.005

_HANG = object()
"""In place of an error: the code never returns by itself."""


class Faults:
    """Lets tasks of an app fail or hang when a worker runs them.

    Args:
        tasks: The app's tasks by name.
        changed: Called when a task begins or ends to hang; from a thread where the task runs in one.
    """

    def __init__(self, tasks: Mapping[str, AnyTask], changed: Callable[[], object]) -> None:
        self._tasks = tasks
        self._changed = changed
        self._faults: dict[str, deque[Any]] = {}
        self._originals: dict[str, tuple[AnyTask, Callable[..., Any], RunsIn]] = {}
        self._released = threading.Event()
        self._hanging: set[TaskContext] = set()
        self._lock = threading.Lock()

    def fail(
        self, task: AnyTask | str, *, times: int = 1, error: BaseException | type[BaseException] | None = None
    ) -> None:
        """Let the next attempts of a task fail, before its own code runs.

        Args:
            task: The task, or its name on the wire.
            times: How many attempts.
            error: What they raise; by default a `RuntimeError` that says it was injected. `Retry(...)`, `Reject(...)`
                and `Snooze(...)` work as well.

        Raises:
            UnknownTask: The app has no such task.
            ValueError: `times` is less than 1.
            TypeError: `error` cannot be raised.
        """
        found = self._found(task)
        if not (error is None or isinstance(error, BaseException) or _is_error_class(error)):
            raise TypeError(f"error= takes an exception, such as ConnectionError('away'), not {error!r}.")
        self._add(found, times, RuntimeError(f"injected failure of {found.name}") if error is None else error)

    def hang(self, task: AnyTask | str, *, times: int = 1) -> None:
        """Let the next attempts of a task hang until they are cancelled: by their time limit, or by the test's end.

        A `def` task hangs politely: it looks at `ctx.cancelled`, as such a task should.

        Args:
            task: The task, or its name on the wire.
            times: How many attempts.

        Raises:
            UnknownTask: The app has no such task.
            ValueError: `times` is less than 1.
        """
        self._add(self._found(task), times, _HANG)

    @property
    def hanging(self) -> list[TaskContext]:
        """The attempts that hang at the moment. Those that were told to stop are on their way to their end."""
        with self._lock:
            return [context for context in self._hanging if not context.cancelled]

    @contextmanager
    def injected(self) -> Iterator[None]:
        """Undo everything in the end."""
        try:
            yield
        finally:
            self._released.set()
            self._faults.clear()
            for task, function, runs_in in self._originals.values():
                task.function, task.runs_in = function, runs_in
            self._originals.clear()

    # --- inside

    def _found(self, task: AnyTask | str) -> AnyTask:
        name = task if isinstance(task, str) else task.name
        found = self._tasks.get(name)
        if found is None:
            raise UnknownTask(f"This app has no task {name!r}. Its tasks: {', '.join(sorted(self._tasks)) or 'none'}.")
        return found

    def _add(self, task: AnyTask, times: int, fault: object) -> None:
        if self._released.is_set():
            raise RuntimeError("The test has ended, and its failure injection with it.")
        if times < 1:
            raise ValueError(f"times={times!r}: a fault befalls 1 attempt or more.")
        if task.name not in self._originals:
            self._originals[task.name] = task, task.function, task.runs_in
            self._faults[task.name] = deque()
            wrap = self._wrapped_on_loop if task.is_async else self._wrapped_in_thread
            task.function = wrap(task.name, task.function)
            if task.runs_in == "process":  # its faults are here, and no process has them
                task.runs_in = "thread"
        self._faults[task.name].extend([fault] * times)

    def _wrapped_on_loop(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        async def with_faults(*args: Any, **kwargs: Any) -> Any:
            if self._next(name) is _HANG:
                with self._counted():
                    await asyncio.get_running_loop().create_future()
            return await function(*args, **kwargs)

        return with_faults

    def _wrapped_in_thread(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def with_faults(*args: Any, **kwargs: Any) -> Any:
            if self._next(name) is _HANG:
                with self._counted() as context:
                    while not (context.cancelled or self._released.wait(_LOOK_EVERY_S)):
                        pass
                raise TimeoutError("this task hung, as the test has asked for, until it was cancelled")
            return function(*args, **kwargs)

        return with_faults

    def _next(self, name: str) -> object:
        """Take the next fault, and raise it if it is an error."""
        try:
            if current_context().task_name != name:
                return None  # one task calls another's function
            fault = self._faults[name].popleft()
        except (NoContext, KeyError, IndexError):
            return None
        if isinstance(fault, BaseException):
            raise fault.with_traceback(None)  # one error for several attempts: each has its own traceback
        if isinstance(fault, type):
            raise fault
        return fault

    @contextmanager
    def _counted(self) -> Iterator[TaskContext]:
        context = current_context()
        with self._lock:
            self._hanging.add(context)
        self._changed()
        try:
            yield context
        finally:
            with self._lock:
                self._hanging.discard(context)
            self._changed()


def _is_error_class(error: object) -> bool:
    return isinstance(error, type) and issubclass(error, BaseException)
