"""`Every` and `At`, and the values that make a schedule."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from asyncq.cron import Cron
from asyncq.errors import InvalidOption
from asyncq.schedule import At, Every, Schedule, fire_times, resolved, when_of

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def test_an_aligned_period_runs_at_its_multiples_wherever_it_is_asked_from():
    """The same fire times in every process: nothing depends on when a scheduler was started."""
    every = Every(20)
    assert fire_times(every.next_after, NOON - SECOND, NOON + 50 * SECOND, None) == [
        NOON,
        NOON + 20 * SECOND,
        NOON + 40 * SECOND,
    ]
    assert every.next_after(NOON + 7.5 * SECOND) == every.next_after(NOON) == NOON + 20 * SECOND
    assert Every(3600).next_after(datetime(2026, 1, 1, 12, 10, tzinfo=timezone(timedelta(hours=5, minutes=30)))) == (
        datetime(2026, 1, 1, 7, tzinfo=UTC)
    )


def test_a_period_can_count_from_a_start():
    """The start is the first fire time."""
    every = Every(timedelta(minutes=7), start=NOON)
    assert every.next_after(NOON - timedelta(days=9)) == NOON
    assert every.next_after(NOON) == NOON + timedelta(minutes=7)
    assert every.next_after(NOON + timedelta(minutes=20)) == NOON + timedelta(minutes=21)


def test_a_period_without_a_start_counts_from_when_it_was_first_seen():
    """And once it is known, it is the same for every scheduler."""
    open_ = Every(10, aligned=False)
    assert open_.next_after(NOON + 3 * SECOND) == NOON + 13 * SECOND
    known = resolved(open_, "UTC", NOON + 3 * SECOND)
    assert known == Every(10, start=NOON + 3 * SECOND)
    assert known.next_after(NOON + 12 * SECOND) == NOON + 13 * SECOND
    assert resolved(known, "UTC", NOON) == known
    assert resolved(Every(10), "UTC", NOON) == Every(10)
    assert resolved(At(NOON), "UTC", NOON) == At(NOON)
    assert resolved(Cron("@daily"), "Europe/Berlin", NOON) == Cron("@daily", tz="Europe/Berlin")


def test_at_runs_once():
    """Before its moment there is one fire time, then none."""
    at = At(datetime(2026, 1, 1, 14, tzinfo=timezone(timedelta(hours=2))))
    assert at == At(NOON)
    assert at.next_after(NOON - timedelta(days=1)) == NOON
    assert at.next_after(NOON) is None


def test_moments_are_whole_milliseconds_and_never_early():
    """A tick's id names its fire time in milliseconds."""
    assert At(NOON + timedelta(microseconds=1)).moment == NOON + timedelta(milliseconds=1)
    assert Every(10, start=NOON + timedelta(microseconds=2500)).start == NOON + timedelta(milliseconds=3)
    assert Every(1 / 3) == Every(0.333)


def test_values_are_compared_by_value_and_say_what_they_are():
    """So that a changed schedule is noticed, and two processes agree."""
    assert when_of(60) == when_of(timedelta(minutes=1)) == Every(60.0)
    assert when_of(At(NOON)) == At(NOON)
    assert len({Every(60), Every(60, aligned=False), Every(60, start=NOON), At(NOON), At(NOON)}) == 4
    assert str(Every(0.5)) == "every 0.5 s"
    assert str(Every(60, aligned=False)) == "every 60 s from its start"
    assert str(Every(60, start=NOON)) == "every 60 s from 2026-01-01T12:00:00+00:00"
    assert str(At(NOON)) == "at 2026-01-01T12:00:00+00:00"


def test_the_end_of_the_calendar_is_no_error():
    """There is no next fire time."""
    assert Every(86400 * 365).next_after(datetime(9999, 12, 31, tzinfo=UTC)) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Every(0), "0.1 s to 100 years"),
        (lambda: Every(0.09), "0.1 s to 100 years"),
        (lambda: Every(-1), "zero or more"),
        (lambda: Every(1e12), "0.1 s to 100 years"),
        (lambda: Every("5"), "seconds or a timedelta"),
        (lambda: Every(5, start=datetime(2026, 1, 1)), "with a time zone"),  # noqa: DTZ001 - the fault under test
        (lambda: At(datetime(2026, 1, 1)), "with a time zone"),  # noqa: DTZ001 - the fault under test
        (lambda: At("noon"), "with a time zone"),
        (lambda: when_of("0 8 * * *"), r"takes Cron\('0 8 \* \* \*'\)"),
        (lambda: when_of(True), "takes seconds"),
        (lambda: when_of(None), "takes seconds"),
        (lambda: Schedule(name="a b", when=5), "letters, digits"),
        (lambda: Schedule(name="", when=5), "letters, digits"),
        (lambda: At(datetime.max.replace(tzinfo=UTC)), "within the calendar"),
        (lambda: Every(5, start=datetime.max.replace(tzinfo=timezone(timedelta(hours=-5)))), "within the calendar"),
        (lambda: Schedule(name="a" * 61, when=5), "1 to 60"),
        (lambda: Schedule(name="a", when=5, missed="never"), "'skip', 'once' or 'all'"),
        (lambda: Schedule(name="a", when=5, catch_up=0), "1 to 10,000"),
        (lambda: Schedule(name="a", when=5, deadline=0), "more than zero"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_remedy(make, message):
    """At declaration, not when the scheduler runs."""
    with pytest.raises(InvalidOption, match=message):
        make()


def test_a_schedule_checks_its_values_and_says_seconds():
    """A number is a period; the deadline may be a timedelta."""
    schedule = Schedule(name="daily.report-2", when=30, deadline=timedelta(minutes=2))
    assert (schedule.when, schedule.missed, schedule.deadline_s) == (Every(30), "once", 120.0)
