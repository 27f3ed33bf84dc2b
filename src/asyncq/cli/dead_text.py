"""Dead letters as text for people and as JSON for programs.

Pure. Invariant: whatever a foreign message holds can be printed: control characters as escapes, a body that is no JSON
in base64.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from asyncq.broker import DeadLetter
from asyncq.cli.text import moment, printable
from asyncq.dead_letters.filters import reason_of
from asyncq.dead_letters.reports import LetterCount
from asyncq.history import history_of
from asyncq.message import HISTORY

__all__ = ["as_json", "as_text", "count_as_json", "counts_as_table", "shown", "whole_as_json"]

_SHOWN_ELSEWHERE = (
    "asyncq-error-type",
    "asyncq-error-message",
    "asyncq-error-traceback",
    "asyncq-reason",
    "asyncq-failed-at",
    "asyncq-attempts",
    "asyncq-queue",
    "asyncq-worker",
    HISTORY,
)
_COLUMNS = ("QUEUE", "TASK", "ERROR", "COUNT", "OLDEST", "NEWEST")
_NUMBERS = 3


# --- for people


def as_text(letter: DeadLetter) -> str:
    """Return a letter in some lines."""
    return printable("\n".join([_head(letter), *_cause(letter, _first_lines)])) + "\n"


def shown(letter: DeadLetter) -> str:
    """Return a letter whole: arguments, headers in words, traceback, history."""
    message, record = letter.message, letter.record
    parts = [_head(letter), *_cause(letter, _all_lines)]
    if letter.queue is not None:
        parts.append(f"  of queue {letter.queue}")
    parts += ["", "Arguments", _indented(_body(message.body))]
    facts = {
        "message id": message.message_id,
        "reply to": message.reply_to,
        "content type": message.content_type,
        "content encoding": message.content_encoding,
        "sent at": None if message.timestamp_ms is None else moment(message.timestamp_ms),
        "sent by": message.app_id,
        "priority": message.priority,
        **{name: value for name, value in message.headers.items() if name not in _SHOWN_ELSEWHERE},
    }
    lines = [f"  {name}: {_fact(value)}" for name, value in facts.items() if value is not None]
    parts += ["", "Properties and headers", *lines]
    history = history_of(message.headers)
    if history:
        parts += ["", "Failed attempts"]
        parts += [
            f"  {one.attempt}  {moment(one.failed_at_ms)}  {one.type}: {_first_lines(one.message)}  ({one.worker})"
            for one in history
        ]
    if record is not None and record.failure.traceback:
        parts += ["", "Traceback", _indented(record.failure.traceback)]
    return printable("\n".join(parts))


def counts_as_table(counts: Mapping[str, Iterable[LetterCount]]) -> str:
    """Return counts as a table.

    Args:
        counts: By the queue whose dead letters they are.
    """
    rows = [_row(queue, kind) for queue, kinds in counts.items() for kind in kinds]
    return printable(_table([_COLUMNS, *rows]))


def _row(queue: str, kind: LetterCount) -> tuple[str, ...]:
    of = queue if kind.queue == queue else f"{queue} (for {kind.queue or 'an unknown queue'})"
    error = f"({kind.reason})" if kind.error is None else kind.error
    times = ["" if time is None else moment(time) for time in (kind.oldest_ms, kind.newest_ms)]
    return (of, kind.task or "(no task name)", error, str(kind.count), *times)


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place == _NUMBERS else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _head(letter: DeadLetter) -> str:
    return f"{letter.message.type or '(no task name)'}  {letter.message.task_id}"


def _cause(letter: DeadLetter, lines: Any) -> list[str]:
    record = letter.record
    if record is None:
        reason = letter.broker_reason or "no reason is known"
        at = "" if letter.failed_at_ms is None else f", {moment(letter.failed_at_ms)}"
        return [f"  {reason_of(letter)}: {reason}{at}; no error is recorded"]
    attempts = f"{record.attempts} attempt{'' if record.attempts == 1 else 's'}"
    return [
        f"  {record.failure.type}: {lines(record.failure.message)}",
        f"  {record.reason}, {attempts}, {moment(record.failed_at_ms)}, by {record.worker}",
    ]


def _first_lines(text: str) -> str:
    lines = text.splitlines() or [""]
    rest = f"    ... and {len(lines) - 5} more lines (`dead show`, or --json, shows all)"
    return "\n".join([lines[0], *(f"    {line}" for line in lines[1:5]), *([rest] if len(lines) > 5 else [])])


def _all_lines(text: str) -> str:
    first, *others = text.splitlines() or [""]
    return "\n".join([first, *(f"    {line}" for line in others)])


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def _body(body: bytes) -> str:
    arguments = _arguments(body)
    if "arguments" in arguments:
        return json.dumps(arguments["arguments"], indent=2, ensure_ascii=False)
    return f"(no JSON; in base64: {arguments['body_base64']})"


def _fact(value: Any) -> str:
    value = _plain(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# --- for programs


def as_json(letter: DeadLetter) -> dict[str, Any]:
    """Return a letter as one JSON object."""
    message, record = letter.message, letter.record
    known: dict[str, Any] = {"task": message.type, "id": message.task_id, **_arguments(message.body)}
    died: dict[str, Any] = {
        "failed_at": None if letter.failed_at_ms is None else moment(letter.failed_at_ms),
        "queue": letter.queue,
    }
    if record is None:
        return {**known, "reason": reason_of(letter), "broker_reason": letter.broker_reason, **died}
    return {
        **known,
        "reason": record.reason,
        "error_type": record.failure.type,
        "error_message": record.failure.message,
        "traceback": record.failure.traceback,
        "attempts": record.attempts,
        **died,
        "worker": record.worker,
        "history": [
            {
                "attempt": one.attempt,
                "at": moment(one.failed_at_ms),
                "type": one.type,
                "message": one.message,
                "worker": one.worker,
            }
            for one in record.history
        ],
    }


def whole_as_json(letter: DeadLetter) -> dict[str, Any]:
    """Return a letter as one JSON object, with its properties and all its headers."""
    message = letter.message
    return {
        **as_json(letter),
        "message_id": message.message_id,
        "reply_to": message.reply_to,
        "content_type": message.content_type,
        "content_encoding": message.content_encoding,
        "sent_at": None if message.timestamp_ms is None else moment(message.timestamp_ms),
        "app_id": message.app_id,
        "priority": message.priority,
        "headers": _plain(message.headers),
    }


def count_as_json(queue: str, kind: LetterCount) -> dict[str, Any]:
    """Return a count as one JSON object.

    Args:
        queue: Whose dead letters they are.
        kind: The count.
    """
    return {
        "dead_letters_of": queue,
        "queue": kind.queue,
        "task": kind.task,
        "error_type": kind.error,
        "reason": kind.reason,
        "count": kind.count,
        "oldest": None if kind.oldest_ms is None else moment(kind.oldest_ms),
        "newest": None if kind.newest_ms is None else moment(kind.newest_ms),
    }


def _arguments(body: bytes) -> dict[str, Any]:
    """Return the body as JSON where it can be printed as such: half a surrogate pair, for example, cannot."""
    try:
        arguments = json.loads(body)
        json.dumps(arguments, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return {"body_base64": base64.b64encode(body).decode()}
    return {"arguments": arguments}


def _plain(value: Any) -> Any:
    """Return a header's value as JSON can hold it."""
    match value:
        case None | bool() | int():
            return value
        case str():
            return value.encode(errors="backslashreplace").decode()
        case bytes() | bytearray():
            return base64.b64encode(value).decode()
        case Mapping():
            return {str(_plain(name)): _plain(item) for name, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case _:
            return str(value)
