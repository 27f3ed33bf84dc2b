"""What systemd is told of a worker or a scheduler: sd_notify(3), for units of `Type=notify` with `WatchdogSec=`.

    READY=1       once it is ready, or each of its processes is: `systemctl start` waits for it
    STATUS=...    how it is, in words: `systemctl status` shows it
    WATCHDOG=1    as long as it is alive; without it, systemd kills it and starts it again
    STOPPING=1    once it stops

Invariant: what a process starts is not taken for it: the variables are taken out of the environment.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator

from asyncq.health import HealthReport

__all__ = ["Systemd", "told_to_systemd"]

_BEAT_S = 1.0


class Systemd:
    """The way to systemd.

    Args:
        address: Its socket: a path, or an abstract name that begins with `@`.
        beat_s: How often it is told, in seconds.
    """

    def __init__(self, address: str, beat_s: float = _BEAT_S) -> None:
        self.beat_s = beat_s
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._was_ready = False
        self._was_stopping = False

    @classmethod
    def from_environment(cls) -> Systemd | None:
        """Return it where this process was started by systemd as a unit that wants to be told; else None."""
        address = os.environ.pop("NOTIFY_SOCKET", "")
        watchdog_us = os.environ.pop("WATCHDOG_USEC", "")
        watched = os.environ.pop("WATCHDOG_PID", str(os.getpid()))
        if not address.startswith(("/", "@")):
            return None
        if watchdog_us.isdigit() and watched == str(os.getpid()):
            return cls(address, min(_BEAT_S, int(watchdog_us) / 1e6 / 3))
        return cls(address)

    def tell(self, report: HealthReport) -> None:
        """Tell how it is."""
        lines = [f"STATUS={report.words}"]
        if report.alive:
            lines.append("WATCHDOG=1")
        if report.ready and not self._was_ready:
            self._was_ready = True
            lines.append("READY=1")
        if report.state == "stopping" and not self._was_stopping:
            self._was_stopping = True
            lines.append("STOPPING=1")
        # systemd is restarting, or reads nothing: the next word comes in a second.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
            connection.settimeout(0)
            connection.sendto("\n".join(lines).encode(), self._address)


@contextlib.contextmanager
def told_to_systemd(report: Callable[[], HealthReport]) -> Iterator[None]:
    """Tell systemd how it is, from a thread, until the block ends; nothing where systemd does not want it.

    Args:
        report: How it is; safe in any thread.
    """
    systemd = Systemd.from_environment()
    if systemd is None:
        yield
        return
    ended = threading.Event()

    def tell() -> None:
        while not ended.wait(systemd.beat_s):
            systemd.tell(report())

    thread = threading.Thread(target=tell, name="asyncq-systemd", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
