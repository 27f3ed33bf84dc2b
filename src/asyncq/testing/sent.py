"""What a test's code has sent: task, arguments, queue, delay, how often.

    sent.once(send_email, arguments={"to": "ann@example.org"}, delay=60)
    sent.never(refund)
    assert [item.arguments["to"] for item in sent.of(send_email)] == ["ann@example.org", "bob@example.org"]

Invariant: each `send`, `call` and `send_many` of a client is here once, in order; retries, hand-backs and dead letters
are not: they are the worker's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, overload

from pydantic_core import from_json

from asyncq.body import arguments_in
from asyncq.broker import Publication
from asyncq.message import PARENT_ID, Headers
from asyncq.task import Task

__all__ = ["Sent", "SentTask"]

AnyTask = Task[..., Any]

_DELAY_RESOLUTION_S = 0.001  # an `eta` becomes a delay by a clock that counts milliseconds
_MOST_SHOWN = 20
_LONGEST_SHOWN = 200  # characters of an argument


@dataclass(frozen=True, slots=True)
class SentTask:
    """One task that was sent.

    Attributes:
        task: Its name on the wire.
        arguments: By name, as the task gets them, defaults included; as JSON values where the app does not have the
            task.
        queue: Where it was sent.
        delay: In how many seconds it was to run; None for at once.
        task_id: Its id.
        reply: Whether a result was asked for.
        headers: The user's own headers and asyncq's.
        parent_id: The id of the task that sent it; None where no task did.
    """

    task: str
    arguments: Mapping[str, Any]
    queue: str
    delay: float | None
    task_id: str
    reply: bool
    headers: Headers
    parent_id: str | None

    def __str__(self) -> str:
        when = "" if self.delay is None else f", in {self.delay:g} s"
        return f"{self.task}({_shown(self.arguments)}) to queue {self.queue!r}{when}"


class Sent(Sequence[SentTask]):
    """The tasks that were sent since the test began, or since `clear()`; a sequence, oldest first.

    Args:
        tasks: The app's tasks by name; their arguments are shown as they get them.
    """

    def __init__(self, tasks: Mapping[str, AnyTask]) -> None:
        self._tasks = tasks
        self._items: list[SentTask] = []

    def add(self, publication: Publication) -> None:
        """Note what a client has published."""
        message = publication.message
        parent = message.headers.get(PARENT_ID)
        self._items.append(
            SentTask(
                task=message.type,
                arguments=_arguments(self._tasks.get(message.type), message.body),
                queue=publication.to.queue,
                delay=None if publication.delay is None else publication.delay.seconds,
                task_id=message.task_id,
                reply=message.reply_to is not None,
                headers=message.headers,
                parent_id=parent if isinstance(parent, str) else None,
            )
        )

    # --- as a sequence

    @overload
    def __getitem__(self, index: int) -> SentTask: ...
    @overload
    def __getitem__(self, index: slice) -> list[SentTask]: ...
    def __getitem__(self, index: int | slice) -> SentTask | list[SentTask]:
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[SentTask]:
        return iter(tuple(self._items))

    def __repr__(self) -> str:
        return f"<{self}>"

    def __str__(self) -> str:
        if not self._items:
            return "nothing was sent"
        lines = [f"  {number}. {item}" for number, item in enumerate(self._items[:_MOST_SHOWN], 1)]
        more = len(self._items) - len(lines)
        return "\n".join(["what was sent:", *lines, *([f"  and {more} more"] if more else [])])

    # --- questions

    def of(self, task: AnyTask | str) -> list[SentTask]:
        """Return what was sent of one task, oldest first."""
        name = _name(task)
        return [item for item in self._items if item.task == name]

    def once(
        self,
        task: AnyTask | str,
        *,
        arguments: Mapping[str, Any] | None = None,
        queue: str | None = None,
        delay: float | timedelta | None = None,
    ) -> SentTask:
        """Check that a task was sent exactly once with these particulars, and return it.

        Args:
            task: The task, or its name on the wire.
            arguments: Those that are named must be equal; others may be anything.
            queue: Where to; None for anywhere.
            delay: In how many seconds, or a timedelta; None for any delay, and 0 for none.

        Raises:
            AssertionError: It was not; the message shows what was sent.
            TypeError: The task has no parameter of such a name, so the question makes no sense.
        """
        __tracebackhide__ = True
        return self.times(1, task, arguments=arguments, queue=queue, delay=delay)[0]

    def never(
        self,
        task: AnyTask | str,
        *,
        arguments: Mapping[str, Any] | None = None,
        queue: str | None = None,
        delay: float | timedelta | None = None,
    ) -> None:
        """Check that a task was not sent with these particulars. Arguments and errors as for `once`."""
        __tracebackhide__ = True
        self.times(0, task, arguments=arguments, queue=queue, delay=delay)

    def times(
        self,
        number: int,
        task: AnyTask | str,
        *,
        arguments: Mapping[str, Any] | None = None,
        queue: str | None = None,
        delay: float | timedelta | None = None,
    ) -> list[SentTask]:
        """Check how often a task was sent with these particulars, and return those. As `once` otherwise."""
        __tracebackhide__ = True
        wanted = _Wanted(_name(task), arguments or {}, queue, delay)
        self._check_names(wanted)
        found = [item for item in self._items if wanted.fits(item)]
        if len(found) != number:
            should = "should never have been sent" if number == 0 else f"should have been sent {_times(number)}"
            was = "never was" if not found else f"was sent {_times(len(found))}"
            raise AssertionError(f"{wanted} {should}, and {was}; {self}")
        return found

    def _check_names(self, wanted: _Wanted) -> None:
        """Refuse a misspelt argument: `never` would always hold."""
        task = self._tasks.get(wanted.task)
        names = [] if task is None else [parameter.name for parameter in task.arguments.parameters]
        for name in wanted.arguments:
            if task is not None and name not in names:
                raise TypeError(f"{wanted.task} has no parameter {name!r}. It has: {', '.join(names) or 'none'}.")

    def clear(self) -> None:
        """Forget what was sent so far."""
        self._items.clear()


@dataclass(frozen=True, slots=True)
class _Wanted:
    task: str
    arguments: Mapping[str, Any]
    queue: str | None
    delay: float | timedelta | None

    def fits(self, item: SentTask) -> bool:
        missing = object()
        return (
            item.task == self.task
            and all(item.arguments.get(name, missing) == value for name, value in self.arguments.items())
            and self.queue in {None, item.queue}
            and (self.delay is None or abs(_seconds(self.delay) - (item.delay or 0.0)) <= _DELAY_RESOLUTION_S)
        )

    def __str__(self) -> str:
        queue = "" if self.queue is None else f" to queue {self.queue!r}"
        delay = "" if self.delay is None else f" in {_seconds(self.delay):g} s"
        return f"{self.task}({_shown(self.arguments)}){queue}{delay}"


def _arguments(task: AnyTask | None, body: bytes) -> Mapping[str, Any]:
    if task is None:
        return _as_json(body)
    try:
        args, kwargs = task.arguments.decode(body)
    except Exception:  # noqa: BLE001 - a validator of the user's may raise anything: the worker will say what is wrong
        return _as_json(body)
    parameters = task.arguments.parameters
    given = {**dict(zip([item.name for item in parameters], args, strict=False)), **kwargs}
    return {item.name: given.get(item.name, item.default) for item in parameters}


def _as_json(body: bytes) -> Mapping[str, Any]:
    try:
        value = from_json(body)
    except ValueError:
        value = body
    return arguments_in(value) if isinstance(value, dict) else {"": value}


def _shown(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_short(repr(value))}" for name, value in arguments.items())


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _name(task: AnyTask | str) -> str:
    return task if isinstance(task, str) else task.name


def _seconds(delay: float | timedelta) -> float:
    return delay.total_seconds() if isinstance(delay, timedelta) else float(delay)


def _times(number: int) -> str:
    return {1: "once", 2: "twice"}.get(number, f"{number} times")
