"""asyncq's side: the app that its producer uses, and that `asyncq worker asyncq_app:app` runs."""

from __future__ import annotations

import sys

from asyncq import AsyncQ
from meter import Meter
from payload import Order

__all__ = ["QUEUE", "add_one", "app", "handle", "imported", "number_of", "total"]

QUEUE = "bench-asyncq"

app = AsyncQ("bench")
meter = Meter()


@app.task(queue=QUEUE, reply=False)
async def handle(order: Order) -> None:  # noqa: ARG001 - validating it is the work
    """Take an order; what is published and drained."""
    meter.tick()


@app.task(queue=QUEUE)
async def number_of(order: Order) -> int:
    """Answer with one of the fields; what is called, and what has its results kept."""
    meter.tick()
    return order.number


@app.task(queue=QUEUE)
async def imported() -> list[str]:
    """Return the names of all modules that this worker has imported."""
    return sorted(sys.modules)


@app.task(queue=QUEUE)
async def add_one(number: int) -> int:
    """A step of a workflow."""
    return number + 1


@app.task(queue=QUEUE)
async def total(numbers: list[int]) -> int:
    """The body of a chord."""
    return sum(numbers)
