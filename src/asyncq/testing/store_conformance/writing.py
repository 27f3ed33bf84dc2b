"""Updates become statuses: whole, by the rules, whoever writes at the same time."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from asyncq.outcome import Failure
from asyncq.status import Progress, StatusUpdate, TaskState, TaskStatus
from asyncq.testing.store_conformance.bench import NOW, StoreBench, behaviour, read_one, update

_ODD = "Grüße, 世界 \0 \ud800 \U0001f600 ' \" \\ % : {} \n"


@behaviour
async def test_a_status_comes_back_as_it_was_written(bench: StoreBench) -> None:
    """Every field, with whatever texts, and a result of a megabyte."""
    written = StatusUpdate(
        id="a",
        state=TaskState.SUCCEEDED,
        at=NOW + timedelta(microseconds=1),
        attempt=3,
        task=f"shop.{_ODD}",
        queue="mail",
        worker=_ODD,
        progress=Progress(0.5, 1, _ODD, {"list": [1, None, {"x": _ODD}]}),
        result=b'"\xc3\xbc' + b"x" * 1_000_000 + b'"',
        error=Failure("builtins.ValueError", _ODD, f"Traceback\n{_ODD}"),
        queued_at=NOW,
        due_at=NOW + timedelta(days=400),
        started_at=NOW - timedelta(seconds=5),
        retry_at=NOW + timedelta(seconds=5),
        parent_id="parent",
        root_id="root",
        workflow='["shop.add"]',
        ttl_s=3600.25,
    )
    async with bench.open() as store, bench.open() as other:
        await store.write([written])
        for reader in (store, other):
            assert await read_one(reader, "a") == TaskStatus(
                id="a",
                state=TaskState.SUCCEEDED,
                task=written.task,
                queue="mail",
                attempt=3,
                worker=_ODD,
                progress=written.progress,
                result=written.result,
                error=written.error,
                queued_at=NOW,
                due_at=written.due_at,
                started_at=written.started_at,
                retry_at=written.retry_at,
                finished_at=written.at,
                updated_at=written.at,
                parent_id="parent",
                root_id="root",
                workflow='["shop.add"]',
                expires_at=written.at + timedelta(seconds=3600.25),
            )


@behaviour
async def test_the_updates_of_a_life_become_one_status(bench: StoreBench) -> None:
    """Written one by one, or together."""
    life: list[tuple[str, dict[str, Any]]] = [
        ("queued", {"task": "shop.work", "queue": "shop"}),
        ("started 1", {"worker": "host:1"}),
        ("retrying 1", {"retry_at": NOW, "error": Failure("E", "no luck")}),
        ("started 2", {}),
        ("succeeded 2", {"result": b"null"}),
    ]
    async with bench.open() as store:
        for second, (text, fields) in enumerate(life):
            await store.write([update("one by one", text, second, **fields)])
        await store.write([update("together", text, second, **fields) for second, (text, fields) in enumerate(life)])
        for id_ in ("one by one", "together"):
            status = await read_one(store, id_)
            assert (status.state, status.attempt, status.result) == ("succeeded", 2, b"null")
            assert (status.task, status.queue, status.queued_at, status.error) == ("shop.work", "shop", NOW, None)


@behaviour
async def test_what_comes_too_late_changes_nothing_but_fills_in(bench: StoreBench) -> None:
    """The producer after the worker, a lower attempt, another end, progress after the end."""
    async with bench.open() as store:
        await store.write([update("a", "succeeded 2", 9, result=b"1")])
        for late in ("started 1", "failed 1", "started 2", "failed 2", "retrying 2"):
            await store.write([update("a", late, 10)])
        await store.write([update("a", "queued", 0, task="shop.work")])
        status = await read_one(store, "a")
    assert (status.state, status.attempt, status.result, status.finished_at) == (
        "succeeded",
        2,
        b"1",
        NOW + timedelta(seconds=9),
    )
    assert (status.queued_at, status.task) == (NOW, "shop.work")


@behaviour
async def test_a_success_wins_over_a_failure_of_its_attempt(bench: StoreBench) -> None:
    """A task that was delivered twice."""
    async with bench.open() as store:
        await store.write([update("a", "failed 1", error=Failure("E", "no"))])
        await store.write([update("a", "succeeded 1", 1, result=b"1")])
        status = await read_one(store, "a")
    assert (status.state, status.result, status.error) == ("succeeded", b"1", None)


@behaviour
async def test_a_dead_letter_that_is_sent_back_begins_a_new_life(bench: StoreBench) -> None:
    """Without its result and error, from the first attempt; and the life before says nothing any more."""
    async with bench.open() as store:
        await store.write([update("a", "failed 4", error=Failure("E", "no"), task="shop.work")])
        await store.write([update("a", "queued", 5, task="shop.work", life=5)])
        status = await read_one(store, "a")
        assert (status.state, status.attempt, status.error, status.task) == ("queued", 0, None, "shop.work")
        await store.write([update("a", "succeeded 1", 9, result=b"1", life=5)])
        await store.write([update("a", "failed 4", 10)])
        status = await read_one(store, "a")
        assert (status.state, status.life) == ("succeeded", 5)


@behaviour
async def test_a_thousand_updates_go_in_one_batch(bench: StoreBench) -> None:
    """Of a thousand tasks, then again of the same ones."""
    ids = [f"task-{number}" for number in range(1000)]
    async with bench.open() as store:
        await store.write([])
        await store.write([update(id_, "queued", task="shop.work") for id_ in ids])
        await store.write([update(id_, "succeeded 1", 1, result=id_.encode()) for id_ in reversed(ids)])
        found = await store.read(ids)
    assert [status and (status.state, status.result, status.task) for status in found] == [
        ("succeeded", id_.encode(), "shop.work") for id_ in ids
    ]


@behaviour
async def test_two_writers_of_one_task_lose_nothing(bench: StoreBench) -> None:
    """Twenty writers on two clients, each with the next attempts: the highest one stands, and the birth is known."""
    async with bench.open() as one, bench.open() as two:
        births = [update("a", "queued", task="shop.work"), update("a", "scheduled", due_at=NOW)]
        await asyncio.gather(
            *((one, two)[attempt % 2].write([update("a", f"started {attempt}", attempt)]) for attempt in range(1, 21)),
            *(two.write([birth]) for birth in births),
        )
        status = await read_one(one, "a")
    assert (status.state, status.attempt, status.task, status.due_at) == ("started", 20, "shop.work", NOW)


@behaviour
async def test_batches_of_the_same_tasks_in_other_orders_do_not_block_each_other(bench: StoreBench) -> None:
    """No two of them wait for each other in a circle."""
    ids = [f"task-{number}" for number in range(500)]
    async with bench.open() as one, bench.open() as two, bench.open() as three:
        for round_ in range(3):
            orders = ((one, ids), (two, ids[::-1]), (three, ids[250:] + ids[:250]))
            await asyncio.gather(
                *(
                    store.write([update(id_, f"started {3 * round_ + number}", round_) for id_ in order])
                    for number, (store, order) in enumerate(orders, 1)
                )
            )
        assert {status.attempt for status in await one.read(ids) if status is not None} == {9}


@behaviour
async def test_writers_in_two_processes_lose_nothing(bench: StoreBench) -> None:
    """The producer in one and the worker in another write of the same 200 tasks at the same time."""
    ids = [f"both-{number}" for number in range(200)]
    async with bench.open() as store:
        await asyncio.gather(bench.elsewhere("produce", "both", "200"), bench.elsewhere("work", "both", "200"))
        found = await store.read(ids)
    assert [status and (status.state, status.queue, status.result) for status in found] == [
        ("succeeded", f"of {id_}", id_.encode()) for id_ in ids
    ]
