"""The processes that a run starts: each with a log file, each stopped at the end whatever happens.

They run in sessions of their own, so that Ctrl-C reaches the demo alone, and it stops them in order. They are
started by `subprocess`, not by asyncio, which would kill them when its loop ends: some runs leave them up.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from demo.settings import WORKERS, DemoError
from demo.stage import STOP_S

LOOK_EVERY_S = 0.1
LAST_LINES = 12


@dataclass(frozen=True, slots=True)
class Child:
    """A process of this run.

    Args:
        name: What people call it.
        process: The process.
        log: What it writes.
    """

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def last_lines(self) -> str:
        """Return the end of the log, indented."""
        lines = self.log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        return "\n".join(f"    {line}" for line in lines)


class Processes:
    """The processes of one run, in the order in which they were started."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.children: list[Child] = []

    def start(self, name: str, *arguments: str) -> Child:
        """Start a Python module as a process, in the folder of the workers and with this process's environment.

        Args:
            name: What people call it, and its log file.
            arguments: What follows `python -m`.
        """
        log = self.logs / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(  # noqa: S603 - our own modules
                [sys.executable, "-m", *arguments],
                cwd=WORKERS,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        child = Child(name, process, log)
        self.children.append(child)
        return child

    async def watch(self) -> None:
        """Raise as soon as one of the processes ends: none may, before it is told to.

        Raises:
            DemoError: With the end of its log.
        """
        while True:
            for child in self.children:
                if child.process.poll() is not None:
                    raise DemoError(
                        f"{child.name} ended by itself (code {child.process.returncode}). "
                        f"Its log, {child.log}, ends with:\n{child.last_lines()}"
                    )
            await asyncio.sleep(LOOK_EVERY_S)

    async def stop(self) -> list[str]:
        """Stop them all: politely, and after a while at once. Returns the names of those that had to be killed."""
        for child in self._running():
            child.process.terminate()
        deadline = monotonic() + STOP_S
        while self._running() and monotonic() < deadline:  # noqa: ASYNC110 - other processes set no asyncio.Event
            await asyncio.sleep(LOOK_EVERY_S)
        killed = self._running()
        for child in killed:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.process.pid, signal.SIGKILL)  # its session: what it may have started as well
            child.process.wait()
        return [child.name for child in killed]

    def _running(self) -> list[Child]:
        return [child for child in self.children if child.process.poll() is None]
