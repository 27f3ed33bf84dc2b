"""Soft limits, limits of a send, deadlines, places and concurrency limits, part by part, on a clock that tests move."""

import asyncio
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from asyncq.app import AsyncQ
from asyncq.errors import InvalidOption, SoftTimeLimit
from asyncq.message import DEADLINE_AT, SOFT_LIMIT_MS, TIME_LIMIT_MS, TURN_AT
from asyncq.options import Sending
from asyncq.outcome import Drained, Failed, LostLease, Postponed, Rejected, Succeeded, Throttled
from asyncq.rate import Rate
from asyncq.testing.clock import ManualClock
from asyncq.worker.attempt import Limits
from asyncq.worker.concurrency import LATEST_S, SOONEST_S, Queue
from asyncq.worker.limits import LimitRules
from asyncq.worker.places import Places
from support import eventually
from worker_kit import make_kit, make_message

app = AsyncQ("shop")


# --- options


@pytest.mark.parametrize("option", ["time_limit", "soft_time_limit"])
@pytest.mark.parametrize("value", [0, -1, "5", True, float("inf"), float("nan"), timedelta(0), timedelta(days=99999)])
def test_limits_are_durations_above_zero(option, value):
    """Of a task, and of a send."""
    with pytest.raises(InvalidOption, match=option):
        app.task(**{option: value})
    with pytest.raises(InvalidOption, match=option):
        Sending.of({option: value})


def test_a_soft_limit_is_shorter_than_the_hard_one():
    """Else it would never be reached."""
    options = {"soft_time_limit": timedelta(seconds=10), "time_limit": 10}
    with pytest.raises(InvalidOption, match="must be shorter than time_limit="):
        app.task(**options)
    with pytest.raises(InvalidOption, match="must be shorter than time_limit="):
        Sending.of(options)


@pytest.mark.parametrize("value", [0, -1, "5", True, float("inf"), float("nan"), datetime(2030, 1, 1)])  # noqa: DTZ001
def test_a_deadline_is_a_moment(value):
    """Seconds from the send, or aware."""
    with pytest.raises(InvalidOption, match="deadline="):
        Sending.of({"deadline": value})


def test_a_deadline_before_the_task_is_due_is_refused():
    """It would never run."""
    with pytest.raises(
        InvalidOption, match=r"deadline= \(5 s from the send\) is not after delay= \(6 s from the send\)"
    ):
        Sending.of({"deadline": 5, "delay": 6}).deadline_at(0)
    assert Sending.of({"deadline": 7, "delay": 6}).deadline_at(0) == 7000
    assert Sending.of({"deadline": None}).says_deadline


@pytest.mark.parametrize("option", ["time_limit", "soft_time_limit", "deadline"])
def test_an_error_callback_has_no_limits_of_its_own(option):
    """It is sent by a worker, long after."""

    @app.task(name=f"shop.{option}")
    async def notify(who: str) -> None: ...

    with pytest.raises(InvalidOption, match=f"a callback has no {option}="):
        notify.s("ops").options(**{option: 5}).as_callback()


# --- which limit holds


def rules(limit_s=100.0, clock=None):
    return LimitRules(Limits(clock or ManualClock(), limit_s))


async def limits_of(headers, limit_s=100.0, **options):
    kit = await make_kit()

    @kit.task(**options)
    async def work() -> None: ...

    headers = {name: value(kit.clock) if callable(value) else value for name, value in headers.items()}
    found = rules(limit_s, kit.clock).of(work, make_message("work", headers=headers))
    return found.limit_s, found.soft_limit_s, found.by_deadline


async def test_the_send_decides_before_the_task_and_the_task_before_the_settings():
    """Hard and soft, each for itself."""
    assert await limits_of({}) == (100, None, False)
    assert await limits_of({}, time_limit_s=50, soft_time_limit_s=20) == (50, 20, False)
    headers = {TIME_LIMIT_MS: 30_000, SOFT_LIMIT_MS: 10_000}
    assert await limits_of(headers, time_limit_s=50, soft_time_limit_s=20) == (30, 10, False)
    assert await limits_of({TIME_LIMIT_MS: 15_000}, soft_time_limit_s=20) == (15, None, False)


