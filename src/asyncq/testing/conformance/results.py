"""Sending tasks and having their results, progress and failures back."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from uuid import UUID

import pytest
from pydantic import BaseModel, ValidationError

from asyncq.app import AsyncQ
from asyncq.context import TaskContext
from asyncq.errors import (
    InvalidResult,
    NoReply,
    PartlySent,
    ReplyLost,
    ResultTimeout,
    TaskFailed,
    Unroutable,
)
from asyncq.testing.conformance.bench import QUEUE, WAIT_S, Bench, behaviour, eventually


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
async def test_a_task_is_sent_by_its_name_without_its_code(bench: Bench) -> None:
    """Its queue is the part before the last dot, or what the send says; the result is JSON."""
    owner, stranger = bench.app("shop.eu"), bench.app("stranger")

    @owner.task
    async def add(a: int, b: int) -> dict[str, int]:
        return {"sum": a + b}

    async with bench.working(owner, {"shop.eu": 2, "other": 1}), stranger:
        assert await stranger.call("shop.eu.add", {"a": 1, "b": 2}) == {"sum": 3}
        handle = await stranger.send("shop.eu.add", {"a": 1, "b": 4}, queue="other", task_id="mine")
        assert (handle.id, await handle.result(WAIT_S)) == ("mine", {"sum": 5})


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
