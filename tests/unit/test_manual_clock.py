"""The clock for tests: it stands still, and moved, it calls each timer at its own time."""

import asyncio
import contextvars
import random
import threading
from datetime import UTC, datetime, timedelta, timezone

import pytest

from asyncq.clock import Clock
from asyncq.testing.clock import ManualClock
from support import eventually


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def called():
    return []


# --- what it shows


def test_it_starts_at_a_fixed_time(clock):
    """Two runs of a test see the same dates."""
    assert clock.now() == datetime(2030, 1, 1, tzinfo=UTC)
    assert clock.now_ms() == 1_893_456_000_000
    assert clock.monotonic() == 0.0


def test_it_starts_where_one_wants():
    """A test about a leap day starts on one; whatever the zone, the clock shows UTC."""
    clock = ManualClock(datetime(2028, 2, 29, 3, tzinfo=timezone(timedelta(hours=3))))
    assert clock.now() == datetime(2028, 2, 29, tzinfo=UTC)
    assert clock.now().tzinfo is UTC


def test_a_start_without_a_time_zone_is_refused():
    """It would mean another moment on another machine."""
    with pytest.raises(ValueError, match="has no time zone"):
        ManualClock(datetime(2030, 1, 1))  # noqa: DTZ001 - that is the mistake


def test_it_stands_still_until_it_is_moved(clock):
    """Wall clock and monotonic clock go together, and by moves only."""
    assert clock.now() == clock.now()
    clock.move(90.5)
    clock.move(timedelta(hours=1))
    assert clock.now() == datetime(2030, 1, 1, 1, 1, 30, 500_000, tzinfo=UTC)
    assert clock.now_ms() == 1_893_456_000_000 + 3_690_500
    assert clock.monotonic() == 3690.5


def test_many_small_moves_are_one_large(clock):
    """Sums of floats would drift: 0.1 ten times is 0.9999999999999999."""
    for _ in range(1000):
        clock.move(0.1)
    assert clock.monotonic() == 100.0
    assert clock.now_ms() == 1_893_456_100_000


def test_it_is_a_clock():
    """It stands in for the machine's clock wherever asyncq takes one."""
    clock: Clock = ManualClock()
    assert clock.monotonic() == 0.0


# --- timers


async def test_a_timer_is_called_when_its_time_has_come(clock, called):
    """Not before, once, and with its arguments."""
    clock.call_later(10, called.append, "rung")
    clock.move(9.999)
    assert called == []
    clock.move(0.001)
    assert called == ["rung"]
    clock.move(100)
    assert called == ["rung"]


async def test_each_timer_sees_its_own_time(clock, called):
    """One large move is the same as many small ones."""
    for seconds in (30, 10, 20):
        clock.call_later(seconds, lambda: called.append(clock.monotonic()))
    clock.move(60)
    assert called == [10, 20, 30]
    assert clock.monotonic() == 60


async def test_timers_of_the_same_time_are_called_in_the_order_they_were_made(clock, called):
    """As with an event loop."""
    for name in "abc":
        clock.call_later(5, called.append, name)
    clock.move(5)
    assert called == ["a", "b", "c"]


async def test_timers_that_callbacks_make_belong_to_the_same_move(clock, called):
    """Each counts from the time of the callback that made it."""

    def tick():
        called.append(clock.monotonic())
        clock.call_later(10, tick)

    clock.call_later(10, tick)
    clock.move(35)
    assert called == [10, 20, 30]
    assert clock.next_due_s == 5


async def test_a_cancelled_timer_is_not_called(clock, called):
    """And cancelling twice, or after the call, does nothing."""
    kept, cancelled = clock.call_later(1, called.append, "kept"), clock.call_later(1, called.append, "cancelled")
    cancelled.cancel()
    cancelled.cancel()
    clock.move(1)
    kept.cancel()
    assert called == ["kept"]


async def test_a_timer_may_cancel_another_of_the_same_time(clock, called):
    """The first of two that exclude each other wins."""

    def cancel_second():
        second.cancel()

    clock.call_later(1, cancel_second)
    second = clock.call_later(1, called.append, "second")
    clock.move(1)
    assert called == []


async def test_many_cancelled_timers_are_let_go(clock, called):
    """A worker makes a timer for each attempt and cancels it, while the clock may stand still for ever."""
    clock.call_later(60, called.append, "kept")
    for _ in range(1000):
        clock.call_later(60, called.append, "cancelled").cancel()
    assert len(clock._timers) < 10
    clock.move(60)
    assert called == ["kept"]