async def test_no_attempt_goes_on_past_its_deadline():
    """A longer limit is cut; a shorter one stays."""
    ends = {DEADLINE_AT: lambda clock: clock.now_ms() + 40_000}
    assert await limits_of(ends) == (40, None, True)
    assert await limits_of({**ends, TIME_LIMIT_MS: 5_000}) == (5, None, False)
    assert await limits_of({DEADLINE_AT: 1}) == (0, None, True)


async def test_a_send_that_asks_for_more_than_the_consumer_timeout_is_warned_of_once(caplog):
    """Nobody can see from here whether the queue allows it."""
    kit = await make_kit()

    @kit.task()
    async def work() -> None: ...

    found = rules()
    for limit_ms in (1_800_000, 1_800_001, 9_000_000):
        found.of(work, make_message("work", headers={TIME_LIMIT_MS: limit_ms}))
    assert len([line for line in caplog.messages if "consumer timeout of 30 minutes" in line]) == 1


@pytest.mark.parametrize("header", [TIME_LIMIT_MS, SOFT_LIMIT_MS, DEADLINE_AT])
@pytest.mark.parametrize("value", ["1", 0, -1, True, 1.5, 2**62])
async def test_a_malformed_limit_is_a_malformed_message(header, value):
    """It is rejected before it runs."""
    kit = await make_kit()
    ran = []

    @kit.task()
    async def work() -> None:
        ran.append(1)

    outcome = (await kit.execution.execute(kit.delivery("work", headers={header: value}))).outcome
    assert isinstance(outcome, Rejected)
    assert (outcome.reason, header in outcome.failure.message, ran) == ("malformed message", True, [])


# --- the soft limit


async def soft(work, *, after_s=10.0):
    """Run an async function as a task with a soft limit, let the limit pass, and return the outcome."""
    kit = await make_kit()
    kit.task(soft_time_limit_s=after_s)(work)
    running = asyncio.create_task(kit.execution.execute(kit.delivery(work.__name__)))
    await asyncio.sleep(0.02)
    await kit.clock.advance(after_s)
    return (await asyncio.wait_for(running, 5)).outcome


async def test_the_count_of_cancellations_is_as_before():
    """So that timeouts and task groups in the task's clean-up work."""
    counts = []

    async def work() -> None:
        try:
            await asyncio.sleep(600)
        except SoftTimeLimit:
            counts.append(asyncio.current_task().cancelling())

    assert isinstance(await soft(work), Succeeded)
    assert counts == [0]


async def test_what_the_awaited_task_absorbs_is_no_soft_limit_later():
    """A cancellation of the code's own stays one."""
    seen = []

    async def work() -> None:
        async def deaf() -> str:
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError as error:
                seen.append(type(error))
            return "deaf"

        seen.append(await asyncio.create_task(deaf()))
        seen.append(asyncio.current_task().cancelling())
        asyncio.current_task().cancel()
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError as error:
            seen.append(type(error))
            asyncio.current_task().uncancel()

    assert isinstance(await soft(work), Succeeded)
    assert seen == [asyncio.CancelledError, "deaf", 0, asyncio.CancelledError]


async def test_a_task_that_is_cancelled_at_its_soft_limit_is_cancelled():
    """The stronger word counts."""
    kit = await make_kit()
    seen = []

    @kit.task(soft_time_limit_s=10)
    async def work() -> None:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError as error:
            seen.append(type(error))
            raise

    running = asyncio.create_task(kit.execution.execute(kit.delivery("work")))
    await eventually(lambda: len(kit.attempts) == 1)
    await asyncio.sleep(0.01)
    (attempt,) = kit.attempts
    attempt._soft_limit()
    attempt.interrupt("drain")
    assert (await running).outcome == Drained()
    assert seen == [asyncio.CancelledError]


async def test_a_soft_limit_that_nobody_catches_fails_the_attempt():
    """By its own name; nothing else was asked for."""

    async def work() -> None:
        await asyncio.sleep(600)

    outcome = await soft(work)
    assert isinstance(outcome, Failed)
    assert outcome.failure.type == "asyncq.errors.SoftTimeLimit"


