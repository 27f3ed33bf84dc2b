"""Rate limits: to each message its turn, delayed once at most, held by no slot."""

from __future__ import annotations

import asyncio
import time

import pytest

from asyncq.context import TaskContext
from asyncq.errors import TaskCancelled, TaskExpired
from asyncq.message import TURN_AT
from asyncq.retry import Fixed, RetryPolicy
from asyncq.testing.conformance.bench import QUEUE, WAIT_S, Bench, behaviour, dead_letters, eventually

_TOLERANCE_S = 0.05


def _check_rate(began: list[float], interval_s: float) -> None:
    """Check that at no moment more have begun than the rate allows since the first."""
    first = min(began)
    for number, at in enumerate(sorted(began)):
        assert at - first >= (number - 1) * interval_s - _TOLERANCE_S, (number, at - first)


@behaviour
async def test_hundreds_over_the_rate_run_at_it_each_delayed_once_at_most_in_the_order_of_their_turns(
    bench: Bench,
) -> None:
    """No attempt is counted, and what is left behind is nothing."""
    app = bench.app()
    began: list[float] = []
    turns: list[int] = []
    attempts: set[int] = set()

    @app.task(pass_context=True, rate="100/s")
    async def work(ctx: TaskContext, n: int) -> None:
        began.append(time.monotonic())
        attempts.add(ctx.attempt)
        turn_ms = ctx.headers.get(TURN_AT)
        if isinstance(turn_ms, int):
            turns.append(turn_ms)

    async with bench.working(app, {QUEUE: 5}) as worker:
        await app.send_many(work.options(reply=False).s(number) for number in range(300))
        await eventually(lambda: len(began) == 300)
        await eventually(lambda: sum(worker.stats().outcomes.values()) == 300 + len(turns))
        assert worker.stats().outcomes == {"Succeeded": 300, "Throttled": len(turns)}
    _check_rate(began, 0.01)
    assert len(turns) == len(set(turns)) > 200
    assert attempts == {1}
    assert await bench.count(QUEUE) == 0


@behaviour
async def test_a_message_over_the_rate_holds_no_slot(bench: Bench) -> None:
    """The other tasks of the queue go on, with one slot too; other rates are counted by themselves."""
    app = bench.app()

    @app.task(rate="1/h")
    async def rare() -> str:
        return "rare"

    @app.task(rate="1/h")
    async def other() -> str:
        return "other"

    @app.task
    async def free(n: int) -> int:
        return n

    async with bench.working(app, {QUEUE: 1}) as worker:
        assert await rare.call() == "rare"
        await app.send_many(rare.options(reply=False).s() for _ in range(5))
        assert [await free.call(number) for number in range(5)] == list(range(5))
        assert await other.call() == "other"
        await eventually(lambda: worker.stats().outcomes == {"Succeeded": 7, "Throttled": 5})
    assert await bench.count(QUEUE) == 0


@behaviour
async def test_what_would_have_its_turn_after_its_expiry_expires_at_once(bench: Bench) -> None:
    """Its sender need not wait to hear of it."""
    app = bench.app()

    @app.task(rate="1/h")
    async def work(n: int) -> int:
        return n

    async with bench.working(app):
        assert await work.call(1) == 1
        for number in range(3):
            with pytest.raises(TaskExpired) as caught:
                await work.options(expires=10 * WAIT_S).call(number)
            assert caught.value.met < caught.value.expires
        assert await dead_letters(app.broker) == []


@behaviour
async def test_each_attempt_needs_a_turn(bench: Bench) -> None:
    """A retry does not run past the rate, and its turn is no attempt."""
    app = bench.app()
    began: list[float] = []
    attempts: list[int] = []

    @app.task(pass_context=True, rate="5/s", retry=RetryPolicy(max_attempts=3, backoff=Fixed(0.01), jitter=False))
    async def work(ctx: TaskContext) -> str:
        began.append(time.monotonic())
        attempts.append(ctx.attempt)
        if ctx.attempt < 3:
            raise ValueError("not yet")
        return "done"

    async with bench.working(app):
        assert await work.call() == "done"
    assert attempts == [1, 2, 3]
    assert began[2] - began[0] >= 0.4 - _TOLERANCE_S


@behaviour
async def test_a_task_that_waits_for_its_turn_is_cancelled_as_any_that_waits(bench: Bench) -> None:
    """It never runs."""
    app = bench.app()
    ran: list[int] = []

    @app.task(rate="3/s")
    async def work(n: int) -> None:
        ran.append(n)

    async with bench.working(app) as worker:
        await work.call(1)
        handle = await work.send(2)
        await eventually(lambda: worker.stats().outcomes.get("Throttled"))
        await handle.cancel()
        with pytest.raises(TaskCancelled):
            await handle.result(WAIT_S)
    assert ran == [1]


@behaviour
async def test_a_reserved_turn_outlives_its_worker(bench: Bench) -> None:
    """It is on the message: whoever gets it runs it, and nobody delays it again."""
    app = bench.app()
    ran = asyncio.Event()

    @app.task(pass_context=True, rate="2/s")
    async def work(ctx: TaskContext, n: int) -> None:
        if n == 2:
            assert TURN_AT in ctx.headers
            ran.set()

    async with app:
        async with bench.working(app) as worker:
            await work.call(1)
            await work.options(reply=False).send(2)
            await eventually(lambda: worker.stats().outcomes.get("Throttled"))
        async with bench.working(app) as worker:
            await asyncio.wait_for(ran.wait(), WAIT_S)
            await eventually(lambda: worker.stats().outcomes == {"Succeeded": 1})
