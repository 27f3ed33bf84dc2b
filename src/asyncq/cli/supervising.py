"""`asyncq worker` with a supervisor: what it starts, and what it says of itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import typer

from asyncq.loggers import get_logger
from asyncq.supervisor.reloading import SourceFiles
from asyncq.supervisor.supervisor import Supervisor
from asyncq.version import asyncq_version

__all__ = ["RELOAD_DRAIN_TIMEOUT_S", "WorkerCommand", "supervise"]

log = get_logger("asyncq.cli")

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


def supervise(command: WorkerCommand, processes: int, reload_folders: Sequence[Path] | None, *, as_log: bool) -> int:
    """Run a supervisor to its end.

    Args:
        command: What it starts.
        processes: How many of them.
        reload_folders: Where changed source files restart all; None for nowhere.
        as_log: Whether it introduces itself by a log line.

    Returns:
        The exit code; see `asyncq.worker.exit_codes`.

    Raises:
        ConfigurationError: Source files cannot be watched.
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
    return supervisor.run()
