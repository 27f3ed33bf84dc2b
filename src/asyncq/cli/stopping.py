"""What asks a worker to stop: signals, and its supervisor.

The first signal drains, the second ends the process at once, also where code of a task blocks the event loop: Python
runs the handler between two of its instructions. The supervisor's wish drains as well, and is never a second signal.

Handlers are set for each signal that matters, because the kernel ignores those without one in process 1 of a
container.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final, NoReturn

from asyncq.loggers import get_logger
from asyncq.worker.exit_codes import DRAINED, after_signal

__all__ = ["StopSignals", "exit_at_once", "nothing_to_drain"]

log = get_logger("asyncq.cli")

_NUMBERS: Final = (signal.SIGTERM, signal.SIGINT)
_AT_ONCE: Final = b"stopping at once; what was running goes back to its queue\n"


class StopSignals:
    """Handles SIGTERM and SIGINT in the running event loop.

    Args:
        on_first: What the first wish to stop does, on the loop.
    """

    def __init__(self, on_first: Callable[[], object]) -> None:
        self.on_first = on_first
        self._received = 0
        self._asked = False
        self._loop = asyncio.get_running_loop()
        for number in _NUMBERS:
            self._loop.add_signal_handler(number, self._stop, signal.Signals(number).name)
            # The loop goes on to wake up for the signal; this counts it also while the loop is blocked.
            signal.signal(number, self._count)

    def ask(self, who: str) -> None:
        """Stop, as the first signal does; from any thread, and no matter how often."""
        with contextlib.suppress(RuntimeError):  # the loop has ended already
            self._loop.call_soon_threadsafe(self._stop, who)

    def _stop(self, why: str) -> None:
        if self._asked:
            return
        self._asked = True
        log.info("stopping; once more stops at once", signal=why)
        self.on_first()

    def _count(self, number: int, _frame: FrameType | None) -> None:
        self._received += 1
        if self._received > 1:
            # No log from here: the signal may have come in the middle of another line.
            with contextlib.suppress(OSError):
                os.write(2, _AT_ONCE)
            os._exit(after_signal(number))
        self.ask(signal.Signals(number).name)


@contextlib.contextmanager
def nothing_to_drain() -> Iterator[None]:
    """End the process at once by SIGTERM while it still loads the app: nothing has begun."""
    if threading.current_thread() is not threading.main_thread():  # only there can signals be handled
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: os._exit(DRAINED))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_at_once(code: int) -> NoReturn:
    """End the process without waiting for anything that still runs in it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
