"""What follows from the end of a worker process that nobody has asked to stop.

    ended by itself (RESTART), or by a signal sent to it alone ─▶ again, at once
    died after it was ready                                    ─▶ again, after a pause that grows with each quick death
    died before it was ready                                   ─▶ likewise, MAX_STARTS times in a row; then give up
    found no broker, and one of them was ready before          ─▶ likewise, and for ever: the others wait for it as well
    refused by the broker, or the app is wrong at the start    ─▶ give up at once

A process that was ready is started again for ever: a message that kills its worker kills one more with each
delivery, until `poison_after` ends that, and it must not end the service before.

Invariant: pure. Whoever asks does what it is told.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Final

from asyncq.worker.exit_codes import (
    BROKER,
    DRAINED,
    FAULT,
    HANDED_BACK,
    REFUSED,
    RESTART,
    WRONG_INPUT,
    after_signal,
    meaning,
)

__all__ = ["MAX_STARTS", "Again", "Ended", "GiveUp", "Restarts", "exit_code_of_all"]

MAX_STARTS: Final = 5
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 30.0
_QUICK_S: Final = 30.0
"""A process that has lived for less than this has died quickly."""

_ASKED: Final = frozenset({DRAINED, HANDED_BACK, RESTART, after_signal(signal.SIGTERM), after_signal(signal.SIGINT)})


@dataclass(frozen=True, slots=True)
class Ended:
    """How a worker process ended.

    Attributes:
        status: Its exit code, or the negative number of the signal that killed it.
        was_ready: Whether it had begun to consume.
        lived_s: For how long it has lived, in seconds.
    """

    status: int
    was_ready: bool
    lived_s: float

    @property
    def exit_code(self) -> int:
        """The exit code, as shells count it."""
        return after_signal(-self.status) if self.status < 0 else self.status

    @property
    def asked(self) -> bool:
        """Whether it ended because it was to: by itself in good order, or by a signal to stop."""
        return self.status in _ASKED or self.status in {-signal.SIGTERM, -signal.SIGINT}

    @property
    def how(self) -> str:
        """How it ended, in words."""
        if self.status >= 0:
            return meaning(self.status)
        try:
            name = signal.Signals(-self.status).name
        except ValueError:
            name = f"signal {-self.status}"
        return f"killed by {name}" + (", perhaps for want of memory" if self.status == -signal.SIGKILL else "")


@dataclass(frozen=True, slots=True)
class Again:
    """Start it again.

    Attributes:
        after_s: After this pause, in seconds.
    """

    after_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Stop everything.

    Attributes:
        exit_code: What the supervisor ends with.
        why: What is wrong, for people.
    """

    exit_code: int
    why: str


class Restarts:
    """Counts deaths, and says what follows.

    Args:
        places: How many processes there are.
    """

    def __init__(self, places: int) -> None:
        self._quick = [0] * places
        self._failed_starts = 0
        self._was_ready = False

    @property
    def was_ready(self) -> bool:
        """Whether any process has ever been ready."""
        return self._was_ready

    def ready(self) -> None:
        """Hear that a process has begun to consume: what stopped others from it is over."""
        self._was_ready = True
        self._failed_starts = 0

    def after(self, place: int, ended: Ended) -> Again | GiveUp:
        """Return what follows from this end.

        Args:
            place: Which of the processes, from 0.
            ended: How it ended.
        """
        if ended.status == REFUSED or (ended.status == WRONG_INPUT and not self._was_ready):
            return GiveUp(ended.exit_code, f"{ended.how}; its message says what to change")
        if ended.asked:
            self._quick[place] = 0
            return Again(0.0)
        self._quick[place] = self._quick[place] + 1 if ended.lived_s < _QUICK_S else 0
        if not ended.was_ready and not (ended.status == BROKER and self._was_ready):
            self._failed_starts += 1
            if self._failed_starts >= MAX_STARTS:
                return GiveUp(
                    ended.exit_code or FAULT,
                    f"{MAX_STARTS} worker processes in a row ended before they could consume; the last: {ended.how}",
                )
        return Again(min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** max(0, self._quick[place] - 1)))


def exit_code_of_all(ends: list[Ended]) -> int:
    """Return the exit code of a supervisor that was asked to stop, from how its processes ended then.

    The worst of them: a process that died counts more than tasks that were handed back, and these more than a clean
    end.
    """
    codes = [ended.exit_code for ended in ends]
    died = [code for code in codes if code not in {DRAINED, HANDED_BACK, RESTART}]
    if died:
        return died[0]
    return HANDED_BACK if HANDED_BACK in codes else DRAINED
