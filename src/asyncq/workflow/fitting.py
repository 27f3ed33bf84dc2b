"""Whether what one task returns can be what the next one takes, as far as their types say.

Both types are compared as JSON schemas: what the one is written as, and what the other one reads. The answer is "no"
only where no value of the one type, or none of its elements, could be read as the other; in doubt it is "yes", and the
worker decides. So nothing is refused that may work: a type with a validator that runs before pydantic's own, or with
aliases, can read what its schema does not tell.

One exception: text is not taken for a number, although pydantic reads "12" as one. Type checkers refuse it, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from pydantic import PydanticUserError, TypeAdapter

__all__ = ["ANYTHING", "Shape", "list_of", "misfit", "reads", "writes"]

Node = Mapping[str, Any]

_DEEPEST = 8
# Nodes of pydantic's schema that can take another value than the JSON schema says.
_FREE = {"function-before", "function-wrap", "function-plain", "custom-error", "call"}
# A number that is written as text: its JSON schema does not tell it from any other text.
_WRITTEN_AS_TEXT = {"decimal"}


@dataclass(frozen=True, slots=True)
class Shape:
    """A JSON schema.

    Attributes:
        node: The schema.
        definitions: What its `$ref`s name.
        items: Of a list whose elements are known one by one: theirs, in order.
    """

    node: Node
    definitions: Mapping[str, Node] = field(default_factory=dict)
    items: tuple[Shape, ...] | None = None


ANYTHING = Shape({})


def writes(annotation: Any) -> Shape:
    """Return what values of a return type are written as."""
    return _shape(annotation, "serialization")


def reads(annotation: Any) -> Shape:
    """Return what a parameter's type can be read from."""
    return _shape(annotation, "validation")


def list_of(items: Sequence[Shape]) -> Shape:
    """Return the shape of a list of exactly these elements."""
    return Shape({"type": "array"}, items=tuple(items))


def misfit(written: Shape, read: Shape) -> str | None:
    """Return why nothing that is written could be read, for a person; None where something may be."""
    return _misfit(written, read, "", 0)


def _shape(annotation: Any, mode: Literal["serialization", "validation"]) -> Shape:
    try:
        hash(annotation)
    except TypeError:
        return _made(annotation, mode)
    return _remembered(annotation, mode)


def _made(annotation: Any, mode: Literal["serialization", "validation"]) -> Shape:
    if annotation is None:
        annotation = type(None)
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
        free = _FREE if mode == "validation" else _WRITTEN_AS_TEXT
        if any(node in free for node in _types_in(adapter.core_schema)):
            return ANYTHING
        schema = adapter.json_schema(mode=mode)
    except (PydanticUserError, TypeError, ValueError):  # it has no JSON schema
        return ANYTHING
    return Shape(schema, schema.get("$defs", {}))


_remembered: Callable[[Any, Literal["serialization", "validation"]], Shape] = lru_cache(maxsize=512)(_made)


def _types_in(schema: Any) -> Iterator[str]:
    """Yield the kinds of nodes in pydantic's schema; what has an alias is one that may read anything."""
    if isinstance(schema, (list, tuple)):
        for item in schema:
            yield from _types_in(item)
    elif isinstance(schema, Mapping):
        if isinstance(kind := schema.get("type"), str):
            yield kind
        if schema.get("validation_alias") is not None or _takes_numbers_as_text(schema):
            yield "call"
        for key, value in schema.items():
            if key not in {"metadata", "default", "expected", "config"}:
                yield from _types_in(value)


def _takes_numbers_as_text(schema: Mapping[str, Any]) -> bool:
    config = schema.get("config")
    return any(found.get("coerce_numbers_to_str") for found in (schema, config) if isinstance(found, Mapping))


def _misfit(written: Shape, read: Shape, where: str, depth: int) -> str | None:
    """Compare alternative by alternative: one pair that fits is enough."""
    if depth > _DEEPEST:
        return None
    reason = None
    for one in _alternatives(written):
        for other in _alternatives(read):
            reason = _pair(one, other, where, depth)
            if reason is None:
                return None
    return reason


