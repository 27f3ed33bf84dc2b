"""The broker in memory is quick enough for unit tests: 1,000 tasks in the time of 200 on a real broker, or less."""

from __future__ import annotations

import statistics
import time
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from asyncq import AsyncQ
from asyncq.testing.harness import running
from support import working

pytestmark = pytest.mark.any_version

IN_MEMORY = 1_000
ON_RABBITMQ = 200


def shop(url: str | None = None) -> AsyncQ:
    app = AsyncQ("shop", broker=url)

    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    return app


async def seconds(app: AsyncQ, life: AbstractAsyncContextManager[Any], count: int) -> float:
    """Send so many tasks and take all results, as a test would write it; return how long that took."""
    add = app.tasks["shop.add"]
    async with life:
        await add.call(0, 0)  # the reply queue is there, and everything is imported
        began = time.perf_counter()
        handles = [await add.send(number, 1) for number in range(count)]
        results = [await handle.result(timeout=60) for handle in handles]
        took = time.perf_counter() - began
    assert results == [number + 1 for number in range(count)]
    return took


async def compare(broker_url: str, rounds: int, most: int) -> float:
    """Print and return the median of memory's time divided by RabbitMQ's, each pair taken one after the other.

    A pair shares the machine's load of its moment, so its ratio says more than its times; and the median forgives a
    round in which the load has changed between the two. A quicker machine changes little: this process's own work for
    200 tasks over AMQP is about that for 1,000 in memory, and all that the broker and its disk take comes on top.
    Where so few rounds are not enough to tell, because something else took the machine, more are run, up to `most`.
    """
    ratios: list[float] = []
    while len(ratios) < rounds or (statistics.median(ratios) > 1 and len(ratios) < most):
        real, memory = shop(broker_url), shop()
        on_rabbitmq = await seconds(real, working(real), ON_RABBITMQ)
        in_memory = await seconds(memory, running(memory), IN_MEMORY)
        ratios.append(in_memory / on_rabbitmq)
        print(f"{IN_MEMORY} in memory {in_memory:.3f} s, {ON_RABBITMQ} on RabbitMQ {on_rabbitmq:.3f} s")
    median = statistics.median(ratios)
    print(f"ratio {median:.2f} (from {min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)} rounds)")
    return median


async def test_a_thousand_tasks_in_memory_take_at_most_the_time_of_200_on_a_real_broker(broker_url):
    """The same code on both, in turns."""
    assert await compare(broker_url, rounds=7, most=21) <= 1


@pytest.mark.prove
async def test_memory_keeps_its_speed_over_ten_rounds(broker_url):
    """The full form, with its figures printed."""
    assert await compare(broker_url, rounds=10, most=10) <= 1
