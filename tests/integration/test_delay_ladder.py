"""The delay ladder on a real broker: never early, delivered once, and honest about what is missing."""

import asyncio
import contextlib
import os
import random
import time
import uuid
from dataclasses import dataclass, field

import aio_pika
import pytest
from aio_pika.exceptions import PublishError

from asyncq.broker import Delay, QueueSpec
from asyncq.errors import TopologyMismatch, Unroutable
from asyncq.message import copy_of
from asyncq.rabbitmq.administration import Administration
from asyncq.rabbitmq.connection import ConnectOptions, parse_urls
from asyncq.rabbitmq.delay import Ladder
from asyncq.rabbitmq.delay_routing import entry_key, rounded_units
from asyncq.rabbitmq.properties import message_from, properties_from
from asyncq.rabbitmq.topology import Names, apply, base_plan, queue_plan
from support import eventually

NAMES = Names()
WAIT_S = 60


class CountingChannels:
    """What the adapter gives to the ladder, and how often it was asked."""

    def __init__(self, administration: Administration) -> None:
        self._administration = administration
        self.opened = 0

    def __call__(self):
        self.opened += 1
        return self._administration.channel()


@dataclass
class Arrival:
    """A delivered message."""

    message: aio_pika.abc.AbstractIncomingMessage
    queue: str
    at: float


@dataclass
class Foreign:
    """A plain client: sends into the ladder, and collects what comes out."""

    channel: aio_pika.abc.AbstractChannel
    sent: dict[str, tuple[float, float]] = field(default_factory=dict)
    arrived: dict[str, list[Arrival]] = field(default_factory=dict)

    async def send(self, key: str, delay_s: float, **properties) -> str:
        message_id = uuid.uuid4().hex
        self.sent[message_id] = (time.monotonic(), delay_s)
        enter = await self.channel.get_exchange(NAMES.delay_enter, ensure=False)
        message = aio_pika.Message(
            b"{}", message_id=message_id, delivery_mode=aio_pika.DeliveryMode.PERSISTENT, **properties
        )
        await enter.publish(message, key)
        return message_id

    async def collect(self, *queues: str) -> None:
        for name in queues:
            queue = await self.channel.get_queue(name)

            async def arrive(message, name=name):
                at = time.monotonic()
                self.arrived.setdefault(message.message_id, []).append(Arrival(message, name, at))
                await message.ack()

            await queue.consume(arrive)

    async def all_arrived(self) -> None:
        await eventually(lambda: set(self.arrived) >= set(self.sent), WAIT_S, message="all have arrived")

    def late_s(self) -> list[float]:
        """Return for each message how much later than due it came; in order of sending."""
        return [self.arrived[id_][0].at - at - delay_s for id_, (at, delay_s) in self.sent.items()]


@pytest.fixture
async def channels(broker_url):
    administration = Administration("asyncq test admin", ConnectOptions(parse_urls(broker_url), 10, 10))
    yield CountingChannels(administration)
    await administration.close()


@pytest.fixture
async def ladder(channels):
    await declare(channels, "mail")
    channels.opened = 0
    return Ladder(NAMES, channels)


@pytest.fixture
async def foreign(broker_url):
    async with await aio_pika.connect(broker_url) as connection:
        yield Foreign(await connection.channel(on_return_raises=True))


async def declare(open_channel, *queues: str) -> None:
    plan = base_plan(NAMES)
    for name in queues:
        plan += queue_plan(NAMES, QueueSpec(name))
    await apply(open_channel, plan)


# --- time


async def test_nothing_is_early_and_nothing_waits_behind_a_longer_delay(ladder, foreign):
    """The longest is sent first; all come in the order in which they are due."""
    await foreign.collect("mail")
    delays = [3.0, 2.0, 1.0, 0.3, 0.02]
    keys = [await ladder.prepare("mail", Delay(delay_s)) for delay_s in delays]
    sent = [await foreign.send(key, delay_s) for key, delay_s in zip(keys, delays, strict=True)]
    await foreign.all_arrived()
    assert min(foreign.late_s()) >= 0
    assert sorted(sent, key=lambda id_: foreign.arrived[id_][0].at) == list(reversed(sent))
    assert all(len(arrivals) == 1 for arrivals in foreign.arrived.values())


