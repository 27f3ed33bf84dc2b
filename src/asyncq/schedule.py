"""When periodic work is due: `Every`, `At` and, in `cron.py`, `Cron`; and what a schedule is.

Pure values, compared by value. Each answers one question, `next_after(moment)`: the fire times of a schedule are what
repeated asking gives, the same in every process and after every restart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, get_args

from asyncq.cron import Cron
from asyncq.errors import InvalidOption
from asyncq.signals import seconds_of

__all__ = ["At", "Every", "Missed", "Schedule", "When", "check_schedule_name", "fire_times", "resolved", "when_of"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_SHORTEST_PERIOD_S = 0.1
_LONGEST_PERIOD_S = 100 * 366 * 86400.0
_LONGEST_NAME = 60

Missed = Literal["skip", "once", "all"]
"""What becomes of fire times that passed while nobody led."""


@dataclass(frozen=True, slots=True)
class Every:
    """Run again and again after the same time.

    Args:
        period: Seconds, or a `timedelta`: 0.1 s or more. It is kept in whole milliseconds.
        aligned: Run at the multiples of the period since 1970-01-01 00:00 UTC, so that `Every(3600)` runs at each full
            hour of UTC. False: count from `start`.
        start: The first fire time, an aware `datetime`; the next ones follow at the period. With `aligned=False` and
            without it, the scheduler counts from when it first heard of the schedule.

    Raises:
        InvalidOption: A value cannot be used.

    Example:
        >>> Every(60).next_after(datetime(2026, 1, 1, 12, 0, 30, tzinfo=UTC))
        datetime.datetime(2026, 1, 1, 12, 1, tzinfo=datetime.timezone.utc)
    """

    period: float | timedelta
    aligned: bool = True
    start: datetime | None = None

    def __post_init__(self) -> None:
        seconds = round(seconds_of(self.period, "Every(...)"), 3)
        if not _SHORTEST_PERIOD_S <= seconds <= _LONGEST_PERIOD_S:
            raise InvalidOption(f"Every(...) takes {_SHORTEST_PERIOD_S:g} s to 100 years, not {seconds:g} s.")
        object.__setattr__(self, "period", seconds)
        if self.start is not None:
            object.__setattr__(self, "start", _aware(self.start, "Every(start=...)"))
            object.__setattr__(self, "aligned", False)

    def __str__(self) -> str:
        """`every 60 s`, with the moment that it counts from where it is not aligned."""
        counted = "" if self.aligned else " from its start" if self.start is None else f" from {self.start.isoformat()}"
        return f"every {self.period:g} s{counted}"

    @property
    def period_s(self) -> float:
        """The period, in seconds."""
        return seconds_of(self.period, "Every(...)")

    def next_after(self, moment: datetime) -> datetime | None:
        """Return the first fire time after `moment`, in UTC; None where the calendar ends."""
        step = round(self.period_s * 1000)
        origin = _EPOCH if self.aligned else self.start if self.start is not None else moment
        if moment < origin:
            return origin
        try:
            return origin.astimezone(UTC) + ((moment - origin) // _MILLISECOND // step + 1) * step * _MILLISECOND
        except OverflowError:
            return None


@dataclass(frozen=True, slots=True)
class At:
    """Run once.

    Args:
        moment: When: an aware `datetime`.

    Raises:
        InvalidOption: It has no time zone.
    """

    moment: datetime

    def __post_init__(self) -> None:
        object.__setattr__(self, "moment", _aware(self.moment, "At(...)"))

    def __str__(self) -> str:
        """`at 2026-01-01T12:00:00+00:00`."""
        return f"at {self.moment.isoformat()}"

    def next_after(self, moment: datetime) -> datetime | None:
        """Return the moment, in UTC, where it is after `moment`; else None."""
        return self.moment if moment < self.moment else None


When = Every | Cron | At


def when_of(when: Any) -> When:
    """Return the checked timing of a schedule: a plain number or a `timedelta` means `Every`.

    Raises:
        InvalidOption: It is neither.
    """
    if isinstance(when, Every | Cron | At):
        return when
    if isinstance(when, (int, float, timedelta)) and not isinstance(when, bool):
        return Every(when)
    if isinstance(when, str):
        raise InvalidOption(f"A schedule takes Cron({when!r}), not the text {when!r} alone.")
    raise InvalidOption(f"A schedule takes seconds, a timedelta, Every, Cron or At, not {when!r}.")


def resolved(when: When, tz: str, first_seen: datetime) -> When:
    """Return the timing with nothing left open.

    Args:
        when: As it was declared.
        tz: The zone of a `Cron` that names none.
        first_seen: Where `Every(..., aligned=False)` counts from.
    """
    if isinstance(when, Cron):
        return when.in_zone(tz)
    if isinstance(when, Every) and not when.aligned and when.start is None:
        return Every(when.period, aligned=False, start=first_seen)
    return when


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A name and its timing.

    Args:
        name: Letters, digits, `.`, `_`, `-`; it is part of the ids of the tasks that it sends.
        when: `Every`, `Cron` or `At`; a number or a `timedelta` means `Every`.
        missed: What becomes of fire times that passed more than 5 seconds ago, because nobody led: `skip`, one run
            for all of them (`once`), or a run for each (`all`).
        catch_up: With `all`: at most so many, the latest ones.
        deadline: A run that would be sent later than this is skipped, in seconds or as a `timedelta`; None: never.

    Raises:
        InvalidOption: A value cannot be used.
    """

    name: str
    when: When
    missed: Missed = "once"
    catch_up: int = 100
    deadline: float | timedelta | None = None

    def __post_init__(self) -> None:
        check_schedule_name(self.name)
        object.__setattr__(self, "when", when_of(self.when))
        where = f"The schedule {self.name!r}"
        if self.missed not in get_args(Missed):
            raise InvalidOption(f"{where}: missed= takes 'skip', 'once' or 'all', not {self.missed!r}.")
        if isinstance(self.catch_up, bool) or not isinstance(self.catch_up, int) or not 1 <= self.catch_up <= 10_000:
            raise InvalidOption(f"{where}: catch_up= takes 1 to 10,000 runs, not {self.catch_up!r}.")
        if self.deadline is not None:
            seconds = seconds_of(self.deadline, f"{where}: deadline=")
            if seconds == 0:
                raise InvalidOption(f"{where}: deadline= must be more than zero: every run is a little late.")
            object.__setattr__(self, "deadline", seconds)

    @property
    def deadline_s(self) -> float | None:
        """The deadline, in seconds."""
        return None if self.deadline is None else seconds_of(self.deadline, "deadline=")


