"""A worker's memory over very many tasks: `python benchmarks/endurance.py --tasks 100000 --svg FILE`.

One worker with 20 slots runs tasks of every kind: on the loop and in threads, with and without results, some that
fail and some that come again. It tells its memory (private pages) after each thousand. The memory is flat when it
does not grow by more than `FLAT_MIB` from the end of the warm-up, the first fifth, to the end, by a straight line
through all that was measured.

Exit codes: 0 flat, 1 not, 4 no RabbitMQ can be had here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from asyncq import AsyncQ
from asyncq.broker import QueueSpec
from asyncq.testing.node import NodeUnavailable
from broker import BenchBroker, bench_broker
from endurance_app import EVERY, QUEUE
from payload import FIELDS
from plot import line_plot
from processes import Child

__all__ = ["FLAT_MIB", "growth_mib", "main"]

FLAT_MIB = 3.0
_SLOTS = 20
_BATCH = 500
_AHEAD = 3000
"""So many tasks are sent before the worker has to follow."""
_WARM_UP = 0.2

Sample = tuple[int, float]
"""Attempts so far, and MiB."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        with bench_broker(options.version) as broker:
            print(f"one worker, {options.tasks:,} tasks, on RabbitMQ {broker.version}", flush=True)
            samples = asyncio.run(_measure(broker, options.tasks, options.loop))
    except NodeUnavailable as error:
        print(error, file=sys.stderr)
        return 4
    growth = growth_mib(samples)
    first, last = samples[int(len(samples) * _WARM_UP)][1], samples[-1][1]
    print(
        f"{samples[-1][0]:,} attempts: {first:.1f} MiB after the warm-up, {last:.1f} MiB at the end, "
        f"grown by {growth:+.2f} MiB (flat: at most {FLAT_MIB:g})"
    )
    if options.svg is not None:
        title = f"A worker's memory over {options.tasks:,} tasks (RabbitMQ {broker.version})"
        options.svg.parent.mkdir(parents=True, exist_ok=True)
        options.svg.write_text(line_plot(samples, title, "attempts", "MiB"))
    return 0 if growth <= FLAT_MIB else 1


def growth_mib(samples: Sequence[Sample]) -> float:
    """Return by how much the memory grows from the end of the warm-up to the end, by the method of least squares."""
    kept = samples[int(len(samples) * _WARM_UP) :]
    mean_x = sum(x for x, _ in kept) / len(kept)
    mean_y = sum(y for _, y in kept) / len(kept)
    spread = sum((x - mean_x) ** 2 for x, _ in kept)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in kept) / spread if spread else 0.0
    return slope * (kept[-1][0] - kept[0][0])


async def _measure(broker: BenchBroker, tasks: int, loop: str) -> list[Sample]:
    command = (
        *("-m", "asyncq", "worker", "endurance_app:app", f"--queue={QUEUE}:{_SLOTS}"),
        *("--log-level=critical", f"--loop={loop}"),
    )
    environment = {**os.environ, "ASYNCQ_BROKER_URL": broker.url, "PYTHONUNBUFFERED": "1"}
    samples: list[Sample] = []
    followed = asyncio.Event()
    async with Child(command, environment) as worker, asyncio.TaskGroup() as group:
        group.create_task(_send(broker.url, tasks, samples, followed))
        expected = tasks + tasks // 20  # each twentieth comes again
        while not samples or samples[-1][0] < expected - 2 * EVERY:
            answer = await worker.answer()
            samples.append((answer["done"], answer["mib"]))
            followed.set()
            if sys.stderr.isatty():
                print(f"\r{json.dumps(answer)}", end="", file=sys.stderr)
    return samples


async def _send(url: str, tasks: int, samples: Sequence[Sample], followed: asyncio.Event) -> None:
    async with AsyncQ("bench", broker=url) as app:
        await app.broker.ensure([QueueSpec(QUEUE)])
        for first in range(0, tasks, _BATCH):
            names = [_name(number) for number in range(first, min(tasks, first + _BATCH))]
            await app.send_many(
                app.signature(f"bench.{name}", FIELDS, queue=QUEUE, reply=number % 10 == 0)
                for number, name in enumerate(names)
            )
            while first - (samples[-1][0] if samples else 0) > _AHEAD:
                followed.clear()
                await followed.wait()


def _name(number: int) -> str:
    """Of twenty tasks one fails, one comes again, four run in threads."""
    match number % 20:
        case 3:
            return "fails"
        case 7:
            return "comes_again"
        case 1 | 6 | 11 | 16:
            return "in_thread"
        case _:
            return "on_loop"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=100_000, help="how many (default: 100,000)")
    parser.add_argument("--version", help="the RabbitMQ version of a private node")
    parser.add_argument("--loop", choices=("auto", "asyncio", "uvloop"), default="auto", help="the worker's event loop")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the memory into this file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