def _alternatives(shape: Shape) -> list[Shape]:
    """Return what a union can be; a shape that is none by itself."""
    node = shape.node
    seen = 0
    while "$ref" in node and seen < _DEEPEST:
        node = shape.definitions.get(str(node["$ref"]).removeprefix("#/$defs/"), {})
        seen += 1
    options = node.get("anyOf") or node.get("oneOf")
    if not options:
        return [Shape(node, shape.definitions, shape.items)]
    return [found for option in options for found in _alternatives(Shape(option, shape.definitions))]


def _pair(one: Shape, other: Shape, where: str, depth: int) -> str | None:
    kind, wanted = one.node.get("type"), other.node.get("type")
    if not isinstance(kind, str) or not isinstance(wanted, str):
        return None
    if not _can_be(one.node, other.node):
        return f"{where or 'it'} is {_in_words(one.node)}, and {_in_words(other.node)} is wanted"
    if kind == "array":
        return _arrays(one, other, where, depth)
    if kind == "object":
        return _objects(one, other, where, depth)
    return None


def _can_be(one: Node, other: Node) -> bool:
    kind, wanted = one["type"], other["type"]
    numbers = {"integer", "number", "boolean"}
    if kind == wanted or {kind, wanted} <= numbers:
        return True
    if wanted == "string" and kind in numbers:
        return "format" in other or "pattern" in other  # such as a moment, which is read from a number, too
    return False


def _arrays(one: Shape, other: Shape, where: str, depth: int) -> str | None:
    ours, theirs = _known_items(one), _known_items(other)
    rest = _items(other)
    if theirs is not None and ours is not None and "items" not in other.node and len(ours) != len(theirs):
        return f"{where or 'it'} is a list of {len(ours)}, and a list of {len(theirs)} is wanted"
    if ours is None:
        return _misfit(_items(one), rest, f"each element{_of(where)}", depth + 1) if theirs is None else None
    seen: list[tuple[Shape, Shape]] = []
    for number, item in enumerate(ours):
        wanted = theirs[number] if theirs is not None and number < len(theirs) else rest
        if any(item is known and wanted == place for known, place in seen):
            continue
        seen = [*seen[-20:], (item, wanted)]
        if reason := _misfit(item, wanted, f"element {number}{_of(where)}", depth + 1):
            return reason
    return None


def _known_items(shape: Shape) -> tuple[Shape, ...] | None:
    if shape.items is not None:
        return shape.items
    found = shape.node.get("prefixItems")
    return None if found is None else tuple(Shape(item, shape.definitions) for item in found)


def _items(shape: Shape) -> Shape:
    items = shape.node.get("items")
    return Shape(items, shape.definitions) if isinstance(items, Mapping) else ANYTHING


def _objects(one: Shape, other: Shape, where: str, depth: int) -> str | None:
    """Compare the fields; where one of the two is a plain mapping, nothing is known of them."""
    ours, theirs = one.node.get("properties"), other.node.get("properties")
    if not ours or not theirs or one.node.get("additionalProperties"):
        return None
    for name in other.node.get("required", ()):
        if name not in ours:
            return f"{where or 'it'} has no field {name!r}, which {_in_words(other.node)} needs"
    for name in one.node.get("required", ()):
        if name not in theirs:
            if other.node.get("additionalProperties") is False:
                return f"{where or 'it'} has a field {name!r}, which {_in_words(other.node)} does not allow"
        elif reason := _misfit(
            Shape(ours[name], one.definitions),
            Shape(theirs[name], other.definitions),
            f"field {name!r}{_of(where)}",
            depth + 1,
        ):
            return reason
    return None


def _of(where: str) -> str:
    return f" of {where}" if where else ""


def _in_words(node: Node) -> str:
    words = {
        "string": "text",
        "integer": "a whole number",
        "number": "a number",
        "boolean": "true or false",
        "array": "a list",
        "null": "None",
    }
    if node["type"] == "object":
        return f"a {node['title']}" if "title" in node else "an object"
    return words.get(node["type"], str(node["type"]))
