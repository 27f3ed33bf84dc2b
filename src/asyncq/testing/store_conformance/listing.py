"""Listings: newest first, filtered, in pages that hold while tasks are added."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from asyncq.errors import InvalidOption
from asyncq.result_store import ResultStore
from asyncq.status import TaskState, TaskStatus
from asyncq.testing.store_conformance.bench import StoreBench, behaviour, read_one, update


async def _pages(store: ResultStore, **filters: Any) -> list[TaskStatus]:
    found: list[TaskStatus] = []
    cursor = None
    while True:
        page = await store.list(cursor=cursor, **filters)
        assert len(page.items) <= filters.get("limit", 50)
        found += page.items
        if page.cursor is None:
            return found
        cursor = page.cursor


def _ids(statuses: list[TaskStatus] | tuple[TaskStatus, ...]) -> list[str]:
    return [status.id for status in statuses]


@behaviour
async def test_the_newest_tasks_come_first(bench: StoreBench) -> None:
    """By when they became known, whatever happens to them later; without their results."""
    async with bench.open() as store:
        for name in "abcde":
            await store.write([update(name, "queued")])
        await store.write([update("a", "succeeded 1", result=b"1")])
        assert _ids((await store.list()).items) == list("edcba")
        assert _ids(await _pages(store, limit=2)) == list("edcba")
        assert _ids(await _pages(store, limit=5)) == list("edcba")
        listed = (await store.list()).items[-1]
        assert (listed.state, listed.result) == ("succeeded", None)
        assert (await read_one(store, "a")).result == b"1"


@behaviour
async def test_pages_are_whole_where_many_tasks_became_known_at_once(bench: StoreBench) -> None:
    """A batch of 300 in pages of 7."""
    ids = [f"task-{number}" for number in range(300)]
    async with bench.open() as store:
        await store.write([update(id_, "queued") for id_ in ids])
        assert sorted(_ids(await _pages(store, limit=7))) == sorted(ids)


@behaviour
async def test_tasks_that_are_added_meanwhile_neither_repeat_nor_skip_one(bench: StoreBench) -> None:
    """The cursor stands between two tasks."""
    async with bench.open() as store, bench.open() as other:
        await store.write([update(f"old-{number}", "queued") for number in range(10)])
        first = await store.list(limit=4)
        await other.write([update(f"new-{number}", "queued") for number in range(10)])
        await other.write([update(id_, "started 1", 1) for id_ in _ids(first.items)])
        second = await store.list(limit=4, cursor=first.cursor)
        await other.write([update(f"newer-{number}", "queued") for number in range(10)])
        third = await store.list(limit=4, cursor=second.cursor)
        seen = _ids([*first.items, *second.items, *third.items])
        assert sorted(seen) == sorted(f"old-{number}" for number in range(10))
        assert third.cursor is None


@behaviour
async def test_listings_are_filtered_by_task_state_and_time(bench: StoreBench) -> None:
    """Each, and together; a task goes by the state that it is in now."""
    async with bench.open() as store:
        await store.write([update(f"m{number}", "queued", task="shop.mail") for number in range(3)])
        await store.write([update("m1", "failed 1", 1), update("m2", "started 1", 1)])
        await store.write([update("r1", "failed 1", task="shop.report"), update("n", "failed 1")])
        read = store.list
        assert sorted(_ids((await read(task="shop.mail")).items)) == ["m0", "m1", "m2"]
        assert sorted(_ids((await read(state=TaskState.FAILED)).items)) == ["m1", "n", "r1"]
        assert _ids((await read(task="shop.mail", state=TaskState.FAILED)).items) == ["m1"]
        assert _ids(await _pages(store, task="shop.mail", state=TaskState.QUEUED, limit=1)) == ["m0"]
        assert (await read(task="shop")).items == ()
        assert (await read(state=TaskState.CANCELLED)).items == ()
        moment = datetime.now(UTC)
        await store.write([update("late", "queued", task="shop.mail")])
        assert _ids((await read(since=moment)).items) == ["late"]
        assert _ids((await read(since=moment, task="shop.mail")).items) == ["late"]
        assert len((await read(since=moment - timedelta(hours=1))).items) == 6
        assert (await read(since=moment + timedelta(hours=1))).items == ()


@behaviour
async def test_a_filter_that_few_tasks_pass_finds_them_all(bench: StoreBench) -> None:
    """Among hundreds that do not pass."""
    async with bench.open() as store:
        await store.write([update(f"t{number:03d}", "failed 1", task=f"shop.{number % 100}") for number in range(500)])
        found = await _pages(store, task="shop.7", state=TaskState.FAILED, limit=2)
        assert sorted(_ids(found)) == ["t007", "t107", "t207", "t307", "t407"]


@behaviour
async def test_a_cursor_or_limit_that_cannot_be_is_an_error(bench: StoreBench) -> None:
    """Not an empty page."""
    async with bench.open() as store:
        for cursor in ("", "next", "12:a", "x" * 16 + ":a", "1" * 16):
            with pytest.raises(InvalidOption, match="cursor"):
                await store.list(cursor=cursor)
        for limit in (0, -1, 1001):
            with pytest.raises(InvalidOption, match="limit="):
                await store.list(limit=limit)
        with pytest.raises(InvalidOption, match="time zone"):
            await store.list(since=datetime(2026, 1, 1))  # noqa: DTZ001 - what is tested