async def test_except_exception_lets_the_soft_limit_through():
    """A loop that logs errors and goes on must not swallow it."""

    async def work() -> None:
        try:
            await asyncio.sleep(600)
        except Exception:  # noqa: BLE001
            return

    assert isinstance(await soft(work), Failed)


async def test_a_task_that_ends_in_time_hears_nothing_of_its_soft_limit():
    """And its timer is gone."""
    kit = await make_kit()

    @kit.task(soft_time_limit_s=10)
    async def work() -> str:
        await asyncio.sleep(0)
        return "done"

    assert (await kit.execution.execute(kit.delivery("work"))).outcome.result == b'"done"'
    await kit.clock.advance(100)


# --- places


async def test_places_are_given_in_the_order_of_coming():
    """Who comes later does not overtake, even where a place is free at that moment."""
    places = Places(1)
    assert await places.take() == "taken"
    order = []

    async def come(number: int) -> None:
        assert await places.take() == "taken"
        order.append(number)
        await asyncio.sleep(0)
        places.free()

    coming = [asyncio.create_task(come(number)) for number in range(5)]
    await asyncio.sleep(0)
    assert places.waiting == 5
    places.free()
    coming.append(asyncio.create_task(come(5)))
    await asyncio.gather(*coming)
    assert order == [0, 1, 2, 3, 4, 5]
    assert places.held == 0


async def test_who_waits_too_long_for_a_place_is_told_that_all_are_busy():
    """And waits no more."""
    places = Places(1, patience_s=0.01)
    assert await places.take() == "taken"
    assert await places.take() == "busy"
    assert places.waiting == 0
    places.free()
    assert places.held == 0


async def test_a_worker_that_stops_gives_no_place_away_to_who_waits():
    """Who waits, and who comes."""
    places = Places(1)
    assert await places.take() == "taken"
    waiting = asyncio.create_task(places.take())
    await asyncio.sleep(0)
    places.refuse()
    assert await waiting == "stopping"
    assert await places.take() == "stopping"


async def test_a_delivery_that_waited_too_long_goes_back_and_counts_no_attempt():
    """Its slot is free for other work."""
    kit = await make_kit(places=1)
    kit.threads._places._patience_s = 0.02
    go_on = threading.Event()

    @kit.task()
    def work() -> None:
        go_on.wait(10)

    first = asyncio.create_task(kit.execution.execute(kit.delivery("work")))
    await eventually(lambda: kit.threads.busy == 1)
    executed = await kit.execution.execute(kit.delivery("work", headers={"asyncq-attempt": 3}))
    assert isinstance(executed.outcome, Postponed)
    assert 5 <= executed.outcome.delay_s <= 10
    await kit.settlement.settle(executed)
    (copy,) = kit.broker.copies()
    assert copy.message.headers["asyncq-attempt"] == 3
    go_on.set()
    assert isinstance((await first).outcome, Succeeded)


async def test_a_lease_that_is_lost_while_it_waits_begins_nothing():
    """Another worker has the message."""
    kit = await make_kit(places=1)
    go_on, ran = threading.Event(), []

    @kit.task()
    def work(n: int) -> None:
        ran.append(n)
        go_on.wait(10)

    first = asyncio.create_task(kit.execution.execute(kit.delivery("work", {"n": 1})))
    await eventually(lambda: ran == [1])
    delivery = kit.delivery("work", {"n": 2})
    second = asyncio.create_task(kit.execution.execute(delivery))
    await asyncio.sleep(0.01)
    delivery.lose()
    go_on.set()
    assert (await second).outcome == LostLease()
    await first
    assert ran == [1]
    assert kit.threads.busy == 0


# --- concurrency


async def test_over_its_max_concurrency_a_task_waits_or_comes_again():
    """As many wait in their slots as run; who comes then is delayed to its turn."""
    kit = await make_kit()
    go_on = asyncio.Event()
    ran = []

    @kit.task(max_concurrency=2)
    async def work(n: int) -> None:
        ran.append(n)
        await go_on.wait()

    running = [asyncio.create_task(kit.execution.execute(kit.delivery("work", {"n": n}))) for n in range(4)]
    await eventually(lambda: ran == [0, 1])
    outcomes = [(await kit.execution.execute(kit.delivery("work", {"n": n}))).outcome for n in (4, 5)]
    assert all(isinstance(outcome, Postponed) for outcome in outcomes)
    go_on.set()
    assert all(isinstance(item.outcome, Succeeded) for item in await asyncio.gather(*running))
    assert ran == [0, 1, 2, 3]


