"""The same worker on uvloop and on asyncio's own event loop: `python benchmarks/event_loops.py`.

Each round drains a filled queue twice, by a fresh worker on each loop, in turns. The ratio is uvloop's rate divided
by asyncio's, the median of the rounds.

Exit codes: 0 measured, 4 no RabbitMQ can be had here.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from asyncq.testing.node import NodeUnavailable
from bench import QUEUES, Bench, Sizes, alternate, asyncq_worker, metered
from broker import bench_broker
from processes import Child

__all__ = ["main"]

LOOPS = ("asyncio", "uvloop")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", help="the RabbitMQ version of a private node")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args(arguments)
    try:
        with bench_broker(options.version) as broker:
            ratios = asyncio.run(_measure(broker.url, options.rounds))
            print(
                f"RabbitMQ {broker.version}: drain on uvloop / on asyncio: {statistics.median(ratios):.2f} "
                f"({min(ratios):.2f}..{max(ratios):.2f} in {len(ratios)} rounds)"
            )
    except NodeUnavailable as error:
        print(error, file=sys.stderr)
        return 4
    return 0


async def _measure(url: str, rounds: int) -> list[float]:
    ratios = []
    async with Bench(url, Sizes()) as bench, bench.producer("asyncq") as filler:
        for number in range(rounds):
            rates = {loop: await _drain(bench, filler, loop) for loop in alternate(number, LOOPS)}
            ratios.append(rates["uvloop"] / rates["asyncio"])
    return ratios


async def _drain(bench: Bench, filler: Child, loop: str) -> float:
    """Return messages a second."""
    queue, count = QUEUES["asyncq"], bench.sizes.drained
    await bench.purge()
    await filler.ask("fill", queue=queue, count=count)
    environment = {**bench.environment, **metered(count, bench.sizes.warm_up)}
    async with Child(asyncq_worker(queue, loop), environment) as worker:
        answer: dict[str, Any] = await worker.answer()
    return float(answer["count"] / answer["seconds"])


if __name__ == "__main__":
    sys.exit(main())
