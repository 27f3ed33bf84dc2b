"""`asyncq send` and `asyncq call`: one task, from the shell.

With `--app` the arguments are checked as a worker would check them, before anything is sent. Without it they go
as they are, to a task that this machine has no code of.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated

import typer
from pydantic import ValidationError

from asyncq.app import AsyncQ
from asyncq.cli.arguments import read_eta, read_expires, read_headers, read_json_object
from asyncq.cli.grouped import grouped
from asyncq.cli.options import AppOption, BrokerUrlOption, LogLevelOption, app_for
from asyncq.cli.report import validation_lines
from asyncq.cli.tracing import trace
from asyncq.errors import InvalidOption
from asyncq.observability.logs import LogLevel, configure_logging
from asyncq.options import SendOptions
from asyncq.queue_names import check_queue_name
from asyncq.signature import Signature
from asyncq.task import AnyTask

__all__ = ["call", "send"]

TaskArgument = Annotated[str, typer.Argument(metavar="TASK", help="The task's name, for example shop.send_email.")]
JsonArgument = Annotated[
    str, typer.Argument(metavar="JSON_ARGUMENTS", help="The task's arguments as a JSON object; - reads standard input.")
]
QueueOption = Annotated[
    str | None,
    typer.Option(
        "--queue",
        "-q",
        metavar="NAME",
        help="By default the task's own; without --app the part of TASK before its last dot.",
    ),
]
DelayOption = Annotated[float | None, typer.Option(metavar="SECONDS", min=0, help="Run no earlier than this from now.")]
EtaOption = Annotated[
    str | None, typer.Option(metavar="ISO", help="Run no earlier than this moment, for example 2030-01-31T08:00:00Z.")
]
ExpiresOption = Annotated[
    str | None,
    typer.Option(
        metavar="SECONDS|ISO", help="Do not begin to run later than so many seconds from now, or than this moment."
    ),
]
TaskIdOption = Annotated[str | None, typer.Option(metavar="ID", help="The task's id, in place of a new one.")]
HeaderOption = Annotated[list[str] | None, typer.Option("--header", metavar="NAME=VALUE", help="Repeatable.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenOptions:
    """The options of a send. Its fields are options of the command (see `grouped`)."""

    queue: QueueOption = None
    delay: DelayOption = None
    eta: EtaOption = None
    expires: ExpiresOption = None
    task_id: TaskIdOption = None
    header: HeaderOption = None

    def read(self) -> SendOptions:
        """Return them as values.

        Raises:
            InvalidOption: One cannot be used.
        """
        if self.delay is not None and self.eta is not None:
            raise InvalidOption("Give either --delay or --eta, not both.")
        options: SendOptions = {"headers": read_headers(self.header or [])}
        if self.queue is not None:
            check_queue_name(self.queue)
            options["queue"] = self.queue
        if self.delay is not None:
            options["delay"] = self.delay
        moment = read_eta(self.eta)
        if moment is not None:
            options["eta"] = moment
        expiry = read_expires(self.expires)
        if expiry is not None:
            options["expires"] = expiry
        if self.task_id is not None:
            options["task_id"] = self.task_id
        return options


@grouped
def send(
    task: TaskArgument,
    json_arguments: JsonArgument,
    *,
    app: AppOption = None,
    given: GivenOptions,
    broker_url: BrokerUrlOption = None,
    log_level: LogLevelOption = LogLevel.CRITICAL,
) -> None:
    """Send a task, print its id, and do not wait for its result."""
    body = read_json_object(json_arguments)
    options = given.read()
    options["reply"] = False  # this process ends at once; nobody would read the reply
    configure_logging(log_level)
    loaded = app_for(app, broker_url)
    trace(loaded)
    typer.echo(asyncio.run(_send(loaded, _signature(loaded, task, body, options, checked=app is not None))))


@grouped
def call(  # noqa: PLR0913 - the options of the command
    task: TaskArgument,
    json_arguments: JsonArgument,
    *,
    app: AppOption = None,
    given: GivenOptions,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=0, help="How long to wait; by default 60, or the app's.")
    ] = None,
    broker_url: BrokerUrlOption = None,
    log_level: LogLevelOption = LogLevel.CRITICAL,
) -> None:
    """Send a task, wait for its result, and print it as JSON. Exits with 1 where the task fails or takes too long."""
    body = read_json_object(json_arguments)
    options = given.read()
    options["reply"] = True
    if timeout is not None:
        options["timeout"] = timeout
    configure_logging(log_level)
    loaded = app_for(app, broker_url)
    trace(loaded)
    result = asyncio.run(_call(loaded, _signature(loaded, task, body, options, checked=app is not None)))
    typer.echo(_shown(result))


def _signature(app: AsyncQ, name: str, body: bytes, options: SendOptions, *, checked: bool) -> Signature[bytes]:
    """Return what is sent: the very JSON that was typed, so that no number is rounded on the way."""
    if checked:
        task = app.get(name)
        _check_arguments(task, body)
        return Signature(name, body, task.queue, reply=True, decode=_checked_by(task)).options(**options)
    if "." not in name.strip(".") and "queue" not in options:
        raise InvalidOption(
            f"Task name {name!r} has no dot, so it names no queue. "
            "Write APP.TASK, for example shop.send_email, or give --queue."
        )
    return replace(app.signature(name, **options), body=body, decode=bytes)


def _check_arguments(task: AnyTask, body: bytes) -> None:
    """Check the arguments as a worker would."""
    try:
        task.arguments.decode(body)
    except ValidationError as error:
        raise InvalidOption(
            "\n".join([f"Wrong arguments for task {task.name}; nothing was sent:", *validation_lines(error)])
        ) from None


def _checked_by(task: AnyTask) -> Callable[[bytes], bytes]:
    """Return what checks a result against the declared type, and passes its JSON on unchanged."""

    def decode(result: bytes) -> bytes:
        task.results.decode(result)
        return result

    return decode


async def _send(app: AsyncQ, signature: Signature[bytes]) -> str:
    async with app.open(role="cli"):
        handle = await app.send(signature)
    return handle.id


async def _call(app: AsyncQ, signature: Signature[bytes]) -> bytes:
    async with app.open(role="cli"):
        return await app.call(signature)


def _shown(result: bytes) -> str:
    """Return the result's JSON: indented for people, as it came for programs."""
    text = result.decode(errors="replace")
    if not sys.stdout.isatty():
        return text
    try:
        indented = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
        indented.encode()  # half a surrogate pair cannot be printed
    except (ValueError, RecursionError):
        return text
    return indented