async def test_many_random_delays_arrive_once_each_and_never_early(ladder, foreign):
    """Most go through several queues. One in ten is a whole number of units, which leaves no room for error."""
    seed = int(os.environ.get("ASYNCQ_TEST_SEED", random.randrange(2**32)))
    print("seed", seed)
    chance = random.Random(seed)
    await foreign.collect("mail")
    delays = [chance.uniform(0.01, 0.6) for _ in range(180)] + [
        chance.choice([0.01, 0.16, 0.17, 0.5]) for _ in range(20)
    ]
    chance.shuffle(delays)
    keys = [await ladder.prepare("mail", Delay(delay_s)) for delay_s in delays]
    for key, delay_s in zip(keys, delays, strict=True):
        await foreign.send(key, delay_s)
    await foreign.all_arrived()
    late = sorted(foreign.late_s())
    print(f"late by {late[0]:.4f} to {late[-1]:.4f} s, half below {late[100]:.4f} s")
    assert late[0] >= 0
    assert all(len(arrivals) == 1 for arrivals in foreign.arrived.values())


async def test_a_backoff_is_delivered_between_its_delay_and_its_limit(ladder, foreign):
    """Rounded up, it takes two hops, and is still not early."""
    await foreign.collect("mail")
    delay = Delay(2.57, at_most_s=3.0)
    assert rounded_units(delay) == 0x110
    await foreign.send(await ladder.prepare("mail", delay), delay.seconds)
    await foreign.all_arrived()
    assert foreign.late_s()[0] >= 0.15  # 2.72 s


async def test_a_delay_of_300_days_waits_in_the_highest_queue(ladder, foreign, management):
    """The broker takes a TTL of 13 months and lets the message be."""
    await foreign.send(await ladder.prepare("mail", Delay(300 * 86_400)), 300 * 86_400)
    assert await management.ready(NAMES.delay_queue(7, 9)) == 1
    assert await management.ready("mail") == 0


async def test_what_the_message_carries_survives(ladder, foreign):
    """Ids, type, reply address and headers arrive as they were sent."""
    await foreign.collect("mail")
    key = await ladder.prepare("mail", Delay(0.17))
    sent = await foreign.send(
        key, 0.17, correlation_id="task", type="shop.mail", reply_to="r", app_id="shop", headers={"asyncq-attempt": 2}
    )
    await foreign.all_arrived()
    message = foreign.arrived[sent][0].message
    assert (message.correlation_id, message.type, message.reply_to, message.app_id) == (
        "task", "shop.mail", "r", "shop",
    )  # fmt: skip
    assert message.headers["asyncq-attempt"] == 2


async def test_a_copy_goes_through_the_same_queues_again_and_again(ladder, foreign):
    """A retry with the same delay: RabbitMQ 3.10 would drop a copy that kept `x-death`, without a word."""
    queue = await foreign.channel.get_queue("mail")
    key = await ladder.prepare("mail", Delay(0.17))
    await foreign.send(key, 0.17, type="shop.mail", correlation_id="task")
    for _ in range(3):
        received = await eventually(lambda: queue.get(fail=False), WAIT_S, message="the copy has arrived")
        assert "x-death" in received.headers
        copy = copy_of(message_from(received.properties, received.body), headers={})
        channel = await foreign.channel.get_underlay_channel()
        await channel.basic_publish(
            copy.body,
            exchange=NAMES.delay_enter,
            routing_key=key,
            properties=properties_from(copy),
            mandatory=True,
        )
        await received.ack()
    assert await eventually(lambda: queue.get(fail=False), WAIT_S, message="the last copy has arrived")


# --- names


