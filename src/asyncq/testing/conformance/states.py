"""States, progress and results by the result store: the same through every broker.

The store is the one in memory; what each kind of store must do has a suite of its own, `store_conformance`.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from asyncq.app import AsyncQ
from asyncq.context import TaskContext
from asyncq.errors import (
    ResultNotKept,
    TaskExpired,
    TaskFailed,
    TaskRejected,
)
from asyncq.message import new_id
from asyncq.results import Progress, ResultHandle
from asyncq.retry import Fixed, RetryPolicy
from asyncq.signals import Snooze
from asyncq.status import TaskState, TaskStatus
from asyncq.stores.memory import Shelf, shelf_of
from asyncq.testing.conformance.bench import QUEUE, WAIT_S, Bench, behaviour, eventually

SOON = RetryPolicy(backoff=Fixed(0.05), jitter=False, max_attempts=2)


class Receipt(BaseModel):
    """A result."""

    number: int


def stored(bench: Bench, **settings: Any) -> tuple[AsyncQ, Shelf]:
    """Return an app with a result store of its own in memory, and what is in that."""
    name = new_id()
    return bench.app(results=f"memory://{name}", **settings), shelf_of(f"asyncq {name}")


async def ended(handle: ResultHandle[Any]) -> TaskStatus:
    """Wait for a task's end by the store."""
    async with asyncio.timeout(WAIT_S):
        *_, last = [status async for status in handle.statuses()]
    return last


@behaviour
async def test_a_status_tells_the_whole_life_of_a_task(bench: Bench) -> None:
    """Name, queue, attempt, worker, times and result, whoever asks; queued before any worker has seen it."""
    app, _ = stored(bench)
    asked = asyncio.Event()

    @app.task
    async def charge(number: int) -> Receipt:
        await asked.wait()
        return Receipt(number=number)

    began = datetime.now(UTC) - timedelta(seconds=1)
    async with app:
        handle = await charge.options(reply=False).send(7)
        status = await app.handle(handle.id).status()
        assert (status.state, status.task, status.queue, status.attempt) == (TaskState.QUEUED, "shop.charge", QUEUE, 0)
        async with bench.working(app):
            await eventually(lambda: _is(handle, TaskState.STARTED))
            asked.set()
            assert await charge.handle(handle.id).result(WAIT_S) == Receipt(number=7)
            assert await app.handle(handle.id).result(WAIT_S) == {"number": 7}
        status = await handle.status()
    assert (status.state, status.attempt, status.error) == (TaskState.SUCCEEDED, 1, None)
    assert status.worker
    times = [status.queued_at, status.started_at, status.finished_at]
    assert all(times)
    assert [began, *times] == sorted([began, *times])  # type: ignore[type-var]  # none of them is None


async def _is(handle: ResultHandle[Any], state: TaskState) -> bool:
    return (await handle.status()).state is state


@behaviour
async def test_a_delayed_task_is_scheduled_until_it_starts(bench: Bench) -> None:
    """With the time when it is due."""
    app, _ = stored(bench)

    @app.task
    async def later() -> None: ...

    async with bench.working(app):
        began = datetime.now(UTC) - timedelta(milliseconds=1)
        handle = await later.options(delay=1).send()
        sent = datetime.now(UTC) + timedelta(milliseconds=1)
        status = await handle.status()
        assert status.state is TaskState.SCHEDULED
        assert status.due_at is not None
        assert began <= status.due_at - timedelta(seconds=1) <= sent
        last = await ended(handle)
        assert last.state is TaskState.SUCCEEDED
        assert last.due_at == status.due_at


@behaviour
async def test_a_retry_is_told_with_its_error_and_its_time(bench: Bench) -> None:
    """Then the second attempt; in the end the failure with its reason and traceback."""
    app, _ = stored(bench)
    policy = RetryPolicy(backoff=Fixed(0.5), jitter=False, max_attempts=2)

    @app.task(retry=policy)
    async def fragile() -> None:
        raise ConnectionError("gone")

    async with bench.working(app):
        handle = await fragile.send()
        seen = [status async for status in handle.statuses()]
    again = next(status for status in seen if status.state is TaskState.RETRYING)
    assert again.attempt == 1
    assert again.error is not None
    assert again.error.message == "gone"
    assert again.retry_at is not None
    assert again.updated_at is not None
    assert (again.retry_at - again.updated_at).total_seconds() == pytest.approx(0.5, abs=0.2)
    last = seen[-1]
    assert (last.state, last.attempt, last.reason) == (TaskState.FAILED, 2, "attempts exhausted")
    assert last.error is not None
    assert last.error.type == "builtins.ConnectionError"
    assert "fragile" in last.error.traceback


@behaviour
async def test_a_task_that_snoozes_is_told_to_run_again(bench: Bench) -> None:
    """Without an error, and without another attempt."""
    app, _ = stored(bench)
    runs = []

    @app.task
    async def waiting() -> str:
        runs.append(1)
        if len(runs) == 1:
            raise Snooze(0.3)
        return "done"

    async with bench.working(app):
        handle = await waiting.send()
        again = await eventually(lambda: _status_if(handle, TaskState.RETRYING))
        assert (again.attempt, again.error) == (1, None)
        last = await ended(handle)
    assert (last.state, last.attempt, last.result) == (TaskState.SUCCEEDED, 1, b'"done"')


async def _status_if(handle: ResultHandle[Any], state: TaskState) -> TaskStatus | None:
    status = await handle.status()
    return status if status.state is state else None


