"""Cancelling: what runs is stopped, what waits never runs, on whatever worker it arrives."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from asyncq.broker import Queue
from asyncq.context import TaskContext
from asyncq.errors import TaskCancelled, TaskFailed
from asyncq.results import ResultHandle
from asyncq.retry import Fixed, RetryPolicy
from asyncq.signals import Reject, Retry, Snooze
from asyncq.testing.conformance.bench import (
    QUEUE,
    WAIT_S,
    Bench,
    behaviour,
    dead_letters,
    eventually,
    make_message,
)


async def _is_cancelled(handle: ResultHandle[Any]) -> None:
    with pytest.raises(TaskCancelled, match=handle.id):
        await handle.result(WAIT_S)


@behaviour
async def test_a_running_async_task_is_cancelled_once_and_awaits_in_its_finally_work(bench: Bench) -> None:
    """It stops at once, its clean-up runs to its end, and its sender hears of it."""
    app = bench.app()
    begun, cleaned = asyncio.Event(), asyncio.Event()

    @app.task(pass_context=True)
    async def work(ctx: TaskContext) -> None:
        try:
            begun.set()
            await asyncio.sleep(2 * WAIT_S)
        finally:
            assert ctx.cancelled
            await asyncio.sleep(0.05)
            cleaned.set()

    async with bench.working(app) as worker:
        handle = await work.send()
        await asyncio.wait_for(begun.wait(), WAIT_S)
        assert await handle.cancel() is True
        await _is_cancelled(handle)
        assert cleaned.is_set()
        await eventually(lambda: worker.stats().outcomes == {"Cancelled": 1})
        assert await dead_letters(app.broker) == []
    assert await bench.count(QUEUE) == 0


@behaviour
async def test_a_thread_sees_that_it_is_cancelled_when_it_looks(bench: Bench) -> None:
    """However late that is, within its time limit: nobody gives it up before."""
    app = bench.app()
    begun, look = threading.Event(), threading.Event()

    @app.task(pass_context=True)
    def work(ctx: TaskContext) -> str:
        begun.set()
        look.wait(WAIT_S)
        while not ctx.cancelled:
            time.sleep(0.005)
        raise RuntimeError("stopped in the middle")

    async with bench.working(app) as worker:
        handle = await work.send()
        await eventually(begun.is_set)
        await handle.cancel()
        await eventually(lambda: worker.running()[0].context.cancelled)
        assert worker.stats().outcomes == {}
        look.set()
        await _is_cancelled(handle)
        assert await dead_letters(app.broker) == []


@behaviour
async def test_a_task_that_returns_although_it_was_cancelled_has_succeeded(bench: Bench) -> None:
    """The work was done: its sender gets the result, from a coroutine and from a thread."""
    app = bench.app()
    begun = threading.Event()

    @app.task
    async def on_loop() -> str:
        begun.set()
        try:
            await asyncio.sleep(2 * WAIT_S)
        except asyncio.CancelledError:
            return "done"
        return "too late"

    @app.task(pass_context=True)
    def in_thread(ctx: TaskContext) -> str:
        begun.set()
        while not ctx.cancelled:
            time.sleep(0.005)
        return "done"

    async with bench.working(app):
        for task in (on_loop, in_thread):
            begun.clear()
            handle = await task.send()
            await eventually(begun.is_set)
            await handle.cancel()
            assert await handle.result(WAIT_S) == "done"


@behaviour
async def test_a_cancelled_task_gets_no_other_attempt_whatever_it_raises(bench: Bench) -> None:
    """Not by its policy, and not by a signal; and it is no dead letter."""
    app = bench.app()
    ran: list[str] = []
    endings: dict[str, Exception] = {
        "error": ValueError("no"),
        "retry": Retry(after=0.01),
        "snooze": Snooze(0.01),
        "reject": Reject("no"),
    }

    @app.task(retry=RetryPolicy(max_attempts=5, backoff=Fixed(0.01), jitter=False))
    async def work(kind: str) -> None:
        ran.append(kind)
        try:
            await asyncio.sleep(2 * WAIT_S)
        except asyncio.CancelledError:
            raise endings[kind] from None

    async with bench.working(app) as worker:
        for kind in endings:
            handle = await work.send(kind)
            await eventually(lambda: kind in ran)  # noqa: B023 - it is asked within this turn of the loop
            await handle.cancel()
            await _is_cancelled(handle)
        await eventually(lambda: worker.stats().outcomes == {"Cancelled": len(endings)})
        assert ran == list(endings)
        assert await dead_letters(app.broker) == []


@behaviour
async def test_a_queued_task_that_was_cancelled_never_runs_on_a_worker_that_starts_later(bench: Bench) -> None:
    """Its sender hears of it as soon as a worker comes to it; the tasks beside it run."""
    app = bench.app()
    ran: list[int] = []

    @app.task
    async def work(n: int) -> int:
        ran.append(n)
        return n

    async with app:
        handles = [await work.send(number) for number in range(6)]
        await app.cancel(*(handle.id for handle in handles[::2]))
        async with bench.working(app):
            for number, handle in enumerate(handles):
                if number % 2:
                    assert await handle.result(WAIT_S) == number
                else:
                    await _is_cancelled(handle)
    assert ran == [1, 3, 5]
    assert await bench.count(QUEUE) == 0


@behaviour
async def test_a_delayed_task_that_was_cancelled_never_runs(bench: Bench) -> None:
    """Cancelled by a worker's own app, or while none was there; also after all workers were restarted."""
    app = bench.app()
    ran: list[str] = []

    @app.task
    async def work(name: str) -> str:
        ran.append(name)
        return name

    async with app:
        async with bench.working(app):
            early = await work.options(delay=0.8).send("early")
            await early.cancel()
        late = await work.options(delay=0.8).send("late")
        await app.cancel(late.id)
        free = await work.options(delay=0.8).send("free")
        for _ in range(2):
            async with bench.working(app):
                pass
        async with bench.working(app):
            await _is_cancelled(early)
            await _is_cancelled(late)
            assert await free.result(WAIT_S) == "free"
    assert ran == ["free"]