async def test_a_timer_of_no_time_is_called_soon_without_a_move(clock, called):
    """What is due needs no time to pass; like an event loop, it is not called at once."""
    clock.call_later(0, called.append, "due")
    clock.call_later(-1, called.append, "overdue")
    clock.call_later(0, called.append, "cancelled").cancel()
    assert called == []
    await asyncio.sleep(0)
    assert called == ["due", "overdue"]


async def test_a_timer_that_finds_itself_a_trifle_early_may_wait_for_the_rest(clock, called):
    """0.1 + 0.2 is more than 0.3 for a float, so careful code comes back for the last bit: by the same move."""
    seed = random.randrange(1_000_000)
    print("seed", seed)
    rng = random.Random(seed)

    def wait_until(due):
        rest = due - clock.monotonic()
        if rest > 0:
            clock.call_later(rest, wait_until, due)
        else:
            called.append(due)

    passed = timedelta()
    for first, delay in [(0.1, 0.2), *((rng.randint(0, 1000) / 100, rng.randint(1, 1000) / 100) for _ in range(500))]:
        clock.move(first)
        wait_until(clock.monotonic() + delay)
        clock.move(delay)
        assert len(called) == 1, (first, delay)
        called.clear()
        passed += timedelta(seconds=first) + timedelta(seconds=delay)
        assert clock.now() == datetime(2030, 1, 1, tzinfo=UTC) + passed
    assert clock.monotonic() == pytest.approx(passed.total_seconds(), rel=0, abs=10e-9), "the bits do not add up"


async def test_a_timer_sees_the_context_in_which_it_was_made(clock, called):
    """As with an event loop: what the mover has set is not the callback's."""
    variable = contextvars.ContextVar("variable", default="maker")
    clock.call_later(1, lambda: called.append(variable.get()))
    variable.set("mover")
    clock.move(1)
    assert called == ["maker"]


async def test_an_error_in_a_callback_reaches_the_mover_and_costs_no_other_timer(clock, called):
    """A test should hear of it; the rest is called by the next move."""
    clock.call_later(1, lambda: 1 / 0)
    clock.call_later(1, called.append, "same time")
    clock.call_later(2, called.append, "later")
    with pytest.raises(ZeroDivisionError):
        clock.move(5)
    assert clock.monotonic() == 1
    clock.move(4)
    assert called == ["same time", "later"]


def test_a_timer_needs_a_running_event_loop(clock):
    """It is called there."""
    with pytest.raises(RuntimeError, match="no running event loop"):
        clock.call_later(1, print)


async def test_the_next_timer_is_known(clock, called):
    """Cancelled ones do not count."""
    assert clock.next_due_s is None
    first = clock.call_later(2.5, called.append, "first")
    clock.call_later(4, called.append, "second")
    assert clock.next_due_s == 2.5
    clock.move(1)
    assert clock.next_due_s == 1.5
    first.cancel()
    assert clock.next_due_s == 3
    clock.move(3)
    assert clock.next_due_s is None


# --- other threads


async def test_a_timer_of_another_loop_is_called_in_that_loop(clock):
    """The loop of `app.sync` runs in a thread of its own."""
    made, rung = threading.Event(), threading.Event()
    threads = []

    def ring():
        threads.append(threading.get_ident())
        rung.set()

    async def other():
        clock.call_later(1, ring)
        made.set()
        await asyncio.to_thread(rung.wait, 10)

    thread = threading.Thread(target=asyncio.run, args=(other(),))
    thread.start()
    assert await asyncio.to_thread(made.wait, 10)
    clock.move(1)
    await asyncio.to_thread(thread.join, 10)
    assert threads == [thread.ident]


def test_a_timer_can_be_called_by_a_move_from_outside_of_any_loop(clock, called):
    """It is called when its loop comes to it."""

    async def make():
        clock.call_later(1, called.append, "rung")

    async def turn():
        await asyncio.sleep(0)

    with asyncio.Runner() as runner:
        runner.run(make())
        clock.move(1)
        assert called == []
        runner.run(turn())
    assert called == ["rung"]


def test_a_timer_whose_loop_has_ended_is_forgotten(clock, called):
    """Nobody is there to call it."""

    async def make():
        clock.call_later(1, called.append, "rung")

    asyncio.run(make())
    assert clock.next_due_s is None
    clock.move(1)
    assert called == []
    assert not clock.jump()


