"""What a sent workflow looks like: which tasks, in which order, and nothing else.

    line    its elements, one after the other
    element a task's name, or a fork: lines at the same time

The ids of the tasks follow from the workflow's id and their places, so whoever has the id and the shape can look all of
them up. Pure. Invariant: what `to_json` writes, `from_json` reads as an equal shape; anything else is refused. Equal
neighbours are written once, with their number: ten thousand members of one kind take a few bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from asyncq.program import Errors, Program, Step

__all__ = ["Element", "ForkShape", "Line", "WorkflowShape", "shape_of"]

_MOST_NODES = 1_000_000
_DEEPEST = 100


@dataclass(frozen=True, slots=True)
class ForkShape:
    """Lines that run at the same time.

    Attributes:
        members: The lines.
        errors: Whether one that fails fails them all, where something waits for them: `stop` or `collect`.
    """

    members: tuple[Line, ...]
    errors: Errors = "stop"


Element = str | ForkShape
Line = tuple[Element, ...]


@dataclass(frozen=True, slots=True)
class WorkflowShape:
    """The tasks of a workflow.

    Attributes:
        line: From the first one to the last.
    """

    line: Line

    @property
    def size(self) -> int:
        """How many tasks there are."""
        return _size(self.line)

    def finals(self) -> Iterator[str]:
        """Yield the places of the tasks whose results are the workflow's."""
        yield from _finals(self.line, "")

    def to_json(self) -> str:
        """Return it as JSON text."""
        return json.dumps(_written(self.line), ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> WorkflowShape:
        """Return the shape that was written.

        Raises:
            ValueError: It was written otherwise.
        """
        try:
            shape = cls(_read(json.loads(text), _DEEPEST))
        except (TypeError, KeyError, RecursionError) as error:
            raise ValueError(f"This is no shape of a workflow: {error!r}") from error
        if shape.size > _MOST_NODES:
            raise ValueError(f"A workflow of {shape.size} tasks is too large to be one.")
        return shape


def shape_of(program: Program) -> WorkflowShape:
    """Return the shape of a program."""
    return WorkflowShape(_line_of(program))


def _line_of(program: Program) -> Line:
    return tuple(
        element.task if isinstance(element, Step) else ForkShape(tuple(map(_line_of, element.members)), element.errors)
        for element in program
    )


def _size(line: Line) -> int:
    count = 0
    for element in line:
        if isinstance(element, str):
            count += 1
        else:
            for member, equal in groupby(element.members):
                count += _size(member) * sum(1 for _ in equal)
    return count


def _finals(line: Line, prefix: str) -> Iterator[str]:
    if not line:
        return
    last, at = line[-1], f"{prefix}{len(line) - 1}"
    if isinstance(last, str):
        yield at
        return
    for index, member in enumerate(last.members):
        yield from _finals(member, f"{at}.{index}.")


def _written(line: Line) -> list[Any]:
    return [element if isinstance(element, str) else _written_fork(element) for element in line]


def _written_fork(fork: ForkShape) -> dict[str, Any]:
    runs = [[sum(1 for _ in equal), *_written(member)] for member, equal in groupby(fork.members)]
    return {"members": runs, **({} if fork.errors == "stop" else {"errors": fork.errors})}


def _read(value: Any, levels: int) -> Line:
    if not isinstance(value, list) or levels == 0:
        raise TypeError("a line is a list, and not too deep")
    return tuple(element if isinstance(element, str) else _read_fork(element, levels - 1) for element in value)


def _read_fork(value: Any, levels: int) -> ForkShape:
    errors = value.get("errors", "stop") if isinstance(value, dict) else None
    if errors not in {"stop", "collect"}:
        raise TypeError("an element is a task's name or a fork")
    members: list[Line] = []
    for count, *line in value["members"]:
        if type(count) is not int or not 0 < count <= _MOST_NODES - len(members):
            raise TypeError("so many members cannot be")
        members += [_read(line, levels)] * count
    return ForkShape(tuple(members), errors)
