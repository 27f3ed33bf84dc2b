"""Where another process finds a task's function: its module and its name in there.

A task that runs in a process of its own is imported there, as `multiprocessing` does it. What is inside another
function cannot be, and neither can what somebody types at a prompt.

Invariant: a place that `place_of` returns leads to this very function in this process; and while a module is imported
only to find a function in it, that module opens no app.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from asyncq.errors import TaskDefinitionError, UsageError
from asyncq.scripts import importable_name

__all__ = ["Place", "import_function", "place_of", "refuse_local", "refuse_while_imported"]

_importing = False


@dataclass(frozen=True, slots=True)
class Place:
    """Where a function is.

    Attributes:
        module: The name to import.
        name: The function's name in it; dots lead through classes.
    """

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


def refuse_local(function: Callable[..., Any], task: str) -> None:
    """Refuse what no other process can import, when it is declared.

    Raises:
        TaskDefinitionError: It is inside a function, or has no name.
    """
    name = getattr(function, "__qualname__", None)
    if not isinstance(name, str) or not isinstance(getattr(function, "__module__", None), str):
        raise TaskDefinitionError(
            f"task {task!r} has run_in='process', and {function!r} has no name by which another process could import "
            "it. Declare a function at the top of a module."
        )
    if not all(part.isidentifier() for part in name.split(".")):
        raise TaskDefinitionError(
            f"task {task!r} has run_in='process', so another process must be able to import it, and {name} is inside "
            "a function. Move it to the top of its module."
        )


def place_of(function: Callable[..., Any], task: str) -> Place:
    """Return where another process finds a task's function.

    Raises:
        TaskDefinitionError: It cannot be found by its name; the message says why.
    """
    refuse_local(function, task)
    module_name, name = function.__module__, function.__qualname__
    module = sys.modules.get(module_name)
    if module_name in {"__main__", "__mp_main__"}:
        found = None if module is None else importable_name(module)
        if found is None:
            raise TaskDefinitionError(
                f"task {task!r} has run_in='process', so another process must be able to import it, and it was "
                "declared in a program that has no importable name: at a prompt, or in a file whose name is another "
                "module's. Put it into a module."
            )
        module_name = found
    there: Any = module
    for part in name.split("."):
        there = getattr(there, part, None)
    if function not in (there, getattr(there, "function", None)):
        raise TaskDefinitionError(
            f"task {task!r} has run_in='process', so another process must be able to import it, and "
            f"{module_name}.{name} is something else: {there!r}. Let the module keep the function, or its task, under "
            "the function's own name."
        )
    return Place(module_name, name)


def import_function(place: Place, task: str) -> Callable[..., Any]:
    """Import a task's function: what `place_of` has found, in another process.

    Raises:
        TaskDefinitionError: The module cannot be imported here, or has no such function.
    """
    try:
        with _importing_only():
            found: Any = importlib.import_module(place.module)
    except (Exception, SystemExit) as error:
        raise TaskDefinitionError(
            f"task {task!r} runs in a process of its own, where its module {place.module!r} cannot be imported: "
            f"{type(error).__name__}: {error}"
        ) from error
    for part in place.name.split("."):
        found = getattr(found, part, None)
    function = getattr(found, "function", found)  # mostly a task is there, and its function is wanted
    if not callable(function):
        raise TaskDefinitionError(
            f"task {task!r} runs in a process of its own, where {place.module!r} has no function {place.name!r}."
        )
    result: Callable[..., Any] = function
    return result


def refuse_while_imported(app: str) -> None:
    """Keep a program that was imported only for its tasks from starting anew.

    Raises:
        UsageError: This process is importing the module of a task.
    """
    if _importing:
        raise UsageError(
            f"The app {app!r} was opened while its module was being imported by a process that runs one of its tasks. "
            "Put what starts the program under `if __name__ == '__main__':`."
        )


@contextmanager
def _importing_only() -> Iterator[None]:
    global _importing  # noqa: PLW0603 - importing is a state of the whole process
    before, _importing = _importing, True
    try:
        yield
    finally:
        _importing = before
