"""The table of workflows that fail: which error they end with, and what does not run any more."""

from __future__ import annotations

from typing import Any

from asyncq.errors import ChordFailed, InvalidResult, TaskCancelled, TaskExpired, TaskFailed, TaskRejected
from asyncq.message import derived_id
from asyncq.program import node_id
from asyncq.testing.conformance.bench import QUEUE, WAIT_S, Bench, behaviour, dead_letters, eventually
from asyncq.testing.conformance.workflow_rows import Fails, Row, Tasks, differing
from asyncq.workflow.building import chain, chord, group

_VALUE_ERROR = "builtins.ValueError"

FAILURES = [
    Row("the first step fails", lambda t: t.fail.s("first") | t.add, Fails(TaskFailed, "first")),
    Row("a step in the middle fails", lambda t: t.add.s(1) | t.fail | t.add, Fails(TaskFailed, "2")),
    Row("the last step fails", lambda t: t.add.s(1) | t.add | t.fail, Fails(TaskFailed, "3")),
    Row("a step rejects", lambda t: t.add.s(1) | t.reject | t.add, Fails(TaskRejected, "2")),
    Row("a step's result is not what it declares", lambda t: t.wrong.s() | t.add, Fails(TaskFailed, "does not fit")),
    Row("a result does not fit the next step after all", lambda t: t.echo.s("a") | t.add, Fails(TaskRejected, "x")),
    Row(
        "a task that no worker knows is for others to find",
        lambda t: t.add.s(1) | t.add.si(2) | t.fail,
        Fails(TaskFailed, "3"),
    ),
    Row("a member of a last group fails", lambda t: group(t.add.s(1), t.fail.s("one")), Fails(TaskFailed, "one")),
    Row(
        "a member of a group in a group fails",
        lambda t: group(group(t.fail.s("in")), t.add.s(1)),
        Fails(TaskFailed, "in"),
    ),
    Row("a chain in a group fails", lambda t: group(t.add.s(1), t.add.s(1) | t.fail | t.add), Fails(TaskFailed, "2")),
    Row("a call of a chunk fails", lambda t: t.fail.chunks(["a", "b"], 2), Fails(TaskFailed, "a")),
    Row(
        "a member of a header fails", lambda t: chord([t.add.s(1), t.fail.s("one")], t.echo), Fails(ChordFailed, "one")
    ),
    Row("all members fail", lambda t: chord([t.fail.s("one"), t.fail.s("two")], t.echo), Fails(ChordFailed, "two")),
    Row("a member rejects", lambda t: chord([t.add.s(1), t.reject.s("bad")], t.echo), Fails(ChordFailed, "bad")),
    Row("a chain in a header fails", lambda t: chord([t.add.s(1) | t.fail | t.add], t.echo), Fails(ChordFailed, "2")),
    Row("a chord in a header fails", lambda t: chord([chord([t.fail.s("in")], t.echo)], t.echo), Fails(ChordFailed)),
    Row("a body fails", lambda t: chord([t.add.s(1)], t.fail), Fails(TaskFailed, "[2]")),
    Row("what follows a body fails", lambda t: chord([t.add.s(1)], t.echo) | t.fail, Fails(TaskFailed, "[2]")),
    Row(
        "a chord in the middle fails",
        lambda t: t.add.s(1) | group(t.add, t.fail) | t.echo | t.echo,
        Fails(ChordFailed, "2"),
    ),
    Row(
        "a member was late",
        lambda t: chord([t.slow.options(expires=0.001, delay=0).s(0), t.slow.options(time_limit=0.1).s(30)], t.echo),
        Fails(ChordFailed),
    ),
    Row("a step takes too long", lambda t: t.slow.options(time_limit=0.1).s(30) | t.add, Fails(TaskFailed, "0.1")),
]

COLLECTED = [
    Row(
        "the errors are in the list",
        lambda t: chord([t.add.s(1), t.fail.s(), t.reject.s()], t.in_words, errors="collect"),
        [2, f"1 failed {_VALUE_ERROR}", "2 rejected asyncq.signals.Reject"],
    ),
    Row(
        "all have failed",
        lambda t: chord([t.fail.s(), t.fail.s()], t.in_words, errors="collect"),
        [f"0 failed {_VALUE_ERROR}", f"1 failed {_VALUE_ERROR}"],
    ),
    Row(
        "a chain in the header has failed",
        lambda t: chord([t.fail.s() | t.add | t.add, t.add.s(1)], t.in_words, errors="collect"),
        [f"0 failed {_VALUE_ERROR}", 2],
    ),
    Row(
        "a chord in the header has failed",
        lambda t: chord([chord([t.fail.s()], t.echo), t.add.s(1)], t.in_words, errors="collect"),
        ["0 failed asyncq.errors.ChordFailed", 2],
    ),
    Row(
        "what follows goes on",
        lambda t: t.add.s(1) | chord([t.fail, t.add], t.in_words, errors="collect") | t.echo,
        [f"0 failed {_VALUE_ERROR}", 3],
    ),
    Row(
        "a body that is a group gets them as well",
        lambda t: chord([t.fail.s()], group(t.in_words, t.in_words), errors="collect"),
        [[f"0 failed {_VALUE_ERROR}"]] * 2,
    ),
]


