"""Delays beyond what the broker's ladder carries at once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from asyncq import AsyncQ, Retry, RetryPolicy, Snooze, TaskContext
from asyncq.errors import InvalidOption, MalformedMessage
from asyncq.message import DUE_AT, EXPIRES_AT, STAGED_UNTIL
from asyncq.outcome import Expired, Rejected, Staged, Succeeded
from asyncq.stages import LONGEST_LEG_S, first_leg
from asyncq.testing.harness import running
from asyncq.worker.execution import Executed
from worker_kit import Kit, make_kit

YEAR = timedelta(days=365.25)


@pytest.mark.parametrize(
    ("delay_s", "leg_s", "headers"),
    [
        (0.01, 0.01, {}),
        (LONGEST_LEG_S, LONGEST_LEG_S, {}),
        (LONGEST_LEG_S + 0.001, LONGEST_LEG_S, {STAGED_UNTIL: 77}),
        (10 * LONGEST_LEG_S, LONGEST_LEG_S, {STAGED_UNTIL: 77}),
    ],
)
def test_only_what_is_longer_than_a_leg_is_staged(delay_s, leg_s, headers):
    """All else is never compared with a clock."""
    assert first_leg(delay_s, 77) == (leg_s, headers)


def test_a_delay_of_centuries_is_refused_and_the_error_says_how_much_can_be():
    """Also in the producer."""
    with pytest.raises(InvalidOption, match="100 years"):
        first_leg(1e10, 1)


@pytest.mark.parametrize("how", ["delay", "eta"])
async def test_a_delay_of_three_years_arrives_on_the_day(how):
    """In three legs; each worker that meets it on the way sends it on, and no attempt is counted."""
    app = AsyncQ("shop")
    ran: list[tuple[datetime, int, bool]] = []

    async with running(app) as harness:

        @app.task(pass_context=True)
        async def remind(ctx: TaskContext) -> None:
            ran.append((harness.clock.now(), ctx.attempt, STAGED_UNTIL in ctx.headers))

        due = harness.clock.now() + 3 * YEAR
        options = remind.options(delay=3 * YEAR) if how == "delay" else remind.options(eta=due)
        handle = await options.send()
        harness.clock.move(LONGEST_LEG_S)
        await harness.settle()
        assert (ran, harness.node.delayed) == ([], 1)
        with harness.clock.jumping():
            await handle.result(5)
    ((at, attempt, staged),) = ran
    assert timedelta() <= at - due < timedelta(seconds=1)
    assert (attempt, staged) == (1, False)


async def test_a_retry_and_a_snooze_may_be_away_for_years_too():
    """The attempts are counted as ever."""
    app = AsyncQ("shop", retry=RetryPolicy(max_attempts=3))
    ran: list[tuple[int, datetime]] = []

    async with running(app) as harness:

        @app.task(pass_context=True)
        async def patient(ctx: TaskContext) -> str:
            ran.append((ctx.attempt, harness.clock.now()))
            if len(ran) == 1:
                raise Snooze(2 * YEAR)
            if len(ran) == 2:
                raise Retry(after=2 * YEAR)
            return "done"

        handle = await patient.send()
        with harness.clock.jumping():
            assert await handle.result(5) == "done"
    assert [attempt for attempt, _ in ran] == [1, 1, 2]
    (_, first), (_, second), (_, third) = ran
    assert min(second - first, third - second) >= 2 * YEAR


async def read(kit: Kit, **headers):
    @kit.task()
    async def work() -> int:
        return 1

    return (await kit.execution.execute(kit.delivery("work", headers=headers))).outcome


async def test_a_worker_that_meets_a_staged_message_too_early_does_not_run_it():
    """And runs it from its very millisecond on."""
    kit = await make_kit()
    now_ms = kit.clock.now_ms()
    assert await read(kit, **{STAGED_UNTIL: now_ms + 1500}) == Staged(now_ms + 1500, 1.5)
    assert await read(kit, **{STAGED_UNTIL: now_ms}) == Succeeded(b"1")


@pytest.mark.parametrize("left_ms", [1, 1001, 123_457])
async def test_each_leg_keeps_the_moment_that_the_first_one_was_told(left_ms):
    """Else a millisecond would be lost with each."""
    kit = await make_kit()
    until_ms = kit.clock.now_ms() + left_ms
    delivery = kit.delivery("work", headers={STAGED_UNTIL: until_ms})
    await kit.settlement.settle(Executed(delivery, 1, Staged(until_ms, left_ms / 1000)))
    (copy,) = kit.broker.copies()
    assert copy.message.headers[DUE_AT] == until_ms
    assert STAGED_UNTIL not in copy.message.headers
    assert copy.delay is not None
    assert copy.delay.seconds >= left_ms / 1000


async def test_a_message_that_is_not_staged_is_due_when_the_broker_delivers_it():
    """Whatever this machine's clock says of its due time: clocks differ."""
    kit = await make_kit()
    assert await read(kit, **{DUE_AT: kit.clock.now_ms() + 300_000}) == Succeeded(b"1")


async def test_a_staged_message_that_expires_on_the_way_is_over_at_once():
    """Nobody need carry it any further."""
    kit = await make_kit()
    now_ms = kit.clock.now_ms()
    expired = await read(kit, **{STAGED_UNTIL: now_ms + 1500, EXPIRES_AT: now_ms})
    assert isinstance(expired, Expired)


@pytest.mark.parametrize("value", ["soon", 0, -1, True, 1.5])
async def test_a_malformed_header_makes_a_malformed_message(value):
    """Foreign clients have no business with it."""
    outcome = await read(await make_kit(), **{STAGED_UNTIL: value})
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "malformed message"
    assert outcome.failure.type == f"{MalformedMessage.__module__}.{MalformedMessage.__qualname__}"


async def test_an_eta_in_the_year_9999_is_refused_where_it_is_sent():
    """Not by a worker, in a hundred years."""
    app = AsyncQ("shop")

    async with running(app):

        @app.task
        async def work() -> None: ...

        with pytest.raises(InvalidOption, match="too long"):
            await work.options(eta=datetime(9999, 1, 1, tzinfo=UTC)).send()
