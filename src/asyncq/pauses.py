"""Paused queues on the wire: entries of the journal `cancellations`, which every worker follows.

    {"pause": "mail", "id": "0197…", "at": 1750000000123}      {"resume": "mail", "at": 1750000000456}

The journal forgets what is old, so workers repeat the entry of a pause that goes on: the same id, the same time. A
repetition that meets the resume on its way must not pause the queue again: hence the id.

Invariant: pure. Which queues are paused follows from the entries and their order alone, read once or several times.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

__all__ = ["PauseNote", "Pauses"]

_ENDED_KEPT = 1000


@dataclass(frozen=True, slots=True)
class PauseNote:
    """One entry.

    Attributes:
        queue: The queue that it is about.
        at_ms: When somebody asked for it, in milliseconds since the epoch.
        id: Of the pause; None where the queue is resumed.
    """

    queue: str
    at_ms: int
    id: str | None = None

    def to_json(self) -> bytes:
        """Return the entry's body."""
        if self.id is None:
            return json.dumps({"resume": self.queue, "at": self.at_ms}).encode()
        return json.dumps({"pause": self.queue, "id": self.id, "at": self.at_ms}).encode()

    @classmethod
    def read(cls, body: bytes) -> PauseNote | None:
        """Return what an entry says; None where it is none of these."""
        try:
            value = json.loads(body)
            pauses = "pause" in value
            queue, at_ms = value["pause" if pauses else "resume"], value["at"]
            pause_id = value["id"] if pauses else None
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        if not isinstance(queue, str) or type(at_ms) is not int or (pauses and not isinstance(pause_id, str)):
            return None
        return cls(queue, at_ms, pause_id)


class Pauses:
    """The queues that are paused, as far as the entries say that were taken.

    Attributes:
        current: The pauses that go on, by queue.
    """

    def __init__(self) -> None:
        self.current: dict[str, PauseNote] = {}
        self._ids: dict[str, set[str]] = {}  # of the pauses that go on: somebody may pause a paused queue
        self._ended: dict[str, None] = {}
        self._resumed_ms: dict[str, int] = {}

    def take(self, note: PauseNote) -> None:
        """Take an entry."""
        if note.id is None:
            self._resumed_ms[note.queue] = note.at_ms
            self.current.pop(note.queue, None)
            self._end(self._ids.pop(note.queue, set()))
        elif note.id not in self._ended and not self._is_old(note):
            self.current.setdefault(note.queue, note)
            self._ids.setdefault(note.queue, set()).add(note.id)

    def _is_old(self, note: PauseNote) -> bool:
        """Tell whether it repeats a pause whose own entry is forgotten, and whose resume is not."""
        return note.queue not in self.current and note.at_ms < self._resumed_ms.get(note.queue, 0)

    def _end(self, ids: set[str]) -> None:
        self._ended.update(dict.fromkeys(ids))
        while len(self._ended) > _ENDED_KEPT:
            del self._ended[next(iter(self._ended))]
