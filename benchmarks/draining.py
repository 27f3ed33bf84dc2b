"""Drain a filled queue: a fresh worker process each time, which times itself from inside."""

from __future__ import annotations

from typing import Any

from bench import QUEUES, Bench, Side, alternate
from figures import Figure, Limit, Pair
from processes import Child

__all__ = ["measure_draining"]


async def measure_draining(bench: Bench) -> list[Figure]:
    """Return the rate and the worker's CPU time for each message."""
    rate = Figure("drain, 100 slots beside prefetch 100", "msg/s", Limit("at least", 0.7))
    cpu = Figure("  worker CPU", "us/msg")
    async with bench.producer("asyncq") as filler:
        for number in range(bench.sizes.drain_rounds):
            answers = {side: await _drain(bench, filler, side) for side in alternate(number)}
            raw, own = answers["raw"], answers["asyncq"]
            rate.rounds.append(Pair(raw["count"] / raw["seconds"], own["count"] / own["seconds"]))
            cpu.rounds.append(Pair(raw["cpu_s"] / raw["count"] * 1e6, own["cpu_s"] / own["count"] * 1e6))
    return [rate, cpu]


async def _drain(bench: Bench, filler: Child, side: Side) -> dict[str, Any]:
    count = bench.sizes.drained
    await bench.purge()
    await filler.ask("fill", queue=QUEUES[side], count=count)
    async with bench.worker(side, count=count, warm_up=bench.sizes.warm_up) as worker:
        return await worker.answer()
