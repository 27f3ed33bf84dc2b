"""Which ticks are due: every fire time once, in time order, whatever the clock and the leaders do.

    watermark                      now - 5 s            now
        │     fire times that were     │   fire times     │
        │     missed: `skip`, `once`,  │   that are due   │   later
        │     `all`                    │                  │
    ────┴──────────────────────────────┴──────────────────┴────▶

The watermark is the whole state: what is due at or before it is dealt with, for every schedule. A successor goes on
from the one that was saved, so that a tick may be made twice, with the same id, and none is left out. It never goes
back: when the clock does, nothing is due until the clock is there again. Only when it is a day ahead, somebody's clock
was wrong, and it starts anew from now.

Pure: the time comes as an argument, in milliseconds since the epoch.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

from asyncq.schedule import Schedule, When, fire_times

__all__ = ["FIRE_TIME", "MISSED_AFTER_MS", "SCHEDULE", "Due", "Entry", "Skipped", "Tick", "Timetable"]

SCHEDULE = "asyncq-schedule"
FIRE_TIME = "asyncq-fire-time"

MISSED_AFTER_MS = 5_000
"""Fire times further back were missed. Nearer ones are late: a failover, a busy moment, a corrected clock."""

_TOO_FAR_AHEAD_MS = 24 * 3600 * 1000
_FIRST_WINDOW_MS = 60_000
_COUNTED = 100  # after a year without a leader nobody waits until a minutely schedule's misses are counted

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True, order=True)
class Tick:
    """One run of one schedule.

    Attributes:
        at_ms: Its fire time, in milliseconds since the epoch.
        schedule: The schedule's name.
    """

    at_ms: int
    schedule: str

    def id(self, app: str) -> str:
        """Return the tick's id, which is its task's: `shop.daily@2026-01-01T08:00:00.000Z`."""
        at = _moment(self.at_ms).replace(tzinfo=None).isoformat(timespec="milliseconds")
        return f"{app}.{self.schedule}@{at}Z"


@dataclass(frozen=True, slots=True)
class Entry:
    """A schedule with nothing left open.

    Attributes:
        schedule: Its `when` names its zone and its start.
        since_ms: It has no fire times up to here: it was not there yet, or paused.
    """

    schedule: Schedule
    since_ms: int


@dataclass(frozen=True, slots=True)
class Skipped:
    """Fire times that get no run.

    Attributes:
        schedule: The schedule's name.
        reason: Its `missed` policy, or its `deadline`.
        count: How many; at most 100 are counted.
    """

    schedule: str
    reason: Literal["missed", "deadline"]
    count: int


@dataclass(frozen=True, slots=True)
class Due:
    """What is to be done now.

    Attributes:
        ticks: To be published, in this order.
        skipped: What is left out, by the schedules' own rules.
        watermark_ms: Of this moment, once all ticks are out.
        before_ms: The watermark that held until now.
        restarted: The watermark was a day ahead of the clock, or more, and was set back.
    """

    ticks: tuple[Tick, ...]
    skipped: tuple[Skipped, ...]
    watermark_ms: int
    before_ms: int
    restarted: bool = False

    def watermark_after(self, published: int) -> int:
        """Return the watermark when so many of the ticks are out: the next one must not be behind it."""
        if published >= len(self.ticks):
            return self.watermark_ms
        return max(self.before_ms, self.ticks[published].at_ms - 1)


class Timetable:
    """The fire times of many schedules.

    Args:
        entries: The schedules, each name once; those that are paused are left out.
        watermark_ms: Up to where everything is dealt with.
    """

    def __init__(self, entries: Iterable[Entry], watermark_ms: int) -> None:
        self._entries = {entry.schedule.name: entry for entry in entries}
        self._watermark_ms = watermark_ms
        self._next: list[Tick] = []
        self._look_ahead()

    @property
    def watermark_ms(self) -> int:
        """Up to where everything was handed out."""
        return self._watermark_ms

    @property
    def next_ms(self) -> int | None:
        """The next fire time, in milliseconds since the epoch; None where there is none."""
        return self._next[0].at_ms if self._next else None

    def upcoming(self) -> dict[str, int]:
        """Return the next fire time of each schedule that has one, in milliseconds since the epoch."""
        return {tick.schedule: tick.at_ms for tick in self._next}

    def due(self, now_ms: int) -> Due:
        """Hand out what is due, and move the watermark on.

        Args:
            now_ms: The wall-clock time. Where it is behind the watermark, nothing is due.
        """
        before_ms = self._watermark_ms
        if restarted := before_ms - now_ms > _TOO_FAR_AHEAD_MS:
            self._watermark_ms = before_ms = now_ms
            self._entries = {  # the same clock may have dated them
                name: replace(entry, since_ms=min(entry.since_ms, now_ms)) for name, entry in self._entries.items()
            }
            self._look_ahead()
        ticks: list[Tick] = []
        skipped: list[Skipped] = []
        while self._next and self._next[0].at_ms <= now_ms:
            entry = self._entries[heapq.heappop(self._next).schedule]
            chosen, left_out = _choose(entry.schedule, max(before_ms, entry.since_ms), now_ms)
            ticks += chosen
            skipped += left_out
            self._push(entry, now_ms)
        self._watermark_ms = max(before_ms, now_ms)
        return Due(tuple(sorted(ticks)), tuple(skipped), self._watermark_ms, before_ms, restarted)

    def _look_ahead(self) -> None:
        self._next = []
        for entry in self._entries.values():
            self._push(entry, max(self._watermark_ms, entry.since_ms))

    def _push(self, entry: Entry, after_ms: int) -> None:
        at = entry.schedule.when.next_after(_moment(after_ms))
        if at is not None:
            heapq.heappush(self._next, Tick(_ms(at), entry.schedule.name))


def _choose(schedule: Schedule, after_ms: int, now_ms: int) -> tuple[list[Tick], list[Skipped]]:
    """Return the ticks of one schedule for `after_ms` < fire time <= `now_ms`, and what is left out."""
    first_on_time_ms = max(after_ms, now_ms - MISSED_AFTER_MS - 1)
    on_time = [_ms(at) for at in fire_times(schedule.when.next_after, _moment(first_on_time_ms), _moment(now_ms), None)]
    keep = {"skip": 0, "once": 0 if on_time else 1, "all": schedule.catch_up}[schedule.missed]
    late = _latest(schedule.when, after_ms, first_on_time_ms, keep)
    chosen = late + on_time
    oldest_ms = now_ms - round(schedule.deadline_s * 1000) if schedule.deadline_s is not None else 0
    in_time = [at_ms for at_ms in chosen if at_ms >= oldest_ms]
    counts: dict[Literal["missed", "deadline"], int] = {
        "missed": _count(schedule.when, after_ms, (late[0] - 1) if late else first_on_time_ms),
        "deadline": len(chosen) - len(in_time),
    }
    return (
        [Tick(at_ms, schedule.name) for at_ms in in_time],
        [Skipped(schedule.name, reason, count) for reason, count in counts.items() if count],
    )


def _latest(when: When, after_ms: int, until_ms: int, keep: int) -> list[int]:
    """Return the last `keep` fire times with `after_ms` < fire time <= `until_ms`, in order.

    A schedule can only be asked forwards: so window after window, from the end backwards, each twice as long as the one
    before. One that holds far more than is wanted is halved instead. It costs a few questions for each fire time that
    is found, however long the time since the last tick.
    """
    found: list[int] = []
    window_ms, far_more = _FIRST_WINDOW_MS, 2 * keep + 1
    while len(found) < keep and after_ms < until_ms:
        from_ms = max(after_ms, until_ms - window_ms)
        times = fire_times(when.next_after, _moment(from_ms), _moment(until_ms), far_more)
        if len(times) == far_more and until_ms - from_ms > 1:
            window_ms = (until_ms - from_ms) // 2
            continue
        found = [_ms(at) for at in times] + found
        until_ms, window_ms = from_ms, 2 * window_ms
    return found[-keep:] if keep else []


def _count(when: When, after_ms: int, until_ms: int) -> int:
    return len(fire_times(when.next_after, _moment(after_ms), _moment(until_ms), _COUNTED))


def _moment(ms: int) -> datetime:
    return _EPOCH + ms * _MILLISECOND


def _ms(moment: datetime) -> int:
    return (moment - _EPOCH) // _MILLISECOND
