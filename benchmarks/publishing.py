"""Publish 100 at a time: `asyncio.gather` of single publishes on both sides, and `send_many` on asyncq's."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from bench import SIDES, Bench, Side
from figures import Figure, Limit, Pair
from processes import Child, ChildFailed

__all__ = ["measure_publishing"]


async def measure_publishing(bench: Bench) -> list[Figure]:
    """Return the rates and the client's CPU time for each message."""
    limit = Limit("at least", 0.7)
    gathered = Figure("publish, 100 at a time (gather of send)", "msg/s", limit)
    batched = Figure("publish, 100 at a time (send_many)", "msg/s", limit)
    gathered_cpu = Figure("  client CPU, gather of send", "us/msg")
    batched_cpu = Figure("  client CPU, send_many", "us/msg")
    async with contextlib.AsyncExitStack() as stack:
        producers = {side: await stack.enter_async_context(bench.producer(side)) for side in SIDES}
        for side, is_batched in _WAYS:  # imports, caches, the broker's first segment
            await producers[side].ask("publish", count=100, batched=is_batched)
        for _ in range(bench.sizes.rounds):
            raw, own, many = await _round(bench, producers)
            gathered.rounds.append(Pair(raw.rate, own.rate))
            batched.rounds.append(Pair(raw.rate, many.rate))
            gathered_cpu.rounds.append(Pair(raw.cpu_us, own.cpu_us))
            batched_cpu.rounds.append(Pair(raw.cpu_us, many.cpu_us))
    return [gathered, gathered_cpu, batched, batched_cpu]


_WAYS: tuple[tuple[Side, bool], ...] = (("raw", False), ("asyncq", False), ("asyncq", True))


@dataclass(slots=True)
class _Sum:
    """What one way of publishing has taken in a round."""

    count: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0

    @property
    def rate(self) -> float:
        return self.count / self.seconds

    @property
    def cpu_us(self) -> float:
        return self.cpu_s / self.count * 1e6


async def _round(bench: Bench, producers: dict[Side, Child]) -> list[_Sum]:
    """Take turns in short slices, so that all ways meet the same moments of a busy machine."""
    await bench.purge()
    sums = {way: _Sum() for way in _WAYS}
    for number in range(bench.sizes.slices):
        first = number % len(_WAYS)
        for way in (*_WAYS[first:], *_WAYS[:first]):
            side, is_batched = way
            answer = await producers[side].ask("publish", count=bench.sizes.publishes, batched=is_batched)
            sums[way].count += bench.sizes.publishes
            sums[way].seconds += answer["seconds"]
            sums[way].cpu_s += answer["cpu_s"]
    for side in SIDES:
        sent = sum(sums[way].count for way in _WAYS if way[0] == side)
        if (there := await bench.ready(side)) != sent:
            raise ChildFailed(f"{side} published {sent} messages, and {there} are in its queue")
    return [sums[way] for way in _WAYS]
