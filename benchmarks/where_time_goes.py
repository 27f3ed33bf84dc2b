"""Where a worker's time goes while it runs workflows: `python benchmarks/where_time_goes.py`.

A worker runs in this process, under cProfile; the producer that sends the workflows and waits for them has a process of
its own. What each part of the program takes is its functions' own time, without what they call; what the event loop
waits for the broker and the producer is told apart. cProfile makes small functions look larger than they are.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import pstats
import sys
import time
from collections import Counter
from pathlib import Path

from asyncq.rabbitmq.adapter import RabbitMQ
from asyncq.testing.node import NodeUnavailable
from asyncq_app import QUEUE, app
from bench import SLOTS, Bench, Sizes
from broker import bench_broker
from workflows import Kind, kinds

__all__: list[str] = []

WAITING = "waiting for the broker"
PARTS = {
    "asyncq/rabbitmq": "asyncq: the way to the broker",
    "asyncq/worker": "asyncq: running and settling tasks",
    "asyncq/interpreter": "asyncq: going on with workflows",
    "asyncq/program": "asyncq: going on with workflows",
    "asyncq/barrier": "asyncq: going on with workflows",
    "asyncq/outgoing": "asyncq: going on with workflows",
    "asyncq/": "asyncq: the rest",
    "aiormq": "aiormq, pamqp",
    "pamqp": "aiormq, pamqp",
    "aio_pika": "aiormq, pamqp",
    "asyncio": "asyncio",
    "pydantic": "pydantic, JSON",
    "json": "pydantic, JSON",
}


def part_of(file: str, function: str) -> str:
    """Return which part of the program a function belongs to."""
    if "epoll" in function or "select.select" in function:
        return WAITING
    if "pydantic" in function or "from_json" in function or "to_json" in function:
        return "pydantic, JSON"
    return next((part for known, part in PARTS.items() if known in file), "Python itself")


async def profiled(url: str, kind: Kind, times: int) -> tuple[cProfile.Profile, float]:
    """Run a workflow some times, and return the worker's profile and how long all took, in seconds."""
    async with Bench(url, Sizes.quick()) as bench:
        with app.using(RabbitMQ, broker_url=url):
            async with bench.producer("asyncq") as producer, app:
                worker = app.worker({QUEUE: SLOTS})
                running = asyncio.create_task(worker.run())
                await worker.consuming()
                await producer.ask("workflow", kind=kind.shape, size=kind.size)
                profile = cProfile.Profile()
                began = time.perf_counter()
                profile.enable()
                for _ in range(times):
                    await producer.ask("workflow", kind=kind.shape, size=kind.size)
                profile.disable()
                took_s = time.perf_counter() - began
                worker.stop()
                await running
    return profile, took_s


def shares(profile: cProfile.Profile) -> Counter[str]:
    """Return the seconds that each part took by itself."""
    found: Counter[str] = Counter()
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    for (file, _, function), (_, _, own_s, _, _) in stats.items():
        found[part_of(Path(file).as_posix(), function)] += own_s
    return found


def main() -> int:
    """Profile one kind of workflow after the other, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", help="the RabbitMQ version of a private node")
    parser.add_argument("--times", type=int, default=3, help="how often each workflow runs")
    options = parser.parse_args()
    try:
        with bench_broker(options.version) as broker:
            for kind in kinds(Sizes()):
                profile, took_s = asyncio.run(profiled(broker.url, kind, options.times * kind.in_a_row))
                found = shares(profile)
                total_s = sum(found.values())
                print(f"\n{kind.name}: {1000 * took_s / options.times / kind.in_a_row:,.0f} ms, with the profiler")
                for part, seconds in found.most_common():
                    print(f"  {seconds / total_s:5.0%}  {part}")
    except NodeUnavailable as error:
        print(error, file=sys.stderr)
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
