"""`Cron`: fire times by the clock on the wall, in the notation of crontab.

Pure. The expression is read, and matched with the calendar, by cronsim; the days on which clocks are changed are ours:

    a time of day that comes twice     runs at the first; at both where the schedule goes through the hours: the hour
                                       field allows every hour, or the minute field begins with `*`
    a time of day that never comes     runs once, at the end of the gap, however many such times there are; not where
                                       the schedule runs in every hour, and whole hours are left out

So a daily job at 02:30 runs once on both days, and an hourly one, or `*/20`, neither skips nor doubles. Lord Howe moves
its clocks by half an hour: there a job that runs once in every hour does so in each hour that the clock shows,
shortened or lengthened. A date that a zone left out (Samoa, 30 December 2011) has no runs.

Debian's cron differs in two places, both to its users' loss: `0 */2 * * *` doubles, and `*/20 2 * * *` does not run at
all, on the days of the changes.

cronsim and not croniter: croniter runs a daily job twice when clocks are set back, brings dateutil and is untyped;
cronsim is 600 typed lines without dependencies, and reads an expression in a tenth of the time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from asyncq.errors import InvalidOption
from asyncq.wall_time import change_within, readings_of, wall_of, zone_of

__all__ = ["Cron"]

_HOUR = timedelta(hours=1)
_DAY = timedelta(days=1)

_NAMED = {
    "@YEARLY": "0 0 1 1 *",
    "@ANNUALLY": "0 0 1 1 *",
    "@MONTHLY": "0 0 1 * *",
    "@WEEKLY": "0 0 * * 0",
    "@DAILY": "0 0 * * *",
    "@MIDNIGHT": "0 0 * * *",
    "@HOURLY": "0 * * * *",
}
_ANY_TIME = datetime(2024, 1, 1)  # noqa: DTZ001 - a time on the wall
_SOONEST_YEAR, _LATEST_YEAR = 2, 9990  # room for offsets and for the days around a change

CronField = str | int | Iterable[int | str]


@dataclass(frozen=True, slots=True, init=False)
class Cron:
    """Run at the times that a crontab expression names.

    Args:
        expression: Five fields, `minute hour day-of-month month day-of-week`: numbers, `*`, lists `1,15`, ranges `1-5`,
            steps `*/10`, names `JAN` and `MON`, `L` for a month's last day, `MON#1` for its first Monday; or `@hourly`,
            `@daily`, `@weekly`, `@monthly`, `@yearly`. Where both days are restricted, either is enough. In its place
            the fields may be given by name:
        minute: 0 to 59.
        hour: 0 to 23.
        day_of_month: 1 to 31.
        month: 1 to 12, or `JAN` to `DEC`.
        day_of_week: 0 to 7, or `SUN` to `SAT`; 0 and 7 are Sunday. Each takes a number, a text as above, or a list.
        tz: The IANA name of the time zone, such as `Europe/Berlin`. Without it the app's.

    Raises:
        InvalidOption: The expression or the zone cannot be used; or a field was left out that would be `*` by cron's
            rules and is meant so by nobody, such as the minute of `Cron(hour=9)`.

    Example:
        >>> Cron("0 9 * * MON", tz="Europe/Berlin").next_after(datetime(2026, 1, 1, tzinfo=UTC))
        datetime.datetime(2026, 1, 5, 8, 0, tzinfo=datetime.timezone.utc)
        >>> Cron(hour=9, minute=0, day_of_week="MON") == Cron("0 9 * * MON")
        True
    """

    expression: str
    tz: str | None
    _every_hour: bool = field(compare=False, repr=False)
    _one_minute: bool = field(compare=False, repr=False)
    _through: bool = field(compare=False, repr=False)

    def __init__(  # noqa: PLR0913 - the five fields of cron
        self,
        expression: str | None = None,
        *,
        minute: CronField | None = None,
        hour: CronField | None = None,
        day_of_month: CronField | None = None,
        month: CronField | None = None,
        day_of_week: CronField | None = None,
        tz: str | None = None,
    ) -> None:
        fields = {
            "minute": minute,
            "hour": hour,
            "day_of_month": day_of_month,
            "month": month,
            "day_of_week": day_of_week,
        }
        if expression is None:
            expression = _text_of(fields)
        elif any(value is not None for value in fields.values()):
            raise InvalidOption("Cron(...) takes an expression or fields by name, such as minute=0, hour=9; not both.")
        text = _normalised(expression)
        walls = _read(text, expression)
        if tz is not None:
            zone_of(tz)
        put = object.__setattr__
        put(self, "expression", text)
        put(self, "tz", tz)
        put(self, "_every_hour", len(walls.hours) == 24)
        put(self, "_one_minute", len(walls.minutes) == 1)
        put(self, "_through", len(walls.hours) == 24 or text.startswith("*"))

    def __str__(self) -> str:
        """`0 9 * * MON Europe/Berlin`."""
        return self.expression if self.tz is None else f"{self.expression} {self.tz}"

    def in_zone(self, tz: str) -> Cron:
        """Return this schedule in the given zone; one that names its own stays as it is."""
        return self if self.tz is not None else Cron(self.expression, tz=tz)

    def next_after(self, moment: datetime) -> datetime | None:
        """Return the first fire time after `moment`.

        Args:
            moment: Aware.

        Returns:
            The fire time, in UTC; None where there is none within 50 years.
        """
        moment = moment.astimezone(UTC)
        if not _SOONEST_YEAR <= moment.year <= _LATEST_YEAR:
            return None
        zone = zone_of(self.tz) if self.tz is not None else zone_of("UTC")
        again = self._in_the_repeated_hours(moment, zone)
        for wall in self._walls_after(wall_of(moment, zone)):
            found = next((at for at in self._moments_of(wall, zone) if at > moment), None)
            if found is not None:
                return found if again is None else min(found, again)
        return again

    def _walls_after(self, wall: datetime) -> Iterator[datetime]:
        """Iterate the times on the wall that match, as on a clock that is never changed."""
        for found in CronSim(self.expression, wall):
            if found.year > _LATEST_YEAR:
                return
            yield found

    def _moments_of(self, wall: datetime, zone: ZoneInfo) -> tuple[datetime, ...]:
        """Return the moments of one matching time on the wall."""
        reading = readings_of(wall, zone)
        if reading.resumes is not None:
            left_out = -reading.shift
            skipped = left_out >= _DAY or (self._every_hour and left_out % _HOUR == timedelta(0))
            return () if skipped else (reading.resumes,)
        return reading.moments if self._runs_again(reading.shift) else reading.moments[:1]

    def _runs_again(self, shift: timedelta) -> bool:
        """Whether a time of day that comes twice runs twice."""
        return self._through and not (self._one_minute and shift % _HOUR != timedelta(0))

    def _in_the_repeated_hours(self, moment: datetime, zone: ZoneInfo) -> datetime | None:
        """Return the first fire time of the hours that the clock is about to show a second time, if there is one.

        `_walls_after` goes on from what the clock shows now, so it never comes back to them.
        """
        change = change_within(moment, _DAY, zone) if self._through else None
        if change is None or not self._runs_again(change.back):
            return None
        first = wall_of(change.at, zone)
        wall = next(self._walls_after(first - timedelta(seconds=1)), None)
        return change.at + (wall - first) if wall is not None and wall < first + change.back else None


def _read(text: str, given: str) -> CronSim:
    try:
        return CronSim(text, _ANY_TIME)
    except (CronSimError, AssertionError, TypeError, ValueError) as error:  # it asserts what it did not foresee
        why = str(error).lower() if isinstance(error, CronSimError) else "a field is not understood"
        raise InvalidOption(
            f"Cron({given!r}) cannot be used: {why}. Fields: minute (0-59) hour (0-23) day-of-month "
            "(1-31) month (1-12) day-of-week (0-7, Sunday is 0 and 7), such as '0 9 * * MON-FRI'."
        ) from None


def _normalised(expression: Any) -> str:
    if not isinstance(expression, str):
        raise InvalidOption(f"Cron(...) takes a text of five fields, such as '0 9 * * MON', not {expression!r}.")
    text = " ".join(expression.upper().split())
    if text.startswith("@"):
        if text not in _NAMED:
            raise InvalidOption(f"Cron({expression!r}) is not known. Known: {', '.join(_NAMED).lower()}.")
        return _NAMED[text]
    if len(text.split()) != 5:
        raise InvalidOption(
            f"Cron({expression!r}) must have five fields: minute hour day-of-month month day-of-week, such as "
            "'0 9 * * MON'. For seconds there is Every(10)."
        )
    return text


def _text_of(fields: dict[str, CronField | None]) -> str:
    if all(value is None for value in fields.values()):
        raise InvalidOption("Cron() needs an expression, such as '0 9 * * MON', or fields, such as minute=0, hour=9.")
    given = ", ".join(f"{name}={value!r}" for name, value in fields.items() if value is not None)
    dates = any(fields[name] is not None for name in ("day_of_month", "month", "day_of_week"))
    missing = "minute" if fields["minute"] is None else "hour" if fields["hour"] is None and dates else None
    if missing is not None:
        raise InvalidOption(
            f"Cron({given}) does not say its {missing}, which cron would take for every {missing}. Say {missing}=0, or "
            f"{missing}='*' where that is meant."
        )
    return " ".join("*" if value is None else _field_text(name, value) for name, value in fields.items())


def _field_text(name: str, value: CronField) -> str:
    parts = [value] if isinstance(value, (str, int)) else list(value) if isinstance(value, Iterable) else [value]
    if not parts or not all(isinstance(part, (str, int)) and not isinstance(part, bool) for part in parts):
        raise InvalidOption(f"Cron({name}=...) takes a number, a text or a list of them, not {value!r}.")
    return ",".join("".join(str(part).split()) for part in parts)
