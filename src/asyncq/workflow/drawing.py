"""A workflow as a Mermaid flowchart.

Every task is a box; a group opens at one dot and, where something follows, closes at another.
"""

from __future__ import annotations

from typing import Any

from asyncq.signature import Signature
from asyncq.workflow.labels import call_of
from asyncq.workflow.node import Node
from asyncq.workflow.partial import PartialSignature
from asyncq.workflow.values import Chain, Chord, Group
from asyncq.workflow.workflow import Workflow

__all__ = ["mermaid"]

_MOST_MEMBERS = 20


def mermaid(workflow: Workflow[Any]) -> str:
    """Return the flowchart's text. Of very many members the first are drawn, and one box stands for the rest."""
    drawing = _Drawing()
    drawing.add(workflow, [])
    return "\n".join(["flowchart TD", *(f"    {line}" for line in drawing.lines)])


class _Drawing:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self._count = 0

    def add(self, node: Node[Any], before: list[str]) -> list[str]:
        """Draw a part after others.

        Args:
            node: The part.
            before: The boxes that it follows.

        Returns:
            The boxes that it ends in.
        """
        if isinstance(node, Chain):
            for step in node.steps:
                before = self.add(step, before)
            return before
        if isinstance(node, Chord):
            ends = self._fork(node.header, before)
            return self.add(node.body, [self._box("{{all}}" if node.errors == "stop" else "{{all, or failed}}", ends)])
        if isinstance(node, Group):
            return self._fork(node, before)
        assert isinstance(node, Signature | PartialSignature)  # noqa: S101 - there is no other kind
        return [self._box(f'["{_escaped(call_of(node))}"]', before)]

    def _fork(self, group: Group[Any], before: list[str]) -> list[str]:
        shown = group.members if len(group) <= _MOST_MEMBERS else group.members[: _MOST_MEMBERS - 1]
        start = [self._box("((group))", before)]
        ends = [end for member in shown for end in self.add(member, start)]
        if left := len(group) - len(shown):
            ends.append(self._box(f'["… and {left:,} more"]', start))
        return ends or start

    def _box(self, shape: str, before: list[str]) -> str:
        name = f"n{self._count}"
        self._count += 1
        self.lines.append(f"{name}{shape}")
        self.lines.extend(f"{other} --> {name}" for other in before)
        return name


def _escaped(text: str) -> str:
    """Return text that Mermaid shows as it is."""
    marks = {"&": "#amp;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "`": "#96;"}
    text = text.replace("#", "#35;")
    return "".join(marks.get(sign, sign) for sign in text)
