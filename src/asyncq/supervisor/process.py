"""One worker process, seen from its supervisor.

It is started by `posix_spawn` in a process group of its own: a terminal's Ctrl-C reaches the supervisor alone, and a
stop at once takes along what the worker's tasks have started.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Sequence

from asyncq.supervisor.link import FD_VARIABLE, NUMBER_VARIABLE
from asyncq.supervisor.restarts import Ended

__all__ = ["WorkerProcess"]

_UNREADY_END_S = 30.0
_OWN_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGUSR1, signal.SIGPIPE)


class WorkerProcess:
    """A process that runs.

    Args:
        command: Its arguments; the first one is the program's path.
        number: Which of the processes it is, from 1.

    Attributes:
        pid: Its process id.
        ready: Whether it consumes.
        leaving: Whether it drains because it was asked to, so that nobody shall take its place.
        connection: The supervisor's end of the link: readable when the worker has said something.
        silent: Whether its end of the link is closed: it is about to end.
        longest_end_s: How long its end may take, in seconds, from the moment that it was asked to stop.
        kill_at: When it is killed, by the monotonic clock; None while nobody has asked it to stop.
    """

    def __init__(self, command: Sequence[str], number: int) -> None:
        self.number = number
        self.ready = False
        self.leaving = False
        self.silent = False
        self.longest_end_s = _UNREADY_END_S
        self.kill_at: float | None = None
        self.began = time.monotonic()
        self.connection, worker_end = socket.socketpair()
        self.connection.settimeout(0)
        try:
            worker_end.set_inheritable(True)
            self.pid = os.posix_spawn(
                command[0],
                list(command),
                {**os.environ, FD_VARIABLE: str(worker_end.fileno()), NUMBER_VARIABLE: str(number)},
                file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
                setpgroup=0,
                setsigmask=[],
                setsigdef=_OWN_SIGNALS,
            )
        except BaseException:
            self.connection.close()
            raise
        finally:
            worker_end.close()

    @property
    def draining(self) -> bool:
        """Whether it was asked to stop."""
        return self.kill_at is not None

    @property
    def age_s(self) -> float:
        """How long it has lived, in seconds."""
        return time.monotonic() - self.began

    def hear(self) -> bool:
        """Read what it has said; return whether it has just become ready."""
        try:
            said = self.connection.recv(256).decode()
        except (BlockingIOError, ConnectionError):
            return False
        self.silent = not said
        became_ready = False
        for line in said.splitlines():
            word, _, value = line.partition(" ")
            if word == "ready":
                self.ready = became_ready = True
                self.longest_end_s = float(value)
            elif word == "leave":
                self.leaving = True
        return became_ready

    def drain(self) -> None:
        """Ask it to stop, once."""
        if self.draining:
            return
        self.kill_at = time.monotonic() + self.longest_end_s
        with contextlib.suppress(OSError):  # it is about to end by itself
            self.connection.sendall(b"drain\n")

    def kill(self) -> None:
        """End it at once, with what it has started in its process group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def signal(self, number: int) -> None:
        """Send it a signal. Not before it is ready: until it has a handler, the signal would kill it."""
        if self.ready:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def ended(self, wait_status: int) -> Ended:
        """Return how it ended. What it said last may be unread: it dies, and both events come at once."""
        self.ready = self.hear() or self.ready
        self.connection.close()
        return Ended(os.waitstatus_to_exitcode(wait_status), self.ready, self.age_s)
