"""Letters taken out of a dead-letter queue, to settle or to keep each.

    pass 1 ──held for minutes, and none undecided──▶ given back ──▶ pass 2 ──▶ ... until each was seen once

Whoever takes may be slow: a replay at a given rate takes hours, and RabbitMQ closes the channel of a consumer that
holds a message for more than its consumer timeout, 30 minutes by default. So the kept ones go back after some minutes,
and the next pass begins. It meets them again, for nobody can say where in the queue they are by now, and passes them
over by their fingerprints.

Invariant: a letter is settled or still in the queue. Each is handed out once, and no more than were there at the
beginning: what comes meanwhile stands behind them, letters that failed again among it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from aiormq.abc import DeliveredMessage

from asyncq.broker import DeadLetter, TakenLetter
from asyncq.rabbitmq.look import Look
from asyncq.rabbitmq.topology import OpenChannel

__all__ = ["HELD_S", "RabbitTaking"]

HELD_S = 300.0
"""How long letters are held at most, in seconds, as long as whoever takes them decides soon."""


@dataclass(frozen=True, slots=True, eq=False)
class _Taken:
    """See `asyncq.broker.TakenLetter`."""

    letter: DeadLetter
    delivered: DeliveredMessage


class RabbitTaking:
    """See `asyncq.broker.Taking`.

    Args:
        open_channel: Gives a fresh channel of the administration connection.
        parked: The queue that is taken from.
        queue: Its task queue, for words.
        read: Makes a letter of a message.
        held_s: How long kept letters are held, in seconds.
    """

    def __init__(
        self,
        open_channel: OpenChannel,
        parked: str,
        queue: str,
        read: Callable[[DeliveredMessage], DeadLetter],
        held_s: float = HELD_S,
    ) -> None:
        self._open_channel = open_channel
        self._parked = parked
        self._queue = queue
        self._read = read
        self._held_s = held_s
        self._stack = AsyncExitStack()
        self._look: Look
        self._began = 0.0
        self._left = 0
        self._advanced = False
        self._undecided = 0
        self._settled = 0
        self._kept: Counter[int] = Counter()
        self._again: Counter[int] = Counter()
        self.total = 0

    async def begin(self) -> None:
        """Begin the first pass.

        Raises:
            QueueGone: There is no such queue.
            BrokerError: The broker could not be asked.
        """
        self.total = self._left = await self._begin_pass()

    async def end(self) -> None:
        """Give back what was not settled."""
        await self._stack.aclose()

    async def __aiter__(self) -> AsyncIterator[_Taken]:
        while self._left:
            if self._is_over():
                await self._next_pass()
                continue
            delivered = await self._look.next(self._left)
            if delivered is None:
                return
            self._left -= 1
            fingerprint = _fingerprint(delivered)
            if self._again[fingerprint]:
                self._again[fingerprint] -= 1
                continue
            self._undecided += 1
            self._advanced = True
            yield _Taken(self._read(delivered), delivered)

    async def settle(self, taken: Sequence[TakenLetter]) -> None:
        """See `asyncq.broker.Taking.settle`."""
        delivered = [one.delivered for one in taken if isinstance(one, _Taken)]
        if delivered:
            await self._look.settle(delivered)
            self._undecided -= len(delivered)
            self._settled += len(delivered)

    def keep(self, taken: TakenLetter) -> None:
        """See `asyncq.broker.Taking.keep`."""
        if isinstance(taken, _Taken):
            self._kept[_fingerprint(taken.delivered)] += 1
            self._undecided -= 1

    # --- passes

    def _is_over(self) -> bool:
        # Each pass hands out one letter at least: however many there are to pass over, there is an end.
        idle = self._undecided == 0 and self._advanced and bool(self._kept)
        return idle and self._now() - self._began > self._held_s

    async def _begin_pass(self) -> int:
        channel = await self._stack.enter_async_context(self._open_channel())
        self._look = Look(channel, self._parked, self._queue)
        self._stack.push_async_callback(self._look.give_back)
        self._began = self._now()
        self._advanced = False
        return await self._look.begin()

    async def _next_pass(self) -> None:
        await self._stack.aclose()
        self._again = self._kept.copy()
        there = await self._begin_pass()
        self._left = min(there, self.total - self._settled)
        self._look.stop_at(self._left)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _fingerprint(delivered: DeliveredMessage) -> int:
    """Return a number for a message, the same when it comes again; equal messages are counted, so they may share it."""
    properties = delivered.header.properties
    return hash((properties.message_id, properties.correlation_id, properties.message_type, delivered.body))
