"""Handles of workflows: results, statuses, progress, cancelling; for the sender, and for any process with the store."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asyncq.app import AsyncQ
from asyncq.errors import (
    ChordFailed,
    InvalidOption,
    InvalidResult,
    NoReply,
    NoResultStore,
    ResultTimeout,
    TaskCancelled,
    TaskFailed,
    TaskNotFound,
)
from asyncq.message import new_id
from asyncq.status import Progress, TaskState
from asyncq.task import Task
from asyncq.testing import process_tasks
from asyncq.testing.conformance.bench import QUEUE, WAIT_S, Bench, behaviour, eventually
from asyncq.testing.conformance.states import Receipt, stored
from asyncq.workflow.building import chain, chord, group


def _tasks(app: AsyncQ) -> tuple[Task[..., int], Task[..., int], Task[..., int]]:
    """Declare tasks: one that adds, one that fails for a negative number, one that adds up."""

    @app.task
    async def add(x: int, y: int = 1) -> int:
        return x + y

    @app.task
    async def root(x: int) -> int:
        if x < 0:
            raise ValueError(f"{x} has no root")
        return int(x**0.5)

    @app.task
    async def total(numbers: list[int]) -> int:
        return sum(numbers)

    return add, root, total


@behaviour
async def test_the_sender_of_a_workflow_follows_it_without_a_store(bench: Bench) -> None:
    """Its progress counts up to its end; its status has each task by its place, its name and its id."""
    app = bench.app()
    add, root, total = _tasks(app)
    async with bench.working(app):
        workflow = chain(chord([add.s(1, 2), add.s(3, 4), root.s(49)], total), root)
        handle = await workflow.send()
        updates = [update async for update in handle.updates()]
        assert await handle.result(WAIT_S) == 4
        assert updates[-1] == Progress(5, 5, root.name)
        done = [update.done for update in updates]
        assert done == sorted(set(done))
        status = await handle.status()
        assert (status.id, status.state, status.done, status.total) == (handle.id, TaskState.SUCCEEDED, 5, 5)
        assert [(node.path, node.task) for node in status.nodes] == [
            ("0.0.0", add.name),
            ("0.1.0", add.name),
            ("0.2.0", root.name),
            ("1", total.name),
            ("2", root.name),
        ]
        assert status.node("0.1.0").state is TaskState.SUCCEEDED
        assert status.node(total.name) is status.node("1") is status.node(status.node("1").id)
        with pytest.raises(InvalidOption, match="no task"):
            status.node("7")
        assert await handle.cancel() is False


@behaviour
async def test_the_result_of_a_group_is_a_list_of_typed_results_in_order(bench: Bench) -> None:
    """Nested as the groups are, whoever of the members is first."""
    app = bench.app()
    slow_may_end = asyncio.Event()

    @app.task
    async def receipt(number: int) -> Receipt:
        if number == 1:
            await slow_may_end.wait()
        return Receipt(number=number)

    async with bench.working(app):
        handle = await group([receipt.s(1), group([receipt.s(2), receipt.s(3)]), receipt.s(4)]).send()
        await eventually(lambda: _done(handle, 3))
        slow_may_end.set()
        found = await handle.result(WAIT_S)
        assert found == [Receipt(number=1), [Receipt(number=2), Receipt(number=3)], Receipt(number=4)]


@behaviour
async def test_a_failed_task_is_named_and_what_follows_it_never_runs(bench: Bench) -> None:
    """In a chain the error is the task's own; in a chord all members that failed are named."""
    app = bench.app()
    add, root, total = _tasks(app)
    async with bench.working(app):
        failing = await chain(root.s(-1), add, root).send()
        with pytest.raises(TaskFailed, match="-1 has no root") as caught:
            await failing.result(WAIT_S)
        status = await failing.status()
        assert caught.value.task_id == status.node("0").id
        assert (status.state, [node.stopped for node in status.nodes]) == (TaskState.FAILED, [False, True, True])
        chorded = await chord([add.s(1, 1), root.s(-2), chain(root.s(-3), add)], total).send()
        with pytest.raises(ChordFailed) as of_chord:
            await chorded.result(WAIT_S)
        members = of_chord.value.members
        assert [(member.index, member.task, member.failed) for member in members] == [
            (1, root.name, "failed"),
            (2, root.name, "failed"),
        ]
        assert [member.error_message for member in members] == ["-2 has no root", "-3 has no root"]
        status = await chorded.status()
        assert [member.task_id for member in members] == [status.node("0.1.0").id, status.node("0.2.0").id]
        assert status.node(total.name).stopped


@behaviour
async def test_any_process_with_the_store_follows_a_workflow_by_its_id(bench: Bench) -> None:
    """Its status at each moment, its progress and its result; the store has which tasks there are."""
    app, _ = stored(bench)
    reader = bench.app("reader", results=app.settings.results)
    add, root, total = _tasks(app)
    async with app, reader:
        workflow = chord([add.s(1, 2), root.s(16)], total)
        sent = await workflow.options(reply=False).send()
        handle = reader.workflow(sent.id)
        status = await handle.status()
        assert (status.state, status.done, status.total) == (TaskState.QUEUED, 0, 3)
        assert [node.state for node in status.nodes] == [TaskState.QUEUED, TaskState.QUEUED, TaskState.UNKNOWN]
        with pytest.raises(ResultTimeout, match="0 of its 3 tasks"):
            await handle.result(0.05)
        following = asyncio.ensure_future(_all(handle.updates()))
        async with bench.working(app):
            assert await handle.result(WAIT_S) == 7
            assert await reader.workflow(sent.id, workflow).result(WAIT_S) == 7
            assert await sent.result(WAIT_S) == 7
        assert (await following)[-1].done == 3
        status = await handle.status()
        assert (status.state, status.node("0.0.0").status.result) == (TaskState.SUCCEEDED, b"3")
        task = await reader.handle(status.node(total.name).id).status()
        assert task.root_id == sent.id
        whole = await reader.handle(sent.id).status()
        assert (whole.task, whole.state, whole.result) == ("chord", TaskState.SUCCEEDED, b"7")


