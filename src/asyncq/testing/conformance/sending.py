"""Sending tasks: by function or by name, one or many, now or later, from a loop, a thread or another task."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import BaseModel, ValidationError

from asyncq.app import AsyncQ
from asyncq.context import TaskContext
from asyncq.errors import PartlySent, Unroutable
from asyncq.testing.conformance.bench import QUEUE, WAIT_S, Bench, behaviour


@behaviour
async def test_wrong_arguments_fail_at_the_send_and_nothing_is_sent(bench: Bench) -> None:
    """In the producer: with pydantic's own error, or as a call of the function would."""
    app = bench.app()

    @app.task(reply=False)
    async def add(a: int, b: int) -> int:
        return a + b

    async with app:
        with pytest.raises(ValidationError):
            await add.send(1, "two")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="'b'"):
            await add.options(delay=1).send(1)  # type: ignore[call-arg]
    assert await bench.count(QUEUE) == 0


@behaviour
async def test_send_many_gives_a_handle_for_each_and_tells_which_were_not_taken(bench: Bench) -> None:
    """Results by the handles, in order; one bad queue among good ones."""
    app = bench.app()

    @app.task
    async def double(x: int) -> int:
        return 2 * x

    async with bench.working(app):
        handles = await app.send_many(double.s(n) for n in range(100))
        assert [await handle.result(WAIT_S) for handle in handles] == [2 * n for n in range(100)]
        with pytest.raises(PartlySent, match="1 of 3") as caught:
            await app.send_many([double.s(1), double.options(queue="nowhere").s(2), double.s(3)])
        first, second, third = caught.value.outcomes
        assert isinstance(second, Unroutable)
        assert [await handle.result(WAIT_S) for handle in (first, third)] == [2, 6]


@behaviour
async def test_a_task_is_sent_by_its_name_without_its_code(bench: Bench) -> None:
    """Its queue is the part before the last dot, or what the send says; arguments by name, the result is JSON."""
    owner, stranger = bench.app("shop.eu"), bench.app("stranger")

    @owner.task
    async def add(a: int, b: int) -> dict[str, int]:
        return {"sum": a + b}

    class Numbers(BaseModel):
        a: int
        b: int

    async with bench.working(owner, {"shop.eu": 2, "other": 1}), stranger:
        assert await stranger.call("shop.eu.add", {"a": 1, "b": 2}) == {"sum": 3}
        assert await stranger.call("shop.eu.add", Numbers(a=1, b=3)) == {"sum": 4}
        handle = await stranger.send("shop.eu.add", {"a": 1, "b": 4}, queue="other", task_id="mine")
        assert (handle.id, await handle.result(WAIT_S)) == ("mine", {"sum": 5})
        blocking = stranger.signature("shop.eu.add", {"a": 1, "b": 5})
        assert await asyncio.to_thread(stranger.sync.call, blocking) == {"sum": 6}
        await asyncio.to_thread(stranger.sync.close)


@behaviour
async def test_blocking_code_sends_and_calls_beside_an_open_app(bench: Bench) -> None:
    """`app.sync` has a client of its own, and reaches the same broker."""
    app = bench.app()

    @app.task(pass_context=True)
    async def double(ctx: TaskContext, x: int) -> int:
        await ctx.progress(1, 2)
        return 2 * x

    def in_thread(app: AsyncQ) -> list[object]:
        handle = app.sync.send(double.s(4))
        updates = [update.done for update in handle.updates()]
        return [app.sync.call(double.s(3)), updates, handle.result(WAIT_S)]

    async with bench.working(app):
        assert await asyncio.to_thread(in_thread, app) == [6, [1], 8]


@behaviour
async def test_a_delayed_send_runs_no_earlier_than_it_says(bench: Bench) -> None:
    """By `delay=` and by `eta=`, also through the worker's own answer."""
    app = bench.app()

    @app.task
    async def now() -> datetime:
        return datetime.now(UTC)

    async with bench.working(app):
        began = datetime.now(UTC)
        by_delay = await now.options(delay=0.3).send()
        by_eta = await now.options(eta=began + timedelta(seconds=0.5)).send()
        assert await by_delay.result(WAIT_S) - began >= timedelta(seconds=0.3)
        assert await by_eta.result(WAIT_S) - began >= timedelta(seconds=0.5)


@behaviour
async def test_a_task_that_sends_tasks_is_their_parent(bench: Bench) -> None:
    """And the first of them is the root of all; the sender's own headers travel as well."""
    app = bench.app()
    headers = {}

    @app.task(pass_context=True)
    async def leaf(ctx: TaskContext, kind: str) -> str:
        headers[kind] = {name: ctx.headers.get(f"asyncq-{name}-id") for name in ("root", "parent")}
        return str(ctx.headers.get("tenant"))

    @app.task(pass_context=True)
    def branch(ctx: TaskContext) -> str:
        ctx.sync.call(leaf.s("thread"))
        return ctx.task_id

    @app.task(pass_context=True)
    async def root(ctx: TaskContext) -> list[str]:
        await leaf.call("async")
        return [ctx.task_id, await branch.call()]

    async with bench.working(app):
        root_id, branch_id = await root.call()
        assert await leaf.options(headers={"tenant": "größer"}).call("alone") == "größer"
    assert headers == {
        "async": {"root": root_id, "parent": root_id},
        "thread": {"root": root_id, "parent": branch_id},
        "alone": {"root": None, "parent": None},
    }
