"""Declaring on a real broker: what stands afterwards, and what is said when the broker refuses."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit, urlunsplit

import aio_pika
import pytest

from asyncq.broker import QueueSpec
from asyncq.errors import AccessRefused, BrokerUnavailable, TopologyMismatch
from asyncq.rabbitmq.administration import Administration
from asyncq.rabbitmq.connection import ConnectOptions, parse_urls
from asyncq.rabbitmq.declarations import BindingDeclaration, ExchangeDeclaration, QueueDeclaration
from asyncq.rabbitmq.topology import Names, apply, base_plan, queue_plan, reply_queue_declaration
from support import eventually

NAMES = Names()
PLAN = base_plan(NAMES) + queue_plan(NAMES, QueueSpec("mail", delivery_limit=3))


@contextlib.asynccontextmanager
async def administration(url: str) -> AsyncIterator[Administration]:
    opened = Administration("asyncq test admin", ConnectOptions(parse_urls(url), heartbeat_s=10, timeout_s=10))
    try:
        yield opened
    finally:
        await opened.close()


@pytest.fixture
async def open_channel(broker_url):
    """What the adapter gives to everything that declares."""
    async with administration(broker_url) as opened:
        yield opened.channel


@pytest.fixture
async def foreign(broker_url):
    """A channel of a plain client."""
    async with await aio_pika.connect(broker_url) as connection:
        yield await connection.channel(on_return_raises=True)


async def test_what_is_planned_stands(open_channel, management):
    """Queues and exchanges with exactly these arguments, and exactly these bindings."""
    await apply(open_channel, PLAN)
    queues, exchanges = await management.queues(), await management.exchanges()
    bindings = {
        (binding["source"], binding["routing_key"], binding["destination"])
        for binding in await management.bindings()
        if binding["source"]
    }
    for part in PLAN:
        match part:
            case QueueDeclaration(name, arguments):
                assert queues[name]["arguments"] == dict(arguments)
                assert queues[name]["durable"]
            case ExchangeDeclaration(name, kind, arguments):
                assert exchanges[name]["arguments"] == dict(arguments)
                assert (exchanges[name]["type"], exchanges[name]["durable"]) == (kind, True)
    assert bindings == {
        (part.exchange, part.key, part.destination) for part in PLAN if isinstance(part, BindingDeclaration)
    }
    assert set(queues) == {"mail", "mail.dead", "asyncq.unroutable"}


async def test_declaring_again_changes_nothing(open_channel, foreign, management):
    """Every start of a worker declares; messages and queues stay."""
    await apply(open_channel, PLAN)
    tasks = await foreign.get_exchange(NAMES.tasks_exchange)
    await tasks.publish(aio_pika.Message(b"{}", message_id="1"), "mail")
    await apply(open_channel, PLAN)
    assert await management.ready("mail") == 1


async def test_many_processes_may_declare_at_once(broker_url, management):
    """Ten workers that start together do not disturb each other."""

    async def start() -> None:
        async with administration(broker_url) as opened:
            await apply(opened.channel, PLAN)

    await asyncio.gather(*(start() for _ in range(10)))
    assert set(await management.queues()) == {"mail", "mail.dead", "asyncq.unroutable"}


async def test_a_task_for_a_queue_that_is_not_there_comes_back_to_its_sender(open_channel, foreign):
    """The tasks exchange tells the truth about unroutable messages."""
    await apply(open_channel, PLAN)
    tasks = await foreign.get_exchange(NAMES.tasks_exchange)
    with pytest.raises(aio_pika.exceptions.PublishError):
        await tasks.publish(aio_pika.Message(b"{}", message_id="1"), "mial")


async def test_a_dead_letter_without_a_queue_is_parked(open_channel, foreign, management):
    """Somebody deleted the dead-letter queue: what the broker dead-letters then is not dropped."""
    await apply(open_channel, PLAN)
    await foreign.queue_delete("mail.dead")
    tasks = await foreign.get_exchange(NAMES.tasks_exchange)
    await tasks.publish(aio_pika.Message(b"{}", message_id="1"), "mail")
    queue = await foreign.get_queue("mail")
    await (await queue.get()).reject(requeue=False)
    await eventually(lambda: _ready(management, NAMES.unroutable, 1), timeout=20)


async def test_a_message_that_is_given_back_too_often_is_dead_lettered(open_channel, foreign, management):
    """The queue's delivery limit is the last line against a message that kills its workers."""
    await apply(open_channel, PLAN)
    tasks = await foreign.get_exchange(NAMES.tasks_exchange)
    await tasks.publish(aio_pika.Message(b"{}", message_id="1"), "mail")
    queue = await foreign.get_queue("mail")
    for _ in range(4):  # the first delivery, and three more
        delivery = await eventually(lambda: queue.get(fail=False), message="the message is delivered")
        await delivery.reject(requeue=True)
    await eventually(lambda: _ready(management, "mail.dead", 1), timeout=20)
    assert await management.ready("mail") == 0


