"""Start processes that are never unrecorded, and signal only those that are still the same ones.

A process is known by its id and its start time. A process id alone can be
somebody else's after a crash or a reboot, so both are compared before every
signal.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from .errors import NodeFailed

# The child waits for one line before it becomes the program. Where its parent
# is killed before the process is recorded, the child reads the end of the pipe
# and ends: no process runs that nobody knows of.
_GATE = 'ulimit -S -n "$1"; shift; read -r go && exec "$@" </dev/null'
_OPEN_FILES = 65536
_PROC = Path("/proc")  # macOS has none, and then `ps` is asked


@dataclass(frozen=True)
class ProcessId:
    """One process, and no other that may get its id later.

    Args:
        pid: The process id.
        started: When it started, in the words of the operating system.
    """

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> "ProcessId | None":
        """Return the identity of a running process, or None when there is none."""
        started = _start_time(pid)
        return None if started is None else cls(pid, started)

    def alive(self) -> bool:
        """Return whether this very process still runs."""
        return _start_time(self.pid) == self.started

    def send(self, number: signal.Signals) -> bool:
        """Send a signal, if this very process still runs. Return whether it was sent."""
        if not self.alive():
            return False
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True

    def _gone(self) -> bool:
        now = _start_time(self.pid)
        # None is a process that has ended, which may still wait to be collected by us.
        return now != self.started and (now is not None or _reaped(self.pid))

    def wait_gone(self, timeout_s: float) -> bool:
        """Wait until the process has ended. Return whether it has."""
        deadline = time.monotonic() + timeout_s
        while not self._gone():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def wait_stopped(self, timeout_s: float) -> bool:
        """Wait until a SIGSTOP has reached every thread. Return whether it has; without /proc that is taken for true.

        The signal is only on its way when `send` returns: a thread that runs on another core can answer once more.
        """
        deadline = time.monotonic() + timeout_s
        while not all(state in "TtZX" for state in _thread_states(self.pid)):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True


def _thread_states(pid: int) -> list[str]:
    states = []
    for stat in _PROC.glob(f"{pid}/task/*/stat"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            states.append(stat.read_text().rpartition(")")[2].split()[0])
    return states


class _Gate:
    """What a child waits at; it ends if the gate is left closed."""

    def __init__(self, child: "subprocess.Popen[bytes]") -> None:
        self._child = child

    def open(self) -> None:
        if self._child.stdin is not None:
            self._child.stdin.write(b"go\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            if self._child.stdin is not None:
                self._child.stdin.close()
        if kind is not None:
            self._child.wait()


def spawn(
    command: Sequence[str], *, env: Mapping[str, str], output: Path, record: Callable[[ProcessId], None]
) -> ProcessId:
    """Start a program in a session of its own, after `record` has stored its identity.

    Args:
        command: The program and its arguments.
        env: Its whole environment.
        output: The file that takes its standard output and error.
        record: Called with the identity before the program begins.

    Returns:
        The identity of the process.

    Raises:
        NodeFailed: The process ended before it could be recorded.
    """
    gated = ["/bin/sh", "-c", _GATE, "sh", str(_open_files()), *command]
    with output.open("ab") as sink:
        child = subprocess.Popen(
            gated,
            stdin=subprocess.PIPE,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=dict(env),
            cwd="/",
            start_new_session=True,
        )
    with _Gate(child) as gate:
        identity = ProcessId.of(child.pid)
        if identity is None:
            raise NodeFailed(f"{command[0]} ended at once; see {output}")
        record(identity)
        gate.open()
    # The process outlives this program on purpose; it is waited for by its id.
    child.returncode = 0
    return identity


def _open_files() -> int:
    """Return the open-file limit for a broker: with 1,024 a node loses queues at about 900 of them."""
    import resource  # noqa: PLC0415 - Unix only; the module stays importable elsewhere

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)


def _reaped(pid: int) -> bool:
    """Collect an ended child. Return False while it still has to be collected by us."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        # Another program started it, so it is not ours to collect.
        return True


def _start_time(pid: int) -> str | None:
    """Return when a process started, or None when it does not run (a zombie does not)."""
    if (_PROC / "self/stat").exists():
        return _start_time_from_proc(pid)
    if shutil.which("ps") is None:
        raise NodeFailed("processes cannot be told apart: neither /proc nor ps is there")
    answer = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    status, _, started = answer.stdout.strip().partition(" ")
    return None if not started or status.startswith("Z") else " ".join(started.split())


def _start_time_from_proc(pid: int) -> str | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text()
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    # The second field is the program's name in brackets and may hold spaces.
    fields = text.rpartition(")")[2].split()
    if fields[0] in {"Z", "X"} and _threads(pid) <= 1:
        return None
    return f"{boot}:{fields[19]}"


def _threads(pid: int) -> int:
    """Count a process's threads: its first one is a zombie already while others still hold its ports."""
    try:
        return sum(1 for _ in (_PROC / str(pid) / "task").iterdir())
    except OSError:
        return 0