@behaviour
async def test_workflows_that_fail_end_with_the_errors_that_their_table_says(bench: Bench) -> None:
    """The error of the task that failed; of a chord all that failed."""
    assert await differing(bench, FAILURES) == []


@behaviour
async def test_a_chord_that_collects_has_the_errors_in_its_list(bench: Bench) -> None:
    """In the place of each member that has brought no value."""
    assert await differing(bench, COLLECTED) == []


@behaviour
async def test_nothing_runs_after_a_step_that_has_failed(bench: Bench) -> None:
    """Not the rest of its chain, and not the body of its chord; the failed task is a dead letter, once."""
    app = bench.app()
    t = Tasks(app)
    workflow = chord([t.note.s("member"), t.fail.s() | t.note.si("never")], t.note) | t.note.si("never either")
    async with bench.working(app, {QUEUE: 4}):
        handle = await workflow.send()
        error = await _error_of(handle)
        await t.note.call("last")
        assert sorted(t.seen) == ["last", "member"]
        letters = await dead_letters(app.broker)
    assert isinstance(error, ChordFailed)
    assert [(item.index, item.task, item.error_message) for item in error.members] == [(1, "shop.fail", "no")]
    assert error.members[0].task_id == node_id(handle.id, "0.1.0") == letters[0].message.task_id
    assert len(letters) == 1


@behaviour
async def test_the_callback_of_a_workflow_is_sent_with_one_id_however_often_it_is_sent(bench: Bench) -> None:
    """Its id follows from the workflow's. That of a step is sent besides, with an id of its own."""
    app = bench.app()
    t = Tasks(app)
    step = t.fail.options(on_failure=t.tell)
    workflow = chain(t.add.s(1), step, t.add).options(on_failure=t.tell, task_id="whole")
    many = chord([t.fail.s("a"), t.fail.s("b")], t.echo).options(on_failure=t.tell, task_id="many")
    async with bench.working(app, {QUEUE: 4}):
        for each in (workflow, many):
            await _error_of(await each.send())
        wanted = {derived_id(id_, "$on_failure") for id_ in ("whole", "many", node_id("whole", "1"))}
        await eventually(lambda: {task_id for task_id, _ in t.seen} >= wanted)
    assert {task_id for task_id, _ in t.seen} == wanted


@behaviour
async def test_a_chord_that_is_sent_twice_under_one_id_does_not_fail(bench: Bench) -> None:
    """The members of the second time find it done, or do it once more: that is no failure."""
    sender, app = bench.app(), bench.app()
    here, there = Tasks(sender), Tasks(app)
    twice = chord([here.add.s(1), here.add.s(2)], here.total).options(on_failure=here.tell, task_id="twice")
    async with sender:
        handles = [await twice.send(), await twice.send()]
        async with bench.working(app, {QUEUE: 1}):  # one after the other: all members, then what follows
            assert [await handle.result(WAIT_S) for handle in handles] == [5, 5]
    assert await bench.count(QUEUE) == 0
    assert there.seen == []


@behaviour
async def test_a_workflow_that_is_cancelled_stops_where_it_is(bench: Bench) -> None:
    """The running step is interrupted, and those that were to follow do not run."""
    app = bench.app()
    t = Tasks(app)
    workflow = t.note.s("begun") | t.slow.si(60) | t.note.si("never")
    async with bench.working(app, {QUEUE: 4}):
        handle = await workflow.send()
        await eventually(lambda: t.seen)
        await handle.cancel()
        assert isinstance(await _error_of(handle), TaskCancelled)
        await t.note.call("last")
    assert t.seen == ["begun", "last"]


@behaviour
async def test_a_step_that_has_expired_ends_its_workflow(bench: Bench) -> None:
    """An expiry of the whole is a moment: whatever is late by then does not begin."""
    app = bench.app()
    t = Tasks(app)
    workflow = (t.slow.s(1.2) | t.note.si("never")).options(expires=1)
    async with bench.working(app, {QUEUE: 4}):
        error = await _error_of(await workflow.send())
        await t.note.call("last")
    assert isinstance(error, TaskExpired)
    assert t.seen == ["last"]


@behaviour
async def test_a_result_that_does_not_fit_what_its_reader_declares_is_told(bench: Bench) -> None:
    """Another version of the task may have written it."""
    app, writer = bench.app(), bench.app()
    t = Tasks(writer)

    @app.task(name="shop.echo")
    async def echo(value: Any) -> int:
        return int(value)

    async with app, bench.working(writer, {QUEUE: 2}):
        handle = await chain(echo.s("a"), echo).send()
        assert isinstance(await _error_of(handle), InvalidResult)
    assert t.seen == []


async def _error_of(handle: Any) -> Exception | None:
    try:
        await handle.result(WAIT_S)
    except Exception as error:  # noqa: BLE001 - it is looked at by whoever asks
        return error
    return None
