"""`asyncq ping | active | stats | pause | resume | scale | drain`: workers are asked, and changed while they run.

Exit codes: 0 all that were meant have answered; 1 nobody is there, or some did not answer in time, or could not do it;
2 no such worker, host or queue; 3 the broker cannot be used. A pause, or a resume, of all workers that nobody has heard
is kept for those to come, so that is 0.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, TypeVar

import typer

from asyncq.cli.arguments import MAX_SLOTS
from asyncq.cli.control_text import active_text, drain_text, ping_text, queue_text, remarks, stats_text
from asyncq.cli.options import BrokerUrlOption, LogLevelOption, app_for
from asyncq.cli.text import printable
from asyncq.control_values import Answers, WorkerAnswer
from asyncq.controller import Controller
from asyncq.errors import InvalidOption
from asyncq.observability.logs import LogLevel, configure_logging

__all__ = ["active", "drain", "pause", "ping", "resume", "scale", "stats"]

A = TypeVar("A", bound=WorkerAnswer)

_INCOMPLETE = 1

QueueArgument = Annotated[str, typer.Argument(metavar="QUEUE", help="The queue's name.")]
AppOption = Annotated[
    str | None,
    typer.Option(
        "--app", metavar="MODULE:APP", help="Only workers of this app, on its broker. By default those of all apps."
    ),
]
HostOption = Annotated[str | None, typer.Option("--host", metavar="HOST", help="Only workers on this host.")]
WorkerOption = Annotated[
    str | None, typer.Option("--worker", metavar="HOST:PID", help="Only this worker, by its name as `ping` shows it.")
]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", min=0.1, max=3600, help="How long answers are waited for.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="As one JSON object.")]


class _Asking:
    """One command: how workers are reached, and how the answers are shown."""

    def __init__(self, app: str | None, broker_url: str | None, log_level: LogLevel, *, as_json: bool) -> None:
        configure_logging(log_level)
        self._app = app_for(app, broker_url)
        self._is_for_all = app is None
        self._as_json = as_json

    def ask(self, question: Callable[[Controller], Awaitable[Answers[A]]]) -> Answers[A]:
        """Ask, and return the answers."""

        async def asking() -> Answers[A]:
            async with self._app.open(role="cli") as app:
                return await question(app.control.everybody if self._is_for_all else app.control)

        return asyncio.run(asking())

    def show(self, found: Answers[A], text: Callable[[Sequence[A]], str], timeout_s: float, *, kept: str = "") -> None:
        """Show the answers, and end with 1 where some are missing.

        Args:
            found: What was answered.
            text: Makes a table of it.
            timeout_s: How long answers were waited for.
            kept: What is said where it counts also for workers to come.
        """
        if self._as_json:
            typer.echo(found.model_dump_json())
        elif kept:
            typer.echo(kept)
        if found.answers and not self._as_json and (table := text(found.answers)):
            typer.echo(table)
        for remark in remarks(found, timeout_s):
            typer.echo(remark, err=True)
        if found.complete:
            return
        if not found.answers and not found.silent and not found.failed:
            typer.echo("No worker is there.", err=True)
            if kept:
                return
        raise typer.Exit(_INCOMPLETE)


def ping(  # noqa: PLR0913 - the options of the command
    *,
    host: HostOption = None,
    worker: WorkerOption = None,
    timeout: TimeoutOption = 2.0,
    as_json: JsonOption = False,
    app: AppOption = None,
    broker_url: BrokerUrlOption = None,
    log_level: LogLevelOption = LogLevel.CRITICAL,
) -> None:
    """Tell which workers are there: name, app, state, uptime, version, queues.

    Without --app the workers of all apps are asked. Exit code 1: nobody is there, or some did not answer in time.
    """
    asking = _Asking(app, broker_url, log_level, as_json=as_json)
    found = asking.ask(lambda control: control.ping(host=host, worker=worker, timeout=timeout))
    asking.show(found, ping_text, timeout)


def active(  # noqa: PLR0913 - the options of the command
    *,
    host: HostOption = None,
    worker: WorkerOption = None,
    timeout: TimeoutOption = 2.0,
    as_json: JsonOption = False,
    app: AppOption = None,
    broker_url: BrokerUrlOption = None,
    log_level: LogLevelOption = LogLevel.CRITICAL,
) -> None:
    """Tell what workers run: task, id, attempt, queue, since when, until when, progress."""
    asking = _Asking(app, broker_url, log_level, as_json=as_json)
    found = asking.ask(lambda control: control.active(host=host, worker=worker, timeout=timeout))
    asking.show(found, active_text, timeout)


def stats(  # noqa: PLR0913 - the options of the command
    *,
    host: HostOption = None,
    worker: WorkerOption = None,
    timeout: TimeoutOption = 2.0,
    as_json: JsonOption = False,
    app: AppOption = None,
    broker_url: BrokerUrlOption = None,
    log_level: LogLevelOption = LogLevel.CRITICAL,
) -> None:
    """Tell what workers have done since their start, and how they are."""
    asking = _Asking(app, broker_url, log_level, as_json=as_json)
    found = asking.ask(lambda control: control.stats(host=host, worker=worker, timeout=timeout))
    asking.show(found, stats_text, timeout)


def pause(  # noqa: PLR0913 - the options of the command
    queue: QueueArgument,
    *,
    host: HostOption = None,
    worker: WorkerOption = None,
    timeout: TimeoutOption = 2.0,
    as_json: JsonOption = False,
    app: AppOption = None,
    broker_url: BrokerUrlOption = None,
    log_level: LogLevelOption = LogLevel.CRITICAL,
) -> None:
    """Let workers take nothing from a queue until it is resumed; what runs may finish.

    All workers keep to it, of whatever app, and those that start later. With --host or --worker only those do that are
    there, until they are resumed or end.
    """
    asking = _Asking(app, broker_url, log_level, as_json=as_json)
    found = asking.ask(lambda control: control.pause(queue, host=host, worker=worker, timeout=timeout))
    asking.show(found, queue_text, timeout, kept=_kept(f"Queue {queue} is paused for all workers.", host, worker))


def resume(  # noqa: PLR0913 - the options of the command
    queue: QueueArgument,
    *,
    host: HostOption = None,
    worker: WorkerOption = None,
    timeout: TimeoutOption = 2.0,
    as_json: JsonOption = False,
    app: AppOption = None,
    broker_url: BrokerUrlOption = None,
    log_level: LogLevelOption = LogLevel.CRITICAL,
) -> None:
    """Let workers take from a paused queue again.

    Without --host and --worker all its pauses end. With one of them a pause of all workers goes on.
    """
    asking = _Asking(app, broker_url, log_level, as_json=as_json)
    found = asking.ask(lambda control: control.resume(queue, host=host, worker=worker, timeout=timeout))
    asking.show(found, queue_text, timeout, kept=_kept(f"Queue {queue} is not paused any more.", host, worker))


def scale(  # noqa: PLR0913 - the options of the command
    target: Annotated[
        str, typer.Argument(metavar="QUEUE:SLOTS", help="The queue, and its slots in each worker process.")
    ],
    *,
    host: HostOption = None,
    worker: WorkerOption = None,
    timeout: TimeoutOption = 2.0,
    as_json: JsonOption = False,
    app: AppOption = None,
    broker_url: BrokerUrlOption = None,
    log_level: LogLevelOption = LogLevel.CRITICAL,
) -> None:
    """Give a queue more slots, or fewer, in workers that run; what runs may finish.

    Each worker process gets so many: with --processes 4 they are four times that. It lasts until the process ends.
    """
    queue, slots = _target(target)
    asking = _Asking(app, broker_url, log_level, as_json=as_json)
    found = asking.ask(lambda control: control.scale(queue, slots, host=host, worker=worker, timeout=timeout))
    asking.show(found, queue_text, timeout)


def drain(  # noqa: PLR0913 - the options of the command
    *,
    host: HostOption = None,
    worker: WorkerOption = None,
    timeout: TimeoutOption = 2.0,
    as_json: JsonOption = False,
    app: AppOption = None,
    broker_url: BrokerUrlOption = None,
    log_level: LogLevelOption = LogLevel.CRITICAL,
) -> None:
    """Let workers finish what runs, and end. `asyncq worker --processes` starts none in their place.

    Without --app, --host and --worker all workers of all apps are meant.
    """
    asking = _Asking(app, broker_url, log_level, as_json=as_json)
    found = asking.ask(lambda control: control.drain(host=host, worker=worker, timeout=timeout))
    asking.show(found, drain_text, timeout)


def _kept(text: str, host: str | None, worker: str | None) -> str:
    return printable(text) if host is None and worker is None else ""


def _target(text: str) -> tuple[str, int]:
    queue, colon, number = text.rpartition(":")
    if not colon or not queue or not (number.isascii() and number.isdigit() and len(number) <= 5):
        raise InvalidOption(f"QUEUE:SLOTS is wanted, for example mail:20, with 1 to {MAX_SLOTS} slots, not {text!r}.")
    return queue, int(number)
