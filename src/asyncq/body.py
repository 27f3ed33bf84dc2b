"""The body of a task message: a JSON object of the arguments, in which keys that begin with `$` belong to asyncq.

`$on_failure` says what is sent when the task has finally failed, `$failed` tells such a callback of its task,
`$workflow` holds the place of a task in its workflow, and `$items` the calls of a chunk. In the body, because a header
frame cannot be split, and these may be large.
"""

from __future__ import annotations

from typing import Any

from pydantic_core import from_json

from asyncq.errors import MalformedMessage

__all__ = ["FAILED", "ITEMS", "ON_FAILURE", "RESERVED_PREFIX", "arguments_in", "object_of", "with_key"]

RESERVED_PREFIX = "$"
ON_FAILURE = "$on_failure"
FAILED = "$failed"
ITEMS = "$items"


def object_of(body: bytes) -> dict[str, Any]:
    """Return the object that a body is.

    Raises:
        MalformedMessage: It is no JSON, or another value.
    """
    try:
        message = from_json(body)
    except ValueError as error:
        raise MalformedMessage(f"The body is not JSON: {error}. A task message is a JSON object in UTF-8.") from error
    if not isinstance(message, dict):
        raise MalformedMessage(
            f"The body is a JSON {_JSON_NAMES.get(type(message), 'value')}, not an object with the task's arguments."
        )
    return message


def arguments_in(message: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments alone."""
    return {key: value for key, value in message.items() if not key.startswith(RESERVED_PREFIX)}


def with_key(body: bytes, key: str, value: bytes) -> bytes:
    """Return a JSON object with one more key, the rest of it as it was, byte by byte.

    Args:
        body: The object.
        key: The key, which is not in it.
        value: JSON.
    """
    inside = body.strip()[1:-1].strip()
    return b'{%b%b"%b":%b}' % (inside, b"," if inside else b"", key.encode(), value)


_JSON_NAMES = {list: "array", str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"}
