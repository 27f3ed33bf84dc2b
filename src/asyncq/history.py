"""What went wrong in the last attempts of a task, as one header that its retries and its dead letter carry.

    asyncq-history: [{"attempt": 1, "at": 1750000000123, "type": "builtins.ConnectionError", "message": "...",
                      "worker": "host:4711"}, ...]

JSON text, the newest attempt last. Invariant: at most `MAX_ENTRIES` entries and `MAX_BYTES` bytes, the oldest go first;
what a foreign client has put there and cannot be read is no history, and is replaced by ours.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from asyncq.message import HISTORY, Headers, cut_text
from asyncq.outcome import Failure

__all__ = ["MAX_BYTES", "MAX_ENTRIES", "FailedAttempt", "history_of", "history_text", "last_failure"]

MAX_ENTRIES = 10
MAX_BYTES = 8 * 1024

_MESSAGE_BYTES = 500
_TEXT_BYTES = 200
_LONGEST_READ = 4 * MAX_BYTES  # in characters: more than we write, also where another client escapes differently


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """One attempt that failed.

    Attributes:
        attempt: Its number, from 1.
        failed_at_ms: When it failed, in milliseconds since the epoch.
        type: The exception's class, with its module.
        message: The exception's text, cut to 500 bytes.
        worker: Host and process id.
    """

    attempt: int
    failed_at_ms: int
    type: str
    message: str
    worker: str

    @classmethod
    def of(cls, failure: Failure, *, attempt: int, failed_at_ms: int, worker: str) -> FailedAttempt:
        """Return the entry for a failure, its texts cut."""
        return cls(
            attempt,
            failed_at_ms,
            cut_text(failure.type, _TEXT_BYTES),
            cut_text(failure.message, _MESSAGE_BYTES),
            cut_text(worker, _TEXT_BYTES),
        )


def history_of(headers: Headers) -> tuple[FailedAttempt, ...]:
    """Return the attempts that a message's headers tell of, oldest first; none where they cannot be read."""
    text = headers.get(HISTORY)
    if not isinstance(text, str) or len(text) > _LONGEST_READ:
        return ()
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        return ()
    if not isinstance(entries, list):
        return ()
    newest = entries[-MAX_ENTRIES:]
    attempts = tuple(attempt for entry in newest if (attempt := _read(entry)) is not None)
    return attempts if len(attempts) == len(newest) else ()


def last_failure(headers: Headers) -> Failure | None:
    """Return what went wrong in the last attempt that failed, as far as the headers tell of it."""
    history = history_of(headers)
    return Failure(history[-1].type, history[-1].message) if history else None


def history_text(history: Sequence[FailedAttempt]) -> str:
    """Return the header's value: as many of the newest attempts as fit."""
    entries = [_text(attempt) for attempt in history[-MAX_ENTRIES:]]
    while sum(len(entry.encode()) + 1 for entry in entries) + 1 > MAX_BYTES:
        del entries[0]
    return f"[{','.join(entries)}]"


def _text(attempt: FailedAttempt) -> str:
    entry = {
        "attempt": attempt.attempt,
        "at": attempt.failed_at_ms,
        "type": attempt.type,
        "message": attempt.message,
        "worker": attempt.worker,
    }
    return json.dumps(entry, ensure_ascii=False, separators=(",", ":"))


def _read(entry: Any) -> FailedAttempt | None:
    if not isinstance(entry, dict):
        return None
    attempt, at = entry.get("attempt"), entry.get("at")
    kind, message, worker = entry.get("type"), entry.get("message"), entry.get("worker")
    if not (_is_count(attempt) and _is_count(at)):
        return None
    if not (isinstance(kind, str) and isinstance(message, str) and isinstance(worker, str)):
        return None
    # Cut once more: a foreign entry may be long, and half a surrogate pair in it could not be written again.
    return FailedAttempt.of(Failure(kind, message), attempt=attempt, failed_at_ms=at, worker=worker)


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 2**63
