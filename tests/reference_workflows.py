"""Random workflows, and what their results must be: a few lines of plain Python, without a broker, worker or message.

A workflow is described by tuples. `built` makes the value that is sent, `evaluated` runs the same functions here:

    ("call", "add", {"x": 1})     a task with all of its arguments, which takes nothing of what came before
    ("take", "add", {"y": 1})     a task that takes what came before as its first free argument
    ("chain", (...))   ("group", (...))   ("chord", (...), body, errors)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hypothesis import strategies as st

from asyncq import AsyncQ, ResultError, Workflow, chain, chord, group

__all__ = ["Description", "Failed", "declare", "descriptions", "evaluated", "expected", "outcome", "whole", "worker"]

WAIT_S = 60.0

Description = tuple[Any, ...]


class Failed(Exception):
    """A task has failed, and nobody collects the errors."""


# --- the functions


def add(x: int, y: int = 1) -> int:
    return x + y


def multiply(x: int, y: int) -> int:
    return x * y


def negative(x: int, *, times: int = 1) -> int:
    return -x * times


def flat(values: Any) -> int:
    """Add all numbers that there are; each failure counts as 1000."""
    if isinstance(values, list):
        return sum(map(flat, values))
    return 1000 if isinstance(values, dict) else values


def wrap(value: Any, times: int = 1) -> list[Any]:
    return [value] * times


def same(value: Any) -> Any:
    return value


def fail(value: Any = None) -> int:
    raise Failed


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    function.__name__: function for function in (add, multiply, negative, flat, wrap, same, fail)
}
_FIRST = {
    "add": "x",
    "multiply": "x",
    "negative": "x",
    "flat": "values",
    "wrap": "value",
    "same": "value",
    "fail": "value",
}


def declare(app: AsyncQ) -> None:
    """Declare the functions as tasks."""
    for function in FUNCTIONS.values():
        app.task(function)


# --- building and evaluating


def built(description: Description, app: AsyncQ) -> Any:
    """Return the workflow."""
    match description:
        case ("call", name, arguments):
            return app.get(f"{app.name}.{name}").si(**arguments)
        case ("take", name, arguments):
            return app.get(f"{app.name}.{name}").partial(**arguments)
        case ("chain", steps):
            return chain(built(step, app) for step in steps)
        case ("group", members):
            return group(built(member, app) for member in members)
        case ("chord", members, body, errors):
            return chord([built(member, app) for member in members], built(body, app), errors=errors)
    raise AssertionError(description)


def evaluated(description: Description, value: Any = None) -> Any:
    """Return the result, after `value` came before.

    Raises:
        Failed: A task fails, and with it the whole.
    """
    match description:
        case ("call", name, arguments):
            return FUNCTIONS[name](**arguments)
        case ("take", name, arguments):
            return FUNCTIONS[name](**arguments, **{_FIRST.get(name, "value"): value})
        case ("chain", steps):
            for step in steps:
                value = evaluated(step, value)
            return value
        case ("group", members):
            return [evaluated(member, value) for member in members]
        case ("chord", members, body, "stop"):
            return evaluated(body, [evaluated(member, value) for member in members])
        case ("chord", members, body, "collect"):
            return evaluated(body, [_collected(member, value) for member in members])
    raise AssertionError(description)


def _collected(member: Description, value: Any) -> Any:
    try:
        return evaluated(member, value)
    except Failed:
        return {"failed": "failed"}


def expected(description: Description) -> Any:
    """Return the result; `Failed` itself where the whole fails."""
    try:
        return evaluated(description)
    except Failed:
        return Failed


# --- running


@contextmanager
def worker(app: AsyncQ) -> Iterator[asyncio.Runner]:
    """Open the app, with a worker; both go on whenever the runner runs something."""
    with asyncio.Runner() as runner:
        stop, ended = runner.run(_started(app))
        try:
            yield runner
        finally:
            stop()
            runner.run(asyncio.wait_for(ended, WAIT_S))
            runner.run(app.__aexit__(None, None, None))


async def _started(app: AsyncQ) -> tuple[Callable[[], object], asyncio.Task[Any]]:
    await app.__aenter__()
    work = app.worker()
    return work.stop, asyncio.create_task(work.run())


async def outcome(app: AsyncQ, description: Description) -> Any:
    """Return the result of real workers; `Failed` itself where a task has failed."""
    try:
        return _plain(await (await app.send(whole(description, app))).result(WAIT_S))
    except ResultError as error:
        return Failed if "Failed" in str(error) else error


def _plain(value: Any) -> Any:
    """Return a result with nothing but the kind of end of each failed member: the rest differs each time."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return {"failed": value["failed"]} if isinstance(value, dict) else value


