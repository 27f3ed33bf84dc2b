"""The tasks that shall not run: a compact set, bounded in time and in number.

An id takes 16 bytes, as a digest: two ids of one digest are not to be expected before 10^18 of them. It is forgotten
after `keep_s`, as the journal forgets it. Past `MOST` ids the oldest are forgotten early, and a warning says so.

Invariant: the set is as large as what was cancelled within `keep_s`, and a part more; looking up costs next to nothing
while nothing is cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Iterable
from hashlib import blake2b
from itertools import islice

from asyncq.clock import Clock, SystemClock
from asyncq.loggers import get_logger
from asyncq.message import ROOT_ID, Message
from asyncq.program_json import is_step

__all__ = ["MOST", "Revocations", "is_of_any"]

log = get_logger("asyncq.worker")

MOST = 1_000_000
"""About 130 MB."""

_PARTS = 16
"""How often, within `keep_s`, what is too old is taken out."""

_PATIENCE_S = 10.0
"""How long deliveries wait for a journal that is behind. A lost connection is back sooner, or delivers nothing."""


class Revocations:
    """What is cancelled, as far as this worker knows.

    Args:
        clock: What the age goes by.
        keep_s: How long an id is kept, in seconds. 0 where cancelling is switched off.
        most: How many are kept.
    """

    def __init__(self, clock: Clock | None = None, keep_s: float = 0.0, most: int = MOST) -> None:
        self._clock = clock or SystemClock()
        self._keep_ms = round(keep_s * 1000)
        self._most = most
        self._at_ms: dict[bytes, int] = {}
        self._next_sweep_ms = 0
        self._current = asyncio.Event()
        self._current.set()
        self._gives_up_at: float | None = None
        self._has_warned = False

    def __len__(self) -> int:
        return len(self._at_ms)

    def __contains__(self, task_id: object) -> bool:
        if not self._at_ms or not isinstance(task_id, str):
            return False
        at_ms = self._at_ms.get(_digest(task_id))
        return at_ms is not None and at_ms > self._clock.now_ms() - self._keep_ms

    def has(self, message: Message) -> bool:
        """Tell whether the task of a message, or the workflow that it belongs to, shall not run."""
        return bool(self._at_ms) and is_of_any(message, self)

    def add(self, ids: Iterable[str], at_ms: int) -> None:
        """Let these tasks not run.

        Args:
            ids: Theirs.
            at_ms: When somebody asked for it, in milliseconds since the epoch.
        """
        now_ms = self._clock.now_ms()
        at_ms = min(at_ms, now_ms)  # a time from the future comes from a clock that is ahead: it is kept no longer
        if at_ms <= now_ms - self._keep_ms:
            return
        for digest in map(_digest, ids):
            self._at_ms.pop(digest, None)  # to the end: the order is that of the last word on each
            self._at_ms[digest] = at_ms
        if now_ms >= self._next_sweep_ms:
            self._sweep(now_ms)
        if len(self._at_ms) > self._most:
            self._drop_oldest()

    def remove(self, ids: Iterable[str]) -> None:
        """Let these tasks run again."""
        for digest in map(_digest, ids):
            self._at_ms.pop(digest, None)

    # --- whether it is all

    @property
    def is_current(self) -> bool:
        """Whether all that was cancelled is known, as far as the broker can tell."""
        return self._current.is_set()

    def fall_behind(self) -> None:
        """Note that something may be missing."""
        self._current.clear()

    def catch_up(self) -> None:
        """Note that nothing is missing."""
        self._current.set()
        self._gives_up_at, self._has_warned = None, False

    async def wait_until_current(self) -> None:
        """Wait until nothing is missing; not for ever: work that goes on is worth more than a cancellation.

        The deliveries of one outage wait together: a journal that stays away must not slow each of them down.
        """
        loop = asyncio.get_running_loop()
        if self._gives_up_at is None:
            self._gives_up_at = loop.time() + _PATIENCE_S
        if self._gives_up_at <= loop.time():
            return
        try:
            async with asyncio.timeout_at(self._gives_up_at):
                await self._current.wait()
        except TimeoutError:
            if not self._has_warned:
                self._has_warned = True
                log.warning(
                    "cancellations cannot be read at the moment, so a task that was cancelled meanwhile may begin; it "
                    "is stopped when they can be read again",
                    waited_s=_PATIENCE_S,
                )

    # --- bounds

    def _sweep(self, now_ms: int) -> None:
        oldest_ms = now_ms - self._keep_ms
        self._at_ms = {digest: at_ms for digest, at_ms in self._at_ms.items() if at_ms > oldest_ms}
        self._next_sweep_ms = now_ms + max(1, self._keep_ms // _PARTS)

    def _drop_oldest(self) -> None:
        dropped = self._most // _PARTS + 1
        self._at_ms = dict(islice(self._at_ms.items(), dropped, None))
        log.warning("too many tasks are cancelled to remember them all: the oldest are forgotten", forgotten=dropped)


def is_of_any(message: Message, ids: Container[str]) -> bool:
    """Tell whether the ids have the task of a message, or the workflow that it belongs to."""
    if message.task_id in ids:
        return True
    # Tasks that a cancelled task has sent go on; the steps of a cancelled workflow do not.
    root_id = message.headers.get(ROOT_ID)
    return isinstance(root_id, str) and root_id in ids and is_step(message.body)


def _digest(task_id: str) -> bytes:
    return blake2b(task_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
