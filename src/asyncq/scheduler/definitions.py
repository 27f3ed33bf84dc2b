"""What a leader knows of its schedules beside their code: since when each is there, whether it is paused, its last run.

Kept in the leader's states, so that it outlives leaders and deployments. Pure.

    unknown to the record       it is new: its first fire time is after now
    other timing than recorded  its fire times count from the watermark: what the old timing had is dealt with
    recorded, not in the code   removed: it stops, and is forgotten; but not its pause, for with two versions of the
                                code about, or one that is rolled back, the next leader may have it again
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from asyncq.cron import Cron
from asyncq.schedule import Schedule, resolved
from asyncq.ticks import Entry

__all__ = ["Definition", "Definitions"]


@dataclass(frozen=True, slots=True)
class Definition:
    """What is kept of one schedule.

    Attributes:
        when: Its timing, in words: another text is another timing.
        first_ms: When it was first heard of, in milliseconds since the epoch.
        since_ms: It has no fire times up to here.
        paused: Whether it sends nothing.
    """

    when: str
    first_ms: int
    since_ms: int
    paused: bool = False


class Definitions:
    """The definitions of one app's schedules.

    Args:
        schedules: By name, as the code declares them.
        tz: The zone of a `Cron` that names none.
        kept: What the leader before has saved, as JSON; None where there was none.
        now_ms: The time, in milliseconds since the epoch.
        watermark_ms: Up to where everything is dealt with.
    """

    def __init__(
        self, schedules: Mapping[str, Schedule], tz: str, kept: bytes | None, *, now_ms: int, watermark_ms: int
    ) -> None:
        self._schedules = schedules
        self._tz = tz
        before = _read(kept)
        self._kept: dict[str, Definition] = {}
        for name, schedule in schedules.items():
            when = str(schedule.when.in_zone(tz) if isinstance(schedule.when, Cron) else schedule.when)
            old = before.get(name)
            if old is None:
                self._kept[name] = Definition(when, now_ms, now_ms)
            elif old.when != when:
                since_ms = max(old.since_ms, min(watermark_ms, now_ms))
                self._kept[name] = replace(old, when=when, first_ms=now_ms, since_ms=since_ms)
            else:
                self._kept[name] = old
        self._elsewhere = {name: old for name, old in before.items() if old.paused and name not in schedules}
        self.removed = sorted(before.keys() - schedules.keys() - self._elsewhere.keys())

    def __getitem__(self, name: str) -> Definition:
        return self._kept[name]

    def __contains__(self, name: object) -> bool:
        return name in self._kept

    def entries(self) -> list[Entry]:
        """Return what is watched: all that is not paused."""
        found = []
        for name, schedule in self._schedules.items():
            kept = self._kept[name]
            if not kept.paused:
                when = resolved(schedule.when, self._tz, _moment(kept.first_ms))
                found.append(Entry(replace(schedule, when=when), kept.since_ms))
        return found

    def pause(self, name: str) -> None:
        """Let a schedule send nothing until it is resumed."""
        self._kept[name] = replace(self._kept[name], paused=True)

    def resume(self, name: str, now_ms: int) -> None:
        """Let it send again, from its next fire time on: what fell into the pause is not caught up."""
        if self._kept[name].paused:
            self._kept[name] = replace(self._kept[name], paused=False, since_ms=now_ms)

    def to_json(self) -> bytes:
        """Return what is to be kept."""
        known = {**self._kept, **self._elsewhere}
        return json.dumps({name: asdict(kept) for name, kept in sorted(known.items())}).encode()


def _read(kept: bytes | None) -> dict[str, Definition]:
    """Read what was saved; what cannot be read is as if it was not there, and its schedules are new."""
    try:
        items: Any = json.loads(kept or b"{}")
        return {
            str(name): Definition(
                str(item["when"]), int(item["first_ms"]), int(item["since_ms"]), paused=bool(item["paused"])
            )
            for name, item in items.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}


def _moment(ms: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
