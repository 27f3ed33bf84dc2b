"""One worker process, seen from its supervisor.

It is started by `posix_spawn` in a process group of its own: a terminal's Ctrl-C reaches the supervisor alone, and a
stop at once takes along what the worker's tasks have started.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

from asyncq.health import Health, HealthState
from asyncq.supervisor.link import FD_VARIABLE, NUMBER_VARIABLE
from asyncq.supervisor.restarts import Ended

__all__ = ["WorkerProcess"]

_UNREADY_END_S = 30.0
_OWN_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGUSR1, signal.SIGPIPE)


@dataclass(frozen=True, slots=True)
class Told:
    """What a process has last told of its health.

    Attributes:
        state: How it was.
        detail: A cause, or nothing.
        patience_s: For how long nothing need be heard from it, in seconds; until it has told, for ever: its app may
            take long to import, and a process that hangs there is not ready anyway.
        at: When it was heard, by the monotonic clock.
    """

    state: HealthState
    detail: str = ""
    patience_s: float = float("inf")
    at: float = 0.0


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
        self._said = b""
        self._told = Told("starting")
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

    @property
    def health(self) -> Health:
        """How it is, as far as is known here; read by another thread."""
        told = self._told
        unheard_s = time.monotonic() - told.at
        if unheard_s > told.patience_s:
            return Health("silent", f"nothing was heard from it for {unheard_s:.0f} s", self.number, self.pid)
        if told.state == "ready" and self.draining:
            return Health("stopping", "", self.number, self.pid)
        return Health(told.state, told.detail, self.number, self.pid)

    def hear(self) -> bool:
        """Read what it has said; return whether it has just become ready."""
        try:
            said = self.connection.recv(4096)
        except (BlockingIOError, ConnectionError):
            return False
        self.silent = not said
        *lines, self._said = (self._said + said).split(b"\n")
        became_ready = [self._take(line.decode()) for line in lines]
        return True in became_ready

    def _take(self, line: str) -> bool:
        word, _, value = line.partition(" ")
        if word == "ready":
            self.ready = True
            self.longest_end_s = float(value)
            return True
        if word == "leave":
            self.leaving = True
        elif word == "health":
            state, detail, patience_s = json.loads(value)
            self._told = Told(state, detail, patience_s, time.monotonic())
        return False

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