@behaviour
async def test_a_task_that_waits_for_its_retry_does_not_run_again_once_it_is_cancelled(bench: Bench) -> None:
    """Its first attempt failed; the second one does not begin."""
    app = bench.app()
    attempts: list[int] = []

    @app.task(pass_context=True, retry=RetryPolicy(max_attempts=5, backoff=Fixed(0.5), jitter=False))
    async def work(ctx: TaskContext) -> None:
        attempts.append(ctx.attempt)
        raise ValueError("not yet")

    async with bench.working(app) as worker:
        handle = await work.send()
        await eventually(lambda: worker.stats().outcomes.get("RetryLater"))
        await handle.cancel()
        await _is_cancelled(handle)
        assert attempts == [1]
        assert await dead_letters(app.broker) == []


@behaviour
async def test_what_is_cancelled_is_cancelled_whatever_else_is_wrong_with_it(bench: Bench) -> None:
    """An unknown name, arguments that do not fit, a time that is over: nobody wants it any more."""
    app = bench.app()

    @app.task
    async def work(n: int) -> None: ...

    wrong: list[dict[str, Any]] = [
        {"type": "shop.unknown"},
        {"body": b'{"n":"many"}'},
        {"body": b"no JSON"},
        {"headers": {"asyncq-expires-at": 1}},
        {"headers": {"asyncq-attempt": "many"}},
    ]
    async with app:
        await app.cancel(*(f"task-{number}" for number in range(len(wrong))))
        for number, fields in enumerate(wrong):
            await app.broker.publish(make_message(number, **fields), Queue(QUEUE), timeout_s=WAIT_S)
        async with bench.working(app) as worker:
            await eventually(lambda: worker.stats().outcomes == {"Cancelled": len(wrong)})
        assert await dead_letters(app.broker) == []


@behaviour
async def test_cancelling_again_what_has_ended_or_never_was_is_no_error(bench: Bench) -> None:
    """A handle that knows the end says so; everything else goes on as before."""
    app = bench.app()

    @app.task
    async def work(n: int) -> int:
        return n

    async with bench.working(app):
        handle = await work.send(1)
        assert await handle.result(WAIT_S) == 1
        assert await handle.cancel() is False
        await app.cancel(handle.id, "no-task-has-this-id", "no-task-has-this-id")
        await app.cancel(handle.id)
        await app.cancel()
        assert await handle.result(WAIT_S) == 1
        assert await work.call(2) == 2


@behaviour
async def test_a_later_send_of_a_cancelled_id_is_cancelled_too_until_that_is_taken_back(bench: Bench) -> None:
    """By the order of the journal and nobody's clock: the last word on an id holds, for later workers too."""
    app = bench.app()
    ran: list[int] = []

    @app.task
    async def work(n: int) -> int:
        ran.append(n)
        return n

    async with app:
        async with bench.working(app):
            await app.cancel("order-17")
            await _is_cancelled(await work.options(task_id="order-17").send(1))
            await app.undo_cancel("order-17", "never-cancelled")

            async def runs() -> bool:  # a worker hears of it a moment later
                await work.options(task_id="order-17", reply=False).send(2)
                return 2 in ran

            await eventually(runs)
        await app.cancel("order-17", "order-18")
        await app.undo_cancel("order-17")
        async with bench.working(app):
            assert await work.options(task_id="order-17").call(3) == 3
            await _is_cancelled(await work.options(task_id="order-18").send(4))
    assert ran[0] == 2
    assert ran[-1] == 3
    assert 1 not in ran
    assert 4 not in ran


@behaviour
async def test_a_replayed_dead_letter_that_was_cancelled_does_not_run_until_that_is_taken_back(bench: Bench) -> None:
    """It is the same task with the same id."""
    app = bench.app()
    ran: list[str] = []

    @app.task
    async def work(name: str) -> None:
        ran.append(name)
        raise ValueError("no")

    async with bench.working(app) as worker:
        for name in ("stays", "back"):
            with pytest.raises(TaskFailed):
                await work.options(task_id=name).call(name)
        await app.cancel("stays", "back")
        await app.undo_cancel("back")
        await app.dead_letters(QUEUE).replay()
        await eventually(lambda: worker.stats().outcomes == {"Failed": 3, "Cancelled": 1})
        assert ran == ["stays", "back", "back"]
        assert [letter.message.task_id for letter in await dead_letters(app.broker)] == ["back"]