AWKWARD = ["mail", "a.mail", "a..mail", ".mail", "mail.", "a.b.c.d.e.f.g.h.mail", "0.0.mail", "-_-", "q" * 200]


async def test_queues_with_dots_get_exactly_their_own(channels, foreign, management):
    """Names that are the end of one another, empty words, names like digits, and the longest name."""
    await declare(channels, *AWKWARD)
    await foreign.collect(*AWKWARD)
    ladder = Ladder(NAMES, channels)
    sent = {}
    for name in AWKWARD:
        sent[await foreign.send(await ladder.prepare(name, Delay(0.17)), 0.17)] = name
    await foreign.all_arrived()
    await asyncio.gather(*(_is_empty(management, name) for name in [*AWKWARD, NAMES.unroutable]))
    assert {id_: [arrival.queue for arrival in foreign.arrived[id_]] for id_ in sent} == {
        id_: [name] for id_, name in sent.items()
    }


# --- what is missing


async def test_a_destination_that_does_not_exist_is_refused_before_anything_is_sent(ladder, management):
    """A delayed message for a mistyped queue would only be missed when it is due."""
    with pytest.raises(Unroutable, match=r"There is no queue 'mial'.*Start a worker"):
        await ladder.prepare("mial", Delay(1))
    assert not any(name.startswith("asyncq.delay.v1.level") for name in await management.queues())


async def test_a_destination_is_found_when_it_comes_to_be(ladder, channels, foreign):
    """That it was missing is not remembered."""
    with pytest.raises(Unroutable):
        await ladder.prepare("late", Delay(0.02))
    await declare(channels, "late")
    await foreign.collect("late")
    await foreign.send(await ladder.prepare("late", Delay(0.02)), 0.02)
    await foreign.all_arrived()


async def test_a_queue_of_other_origin_gets_delayed_messages_too(ladder, foreign):
    """It exists, but nobody has bound it to the ladder yet: a confirmed message must not miss it."""
    await foreign.channel.declare_queue("theirs", durable=True)
    await foreign.collect("theirs")
    await foreign.send(await ladder.prepare("theirs", Delay(0.02)), 0.02)
    await foreign.all_arrived()


async def test_a_message_whose_destination_is_deleted_meanwhile_is_parked(ladder, foreign, management):
    """It was confirmed, so it is kept where an operator finds it."""
    await foreign.send(await ladder.prepare("mail", Delay(0.3)), 0.3)
    await foreign.channel.queue_delete("mail")
    await eventually(lambda: _ready(management, NAMES.unroutable, 1), WAIT_S)


async def test_a_deleted_entry_queue_is_noticed_and_mended(ladder, foreign):
    """The broker returns the publish; after `forget` the ladder is whole again."""
    await foreign.collect("mail")
    key = await ladder.prepare("mail", Delay(0.17))
    await foreign.channel.queue_delete(NAMES.delay_queue(1, 1))
    generation = ladder.generation
    assert await ladder.prepare("mail", Delay(0.17)) == key  # it cannot know yet
    with pytest.raises(PublishError):
        await foreign.send(key, 0.17)
    foreign.sent.clear()
    ladder.forget(generation)
    await foreign.send(await ladder.prepare("mail", Delay(0.17)), 0.17)
    await foreign.all_arrived()
    assert foreign.late_s()[0] >= 0


async def test_a_broker_that_was_emptied_gets_the_whole_ladder_again(ladder, foreign, management, channels):
    """Both ends of the ladder and the last resort are part of what `prepare` declares."""
    await ladder.prepare("mail", Delay(0.17))
    for name in await management.queues():
        await foreign.channel.queue_delete(name)
    for name in await management.exchanges():
        if name.startswith("asyncq."):
            await foreign.channel.exchange_delete(name)
    await foreign.channel.declare_queue("mail", durable=True)
    await foreign.collect("mail")
    ladder.forget()
    await foreign.send(await ladder.prepare("mail", Delay(0.17)), 0.17)
    await foreign.all_arrived()
    assert NAMES.unroutable in await management.queues()


