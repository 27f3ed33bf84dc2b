"""`asyncq worker`: one worker process, from start to drain.

The first SIGTERM or SIGINT lets running tasks finish, up to the drain timeout; the second ends the process at
once, and the broker gives its unfinished messages to other workers.
"""

from __future__ import annotations

import asyncio
import os
import platform
import signal
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from asyncq.app import AsyncQ
from asyncq.cli.arguments import MAX_SLOTS, read_queues
from asyncq.cli.leftovers import Leftovers
from asyncq.cli.main_task import run_to_end
from asyncq.cli.options import BrokerUrlOption, override
from asyncq.cli.report import FAULT, exit_code_of, message_of, report
from asyncq.cli.scheduler import scheduling
from asyncq.cli.text import printable, safe_urls
from asyncq.cli.version import asyncq_version
from asyncq.errors import ConfigurationError
from asyncq.loading import load_app
from asyncq.loggers import get_logger
from asyncq.observability.logs import LogFormat, LogLevel, configure_logging

if TYPE_CHECKING:
    from asyncq.worker.worker import Worker  # the other commands need not load it

__all__ = ["worker"]

log = get_logger("asyncq.cli")


def worker(  # noqa: PLR0913 - the options of the command
    target: Annotated[str, typer.Argument(metavar="MODULE:APP", help="Where the app is, for example shop.tasks:app.")],
    *,
    queue: Annotated[
        list[str] | None,
        typer.Option(
            "--queue", "-q", metavar="NAME[:SLOTS]", help="Repeatable. By default all queues of the app's tasks."
        ),
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(
            min=1, max=MAX_SLOTS, help="Slots for each queue that names no number: so many tasks run at once."
        ),
    ] = None,
    log_level: Annotated[LogLevel, typer.Option(case_sensitive=False)] = LogLevel.INFO,
    log_format: Annotated[
        LogFormat, typer.Option(help="For people, or one JSON object a line for machines.")
    ] = LogFormat.CONSOLE,
    broker_url: BrokerUrlOption = None,
    drain_timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=0, help="How long running tasks may finish after the first SIGTERM."),
    ] = None,
    scheduler: Annotated[
        bool, typer.Option("--scheduler", help="Run a scheduler beside it; of all that run, one sends what is due.")
    ] = False,
) -> None:
    """Run the tasks of an app."""
    configure_logging(log_level, log_format)
    as_log = log_format is LogFormat.JSON
    try:
        app = load_app(target)
        override(app, broker_url=broker_url, drain_timeout_s=drain_timeout, slots=slots)
        queues = _queues(app, queue or [])
        _introduce(app, target, queues, as_log=as_log)
        code = run_to_end(_serve(app, queues, as_log=as_log, scheduler=scheduler))
    except asyncio.CancelledError:
        code = 0  # a signal while it was still connecting: nothing had begun
    except Exception as error:  # noqa: BLE001 - the end of the process; whatever it is, it is told
        code = _tell(error, as_log=as_log)
    raise typer.Exit(code)


def _queues(app: AsyncQ, names: list[str]) -> dict[str, int]:
    """Return the slots of each queue that this worker consumes."""
    if not app.tasks:
        raise ConfigurationError(
            f"App {app.name!r} has no tasks, so a worker would have nothing to run. "
            "Where they are in other modules, name these: AsyncQ(..., include=['shop.tasks'])."
        )
    if names:
        return read_queues(names, app.settings.slots)
    return dict.fromkeys(sorted({task.queue for task in app.tasks.values()}), app.settings.slots)


def _introduce(app: AsyncQ, target: str, queues: Mapping[str, int], *, as_log: bool) -> None:
    """Say what this worker is."""
    tasks = {name: app.tasks[name].queue for name in sorted(app.tasks)}
    broker = safe_urls(app.settings.broker_url)
    if as_log:
        log.info(
            "worker starting",
            version=asyncq_version(),
            python=platform.python_version(),
            app=app.name,
            target=target,
            broker=broker,
            queues=dict(queues),
            tasks=tasks,
            pid=os.getpid(),
        )
    else:
        typer.secho(f"asyncq {asyncq_version()}", bold=True, nl=False, err=True)
        typer.echo(f" worker on Python {platform.python_version()}, process {os.getpid()}", err=True)
        _row("app", [f"{app.name} ({target})"])
        _row("broker", [broker])
        _row("queues", [f"{name}: {count} slot{'' if count == 1 else 's'}" for name, count in queues.items()])
        width = max(len(name) for name in tasks)
        _row("tasks", [f"{name:<{width}}  from {task_queue}" for name, task_queue in tasks.items()])
        typer.echo("", err=True)
    for name in queues:
        if name not in tasks.values():
            log.warning("no task of this app is sent to this queue unless a sender says so", queue=name)


def _row(title: str, lines: list[str]) -> None:
    for number, line in enumerate(lines):
        typer.secho(f"  {title if number == 0 else '':<8}", fg="cyan", nl=False, err=True)
        typer.echo(printable(line), err=True)


async def _serve(app: AsyncQ, queues: dict[str, int], *, as_log: bool, scheduler: bool) -> int:
    starting = asyncio.current_task()
    assert starting is not None  # noqa: S101 - a coroutine always runs in a task; a type for the checker
    signals = _StopSignals(starting.cancel)
    leftovers = Leftovers()
    running: Worker | None = None
    try:
        async with app.open(role="worker"):
            running = app.worker(queues=queues)
            signals.on_first = running.stop
            async with scheduling(app, wanted=scheduler):
                code = await running.run()
    except Exception as error:
        if running is None:
            raise
        code = _tell(error, as_log=as_log)
    if running.threads_abandoned:
        # That code cannot be stopped, and the interpreter would wait for it before it exits.
        _exit_at_once(code)
    if left := await leftovers.end():
        log.warning("tasks have left something running, which ends with this process", left=left)
        _exit_at_once(code)
    return code


def _tell(error: Exception, *, as_log: bool) -> int:
    """Say why the worker ends, in the form that its log has, and return the exit code."""
    code = exit_code_of(error)
    if as_log:
        trace = {"exc_info": error} if code == FAULT else {}
        log.critical("worker failed", error=type(error).__name__, message=message_of(error), exit_code=code, **trace)
    else:
        report(error)
    return code


class _StopSignals:
    """Handles SIGTERM and SIGINT: the first calls `on_first`, the second ends the process.

    Args:
        on_first: What the first signal does.
    """

    def __init__(self, on_first: Callable[[], object]) -> None:
        self.on_first = on_first
        self._received = 0
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._receive, number)

    def _receive(self, number: signal.Signals) -> None:
        self._received += 1
        if self._received > 1:
            log.warning("stopping at once; what was running goes back to its queue", signal=number.name)
            _exit_at_once(128 + number)
        log.info("stopping; once more stops at once", signal=number.name)
        self.on_first()


def _exit_at_once(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
