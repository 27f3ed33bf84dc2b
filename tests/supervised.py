"""A supervisor under test: what its log says of its processes, and tasks that tell which process has run them."""

import contextlib
import json
from pathlib import Path

from support import eventually

PIDS = """
import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

from asyncq import AsyncQ

app = AsyncQ("pids")


@app.task
async def note(folder: Path, key: str) -> int:
    with (folder / "ran.txt").open("a") as file:
        file.write(f"{key} {os.getpid()}\\n")
    return os.getpid()


@app.task
async def slow(folder: Path) -> None:
    (folder / f"started-{os.getpid()}").touch()
    while not (folder / "go").exists():
        await asyncio.sleep(0.02)
    with (folder / "ran.txt").open("a") as file:
        file.write(f"slow {os.getpid()}\\n")


@app.task
async def block(folder: Path) -> None:
    (folder / f"started-{os.getpid()}").touch()
    while True:
        pass


@app.task
async def rest(folder: Path) -> None:
    await inner_rest(folder)


async def inner_rest(folder: Path) -> None:
    (folder / f"started-{os.getpid()}").touch()
    await asyncio.sleep(3600)


@app.task
def hold(folder: Path) -> None:
    (folder / "held").touch()
    while not (folder / "go").exists():
        time.sleep(0.02)


@app.task
async def leave_a_child_behind(folder: Path) -> None:
    child = "import os, time; os.fork() or (time.sleep(0.2), open('orphan-ended', 'w').close())"
    subprocess.run([sys.executable, "-c", child], cwd=folder, check=True)
"""


class Supervised:
    """A supervisor that `shell` has started, with JSON logs.

    Args:
        shell: Where to start it.
        arguments: Of `asyncq worker`, after MODULE:APP.
        target: MODULE:APP.
        environment: What differs for it.
        before: A program that starts Python, with its arguments.
    """

    def __init__(self, shell, *arguments, target="pids:app", environment=None, before=()):
        (shell.folder / "pids.py").write_text(PIDS)
        self.folder = shell.folder
        self.running = shell.start(
            *("worker", target, "--log-format", "json", *arguments), environment=environment, before=before
        )

    @property
    def pid(self):
        """The supervisor's own process id."""
        return self.running.process.pid

    def lines(self, event=None):
        """What it and its workers have said so far: their log lines, of one event or all."""
        found = []
        for line in self.running.stderr.splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # the last one may be half written
                found.append(json.loads(line))
        return [line for line in found if event is None or line["event"] == event]

    def started(self):
        """Return the process ids that it has started, in order."""
        return [line["pid"] for line in self.lines("worker process started")]

    async def consumes(self, count, timeout=30):
        """Wait until so many worker processes have begun to consume, in all."""
        await eventually(
            lambda: len(self.lines("worker consumes")) >= count or self.running._must_live(),
            timeout,
            message=f"{count} processes consume; it said:\n{self.running.stderr}",
        )

    async def said(self, event, count=1, timeout=20):
        """Wait until it has said this so often, and return the lines."""
        await eventually(
            lambda: len(self.lines(event)) >= count, timeout, message=f"{event!r}; it said:\n{self.running.stderr}"
        )
        return self.lines(event)

    def ran(self):
        """Return what ran, as pairs of key and process id."""
        path = self.folder / "ran.txt"
        return [tuple(line.split()) for line in path.read_text().splitlines()] if path.exists() else []

    def in_slow(self):
        """Return the ids of the processes that are inside a slow task, or were."""
        return [int(path.name.removeprefix("started-")) for path in self.folder.glob("started-*")]


def alive(pid):
    """Tell whether a process lives; one that has ended and was not reaped does not."""
    try:
        return _state_and_parent(pid)[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def zombies_of(pid):
    """Return the ended children of a process that it has not reaped."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if _state_and_parent(folder.name) == ("Z", str(pid)):
                    found.append(int(folder.name))
    return found


def children_of(pid):
    """Return the ids of the children of a process."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _state_and_parent(pid):
    state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    return state, parent
