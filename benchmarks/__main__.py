"""asyncq beside raw aio-pika and Celery: `python benchmarks` (`make bench`).

Both sides run in processes of their own and take turns, on quorum queues with the same arguments behind the same
exchange; messages are persistent, mandatory and confirmed. The raw side decodes the JSON and acks each message;
asyncq's validates three fields on both ends, runs a task for each, and logs at warning. What is published and
drained asks for no reply. What results cost, and Celery: see keeping.py. What logs, metrics and traces cost: see
operating.py.

The ratio is asyncq's figure divided by the other side's, the median of some rounds. Other work on the machine changes
the absolute figures; they are recorded beside it.

Exit codes: 0 all limits are kept, 1 one is not, 2 wrong usage, 4 no RabbitMQ can be had here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from asyncq.testing.node import NodeUnavailable
from bench import Bench, Sizes
from broker import bench_broker
from calling import measure_calling
from draining import measure_draining
from figures import Figure, missed
from importing import measure_imports
from keeping import measure_keeping
from operating import measure_operating
from publishing import measure_publishing
from report import circumstances, table
from resting import measure_memory
from workflows import measure_workflows

MEASUREMENTS: dict[str, Callable[[Bench], Awaitable[list[Figure]]]] = {
    "publish": measure_publishing,
    "drain": measure_draining,
    "call": measure_calling,
    "memory": measure_memory,
    "import": measure_imports,
    "results": measure_keeping,
    "workflows": measure_workflows,
    "operation": measure_operating,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code.

    Args:
        arguments: The command line without the program's name; by default this process's.
    """
    options = _parser().parse_args(arguments)
    sizes = Sizes.quick() if options.quick else Sizes()
    started = time.monotonic()
    try:
        with bench_broker(options.version) as broker:
            facts = circumstances(broker)
            print(
                f"asyncq {facts['asyncq']} beside aio-pika {facts['aio_pika']}, on RabbitMQ {broker.version}, "
                f"Python {facts['python']}, {facts['cpus']} CPUs, load {facts['load'][0]}",
                flush=True,
            )
            figures, told = asyncio.run(_measure(broker.url, sizes, options.only))
    except NodeUnavailable as error:
        print(error, file=sys.stderr)
        return 4
    print(f"\n{table(figures, judged=not options.quick)}\n")
    print("".join(f"{line}\n" for line in told), flush=True)
    print(f"{time.monotonic() - started:.0f} s." + (" A quick run is too short to judge." if options.quick else ""))
    if options.json is not None:
        record = {**facts, "quick": options.quick, "told": told, "figures": [figure.as_json() for figure in figures]}
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    too_bad = [] if options.quick else missed(figures)
    for figure in too_bad:
        print(f"Missed: {figure.name}: {figure.ratio:.2f}, and it must be {figure.limit}.", file=sys.stderr)
    return 1 if too_bad else 0


async def _measure(url: str, sizes: Sizes, only: Sequence[str]) -> tuple[list[Figure], list[str]]:
    figures: list[Figure] = []
    async with Bench(url, sizes) as bench:
        for name in only or MEASUREMENTS:
            print(f"{name} ...", file=sys.stderr, flush=True)
            figures += await MEASUREMENTS[name](bench)
    return figures, bench.told


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--version", help="the RabbitMQ version of a private node (default: ASYNCQ_TEST_BROKER_URL, or what is there)"
    )
    parser.add_argument("--quick", action="store_true", help="show that everything runs; too short to judge")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures of all rounds into this file")
    parser.add_argument(
        "--only", action="append", choices=MEASUREMENTS, default=[], help="one measurement only; repeatable"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
