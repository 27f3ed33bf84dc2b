"""A journal in memory; see `asyncq.journal`.

Invariant: followers hear in the order of the appends, whatever threads these come from, because each is told under
the node's lock.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Protocol

from asyncq.errors import NotOpen, NotSent
from asyncq.journal import CaughtUp, Entry, Heard, Interrupted
from asyncq.memory.node import MemoryNode
from asyncq.rabbitmq.common_errors import too_large

__all__ = ["MemoryFollowing", "MemoryJournal"]


class _Client(Protocol):
    """What a journal needs of its broker."""

    followings: set[MemoryFollowing]
    is_open: bool


class MemoryJournal:
    """One journal; see `asyncq.journal.Journal`.

    Args:
        node: Where its log is.
        name: The log's name.
        keep_s: How long entries are kept, in seconds.
        max_bytes: Larger entries are refused.
        client: The broker, which may be closed.
    """

    def __init__(self, node: MemoryNode, name: str, keep_s: float, max_bytes: int, client: _Client) -> None:
        self._node = node
        self._name = name
        self._keep_s = keep_s
        self._max_bytes = max_bytes
        self._client = client

    async def append(self, body: bytes, *, timeout_s: float) -> None:
        """See `asyncq.journal.Journal.append`."""
        del timeout_s  # nothing here takes time
        if not self._client.is_open:
            raise NotSent("Nothing was sent: the connection to the broker is closed.")
        if len(body) > self._max_bytes:
            raise too_large(len(body), self._max_bytes, f"journal {self._name!r}")
        with self._node.changing():
            self._node.journal(self._name).append(body, self._keep_s)
        await asyncio.sleep(0)  # as any publish does, it lets others run

    @contextlib.asynccontextmanager
    async def follow(self) -> AsyncIterator[MemoryFollowing]:
        """See `asyncq.journal.Journal.follow`."""
        if not self._client.is_open:
            raise NotOpen("The connection to the broker is closed.")
        following = MemoryFollowing(self._node, self._name, self._keep_s)
        following.begin()
        self._client.followings.add(following)
        try:
            yield following
        finally:
            self._client.followings.discard(following)
            following.end(None)


class MemoryFollowing:
    """Reads a log; see `asyncq.journal.Following`.

    Args:
        node: Where the log is.
        name: Its name.
        keep_s: How old an entry may be, in seconds.
    """

    def __init__(self, node: MemoryNode, name: str, keep_s: float) -> None:
        self._node = node
        self._name = name
        self._keep_s = keep_s
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Queue[Heard | NotOpen | None] = asyncio.Queue()
        self._told = 0
        self._heard = 0
        self._ended = False

    def __aiter__(self) -> AsyncIterator[Heard]:
        return self

    async def __anext__(self) -> Heard:
        with self._node.changing():
            self._heard = self._told - self._arrived.qsize()
        item = await self._arrived.get()
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, NotOpen):
            self._arrived.put_nowait(item)  # it stays so
            raise item
        return item

    # --- life

    def begin(self) -> None:
        """Read what is there, and follow from now on."""
        with self._node.changing():
            log = self._node.journal(self._name)
            log.trim(self._keep_s)
            for body in log.read():
                self._put(Entry(body))
            self._put(CaughtUp())
            log.followers.append(self)

    def end(self, error: NotOpen | None) -> None:
        """Follow no more."""
        if self._ended:
            return
        self._ended = True
        with self._node.changing():
            followers = self._node.journal(self._name).followers
            if self in followers:
                followers.remove(self)
        self._arrived.put_nowait(error)

    # --- what the log calls, from any thread, under the node's lock

    @property
    def unheard(self) -> int:
        """See `asyncq.memory.log.Follower.unheard`."""
        return self._told - self._heard

    def tell(self, body: bytes) -> None:
        """See `asyncq.memory.log.Follower.tell`."""
        self._put(Entry(body))

    def begin_again(self) -> None:
        """See `asyncq.memory.log.Follower.begin_again`; also for a lost connection."""
        if not self._ended:
            with self._node.changing():
                followers = self._node.journal(self._name).followers
                if self in followers:
                    followers.remove(self)
                self._put(Interrupted())
                self.begin()

    def _put(self, item: Heard) -> None:
        self._told += 1
        self._node.call(self._loop, self._arrived.put_nowait, item)