@behaviour
async def test_failures_from_the_store_are_those_of_the_replies(bench: Bench) -> None:
    """The task's own error, a rejection, an expiry: whoever asks gets the same."""
    app, _ = stored(bench)

    @app.task
    async def fail() -> None:
        raise ValueError("no")

    @app.task
    async def count(number: int) -> None: ...

    async with app:
        late = await fail.options(expires=datetime.now(UTC) - timedelta(seconds=1)).send()
        async with bench.working(app):
            failed = await fail.send()
            with pytest.raises(TaskFailed, match="ValueError: no"):
                await failed.result(WAIT_S)
            with pytest.raises(TaskFailed, match="ValueError: no") as caught:
                await app.handle(failed.id).result(WAIT_S)
            assert "Traceback" in caught.value.traceback
            unchecked = app.signature("shop.elsewhere", {"number": "x"}, queue=QUEUE)
            rejected = await app.send(replace(unchecked, name="shop.count"))
            with pytest.raises(TaskRejected, match="ValidationError"):
                await app.handle(rejected.id).result(WAIT_S)
            with pytest.raises(TaskExpired):
                await app.handle(late.id).result(WAIT_S)
            status = await late.status()
    assert (status.state, status.attempt) == (TaskState.EXPIRED, 0)
    assert status.not_after is not None


@behaviour
async def test_progress_reaches_the_store_in_intervals_and_the_last_one_always(bench: Bench) -> None:
    """However fast a task reports: some of it, and the last one with its end."""
    app, shelf = stored(bench, progress_interval_s=0.1)
    seen = asyncio.Event()

    @app.task(pass_context=True)
    async def work(ctx: TaskContext) -> None:
        for done in range(500):
            await ctx.progress(done, 1000, "counting", part=done % 7)
        await seen.wait()
        await ctx.progress(1000, 1000)

    writes = 0

    async with bench.working(app):
        handle = await work.options(reply=False).send()
        async for status in handle.statuses():
            writes += 1
            if status.progress is not None and status.progress.done == 499:
                assert status.progress == Progress(499, 1000, "counting", {"part": 499 % 7})
                assert status.state is TaskState.STARTED
                seen.set()
    assert status.progress == Progress(1000, 1000)
    assert status.state is TaskState.SUCCEEDED
    assert writes < 100
    versions = {row.version for row, _ in shelf.rows.values()}
    assert len(versions) == 1


@behaviour
async def test_updates_come_by_the_store_for_who_has_not_sent_the_task(bench: Bench) -> None:
    """The sender hears every step by its reply queue, others what the store keeps, up to the end."""
    app, _ = stored(bench, progress_interval_s=0)
    watched = asyncio.Event()

    @app.task(pass_context=True)
    async def work(ctx: TaskContext) -> str:
        await watched.wait()
        for done in (1, 2, 3):
            await ctx.progress(done)
        return "done"

    async with bench.working(app):
        handle = await work.send()
        other = app.handle((await work.options(reply=False).send()).id)
        updates = asyncio.create_task(_all(other))
        mine = asyncio.create_task(_all(handle))
        await eventually(lambda: _is(other, TaskState.STARTED))
        watched.set()
        async with asyncio.timeout(WAIT_S):
            assert [update.done for update in await mine] == [1, 2, 3]
            assert [update.done for update in await updates][-1] == 3


async def _all(handle: ResultHandle[Any]) -> list[Progress]:
    return [update async for update in handle.updates()]


@behaviour
async def test_what_is_kept_is_the_tasks_or_the_sends_to_say(bench: Bench) -> None:
    """Everything, errors only, or nothing; of errors only, a success leaves no trace."""
    app, shelf = stored(bench)

    @app.task(keep="errors")
    async def quiet(number: int) -> int:
        if number < 0:
            raise ValueError("negative")
        return number

    @app.task
    async def plain() -> int:
        return 1

    async with bench.working(app):
        succeeded = await quiet.send(1)
        await succeeded.result(WAIT_S)
        assert (await app.handle(succeeded.id).status()).state is TaskState.UNKNOWN
        assert [status.state async for status in succeeded.statuses()] == [TaskState.SUCCEEDED]  # the reply tells
        failed = await quiet.send(-1)
        with pytest.raises(TaskFailed):
            await failed.result(WAIT_S)
        assert (await app.handle(failed.id).status()).state is TaskState.FAILED
        kept = await quiet.options(keep="result").send(2)
        await kept.result(WAIT_S)
        assert (await app.handle(kept.id).status()).result == b"2"
        silent = await plain.options(keep="nothing").send()
        await silent.result(WAIT_S)
        short = await plain.options(result_ttl=timedelta(hours=2)).send()
        await short.result(WAIT_S)
        status = await short.status()
        assert status.finished_at is not None
        assert status.expires_at == status.finished_at + timedelta(hours=2)
    assert silent.id not in shelf.rows


@behaviour
async def test_a_replayed_dead_letter_begins_a_new_life(bench: Bench) -> None:
    """Queued again, from its first attempt; also for a task of which only errors are kept."""
    app, _ = stored(bench)
    well: list[int] = []

    @app.task(keep="errors")
    async def repaired() -> str:
        if not well:
            raise ValueError("not yet")
        return "fine"

    async with app:
        async with bench.working(app):
            handle = await repaired.send()
            with pytest.raises(TaskFailed):
                await handle.result(WAIT_S)
            handle = app.handle(handle.id)
            assert await _is(handle, TaskState.FAILED)
        well.append(1)
        await app.dead_letters(QUEUE).replay()
        status = await handle.status()
        assert (status.state, status.attempt, status.error) == (TaskState.QUEUED, 0, None)
        async with bench.working(app):
            last = await ended(handle)
        with pytest.raises(ResultNotKept):
            await app.handle(handle.id).result(WAIT_S)
    assert (last.state, last.result) == (TaskState.SUCCEEDED, None)
