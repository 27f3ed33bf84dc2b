"""`asyncq worker`: one worker process, or a supervisor of several.

The first SIGTERM or SIGINT lets running tasks finish, up to the drain timeout; the second ends everything at once,
and the broker gives the unfinished messages to other workers.
"""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import structlog
import typer

from asyncq.app import AsyncQ
from asyncq.cli.arguments import MAX_SLOTS, read_queues
from asyncq.cli.event_loop import EventLoop, loop_factory
from asyncq.cli.main_task import run_to_end
from asyncq.cli.observing import MetricsHostOption, MetricsPortOption, Observing
from asyncq.cli.options import BrokerUrlOption, LogFormatOption, ServiceLogLevelOption, override
from asyncq.cli.serving import serve, tell
from asyncq.cli.stopping import nothing_to_drain
from asyncq.cli.supervising import RELOAD_DRAIN_TIMEOUT_S, WorkerCommand, counting_folder, supervise
from asyncq.cli.text import printable, safe_urls
from asyncq.cli.tracing import TracingOption, trace
from asyncq.errors import ConfigurationError, InvalidOption
from asyncq.loading import load_app
from asyncq.loggers import get_logger
from asyncq.observability.logs import LogFormat, LogLevel, configure_logging
from asyncq.observability.redaction import redact_by
from asyncq.settings import load_settings
from asyncq.supervisor.link import SupervisorLink
from asyncq.version import asyncq_version
from asyncq.worker.exit_codes import DRAINED

__all__ = ["worker"]

log = get_logger("asyncq.cli")

_MAX_PROCESSES = 256
_BROKER_URL = "ASYNCQ_WORKER_BROKER_URL"
"""What the supervisor was told by --broker-url, for its worker processes."""


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
    processes: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=_MAX_PROCESSES,
            help="So many worker processes, each with these slots, under a supervisor that starts them again.",
        ),
    ] = None,
    max_tasks: Annotated[
        int | None,
        typer.Option(min=1, help="A worker process drains after so many tasks, and a new one takes its place."),
    ] = None,
    reload: Annotated[
        bool, typer.Option("--reload", help="For development: restart when Python files change. Needs asyncq[reload].")
    ] = False,
    reload_dir: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="Where --reload looks; repeatable. By default the current directory."),
    ] = None,
    loop: Annotated[
        EventLoop, typer.Option(help="The event loop: by default uvloop's where it is installed (asyncq[uvloop]).")
    ] = EventLoop.AUTO,
    log_level: ServiceLogLevelOption = LogLevel.INFO,
    log_format: LogFormatOption = LogFormat.CONSOLE,
    broker_url: BrokerUrlOption = None,
    drain_timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=0, help="How long running tasks may finish after the first SIGTERM."),
    ] = None,
    tracing: TracingOption = False,
    scheduler: Annotated[
        bool, typer.Option("--scheduler", help="Run a scheduler beside it; of all that run, one sends what is due.")
    ] = False,
    metrics_port: MetricsPortOption = None,
    metrics_host: MetricsHostOption = None,
) -> None:
    """Run the tasks of an app.

    Exit codes: 0 drained; 2 wrong command line, configuration or app; 3 no broker reached; 4 refused by the broker;
    5 drained, and tasks that took too long were handed back; 6 the app's lifespan failed; 70 a fault; 75 start me
    again; 130 and 143 stopped at once by the second SIGINT or SIGTERM.
    """
    link = SupervisorLink.from_environment()
    configure_logging(log_level, log_format)
    as_log = log_format is LogFormat.JSON
    try:
        if link is None and (reload or processes is not None or max_tasks is not None):
            loop_factory(loop)  # what is not installed is told once
            if drain_timeout is None and reload:
                drain_timeout = RELOAD_DRAIN_TIMEOUT_S
            options = {
                "slots": slots,
                "max-tasks": max_tasks,
                "loop": loop,
                "log-level": log_level,
                "log-format": log_format,
                "drain-timeout": drain_timeout,
                "tracing": tracing or None,
                "scheduler": scheduler or None,
            }
            # By the environment: what is on a command line, every user of the machine can read.
            if broker_url is not None:
                os.environ[_BROKER_URL] = broker_url
            command = WorkerCommand(target, queue or [], options)
            settings = load_settings(metrics_port=metrics_port, metrics_host=metrics_host)
            folders = _folders(reload_dir, reload=reload)
            code = supervise(command, processes or 1, folders, settings, as_log=as_log)
        else:
            _folders(reload_dir, reload=reload)
            if link is not None:
                structlog.contextvars.bind_contextvars(process=link.number)
                broker_url = os.environ.pop(_BROKER_URL, broker_url)
            how = Observing(target, link, counting_folder(link))
            with nothing_to_drain():
                app = load_app(target)
                redact_by(app.redact)
                override(
                    app,
                    broker_url=broker_url,
                    drain_timeout_s=drain_timeout,
                    slots=slots,
                    metrics_port=metrics_port,
                    metrics_host=metrics_host,
                )
                trace(app, wanted=tracing)
                queues = _queues(app, queue or [])
                _introduce(app, target, queues, as_log=as_log, link=link)
                serving = serve(app, queues, how, max_tasks=max_tasks, as_log=as_log, scheduler=scheduler)
                code = run_to_end(serving, loop_factory(loop))
    except asyncio.CancelledError:
        code = DRAINED  # a signal while it was still connecting: nothing had begun
    except Exception as error:  # noqa: BLE001 - the end of the process; whatever it is, it is told
        code = tell(error, as_log=as_log)
    raise typer.Exit(code)


def _folders(reload_dir: list[Path] | None, *, reload: bool) -> list[Path] | None:
    """Return the folders that `--reload` watches; None where it was not given."""
    if reload:
        return reload_dir or [Path()]
    if reload_dir:
        raise InvalidOption("--reload-dir says where --reload looks; give --reload as well.")
    return None


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


def _introduce(
    app: AsyncQ, target: str, queues: Mapping[str, int], *, as_log: bool, link: SupervisorLink | None
) -> None:
    """Say what this worker is; of several processes the first one speaks for all."""
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
    elif link is None or link.number == 1:
        typer.secho(f"asyncq {asyncq_version()}", bold=True, nl=False, err=True)
        typer.echo(f" worker on Python {platform.python_version()}, process {os.getpid()}", err=True)
        _row("app", [f"{app.name} ({target})"])
        _row("broker", [broker])
        _row("queues", [f"{name}: {count} slot{'' if count == 1 else 's'}" for name, count in queues.items()])
        width = max(len(name) for name in tasks)
        _row("tasks", [f"{name:<{width}}  from {task_queue}" for name, task_queue in tasks.items()])
        typer.echo("", err=True)
    for name in queues:
        if name not in tasks.values() and (link is None or link.number == 1):
            log.warning("no task of this app is sent to this queue unless a sender says so", queue=name)


def _row(title: str, lines: list[str]) -> None:
    for number, line in enumerate(lines):
        typer.secho(f"  {title if number == 0 else '':<8}", fg="cyan", nl=False, err=True)
        typer.echo(printable(line), err=True)
