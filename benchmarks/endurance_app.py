"""The app of `endurance.py`: tasks of every kind and every end, and what the worker takes of memory meanwhile."""

from __future__ import annotations

import json
from pathlib import Path

from asyncq import AsyncQ, Retry, TaskContext
from payload import Order

__all__ = ["EVERY", "QUEUE", "app"]

QUEUE = "bench-endurance"
EVERY = 1000
"""After how many attempts the worker tells its memory."""

app = AsyncQ("bench", breaker=None)
_done = 0


def _count() -> None:
    global _done  # noqa: PLW0603 - one process, one count; threads may lose one now and then, which is no matter
    _done += 1
    if _done % EVERY == 0:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        private = sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
        print(json.dumps({"done": _done, "mib": private / 1024}), flush=True)


@app.task(queue=QUEUE)
async def on_loop(order: Order) -> int:
    """Run on the event loop."""
    _count()
    return order.number


@app.task(queue=QUEUE)
def in_thread(order: Order) -> int:
    """Run in a thread."""
    _count()
    return order.number


@app.task(queue=QUEUE, reply=False)
async def fails(order: Order) -> None:
    """End among the dead letters."""
    _count()
    raise ValueError(f"order {order.number} cannot be served")


@app.task(queue=QUEUE, reply=False, pass_context=True)
async def comes_again(ctx: TaskContext, order: Order) -> int:
    """Need a second attempt."""
    _count()
    if ctx.attempt == 1:
        raise Retry(after=0.05)
    return order.number