def check_schedule_name(name: Any) -> None:
    """Raise where a schedule cannot have this name.

    Raises:
        InvalidOption: The message says what is wanted.
    """
    if not isinstance(name, str) or not 1 <= len(name) <= _LONGEST_NAME or set(name) - _NAME_CHARACTERS:
        raise InvalidOption(
            f"A schedule's name has 1 to {_LONGEST_NAME} letters, digits, '.', '_' or '-', which {name!r} has not."
        )


_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def fire_times(
    next_after: Callable[[datetime], datetime | None], after: datetime, until: datetime, limit: int | None
) -> list[datetime]:
    """Return the first `limit` fire times that are later than `after` and no later than `until`; None: all of them."""
    found: list[datetime] = []
    at = next_after(after)
    while at is not None and at <= until and (limit is None or len(found) < limit):
        found.append(at)
        at = next_after(at)
    return found


def _aware(moment: Any, what: str) -> datetime:
    if not isinstance(moment, datetime) or moment.utcoffset() is None:
        raise InvalidOption(
            f"{what} takes a datetime with a time zone, such as datetime(2026, 1, 1, 12, tzinfo=UTC), not {moment!r}."
        )
    try:
        utc: datetime = moment.astimezone(UTC)
        return utc + timedelta(microseconds=-utc.microsecond % 1000)  # whole milliseconds, and never early
    except OverflowError:
        raise InvalidOption(f"{what} takes a moment within the calendar in UTC, which {moment!r} is not.") from None
