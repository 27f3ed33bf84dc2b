"""Barriers in memory: the same arrivals and endings as on RabbitMQ, in a dictionary of the node's.

Invariant: one client holds the members of a chord at a time, and whoever waits for them hears when they are given back
or gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from asyncq.barrier import Member
from asyncq.errors import QueueGone
from asyncq.memory.node import MemoryNode
from asyncq.memory.queues import MemoryBarrier
from asyncq.message import ReplyType
from asyncq.rabbitmq.common_errors import too_large
from asyncq.rabbitmq.topology import Names

__all__ = ["MemoryBarriers"]


class MemoryBarriers:
    """See `asyncq.barrier.Barriers`.

    Args:
        node: Where they are.
        names: How they are called.
        max_bytes: How much a message may have, and the values of a chord together.
        held: What this client holds: given back with its connection.
    """

    def __init__(self, node: MemoryNode, names: Names, max_bytes: int, held: set[MemoryGathered]) -> None:
        self._node = node
        self._names = names
        self._max_bytes = max_bytes
        self._held = held

    async def open(self, chord: str, head: bytes, *, keep_s: float, timeout_s: float) -> None:
        """See `asyncq.barrier.Barriers.open`."""
        del timeout_s  # nothing here takes time
        self._check_size(head, chord)
        with self._node.changing():
            until_s = self._node.clock.monotonic() + keep_s
            barrier = self._node.barriers.setdefault(self._names.chord_queue(chord), MemoryBarrier(head, until_s))
            if barrier.head is None:
                barrier.head = head
            barrier.opened += 1
        await asyncio.sleep(0)  # as any publish does, it lets others run

    async def arrive(self, chord: str, size: int, member: Member, *, timeout_s: float) -> MemoryGathered | None:
        """See `asyncq.barrier.Barriers.arrive`."""
        del timeout_s
        self._check_size(member.body, chord)
        await asyncio.sleep(0)
        queue = self._names.chord_queue(chord)
        with self._node.changing():
            barrier = self._find(queue)
            if barrier is None:
                raise QueueGone(f"There is no queue {queue!r} (any more), at which the members of a chord arrive.")
            known = barrier.members.get(member.index)
            if known is None or (known.kind != ReplyType.SUCCEEDED and member.kind == ReplyType.SUCCEEDED):
                barrier.members[member.index] = member
        return await self._gathered(queue, size)

    async def _gathered(self, queue: str, size: int) -> MemoryGathered | None:
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        unlisten = self._node.listen(lambda: self._node.call(loop, changed.set))
        try:
            while True:
                with self._node.looking():
                    barrier = self._find(queue)
                    if barrier is None or barrier.head is None or len(barrier.members) < size:
                        return None
                    if not barrier.is_held:
                        barrier.is_held = True
                        return MemoryGathered(self._node, queue, barrier, barrier.head, self._max_bytes, self._held)
                await changed.wait()
                changed.clear()
        finally:
            unlisten()

    async def remove(self, chord: str) -> None:
        """See `asyncq.barrier.Barriers.remove`."""
        self._node.delete_queue(self._names.chord_queue(chord))

    def _find(self, queue: str) -> MemoryBarrier | None:
        barrier = self._node.barriers.get(queue)
        if barrier is not None and not barrier.is_held and barrier.until_s <= self._node.clock.monotonic():
            self._node.barriers.pop(queue)
            return None
        return barrier

    def _check_size(self, body: bytes, chord: str) -> None:
        if len(body) > self._max_bytes:
            raise too_large(len(body), self._max_bytes, f"queue {self._names.chord_queue(chord)!r}")


class MemoryGathered:
    """See `asyncq.barrier.Gathered`."""

    def __init__(
        self,
        node: MemoryNode,
        queue: str,
        barrier: MemoryBarrier,
        head: bytes,
        max_bytes: int,
        held: set[MemoryGathered],
    ) -> None:
        self._node = node
        self._queue = queue
        self._barrier = barrier
        self._held = held
        self.head = head
        self.was_held = barrier.was_held
        self.members: Sequence[Member] = [member for _, member in sorted(barrier.members.items())]
        self.is_too_large = sum(len(member.body) + 1 for member in self.members) > max_bytes
        held.add(self)

    async def done(self) -> None:
        """See `asyncq.barrier.Gathered.done`."""
        self._end(self._leave if self._barrier.opened > 1 else lambda: self._node.delete_queue(self._queue))

    async def give_back(self) -> None:
        """See `asyncq.barrier.Gathered.give_back`."""
        self.lose()

    def _leave(self) -> None:
        with self._node.changing():
            self._barrier.head, self._barrier.opened, self._barrier.is_held = None, 0, False
            self._barrier.members.clear()

    def lose(self) -> None:
        """Do what a lost connection does."""

        def release() -> None:
            with self._node.changing():
                self._barrier.is_held, self._barrier.was_held = False, True

        self._end(release)

    def _end(self, how: Callable[[], None]) -> None:
        if self in self._held:
            self._held.discard(self)
            how()
