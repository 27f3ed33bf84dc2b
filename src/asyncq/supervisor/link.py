"""A worker's end of the link to its supervisor: a socket that both hold, and that ends with either.

    worker ──"ready"──▶ supervisor        it consumes
    worker ──"leave"──▶ supervisor        it drains, and nobody shall take its place: `asyncq drain`
    worker ──"health"─▶ supervisor        how it is, once a second
    worker ◀──"drain"── supervisor        stop: the same as the first SIGTERM, and no matter how often
    worker ◀───end───── supervisor gone   drain as well, and end in any case

The supervisor asks by the link and not by a signal: systemd, `kill -- -PGID` and terminals send theirs to the worker
as well, and then the supervisor's would be the second one, which stops at once.

A thread listens, not the event loop: code that blocks the loop must not outlive a supervisor that was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Final

from asyncq.health import Health
from asyncq.worker.exit_codes import DRAINED, FAULT

__all__ = ["FD_VARIABLE", "NUMBER_VARIABLE", "SupervisorLink"]

FD_VARIABLE: Final = "ASYNCQ_SUPERVISOR_FD"
NUMBER_VARIABLE: Final = "ASYNCQ_WORKER_PROCESS"

_DETAIL_CHARACTERS: Final = 500
_MARGIN_S: Final = 30.0
"""How much longer than its drain timeout a worker may take to end."""


class SupervisorLink:
    """The worker's end. It is made first of all, before the user's app is imported.

    Args:
        connection: The socket.
        number: Which of the processes this is, from 1.

    Attributes:
        number: Which of the processes this is, from 1.
        on_drain: What the supervisor's wish, or its end, does; called in a thread, more than once. Until it is
            set, the process ends at once: nothing has begun.
    """

    def __init__(self, connection: socket.socket, number: int) -> None:
        self.number = number
        self.on_drain: Callable[[], object] = lambda: os._exit(DRAINED)
        self._connection = connection
        self._longest_end_s = _MARGIN_S
        self._writing = threading.Lock()
        threading.Thread(target=self._listen, name="asyncq-supervisor-link", daemon=True).start()

    @classmethod
    def from_environment(cls) -> SupervisorLink | None:
        """Return the link that this process was started with; None for a worker on its own.

        The variables are taken out of the environment: what tasks start is not the supervisor's child.
        """
        descriptor = os.environ.pop(FD_VARIABLE, None)
        number = os.environ.pop(NUMBER_VARIABLE, "1")
        if descriptor is None:
            return None
        connection = socket.socket(fileno=int(descriptor))
        connection.set_inheritable(False)
        return cls(connection, int(number))

    def ready(self, drain_timeout_s: float) -> None:
        """Tell the supervisor that this worker consumes.

        Args:
            drain_timeout_s: How long its drain may take, in seconds; some time later it is killed.
        """
        self._longest_end_s = drain_timeout_s + _MARGIN_S
        self._say(f"ready {self._longest_end_s}")

    def health(self, health: Health, patience_s: float) -> None:
        """Tell the supervisor how this worker is. It waits while the supervisor reads nothing: not on an event loop.

        Args:
            health: How it is.
            patience_s: For how long nothing may be heard from it before it counts as dead, in seconds.
        """
        self._say(f"health {json.dumps([health.state, health.detail[:_DETAIL_CHARACTERS], patience_s])}")

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError), self._writing:  # the supervisor is gone: the listener knows it too
            self._connection.sendall(f"{line}\n".encode())

    def leave(self) -> None:
        """Tell the supervisor that this worker drains for good."""
        with contextlib.suppress(OSError):  # as above
            self._connection.sendall(b"leave\n")

    def _listen(self) -> None:
        while self._receive():
            self.on_drain()
        self.on_drain()
        time.sleep(self._longest_end_s)
        os._exit(FAULT)  # nobody else is left to end it

    def _receive(self) -> bytes:
        try:
            return self._connection.recv(64)
        except OSError:
            return b""
