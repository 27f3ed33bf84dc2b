"""Following a task from anywhere, up to its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from asyncq.result_store import ResultStore
from asyncq.status import TaskStatus
from asyncq.testing.store_conformance.bench import WAIT_S, StoreBench, behaviour, update


async def _follow(store: ResultStore, id: str) -> list[TaskStatus]:  # noqa: A002 - the field's own word
    return [status async for status in store.watch(id)]


async def _next(watch: AsyncIterator[TaskStatus]) -> str:
    async with asyncio.timeout(WAIT_S):
        return str((await anext(watch)).state)


def _closing(watch: Any) -> Any:
    return aclosing(watch)


@behaviour
async def test_a_task_is_followed_to_its_end(bench: StoreBench) -> None:
    """Each state that lasts, in order, with what another client writes; then the iteration ends."""
    async with bench.open() as store, bench.open() as other:
        await store.write([update("a", "queued")])
        async with _closing(store.watch("a")) as watch:
            assert await _next(watch) == "queued"
            for second, text in enumerate(("started 1", "retrying 1", "started 2", "succeeded 2")):
                await other.write([update("a", text, second)])
                assert await _next(watch) == text.partition(" ")[0]
            assert [status async for status in watch] == []


@behaviour
async def test_a_task_that_has_ended_is_told_once(bench: StoreBench) -> None:
    """To whoever comes later."""
    async with bench.open() as store:
        await store.write([update("a", "failed 1")])
        assert [str(status.state) for status in await _follow(store, "a")] == ["failed"]


@behaviour
async def test_an_id_that_nothing_is_known_of_is_waited_for(bench: StoreBench) -> None:
    """The producer may be slower than the handle."""
    async with bench.open() as store:
        following = asyncio.create_task(_follow(store, "a"))
        await asyncio.sleep(0.05)
        await store.write([update("b", "succeeded 1")])
        await store.write([update("a", "succeeded 1")])
        assert [status.id for status in await asyncio.wait_for(following, WAIT_S)] == ["a"]


@behaviour
async def test_many_watch_many_tasks(bench: StoreBench) -> None:
    """Two of each; each is told of its own."""
    ids = [f"task-{number}" for number in range(20)]
    async with bench.open() as store, bench.open() as other:
        following = [asyncio.create_task(_follow(store, id_)) for id_ in ids * 2]
        await asyncio.sleep(0.05)
        await other.write([update(id_, "succeeded 1") for id_ in ids])
        async with asyncio.timeout(WAIT_S):
            found = await asyncio.gather(*following)
        assert [[status.id for status in statuses] for statuses in found] == [[id_] for id_ in ids * 2]


@behaviour
async def test_who_stops_watching_leaves_the_others_alone(bench: StoreBench) -> None:
    """And may come again."""
    async with bench.open() as store:
        await store.write([update("a", "queued")])
        async with _closing(store.watch("a")) as stays:
            assert await _next(stays) == "queued"
            for _ in range(3):
                async with _closing(store.watch("a")) as leaves:
                    assert await _next(leaves) == "queued"
            await store.write([update("a", "started 1")])
            assert await _next(stays) == "started"


@behaviour
async def test_a_task_is_followed_from_another_process(bench: StoreBench) -> None:
    """The final state with its result is never missed."""
    async with bench.open() as store:
        following = asyncio.create_task(_follow(store, "a"))
        await bench.elsewhere("finish", "a")
        found = await asyncio.wait_for(following, WAIT_S)
    assert (found[-1].state, found[-1].result) == ("succeeded", b'"done"')
    done = [status.progress.done for status in found if status.progress is not None]
    assert done == sorted(done)


@behaviour
async def test_watching_goes_on_when_the_store_was_away(bench: StoreBench) -> None:
    """What was written after it has come back is told."""
    async with bench.open(timeout_s=2) as store, bench.open() as other:
        await store.write([update("a", "queued")])
        following = asyncio.create_task(_follow(store, "a"))
        async with _closing(store.watch("a")) as watch:
            assert await _next(watch) == "queued"
            await bench.go_away()
            await bench.come_back()
            await other.write([update("a", "started 1")])
            assert await _next(watch) == "started"
        await other.write([update("a", "succeeded 1", 1)])
        assert str((await asyncio.wait_for(following, WAIT_S))[-1].state) == "succeeded"
