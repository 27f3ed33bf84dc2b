"""Workflows that a schedule sends, on a real broker: with ids of the fire time, and each fire time once."""

from __future__ import annotations

import asyncio
import time

import pytest

from asyncq import AsyncQ, chain, chord, group
from asyncq.errors import InvalidOption, InvalidWorkflow
from asyncq.life import SENT_AT
from asyncq.program import node_id
from asyncq.ticks import FIRE_TIME, SCHEDULE, Tick
from support import eventually


def make_app(broker_url: str, ran: list[tuple[str, str]], results: str = "none") -> AsyncQ:
    app = AsyncQ("shop", broker=broker_url, results=results)

    @app.task(pass_context=True)
    async def count(ctx, x: int) -> int:
        ran.append(("count", ctx.task_id))
        return x

    @app.task(pass_context=True)
    async def merge(ctx, counts: list[int]) -> int:
        ran.append(("merge", ctx.task_id))
        return sum(counts)

    return app


async def test_a_schedule_sends_a_workflow_whose_ids_follow_from_the_fire_time(broker_url, tmp_path):
    """Each run is a workflow of its own, which any process can follow."""
    ran: list[tuple[str, str]] = []
    app = make_app(broker_url, ran, f"sqlite:///{tmp_path}/results.db")
    count, merge = app.tasks["shop.count"], app.tasks["shop.merge"]
    app.schedule("sums", chord([count.s(1), count.s(2)], merge), 0.5)
    async with app:
        worker, scheduler = app.worker(), app.scheduler()
        running = [asyncio.create_task(worker.run()), asyncio.create_task(scheduler.run())]
        merged = await eventually(lambda: [id_ for name, id_ in ran if name == "merge"], 30)
        page = await eventually(lambda: _succeeded(app), 30)
        ids = {status.id for status in page}
        assert all(id_.startswith("shop.sums@") for id_ in ids), ids
        assert node_id(page[-1].id, "1") in merged
        run = page[-1].id
        assert await app.workflow(run).result(10) == 3
        assert [node.task for node in (await app.workflow(run).status()).nodes] == [count.name, count.name, merge.name]
        for stopping in (worker, scheduler):
            stopping.stop()
        await asyncio.wait_for(asyncio.gather(*running), 30)
    counted = {id_ for name, id_ in ran if name == "count"}
    assert {node_id(run, "0.0.0"), node_id(run, "0.1.0")} <= counted


async def _succeeded(app: AsyncQ):
    return (await app.results.list(task="chord", state="succeeded")).items


async def test_two_sends_of_one_fire_time_make_one_run_of_each_step(broker_url):
    """As two leaders may send them: what has ended is not run again."""
    ran: list[tuple[str, str]] = []
    app = make_app(broker_url, ran)
    count = app.tasks["shop.count"]
    app.schedule("steps", chain(count.s(1), count, count), 3600)
    async with app:
        (scheduled,) = app.schedules.resolve(app.signature, app.tasks).values()
        tick = Tick(int(time.time() * 1000), "steps")
        sends = scheduled.at(tick.id("shop"), {SCHEDULE: "steps", FIRE_TIME: tick.at_ms, SENT_AT: tick.at_ms})
        worker = app.worker({"shop": 1})
        running = asyncio.create_task(worker.run())
        client = app._open_client()
        for _ in range(2):
            await client.send_by(sends, lambda item: app.broker.publish(item.message, item.to, timeout_s=10))
            await eventually(lambda: len(ran) == 3, 20)
        await eventually(lambda: worker.stats().outcomes.get("Repeated") == 1, 20)
        worker.stop()
        await asyncio.wait_for(running, 30)
    assert [id_ for _, id_ in ran] == [node_id(tick.id("shop"), str(step)) for step in range(3)]


def test_what_a_schedule_cannot_send_is_said_when_it_is_declared():
    """With the option, and where it is."""
    app = make_app("memory://", [])
    count, merge = app.tasks["shop.count"], app.tasks["shop.merge"]
    for workflow, said in (
        (chain(count.s(1), count).options(task_id="x"), "task_id= on its workflow"),
        (chord([count.s(1)], merge).options(timeout=3), "timeout="),
        (group([count.options(reply=True).s(1)]), "reply= on the task 'shop.count' of its workflow"),
        (3, "a signature, such as task.s"),
    ):
        with pytest.raises(InvalidOption, match=said):
            app.schedules.add("x", workflow, 60, {})
    with pytest.raises(InvalidWorkflow):
        app.schedule("y", chain(count, count), 60)