async def test_a_concurrency_limit_holds_until_a_thread_has_really_returned():
    """A given-up one still uses what the limit protects."""
    kit = await make_kit(time_limit_s=5)
    go_on, ran = threading.Event(), []

    @kit.task(max_concurrency=1)
    def work(n: int) -> None:
        ran.append(n)
        go_on.wait(10)

    first = asyncio.create_task(kit.execution.execute(kit.delivery("work", {"n": 1})))
    await eventually(lambda: ran == [1])
    await kit.clock.advance(5 + 2)
    assert isinstance((await first).outcome, Failed)
    second = asyncio.create_task(kit.execution.execute(kit.delivery("work", {"n": 2})))
    await asyncio.sleep(0.05)
    assert ran == [1]
    go_on.set()
    assert isinstance((await second).outcome, Succeeded)


async def test_the_turns_of_what_is_delayed_follow_one_another():
    """At the pace of the task; and never sooner or later than the bounds."""
    clock = ManualClock()
    queue = Queue(2, clock)
    for number in range(200):  # it takes 10 s
        assert await queue.places.take() == "taken"
        queue.began(number)
        await clock.advance(10)
        queue.ended(number)
    delays = [queue.delay_s() for _ in range(100)]
    assert all(SOONEST_S <= delay <= LATEST_S * 1.2 for delay in delays)
    assert 5 <= delays[0] <= 6
    assert 0.8 * 50 <= delays[9] <= 1.3 * 50
    assert delays[90] >= LATEST_S
    assert sum(later > earlier for earlier, later in pairwise(delays[:50])) > 30


async def test_while_nothing_has_ended_what_comes_back_waits_as_long_as_the_others_have_run():
    """So a task of hours does not come back every second."""
    clock = ManualClock()
    queue = Queue(1, clock)
    assert await queue.places.take() == "taken"
    queue.began("long")
    delays = []
    for _ in range(8):
        delays.append(queue.delay_s())
        await clock.advance(delays[-1])
    assert delays[0] <= 1.2
    assert delays[-1] >= 30


async def test_a_worker_that_stops_hands_back_who_waits_for_a_concurrency_limit():
    """It was never started."""
    kit = await make_kit()
    go_on = asyncio.Event()

    @kit.task(max_concurrency=1)
    async def work() -> None:
        await go_on.wait()

    first = asyncio.create_task(kit.execution.execute(kit.delivery("work")))
    second = asyncio.create_task(kit.execution.execute(kit.delivery("work")))
    await asyncio.sleep(0.01)
    kit.admission.refuse()
    assert (await second).outcome == Drained()
    go_on.set()
    assert isinstance((await first).outcome, Succeeded)


def test_deadline_moments_are_utc_milliseconds():
    """An aware datetime is taken as it is."""
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    assert Sending.of({"deadline": moment}).deadline_at(5) == int(moment.timestamp() * 1000)


async def test_what_waits_for_a_place_keeps_its_turn():
    """A rate limit gives each attempt one turn; a message that comes again for want of a place has had its own."""
    kit = await make_kit()

    @kit.task(max_concurrency=1)
    async def work() -> None: ...

    kit.tasks["work"].run = replace(kit.tasks["work"].run, rate=Rate.of("1/h", "rate="))
    executed = await kit.execution.execute(kit.delivery("work"))
    assert isinstance(executed.outcome, Succeeded)
    await kit.settlement.settle(replace(executed, delivery=kit.delivery("work"), outcome=Postponed(5)))
    (copy,) = kit.broker.copies()
    assert copy.message.headers[TURN_AT] <= kit.clock.now_ms()
    again = kit.delivery("work", headers=copy.message.headers)
    assert isinstance((await kit.execution.execute(again)).outcome, Succeeded)
    assert isinstance((await kit.execution.execute(kit.delivery("work"))).outcome, Throttled)
