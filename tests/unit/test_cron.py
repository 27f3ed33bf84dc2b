"""Fire times of `Cron`: the days on which clocks are changed by hand, many years against two other implementations."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter

from asyncq.cron import Cron
from asyncq.errors import InvalidOption
from asyncq.schedule import fire_times

MINUTE = timedelta(minutes=1)


def day_of(expression: str, tz: str, date: str) -> list[str]:
    """The fire times of one local date, as the wall and the offset show them."""
    zone = ZoneInfo(tz)
    start = datetime.fromisoformat(date).replace(tzinfo=zone).astimezone(UTC)
    found = fire_times(Cron(expression, tz=tz).next_after, start - MINUTE, start + timedelta(hours=26), None)
    local = [at.astimezone(zone) for at in found]
    return [f"{at:%H:%M}{at.isoformat()[19:]}" for at in local if at.date().isoformat() == date]


BERLIN, NEW_YORK, LORD_HOWE, MOSCOW = "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Europe/Moscow"

BY_HAND = [
    # A daily job in the hour that is left out, or repeated: once.
    (BERLIN, "2026-03-29", "30 2 * * *", ["03:00+02:00"]),
    (BERLIN, "2026-03-30", "30 2 * * *", ["02:30+02:00"]),
    (BERLIN, "2026-10-25", "30 2 * * *", ["02:30+02:00"]),
    (BERLIN, "2026-10-26", "30 2 * * *", ["02:30+01:00"]),
    (NEW_YORK, "2026-03-08", "30 2 * * *", ["03:00-04:00"]),
    (NEW_YORK, "2026-11-01", "30 1 * * *", ["01:30-04:00"]),
    (LORD_HOWE, "2026-10-04", "15 2 * * *", ["02:30+11:00"]),
    (LORD_HOWE, "2026-10-04", "30 2 * * *", ["02:30+11:00"]),
    (LORD_HOWE, "2026-04-05", "45 1 * * *", ["01:45+11:00"]),
    # Moscow: summer time until 2011, then 'summer' all year, then 'winter' all year; and the odd year 1991.
    (MOSCOW, "2010-03-28", "30 2 * * *", ["03:00+04:00"]),
    (MOSCOW, "2010-10-31", "30 2 * * *", ["02:30+04:00"]),
    (MOSCOW, "2011-03-27", "30 2 * * *", ["03:00+04:00"]),
    (MOSCOW, "2011-10-30", "30 2 * * *", ["02:30+04:00"]),
    (MOSCOW, "2014-10-26", "30 1 * * *", ["01:30+04:00"]),
    (MOSCOW, "2014-10-26", "30 2 * * *", ["02:30+03:00"]),
    (MOSCOW, "2026-03-29", "30 2 * * *", ["02:30+03:00"]),
    (MOSCOW, "1991-03-31", "30 2 * * *", ["02:30+03:00"]),
    (MOSCOW, "1991-09-29", "30 2 * * *", ["02:30+03:00"]),
    (MOSCOW, "1992-01-19", "30 2 * * *", ["03:00+03:00"]),
    # Clocks that are not changed.
    ("Asia/Kolkata", "2026-03-29", "30 2 * * *", ["02:30+05:30"]),
    ("UTC", "2026-03-29", "30 2 * * *", ["02:30+00:00"]),
    # Hourly: each hour of the day, be they 23, 24 or 25; with half an hour, each hour that the clock shows.
    (BERLIN, "2026-03-29", "0 0-3 * * *", ["00:00+01:00", "01:00+01:00", "03:00+02:00"]),
    (LORD_HOWE, "2026-10-04", "0 0-3 * * *", ["00:00+10:30", "01:00+10:30", "02:30+11:00", "03:00+11:00"]),
    # Several runs in the hour that is left out: one, at its end.
    (BERLIN, "2026-03-29", "*/20 2 * * *", ["03:00+02:00"]),
    (BERLIN, "2026-03-29", "0,30 2,3 * * *", ["03:00+02:00", "03:30+02:00"]),
    (BERLIN, "2026-03-29", "* 2 * * *", ["03:00+02:00"]),
    # Through the hours: goes on where the hour is repeated. At certain times: does not.
    (BERLIN, "2026-10-25", "*/30 2 * * *", ["02:00+02:00", "02:30+02:00", "02:00+01:00", "02:30+01:00"]),
    (BERLIN, "2026-10-25", "0,30 2 * * *", ["02:00+02:00", "02:30+02:00"]),
    # Every second hour: not twice at two o'clock, and not without it.
    (BERLIN, "2026-10-25", "0 0-6/2 * * *", ["00:00+02:00", "02:00+02:00", "04:00+01:00", "06:00+01:00"]),
    (BERLIN, "2026-03-29", "0 0-6/2 * * *", ["00:00+01:00", "03:00+02:00", "04:00+02:00", "06:00+02:00"]),
    # A date that was left out.
    ("Pacific/Apia", "2011-12-29", "30 8 * * *", ["08:30-10:00"]),
    ("Pacific/Apia", "2011-12-31", "30 8 * * *", ["08:30+14:00"]),
]


@pytest.mark.parametrize(("tz", "date", "expression", "expected"), BY_HAND)
def test_the_days_of_the_changes_go_as_expected(tz, date, expression, expected):
    """Written by hand, with the offsets that the wall had."""
    assert day_of(expression, tz, date) == expected


@pytest.mark.parametrize(
    ("tz", "date", "hours"),
    [
        (BERLIN, "2026-03-29", 23),
        (BERLIN, "2026-10-25", 25),
        (NEW_YORK, "2026-03-08", 23),
        (NEW_YORK, "2026-11-01", 25),
        (MOSCOW, "2011-03-27", 23),
        (MOSCOW, "2014-10-26", 25),
    ],
)
def test_hourly_and_more_frequent_jobs_neither_skip_nor_double(tz, date, hours):
    """On a day of 23 or 25 hours all intervals are the same, across its borders too."""
    start = datetime.fromisoformat(date).replace(tzinfo=ZoneInfo(tz)).astimezone(UTC) - timedelta(hours=3)
    end = start + timedelta(hours=hours + 6)
    for expression, minutes in [("0 * * * *", 60), ("17 * * * *", 60), ("*/20 * * * *", 20), ("* * * * *", 1)]:
        found = fire_times(Cron(expression, tz=tz).next_after, start - MINUTE, end - MINUTE, None)
        assert len(found) == (hours + 6) * 60 // minutes
        assert {b - a for a, b in pairwise(found)} == {timedelta(minutes=minutes)}


def test_half_an_hour_makes_neither_a_second_run_in_an_hour_nor_an_hour_without_one():
    """Lord Howe: 24 hours on the clock, one of them 30 or 90 minutes long."""
    hours = [f"{hour:02}" for hour in range(24)]
    for day in ("2026-10-04", "2026-04-05"):
        for minute in (0, 15, 30, 45):
            assert [at[:2] for at in day_of(f"{minute} * * * *", LORD_HOWE, day)] == hours
        for step in (1, 5, 10, 15, 20, 30):
            zone = ZoneInfo(LORD_HOWE)
            start = datetime.fromisoformat(day).replace(tzinfo=zone).astimezone(UTC)
            found = fire_times(
                Cron(f"*/{step} * * * *", tz=LORD_HOWE).next_after, start, start + timedelta(hours=6), None
            )
            intervals = {(b - a) // MINUTE for a, b in pairwise(found)}
            assert max(intervals) <= max(step, 30 if step == 20 else 0)


# --- the independent implementation: walk the minutes, look at the wall


def field(text: str, low: int, high: int) -> set[int]:
    """Read one field of cron: numbers, `*`, lists, ranges and steps."""
    found: set[int] = set()
    for part in text.split(","):
        body, _, step = part.partition("/")
        first, _, last = ("*", "", "") if body == "*" else body.partition("-")
        bounds = (low, high) if first == "*" else (int(first), int(last or first))
        found |= set(range(bounds[0], bounds[1] + 1, int(step or 1)))
    return found


class Walk:
    """Fire times by looking at the wall once a minute."""

    def __init__(self, expression: str) -> None:
        texts = expression.split()
        self.minutes, self.hours = field(texts[0], 0, 59), field(texts[1], 0, 23)
        self.days, self.months = field(texts[2], 1, 31), field(texts[3], 1, 12)
        self.weekdays = {day % 7 for day in field(texts[4], 0, 7)}
        self.either = not texts[2].startswith("*") and not texts[4].startswith("*")
        self.every_hour = len(self.hours) == 24
        self.goes_on = self.every_hour or texts[0].startswith("*")

    def matches(self, wall: datetime) -> bool:
        if wall.minute not in self.minutes or wall.hour not in self.hours or wall.month not in self.months:
            return False
        by_date, by_weekday = wall.day in self.days, wall.isoweekday() % 7 in self.weekdays
        return (by_date or by_weekday) if self.either else (by_date and by_weekday)

    def fires(self, minutes: list[tuple[datetime, datetime]]) -> Iterator[datetime]:
        """`minutes`: one moment after the other, and what the wall showed; the first is only looked back to."""
        latest = previous = minutes[0][1]
        back = 0
        for moment, wall in minutes[1:]:
            jumped = (wall - previous) // MINUTE - 1
            fires = self.matches(wall)
            if jumped > 0 and not (self.every_hour and jumped % 60 == 0):
                fires = fires or any(self.matches(previous + (n + 1) * MINUTE) for n in range(jumped))
            if jumped < 0:
                back = -jumped
            if wall <= latest:
                fires = fires and self.goes_on and (back % 60 == 0 or len(self.minutes) > 1)
            if fires:
                yield moment
            latest, previous = max(latest, wall), wall


EXPRESSIONS = [
    "30 2 * * *",
    "0 * * * *",
    "30 * * * *",
    "*/20 * * * *",
    "*/7 1-3 * * *",
    "15,45 */2 * * *",
    "0 0 1,15 * 0",
    "59 1-23/3 * 3,10 *",
    "5 2 * * 0",
]
# Moscow: 60 until 2010, among them three in 1992 and one in 1991; then 2011 and 2014.
CHANGES = {MOSCOW: 62, BERLIN: 92, NEW_YORK: 92, LORD_HOWE: 92, "Asia/Kolkata": 0, "UTC": 0}


def changes_of(tz: str, first: int, last: int) -> list[datetime]:
    """The quarters of an hour at which the offset of the zone changes."""
    zone = ZoneInfo(tz)

    def offset(at: datetime) -> timedelta:
        return at.astimezone(zone).utcoffset()

    def steps(start: datetime, end: datetime, step: timedelta) -> list[datetime]:
        times = [start + n * step for n in range((end - start) // step)]
        return [at for at in times if offset(at) != offset(at + step)]

    days = steps(datetime(first, 1, 1, tzinfo=UTC), datetime(last + 1, 1, 1, tzinfo=UTC), timedelta(days=1))
    quarter = timedelta(minutes=15)
    return [at + quarter for day in days for at in steps(day, day + timedelta(days=1), quarter)]


@pytest.mark.parametrize("tz", CHANGES)
def test_all_changes_of_46_years_agree_with_a_walk_by_the_minute(tz):
    """Every fire time within five hours of every change from 1981 to 2026."""
    changes = changes_of(tz, 1981, 2026)
    assert len(changes) == CHANGES[tz]
    for change in changes or [datetime(year, 3, 29, 1, tzinfo=UTC) for year in range(1981, 2027, 5)]:
        moments = [change + n * MINUTE for n in range(-301, 300)]
        walls = [(at, at.astimezone(ZoneInfo(tz)).replace(tzinfo=None, fold=0)) for at in moments]
        for expression in EXPRESSIONS:
            expected = list(Walk(expression).fires(walls))
            found = fire_times(Cron(expression, tz=tz).next_after, moments[0], moments[-1], None)
            assert found == expected, (expression, change)


@pytest.mark.parametrize("tz", CHANGES)
def test_a_daily_job_runs_once_on_each_date_of_many_years(tz):
    """At its time on the wall, and where the wall does not show it, when the gap ends."""
    zone, at = ZoneInfo(tz), datetime(2008, 12, 31, 12, tzinfo=UTC)
    cron, expected = Cron("30 2 * * *", tz=tz), date(2009, 1, 1)
    odd = 0
    while expected.year < 2028:
        at = cron.next_after(at)
        local = at.astimezone(zone)
        assert local.date() == expected
        assert local.fold == 0
        if f"{local:%H:%M}" != "02:30":
            assert f"{local:%H:%M}" == "03:00"
            odd += 1
        expected += timedelta(days=1)
    assert odd == {MOSCOW: 3, BERLIN: 19, NEW_YORK: 19}.get(tz, 0)


@pytest.mark.parametrize(
    "expression",
    [
        "0 9 * * MON-FRI",
        "*/15 8-18/2 * * 1,3,5",
        "0 0 L * *",
        "30 6 29 FEB *",
        "0 0 13 * FRI",
        "5,10-20/5,50 0 1 JAN,JUL *",
        "0 12 * * MON#1",
        "0 12 * * 7",
        "0 22 * * L5",
    ],
)
def test_the_calendar_agrees_with_another_library(expression):
    """Names, ranges, steps, lists, both kinds of days, last and n-th days; in UTC, where no clock is changed."""
    start = datetime(2023, 11, 5, 7, 31, tzinfo=UTC)
    other = croniter(expression, start)
    ours = expression.replace("L5", "5L")  # croniter has the letter in front
    found = fire_times(Cron(ours).next_after, start, start + timedelta(days=4000), 200)
    assert found == [other.get_next(datetime) for _ in found]
    assert len(found) > 2


# --- the value


def test_the_fields_by_name_make_the_same_value_as_the_expression():
    """Numbers, texts and lists; `@daily` and its relatives; the space between does not matter."""
    assert Cron(hour=9, minute=0, day_of_week=1) == Cron("0 9 * * 1") == Cron(" 0  9 * * 1 ")
    assert Cron(minute=[0, 30], hour="8-18/2", month="jan") == Cron("0,30 8-18/2 * JAN *")
    assert Cron(minute="*/20").expression == "*/20 * * * *"
    assert Cron("@daily") == Cron("0 0 * * *") == Cron("@midnight")
    assert (Cron("@hourly"), Cron("@weekly")) == (Cron("0 * * * *"), Cron("0 0 * * 0"))
    assert (Cron("@monthly"), Cron("@yearly")) == (Cron("0 0 1 * *"), Cron("0 0 1 1 *"))
    assert len({Cron("0 9 * * *"), Cron(hour=9, minute=0), Cron("0 9 * * *", tz="UTC")}) == 2
    assert str(Cron("0 9 * * mon", tz=BERLIN)) == "0 9 * * MON Europe/Berlin"


def test_a_zone_of_its_own_stays_and_none_takes_the_apps():
    """Without any zone it is UTC."""
    assert Cron("0 9 * * *").in_zone(BERLIN) == Cron("0 9 * * *", tz=BERLIN)
    assert Cron("0 9 * * *", tz=MOSCOW).in_zone(BERLIN).tz == MOSCOW
    assert Cron("0 9 * * *").next_after(datetime(2026, 1, 1, tzinfo=UTC)) == datetime(2026, 1, 1, 9, tzinfo=UTC)


def test_the_next_fire_time_is_later_than_the_moment_to_the_microsecond():
    """The moment itself does not count, one microsecond before it does; the moment may be in any zone."""
    cron, nine = Cron("0 9 * * *", tz=BERLIN), datetime(2026, 1, 1, 9, tzinfo=ZoneInfo(BERLIN))
    day = timedelta(days=1)
    assert cron.next_after(nine.astimezone(UTC) - timedelta(microseconds=1)) == nine
    assert cron.next_after(nine) == (nine + day)
    assert cron.next_after(nine.astimezone(ZoneInfo(NEW_YORK)) + timedelta(microseconds=1)) == (nine + day)


def test_a_date_that_never_comes_again_and_the_calendars_ends_give_none():
    """No endless search, no overflow."""
    assert Cron("0 0 * 2 MON#5").next_after(datetime(2026, 1, 1, tzinfo=UTC)) == datetime(2044, 2, 29, tzinfo=UTC)
    assert Cron("@yearly").next_after(datetime(9999, 12, 31, tzinfo=UTC)) is None
    assert Cron("@yearly").next_after(datetime(1, 1, 1, tzinfo=UTC)) is None
    assert Cron("@yearly").next_after(datetime(9990, 12, 31, tzinfo=UTC)) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"expression": "61 * * * *"}, r"Cron\('61 \* \* \* \*'\) cannot be used: bad minute"),
        ({"expression": "0 0 30 2 *"}, "bad day-of-month"),
        ({"expression": "0 22-2 * * *"}, "bad hour"),
        ({"expression": "0 0 * * MON#1/2"}, "cannot be used"),
        ({"expression": "0 0 * * *", "tz": "Europe/Bärlin"}, "no time zone 'Europe/Bärlin'"),
        ({"expression": "0 0 * * *", "tz": "../etc/passwd"}, "no time zone"),
        ({"expression": "0 0 * * *", "tz": ""}, "no time zone"),
        ({"expression": "* * * * * *"}, r"five fields.*Every\(10\)"),
        ({"expression": "@often"}, "is not known. Known: @yearly"),
        ({"expression": 5}, "takes a text"),
        ({}, "needs an expression"),
        ({"hour": 9}, "does not say its minute.*minute=0"),
        ({"minute": 0, "day_of_week": 1}, r"does not say its hour.*hour='\*'"),
        ({"expression": "0 9 * * *", "hour": 9}, "not both"),
        ({"minute": True}, "takes a number"),
        ({"minute": 0.5}, "takes a number"),
        ({"minute": []}, "takes a number"),
        ({"minute": ""}, "five fields"),
        ({"minute": -5}, "bad minute"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_remedy(arguments, message):
    """At declaration, not when the scheduler runs."""
    with pytest.raises(InvalidOption, match=message):
        Cron(**arguments)