def whole(description: Description, app: AsyncQ) -> Workflow[Any]:
    """Return what can be sent."""
    made = built(description, app)
    return made if isinstance(made, Workflow) else chain(made)


# --- random descriptions


_SMALL = st.integers(-9, 9)
_BEGINNINGS = st.one_of(
    st.builds(lambda x, y: ("call", "add", {"x": x, "y": y}), _SMALL, _SMALL),
    st.builds(lambda x, y: ("call", "multiply", {"x": x, "y": y}), _SMALL, _SMALL),
    st.builds(lambda x: ("call", "negative", {"x": x}), _SMALL),
    st.builds(lambda x: ("call", "flat", {"values": x}), st.lists(st.lists(_SMALL, max_size=2), max_size=2)),
)
_AFTER_A_NUMBER = st.one_of(
    st.just(("take", "add", {})),
    st.builds(lambda y: ("take", "add", {"y": y}), _SMALL),
    st.builds(lambda y: ("take", "multiply", {"y": y}), _SMALL),
    st.builds(lambda times: ("take", "negative", {"times": times}), _SMALL),
)
_AFTER_ANYTHING = st.one_of(
    st.just(("take", "flat", {})),
    st.just(("take", "same", {})),
    st.builds(lambda times: ("take", "wrap", {"times": times}), st.integers(0, 2)),
    _BEGINNINGS,
)
_FAILING = {"call": ("call", "fail", {}), "take": ("take", "fail", {})}


@st.composite
def descriptions(draw: st.DrawFn, *, depth: int = 3, after: str = "nothing") -> Description:
    """Draw a workflow.

    Args:
        draw: Of Hypothesis.
        depth: How deep parts may be nested in each other.
        after: What comes before it: "nothing", a "number" or "anything".
    """
    kind = draw(st.sampled_from(("task", "chain", "group", "chord") if depth else ("task",)))
    if kind == "task":
        return draw(_task(after))
    if kind == "chain":
        steps = [draw(descriptions(depth=depth - 1, after=after))]
        for _ in range(draw(st.integers(0, 2))):
            steps.append(draw(descriptions(depth=depth - 1, after=_gives(steps[-1]))))
        return ("chain", tuple(steps))
    members = tuple(
        draw(descriptions(depth=depth - 1, after=after)) for _ in range(draw(st.sampled_from((0, 1, 1, 2, 2, 3))))
    )
    if kind == "group":
        return ("group", members)
    errors = draw(st.sampled_from(("stop", "collect")))
    return ("chord", members, draw(descriptions(depth=depth - 1, after="anything")), errors)


def _task(after: str) -> st.SearchStrategy[Description]:
    works = {"nothing": _BEGINNINGS, "number": st.one_of(_AFTER_A_NUMBER, _AFTER_ANYTHING), "anything": _AFTER_ANYTHING}
    failing = _FAILING["call" if after == "nothing" else "take"]
    return st.one_of(*[works[after]] * 12, st.just(failing))


def _gives(description: Description) -> str:
    """Return what comes out: a "number", or "anything"."""
    match description:
        case ("chain", steps):
            return _gives(steps[-1])
        case ("group", _):
            return "anything"
        case ("chord", _, body, _):
            return _gives(body)
        case (_, "wrap" | "same" | "fail", _):
            return "anything"
    return "number"
