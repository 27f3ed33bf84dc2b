"""What a worker takes while it waits: its memory."""

from __future__ import annotations

import contextlib

from bench import SIDES, Bench, alternate
from figures import Figure, Limit, Pair

__all__ = ["measure_memory"]


async def measure_memory(bench: Bench) -> list[Figure]:
    """Return the memory (PSS) of fresh workers that consume from empty queues.

    Both run at the moment of the look, because what processes share is divided among them.
    """
    memory = Figure("idle worker's memory (PSS), 100 slots", "MiB", Limit("at most", 2.3))
    await bench.purge()
    for number in range(bench.sizes.memory_rounds):
        async with contextlib.AsyncExitStack() as stack:
            workers = {}
            for side in alternate(number):
                workers[side] = await stack.enter_async_context(bench.worker(side))
                await bench.consuming(side, workers[side], bench.consumers(side))
            raw, own = (workers[side].pss_mib() for side in SIDES)
            memory.rounds.append(Pair(raw, own))
    return [memory]
