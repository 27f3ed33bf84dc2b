"""Wall-clock time in a zone: which moments a time of day stands for, on the days when clocks are changed too.

Pure: the only source is the time zone database, the system's or the package `tzdata`.

A time of day may come once, twice (clocks were set back) or never (they were set forward). All moments that go in and
out are in UTC, where nothing is ambiguous; Python compares two times of one zone by their wall clock, which is wrong
on exactly those days.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

from asyncq.errors import InvalidOption

__all__ = ["Change", "Reading", "change_within", "readings_of", "wall_of", "zone_of"]

_SECOND = timedelta(seconds=1)


def zone_of(name: str) -> ZoneInfo:
    """Return the time zone of an IANA name, such as `Europe/Berlin`.

    Raises:
        InvalidOption: There is no such zone.
    """
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, TypeError, OSError, AttributeError):
        raise InvalidOption(
            f"There is no time zone {name!r}. Use a name of the IANA database, such as 'Europe/Berlin' or 'UTC'."
        ) from None


def wall_of(moment: datetime, zone: tzinfo) -> datetime:
    """Return what a clock on the wall shows at this moment, as a naive `datetime`."""
    return moment.astimezone(zone).replace(tzinfo=None, fold=0)


@dataclass(frozen=True, slots=True)
class Reading:
    """When a wall clock shows a certain time.

    Attributes:
        moments: Never, once or twice, in order, in UTC.
        shift: By how much the clock was set back (positive) where it comes twice, or forward (negative) where never.
        resumes: Where it never comes: the first moment after the gap, in UTC.
    """

    moments: tuple[datetime, ...]
    shift: timedelta = timedelta(0)
    resumes: datetime | None = None


def readings_of(wall: datetime, zone: tzinfo) -> Reading:
    """Return when a clock on the wall shows this time.

    Args:
        wall: A naive `datetime`.
        zone: Where the clock hangs.
    """
    before = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
    after = wall.replace(tzinfo=zone, fold=1).astimezone(UTC)
    if before == after:
        return Reading((before,))
    if before < after:
        return Reading((before, after), after - before)
    # In a gap, fold=0 counts with the offset before the change, so it names a moment after it; fold=1 the reverse.
    return Reading((), after - before, _first_with_offset_of(before, after, zone))


@dataclass(frozen=True, slots=True)
class Change:
    """The clocks of a zone are set back.

    Attributes:
        at: The first moment of the new time, in UTC.
        back: By how much.
    """

    at: datetime
    back: timedelta


def change_within(moment: datetime, span: timedelta, zone: tzinfo) -> Change | None:
    """Return the change by which clocks are set back after `moment` and within `span`, or None.

    `span` is short enough for one change: hours, or a day.
    """
    end = moment + span
    back = _offset(moment, zone) - _offset(end, zone)
    return Change(_first_with_offset_of(end, moment, zone), back) if back > timedelta(0) else None


def _offset(moment: datetime, zone: tzinfo) -> timedelta:
    return moment.astimezone(zone).utcoffset() or timedelta(0)


def _first_with_offset_of(late: datetime, early: datetime, zone: tzinfo) -> datetime:
    """Return the first moment after `early` that has the offset of `late`: changes are on whole seconds."""
    wanted = _offset(late, zone)
    low, high = early.replace(microsecond=0), late.replace(microsecond=0)
    while high - low > _SECOND:
        middle = low + timedelta(seconds=(high - low) // _SECOND // 2)
        if _offset(middle, zone) == wanted:
            high = middle
        else:
            low = middle
    return high
