"""What a workflow's result must be, in a few lines of plain Python: no broker, no worker, no messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic_core import from_json

from asyncq import Chain, Chord, Group, PartialSignature, Signature
from asyncq.program import WHOLE

Functions = Mapping[str, Callable[..., Any]]


def evaluated(node: Any, functions: Functions, value: Any = None) -> Any:
    """Return the result of a workflow whose tasks are these functions, after `value` came before it."""
    match node:
        case Chain():
            for step in node.steps:
                value = evaluated(step, functions, value)
            return value
        case Group():
            return [evaluated(member, functions, value) for member in node.members]
        case Chord():
            return evaluated(node.body, functions, evaluated(node.header, functions, value))
        case PartialSignature():
            arguments = from_json(node.body)
            taken = value if node.into == WHOLE else {node.into: value}
            return functions[node.name](**arguments, **taken)
        case Signature():
            arguments = from_json(node.body)
            function = functions[node.name]
            if "$items" in arguments:
                return [function(**item) for item in arguments["$items"]]
            return function(**arguments)
    raise AssertionError(node)
