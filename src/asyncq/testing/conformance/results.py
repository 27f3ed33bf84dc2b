"""Results, progress and failures: what comes back from a task that was sent."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from uuid import UUID

import pytest
from pydantic import BaseModel

from asyncq.context import TaskContext
from asyncq.errors import (
    InvalidResult,
    NoReply,
    ReplyLost,
    ResultTimeout,
    TaskFailed,
)
from asyncq.testing.conformance.bench import WAIT_S, Bench, behaviour, eventually


class Size(Enum):
    """An enumeration."""

    SMALL = "s"
    LARGE = "l"


class Order(BaseModel):
    """A message with rich types."""

    id: UUID
    price: Decimal
    size: Size
    placed: datetime
    raw: bytes
    parts: list[Order] = []


ORDER = Order(
    id=UUID("018f7c1e-0000-7000-8000-000000000001"),
    price=Decimal("12.340"),
    size=Size.LARGE,
    placed=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
    raw=b"\x00\xff",
)


@behaviour
async def test_a_result_comes_back_with_its_type(bench: Bench) -> None:
    """Arguments and result are validated on both sides: models, decimals, bytes, nested ones."""
    app = bench.app()
    seen = []

    @app.task
    async def double(order: Order, times: int = 2, *, note: str | None = None) -> Order:
        seen.append((order, times, note))
        return order.model_copy(update={"parts": [order] * times})

    async with bench.working(app):
        handle = await double.send(ORDER, note="größer")
        result = await handle.result(WAIT_S)
        assert await double.call(ORDER, times=1) == ORDER.model_copy(update={"parts": [ORDER]})
    assert result == ORDER.model_copy(update={"parts": [ORDER, ORDER]})
    assert isinstance(result.parts[0].placed, datetime)
    assert seen == [(ORDER, 2, "größer"), (ORDER, 1, None)]


@behaviour
async def test_progress_arrives_in_order_before_the_result(bench: Bench) -> None:
    """Numbers, label and details; again for whoever asks later."""
    app = bench.app()

    @app.task(pass_context=True)
    async def counting(ctx: TaskContext, upto: int) -> int:
        for number in range(1, upto + 1):
            await ctx.progress(number, upto, label="COUNTING", square=number * number)
        return upto

    async with bench.working(app):
        handle = await counting.send(5)
        async with asyncio.timeout(WAIT_S):
            updates = [update async for update in handle.updates()]
        assert [(item.done, item.total, item.label, item.details) for item in updates] == [
            (n, 5, "COUNTING", {"square": n * n}) for n in range(1, 6)
        ]
        assert await handle.result(WAIT_S) == 5
        assert [item.done async for item in handle.updates()] == [1, 2, 3, 4, 5]


@behaviour
async def test_many_calls_at_once_get_each_its_own_answer(bench: Bench) -> None:
    """100 of them."""
    app = bench.app()

    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    async with bench.working(app):
        assert await asyncio.gather(*(add.call(n, 1000) for n in range(100))) == [n + 1000 for n in range(100)]


@behaviour
async def test_a_task_without_reply_has_no_result_to_wait_for(bench: Bench) -> None:
    """It runs all the same; a call waits for a result by its nature."""
    app = bench.app()
    ran: list[int] = []

    @app.task(reply=False)
    async def quiet(x: int) -> int:
        ran.append(x)
        return x

    async with bench.working(app):
        handle = await quiet.send(1)
        with pytest.raises(NoReply, match="reply=True"):
            await handle.result(WAIT_S)
        await eventually(lambda: ran == [1])
        assert await quiet.call(2) == 2


@behaviour
async def test_a_timeout_of_the_wait_does_not_end_the_task(bench: Bench) -> None:
    """Waiting goes on by asking again."""
    app = bench.app()
    gate = asyncio.Event()

    @app.task
    async def gated(text: str) -> str:
        await gate.wait()
        return text

    async with bench.working(app):
        handle = await gated.send("late")
        with pytest.raises(ResultTimeout):
            await handle.result(timeout=0.1)
        gate.set()
        assert await handle.result(WAIT_S) == "late"


@behaviour
async def test_a_failure_comes_back_with_type_message_and_traceback(bench: Bench) -> None:
    """As TaskFailed, whatever the exception is."""
    app = bench.app()

    class Odd(Exception):
        def __init__(self, one: str, two: str) -> None:
            super().__init__(f"{one} and {two}")

    @app.task
    async def broken() -> None:
        raise Odd("this", "that")

    async with bench.working(app):
        with pytest.raises(TaskFailed) as caught:
            await broken.call()
    assert caught.value.type.endswith("Odd")
    assert caught.value.message == "this and that"
    assert "raise Odd" in caught.value.traceback


@behaviour
async def test_a_result_that_does_not_fit_the_callers_type_says_so(bench: Bench) -> None:
    """Producer and worker of different versions."""
    app, other = bench.app(), bench.app()

    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    @other.task(name="shop.add")
    async def elsewhere(a: int, b: int) -> dict[str, int]:
        raise NotImplementedError

    async with bench.working(app), other:
        with pytest.raises(InvalidResult, match="return type"):
            await elsewhere.call(1, 2)


@behaviour
async def test_pending_handles_are_told_when_their_reply_queue_is_gone(bench: Bench) -> None:
    """The task is not affected; later sends have a new reply queue."""
    app = bench.app()
    gate = asyncio.Event()
    addresses = []

    @app.task(pass_context=True)
    async def gated(ctx: TaskContext, x: int) -> int:
        addresses.append(ctx.message.reply_to or "")
        await gate.wait()
        return x

    async with bench.working(app):
        handle = await gated.send(1)
        await eventually(lambda: len(addresses) == 1)
        await bench.delete_queue(addresses[0])
        with pytest.raises(ReplyLost):
            await handle.result(WAIT_S)
        gate.set()
        assert await gated.call(2) == 2
    assert addresses[0] != addresses[1]


@behaviour
async def test_a_result_comes_through_a_lost_connection(bench: Bench) -> None:
    """The reply queue is kept, and the task that ran meanwhile answers into it."""
    app, producer = bench.app(), bench.app("producer")
    gate = asyncio.Event()
    started = asyncio.Event()

    @app.task
    async def gated(x: int) -> int:
        started.set()
        await gate.wait()
        return x

    async with bench.working(app), producer:
        handle = await producer.send("shop.gated", {"x": 7})
        await started.wait()
        await bench.cut(producer.broker)
        gate.set()
        assert await handle.result(WAIT_S) == 7


@behaviour
async def test_an_id_that_is_sent_again_has_an_end_of_its_own_for_each_send(bench: Bench) -> None:
    """The handle of the second send does not take the first one's end, though somebody still holds that handle."""
    app = bench.app()

    @app.task
    async def echo(n: int) -> int:
        return n

    async with bench.working(app):
        first = await echo.options(task_id="again").send(1)
        assert await first.result(WAIT_S) == 1
        second = await echo.options(task_id="again").send(2)
        assert await second.result(WAIT_S) == 2
        assert await first.result(WAIT_S) == 1
