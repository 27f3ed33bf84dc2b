"""The entries of one journal in memory, and who follows it.

Pure: it knows no event loop and no lock; its node's users call it under the node's.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from asyncq.clock import Clock

__all__ = ["Follower", "MemoryLog"]


class Follower(Protocol):
    """Who hears of each new entry."""

    @property
    def unheard(self) -> int:
        """How many entries it was told and has not come for."""
        ...

    def tell(self, body: bytes) -> None:
        """Hear of a new entry."""
        ...

    def begin_again(self) -> None:
        """Hear that the log was deleted."""
        ...


class MemoryLog:
    """One log.

    Args:
        clock: What the age of entries goes by.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._entries: deque[tuple[float, bytes]] = deque()
        self.followers: list[Follower] = []

    @property
    def unheard(self) -> int:
        """How many entries are on their way to followers."""
        return sum(follower.unheard for follower in self.followers)

    def append(self, body: bytes, keep_s: float) -> None:
        """Append an entry, and drop what is older than `keep_s`."""
        self._entries.append((self._clock.monotonic(), body))
        self.trim(keep_s)
        for follower in self.followers:
            follower.tell(body)

    def trim(self, keep_s: float) -> None:
        """Drop what is older than `keep_s`."""
        while self._entries and self._entries[0][0] < self._clock.monotonic() - keep_s:
            self._entries.popleft()

    def read(self) -> list[bytes]:
        """Return what is there."""
        return [body for _, body in self._entries]

    def delete(self) -> None:
        """Tell the followers that this log is gone."""
        for follower in tuple(self.followers):
            follower.begin_again()
