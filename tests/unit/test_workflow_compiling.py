"""From a workflow to its program: places, ids, and whose options win."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel

from asyncq import AsyncQ, InvalidWorkflow, Workflow, chain, chord, group
from asyncq.errors import InvalidOption, InvalidQueueName
from asyncq.program import WHOLE, Fork, Program, Step, node_id
from asyncq.program_json import program_from_json, program_json
from asyncq.workflow.compiling import compiled

NOW_MS = 1_800_000_000_000

app = AsyncQ("shop", retry=None)


class Order(BaseModel):
    """What a customer wants."""

    number: int


@app.task
async def add(x: int, y: int = 1) -> int:
    return x + y


@app.task(keep="errors", reply=False)
async def quiet(x: int) -> int:
    return x


@app.task
async def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task(queue="mail")
async def order(order: Order) -> int:
    return order.number


@app.task
async def as_order(number: int) -> Order:
    return Order(number=number)


@app.task
async def count(values: list[Any]) -> int:
    return len(values)


@app.task
async def tell() -> None: ...


def program(workflow: Workflow[Any]) -> Program:
    return compiled(workflow, "w", NOW_MS)


def steps(program: Program) -> list[Step]:
    """Return all steps, depth first."""
    found: list[Step] = []
    for element in program:
        if isinstance(element, Step):
            found.append(element)
        else:
            for member in element.members:
                found += steps(member)
    return found


def test_a_chain_is_a_line_of_steps_that_say_what_they_take():
    first, second, third = program(add.s(1) | add.partial(y=5) | add.si(3))
    assert first == Step(node_id("w", "0"), "shop.add", "shop", b'{"x":1}')
    assert second == Step(node_id("w", "1"), "shop.add", "shop", b'{"y":5}', "x")
    assert third == Step(node_id("w", "2"), "shop.add", "shop", b'{"x":3}')


def test_a_task_that_takes_one_model_gets_it_as_its_message():
    _, taking = program(as_order.s(1) | order)
    assert isinstance(taking, Step)
    assert (taking.into, taking.queue) == (WHOLE, "mail")


def test_the_ids_follow_from_the_places_in_the_tree():
    """The element, the member, its element; a chain in a chain has no level of its own."""
    workflow = add.s(1) | group(add, chain(add, add).options(queue="q"), group(add)) | count
    _, fork, last = program(workflow)
    assert isinstance(fork, Fork)
    assert isinstance(last, Step)
    assert (fork.id, last.id) == (node_id("w", "1"), node_id("w", "2"))
    assert [step.id for step in steps((fork,))] == [
        node_id("w", path) for path in ("1.0.0", "1.1.0", "1.1.1", "1.2.0.0.0")
    ]
    assert fork.members[2][0].id == node_id("w", "1.2.0")
    ids = [step.id for step in steps(program(workflow))]
    assert len(set(ids)) == len(ids)


def test_a_chord_is_a_fork_that_something_follows():
    fork, body = program(chord([add.s(1), add.s(2)], add.si(3), errors="collect"))
    assert isinstance(fork, Fork)
    assert (fork.errors, len(fork.members), body.id) == ("collect", 2, node_id("w", "1"))
    assert program(group()) == (Fork(node_id("w", "0"), ()),)


def test_a_chunk_has_its_calls_as_items():
    (fork,) = program(add.chunks([1, 2, 3], 2))
    assert isinstance(fork, Fork)
    step = fork.members[0][0]
    assert isinstance(step, Step)
    assert (step.arguments, step.items) == (b"{}", b'[{"x":1},{"x":2}]')


def test_a_workflow_that_begins_with_what_takes_something_cannot_be_sent():
    """It can be a part of another one."""
    begins = chain(add, add)
    with pytest.raises(InvalidWorkflow, match=r"begins with shop.add, which takes its argument 'x' .*: add.s\(...\)"):
        program(begins)
    with pytest.raises(InvalidWorkflow, match="begins with"):
        program(group(add.s(1), add))
    assert len(program(add.s(1) | begins)) == 3


def test_what_is_nested_deeper_than_a_worker_reads_cannot_be_sent():
    """It is an error here, and no dead letter there."""
    workflow = group(add.si(1))
    for _ in range(39):
        workflow = group(chain(add.si(1), workflow))
    assert program_from_json(program_json(program(workflow))) == program(workflow)
    assert app.workflow_from_json(workflow.to_json()) == workflow
    with pytest.raises(InvalidWorkflow, match="40 deep"):
        program(group(workflow))


def test_a_task_s_own_option_wins_then_that_of_the_part_around_it_then_of_the_whole():
    """And last what the task's declaration says. Headers are merged by their names."""
    inner = chain(add, add.options(queue="own", headers={"shop-b": 3}).partial(y=2)).options(
        queue="inner", headers={"shop-a": 2, "shop-b": 2}, keep="nothing"
    )
    whole = chain(add.s(1), inner, order.si(Order(number=1))).options(
        queue="whole", headers={"shop-a": 1, "shop-c": 1}, time_limit=9, reply=False, result_ttl=60
    )
    found = steps(program(whole))
    assert [step.queue for step in found] == ["whole", "inner", "own", "whole"]
    assert [dict(step.sending.headers) for step in found] == [
        {"shop-a": 1, "shop-c": 1},
        {"shop-a": 2, "shop-b": 2, "shop-c": 1},
        {"shop-a": 2, "shop-b": 3, "shop-c": 1},
        {"shop-a": 1, "shop-c": 1},
    ]
    assert [step.keeping.keep for step in found] == [None, "nothing", "nothing", None]
    assert {(step.sending.time_limit_s, step.reply, step.keeping.ttl_s) for step in found} == {(9.0, False, 60.0)}