@behaviour
async def test_failures_and_groups_are_told_by_the_store_as_by_the_replies(bench: Bench) -> None:
    """To somebody who has nothing but the id."""
    app, _ = stored(bench)
    add, root, total = _tasks(app)
    async with bench.working(app):
        results = await group([add.s(1, 1), root.s(9)]).options(reply=False).send()
        assert await app.workflow(results.id).result(WAIT_S) == [2, 3]
        failed = await chain(add.s(-3, 1), root, add).options(reply=False).send()
        with pytest.raises(TaskFailed, match="-2 has no root"):
            await app.workflow(failed.id).result(WAIT_S)
        chorded = await chord([add.s(1, 1), root.s(-2)], total).options(reply=False).send()
        with pytest.raises(ChordFailed) as caught:
            await app.workflow(chorded.id).result(WAIT_S)
        assert [member.index for member in caught.value.members] == [1]


@behaviour
async def test_who_knows_neither_replies_nor_a_store_is_told_what_is_missing(bench: Bench) -> None:
    """And an id that no workflow has is not found."""
    app = bench.app()
    add, *_ = _tasks(app)
    kept, _ = stored(bench)
    own, *_ = _tasks(kept)
    async with app, kept:
        silent = await chain(add.s(1, 1), add).options(reply=False).send()
        with pytest.raises(NoReply, match="reply=False"):
            await silent.result(0.1)
        with pytest.raises(NoResultStore, match="ASYNCQ_RESULTS"):
            await app.workflow(new_id()).status()
        with pytest.raises(TaskNotFound, match="knows nothing of it"):
            await kept.workflow(new_id()).status()
        task = await own.send(1, 2)
        with pytest.raises(TaskNotFound, match="is no workflow"):
            await kept.workflow(task.id).result(0.1)
        with pytest.raises(InvalidOption):
            kept.workflow("")


@behaviour
async def test_a_result_that_does_not_fit_the_senders_types_is_said_to(bench: Bench) -> None:
    """The worker's code may be another version."""
    app = bench.app()

    @app.task
    async def number(x: int) -> Any:
        return f"no number: {x}"

    other = bench.app("other")

    @other.task(name="shop.number", queue=QUEUE)
    async def typed(x: int) -> int:
        return x

    async with bench.working(app), other:
        handle = await group([typed.s(1), typed.s(2)]).send()
        with pytest.raises(InvalidResult, match="return type"):
            await handle.result(WAIT_S)


@behaviour
async def test_a_cancelled_workflow_stops_where_it_is(bench: Bench) -> None:
    """What runs is stopped, what follows never runs, and the handle says that it was cancelled."""
    app = bench.app()
    running, ran = asyncio.Event(), []

    @app.task
    async def first(x: int) -> int:
        running.set()
        await asyncio.sleep(600)
        return x

    @app.task
    async def second(x: int) -> int:
        ran.append(x)
        return x

    async with bench.working(app):
        handle = await chain(first.s(1), second, second).send()
        await asyncio.wait_for(running.wait(), WAIT_S)
        assert await handle.cancel() is True
        with pytest.raises(TaskCancelled):
            await handle.result(WAIT_S)
        status = await handle.status()
        assert (status.state, status.node("0").state) == (TaskState.CANCELLED, TaskState.CANCELLED)
        assert await handle.cancel() is False
    assert ran == []


@behaviour
async def test_workflows_are_sent_and_followed_from_code_without_a_loop(bench: Bench) -> None:
    """By threads, by `def` tasks, and by tasks in processes of their own."""
    app, _ = stored(bench)
    add, root, total = _tasks(app)
    square = app.task(process_tasks.square)
    in_process = app.task(run_in="process", pass_context=True)(process_tasks.squares)

    @app.task(pass_context=True)
    def in_thread(ctx: Any, count: int) -> int:
        handle = ctx.sync.send(chord([add.s(number) for number in range(count)], total))
        updates = list(handle.updates())
        assert updates[-1].done == count + 1
        found: int = handle.result(WAIT_S)
        return found

    def from_a_thread() -> list[int]:
        handle = app.sync.send(group([add.s(1), root.s(4)]))
        found = handle.result(WAIT_S)
        assert handle.status().state is TaskState.SUCCEEDED
        assert app.sync.workflow(handle.id).result(WAIT_S) == found
        assert handle.cancel() is False
        assert app.sync.call(chain(add.s(1), add)) == 3
        return found

    async with bench.working(app):
        assert await asyncio.to_thread(from_a_thread) == [2, 2]
        assert await in_thread.call(3) == 6
        assert await in_process.call([2, 3], square.name) == [4, 9]


async def _all(items: Any) -> list[Any]:
    return [item async for item in items]


async def _done(handle: Any, count: int) -> bool:
    return bool((await handle.status()).done == count)
