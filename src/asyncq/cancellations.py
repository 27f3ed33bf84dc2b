"""Cancelling on the wire: entries of the journal `cancellations`, which every worker follows.

    {"cancel": ["0197…", "0198…"], "at": 1750000000123}      {"undo": ["0197…"], "at": 1750000000456}

Pure values. The later entry for an id holds, by the journal's order and nobody's clock; `at`, in milliseconds since the
epoch, only says when an entry is so old that workers forget it.

Invariant: what is no such entry is read as None: a stranger's note must not stop a worker.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from asyncq.errors import InvalidOption

__all__ = ["JOURNAL", "Cancellation", "checked_ids", "entries_of"]

JOURNAL = "cancellations"
"""The journal's name."""

_IDS_AN_ENTRY = 200
_LONGEST_ID = 255


@dataclass(frozen=True, slots=True)
class Cancellation:
    """One entry.

    Attributes:
        ids: The tasks that it is about.
        at_ms: When it was asked for, in milliseconds since the epoch.
        undone: Whether it takes an earlier cancellation back.
    """

    ids: tuple[str, ...]
    at_ms: int
    undone: bool = False

    def to_json(self) -> bytes:
        """Return the entry's body."""
        return json.dumps({"undo" if self.undone else "cancel": self.ids, "at": self.at_ms}).encode()

    @classmethod
    def read(cls, body: bytes) -> Cancellation | None:
        """Return what an entry says; None where it is none of ours."""
        try:
            value = json.loads(body)
            undone = "undo" in value
            ids, at_ms = value["undo" if undone else "cancel"], value["at"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        if not isinstance(ids, list) or not all(isinstance(task_id, str) for task_id in ids) or type(at_ms) is not int:
            return None
        return cls(tuple(ids), at_ms, undone)


def entries_of(ids: Sequence[str], at_ms: int, *, undone: bool = False) -> Iterator[Cancellation]:
    """Return the entries that are appended for so many ids."""
    for begin in range(0, len(ids), _IDS_AN_ENTRY):
        yield Cancellation(tuple(ids[begin : begin + _IDS_AN_ENTRY]), at_ms, undone)


def checked_ids(ids: Iterable[str]) -> tuple[str, ...]:
    """Return the ids, each once, in order.

    Raises:
        InvalidOption: One cannot be the id of a task.
    """
    for task_id in ids:
        if not isinstance(task_id, str) or not 1 <= len(task_id.encode("utf-8", "replace")) <= _LONGEST_ID:
            raise InvalidOption(
                f"A task's id is wanted here, such as handle.id: a string of 1 to {_LONGEST_ID} bytes, not {task_id!r}."
            )
    return tuple(dict.fromkeys(ids))
