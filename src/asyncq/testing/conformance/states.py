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
    InvalidOption,
    InvalidResult,
    NoReply,
    NoResultStore,
    ReplyLost,
    ResultNotKept,
    ResultTimeout,
    TaskCancelled,
    TaskExpired,
    TaskFailed,
    TaskNotFound,
    TaskRejected,
    WrongTask,
)
from asyncq.message import new_id
from asyncq.results import Progress, ResultHandle, gather_results
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