def test_threads_may_make_cancel_and_move_at_once(clock):
    """No timer is lost and none is called twice. The seed is printed."""
    seed = random.randrange(1_000_000)
    print("seed", seed)
    results = []

    def work(number):
        rng = random.Random(seed + number)
        called = []

        async def churn():
            expected = set()
            for item in range(300):
                timer = clock.call_later(rng.uniform(0.001, 1), called.append, item)
                if rng.random() < 0.5:
                    timer.cancel()
                else:
                    expected.add(item)
                if rng.random() < 0.2:
                    clock.move(rng.uniform(0, 0.1))
                await asyncio.sleep(0)
            clock.move(2)
            await eventually(lambda: len(called) >= len(expected))  # another thread may be about to call one
            results.append((sorted(called), sorted(expected)))

        asyncio.run(churn())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(results) == 4
    for called, expected in results:
        assert called == expected


# --- advance


async def test_between_two_timers_the_app_does_all_that_it_can(clock, called):
    """A task that a timer wakes makes its next timer in time."""

    async def work():
        for _ in range(3):
            woken = asyncio.Event()
            clock.call_later(10, woken.set)
            await woken.wait()
            called.append(clock.monotonic())

    worker = asyncio.create_task(work())
    await clock.advance(timedelta(seconds=35))
    assert called == [10, 20, 30]
    assert clock.monotonic() == 35
    await worker


async def test_move_gives_tasks_no_chance_to_run(clock, called):
    """That is the difference to `advance`."""
    woken = asyncio.Event()

    async def work():
        await woken.wait()
        called.append("worked")

    worker = asyncio.create_task(work())
    await asyncio.sleep(0)
    clock.call_later(1, woken.set)
    clock.move(1)
    assert called == []
    await worker


async def test_a_harness_says_when_the_app_is_idle(clock, called):
    """It is asked before the first timer and after those of each time."""

    async def settle():
        called.append(("settled", clock.monotonic()))

    clock.settle = settle
    for name, seconds in (("a", 1), ("b", 1), ("c", 2)):
        clock.call_later(seconds, called.append, name)
    await clock.advance(5)
    assert called == [("settled", 0), "a", "b", ("settled", 1), "c", ("settled", 2)]
    assert clock.monotonic() == 5


async def test_timers_made_before_the_first_move_belong_to_it(clock, called):
    """A message that was just sent is on its way to a worker still: its time limit is made meanwhile."""

    async def settle():
        if clock.monotonic() == 0:
            clock.call_later(3, called.append, "rung")

    clock.settle = settle
    await clock.advance(3)
    assert called == ["rung"]


# --- mistakes


@pytest.mark.parametrize("time", [-1, -0.001, timedelta(seconds=-1)])
async def test_time_only_goes_forward(clock, time):
    """A clock that goes back would call timers twice."""
    with pytest.raises(ValueError, match="Time only goes forward"):
        clock.move(time)
    with pytest.raises(ValueError, match="Time only goes forward"):
        await clock.advance(time)
    assert clock.monotonic() == 0


@pytest.mark.parametrize("time", [float("inf"), float("nan")])
def test_a_move_is_a_number_of_seconds(clock, time):
    """Nothing comes after for ever."""
    with pytest.raises(ValueError, match="Move it by a number of seconds"):
        clock.move(time)


def test_a_move_by_nothing_is_allowed(clock):
    """Whoever computes the time to pass may come to 0."""
    clock.move(0)
    assert clock.monotonic() == 0


# --- jumping


async def test_a_jump_goes_to_the_next_timer(clock, called):
    """With all that are due at the same time, and no further."""
    for name, seconds in (("a", 3600), ("b", 3600), ("c", 7200)):
        clock.call_later(seconds, called.append, name)
    assert clock.jump()
    assert called == ["a", "b"]
    assert clock.monotonic() == 3600
    assert clock.jump()
    assert called == ["a", "b", "c"]
    assert not clock.jump()
    assert clock.monotonic() == 7200


def test_jumping_is_a_wish_that_a_harness_hears(clock, called):
    """The clock keeps the flag; the harness is called when it begins, and does the jumping."""
    stop = clock.on_jumping(lambda: called.append(clock.is_jumping))
    assert not clock.is_jumping
    with clock.jumping():
        assert called == [True]
        with clock.jumping():
            assert clock.is_jumping
        assert clock.is_jumping
    assert not clock.is_jumping
    stop()
    stop()
    with clock.jumping():
        pass
    assert called == [True, True]


def test_jumping_ends_with_its_block_also_by_an_error(clock):
    """A failed test leaves no clock that runs away."""
    with pytest.raises(KeyError), clock.jumping():
        raise KeyError
    assert not clock.is_jumping
