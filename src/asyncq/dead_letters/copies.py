"""From a dead letter to the message that is sent back: the same task, as if it were sent anew.

Pure. Invariant: task id, body, reply address and the sender's own headers stay; the attempts begin again at 1, and
nothing of the letter's death is left but the history. Arguments that are not changed keep their very text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic_core import PydanticSerializationError, to_json

from asyncq.errors import InvalidOption, MalformedMessage
from asyncq.life import RUNS, new_life_after
from asyncq.message import ATTEMPT, DUE_AT, EXPIRES_AT, FIRST_AT, STAGED_UNTIL, TURN_AT, UNKNOWN_SINCE, Message, copy_of

__all__ = ["arguments_as_json", "replay_of", "with_arguments"]

_OF_THE_DEATH = (
    ATTEMPT,
    DUE_AT,
    EXPIRES_AT,
    FIRST_AT,
    RUNS,
    STAGED_UNTIL,
    TURN_AT,
    UNKNOWN_SINCE,
    "asyncq-error-type",
    "asyncq-error-message",
    "asyncq-error-traceback",
    "asyncq-reason",
    "asyncq-failed-at",
    "asyncq-attempts",
    "asyncq-queue",
    "asyncq-worker",
)
"""The headers that stay behind. The record's own are written by the adapters (rabbitmq/dead_letters.py)."""

_SPACE = " \t\r\n"


def replay_of(message: Message, now_ms: int) -> Message:
    """Return what is sent in place of a dead letter: a new message of the same task, in a new life of it.

    Args:
        message: The dead letter's.
        now_ms: The time, in milliseconds since the epoch.
    """
    return copy_of(message, headers=new_life_after(message, now_ms), drop=_OF_THE_DEATH)


def arguments_as_json(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Return changed arguments, each as JSON.

    Raises:
        InvalidOption: A name cannot be an argument's, or a value cannot be written as JSON.
    """
    written = {}
    for name, value in arguments.items():
        if not isinstance(name, str) or name.startswith("$"):
            raise InvalidOption(f"An argument's name is a string that does not begin with '$'; {name!r} is not.")
        try:
            written[name] = to_json(value, bytes_mode="base64", inf_nan_mode="strings").decode()
        except (PydanticSerializationError, ValueError) as error:
            raise InvalidOption(f"The argument {name!r} cannot be written as JSON: {error}") from None
    return written


def with_arguments(body: bytes, changed: Mapping[str, str]) -> bytes:
    """Return the body with some arguments changed or added.

    Args:
        body: A JSON object.
        changed: By name, each as JSON.

    Raises:
        MalformedMessage: The body is no JSON object.
    """
    try:
        members = _members(body.decode())
    except (ValueError, RecursionError):
        raise MalformedMessage("the body is no JSON object, so no arguments can be changed") from None
    members.update({json.dumps(name): value for name, value in changed.items()})
    return ("{" + ",".join(f"{name}:{value}" for name, value in members.items()) + "}").encode()


def _members(text: str) -> dict[str, str]:
    """Return the members of a JSON object as they are written: names by `json.dumps`, values as their very text.

    Raises:
        ValueError: This is no JSON object.
    """
    read = json.JSONDecoder().raw_decode
    members: dict[str, str] = {}
    place = _behind(text, 0, "{")
    while text[place : place + 1] != "}":
        if members:
            place = _behind(text, place, ",")
        name, end = read(text, place)
        if not isinstance(name, str):
            raise ValueError(text)  # noqa: TRY004 - the text is wrong, not a type of ours
        start = _behind(text, end, ":")
        _, end = read(text, start)
        members[json.dumps(name)] = text[start:end]
        place = _behind(text, end, "")
    if text[place + 1 :].strip(_SPACE):
        raise ValueError(text)
    return members


def _behind(text: str, place: int, sign: str) -> int:
    """Return the place behind space, this sign, and more space."""
    for expected in (sign, ""):
        while text[place : place + 1] and text[place] in _SPACE:
            place += 1
        if not text.startswith(expected, place):
            raise ValueError(text)
        place += len(expected)
    return place
