"""Cancelling many, from outside, and after lost connections: the same through every broker."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asyncq.app import AsyncQ
from asyncq.errors import InvalidOption, NotOpen, PublishError, TaskCancelled
from asyncq.journal import CaughtUp, Entry
from asyncq.results import ResultHandle
from asyncq.testing.conformance.bench import (
    QUEUE,
    WAIT_S,
    Bench,
    behaviour,
    eventually,
)


async def _is_cancelled(handle: ResultHandle[Any]) -> None:
    with pytest.raises(TaskCancelled, match=handle.id):
        await handle.result(WAIT_S)


@behaviour
async def test_hundreds_are_cancelled_in_one_call_by_whoever_knows_their_ids(bench: Bench) -> None:
    """Another app of the namespace will do, from blocking code too."""
    app, other = bench.app(), bench.app("other")
    ran: list[int] = []

    @app.task
    async def work(n: int) -> int:
        ran.append(n)
        return n

    async with app:
        handles = await app.send_many(work.s(number) for number in range(500))
        await asyncio.to_thread(other.sync.cancel, *(handle.id for handle in handles[1:]))
        async with bench.working(app):
            for handle in handles[1:]:
                await _is_cancelled(handle)
            assert await handles[0].result(WAIT_S) == 0
            again = await work.send(1)
            assert await again.result(WAIT_S) == 1
        await asyncio.to_thread(other.sync.undo_cancel, handles[1].id)
        await asyncio.to_thread(other.sync.close)
    assert ran == [0, 1]


@behaviour
async def test_many_handles_that_are_cancelled_at_once_are_one_entry_and_each_is_cancelled(bench: Bench) -> None:
    """Also where one of the callers is cancelled itself meanwhile; what comes in the meantime is the next entry."""
    app = bench.app()

    @app.task
    async def work() -> None:
        raise AssertionError("must not run")

    async with app:
        handles = await app.send_many(work.s() for _ in range(101))
        journal = app.broker.journal("cancellations", keep_s=app.settings.cancellations_kept_s)
        calls = [asyncio.create_task(handle.cancel()) for handle in handles]
        await asyncio.sleep(0)
        calls[0].cancel()
        assert await asyncio.gather(*calls[1:]) == [True] * 100
        async with journal.follow() as following:
            entries = 0
            async for heard in following:
                if isinstance(heard, CaughtUp):
                    break
                entries += isinstance(heard, Entry)
        assert entries == 1
        async with bench.working(app):
            for handle in handles:
                await _is_cancelled(handle)


@behaviour
async def test_a_blocking_handle_cancels(bench: Bench) -> None:
    """For code without a loop."""
    app = bench.app()

    @app.task
    async def work() -> None:
        await asyncio.sleep(2 * WAIT_S)

    def blocking() -> str:
        handle = app.sync.send(work.s())
        assert handle.cancel() is True
        with pytest.raises(TaskCancelled):
            handle.result(WAIT_S)
        assert handle.cancel() is False
        return handle.id

    async with bench.working(app):
        assert await asyncio.to_thread(blocking)


@behaviour
async def test_workers_hear_of_cancellations_also_after_a_lost_connection(bench: Bench) -> None:
    """What runs is stopped, and what comes afterwards does not begin."""
    app = bench.app()
    running: list[str] = []

    @app.task
    async def work(name: str) -> str:
        running.append(name)
        if name != "free":
            await asyncio.sleep(2 * WAIT_S)
        return name

    async with bench.app("other") as other, bench.working(app, {QUEUE: 4}) as worker:
        for number in range(2):
            name = f"task-{number}"
            handle = await work.options(task_id=name).send(name)
            await eventually(lambda: name in running)  # noqa: B023 - it is asked within this turn of the loop
            await bench.cut(app.broker)
            await eventually(lambda: _done(other, name))  # noqa: B023 - as above
            await _is_cancelled(handle)
            await eventually(lambda: not worker.running())
        queued = await eventually(lambda: _sent(work))
        await _is_cancelled(queued)
    assert running == ["task-0", "task-1"]


async def _done(app: AsyncQ, task_id: str) -> bool:
    try:
        await app.cancel(task_id, "cancelled-before")
    except PublishError:  # its own connection was cut as well
        return False
    return True


async def _sent(task: Any) -> Any:
    try:
        return await task.options(task_id="cancelled-before").send("never")
    except PublishError:
        return None


@behaviour
async def test_a_note_among_the_cancellations_that_is_none_is_left_alone(bench: Bench) -> None:
    """A stranger has written it; the worker goes on, and hears what comes after it."""
    app = bench.app()

    @app.task
    async def work() -> None:
        await asyncio.sleep(2 * WAIT_S)

    notes = [b"", b"[]", b"no JSON", b'{"cancel": "all", "at": 1}', b'{"cancel": [1], "at": 1}', b'{"cancel": ["a"]}']
    async with app:
        journal = app.broker.journal("cancellations", keep_s=app.settings.cancellations_kept_s)
        for note in notes:
            await journal.append(note, timeout_s=WAIT_S)
        async with bench.working(app):
            for note in notes:
                await journal.append(note, timeout_s=WAIT_S)
            handle = await work.send()
            await handle.cancel()
            await _is_cancelled(handle)


@behaviour
async def test_without_cancelling_workers_work_and_a_cancel_says_that_it_is_switched_off(bench: Bench) -> None:
    """For brokers without streams, and users without the permission."""
    app = bench.app(cancellations_kept_s=0)

    @app.task
    async def work(n: int) -> int:
        return n

    async with bench.working(app):
        handle = await work.options(delay=0.3).send(1)
        with pytest.raises(InvalidOption, match="cancellations_kept_s"):
            await handle.cancel()
        with pytest.raises(InvalidOption, match="cancellations_kept_s"):
            await app.undo_cancel(handle.id)
        assert await handle.result(WAIT_S) == 1
    with pytest.raises(NotOpen):
        await app.cancel("task-1")


@behaviour
async def test_what_is_no_id_is_refused(bench: Bench) -> None:
    """Before anything is cancelled."""
    wrong: list[Any] = ["", "x" * 256, None, 7, b"id", ["id"]]
    async with bench.app() as app:
        for value in wrong:
            with pytest.raises(InvalidOption, match=r"handle\.id"):
                await app.cancel("fine", value)
