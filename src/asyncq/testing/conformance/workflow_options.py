"""The table of workflows with options: of a task, of a part, of the whole; and chunks, which are one task for many."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from asyncq.broker import Queue
from asyncq.context import TaskContext
from asyncq.dependencies import Depends
from asyncq.errors import TaskFailed
from asyncq.message import Message, new_id
from asyncq.program import node_id
from asyncq.testing import process_tasks
from asyncq.testing.conformance.bench import QUEUE, WAIT_S, Bench, behaviour, dead_letter, eventually
from asyncq.testing.conformance.workflow_rows import SOON, Row, Tasks, differing
from asyncq.workflow.building import chain, chord, group

OPTIONS = [
    Row("a queue of the whole", lambda t: chain(t.known.s("queue")).options(queue="other"), "other"),
    Row("a queue of a step", lambda t: t.add.s(1) | t.known.options(queue="other").partial("queue"), "other"),
    Row(
        "a task's own queue wins, then that of its part, then the whole's",
        lambda t: group(
            t.known.options(queue="inner").s("queue"),
            chain(t.known.s("queue")).options(queue="inner"),
            t.known.s("queue"),
        ).options(queue="other"),
        ["inner", "inner", "other"],
    ),
    Row(
        "headers of the whole reach every task",
        lambda t: (t.known.map(["header"] * 2) | t.both.partial(x=0)).options(headers={"shop-a": 5}),
        [0, [5, 5]],
    ),
    Row(
        "headers are merged by their names",
        lambda t: group(
            t.known.options(headers={"shop-b": 1}).s("header"), t.known.options(headers={"shop-a": 2}).s("header")
        ).options(headers={"shop-a": 1}),
        [1, 2],
    ),
    Row("a delay in the middle", lambda t: t.add.s(1) | t.add.options(delay=0.1).partial() | t.add, 4),
    Row("a delay of the whole", lambda t: (t.add.s(1) | t.add).options(delay=0.1), 3),
    Row("a delay of a header", lambda t: chord(group(t.add.s(1), t.add.s(2)).options(delay=0.1), t.total), 5),
    Row("limits of the whole", lambda t: (t.add.s(1) | t.add).options(time_limit=20, expires=60, deadline=60), 3),
    Row(
        "a part with options that ends in a group, in the middle",
        lambda t: chain(t.add.s(1), chain(t.add, group(t.add, t.negative)).options(queue="other"), t.total),
        1,
    ),
    Row(
        "a part with options that is an empty group, in the middle",
        lambda t: chain(t.add.s(1), chain(t.add, group()).options(queue="other"), t.total, t.add),
        1,
    ),
    Row("no replies of the tasks in the middle", lambda t: t.add.options(reply=False).s(1) | t.add, 3),
    Row("an id of the whole", lambda t: chain(t.known.s("id")).options(task_id="given"), node_id("given", "0")),
]


@behaviour
async def test_options_of_tasks_of_parts_and_of_the_whole_do_what_their_table_says(bench: Bench) -> None:
    """A task's own come first."""
    assert await differing(bench, OPTIONS) == []


@behaviour
async def test_a_workflow_without_replies_runs_all_the_same(bench: Bench) -> None:
    """Nobody hears of it but its tasks."""
    app = bench.app()
    t = Tasks(app)
    async with bench.working(app, {QUEUE: 4}):
        await (chord([t.add.s(1), t.add.s(2)], t.total) | t.note).options(reply=False).send()
        await eventually(lambda: t.seen == [5])


@behaviour
async def test_a_delay_of_a_step_is_counted_from_the_end_of_the_one_before_it(bench: Bench) -> None:
    """It is never early."""
    app = bench.app()
    t = Tasks(app)
    ended: list[float] = []

    @app.task
    async def mark(before: Any = None) -> None:
        ended.append(time.monotonic())

    async with bench.working(app, {QUEUE: 4}):
        await (mark.s() | mark.options(delay=0.4).partial()).call()
    assert ended[1] - ended[0] >= 0.4
    assert t.seen == []


# --- chunks


