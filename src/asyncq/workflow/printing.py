"""A workflow as a tree of text, and on one line.

chord
├── group
│   ├── shop.add(x=1, y=2)
│   └── shop.add(x=3, y=4)
└── shop.total(numbers=…)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from asyncq.signature import Signature
from asyncq.workflow.labels import call_of, options_of
from asyncq.workflow.node import Node
from asyncq.workflow.partial import PartialSignature
from asyncq.workflow.values import Chord
from asyncq.workflow.workflow import Workflow

__all__ = ["line", "tree"]

_MOST_PARTS = 20
_MOST_ON_A_LINE = 5


def tree(node: Node[Any]) -> str:
    """Return a workflow, or a part of one, as a tree. Of very many members the first are shown."""
    return "\n".join(_lines(node))


def line(node: Node[Any]) -> str:
    """Return a node on one line: `Chain(Signature(shop.add(x=1)), PartialSignature(shop.add(x=…)))`."""
    name = type(node).__name__
    if isinstance(node, Signature | PartialSignature):
        return f"{name}({call_of(node)})"
    parts = node.parts if isinstance(node, Workflow) else ()
    shown = [line(part) for part in parts[:_MOST_ON_A_LINE]]
    left = len(parts) - len(shown)
    return f"{name}({', '.join([*shown, f'… {left:,} more'] if left else shown)})"


def _lines(node: Node[Any]) -> Iterator[str]:
    if isinstance(node, Signature | PartialSignature):
        yield f"{call_of(node)}{options_of(node.sending)}"
    elif isinstance(node, Workflow):
        errors = f" [errors={node.errors}]" if isinstance(node, Chord) and node.errors != "stop" else ""
        yield f"{node.kind}{errors}{options_of(node.sending)}"
        yield from _branches(node.parts)


def _branches(parts: tuple[Node[Any], ...]) -> Iterator[str]:
    shown = parts if len(parts) <= _MOST_PARTS else parts[: _MOST_PARTS - 1]
    left = len(parts) - len(shown)
    for number, part in enumerate(shown, start=1):
        is_last = number == len(shown) and not left
        first, others = ("└── ", "    ") if is_last else ("├── ", "│   ")
        for row, line in enumerate(_lines(part)):
            yield f"{others if row else first}{line}"
    if left:
        yield f"└── … and {left:,} more"
