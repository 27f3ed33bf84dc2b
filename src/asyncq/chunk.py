"""A chunk: one message that calls its task several times, one call after the other.

    {"rate": 3, "$items": [{"amount": 1}, {"amount": 2}]}     calls f(amount=1, rate=3), then f(amount=2, rate=3)

Its result is the list of what the calls have returned. One time limit holds for all of them, and their dependencies are
made once; where one call fails, the chunk fails, and a retry makes all of the calls again.

Invariant: all arguments are checked before the first call is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic_core import to_json

from asyncq.arguments import Arguments
from asyncq.body import ITEMS, arguments_in, object_of
from asyncq.errors import MalformedMessage
from asyncq.return_values import Results
from asyncq.task import AnyTask, Task

__all__ = ["called_by"]

_KEPT_AS = "_as_chunk"

_Call = tuple[tuple[Any, ...], dict[str, Any]]


def called_by(body: bytes, task: AnyTask) -> AnyTask:
    """Return the task as a message calls it: once, or, for a chunk, several times.

    Args:
        body: The message's body.
        task: The declared task.
    """
    if b'$items"' not in body and b'\\u0024items"' not in body:
        return task
    try:
        if ITEMS not in object_of(body):
            return task
    except MalformedMessage:
        return task  # it is refused when its arguments are read
    # One for each task, and not for each message: what is known of a task's dependencies is kept by its arguments.
    made: AnyTask = vars(task).setdefault(_KEPT_AS, None) or _Chunk(task)
    vars(task)[_KEPT_AS] = made
    return made


class _Chunk(Task[..., list[Any]]):
    """A task that is called several times."""

    def __init__(self, task: AnyTask) -> None:
        vars(self).update(vars(task))
        self.function = _each_awaited(task) if task.is_async else _each(task)
        self.arguments = _ChunkArguments(task.arguments)
        self.results = _ChunkResults(task.results)


def _each(task: AnyTask) -> Callable[..., list[Any]]:
    def each(*given: Any, **dependencies: Any) -> list[Any]:
        *context, calls = given
        return [task.function(*context, *args, **kwargs, **dependencies) for args, kwargs in calls]

    return each


def _each_awaited(task: AnyTask) -> Callable[..., Any]:
    async def each(*given: Any, **dependencies: Any) -> list[Any]:
        *context, calls = given
        return [await task.function(*context, *args, **kwargs, **dependencies) for args, kwargs in calls]

    return each


class _ChunkArguments(Arguments):
    """Reads the arguments of all calls."""

    __slots__ = ("_one",)

    def __init__(self, one: Arguments) -> None:
        self._one = one
        self.parameters = one.parameters
        self.dependencies = one.dependencies

    def decode(self, body: bytes) -> tuple[tuple[list[_Call]], dict[str, Any]]:
        """Return the calls, as the only argument.

        Raises:
            MalformedMessage: The items are no list of objects.
            pydantic.ValidationError: The arguments of one do not fit.
        """
        message = object_of(body)
        shared, items = arguments_in(message), message[ITEMS]
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise MalformedMessage(f"{ITEMS} is a list of objects, each with the arguments of one call.")
        return ([self._one.decode(to_json({**shared, **arguments_in(item)})) for item in items],), {}


class _ChunkResults(Results[list[Any]]):
    """Writes what all calls have returned."""

    __slots__ = ("_one",)

    def __init__(self, one: Results[Any]) -> None:
        self._one = one

    def encode(self, value: Any) -> bytes:
        """Write the list.

        Raises:
            ResultNotSerialisable: What one call has returned does not fit the declared type.
        """
        return b"[%b]" % b",".join(map(self._one.encode, value))
