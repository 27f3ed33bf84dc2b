"""Middleware: what runs around each attempt of a task, in a worker.

    async def timed(info: AttemptInfo, call_next: CallNext) -> Outcome:
        began = time.monotonic()
        outcome = await call_next()
        durations.record(info.task_name, type(outcome).__name__, time.monotonic() - began)
        return outcome

Invariant: a middleware sees values only. It cannot settle a delivery, and what it raises is the attempt's failure.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from asyncq.body import arguments_in, object_of
from asyncq.errors import InvalidOption
from asyncq.life import SENT_AT, waited_s_of
from asyncq.message import LATEST_MS, Headers, Message
from asyncq.outcome import Outcome

__all__ = ["AttemptInfo", "CallNext", "Middleware", "checked_middleware", "name_of_middleware"]

CallNext = Callable[[], Awaitable[Outcome]]
"""Runs what is inside: the next middleware, or the task. It returns how that ended, and raises nothing."""


@dataclass(frozen=True, slots=True)
class AttemptInfo:
    """One attempt, as a middleware sees it.

    Attributes:
        message: The message that is being run.
        queue: The queue that it came from.
        attempt: The number of this attempt; 1 is the first.
        deliveries: How often the broker has had the message back without an end; None where that is unknown.
        began_ms: When the attempt began, in milliseconds since the epoch.
    """

    message: Message
    queue: str
    attempt: int
    deliveries: int | None
    began_ms: int

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
    def is_redelivered(self) -> bool:
        """Whether the broker has had this message back from a worker that did not bring it to an end."""
        return bool(self.deliveries)

    @property
    def sent_at(self) -> datetime | None:
        """When the task was sent: an aware `datetime` in UTC; None where a foreign sender has not said it."""
        return _moment(self._header_ms(SENT_AT) or self.message.timestamp_ms)

    @property
    def waited_s(self) -> float | None:
        """How long the message waited for a slot, in seconds, since it was sent or was due; None where unknown."""
        return waited_s_of(self.message, self.began_ms)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments as they were sent: JSON values by name. They are read anew with each call."""
        return arguments_in(object_of(self.message.body))

    def _header_ms(self, name: str) -> int | None:
        value = self.message.headers.get(name)
        return value if isinstance(value, int) and 0 < value <= LATEST_MS else None


Middleware = Callable[[AttemptInfo, CallNext], Awaitable[Outcome]]
"""An `async def` function around an attempt."""


def checked_middleware(given: Any, where: str) -> tuple[Middleware, ...]:
    """Return the middleware that was given, from the outside to the inside.

    Args:
        given: A sequence of `async def` functions; None for nothing.
        where: Its place, for error messages: `AsyncQ(middleware=...)`.

    Raises:
        InvalidOption: One of them is no `async def` function of two parameters.
    """
    if given is None:
        return ()
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise InvalidOption(f"{where} takes a list of async functions, such as [timed], not {given!r}.")
    for function in given:
        _check(function, where)
    return tuple(given)


def name_of_middleware(function: Any) -> str:
    """Return what a middleware is called, for error messages."""
    return str(getattr(function, "__qualname__", None) or type(function).__qualname__)


def _check(function: Any, where: str) -> None:
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - an object with an async __call__
    )
    if isinstance(function, type) or not is_async:
        raise InvalidOption(
            f"{where}: {function!r} is no `async def` function. A middleware is "
            "`async def name(info: AttemptInfo, call_next: CallNext) -> Outcome`, and returns `await call_next()`."
        )
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        raise InvalidOption(
            f"{where}: {name_of_middleware(function)} takes other parameters than the two of a middleware: "
            "`async def name(info: AttemptInfo, call_next: CallNext) -> Outcome`."
        ) from None


def _moment(moment_ms: int | None) -> datetime | None:
    return None if moment_ms is None else datetime.fromtimestamp(min(max(0, moment_ms), LATEST_MS) / 1000, UTC)
