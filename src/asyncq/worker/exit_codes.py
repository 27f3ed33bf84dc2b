"""How a worker process ended, told by its exit code: for the supervisor, systemd, Kubernetes.

Invariant: two ends that call for different answers have different codes.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "BROKER",
    "DRAINED",
    "FAULT",
    "HANDED_BACK",
    "LIFESPAN",
    "REFUSED",
    "RESTART",
    "WRONG_INPUT",
    "after_signal",
    "meaning",
]

DRAINED: Final = 0
"""It was asked to stop, and all that ran has finished. Also: the signal came before it had begun."""
WRONG_INPUT: Final = 2
"""The command line, the configuration or the app is wrong: starting it again does not help."""
BROKER: Final = 3
"""No broker could be reached within the connect timeout: starting it again may help."""
REFUSED: Final = 4
"""The broker will not have it (credentials, virtual host, permission, a queue with other arguments)."""
HANDED_BACK: Final = 5
"""It was asked to stop, and what had not finished within the drain timeout was handed back to its queue."""
LIFESPAN: Final = 6
"""The app's lifespan failed, at the start or at the end: starting it again may help."""
FAULT: Final = 70
"""Something that nothing here foresaw; a traceback says where (EX_SOFTWARE)."""
RESTART: Final = 75
"""It has drained by itself and wants to be started again (EX_TEMPFAIL)."""

_MEANINGS: Final = {
    DRAINED: "drained",
    WRONG_INPUT: "wrong configuration",
    BROKER: "broker not reachable",
    REFUSED: "refused by the broker",
    HANDED_BACK: "drained, and tasks that took too long were handed back",
    LIFESPAN: "the app's lifespan failed",
    FAULT: "fault",
    RESTART: "asked to be started again",
}


def after_signal(number: int) -> int:
    """Return the exit code of a process that stopped at once because of a signal, as shells count it."""
    return 128 + number


def meaning(code: int) -> str:
    """Return what an exit code of a worker says, in words."""
    return _MEANINGS.get(code, f"exit code {code}")
