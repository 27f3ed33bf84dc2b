"""A thread that asks the event loop once a second whether it is there, and so knows when it is not.

    thread ──"are you there?"──▶ loop: looks at what there is to see ──"yes"──▶ thread
                  │ no answer
                  ▼
       `silent_s` grows; whoever asks about health, in any other thread, sees that

The look is the loop's, because what it looks at belongs to the loop; the judgement is the thread's, because a loop
that is stuck judges nothing.

Invariant: a stuck loop stops neither the thread nor those who ask it.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable
from typing import Final

from asyncq.loggers import get_logger

__all__ = ["BEAT_S", "Pulse"]

log = get_logger("asyncq.health")

BEAT_S: Final = 1.0


class Pulse:
    """Watches the running event loop from `start` to `stop`.

    Args:
        look: Called in the loop with each beat; it must take no time.
        tell: Called in the thread after each beat, and once a second while the loop does not answer.
        beat_s: How much time is between two beats, in seconds.
    """

    def __init__(self, look: Callable[[], object], tell: Callable[[], object], *, beat_s: float = BEAT_S) -> None:
        self._look = look
        self._tell = tell
        self._beat_s = beat_s
        self._asked: float | None = None
        self._lag_s = 0.0
        self._answered = threading.Event()
        self._stopping = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def silent_s(self) -> float:
        """For how long the loop has owed an answer, in seconds."""
        asked = self._asked
        return 0.0 if asked is None else time.monotonic() - asked

    @property
    def lag_s(self) -> float:
        """How long the loop took for its last answer, or has owed the present one, in seconds."""
        return max(self._lag_s, self.silent_s)

    def start(self) -> None:
        """Begin, in the loop that is to be watched. It looks once, at once."""
        self._loop = asyncio.get_running_loop()
        self._try(self._look)
        context = contextvars.copy_context()  # with what the log says of this process
        threading.Thread(target=context.run, args=(self._run,), name="asyncq-pulse", daemon=True).start()

    def stop(self) -> None:
        """End the thread. What has happened since the last beat is looked at once more: call it in the loop."""
        self._stopping.set()
        self._try(self._look)

    def _answer(self, asked: float) -> None:
        self._lag_s = time.monotonic() - asked
        self._asked = None
        self._answered.set()
        if not self._stopping.is_set():
            self._try(self._look)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._answered.clear()
            self._asked = asked = time.monotonic()
            assert self._loop is not None  # noqa: S101 - set by `start`
            try:
                self._loop.call_soon_threadsafe(self._answer, asked)
            except RuntimeError:
                return  # the loop is closed
            while not self._answered.wait(self._beat_s):
                if self._stopping.is_set():
                    return
                self._try(self._tell)
            self._try(self._tell)
            self._stopping.wait(self._beat_s)

    def _try(self, step: Callable[[], object]) -> None:
        try:
            step()
        except Exception:
            log.exception("the state of this process could not be looked at, or told")
