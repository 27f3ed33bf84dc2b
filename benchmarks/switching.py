"""What counting for metrics alone takes: one worker in which it is switched on and off every few messages.

Two processes differ by more than what is looked for here; neighbouring parts of one process do not. As a program:
`python switching.py QUEUE SLOTS COUNT BLOCK` drains a queue so, and prints `{"off": [...], "on": [...]}`: the CPU time
for a message, in microseconds, of each block of messages.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable

from asyncq import AsyncQ
from asyncq_app import QUEUE
from bench import SLOTS, Bench
from figures import Figure, Limit, Pair
from payload import Order
from processes import Child

__all__ = ["measure_switching"]

_ROUNDS = 10
_SETTLING_BLOCKS = 4
_LOOK_EVERY_S = 1.0


async def measure_switching(bench: Bench, filler: Child) -> Figure:
    """Return the CPU time for a message with counting beside that without, some tens of blocks in each round."""
    sizes = bench.sizes
    await bench.purge()
    await filler.ask("fill", queue=QUEUE, count=sizes.switched)
    command = ("switching.py", QUEUE, str(SLOTS), str(sizes.switched), str(sizes.switched_block))
    async with Child(command, bench.environment) as worker:
        blocks = await worker.answer()
    off, on = blocks["off"], blocks["on"]
    size = max(1, len(on) // _ROUNDS)
    pairs = [
        Pair(statistics.median(off[first : first + size]), statistics.median(on[first : first + size]))
        for first in range(0, len(on) - size + 1, size)
    ]
    name = f"metrics: counting, on and off each {sizes.switched_block} msg"
    return Figure(name, "us/msg", Limit("at most", 1.05), pairs, "the same worker, off")


class _Switch:
    """Counts messages, and switches after each block of them."""

    def __init__(self, block: int, switch: Callable[[bool], None]) -> None:
        self._block = block
        self._switch = switch
        self._count = 0
        self._on = False
        self._began = 0.0
        self.blocks: dict[bool, list[float]] = {False: [], True: []}

    def tick(self) -> None:
        """Count one message."""
        self._count += 1
        if self._count % self._block:
            return
        if self._count > _SETTLING_BLOCKS * self._block:
            self.blocks[self._on].append((time.process_time() - self._began) / self._block * 1e6)
        self._on = not self._on
        self._switch(self._on)
        self._began = time.process_time()


async def _drain(queue: str, slots: int, count: int, block: int) -> dict[str, list[float]]:
    from asyncq.observability.metrics.worker import WorkerMetrics  # noqa: PLC0415 - an extra, for the program alone

    app, left, done = AsyncQ("bench"), count, asyncio.Event()

    @app.task(queue=queue, reply=False)
    async def handle(order: Order) -> None:  # noqa: ARG001 - validating it is the work
        nonlocal left
        switch.tick()
        left -= 1
        if left == 0:
            done.set()

    async with app:
        worker = app.worker({queue: slots})
        metrics = WorkerMetrics(worker, app.tasks)
        observers = list(worker.observers)
        switch = _Switch(block, lambda on: worker.observers.__setitem__(slice(None), observers if on else []))
        running = asyncio.create_task(worker.run())
        while not done.is_set() and not running.done():
            metrics.look()
            await asyncio.sleep(_LOOK_EVERY_S)
        worker.stop()
        await running
    return {"off": switch.blocks[False], "on": switch.blocks[True]}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_drain(sys.argv[1], *map(int, sys.argv[2:])))), flush=True)
