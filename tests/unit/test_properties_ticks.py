"""Ticks for any schedules, any clock and any crashes: every fire time once, in order, by policy."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from asyncq.cron import Cron
from asyncq.schedule import Every, Schedule, fire_times
from asyncq.ticks import MISSED_AFTER_MS, Due, Entry, Timetable

START = datetime(2026, 10, 24, 22, tzinfo=UTC)  # three hours before clocks are set back in Berlin
START_MS = int(START.timestamp() * 1000)

WHENS = (
    st.builds(Every, st.sampled_from([1, 7, 60, 900, 3600]))
    | st.builds(Every, st.integers(1, 4000), start=st.integers(-5000, 5000).map(lambda s: START + timedelta(seconds=s)))
    | st.sampled_from(["* * * * *", "*/20 * * * *", "30 2 * * *", "0 */2 * * *"]).map(
        lambda expression: Cron(expression, tz="Europe/Berlin")
    )
)
POLICIES = st.sampled_from(["skip", "once", "all"])
DEADLINES = st.none() | st.floats(0.5, 5000)


def schedules(missed=POLICIES, deadline=DEADLINES):
    return st.lists(st.tuples(WHENS, missed, deadline), min_size=1, max_size=4).map(
        lambda found: [
            Schedule(name=f"s{n}", when=when, missed=policy, deadline=deadline_s, catch_up=10_000)
            for n, (when, policy, deadline_s) in enumerate(found)
        ]
    )


# How the wall clock moves between two looks at it, in milliseconds: mostly on, sometimes far, sometimes back.
MOVES = st.lists(
    st.integers(0, 3_000) | st.integers(0, 60_000) | st.integers(0, 1_500_000) | st.integers(-900_000, 0),
    min_size=1,
    max_size=12,
)


def expected(schedule: Schedule, after_ms: int, until_ms: int) -> list[int]:
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    after, until = (epoch + timedelta(milliseconds=ms) for ms in (after_ms, until_ms))
    return [int(at.timestamp() * 1000) for at in fire_times(schedule.when.next_after, after, until, None)]


def clocks(moves: list[int]) -> list[int]:
    now_ms, found = START_MS, []
    for move in moves:
        now_ms += move
        found.append(now_ms)
    return found


@given(schedules(missed=st.just("all"), deadline=st.none()), MOVES, st.data())
def test_every_fire_time_has_its_tick_whatever_the_clock_and_the_leaders_do(declared, moves, data):
    """With `all`, the ids of all leaders together are the fire times: none left out, none beyond.

    A leader may die after any of its ticks, with a watermark that is as old as its last save.
    """
    published: list[tuple[int, str]] = []
    saved_ms = START_MS
    table = Timetable([Entry(schedule, START_MS) for schedule in declared], saved_ms)
    for now_ms in clocks(moves):
        due = table.due(now_ms)
        died_after = data.draw(st.none() | st.integers(0, len(due.ticks)))
        out = due.ticks if died_after is None else due.ticks[:died_after]
        published += [(tick.at_ms, tick.schedule) for tick in out]
        if data.draw(st.booleans()):
            saved_ms = max(saved_ms, due.watermark_after(len(out)))
        if died_after is not None:
            table = Timetable([Entry(schedule, START_MS) for schedule in declared], saved_ms)
    last = table.due(max(clocks(moves), default=START_MS))
    published += [(tick.at_ms, tick.schedule) for tick in last.ticks]
    latest_ms = max(START_MS, *clocks(moves))
    wanted = {(at, schedule.name) for schedule in declared for at in expected(schedule, START_MS, latest_ms)}
    assert set(published) == wanted


@given(schedules(), MOVES)
def test_one_leader_makes_no_tick_twice_and_all_in_order(declared, moves):
    """Each tick is a fire time, within its deadline, allowed by its policy; the watermark never goes back."""
    table = Timetable([Entry(schedule, START_MS) for schedule in declared], START_MS)
    by_name = {schedule.name: schedule for schedule in declared}
    seen: list[tuple[int, str]] = []
    watermark_ms = START_MS
    for now_ms in clocks(moves):
        due = table.due(now_ms)
        ticks = [(tick.at_ms, tick.schedule) for tick in due.ticks]
        assert ticks == sorted(ticks)
        assert not seen or not ticks or seen[-1][0] <= ticks[0][0]
        assert due.watermark_ms == max(watermark_ms, now_ms)
        for name, schedule in by_name.items():
            check(schedule, watermark_ms, now_ms, [at for at, of in ticks if of == name], due)
        watermark_ms = due.watermark_ms
        seen += ticks
        assert table.next_ms is None or table.next_ms > watermark_ms
    assert len(seen) == len(set(seen))


def check(schedule: Schedule, after_ms: int, now_ms: int, got: list[int], due: Due) -> None:
    """Compare one schedule's ticks with what its rules say, written the long way."""
    fired = expected(schedule, after_ms, now_ms)
    on_time = [at for at in fired if at >= now_ms - MISSED_AFTER_MS]
    missed = [at for at in fired if at < now_ms - MISSED_AFTER_MS]
    kept = {"skip": [], "once": [] if on_time else missed[-1:], "all": missed}[schedule.missed]
    chosen = kept + on_time
    limit_ms = None if schedule.deadline_s is None else round(schedule.deadline_s * 1000)
    assert got == [at for at in chosen if limit_ms is None or now_ms - at <= limit_ms]
    counted = {skipped.reason: skipped.count for skipped in due.skipped if skipped.schedule == schedule.name}
    assert counted.get("missed", 0) == min(100, len(missed) - len(kept))
    assert counted.get("deadline", 0) == len(chosen) - len(got)