@behaviour
async def test_a_chunk_knows_its_context_and_is_one_task_in_one_message(bench: Bench) -> None:
    """Its calls run one after the other, in order."""
    app = bench.app()
    seen: list[tuple[str, int]] = []

    @app.task(pass_context=True)
    async def visit(ctx: TaskContext, x: int) -> int:
        seen.append((ctx.task_id, x))
        return x * 10

    @app.task(pass_context=True)
    def visit_in_thread(ctx: TaskContext, x: int, y: int) -> int:
        return x + y

    async with bench.working(app, {QUEUE: 4}):
        handle = await visit.chunks([1, 2, 3], 2).send()
        assert await handle.result(WAIT_S) == [[10, 20], [30]]
        assert await visit_in_thread.chunks([(1, 2), (3, 4)], 2, star=True).call() == [[3, 7]]
    first, second = (node_id(handle.id, f"0.{member}.0") for member in (0, 1))
    assert sorted(seen, key=lambda item: item[1]) == [(first, 1), (first, 2), (second, 3)]


@behaviour
async def test_a_chunk_that_is_tried_again_makes_all_of_its_calls_again(bench: Bench) -> None:
    """It is one task: a call that has succeeded before is made a second time."""
    app = bench.app()
    seen: list[int] = []

    @app.task(retry=SOON)
    async def flaky(x: int) -> int:
        seen.append(x)
        if seen.count(x) < 2 and x == 2:
            raise ConnectionError("not yet")
        return x

    async with bench.working(app, {QUEUE: 2}):
        assert await flaky.chunks([1, 2, 3], 3).call() == [[1, 2, 3]]
    assert seen == [1, 2, 1, 2, 3]


@behaviour
async def test_a_chunk_runs_in_a_process_of_its_own_as_well(bench: Bench) -> None:
    """That process reads the calls itself."""
    app = bench.app()
    square = app.task(run_in="process")(process_tasks.square)
    async with bench.working(app, {QUEUE: 1}):
        assert await square.chunks([1, 2, 3], 2).call() == [[1, 4], [9]]


@behaviour
async def test_dependencies_of_a_chunk_are_made_once_for_all_of_its_calls(bench: Bench) -> None:
    """A chunk is one attempt."""
    app = bench.app()
    made: list[str] = []

    async def session() -> AsyncIterator[str]:
        made.append("opened")
        yield "session"
        made.append("closed")

    @app.task
    async def use(x: int, by: str = Depends(session)) -> str:
        made.append(str(x))
        return f"{by} {x}"

    async with bench.working(app, {QUEUE: 1}):
        assert await use.chunks([1, 2], 2).call() == [["session 1", "session 2"]]
        assert await (use.s(3) | use.si(4)).call() == "session 4"
    assert made[:4] == ["opened", "1", "2", "closed"]


@behaviour
async def test_a_chunk_of_a_foreign_client_is_read_with_distrust(bench: Bench) -> None:
    """What all calls share stands beside them; what is no list of objects, or does not fit, is a dead letter."""
    app = bench.app()
    seen: list[tuple[int, int]] = []

    @app.task
    async def note(x: int, y: int = 0) -> None:
        seen.append((x, y))

    async with bench.working(app, {QUEUE: 1}):
        await _put(app, b'{"y": 7, "$items": [{"x": 1}, {"x": 2, "y": 3}]}')
        await eventually(lambda: seen == [(1, 7), (2, 3)])
        await _put(app, b'{"y": 7, "$items": [{"x": 1}, 5]}')
        letter = await dead_letter(app.broker)
        assert letter.record is not None
        assert letter.record.reason == "malformed message"
    assert len(seen) == 2


async def _put(app: Any, body: bytes) -> None:
    message = Message(type="shop.note", body=body, task_id=new_id(), message_id=new_id())
    await app.broker.publish(message, Queue(QUEUE), timeout_s=WAIT_S)


@behaviour
async def test_a_call_that_fails_ends_its_chunk(bench: Bench) -> None:
    """Those after it are not made."""
    app = bench.app()
    seen: list[int] = []

    @app.task
    async def strict(x: int) -> int:
        seen.append(x)
        return 10 // x

    async with bench.working(app, {QUEUE: 1}):
        with pytest.raises(TaskFailed, match="ZeroDivisionError"):
            await strict.chunks([1, 0, 5], 3).call()
    assert seen == [1, 0]
