"""Failure injection: this task fails twice, that one hangs.

    faults.fail(charge_card, times=2, error=ConnectionError("the bank is away"))
    faults.hang(make_report)

Invariant: a task's own function runs when no fault is left for it, and all is as before when the test ends.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from asyncq.context import current_context
from asyncq.errors import UnknownTask
from asyncq.task import Task

__all__ = ["Faults"]

AnyTask = Task[..., Any]

_LOOK_EVERY_S = 0.01


class _Hang:
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
        self._faults: defaultdict[str, deque[BaseException | _Hang]] = defaultdict(deque)
        self._originals: dict[str, Callable[..., Any]] = {}
        self._released = threading.Event()
        self.hanging: set[str] = set()
        """The ids of the tasks that hang at the moment."""

    def fail(self, task: AnyTask | str, *, times: int = 1, error: BaseException | None = None) -> None:
        """Let the next attempts of a task fail, before its own code runs.

        Args:
            task: The task, or its name on the wire.
            times: How many attempts.
            error: What they raise; by default a `RuntimeError` that says it was injected. `Retry(...)`, `Reject(...)`
                and `Snooze(...)` work as well.

        Raises:
            UnknownTask: The app has no such task.
        """
        found = self._prepared(task)
        fault = error or RuntimeError(f"injected failure of {found.name}")
        self._faults[found.name].extend([fault] * times)

    def hang(self, task: AnyTask | str, *, times: int = 1) -> None:
        """Let the next attempts of a task hang until they are cancelled: by their time limit, or by the test's end.

        A `def` task hangs politely: it looks at `ctx.cancelled`, as such a task should.

        Args:
            task: The task, or its name on the wire.
            times: How many attempts.

        Raises:
            UnknownTask: The app has no such task.
        """
        self._faults[self._prepared(task).name].extend([_Hang()] * times)

    @contextmanager
    def injected(self) -> Iterator[None]:
        """Undo everything in the end."""
        try:
            yield
        finally:
            self._released.set()
            self._faults.clear()
            for name, function in self._originals.items():
                self._tasks[name].function = function
            self._originals.clear()

    def _prepared(self, task: AnyTask | str) -> AnyTask:
        name = task if isinstance(task, str) else task.name
        found = self._tasks.get(name)
        if found is None:
            raise UnknownTask(f"This app has no task {name!r}. Its tasks: {', '.join(sorted(self._tasks)) or 'none'}.")
        if name not in self._originals:
            self._originals[name] = found.function
            wrap = self._wrapped_on_loop if found.is_async else self._wrapped_in_thread
            found.function = wrap(name, found.function)
        return found

    def _wrapped_on_loop(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        async def with_faults(*args: Any, **kwargs: Any) -> Any:
            fault = self._next(name)
            if isinstance(fault, _Hang):
                with self._counted():
                    await asyncio.get_running_loop().create_future()
            elif fault is not None:
                raise fault
            return await function(*args, **kwargs)

        return with_faults

    def _wrapped_in_thread(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def with_faults(*args: Any, **kwargs: Any) -> Any:
            fault = self._next(name)
            if isinstance(fault, _Hang):
                context = current_context()
                with self._counted():
                    while not (context.cancelled or self._released.wait(_LOOK_EVERY_S)):
                        pass
                raise TimeoutError("this task hung, as the test has asked for, until it was cancelled")
            if fault is not None:
                raise fault
            return function(*args, **kwargs)

        return with_faults

    def _next(self, name: str) -> BaseException | _Hang | None:
        waiting = self._faults[name]
        return waiting.popleft() if waiting else None

    @contextmanager
    def _counted(self) -> Iterator[None]:
        task_id = current_context().task_id
        self.hanging.add(task_id)
        self._changed()
        try:
            yield
        finally:
            self.hanging.discard(task_id)
            self._changed()