def test_what_a_task_declares_holds_where_nobody_says_otherwise():
    first, second = program(quiet.s(1) | quiet.options(reply=True, keep="result").partial())
    assert isinstance(first, Step)
    assert isinstance(second, Step)
    assert (first.reply, first.keeping.keep) == (False, "errors")
    assert (second.reply, second.keeping.keep) == (True, "result")


def test_a_delay_of_a_whole_holds_back_its_beginning_alone():
    """Of a part, that part's beginning; of a group, all its members; a task's own delay wins."""
    workflow = chain(group(add.s(1), add.options(delay=1).s(2)), total, chain(add, add).options(delay=7))
    assert [step.sending.delay_s for step in steps(program(workflow.options(delay=5)))] == [5, 1, None, 7, None]
    at = datetime.fromtimestamp(NOW_MS / 1000 + 60, UTC)
    assert [step.sending.eta_ms for step in steps(program((add.s(1) | add).options(eta=at)))] == [NOW_MS + 60_000, None]
    empty = chord([], add.si(1)).options(delay=5)
    assert [step.sending.delay_s for step in steps(program(empty))] == [5]


def test_an_expiry_or_a_deadline_of_the_whole_is_a_moment():
    """It counts from the send of the workflow; one of a task from when that task is sent."""
    workflow = add.s(1) | add.options(expires=3, deadline=4).partial() | add
    found = steps(program(workflow.options(expires=60, deadline=90)))
    assert [(step.sending.expires_ms, step.sending.expires_s) for step in found] == [
        (NOW_MS + 60_000, None),
        (None, 3.0),
        (NOW_MS + 60_000, None),
    ]
    assert [(step.sending.deadline_ms, step.sending.deadline_s) for step in found] == [
        (NOW_MS + 90_000, None),
        (None, 4.0),
        (NOW_MS + 90_000, None),
    ]


def test_a_task_that_would_expire_before_it_is_due_is_refused_when_the_workflow_is_sent():
    with pytest.raises(InvalidOption, match="never run"):
        program((add.s(1) | add.options(delay=90).partial()).options(expires=60))
    with pytest.raises(InvalidOption, match="never run"):
        program(chain(add.s(1)).options(expires=60, eta=datetime(2126, 1, 1, tzinfo=UTC)))


def test_a_queue_s_name_is_checked_before_anything_is_sent():
    with pytest.raises(InvalidQueueName, match="a b"):
        program(add.s(1) | add.options(queue="a b").partial())


def test_a_callback_of_a_task_travels_with_it_and_that_of_the_whole_does_not():
    """The whole calls back once; see `Workflow.options`."""
    found = steps(program((add.s(1) | add.options(on_failure=tell.s()).partial()).options(on_failure=tell.s())))
    assert [step.sending.says_on_failure for step in found] == [False, True]


SAMPLES = [
    add.s(1) | add.options(delay=2, headers={"a": 1.5}).partial() | total.si([1]),
    group(add.s(1), chain(add.s(2), group(add, add))).options(time_limit=3, queue="q"),
    chord(add.map([1, 2]), group(add.si(1), count), errors="collect").options(expires=60),
    add.chunks(range(5), 2) | add.si(1),
    chord([], add.options(on_failure=tell.options(delay=3).s()).si(1)),
]


@pytest.mark.parametrize("workflow", SAMPLES, ids=str)
def test_programs_travel_as_json_and_are_the_same_afterwards(workflow):
    found = program(workflow)
    assert program_from_json(program_json(found)) == found