async def test_a_queue_of_another_type_is_named_with_the_remedy(open_channel, foreign, management):
    """A queue `mail` of some other program is left alone, and the error says what to do."""
    await foreign.declare_queue("mail", durable=True)
    with pytest.raises(TopologyMismatch) as caught:
        await apply(open_channel, PLAN)
    said = str(caught.value)
    assert "Queue 'mail'" in said
    assert "exists with other arguments: 'x-" in said  # one of them; which one is the broker's choice
    assert "not set there" in said
    assert "delete_queue mail" in said
    assert (await management.queue("mail"))["type"] == "classic"


async def test_another_delivery_limit_is_named_with_both_values(open_channel):
    """The setting that makes both agree is named."""
    await apply(open_channel, PLAN)
    with pytest.raises(TopologyMismatch, match=r"'x-delivery-limit' is '3' there, and asyncq needs '50'.*to '3'"):
        await apply(open_channel, queue_plan(NAMES, QueueSpec("mail", delivery_limit=50)))


async def test_a_dead_letter_queue_of_another_type_is_named(open_channel, foreign):
    """The mismatch may be in a queue that the user never wrote down."""
    await foreign.declare_queue("mail.dead", durable=True)
    with pytest.raises(TopologyMismatch, match=r"Queue 'mail\.dead'"):
        await apply(open_channel, PLAN)


async def test_an_exchange_of_another_type_is_named(open_channel, foreign):
    """The namespace is the way out."""
    await foreign.declare_exchange(NAMES.tasks_exchange, "topic", durable=True)
    with pytest.raises(TopologyMismatch, match=r"Exchange 'asyncq\.tasks'.*'type' is 'topic'.*ASYNCQ_NAMESPACE"):
        await apply(open_channel, PLAN)


async def test_a_queue_that_is_exclusive_to_somebody_is_named(open_channel, foreign):
    """It exists, but only for the connection that made it."""
    await foreign.declare_queue("mail", durable=False, exclusive=True)
    with pytest.raises(TopologyMismatch, match=r"Queue 'mail'.*exclusive"):
        await apply(open_channel, PLAN)


async def test_after_a_refusal_other_queues_can_be_declared(open_channel, foreign, management):
    """A refusal costs a channel, not the connection."""
    await foreign.declare_queue("mail", durable=True)
    with pytest.raises(TopologyMismatch):
        await apply(open_channel, PLAN)
    await apply(open_channel, base_plan(NAMES) + queue_plan(NAMES, QueueSpec("images")))
    assert "images.dead" in await management.queues()


async def test_a_missing_permission_is_named_with_user_and_object(node, broker_url):
    """The user may use the virtual host, and configure nothing in it."""
    vhost_path = urlsplit(broker_url).path[1:]
    node.api("PUT", "/users/reader", {"password": "secret", "tags": ""})
    try:
        node.api("PUT", f"/permissions/{vhost_path}/reader", {"configure": "^x$", "write": ".*", "read": ".*"})
        parts = urlsplit(broker_url)
        url = urlunsplit(parts._replace(netloc=f"reader:secret@{parts.hostname}:{parts.port}"))
        async with administration(url) as opened:
            with pytest.raises(AccessRefused, match=r"User 'reader'.*configure.*'asyncq\.unroutable'.*set_permissions"):
                await apply(opened.channel, PLAN)
    finally:
        node.api("DELETE", "/users/reader")


async def test_a_lost_connection_is_said_so(open_channel):
    """It may help to try again, which a refusal does not say."""

    @contextlib.asynccontextmanager
    async def open_and_lose():
        async with open_channel() as channel:
            await channel.connection.close()
            yield channel

    with pytest.raises(BrokerUnavailable):
        await apply(open_and_lose, PLAN)


async def test_a_cancelled_declaration_ends_at_once_and_costs_the_others_nothing(open_channel, management):
    """A timeout around declaring, met at any step: opening the channel, declaring, closing it."""
    await apply(open_channel, base_plan(NAMES))
    async with asyncio.timeout(60), open_channel() as other:
        for step in range(60):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(step * 0.0002):
                    await apply(open_channel, PLAN)
        await apply(open_channel, PLAN)
        await other.queue_declare("mail", passive=True)  # on the same connection, which has lived through it
    assert "mail" in await management.queues()


async def test_a_reply_queue_can_be_declared(open_channel, management):
    """Classic, durable, and gone some time after its last consumer."""
    name = NAMES.reply_queue("shop")
    await apply(open_channel, (reply_queue_declaration(name, 600),))
    declared = await management.queue(name)
    assert declared["arguments"] == {"x-queue-type": "classic", "x-expires": 600_000}
    assert declared["durable"]


async def _ready(management, queue: str, count: int) -> bool:
    return await management.ready(queue) == count
