"""Handles of tasks that anybody has sent, listings, and a result store that is away: the same through every broker."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from asyncq.context import TaskContext
from asyncq.errors import (
    InvalidOption,
    InvalidResult,
    NoReply,
    NoResultStore,
    ReplyLost,
    ResultTimeout,
    TaskCancelled,
    TaskFailed,
    TaskNotFound,
    WrongTask,
)
from asyncq.message import new_id
from asyncq.results import Progress, ResultHandle, gather_results
from asyncq.status import TaskState
from asyncq.testing.conformance.bench import WAIT_S, Bench, behaviour, eventually
from asyncq.testing.conformance.states import Receipt, ended, stored


@behaviour
async def test_an_id_that_nothing_is_known_of_is_unknown_and_says_so(bench: Bench) -> None:
    """Not queued, and not a task that may still be waiting."""
    app, _ = stored(bench)
    async with app:
        handle = app.handle(new_id())
        assert (await handle.status()).state is TaskState.UNKNOWN
        with pytest.raises(TaskNotFound, match=r"knows nothing of it"):
            await handle.result(timeout=0.05)
        with pytest.raises(InvalidOption, match="id"):
            app.handle("")


@behaviour
async def test_a_wait_that_is_too_short_says_where_the_task_is(bench: Bench) -> None:
    """Queued, here."""
    app, _ = stored(bench)

    @app.task
    async def work() -> None: ...

    async with app:
        handle = await work.options(reply=False).send()
        with pytest.raises(ResultTimeout, match="It is queued") as caught:
            await handle.result(timeout=0.05)
        assert not isinstance(caught.value, TaskNotFound)


@behaviour
async def test_a_typed_handle_refuses_the_id_of_another_task(bench: Bench) -> None:
    """And a result that no longer fits says so."""
    app, _ = stored(bench)

    @app.task
    async def text() -> str:
        return "x"

    @app.task
    async def number() -> int:
        return 1

    async with bench.working(app):
        handle = await text.send()
        await handle.result(WAIT_S)
        wrong = number.handle(handle.id)
        for ask in (wrong.status, wrong.result):
            with pytest.raises(WrongTask, match=r"'shop\.text'.*'shop\.number'"):
                await ask()
        changed = bench.app(results=app.settings.results)

        @changed.task(name="shop.text")
        async def otherwise() -> int:
            return 1

        async with changed:
            with pytest.raises(InvalidResult):
                await otherwise.handle(handle.id).result(WAIT_S)


@behaviour
async def test_without_a_store_a_handle_says_what_is_missing(bench: Bench) -> None:
    """Its own sender still knows what the replies tell."""
    app = bench.app()

    @app.task
    async def work() -> int:
        return 3

    async with bench.working(app):
        handle = await work.send()
        assert await handle.result(WAIT_S) == 3
        status = await handle.status()
        assert (status.state, status.result) == (TaskState.SUCCEEDED, b"3")
        assert [status.state async for status in handle.statuses()] == [TaskState.SUCCEEDED]
        with pytest.raises(NoResultStore, match="ASYNCQ_RESULTS"):
            await app.handle(new_id()).status()
        with pytest.raises(NoResultStore, match="ASYNCQ_RESULTS"):
            await app.handle(new_id()).result()
        silent = await work.options(reply=False).send()
        with pytest.raises(NoReply):
            await silent.result()
        with pytest.raises(NoResultStore):
            await app.results.list()


@behaviour
async def test_a_lost_reply_queue_is_made_up_for_by_the_store(bench: Bench) -> None:
    """The result comes all the same."""
    app, _ = stored(bench)
    go = asyncio.Event()

    @app.task
    async def work() -> str:
        await go.wait()
        return "kept"

    async with bench.working(app):
        handle = await work.send()
        assert handle._pending is not None  # noqa: SLF001 - there is no other way to lose it alone
        waiting = asyncio.create_task(handle.result(WAIT_S))
        handle._pending.lose(ReplyLost("gone"))  # noqa: SLF001
        go.set()
        assert await waiting == "kept"


@behaviour
async def test_a_task_that_another_one_sends_knows_its_parent_and_root(bench: Bench) -> None:
    """In its status, from the moment it is queued."""
    app, _ = stored(bench)

    @app.task
    async def leaf() -> None: ...

    @app.task
    async def middle() -> str:
        return (await leaf.send()).id

    @app.task
    async def top() -> str:
        return (await middle.send()).id

    async with bench.working(app):
        first = await top.send()
        second = middle.handle(await first.result(WAIT_S))
        third = leaf.handle(await second.result(WAIT_S))
        status = await ended(third)
    assert (status.parent_id, status.root_id) == (second.id, first.id)


@behaviour
async def test_the_store_lists_tasks_latest_first_with_filters(bench: Bench) -> None:
    """By name, state and time, in pages."""
    app, _ = stored(bench)

    @app.task
    async def even(number: int) -> int:
        return number

    @app.task
    async def odd(number: int) -> None:
        raise ValueError

    async with bench.working(app):
        handles: list[ResultHandle[Any]] = [await (odd if number % 2 else even).send(number) for number in range(6)]
        await gather_results(handles, WAIT_S, return_errors=True)
        page = await app.results.list(limit=4)
        rest = await app.results.list(limit=4, cursor=page.cursor)
        listed = [item.id for item in (*page.items, *rest.items)]
        assert listed == [handle.id for handle in reversed(handles)]
        assert rest.cursor is None
        failed = await app.results.list(state="failed")
        assert {item.task for item in failed.items} == {"shop.odd"}
        assert len((await app.results.list(task="shop.even", since=timedelta(minutes=1))).items) == 3
        assert (await app.results.list(since=datetime.now(UTC) + timedelta(hours=1))).items == ()
        with pytest.raises(InvalidOption, match="There is no state 'done'"):
            await app.results.list(state="done")
        read = await app.results.read([handles[0].id, "nobody"])
        assert [item.state for item in read] == [TaskState.SUCCEEDED, TaskState.UNKNOWN]


@behaviour
async def test_results_are_gathered_in_order_and_the_first_failure_is_raised(bench: Bench) -> None:
    """Or put in the place of the result, where that is wanted; also by handles of other processes' tasks."""
    app, _ = stored(bench)

    @app.task
    async def half(number: int) -> int:
        if number % 2:
            raise ValueError(f"{number} is odd")
        return number // 2

    async with bench.working(app):
        handles = await app.send_many(half.s(number) for number in range(0, 400, 2))
        foreign = [half.handle(handle.id) for handle in handles]
        assert await gather_results(handles, WAIT_S) == list(range(200))
        assert await gather_results(foreign, WAIT_S) == list(range(200))
        odd = await half.send(7)
        with pytest.raises(TaskFailed, match="7 is odd"):
            await gather_results([handles[0], odd], WAIT_S)
        mixed = await gather_results([handles[1], odd], WAIT_S, return_errors=True)
        assert mixed[0] == 1
        assert isinstance(mixed[1], TaskFailed)
        with pytest.raises(ResultTimeout):
            await gather_results([handles[0], app.handle(new_id())], 0.1)


