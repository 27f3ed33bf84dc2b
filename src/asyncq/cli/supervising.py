"""`asyncq worker` with a supervisor: what it starts, and what it says of itself."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from asyncq.cli.observing import check_metrics, served
from asyncq.health import HealthReport
from asyncq.loggers import get_logger
from asyncq.observability.endpoint import Scrape
from asyncq.settings import Settings
from asyncq.supervisor.link import SupervisorLink
from asyncq.supervisor.reloading import SourceFiles
from asyncq.supervisor.supervisor import Supervisor
from asyncq.version import asyncq_version

__all__ = ["RELOAD_DRAIN_TIMEOUT_S", "WorkerCommand", "counting_folder", "supervise"]

log = get_logger("asyncq.cli")

_METRICS_FOLDER = "ASYNCQ_WORKER_METRICS_FOLDER"
"""Where the worker processes of a supervisor count."""

RELOAD_DRAIN_TIMEOUT_S = 2.0
"""Whoever changes code wants to see it run."""


@dataclass(frozen=True, slots=True)
class WorkerCommand:
    """The command line of one worker process.

    Attributes:
        target: MODULE:APP.
        queues: As `--queue` takes them.
        options: The other options by name; None where one was not given, True for a flag.
    """

    target: str
    queues: Sequence[str]
    options: Mapping[str, object]

    def arguments(self) -> list[str]:
        """Return the program and its arguments."""
        queues = [f"--queue={queue}" for queue in self.queues]
        options = [
            f"--{name}" if value is True else f"--{name}={value}"
            for name, value in self.options.items()
            if value is not None
        ]
        return [sys.executable, "-m", "asyncq", "worker", *queues, *options, "--", self.target]


def supervise(
    command: WorkerCommand,
    processes: int,
    reload_folders: Sequence[Path] | None,
    settings: Settings,
    *,
    as_log: bool,
) -> int:
    """Run a supervisor to its end.

    Args:
        command: What it starts.
        processes: How many of them.
        reload_folders: Where changed source files restart all; None for nowhere.
        settings: Where metrics and health are served.
        as_log: Whether it introduces itself by a log line.

    Returns:
        The exit code; see `asyncq.worker.exit_codes`.

    Raises:
        ConfigurationError: Source files cannot be watched, or metrics cannot be served.
    """
    changes = None if reload_folders is None else SourceFiles(reload_folders)
    supervisor = Supervisor(command.arguments(), processes, changes)
    if as_log:
        log.info(
            "supervisor starting",
            version=asyncq_version(),
            target=command.target,
            processes=processes,
            pid=os.getpid(),
            reload=reload_folders is not None,
        )
    else:
        count = f"{processes} worker process{'' if processes == 1 else 'es'}"
        typer.secho(f"asyncq {asyncq_version()}", bold=True, nl=False, err=True)
        typer.echo(f" supervisor of {count}, process {os.getpid()}", err=True)
        if reload_folders is not None:
            folders = ", ".join(str(folder) for folder in reload_folders)
            typer.echo(f"  restarts them when Python files change in {folders}", err=True)

    def report() -> HealthReport:
        return HealthReport("worker", command.target, os.getpid(), supervisor.health())

    with _counted(supervisor, settings) as scrape, served(report, settings, scrape):
        return supervisor.run()


def counting_folder(link: SupervisorLink | None) -> Path | None:
    """Let the metrics of this worker process be counted where its supervisor reads them; return where, or None.

    Call it before the app is imported: metrics that exist already are counted in memory.
    """
    folder = os.environ.pop(_METRICS_FOLDER, None)
    if folder is None or link is None:
        return None
    from asyncq.observability.metrics.counting import count_in  # noqa: PLC0415 - an extra

    count_in(Path(folder), link.number)
    return Path(folder)


@contextlib.contextmanager
def _counted(supervisor: Supervisor, settings: Settings) -> Iterator[Scrape | None]:
    """Lend the worker processes a folder for their metrics, where they are wanted; yield what reads it."""
    if settings.metrics_port is None:
        yield None
        return
    check_metrics()
    from asyncq.observability.metrics.counting import forget_states, scrape_folder  # noqa: PLC0415 - an extra

    with tempfile.TemporaryDirectory(prefix="asyncq-metrics-") as name:
        folder = Path(name)
        os.environ[_METRICS_FOLDER] = name
        supervisor.on_end = lambda number: forget_states(folder, number)
        yield lambda accept: scrape_folder(folder, accept)
