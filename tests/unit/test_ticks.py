"""Which ticks are due: in time order, once each, missed ones by policy, and with a clock that jumps."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pytest

from asyncq.cron import Cron
from asyncq.schedule import At, Every, Schedule
from asyncq.ticks import Entry, Skipped, Tick, Timetable

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
NOON_MS = int(NOON.timestamp() * 1000)
MINUTE_MS, DAY_MS = 60_000, 24 * 3600_000


def timetable(*schedules: Schedule, watermark_ms: int = NOON_MS, since_ms: int = 0) -> Timetable:
    return Timetable([Entry(schedule, since_ms) for schedule in schedules], watermark_ms)


def test_ticks_come_in_the_order_of_their_fire_times():
    """Whatever schedule they belong to: one watermark is the state of all."""
    table = timetable(Schedule(name="b", when=2), Schedule(name="a", when=1), Schedule(name="c", when=3600))
    assert table.next_ms == NOON_MS + 1000
    assert table.upcoming() == {"a": NOON_MS + 1000, "b": NOON_MS + 2000, "c": NOON_MS + 3600_000}
    due = table.due(NOON_MS + 2500)
    assert due.ticks == (Tick(NOON_MS + 1000, "a"), Tick(NOON_MS + 2000, "a"), Tick(NOON_MS + 2000, "b"))
    assert (due.watermark_ms, due.skipped) == (NOON_MS + 2500, ())
    assert table.due(NOON_MS + 2500).ticks == ()
    assert table.next_ms == NOON_MS + 3000


def test_a_fire_time_a_millisecond_after_a_look_at_the_clock_is_not_passed_over():
    """The clock and the fire times meet nowhere by chance."""
    table = timetable(Schedule(name="a", when=1))
    for ms in range(NOON_MS + 990, NOON_MS + 1010):
        due = table.due(ms)
        assert [tick.at_ms for tick in due.ticks] == ([NOON_MS + 1000] if ms == NOON_MS + 1000 else [])
        assert table.next_ms == NOON_MS + (1000 if ms < NOON_MS + 1000 else 2000)


def test_the_watermark_in_the_middle_leaves_out_nothing_that_is_not_out():
    """A successor repeats at most the ticks of that millisecond."""
    table = timetable(Schedule(name="b", when=2), Schedule(name="a", when=1))
    due = table.due(NOON_MS + 2500)
    assert [due.watermark_after(n) for n in range(4)] == [NOON_MS + 999, NOON_MS + 1999, NOON_MS + 1999, NOON_MS + 2500]


def test_a_ticks_id_is_made_of_the_schedule_and_the_fire_time():
    """Readable, and the same whoever makes it."""
    assert Tick(NOON_MS + 5, "daily").id("shop") == "shop.daily@2026-01-01T12:00:00.005Z"


def test_what_was_missed_goes_by_the_schedules_policy():
    """Ten minutes without a leader, and runs every minute: none, one, or each."""
    schedules = [Schedule(name=policy, when=60, missed=policy) for policy in ("skip", "once", "all")]
    now_ms = NOON_MS + 10 * MINUTE_MS + 30_000
    due = timetable(*schedules).due(now_ms)
    runs = {
        name: [tick.at_ms - NOON_MS for tick in due.ticks if tick.schedule == name] for name in ("skip", "once", "all")
    }
    assert runs == {"skip": [], "once": [10 * MINUTE_MS], "all": [n * MINUTE_MS for n in range(1, 11)]}
    assert set(due.skipped) == {Skipped("skip", "missed", 10), Skipped("once", "missed", 9)}


def test_a_run_that_is_due_now_stands_for_those_that_were_missed():
    """`once` makes no second one beside it; up to five seconds late counts as now."""
    now_ms = NOON_MS + 10 * MINUTE_MS + 5_000
    for policy, expected in [("skip", 1), ("once", 1), ("all", 10)]:
        assert len(timetable(Schedule(name="a", when=60, missed=policy)).due(now_ms).ticks) == expected
        assert len(timetable(Schedule(name="a", when=60, missed=policy)).due(now_ms + 1).ticks) in {0, 1, 10}
    assert timetable(Schedule(name="a", when=60, missed="skip")).due(now_ms + 1).ticks == ()


def test_catching_up_is_bounded_and_keeps_the_latest():
    """However long nobody led."""
    due = timetable(Schedule(name="a", when=Cron("* * * * *"), missed="all", catch_up=3)).due(NOON_MS + DAY_MS + 10_000)
    assert [tick.at_ms for tick in due.ticks] == [
        NOON_MS + DAY_MS - 2 * MINUTE_MS,
        NOON_MS + DAY_MS - MINUTE_MS,
        NOON_MS + DAY_MS,
    ]
    assert due.skipped == (Skipped("a", "missed", 100),)


class Counting(Every):
    """Counts what it is asked."""

    asked = 0

    def next_after(self, moment: datetime) -> datetime | None:
        Counting.asked += 1
        return Every.next_after(self, moment)


def test_years_without_a_leader_cost_nothing():
    """What is kept is looked for from the end backwards, what is left out is counted up to a hundred."""
    Counting.asked = 0
    table = timetable(
        Schedule(name="a", when=Counting(0.1)), Schedule(name="b", when=Cron("* * * * *", tz="Europe/Berlin"))
    )
    due = table.due(NOON_MS + 3000 * DAY_MS + 30_050)
    assert [tick.at_ms for tick in due.ticks if tick.schedule == "b"] == [NOON_MS + 3000 * DAY_MS]
    assert Skipped("a", "missed", 100) in due.skipped
    assert Counting.asked < 400


@pytest.mark.parametrize("days", [0.5, 7, 3000])
@pytest.mark.parametrize("catch_up", [1, 100, 5_000])
def test_catching_up_many_runs_costs_a_few_questions_for_each(days, catch_up):
    """A leader that reckons for longer than its heartbeats may wait is deposed, and so is the next one, for ever."""
    Counting.asked = 0
    now_ms = NOON_MS + int(days * DAY_MS)
    due = timetable(Schedule(name="a", when=Counting(7), missed="all", catch_up=catch_up)).due(now_ms)
    assert len(due.ticks) in {catch_up, catch_up + 1}
    assert due.ticks[-1].at_ms > now_ms - 7_000
    assert {later.at_ms - tick.at_ms for tick, later in itertools.pairwise(due.ticks)} <= {7_000}
    assert Counting.asked < 6 * catch_up + 300


def test_what_would_be_later_than_its_deadline_is_skipped_and_counted():
    """Late for whatever reason; the policy does not matter."""
    schedule = Schedule(name="a", when=60, missed="all", deadline=150)
    due = timetable(schedule).due(NOON_MS + 5 * MINUTE_MS + 10_000)
    assert [tick.at_ms - NOON_MS for tick in due.ticks] == [3 * MINUTE_MS, 4 * MINUTE_MS, 5 * MINUTE_MS]
    assert due.skipped == (Skipped("a", "deadline", 2),)
    assert timetable(Schedule(name="a", when=60, deadline=2)).due(NOON_MS + MINUTE_MS + 2000).ticks
    late = timetable(Schedule(name="a", when=60, deadline=2)).due(NOON_MS + MINUTE_MS + 2001)
    assert (late.ticks, late.skipped) == ((), (Skipped("a", "deadline", 1),))


def test_a_schedule_has_no_fire_times_from_before_it_was_there():
    """A new one, or one that was paused, does not catch up with what was never its own."""
    since_ms = NOON_MS + 5 * MINUTE_MS
    due = timetable(Schedule(name="a", when=60, missed="all"), since_ms=since_ms).due(NOON_MS + 7 * MINUTE_MS)
    assert [tick.at_ms - NOON_MS for tick in due.ticks] == [6 * MINUTE_MS, 7 * MINUTE_MS]


def test_a_clock_that_is_set_back_repeats_nothing_and_one_set_forward_skips_nothing():
    """The watermark waits for the clock, and what it jumped over is due or missed, by policy."""
    table = timetable(Schedule(name="a", when=60))
    assert len(table.due(NOON_MS + MINUTE_MS).ticks) == 1
    for now_ms in range(NOON_MS - 60 * MINUTE_MS, NOON_MS + 2 * MINUTE_MS, 20_000):
        back = table.due(now_ms)
        assert (back.ticks, back.restarted) == ((), False)
        assert back.watermark_ms >= NOON_MS + MINUTE_MS
    assert table.due(NOON_MS + 2 * MINUTE_MS).ticks == (Tick(NOON_MS + 2 * MINUTE_MS, "a"),)
    assert table.due(NOON_MS + 30 * MINUTE_MS).ticks == (Tick(NOON_MS + 30 * MINUTE_MS, "a"),)


def test_a_clock_that_was_a_day_ahead_does_not_silence_the_schedules():
    """Whose clock was so wrong has spoilt the watermark for everybody; it starts anew from now, and says so."""
    table = timetable(Schedule(name="a", when=60), watermark_ms=NOON_MS + 400 * DAY_MS, since_ms=NOON_MS + 300 * DAY_MS)
    due = table.due(NOON_MS)
    assert (due.ticks, due.watermark_ms, due.restarted) == ((), NOON_MS, True)
    assert table.due(NOON_MS + MINUTE_MS).ticks == (Tick(NOON_MS + MINUTE_MS, "a"),)


def test_a_moment_comes_once_and_then_nothing_is_left_to_wait_for():
    """Also where it was missed."""
    table = timetable(Schedule(name="a", when=At(NOON + timedelta(seconds=1))))
    assert table.due(NOON_MS + 3600_000).ticks == (Tick(NOON_MS + 1000, "a"),)
    assert (table.next_ms, table.due(NOON_MS + DAY_MS).ticks) == (None, ())
    assert timetable(watermark_ms=NOON_MS).next_ms is None
