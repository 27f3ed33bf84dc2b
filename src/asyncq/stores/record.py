"""How a status is written down: one JSON text for all stores, with the result beside it.

    {"state":"failed","task":"shop.mail","attempt":2,"error":{"type":"...","message":"...","traceback":"..."},
     "queued_at":"2026-01-02T03:04:05.678901+00:00", ...}

What is not known is left out. The result is apart, so that listings need not read it. Invariant: whatever `encode`
writes, `decode` reads as the same status; whatever else is there is `Unreadable`, and nothing worse.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from asyncq.errors import InvalidOption
from asyncq.outcome import Failure
from asyncq.status import Progress, TaskState, TaskStatus

__all__ = ["Cursor", "Unreadable", "decode", "encode", "from_micros", "key_of", "micros"]

_TIMES = ("queued_at", "due_at", "not_after", "started_at", "retry_at", "finished_at", "updated_at", "expires_at")
_NUMBERS = ("attempt", "life", "run")
_TEXTS = ("task", "queue", "worker", "parent_id", "root_id", "reason", "workflow")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_in_full = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=str).encode
_in_ascii = json.JSONEncoder(separators=(",", ":"), default=str).encode


class Unreadable(ValueError):
    """What is there was not written by asyncq, or by a version that wrote otherwise."""


def micros(moment: datetime) -> int:
    """Return the microseconds since the epoch."""
    return (moment - _EPOCH) // _MICROSECOND


def from_micros(value: int) -> datetime:
    """Return the moment, in UTC."""
    return _EPOCH + timedelta(microseconds=value)


def key_of(text: str) -> str:
    """Return a text as databases can have it: PostgreSQL's have no NUL, and no text has half a surrogate pair."""
    return text.replace("\0", "\\0").encode(errors="backslashreplace").decode()


def encode(status: TaskStatus) -> str:
    """Return the text for a status, without its result."""
    record: dict[str, Any] = {"state": status.state.value}
    if key_of(status.id) != status.id:
        record["id"] = status.id
    if status.rejected:
        record["rejected"] = True
    for name in (*_NUMBERS, *_TEXTS):
        if (value := getattr(status, name)) not in {None, 0}:
            record[name] = value
    for name in _TIMES:
        if (moment := getattr(status, name)) is not None:
            record[name] = moment.isoformat()
    if (progress := status.progress) is not None:
        found = {"done": progress.done, "total": progress.total, "label": progress.label, "details": progress.details}
        record["progress"] = {name: value for name, value in found.items() if value not in (None, {})}
    if (error := status.error) is not None:
        record["error"] = {"type": error.type, "message": error.message, "traceback": error.traceback}
    text = _in_full(record)
    return text if _is_text(text) else _in_ascii(record)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can escape and UTF-8 cannot write
        return False
    return True


def decode(key: str, text: str | bytes, result: bytes | None) -> TaskStatus:
    """Return the status that was written down.

    Args:
        key: The id, as `key_of` made it.
        text: What `encode` returned.
        result: What was beside it.

    Raises:
        Unreadable: It is something else.
    """
    try:
        record = json.loads(text)
        known: dict[str, Any] = {name: _text(record[name]) for name in _TEXTS if name in record}
        known |= {name: _count(record.get(name, 0)) for name in _NUMBERS}
        known |= {name: _moment(record[name]) for name in _TIMES if name in record}
        return TaskStatus(
            id=_text(record.get("id", key)),
            state=TaskState(record["state"]),
            rejected=record.get("rejected") is True,
            progress=_progress(record["progress"]) if "progress" in record else None,
            result=result,
            error=_error(record["error"]) if "error" in record else None,
            **known,
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Unreadable(f"{type(error).__name__}: {error}"[:200]) from error


def _progress(record: dict[str, Any]) -> Progress:
    done, total, details = record["done"], record.get("total"), record.get("details", {})
    if not isinstance(done, int | float) or not isinstance(total, int | float | None) or not isinstance(details, dict):
        raise TypeError("progress has other types")
    return Progress(done, total, None if record.get("label") is None else _text(record["label"]), details)


def _error(record: dict[str, Any]) -> Failure:
    return Failure(_text(record["type"]), _text(record["message"]), _text(record["traceback"]))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a text is {type(value).__name__}")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError("this is no number")
    return value


def _moment(value: Any) -> datetime:
    moment = datetime.fromisoformat(_text(value))
    if moment.tzinfo is None:
        raise ValueError("a time has no zone")
    return moment


@dataclass(frozen=True, slots=True)
class Cursor:
    """Between which two tasks a listing stands: it goes on with those that became known before this one.

    Attributes:
        created: When the last one of the page became known, in microseconds since the epoch.
        key: Its id, as `key_of` made it.
    """

    created: int
    key: str

    def __str__(self) -> str:
        return f"{self.created:016d}:{self.key}"

    @classmethod
    def read(cls, text: str) -> Cursor:
        """Return the cursor that a page has given.

        Raises:
            InvalidOption: It is none.
        """
        created, colon, key = text.partition(":")
        if len(created) != 16 or not (created.isascii() and created.isdigit()) or not colon:
            raise InvalidOption(f"{text!r} is not the cursor of a listing: take `cursor` of the page before.")
        return cls(int(created), key)