@behaviour
async def test_blocking_code_has_the_same_handles(bench: Bench) -> None:
    """On `app.sync`, typed or not."""
    app, _ = stored(bench)

    @app.task(pass_context=True)
    async def work(ctx: TaskContext) -> Receipt:
        await ctx.progress(1, 2)
        return Receipt(number=3)

    def blocking() -> None:
        handle = app.sync.send(work.s())
        assert app.sync.handle(handle.id).result(WAIT_S) == {"number": 3}
        assert app.sync.handle(handle.id, work).result(WAIT_S) == Receipt(number=3)
        assert app.sync.handle(handle.id).status().state is TaskState.SUCCEEDED
        assert [status.state for status in app.sync.handle(handle.id).statuses()] == [TaskState.SUCCEEDED]
        assert list(app.sync.handle(handle.id).updates()) == [Progress(1, 2)]

    async with bench.working(app):
        await asyncio.to_thread(blocking)


@behaviour
async def test_a_store_that_is_away_holds_up_no_send_and_no_task_is_lost(bench: Bench) -> None:
    """The send goes through; the task's end waits for the store, and its sender does not; then the end is there."""
    app, shelf = stored(bench)

    @app.task
    async def work(number: int) -> int:
        return number

    async with bench.working(app):
        shelf.away = True
        handle = await work.send(5)
        assert await handle.result(WAIT_S) == 5
        shelf.away = False
        assert (await ended(handle)).result == b"5"
        assert await work.call(6) == 6


@behaviour
async def test_a_worker_that_stops_while_the_store_is_away_hands_its_task_back(bench: Bench) -> None:
    """It runs again, on a worker that can keep its end; nothing counts as a failure."""
    app, shelf = stored(bench, drain_timeout_s=0.1)
    runs = []

    @app.task
    async def work() -> str:
        runs.append(1)
        return "done"

    async with app:
        async with bench.working(app):
            shelf.away = True
            handle = await work.options(reply=False).send()
            await eventually(lambda: runs)
        shelf.away = False
        async with bench.working(app):
            last = await ended(handle)
    assert (last.state, last.attempt) == (TaskState.SUCCEEDED, 1)
    assert len(runs) == 2


@behaviour
async def test_an_app_opens_while_its_store_is_away_and_finds_it_later(bench: Bench) -> None:
    """Sending needs no store."""
    app, shelf = stored(bench)
    shelf.away = True

    @app.task
    async def work() -> int:
        return 1

    async with bench.working(app):
        handle = await work.send()
        shelf.away = False
        assert await handle.result(WAIT_S) == 1
        assert (await ended(handle)).state is TaskState.SUCCEEDED


@behaviour
async def test_a_cancelled_task_is_cancelled_in_the_store_with_the_attempts_that_have_begun(bench: Bench) -> None:
    """Cancelled by a handle that another process could have made; one ran, and one never did."""
    app, _ = stored(bench)
    begun = asyncio.Event()

    @app.task(reply=False)
    async def work() -> None:
        begun.set()
        await asyncio.sleep(2 * WAIT_S)

    async with app:
        queued = await work.send()
        assert await app.handle(queued.id).cancel() is True
        async with bench.working(app):
            running = await work.send()
            await asyncio.wait_for(begun.wait(), WAIT_S)
            assert await app.handle(running.id).cancel() is True
            found = [await ended(handle) for handle in (queued, running)]
        assert [(status.state, status.attempt) for status in found] == [
            (TaskState.CANCELLED, 0),
            (TaskState.CANCELLED, 1),
        ]
        with pytest.raises(TaskCancelled):
            await app.handle(queued.id).result(WAIT_S)
