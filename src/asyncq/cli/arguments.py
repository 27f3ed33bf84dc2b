"""What is typed on the command line, read into values: JSON arguments, headers, moments, queues with slots.

Pure, but for `-`, which reads standard input. Each refusal says what is wrong and shows the right form.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NoReturn

from asyncq.errors import InvalidOption
from asyncq.queue_names import check_queue_name

__all__ = ["read_eta", "read_expires", "read_headers", "read_json_object", "read_queues"]

MAX_SLOTS = 2000

_EXAMPLE = """for example '{"to": "a@example.org", "subject": "Hi"}' (single quotes keep the shell away from it)"""


def read_json_object(text: str) -> bytes:
    """Return the task's arguments as they go into the message: the very text, once it is known to be a JSON object.

    Args:
        text: A JSON object, or `-` for standard input.

    Raises:
        InvalidOption: It is no JSON object.
    """
    where = "The task's arguments"
    if text == "-":
        where = "Standard input"
        raw = sys.stdin.buffer.read()
    else:
        raw = text.encode("utf-8", "surrogateescape")
    try:
        value = json.loads(raw.decode("utf-8").strip() or "", parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise InvalidOption(f"{where}: this is not UTF-8. JSON is UTF-8.") from None
    except RecursionError:
        raise InvalidOption(f"{where}: the JSON is nested too deeply.") from None
    except json.JSONDecodeError as error:
        raise InvalidOption(
            f"{where}: this is not JSON: {error.msg} at line {error.lineno}, column {error.colno}: "
            f"{_around(error)}\nA JSON object is wanted, {_EXAMPLE}."
        ) from None
    except ValueError as error:  # Python reads no number of more than 4,300 digits
        raise InvalidOption(f"{where}: this JSON cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise InvalidOption(
            f"{where}: a JSON object of the task's parameters is wanted, not {_KINDS[type(value)]}; {_EXAMPLE}."
        )
    for name in value:
        if name.startswith("$"):
            raise InvalidOption(f"{where}: names that begin with '$' belong to asyncq; {name!r} is one.")
    return raw.strip()


_KINDS = {list: "an array", str: "a string", int: "a number", float: "a number", bool: "a boolean", type(None): "null"}


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidOption(f'The task\'s arguments: JSON has no {name}. asyncq writes such numbers as strings: "{name}".')


def _around(error: json.JSONDecodeError) -> str:
    start = max(0, error.pos - 20)
    piece = error.doc[start : error.pos + 20]
    return repr(piece) if piece else "it is empty"


def read_headers(pairs: Iterable[str]) -> dict[str, str]:
    """Return the headers of `NAME=VALUE` options.

    Raises:
        InvalidOption: There is no `=`, or a name comes twice.
    """
    headers: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise InvalidOption(f"--header takes NAME=VALUE, for example tenant=blue, not {pair!r}.")
        if name in headers:
            raise InvalidOption(f"--header {name} is given twice.")
        headers[name] = value
    return headers


def read_eta(text: str | None) -> datetime | None:
    """Return the moment of `--eta`.

    Raises:
        InvalidOption: It is no moment in ISO 8601, or its time zone is missing.
    """
    return None if text is None else _moment(text, "--eta", "a moment")


def read_expires(text: str | None) -> float | datetime | None:
    """Return the seconds, or the moment, of `--expires`.

    Raises:
        InvalidOption: It is neither seconds nor a moment in ISO 8601, or its time zone is missing.
    """
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return _moment(text, "--expires", "seconds, or a moment")


def _moment(text: str, option: str, what: str) -> datetime:
    example = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidOption(f"{option} takes {what} in ISO 8601, for example {example}, not {text!r}.") from None
    if moment.tzinfo is None:
        raise InvalidOption(
            f"{option} {text} has no time zone, so it is unknown which moment it means. "
            f"Add Z for UTC or an offset such as +03:00, for example {example}."
        )
    return moment


def read_queues(names: Iterable[str], slots: int) -> dict[str, int]:
    """Return the slots for each queue of `--queue NAME[:SLOTS]` options.

    Args:
        names: The options' values.
        slots: For a queue that names no number.

    Raises:
        InvalidOption: The number of slots cannot be used, or a queue comes twice.
        InvalidQueueName: No queue can have this name.
    """
    queues: dict[str, int] = {}
    for text in names:
        name, colon, number = text.partition(":")
        if not name:
            raise InvalidOption(f"--queue takes NAME or NAME:SLOTS, for example mail:10, not {text!r}.")
        if name in queues:
            raise InvalidOption(f"--queue {name} is given twice.")
        check_queue_name(name)
        if not colon:
            queues[name] = slots
        elif number.isascii() and number.isdigit() and 1 <= int(number[:5]) <= MAX_SLOTS and len(number) <= 5:
            queues[name] = int(number)
        else:
            raise InvalidOption(
                f"--queue {text}: the slots after the colon must be a number from 1 to {MAX_SLOTS}, not {number!r}."
            )
    return queues
