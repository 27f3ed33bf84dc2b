"""Ends that take long: a worker that does not hear its supervisor, and one that has none any more.

The workers here are programs of some lines, whose patience is shorter than that of real ones.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from supervised import alive
from support import eventually

SUPERVISOR = """
import sys
from pathlib import Path
from asyncq.observability.logs import configure_logging
from asyncq.supervisor.reloading import SourceFiles
from asyncq.supervisor.supervisor import Supervisor
configure_logging("info", "json")
changes = SourceFiles([Path("code")]) if Path("code").is_dir() else None
sys.exit(Supervisor([sys.executable, *sys.argv[1:]], 2, changes).run())
"""

DEAF = """
import os, time
from pathlib import Path
from asyncq.supervisor.link import SupervisorLink
link = SupervisorLink.from_environment()
assert "ASYNCQ_SUPERVISOR_FD" not in os.environ  # what it starts is nobody's worker
link.on_drain = lambda: None
link.ready(-29.5)  # of the 30 s that it may take longer than its drain timeout, half a second is left
child = os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "600")
Path(f"child-{os.getpid()}").write_text(str(child))
while True:
    time.sleep(600)
"""


class Deaf:
    """A supervisor of two workers that do not stop."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "deaf.py").write_text(DEAF)
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen([sys.executable, "-c", SUPERVISOR, "deaf.py"], cwd=folder, stderr=log)

    def lines(self, event):
        """What it has said."""
        lines = [json.loads(line) for line in (self.folder / "log").read_text().splitlines()]
        return [line for line in lines if line["event"] == event]

    def workers(self):
        """The process ids of its workers, once both are ready."""
        return [int(path.name.removeprefix("child-")) for path in self.folder.glob("child-*") if path.read_text()]

    def children(self):
        """The process ids of what the workers have started."""
        return [int(path.read_text()) for path in self.folder.glob("child-*")]


@pytest.fixture
def code(tmp_path):
    """A folder whose changes restart the workers."""
    folder = tmp_path / "code"
    folder.mkdir()
    return folder


@pytest.fixture
def deaf(tmp_path):
    """A supervisor of two workers that do not stop, ended with the test."""
    started = Deaf(tmp_path)
    yield started
    started.process.kill()
    started.process.wait()


async def test_a_worker_that_does_not_end_in_time_is_killed_with_what_it_has_started(deaf):
    """And the exit code says so."""
    await eventually(lambda: len(deaf.workers()) == 2, 20)
    deaf.process.terminate()
    await eventually(lambda: deaf.process.poll() is not None, 20)
    assert deaf.process.returncode == 137
    assert len(deaf.lines("worker process does not end, killed; what it ran goes back to its queue")) == 2
    await eventually(lambda: not any(map(alive, (*deaf.workers(), *deaf.children()))))


async def test_a_worker_that_does_not_end_in_time_for_changed_code_is_killed_and_replaced(code, deaf):
    """Blocked code, of all things, is what somebody has just mended."""
    await eventually(lambda: len(deaf.workers()) == 2, 20)
    first = deaf.workers()

    def replaced():
        if not deaf.lines("code changed, restarting"):  # it may not watch yet
            (code / "tasks.py").write_text(f"x = {time.monotonic()}\n")
        return len(deaf.workers()) == 4

    await eventually(replaced, 20)
    assert len(deaf.lines("worker process does not end, killed; what it ran goes back to its queue")) == 2
    assert not any(map(alive, first))
    deaf.process.terminate()
    await eventually(lambda: deaf.process.poll() is not None, 20)


async def test_a_worker_that_does_not_end_in_time_ends_itself_when_its_supervisor_is_gone(deaf):
    """Nobody else is left to do it."""
    await eventually(lambda: len(deaf.workers()) == 2, 20)
    deaf.process.kill()
    await eventually(lambda: not any(map(alive, deaf.workers())), 20)
    for child in deaf.children():
        os.kill(child, signal.SIGKILL)
