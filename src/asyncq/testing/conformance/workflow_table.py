"""The table of workflows: what comes out of chains, groups and chords, however they are put into each other."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from asyncq.app import AsyncQ
from asyncq.signature import Signature
from asyncq.testing.conformance.bench import Bench, behaviour
from asyncq.testing.conformance.workflow_rows import Order, Row, differing
from asyncq.workflow.building import chain, chord, group


def _by_name(name: str, **arguments: int) -> Signature[Any]:
    """Return a task of which this process does not have the code."""
    return AsyncQ("elsewhere").signature(name, arguments)


CHAINS = [
    Row("a chain of one task", lambda t: chain(t.add.s(1, 2)), 3),
    Row("a chain of two", lambda t: t.add.s(1) | t.add, 3),
    Row("a chain of four, by then", lambda t: t.add.s(1).then(t.add).then(t.negative).then(t.add), -2),
    Row("a chain of an iterable", lambda t: chain([t.add.s(1, 1), t.add, t.add]), 4),
    Row("a chain of thirty", lambda t: chain(t.add.s(0), *[t.add] * 29), 30),
    Row("a default is left to the function", lambda t: t.add.s(5) | t.negative, -6),
    Row("an argument bound by its name", lambda t: t.add.s(1) | t.multiply.partial(y=10), 20),
    Row("an argument bound by position", lambda t: t.add.s(1) | t.both.partial("first"), ["first", 2]),
    Row("the first argument bound by its name", lambda t: t.add.s(1) | t.both.partial(x="first"), ["first", 2]),
    Row("a keyword-only argument bound", lambda t: t.add.s(1) | t.negative.partial(times=3), -6),
    Row("a step that ignores what came before", lambda t: t.add.s(1) | t.add.si(10, 10) | t.add, 21),
    Row("a task without arguments in the middle", lambda t: t.add.s(1) | t.nothing.si() | t.add.si(3), 4),
    Row("None is handed on", lambda t: t.nothing.s() | t.echo, None),
    Row("tasks in threads and on the loop", lambda t: t.multiply.s(2, 3) | t.add | t.multiply.partial(y=2), 14),
    Row("a model as the whole message", lambda t: t.make_order.s(7) | t.dearer, Order(number=7, price=Decimal("3.00"))),
    Row("a model as an argument", lambda t: t.make_order.s(7) | t.price_of.partial(factor=3), Decimal("4.50")),
    Row("a list as an argument", lambda t: t.spread.s(5) | t.total, 10),
    Row("a list of two as a tuple", lambda t: t.spread.s(2) | t.difference, -1),
    Row("text of any kind", lambda t: t.echo.s('ä"\\\n\u2028$items') | t.echo, 'ä"\\\n\u2028$items'),
    Row("a large value", lambda t: t.echo.s("x" * 300_000) | t.echo, "x" * 300_000),
    Row(
        "an object with our own key inside", lambda t: t.echo.s({"a": {"$items": [1]}}) | t.echo, {"a": {"$items": [1]}}
    ),
    Row("a chain in a chain", lambda t: chain(t.add.s(1), chain(t.add, t.add), t.add), 5),
    Row("a part that was made before", lambda t: (t.add.s(1) | t.add) | (chain(t.add) | t.add), 5),
    Row("a step that is tried three times", lambda t: t.add.s(1) | t.flaky | t.add, 3),
    Row("tasks by their names", lambda t: t.add.s(1) | _by_name("shop.add", y=5).taking("x") | t.add, 8),
    Row("a task by its name that takes nothing", lambda t: t.add.s(1) | _by_name("shop.add", x=5).taking(None), 6),
    Row("a workflow that was written as JSON", lambda t: t.app.workflow_from_json((t.add.s(1) | t.add).to_json()), 3),
]

GROUPS = [
    Row("a group of two", lambda t: group(t.add.s(1), t.add.s(2)), [2, 3]),
    Row("an empty group", lambda _: group(), []),
    Row("a group of one", lambda t: group(t.add.s(1)), [2]),
    Row("a group of forty", lambda t: t.add.map(range(40)), list(range(1, 41))),
    Row("the order is that of the members", lambda t: group(t.slow.s(0.2, 1), t.slow.s(0, 2)), [1, 2]),
    Row(
        "members of several types",
        lambda t: group(t.add.s(1), t.make_order.s(2), t.nothing.s()),
        [2, Order(number=2), None],
    ),
    Row("a group of chains", lambda t: group(t.add.s(1) | t.add, chain(t.add.s(2), t.negative)), [3, -3]),
    Row("a group of groups", lambda t: group(group(t.add.s(1), t.add.s(2)), t.add.s(3), group()), [[2, 3], 4, []]),
    Row("a group of chords", lambda t: group(t.add.map([1, 2]) | t.total, t.add.s(1)), [5, 2]),
    Row("a group after a step", lambda t: t.add.s(1) | group(t.add, t.negative, t.multiply.partial(y=5)), [3, -2, 10]),
    Row("an empty group after a step", lambda t: t.add.s(1) | group(), []),
    Row("a group that ignores what came before", lambda t: t.add.s(1) | group(t.add.si(5), t.add), [6, 3]),
    Row("a group of chains after a step", lambda t: t.add.s(1) | group(chain(t.add, t.add), t.add), [4, 3]),
    Row("groups three deep", lambda t: group(group(group(t.add.s(1)), t.add.s(2))), [[[2], 3]]),
    Row(
        "a chain that ends in a group in a group",
        lambda t: group(t.add.s(1) | group(t.add, t.add), t.add.s(0)),
        [[3, 3], 1],
    ),
    Row("map", lambda t: t.negative.map([1, 2, 3]), [-1, -2, -3]),
    Row("starmap", lambda t: t.add.starmap([(1, 2), (3,)]), [3, 4]),
    Row("chunks", lambda t: t.add.chunks(range(5), 2), [[1, 2], [3, 4], [5]]),
    Row("chunks of tuples in threads", lambda t: t.multiply.chunks([(1, 2), (3, 4)], 10, star=True), [[2, 12]]),
    Row("chunks of nothing", lambda t: t.add.chunks([], 2), []),
    Row(
        "chunks of models", lambda t: t.dearer.chunks([Order(number=1)], 3), [[Order(number=1, price=Decimal("3.00"))]]
    ),
]

CHORDS = [
    Row("a chord of two", lambda t: chord([t.add.s(1), t.add.s(2)], t.total), 5),
    Row("a group that a task follows", lambda t: group(t.add.s(1), t.add.s(2)) | t.total, 5),
    Row("a chord of one", lambda t: chord([t.add.s(1)], t.total), 2),
    Row("an empty header", lambda t: chord([], t.total), 0),
    Row("an empty header after a step", lambda t: t.add.s(1) | chord([], t.total) | t.add, 1),
    Row("a chord of a hundred", lambda t: t.add.map(range(100)) | t.total, 5050),
    Row("a body that ignores the list", lambda t: chord([t.add.s(1)], t.add.si(7)), 8),
    Row("a body with a bound argument", lambda t: chord([t.add.s(1)], t.both.partial("x")), ["x", [2]]),
    Row("a body that takes a pair", lambda t: chord([t.add.s(1), t.add.s(5)], t.difference), -4),
    Row("a body that is a chain", lambda t: chord(t.add.map([1, 2]), chain(t.total, t.add, t.negative)), -6),
    Row(
        "a body that is a group",
        lambda t: chord(t.add.map([1, 2]), group(t.total, t.deep_total, t.echo)),
        [5, 5, [2, 3]],
    ),
    Row("a body that is an empty group", lambda t: chord(t.add.map([1, 2]), group()), []),
    Row("a body that is a chord", lambda t: chord(t.add.map([1, 2]), chord([t.total, t.deep_total], t.total)), 10),
    Row("a header of chains", lambda t: chord([t.add.s(1) | t.add, t.add.s(2) | t.negative], t.total), 0),
    Row("a header of groups", lambda t: chord([group(t.add.s(1), t.add.s(2)), group(t.add.s(3))], t.deep_total), 9),
    Row("a header of an empty group", lambda t: chord([group(), t.add.s(1)], t.echo), [[], 2]),
    Row("a header of chords", lambda t: chord([t.add.map([1, 2]) | t.total, t.add.s(1)], t.total), 7),
    Row("chords three deep", lambda t: chord([chord([chord([t.add.s(1)], t.total)], t.total)], t.total), 2),
    Row(
        "a chain that ends in a group as a member",
        lambda t: chord([t.add.s(1) | group(t.add, t.negative), t.add.s(1)], t.echo),
        [[3, -2], 2],
    ),
    Row("a chord in the middle", lambda t: t.add.s(1) | chord([t.add, t.negative], t.total) | t.add, 2),
    Row("a group in the middle", lambda t: chain(t.add.s(1), group(t.add, t.add), t.total, t.negative), -6),
    Row("a group after a group", lambda t: group(t.add.s(1), t.add.s(2)) | group(t.total, t.total) | t.total, 10),
    Row("two chords, one after the other", lambda t: t.add.map([1]) | t.total | group(t.add, t.add) | t.total, 6),
    Row("a header that takes what came before", lambda t: t.spread.s(3) | group(t.total, t.deep_total) | t.total, 6),
    Row("a header that ignores what came before", lambda t: t.add.s(1) | group(t.add.si(1), t.add.si(2)) | t.total, 5),
    Row("chunks and what brings them together", lambda t: t.add.chunks(range(5), 2) | t.deep_total, 15),
    Row("a member that is tried three times", lambda t: chord([t.flaky.s(1), t.add.s(1)], t.total), 3),
    Row("members that are the same", lambda t: chord([t.add.s(1)] * 5, t.echo), [2] * 5),
    Row("errors that never come", lambda t: chord([t.add.s(1)], t.echo, errors="collect"), [2]),
    Row("large values", lambda t: chord([t.echo.s("x" * 100_000)] * 3, t.echo) | t.deep_total.si([1]), 1),
]


@behaviour
async def test_chains_have_the_results_that_their_table_says(bench: Bench) -> None:
    """Each step takes what the one before it has returned."""
    assert await differing(bench, CHAINS) == []


@behaviour
async def test_groups_have_the_results_that_their_table_says(bench: Bench) -> None:
    """Lists in the order of the members, as deep as the groups are."""
    assert await differing(bench, GROUPS) == []


@behaviour
async def test_chords_have_the_results_that_their_table_says(bench: Bench) -> None:
    """With headers, bodies and chords in each other."""
    assert await differing(bench, CHORDS) == []
