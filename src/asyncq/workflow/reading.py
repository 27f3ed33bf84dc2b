"""How the result of a workflow is read: as the types that its last tasks have declared."""

from __future__ import annotations

from typing import Any

from asyncq.signature import Signature
from asyncq.workflow.node import Node
from asyncq.workflow.partial import PartialSignature
from asyncq.workflow.values import Chain, Chord, Group
from asyncq.workflow_progress.outcome import Reading

__all__ = ["reading_of"]


def reading_of(node: Node[Any]) -> Reading:
    """Return what reads the result of a workflow: a function; for a group a list, with one for each member."""
    if isinstance(node, Chain):
        return reading_of(node.steps[-1])
    if isinstance(node, Chord):
        return reading_of(node.body)
    if isinstance(node, Group):
        return [reading_of(member) for member in node.members]
    assert isinstance(node, Signature | PartialSignature)  # noqa: S101 - there is no other kind
    return node.decode
