"""Rates as text, and the turns that follow from them."""

from __future__ import annotations

import random

import pytest

from asyncq import AsyncQ
from asyncq.errors import InvalidOption, MalformedMessage
from asyncq.message import EXPIRES_AT, TURN_AT
from asyncq.outcome import Rejected, Throttled
from asyncq.rate import Rate
from asyncq.testing.clock import ManualClock
from asyncq.worker.intake import Refusal
from asyncq.worker.turns import Turns
from worker_kit import make_kit, make_message

MESSAGE = make_message("work")


@pytest.mark.parametrize(
    ("text", "interval_s"),
    [("5/s", 0.2), ("100/m", 0.6), ("1000/h", 3.6), ("20/d", 4320), ("1/s", 1), (" 3 / m ", 20), ("10000/s", 0.0001)],
)
def test_a_rate_is_read_as_people_write_it(text, interval_s):
    """So many in a second, minute, hour, day."""
    assert Rate.of(text, "rate=").interval_s == pytest.approx(interval_s)


@pytest.mark.parametrize(
    "value",
    [
        *("", "5", "/s", "5/", "5/w", "5/S", "-5/s", "0/s", "0.5/s", "1e3/s", "5/s/s", "10001/s", "\u0665/s"),
        *("9" * 10 + "/d", "5 per second", 5, 0.5, True, b"5/s", ("5", "s")),
    ],
)
def test_what_is_no_rate_is_refused_where_the_task_is_declared(value):
    """With the right form."""
    app = AsyncQ("shop", broker="memory://rates")
    with pytest.raises(InvalidOption, match=r"@task\(rate=\.\.\.\)"):

        @app.task(rate=value)
        async def work() -> None: ...


async def test_turns_are_evenly_spaced_and_unused_time_is_no_credit():
    """After a quiet hour the rate is what it was: nothing bursts."""
    clock = ManualClock()
    turns, rate = Turns(clock), Rate.of("10/s", "")
    for _ in range(2):
        assert turns.take("a", rate, MESSAGE) is None
        for number in range(1, 50):
            throttled = turns.take("a", rate, MESSAGE)
            assert throttled is not None
            assert throttled.delay_s == pytest.approx(number * 0.1)
            assert throttled.until_ms - clock.now_ms() in {number * 100, number * 100 + 1}
        assert turns.take("another", rate, MESSAGE) is None
        await clock.advance(3600)


async def test_whatever_comes_when_no_more_begin_than_the_rate_allows_and_none_is_early():
    """And none has to wait longer than those before it make necessary."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    clock = ManualClock()
    turns, rate = Turns(clock), Rate.of(f"{chance.randint(1, 300)}/{chance.choice('sm')}", "")
    begin: list[float] = []
    for _ in range(2000):
        await clock.advance(chance.choice([0, 0, 0.0001, 0.003, chance.uniform(0, 2 * rate.interval_s)]))
        throttled = turns.take("a", rate, MESSAGE)
        begin.append(clock.monotonic() + (0 if throttled is None else throttled.delay_s))
    assert begin == sorted(begin)
    for number in range(len(begin)):
        assert begin[number] - begin[0] >= number * rate.interval_s - 0.011 or number == 0


def test_a_message_that_has_its_turn_runs_and_one_that_expires_before_takes_none():
    """So nothing is delayed twice, and no turn is lost."""
    clock = ManualClock()
    turns, rate = Turns(clock), Rate.of("1/s", "")
    assert turns.take("a", None, MESSAGE) is None
    assert turns.take("a", rate, MESSAGE) is None
    assert turns.take("a", rate, make_message("work", headers={TURN_AT: 1})) is None
    expiring = make_message("work", headers={EXPIRES_AT: clock.now_ms() + 500})
    for _ in range(3):
        assert turns.take("a", rate, expiring) == Throttled(clock.now_ms() + 1000, 1.0)
    assert turns.take("a", rate, MESSAGE) == Throttled(clock.now_ms() + 1000, 1.0)
    assert turns.take("a", rate, MESSAGE) == Throttled(clock.now_ms() + 2000, 2.0)
    with pytest.raises(MalformedMessage, match=TURN_AT):
        turns.take("a", rate, make_message("work", headers={TURN_AT: "soon"}))


async def test_a_turn_that_is_no_time_makes_a_malformed_message_whatever_the_task():
    """As any other header of asyncq's."""
    kit = await make_kit()

    @kit.task()
    async def work() -> None: ...

    refused = kit.intake.read(kit.delivery("work", headers={TURN_AT: -1}))
    assert isinstance(refused, Refusal)
    assert isinstance(refused.outcome, Rejected)
    assert refused.outcome.reason == "malformed message"
