"""Paused queues on the wire: entries of the journal `cancellations`, which every worker follows.

    {"pause": "mail", "id": "0197…", "at": 1750000000123}       a repetition says "again": when it was repeated
    {"resume": "mail", "ends": ["0197…"], "at": 1750000000456}

A queue is paused while one of its pauses has not been ended. A resume names those that it ends, so neither clocks nor
repetitions count: the journal forgets what is old, and so workers repeat the entry of a pause that goes on; one that is
late meets an id that has ended.

Invariant: pure. What is paused is the same whether the entries are read once, or from the beginning once more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["PauseNote", "Pauses"]

_ENDED_KEPT = 1000


@dataclass(frozen=True, slots=True)
class PauseNote:
    """One entry.

    Attributes:
        queue: The queue that it is about.
        at_ms: When somebody asked for it, in milliseconds since the epoch.
        id: Of the pause; None where pauses are ended.
        ends: The ids of the pauses that are ended.
        again_ms: When the entry of a pause was repeated, in milliseconds since the epoch; None for the first one.
    """

    queue: str
    at_ms: int
    id: str | None = None
    ends: tuple[str, ...] = ()
    again_ms: int | None = None

    @property
    def noted_ms(self) -> int:
        """When it was written, in milliseconds since the epoch: from then on its age counts."""
        return self.at_ms if self.again_ms is None else self.again_ms

    def to_json(self) -> bytes:
        """Return the entry's body."""
        if self.id is None:
            return json.dumps({"resume": self.queue, "ends": self.ends, "at": self.at_ms}).encode()
        again = {} if self.again_ms is None else {"again": self.again_ms}
        return json.dumps({"pause": self.queue, "id": self.id, "at": self.at_ms, **again}).encode()

    @classmethod
    def read(cls, body: bytes) -> PauseNote | None:
        """Return what an entry says; None where it is none of these."""
        try:
            value = json.loads(body)
            pauses = "pause" in value
            queue, at_ms = value["pause" if pauses else "resume"], value["at"]
            pause_id, ends = (value["id"], []) if pauses else (None, value["ends"])
            again_ms = value.get("again") if pauses else None
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        if not isinstance(queue, str) or type(at_ms) is not int or (pauses and not isinstance(pause_id, str)):
            return None
        if not isinstance(ends, list) or not all(isinstance(ended, str) for ended in ends):
            return None
        return cls(queue, at_ms, pause_id, tuple(ends), again_ms if type(again_ms) is int else None)


class Pauses:
    """The queues that are paused, as far as the entries say that were taken."""

    def __init__(self) -> None:
        self._open: dict[str, dict[str, PauseNote]] = {}  # by queue and id: somebody may pause a paused queue
        self._ended: dict[str, None] = {}

    @property
    def current(self) -> dict[str, PauseNote]:
        """The paused queues, each with the entry that came first."""
        return {queue: next(iter(notes.values())) for queue, notes in self._open.items()}

    def of(self, queue: str) -> Mapping[str, PauseNote]:
        """Return the pauses of a queue that go on, by id."""
        return self._open.get(queue, {})

    def take(self, note: PauseNote) -> None:
        """Take an entry."""
        if note.id is not None:
            if note.id not in self._ended:
                self._open.setdefault(note.queue, {}).setdefault(note.id, note)
            return
        notes = self._open.get(note.queue, {})
        for ended in note.ends:
            notes.pop(ended, None)
            self._ended[ended] = None
        if not notes:
            self._open.pop(note.queue, None)
        while len(self._ended) > _ENDED_KEPT:
            del self._ended[next(iter(self._ended))]
