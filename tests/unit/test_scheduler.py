"""The scheduler on the broker in memory, on a clock that the tests move: what is sent when, by whom, with which id."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError

from asyncq import AsyncQ
from asyncq.broker import Address, Delay
from asyncq.cron import Cron
from asyncq.errors import InvalidOption, InvalidQueueName, NotSent, UnknownTask
from asyncq.memory.broker import MemoryBroker
from asyncq.memory.leadership import MemoryCampaign
from asyncq.memory.node import MemoryNode
from asyncq.message import Message
from asyncq.rabbitmq.properties import read_message
from asyncq.schedule import At, Every
from asyncq.scheduler.requests import PAUSE, REPORT, RESUME, leadership_name, request
from asyncq.scheduler.service import Scheduler
from asyncq.testing.clock import ManualClock
from support import eventually

START = datetime(2026, 1, 1, 12, tzinfo=UTC)


class WallClock(ManualClock):
    """A clock whose wall time can be set without time passing."""

    offset_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.offset_ms


class Bench:
    """A node, a clock, and an app that is made anew as often as a test likes: deployments."""

    def __init__(self) -> None:
        self.clock = WallClock(START)
        self.node = MemoryNode(self.clock)

    def app(self, **options) -> AsyncQ:
        app = AsyncQ("shop", broker=lambda settings: MemoryBroker(settings, self.node), **options)

        @app.task
        async def report(kind: str = "short") -> None: ...

        return app

    @contextlib.asynccontextmanager
    async def scheduling(self, app: AsyncQ, *, leads: bool = True) -> AsyncIterator[Scheduler]:
        with app.using(lambda settings: MemoryBroker(settings, self.node), self.clock):
            async with app:
                scheduler = app.scheduler()
                running = asyncio.create_task(scheduler.run())
                if leads:
                    await eventually(lambda: scheduler.stats.leads)
                    await self.settle()
                try:
                    yield scheduler
                finally:
                    scheduler.stop()
                    await asyncio.wait_for(running, 10)

    async def settle(self) -> None:
        for _ in range(50):
            await asyncio.sleep(0)

    async def pass_(self, seconds: float) -> None:
        await self.clock.advance(seconds)
        await self.settle()

    @property
    def messages(self) -> list[Message]:
        return [read_message(stored.properties, stored.body) for stored in self.node.browse("shop") or ()]

    @property
    def ids(self) -> list[str]:
        return [message.task_id for message in self.messages]

    @property
    def seconds(self) -> list[float]:
        """When the ticks in the queue were due, in seconds after the start."""
        return [message.headers["asyncq-fire-time"] / 1000 - START.timestamp() for message in self.messages]

    async def ask(self, app: AsyncQ, kind: str, name: str | None = None) -> None:
        await app.broker.tell_leader(leadership_name("shop"), request(kind, name, None), timeout_s=5)
        await self.settle()


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_what_is_due_is_sent_at_its_time_with_the_schedule_and_the_fire_time_in_its_id(bench):
    """A task message like any other, without a reply."""
    app = bench.app()
    app.schedule("often", app.signature("shop.report", {"kind": "long"}, headers={"by": "cron"}), 20)
    async with bench.scheduling(app) as scheduler:
        await bench.pass_(19.999)
        assert bench.ids == []
        await bench.pass_(0.001)
        await bench.pass_(20)
        assert scheduler.stats.sent == {"often": 2}
        assert scheduler.stats.lag_s == 0
        assert scheduler.stats.upcoming == {"often": int(START.timestamp() * 1000) + 60_000}
    assert bench.ids == ["shop.often@2026-01-01T12:00:20.000Z", "shop.often@2026-01-01T12:00:40.000Z"]
    message = bench.messages[0]
    assert (message.type, message.body, message.reply_to) == ("shop.report", b'{"kind":"long"}', None)
    assert message.headers["by"] == "cron"
    assert message.headers["asyncq-schedule"] == "often"


async def test_a_tick_was_sent_at_its_fire_time_however_late_it_is(bench):
    """So two messages of one tick, by two leaders, are the same life of its task."""
    app = bench.app()
    app.schedule("often", app.signature("shop.report"), 20)
    async with bench.scheduling(app):
        await bench.pass_(1)
    await bench.pass_(22.5)
    async with bench.scheduling(app):
        await bench.pass_(1)
    (message,) = bench.messages
    assert message.headers["asyncq-sent-at"] == message.headers["asyncq-fire-time"]
    assert message.timestamp_ms == message.headers["asyncq-fire-time"] + 3_000


async def test_of_several_schedulers_one_sends_and_the_next_goes_on_where_it_stopped(bench):
    """Each fire time has one tick, across the hand-over."""
    first, second = bench.app(), bench.app()
    for app in (first, second):
        app.schedule("often", "shop.report", 1)
    async with contextlib.AsyncExitStack() as leading:
        leader = await leading.enter_async_context(bench.scheduling(first))
        follower = await leading.enter_async_context(bench.scheduling(second, leads=False))
        await bench.pass_(3)
        assert (leader.stats.leads, follower.stats.leads) == (True, False)
        leader.stop()
        await eventually(lambda: follower.stats.leads)
        await bench.pass_(3)
    assert bench.seconds == [1, 2, 3, 4, 5, 6]


async def test_a_lost_leader_costs_no_fire_time_and_repeats_at_most_a_second_with_the_same_ids(bench):
    """The connection is lost again and again; the term begins anew."""
    app = bench.app()
    app.schedule("often", "shop.report", 0.5)
    async with bench.scheduling(app) as scheduler:
        for terms in range(2, 12):
            await bench.pass_(1.3)
            app.broker.lose_connection()
            await eventually(lambda: scheduler.stats.terms == terms)  # noqa: B023 - asked at once
            await bench.settle()
        await bench.pass_(0.5)
    assert sorted(set(bench.seconds)) == [n / 2 for n in range(1, 28)]
    assert len(bench.ids) <= 27 + 10 * 2


async def test_leaders_that_die_young_go_on_from_each_other(bench):
    """None of them lives for the second after which a watermark is saved again, and none hands over."""
    app = bench.app()
    app.schedule("often", "shop.report", 1, missed="all")
    with app.using(lambda settings: MemoryBroker(settings, bench.node), bench.clock):
        async with app:
            for _ in range(8):
                scheduler = app.scheduler()
                running = asyncio.create_task(scheduler.run())
                await eventually(lambda: scheduler.stats.leads)  # noqa: B023 - asked at once
                await bench.settle()
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
                await bench.clock.advance(10)
    assert bench.seconds == [float(n) for n in range(1, 71)]


@pytest.mark.parametrize(
    ("missed", "expected"), [("skip", [660]), ("once", [600, 660]), ("all", [60.0 * n for n in range(1, 12)])]
)
async def test_ten_minutes_without_a_scheduler_go_by_the_policy(bench, missed, expected):
    """All instances were stopped; the first one afterwards decides."""
    for seconds in (0, 35):
        app = bench.app()
        app.schedule("minutely", "shop.report", Cron("* * * * *"), missed=missed)
        async with bench.scheduling(app):
            await bench.pass_(seconds)
        if not seconds:
            await bench.clock.advance(630)
    assert bench.seconds == expected


async def test_a_schedule_that_is_gone_from_the_code_stops_and_a_new_one_has_no_past(bench):
    """A deployment in between; the one that stays goes on."""
    old = bench.app()
    old.schedule("stays", "shop.report", 10, missed="all")
    old.schedule("goes", "shop.report", 10)
    async with bench.scheduling(old):
        await bench.pass_(10)
    await bench.clock.advance(25)
    new = bench.app()
    new.schedule("stays", "shop.report", 10, missed="all")
    new.schedule("comes", "shop.report", 10, missed="all")
    async with bench.scheduling(new):
        await bench.pass_(5)
    assert sorted(bench.ids) == sorted(
        ["shop.goes@2026-01-01T12:00:10.000Z", "shop.comes@2026-01-01T12:00:40.000Z"]
        + [f"shop.stays@2026-01-01T12:00:{second}.000Z" for second in (10, 20, 30, 40)]
    )


async def test_a_pause_outlives_the_scheduler_and_what_fell_into_it_is_not_caught_up(bench):
    """Also where it was asked for while nobody led."""
    for seconds, kind in ((10, PAUSE), (30, None), (0, RESUME), (10, None)):
        app = bench.app()
        app.schedule("a", "shop.report", 10, missed="all")
        async with bench.scheduling(app):
            await bench.pass_(seconds)
            if kind is not None:
                await bench.ask(app, kind, "a")
    assert bench.seconds == [10, 50]


class Unwilling(MemoryBroker):
    """A broker that takes nothing from its leader while a test says so, as one with a memory alarm does."""

    blocked = False
    refused = 0

    @contextlib.asynccontextmanager
    async def campaign(self, name: str) -> AsyncIterator[MemoryCampaign]:
        async with super().campaign(name) as terms:
            publish = terms._publish

            async def perhaps(message: Message, to: Address, delay: Delay | None) -> None:
                if self.blocked:
                    self.refused += 1
                    raise NotSent("Nothing was sent: the broker takes nothing at the moment.")
                await publish(message, to, delay)

            terms._publish = perhaps
            yield terms


@contextlib.asynccontextmanager
async def leading_on_an_unwilling_broker(bench: Bench, app: AsyncQ) -> AsyncIterator[tuple[Scheduler, Unwilling]]:
    broker = Unwilling(app.settings, bench.node)
    with app.using(lambda _: broker, bench.clock):
        async with app:
            scheduler = app.scheduler()
            running = asyncio.create_task(scheduler.run())
            await eventually(lambda: scheduler.stats.leads)
            await bench.settle()
            yield scheduler, broker
            scheduler.stop()
            await bench.pass_(2)
            await asyncio.wait_for(running, 10)


async def test_a_scheduler_stops_while_the_broker_takes_nothing_and_the_next_one_sends_what_is_left(bench):
    """Else it would hold up the end of its process until the broker is well again."""
    app = bench.app()
    app.schedule("often", "shop.report", 10)
    async with leading_on_an_unwilling_broker(bench, app) as (scheduler, broker):
        broker.blocked = True
        await bench.pass_(12)
        assert broker.refused > 0
        assert scheduler.stats.sent == {}
    async with bench.scheduling(app):
        await bench.pass_(1)
    assert bench.seconds == [10]


async def test_a_tick_that_the_broker_takes_only_after_its_deadline_is_skipped_and_counted(bench):
    """However long it was tried."""
    app = bench.app()
    app.schedule("short", "shop.report", At(START + timedelta(seconds=10)), deadline=30)
    app.schedule("long", "shop.report", At(START + timedelta(seconds=10)), deadline=3000)
    async with leading_on_an_unwilling_broker(bench, app) as (scheduler, broker):
        broker.blocked = True
        await bench.pass_(60)
        broker.blocked = False
        await bench.pass_(5)
        assert scheduler.stats.skipped == {("short", "deadline"): 1}
    assert bench.ids == ["shop.long@2026-01-01T12:00:10.000Z"]


async def test_a_pause_is_done_when_the_next_leader_would_know_it(bench):
    """Not before: one whose leader is lost while it cannot be kept is asked of the next leader again."""
    app = bench.app()
    app.schedule("a", "shop.report", 10)
    async with leading_on_an_unwilling_broker(bench, app) as (_, broker):
        broker.blocked = True
        await bench.ask(app, PAUSE, "a")
        await bench.pass_(3)
        broker.blocked = False
        broker.lose_connection()
        await bench.settle()
    async with bench.scheduling(app):
        await bench.pass_(30)
    assert bench.seconds == []


async def test_a_pause_outlives_a_leader_whose_code_has_not_that_schedule(bench):
    """As of the version before, when a deployment is rolled back, or takes a while."""
    for names, kind in ((("a", "b"), PAUSE), (("b",), None), (("a", "b"), None), (("a", "b"), RESUME)):
        app = bench.app()
        for name in names:
            app.schedule(name, "shop.report", 10)
        async with bench.scheduling(app):
            if kind is not None:
                await bench.ask(app, kind, "a")
            await bench.pass_(10)
    assert [tick for tick in bench.ids if "shop.a@" in tick] == ["shop.a@2026-01-01T12:00:40.000Z"]
    assert len([tick for tick in bench.ids if "shop.b@" in tick]) == 4


async def test_a_moment_is_sent_once_whatever_happens_afterwards(bench):
    """Restarts included."""
    for _ in range(3):
        app = bench.app(schedules={"shop.report": At(START + timedelta(seconds=5))})
        async with bench.scheduling(app):
            await bench.pass_(10)
    assert bench.ids == ["shop.shop.report@2026-01-01T12:00:05.000Z"]


async def test_a_period_that_is_not_aligned_counts_from_when_it_was_first_seen(bench):
    """By all schedulers alike."""
    await bench.clock.advance(3)
    for _ in range(2):
        app = bench.app()
        app.schedule("a", "shop.report", Every(10, aligned=False))
        async with bench.scheduling(app):
            await bench.pass_(12)
    assert bench.seconds == [13, 23]


async def test_a_clock_that_is_set_back_repeats_nothing_and_one_set_forward_skips_nothing(bench):
    """By an hour, while the leader sleeps; the machine corrects it afterwards."""
    app = bench.app()
    app.schedule("a", "shop.report", 60)
    async with bench.scheduling(app):
        await bench.pass_(60)
        bench.clock.offset_ms = -3600_000
        await bench.pass_(120)
        assert bench.seconds == [60]
        bench.clock.offset_ms = 0
        await bench.pass_(11)
        assert bench.seconds == [60, 180]
        bench.clock.offset_ms = 3600_000
        await bench.pass_(11)
        assert bench.seconds == [60, 180, 3780]


async def test_a_tick_that_cannot_be_sent_does_not_hold_up_the_others(bench):
    """There is no queue for it: it is counted, and the log says so."""
    app = bench.app()
    app.schedule("bad", app.signature("shop.report", queue="nowhere"), 10)
    app.schedule("good", "shop.report", 10)
    async with bench.scheduling(app) as scheduler:
        await bench.pass_(20)
        assert scheduler.stats.skipped == {("bad", "refused"): 2}
    assert bench.seconds == [10, 20]


async def test_schedules_by_task_name_take_arguments_and_options(bench):
    """Of the schedule and of the send."""
    app = bench.app(
        schedules={"shop.report": {"when": 10, "arguments": {"kind": "long"}, "headers": {"x": 1}, "missed": "all"}}
    )
    async with bench.scheduling(app):
        await bench.pass_(10)
    assert bench.messages[0].body == b'{"kind":"long"}'
    assert bench.messages[0].headers["x"] == 1


async def test_the_leader_answers_what_it_knows(bench):
    """Next and last runs, what is paused, and how far it is."""
    app = bench.app()
    app.schedule("a", "shop.report", 10)
    app.schedule("b", "shop.report", Cron("0 8 * * *"))
    async with bench.scheduling(app), app.broker.mailbox() as mailbox:
        await bench.pass_(10)
        await bench.ask(app, PAUSE, "b")
        await bench.ask(app, PAUSE, "unknown")
        await app.broker.tell_leader(leadership_name("shop"), request(REPORT, None, mailbox.address), timeout_s=5)
        answer = await asyncio.wait_for(anext(aiter(mailbox)), 10)
    import json

    found = json.loads(answer.body)["schedules"]
    start_ms = int(START.timestamp() * 1000)
    assert found["a"]["last_ms"] == start_ms + 10_000
    assert found["a"]["next_ms"] == start_ms + 20_000
    assert (found["a"]["sent"], found["b"]["paused"], found["b"]["next_ms"]) == (1, True, None)
    assert found["b"]["when"] == "0 8 * * * UTC"


@pytest.mark.parametrize(
    ("schedules", "message"),
    [
        ({"shop.report": {"every": 5}}, "has no 'when'"),
        ({"shop.report": {"when": 5, "evry": 5}}, "no option 'evry'"),
        ({"shop.report": "0 8 * * *"}, r"takes Cron\("),
        ([("shop.report", 5)], "by the task's name"),
        ({"shop report": 5}, "letters, digits"),
        ({"shop.report": {"when": 5, "arguments": ["long"]}}, r"takes them by name, such as \{'x': 1\}"),
        ({"shop.report": {"when": 5, "arguments": 0}}, "takes them by name"),
    ],
)
def test_schedules_that_cannot_be_used_are_refused_when_the_app_is_made(bench, schedules, message):
    """With what is wanted."""
    with pytest.raises(InvalidOption, match=message):
        bench.app(schedules=schedules)


async def test_arguments_that_do_not_fit_and_a_queue_that_cannot_be_say_of_which_schedule_they_are(bench):
    """Before anything is sent, and not with each tick."""
    app = bench.app(schedules={"shop.report": {"when": 5, "arguments": {"kind": 7}}})
    async with app:
        with pytest.raises(ValidationError) as caught:
            app.scheduler()
    assert caught.value.__notes__ == ["These are the 'arguments' of AsyncQ(schedules={'shop.report': ...})."]
    with pytest.raises(InvalidQueueName, match="x y"):
        app.schedule("a", app.signature("shop.report", queue="x y"), 5)


async def test_what_means_nothing_for_a_schedule_is_refused(bench):
    """At declaration; an unknown task, when the scheduler starts."""
    app = bench.app(schedules={"shop.reprot": 5})
    for options in ({"task_id": "a"}, {"eta": START}, {"expires": START}, {"reply": True}, {"timeout": 5}):
        with pytest.raises(InvalidOption, match="means nothing"):
            app.schedule("a", app.signature("shop.report", **options), 5)
    with pytest.raises(InvalidOption, match="no option 'jitter'"):
        app.schedule("a", "shop.report", 5, jitter=5)
    app.schedule("a", "shop.report", 5)
    with pytest.raises(InvalidOption, match="already"):
        app.schedule("a", "shop.report", 5)
    async with app:
        with pytest.raises(UnknownTask, match=r"'shop.reprot'.*shop.report"):
            app.scheduler()
        with pytest.raises(InvalidOption, match="has no schedules"):
            async with bench.app() as empty:
                empty.scheduler()
