"""The statuses of tasks as text for people and as JSON for programs.

Pure. Invariant: whatever a store holds can be printed: control characters as escapes, a result that is no JSON in
base64.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from asyncq.cli.text import printable
from asyncq.status import Progress, TaskStatus

__all__ = ["as_json", "as_table", "note", "shown", "took"]

_COLUMNS = ("ID", "TASK", "STATE", "ATTEMPT", "QUEUED", "TOOK", "")
_NUMBERS = {"ATTEMPT", "TOOK"}
_LONGEST_NOTE = 60


def as_json(status: TaskStatus) -> dict[str, Any]:
    """Return a status as a JSON object. What is not known is left out."""
    found: dict[str, Any] = {}
    for name, value in asdict(status).items():
        match value:
            case None | "" | False:
                continue
            case datetime():
                found[name] = value.isoformat()
            case bytes():
                found |= _result(value)
            case _:
                found[name] = value
    return found


def as_table(statuses: Sequence[TaskStatus]) -> str:
    """Return a table with a line a task."""
    rows = [_COLUMNS, *(_row(status) for status in statuses)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = [
        "  ".join(
            cell.rjust(width) if name in _NUMBERS else cell.ljust(width)
            for cell, width, name in zip(row, widths, _COLUMNS, strict=True)
        ).rstrip()
        for row in rows
    ]
    return "\n".join(lines)


def shown(status: TaskStatus) -> str:
    """Return a status whole."""
    facts: dict[str, object] = {
        "task": status.task,
        "queue": status.queue,
        "attempt": status.attempt or None,
        "worker": status.worker,
        "progress": None if status.progress is None else _progress(status.progress),
        "queued": _moment(status.queued_at),
        "due": _moment(status.due_at),
        "expires": _moment(status.not_after),
        "started": _moment(status.started_at),
        "runs again": _moment(status.retry_at),
        "finished": _moment(status.finished_at),
        "took": took(status) or None,
        "sent by task": status.parent_id,
        "root task": status.root_id,
        "reason": status.reason,
        "kept until": _moment(status.expires_at),
    }
    parts = [f"{status.id}  {status.state}", *(f"  {name}: {value}" for name, value in facts.items() if value)]
    if status.result is not None:
        parts += ["", "Result", _indented(_text(status.result))]
    if status.error is not None:
        parts += ["", "Error", _indented(status.error.traceback or f"{status.error.type}: {status.error.message}")]
    return printable("\n".join(parts))


def _row(status: TaskStatus) -> tuple[str, ...]:
    return tuple(
        printable(cell).replace("\n", " ")
        for cell in (
            status.id,
            status.task or "",
            str(status.state),
            str(status.attempt or ""),
            _moment(status.queued_at) or "",
            took(status),
            note(status),
        )
    )


def note(status: TaskStatus) -> str:
    """Return what is most worth knowing of a task, in a few words; nothing where there is nothing."""
    text = ""
    if status.error is not None:
        text = f"{status.error.type.removeprefix('builtins.')}: {status.error.message}"
    elif status.progress is not None and not status.state.final:
        text = _progress(status.progress)
    elif status.due_at is not None and not status.started_at:
        text = f"due {_moment(status.due_at)}"
    return text if len(text) <= _LONGEST_NOTE else f"{text[: _LONGEST_NOTE - 3]}..."


def _progress(progress: Progress) -> str:
    text = f"{progress.done:g}" if progress.total is None else f"{progress.done:g}/{progress.total:g}"
    return f"{text} {progress.label}" if progress.label else text


def took(status: TaskStatus) -> str:
    """Return how long a task ran, for people; nothing where it has not ended."""
    if status.started_at is None or status.finished_at is None:
        return ""
    return f"{(status.finished_at - status.started_at).total_seconds():.2f} s"


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _result(result: bytes) -> dict[str, Any]:
    try:
        return {"result": json.loads(result)}
    except (ValueError, RecursionError):
        return {"result_base64": base64.b64encode(result).decode()}


def _text(result: bytes) -> str:
    try:
        return json.dumps(json.loads(result), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        return result.decode(errors="replace")


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.rstrip().splitlines())
