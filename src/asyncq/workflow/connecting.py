"""Whether one part of a workflow can follow another, and whether a workflow can begin as it is.

What a part takes is what its first tasks take; what it gives is what its last task returns, or the list of what the
members of a group give.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from asyncq.errors import InvalidWorkflow, TaskDefinitionError
from asyncq.failed_member import FailedMember
from asyncq.program import WHOLE
from asyncq.signature import Declared, Signature
from asyncq.workflow.fitting import ANYTHING, Shape, list_of, misfit, reads, writes
from asyncq.workflow.node import Node
from asyncq.workflow.partial import PartialSignature
from asyncq.workflow.values import Chain, Chord, Group
from asyncq.workflow.workflow import Leaf

__all__ = ["check_beginning", "check_connection"]


def check_connection(before: Node[Any], after: Node[Any], *, collect: bool = False) -> None:
    """Check that a part takes the result of the one before it.

    Args:
        before: The part that gives.
        after: The part that takes.
        collect: The list may have a `FailedMember` in any place.

    Raises:
        InvalidWorkflow: It does not, and it does not say that it ignores it either.
    """
    given: Shape | None = None
    seen: list[tuple[Declared, str]] = []
    for leaf in _firsts(after):
        if isinstance(leaf, Signature):
            if not leaf.immutable:
                raise InvalidWorkflow(_has_everything(leaf, before))
            continue
        if leaf.task is None or any(leaf.task is task and leaf.into == into for task, into in seen[-20:]):
            continue
        seen.append((leaf.task, leaf.into))
        given = given or _gives(before)
        _check_fit(given, leaf, before)
        if collect:
            _check_failures(given, leaf)


def check_beginning(node: Node[Any]) -> None:
    """Check that a workflow begins with tasks that need nothing from before.

    Raises:
        InvalidWorkflow: One of them takes what came before it.
    """
    for leaf in _firsts(node):
        if isinstance(leaf, PartialSignature):
            name = _short(leaf)
            raise InvalidWorkflow(
                f"The workflow begins with {leaf.name}, which takes {_argument(leaf)} from what came before, and "
                f"nothing comes before it. Give it all of its arguments: {name}.s(...)."
            )


def _firsts(node: Node[Any]) -> Iterator[Leaf]:
    """Yield the tasks that take what came before a part."""
    if isinstance(node, Chain):
        yield from _firsts(node.steps[0])
    elif isinstance(node, Group):
        for member in node.members:
            yield from _firsts(member)
    elif isinstance(node, Chord):
        yield from _firsts(node.header)
    elif isinstance(node, Signature | PartialSignature):
        yield node


def _gives(node: Node[Any]) -> Shape:
    """Return what comes out of a part."""
    if isinstance(node, Chain):
        return _gives(node.steps[-1])
    if isinstance(node, Chord):
        return _gives(node.body)
    if isinstance(node, Group):
        return list_of([_gives(member) for member in node.members])
    if isinstance(node, Signature | PartialSignature) and node.task is not None:
        try:
            shape = writes(node.task.results.annotation)
        except TaskDefinitionError:  # names that do not exist yet: it is told when the app opens
            return ANYTHING
        return list_of([shape] * node.calls) if isinstance(node, Signature) and node.calls is not None else shape
    return ANYTHING


def _takes(leaf: PartialSignature[Any]) -> Shape:
    if leaf.task is None:
        return ANYTHING
    arguments = leaf.task.arguments
    try:
        if leaf.into == WHOLE:
            name = arguments.message
        else:
            name = next((name for name, key in arguments.wire_keys().items() if key == leaf.into), None)
        return ANYTHING if name is None else reads(arguments.annotation(name))
    except TaskDefinitionError:  # see `_gives`
        return ANYTHING


def _check_fit(given: Shape, leaf: PartialSignature[Any], before: Node[Any]) -> None:
    if reason := misfit(given, _takes(leaf)):
        raise InvalidWorkflow(
            f"{leaf.name} cannot take what {_described(before)} returns as {_argument(leaf)}: {reason}. Change one of "
            f"the two types, or let it take nothing: {_short(leaf)}.si(...)."
        )


def _check_failures(given: Shape, leaf: PartialSignature[Any]) -> None:
    """A list that may hold failures must be one that the body can read."""
    if given.items and misfit(list_of([writes(FailedMember)]), _takes(leaf)):
        raise InvalidWorkflow(
            f'{leaf.name} takes no FailedMember in {_argument(leaf)}, and errors="collect" puts one into the list for '
            "each member that fails. Let its elements be `... | FailedMember`."
        )


def _has_everything(leaf: Signature[Any], before: Node[Any]) -> str:
    name = _short(leaf)
    return (
        f"{leaf.name} follows {_described(before)} and has all of its arguments, so it would not take the result. "
        f"Write {name}.si(...) if it shall ignore it; else {name}, or {name}.partial(...) with the other arguments."
    )


def _described(node: Node[Any]) -> str:
    if isinstance(node, Chain):
        return _described(node.steps[-1])
    if isinstance(node, Chord):
        return _described(node.body)
    if isinstance(node, Signature | PartialSignature):
        return node.name
    return "the group"


def _argument(leaf: PartialSignature[Any]) -> str:
    return "all of its arguments" if leaf.into == WHOLE else f"its argument {leaf.into!r}"


def _short(leaf: Leaf) -> str:
    return leaf.name.rpartition(".")[2]
