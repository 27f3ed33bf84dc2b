"""Call a task and wait for its result: one at a time, and 50 at a time."""

from __future__ import annotations

import contextlib
import statistics

from bench import SIDES, Bench, alternate
from figures import Figure, Limit, Pair

__all__ = ["measure_calling"]

_AT_ONCE = 50


async def measure_calling(bench: Bench) -> list[Figure]:
    """Return the median and the 95th percentile of single calls, and the rate of many."""
    p50 = Figure("round trip, one at a time, p50", "ms", Limit("at most", 1.3))
    p95 = Figure("  p95", "ms")
    rate = Figure("round trips, 50 at a time", "calls/s")
    await bench.purge()
    async with contextlib.AsyncExitStack() as stack:
        producers = {}
        for side in SIDES:
            worker = await stack.enter_async_context(bench.worker(side))
            await bench.consuming(side, worker, bench.consumers(side))
            producers[side] = await stack.enter_async_context(bench.producer(side))
            await producers[side].ask("call", count=20)  # the reply queue, imports, caches
        for number in range(bench.sizes.rounds):
            single: dict[str, list[float]] = {side: [] for side in SIDES}
            seconds: dict[str, float] = dict.fromkeys(SIDES, 0.0)
            for turn in range(bench.sizes.slices):  # short ones: both sides meet the same moments of a busy machine
                for side in alternate(number + turn):
                    answer = await producers[side].ask("call", count=bench.sizes.calls)
                    single[side] += [each_s * 1000 for each_s in answer["each_s"]]
                for side in alternate(number + turn):
                    answer = await producers[side].ask("call_many", count=bench.sizes.calls_at_once, at_once=_AT_ONCE)
                    seconds[side] += answer["seconds"]
            many = {side: bench.sizes.slices * bench.sizes.calls_at_once / seconds[side] for side in SIDES}
            p50.rounds.append(Pair(statistics.median(single["raw"]), statistics.median(single["asyncq"])))
            p95.rounds.append(Pair(_p95(single["raw"]), _p95(single["asyncq"])))
            rate.rounds.append(Pair(many["raw"], many["asyncq"]))
    return [p50, p95, rate]


def _p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]
