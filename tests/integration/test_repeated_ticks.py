"""Two messages of one tick on a real broker, as two leaders may send them: one run.

What is a repeat and what is none is in tests/unit/test_repeats.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

from asyncq import AsyncQ, Fixed, RetryPolicy, Signature
from asyncq.life import SENT_AT
from asyncq.ticks import FIRE_TIME, SCHEDULE, Tick
from support import eventually, working


def make_app(broker_url: str, runs: list[int], results: str = "none") -> AsyncQ:
    app = AsyncQ("shop", broker=broker_url, results=results)

    @app.task(pass_context=True, retry=RetryPolicy(on=OSError, max_attempts=2, backoff=Fixed(0.5), jitter=False))
    async def work(ctx, fail: bool = False) -> None:
        runs.append(ctx.attempt)
        if fail and ctx.attempt == 1:
            raise OSError("not yet")

    return app


def tick_of(app: AsyncQ, **arguments: object) -> Callable[[], Signature[object]]:
    """Return what a scheduler makes of a fire time, as often as it is asked."""
    tick = Tick(int(time.time() * 1000), "often")
    headers = {SCHEDULE: tick.schedule, FIRE_TIME: tick.at_ms, SENT_AT: tick.at_ms}

    def again() -> Signature[object]:
        signature = app.signature("shop.work", arguments)
        return replace(signature, sending=replace(signature.sending, task_id=tick.id("shop"), headers=headers))

    return again


async def test_two_messages_of_one_tick_make_one_run(broker_url):
    """The second one is acked, and what comes after it runs."""
    runs: list[int] = []
    app = make_app(broker_url, runs)
    tick = tick_of(app)
    async with app:
        worker = app.worker({"shop": 1})
        running = asyncio.create_task(worker.run())
        await worker.consuming()
        await app.send_many([tick(), tick()])
        await app.send_many([app.signature("shop.work")])
        await eventually(lambda: sum(worker.stats().outcomes.values()) == 3)
        assert worker.stats().outcomes == {"Succeeded": 2, "Repeated": 1}
        worker.stop()
        await asyncio.wait_for(running, 30)
    assert runs == [1, 1]


async def test_a_tick_that_waits_for_its_retry_loses_no_attempt(broker_url):
    """Its second message runs, since nothing has ended; so do both retries."""
    runs: list[int] = []
    app = make_app(broker_url, runs)
    tick = tick_of(app, fail=True)
    async with working(app, {"shop": 1}):
        await app.send_many([tick(), tick()])
        await eventually(lambda: len(runs) == 4)
    assert sorted(runs) == [1, 1, 2, 2]


async def test_a_tick_that_ended_in_another_worker_makes_no_run(broker_url, tmp_path):
    """The result store knows of its end, and keeps what that was."""
    runs: list[int] = []
    results = f"sqlite:///{tmp_path}/results.db"
    app, other = make_app(broker_url, runs, results), make_app(broker_url, runs, results)
    tick = tick_of(app)
    async with working(app, {"shop": 1}):
        (handle,) = await app.send_many([tick()])
        await handle.result(20)
    async with other:
        worker = other.worker({"shop": 1})
        running = asyncio.create_task(worker.run())
        await worker.consuming()
        await other.send_many([tick()])
        await eventually(lambda: worker.stats().outcomes)
        assert worker.stats().outcomes == {"Repeated": 1}
        status = await other.handle(handle.id).status()
        assert status.state == "succeeded"
        worker.stop()
        await asyncio.wait_for(running, 30)
    assert runs == [1]