async def test_a_hole_in_the_middle_blocks_nobody(ladder, foreign, management):
    """Messages that come to the hole are parked; the queue above it goes on, and after the repair all arrive."""
    await foreign.collect("mail")
    broken, other = Delay(0.65), Delay(0.66)  # 0x41, 0x42: the same queue on level 1, another one on level 0
    await ladder.prepare("mail", other)
    key = await ladder.prepare("mail", broken)
    await foreign.channel.queue_delete(NAMES.delay_queue(0, 1))
    for _ in range(10):
        await foreign.send(key, broken.seconds)
    foreign.sent.clear()
    await foreign.send(await ladder.prepare("mail", other), other.seconds)
    await foreign.all_arrived()
    await eventually(lambda: _ready(management, NAMES.unroutable, 10), WAIT_S)
    ladder.forget()
    await foreign.send(await ladder.prepare("mail", broken), broken.seconds)
    await foreign.all_arrived()


async def test_a_part_of_other_make_is_named(ladder, foreign):
    """Somebody declared a queue of the ladder with another TTL: nothing is published into it."""
    await foreign.channel.declare_queue(
        NAMES.delay_queue(0, 2), durable=True, arguments={"x-queue-type": "quorum", "x-message-ttl": 5}
    )
    with pytest.raises(TopologyMismatch, match=r"Queue 'asyncq\.delay\.v1\.level0\.2'"):
        await ladder.prepare("mail", Delay(0.02))
    assert await ladder.prepare("mail", Delay(0.03)) == entry_key(3, "mail")


# --- what is remembered


async def test_what_stands_costs_no_round_trip(ladder, channels):
    """Nor does a delay that uses known queues in another combination."""
    await ladder.prepare("mail", Delay(2.89))  # 0x121
    await ladder.prepare("mail", Delay(0.17))  # 0x011
    opened = channels.opened
    await ladder.prepare("mail", Delay(2.89))
    await ladder.prepare("mail", Delay(2.88))  # 0x120
    assert channels.opened == opened


async def test_callers_that_come_at_once_share_one_declaration(ladder, channels):
    """Fifty tasks that fail together are retried with the same delay."""
    keys = await asyncio.gather(*(ladder.prepare("mail", Delay(1.234)) for _ in range(50)))
    assert set(keys) == {entry_key(124, "mail")}
    assert channels.opened == 2  # one to look for the destination, one to declare


async def test_of_many_returned_publishes_one_makes_it_declare_again(ladder, channels):
    """The others find what the first one has mended."""
    await ladder.prepare("mail", Delay(0.17))
    generation = ladder.generation
    before = channels.opened
    for _ in range(5):
        ladder.forget(generation)
        await ladder.prepare("mail", Delay(0.17))
    assert channels.opened == before + 2


async def test_a_caller_that_gives_up_does_not_take_others_along(ladder, foreign):
    """The one that declares is cancelled; who waits behind it declares in its place."""
    await foreign.collect("mail")
    first = asyncio.create_task(ladder.prepare("mail", Delay(1.0)))
    second = asyncio.create_task(ladder.prepare("mail", Delay(1.0)))
    await asyncio.sleep(0)
    first.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await first
    await foreign.send(await second, 1.0)
    await foreign.all_arrived()


async def test_what_was_declared_across_a_forget_is_not_believed(ladder, channels):
    """The broker may have lost it right after."""
    preparing = asyncio.create_task(ladder.prepare("mail", Delay(0.17)))
    await eventually(lambda: channels.opened > 0, message="it declares")
    ladder.forget()
    await preparing
    opened = channels.opened
    await ladder.prepare("mail", Delay(0.17))
    assert channels.opened > opened


async def _ready(management, queue: str, count: int) -> bool:
    return await management.ready(queue) == count


async def _is_empty(management, queue: str) -> None:
    assert await management.ready(queue) == 0, queue
