"""Error callbacks: what is sent when a task has finally failed.

The producer's callback travels in the body of the task's message, under a key that belongs to no argument:

    {"to": "a@example.org", "$on_failure": {"task": "shop.page", "queue": "shop", "arguments": {"who": "ops"}}}

A callback without `arguments` takes the `FailedTask` itself as its arguments; one with arguments of its own finds it
under `$failed`.

Invariant: a callback is a value that was checked where it was made, or where it was read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic_core import from_json, to_json

from asyncq.body import ON_FAILURE, arguments_in, object_of
from asyncq.errors import ConfigurationError, MalformedMessage
from asyncq.headers import own_headers
from asyncq.message import HeaderValue
from asyncq.queue_names import check_queue_name
from asyncq.signals import seconds_of

__all__ = ["DEEPEST", "Callback", "CallsBack", "callback_in", "read_callback"]

DEEPEST = 5
"""How many callbacks may follow from one task, each from the failure of the one before: two that call each other back
would never come to an end."""


@dataclass(frozen=True, slots=True)
class Callback:
    """A task that is sent when another one has finally failed.

    Attributes:
        task: Its name on the wire.
        queue: Where it is sent.
        arguments: A JSON object; None where the `FailedTask` itself is the arguments.
        headers: Of the user's own.
        delay_s: How long after the failure it may run at the earliest, in seconds.
        on_failure: What is sent when the callback itself has finally failed.
    """

    task: str
    queue: str
    arguments: bytes | None = None
    headers: Mapping[str, HeaderValue] = field(default_factory=dict)
    delay_s: float = 0.0
    on_failure: Callback | None = None

    def to_json(self) -> bytes:
        """Return it as it travels in the body of a message."""
        return to_json(self.value())

    def value(self) -> dict[str, Any]:
        """Return it as a JSON value."""
        value: dict[str, Any] = {"task": self.task, "queue": self.queue}
        if self.arguments is not None:
            value["arguments"] = from_json(self.arguments)
        if self.headers:
            value["headers"] = dict(self.headers)
        if self.delay_s:
            value["delay"] = self.delay_s
        if self.on_failure is not None:
            value["on_failure"] = self.on_failure.value()
        return value

    @property
    def depth(self) -> int:
        """How many callbacks this is, those of its own included."""
        return 1 if self.on_failure is None else 1 + self.on_failure.depth


class CallsBack(Protocol):
    """What can be given as `on_failure=`: a task, or a signature."""

    def as_callback(self) -> Callback:
        """Return what is sent. Raises `InvalidOption` where it cannot be a callback."""
        ...


def callback_in(body: bytes) -> tuple[bool, Callback | None]:
    """Return whether a message's body says what is sent at a failure, and what; None for nothing.

    Raises:
        MalformedMessage: What is there is no callback.
    """
    if b'on_failure"' not in body:
        return False, None
    try:
        message = object_of(body)
    except MalformedMessage:
        return False, None  # the message itself is refused for it
    value = message.get(ON_FAILURE)
    return ON_FAILURE in message, None if value is None else read_callback(value)


def read_callback(value: Any, depth: int = 1) -> Callback:
    """Check what a foreign client may have written.

    Raises:
        MalformedMessage: It is no callback.
    """
    if depth > DEEPEST:
        raise MalformedMessage(f"{ON_FAILURE} is nested too deep: callbacks of callbacks go {DEEPEST} deep.")
    if not isinstance(value, dict):
        raise MalformedMessage(f"{ON_FAILURE} is no callback: an object with `task` and `queue` is wanted.")
    task, queue, arguments, inner = (value.get(key) for key in ("task", "queue", "arguments", "on_failure"))
    headers, delay_s = value.get("headers") or {}, value.get("delay") or 0.0
    if not isinstance(queue, str):
        raise MalformedMessage(f"{ON_FAILURE} names no queue: {queue!r}.")
    if not isinstance(task, str) or not 1 <= len(task.encode("utf-8", "replace")) <= 255:
        raise MalformedMessage(f"{ON_FAILURE} names no task: {task!r}.")
    if arguments is not None and not isinstance(arguments, dict):
        raise MalformedMessage(f"{ON_FAILURE} has arguments that are no object.")
    try:
        check_queue_name(queue)
        own = own_headers(headers)
        delay_s = seconds_of(delay_s, "delay")
    except ConfigurationError as error:
        raise MalformedMessage(f"{ON_FAILURE} cannot be used: {error}") from error
    return Callback(
        task=task,
        queue=queue,
        arguments=None if arguments is None else to_json(arguments_in(arguments)),
        headers=own,
        delay_s=delay_s,
        on_failure=None if inner is None else read_callback(inner, depth + 1),
    )
