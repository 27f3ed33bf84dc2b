"""Make workflows: every part is checked against the one before it.

Invariant: what is returned fits together as far as it can be known here. Steps of one chain are one level deep, and a
group that is followed by something is the header of a chord; so equal workflows are equal values, however they were
written.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any, Literal, Protocol, TypeVar, get_args, overload, runtime_checkable

from asyncq.errors import InvalidWorkflow
from asyncq.failed_member import FailedMember
from asyncq.options import Sending
from asyncq.signature import Signature
from asyncq.workflow.connecting import check_connection
from asyncq.workflow.node import Node, Takes
from asyncq.workflow.partial import PartialSignature
from asyncq.workflow.values import Chain, Chord, Errors, Group
from asyncq.workflow.workflow import Workflow

__all__ = ["chain", "chord", "group", "joined"]

R = TypeVar("R")
T = TypeVar("T")

_NO_OPTIONS = Sending()


@runtime_checkable
class _Task(Protocol):
    """A task as it is written in a workflow."""

    def partial(self) -> PartialSignature[Any]: ...


def chain(*steps: Any) -> Chain[Any]:
    """Return the workflow in which the steps run one after the other; each takes the result of the one before it.

    It builds the same value as `a.s(1).then(b).then(c)`, which type checkers look into.

    Args:
        *steps: Tasks, signatures, partial signatures, chains, groups and chords; or one iterable of such.

    Raises:
        InvalidWorkflow: There is none, or two of them do not fit together.

    Example:
        >>> chain(add.s(1, 2), double)  # doctest: +SKIP
    """
    given = _listed(steps, "chain")
    if not given:
        raise InvalidWorkflow("A chain needs one step at least, such as chain(a.s(1), b).")
    return _chained([_part(step, f"step {number} of a chain") for number, step in enumerate(given, start=1)])


@overload
def group(members: Iterable[Node[R]], /) -> Group[list[R]]: ...
@overload
def group(*members: Node[R]) -> Group[list[R]]: ...
@overload
def group(*members: Any) -> Group[list[Any]]: ...
def group(*members: Any) -> Group[Any]:
    """Return the workflow in which the members run side by side. Its result is the list of theirs, in their order.

    Args:
        *members: Tasks, signatures, partial signatures, chains, groups and chords; or one iterable of such. Without
            any, the result is the empty list.

    Raises:
        InvalidWorkflow: One of them is none of these.
    """
    given = _listed(members, "group")
    return Group(tuple(_part(member, f"member {number} of a group") for number, member in enumerate(given)))


@overload
def chord(
    header: Group[list[T]] | Iterable[Node[T]], body: Takes[list[T], R], *, errors: Literal["stop"] = "stop"
) -> Chord[R]: ...
@overload
def chord(
    header: Group[list[T]] | Iterable[Node[T]], body: Takes[list[T | FailedMember], R], *, errors: Literal["collect"]
) -> Chord[R]: ...
@overload
def chord(header: Group[Any] | Iterable[Node[Any]], body: Node[R], *, errors: Errors = "stop") -> Chord[R]: ...
def chord(header: Any, body: Any, *, errors: Errors = "stop") -> Chord[Any]:
    """Return the workflow in which a body takes the list of a group's results, once all of its members have ended.

    Args:
        header: A group, or an iterable of its members.
        body: What takes the list as its first free argument.
        errors: What becomes of it where members have failed. "stop": the body does not run, and the chord fails with
            `ChordFailed`. "collect": the list has a `FailedMember` in the place of each that failed.

    Raises:
        InvalidWorkflow: The body does not take the list, or the header is no group.
    """
    if errors not in get_args(Errors):
        raise InvalidWorkflow(f"chord(errors=...) takes {' or '.join(map(repr, get_args(Errors)))}, not {errors!r}.")
    if isinstance(header, Node) and not isinstance(header, Group):
        raise InvalidWorkflow(f"chord(header, body) takes a group or a list of its members, not {_what(header)}.")
    members = _part(header, "the header of a chord") if isinstance(header, Group) else group(header)
    made = Chord(members, _part(body, "the body of a chord"), errors)
    check_connection(made.header, made.body, collect=errors == "collect")
    return made


def joined(first: Node[Any], following: Any) -> Workflow[Any]:
    """Return the workflow in which one part follows another: what `then` and `|` call.

    Raises:
        InvalidWorkflow: They do not fit together.
    """
    found = _chained([first, _part(following, f"what follows {_what(first)}")])
    only = found.steps[0]
    return only if len(found.steps) == 1 and isinstance(only, Workflow) else found


def _chained(nodes: list[Node[Any]]) -> Chain[Any]:
    """Put nodes one after the other: open plain chains, and make chords of groups that something follows."""
    first = _part(nodes[0], "the first step of a chain")
    steps = _steps_of(first)  # it fits together, as every node does
    for node in nodes[1:]:
        after = _steps_of(node)
        if isinstance(steps[-1], Group):
            steps[-1] = chord(steps[-1], after[0])
        else:
            check_connection(steps[-1], after[0])
            steps.append(after[0])
        steps += after[1:]
    return Chain(tuple(steps))


def _steps_of(node: Node[Any]) -> list[Node[Any]]:
    return list(node.steps) if isinstance(node, Chain) and node.sending == _NO_OPTIONS else [node]


def _listed(given: tuple[Any, ...], what: str) -> tuple[Any, ...]:
    """Take one iterable in place of several arguments."""
    if len(given) != 1 or isinstance(given[0], Node | _Task):
        return given
    if isinstance(given[0], str | bytes) or not isinstance(given[0], Iterable):
        raise InvalidWorkflow(f"{what}(...) takes tasks and signatures, or one list of them, not {given[0]!r}.")
    return tuple(given[0])


def _part(given: Any, place: str) -> Any:
    """Return a part of a workflow as a node.

    Raises:
        InvalidWorkflow: It is none, or it has an option that only a whole workflow can have.
    """
    if isinstance(given, _Task):
        given = given.partial()
    if not isinstance(given, Node):
        hint = ""
        if inspect.iscoroutine(given):
            given.close()
            hint = " It was called: write task.s(...) in place of task(...)."
        raise InvalidWorkflow(
            f"{place} is {_what(given)}: a task, a signature such as task.s(1), or a chain, group or chord is wanted."
            f"{hint}"
        )
    sending = given.sending if isinstance(given, Signature | PartialSignature | Workflow) else _NO_OPTIONS
    for option, value in {"task_id": sending.task_id, "timeout": sending.timeout_s}.items():
        if value is not None:
            raise InvalidWorkflow(
                f"{place}, {_what(given)}, has {option}=, which only a whole workflow can have: put .options(...) "
                "around all of it, at the end."
            )
    if isinstance(given, Workflow) and sending.says_on_failure:
        raise InvalidWorkflow(
            f"{place}, {_what(given)}, has on_failure=, which a task or a whole workflow can have: put "
            ".options(...) around all of it, at the end, or give it to the tasks."
        )
    return given


def _what(given: Any) -> str:
    if isinstance(given, Signature | PartialSignature):
        return given.name
    return f"a {given.kind}" if isinstance(given, Workflow) else repr(given)
