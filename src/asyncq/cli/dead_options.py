"""What is typed after `asyncq dead ...`, read into values: which letters, how old, with which arguments.

Pure. Each refusal says what is wrong and shows the right form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from asyncq.app import AsyncQ
from asyncq.cli.arguments import read_json_object
from asyncq.dead_letters.filters import DeadLetterFilter
from asyncq.errors import InvalidOption
from asyncq.queue_names import DEAD_SUFFIX, check_queue_name

__all__ = ["FilterOptions", "QueueArgument", "check_parked", "read_age", "read_changes"]

QueueArgument = Annotated[
    str, typer.Argument(metavar="QUEUE", help="The task queue, for example mail; or asyncq.unroutable.")
]
TaskOption = Annotated[str | None, typer.Option("--task", metavar="NAME", help="Of this task; * stands for any text.")]
ErrorOption = Annotated[
    str | None, typer.Option("--error", metavar="TYPE", help="With this error: ValueError, builtins.*, *Timeout*.")
]
ReasonOption = Annotated[
    str | None, typer.Option("--reason", metavar="TEXT", help="Dead-lettered for this reason: 'attempts*', rejected.")
]
OlderThanOption = Annotated[
    str | None, typer.Option("--older-than", metavar="AGE", help="Dead for longer than 90s, 30m, 2h, 7d.")
]
NewerThanOption = Annotated[
    str | None, typer.Option("--newer-than", metavar="AGE", help="Dead for no longer than 90s, 30m, 2h, 7d.")
]
IdOption = Annotated[list[str] | None, typer.Option("--id", metavar="ID", help="With this task id. Repeatable.")]

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")
_AGE = re.compile(rf"(?:{_PART.pattern})+")


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterOptions:
    """Which letters are meant. Its fields are options (see `grouped`)."""

    task: TaskOption = None
    error: ErrorOption = None
    reason: ReasonOption = None
    older_than: OlderThanOption = None
    newer_than: NewerThanOption = None
    ids: IdOption = None

    def read(self) -> DeadLetterFilter | None:
        """Return which letters are meant; None where nothing says so.

        Raises:
            InvalidOption: A value cannot be used.
        """
        given = (self.task, self.error, self.reason, self.older_than, self.newer_than)
        if all(value is None for value in given) and not self.ids:
            return None
        for option, value in (("--task", self.task), ("--error", self.error), ("--reason", self.reason)):
            if value is not None and not value:
                raise InvalidOption(f"{option} takes a text that is not empty.")
        return DeadLetterFilter(
            task=self.task,
            error=self.error,
            reason=self.reason,
            older_than=read_age(self.older_than, "--older-than"),
            newer_than=read_age(self.newer_than, "--newer-than"),
            ids=self.ids or None,
        )


def check_parked(app: AsyncQ, queue: str) -> None:
    """Check the name of a queue whose dead letters are meant.

    Raises:
        InvalidQueueName: It is none; for `mail.dead` the message says that `mail` is wanted.
        InvalidOption: It is the dead-letter queue itself.
    """
    if queue == f"{app.settings.namespace}.unroutable":
        return
    task_queue = queue.removesuffix(DEAD_SUFFIX)
    if task_queue != queue and task_queue:
        raise InvalidOption(f"{queue} is the dead-letter queue itself; name the task queue: {task_queue}.")
    check_queue_name(queue)


def read_age(text: str | None, option: str) -> float | None:
    """Return an age in seconds.

    Args:
        text: `90s`, `30m`, `2h`, `7d`, `1w`, `1d12h`; a bare number means seconds.
        option: The option's name, for the error message.

    Raises:
        InvalidOption: It is no age.
    """
    if text is None:
        return None
    if re.fullmatch(r"\d+(?:\.\d+)?", text):
        return float(text)
    if not _AGE.fullmatch(text):
        raise InvalidOption(f"{option} takes an age, for example 90s, 30m, 2h, 7d or 1d12h, not {text!r}.")
    return sum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(text))


def read_changes(arguments: str | None, settings: Iterable[str]) -> dict[str, Any]:
    """Return the arguments to change.

    Args:
        arguments: A JSON object.
        settings: `NAME=JSON` each.

    Raises:
        InvalidOption: One of them cannot be read, or comes twice.
    """
    changes: dict[str, Any] = {} if arguments is None else json.loads(read_json_object(arguments))
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise InvalidOption(
                f"--set takes NAME=JSON, for example amount=3 or to='\"a@example.org\"', not {setting!r}."
            )
        if name in changes:
            raise InvalidOption(f"The argument {name} is given twice.")
        try:
            changes[name] = json.loads(value)
        except (ValueError, RecursionError):
            raise InvalidOption(
                f"--set {name}=...: {value!r} is not JSON. A text needs quotes of its own: --set {name}='\"{value}\"'."
            ) from None
    return changes
