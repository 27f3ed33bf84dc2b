"""Dead letters on a real broker: parked with the reason, and looked at without changing anything."""

import asyncio
import contextlib
from contextlib import aclosing

import aio_pika
import pytest

from asyncq.broker import DeadLetterRecord, Delay, Identity, Queue, QueueSpec
from asyncq.errors import BrokerUnavailable, NotSent
from asyncq.message import Message, new_id
from asyncq.outcome import Failure
from asyncq.rabbitmq.adapter import RabbitMQ
from asyncq.rabbitmq.dead_letters import RabbitDeadLetters
from asyncq.rabbitmq.topology import Names
from asyncq.settings import Settings
from support import eventually

NAMES = Names()
WAIT_S = 30
RECORD = DeadLetterRecord(
    failure=Failure("builtins.ValueError", "Grüße: no such address", "Traceback ...\nValueError"),
    reason="attempts exhausted",
    failed_at_ms=1_750_000_000_123,
    attempts=4,
    queue="mail",
    worker="host 4711",
)


@pytest.fixture
async def broker(broker_url):
    """The adapter, open, with the task queue `mail`."""
    opened = RabbitMQ(Settings(broker_url=broker_url))
    await opened.open(Identity("shop", "test"))
    await opened.ensure([QueueSpec("mail", delivery_limit=3)])
    yield opened
    await opened.close()


@pytest.fixture
def letters(broker):
    """The dead letters of `mail`."""
    return broker.dead_letters("mail")


@pytest.fixture
async def foreign(broker_url):
    """A channel of a plain client."""
    async with await aio_pika.connect(broker_url) as connection:
        yield await connection.channel(on_return_raises=True)


def task(number: int = 0, **headers) -> Message:
    return Message(
        type="shop.mail", body=b'{"n": %d}' % number, task_id=f"task {number}", message_id=new_id(), headers=headers
    )


async def look(letters, limit=None) -> list[bytes]:
    return [letter.message.body async for letter in letters.browse(limit=limit)]


async def fill(broker, count: int) -> list[bytes]:
    """Put so many foreign messages into the dead-letter queue, in order."""
    messages = [task(number) for number in range(count)]
    for message in messages:
        await broker.publish(message, Queue("mail.dead"), timeout_s=WAIT_S)
    return [message.body for message in messages]


# --- putting


async def test_the_wire_contract_of_a_dead_letter(letters, foreign):
    """Other languages read these headers, and an operator reads them in the management UI."""
    await letters.put(task(1), RECORD, timeout_s=WAIT_S)
    queue = await foreign.get_queue("mail.dead")
    message = await queue.get(no_ack=True)
    headers = {name: value for name, value in message.headers.items() if not name.startswith("x-")}
    assert headers == {
        "asyncq-error-type": "builtins.ValueError",
        "asyncq-error-message": "Grüße: no such address",
        "asyncq-error-traceback": "Traceback ...\nValueError",
        "asyncq-reason": "attempts exhausted",
        "asyncq-failed-at": 1_750_000_000_123,
        "asyncq-attempts": 4,
        "asyncq-queue": "mail",
        "asyncq-worker": "host 4711",
    }
    assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
    assert message.expiration is None


async def test_a_deleted_dead_letter_queue_is_declared_again(broker, letters, foreign, management):
    """The letter is parked, and a task queue that was deleted on purpose does not come back by this."""
    await foreign.queue_delete("mail.dead")
    await foreign.queue_delete("mail")
    await letters.put(task(1), RECORD, timeout_s=WAIT_S)
    assert len(await look(letters)) == 1
    assert "mail" not in await management.queues()
    arguments = (await management.queue("mail.dead"))["arguments"]
    assert arguments == {"x-queue-type": "quorum", "x-delivery-limit": 2_000_000_000}


async def test_a_dead_letter_queue_that_cannot_be_declared_again_is_not_sent(broker, foreign):
    """The error is one that a settlement knows: nothing was sent, try again."""

    @contextlib.asynccontextmanager
    async def no_channel():
        raise BrokerUnavailable("gone")
        yield

    await foreign.queue_delete("mail.dead")
    letters = RabbitDeadLetters(NAMES, "mail", broker.publish, no_channel)
    with pytest.raises(NotSent, match=r"queue 'mail\.dead', which was deleted: gone"):
        await letters.put(task(1), RECORD, timeout_s=WAIT_S)


# --- looking


async def test_fifty_looks_destroy_nothing(broker, letters, foreign):
    """Without a limit of its own RabbitMQ 4 would drop every message at its 21st look; order stays as well."""
    bodies = await fill(broker, 12)
    for _ in range(50):
        assert await look(letters) == bodies
    queue = await foreign.get_queue("mail.dead")
    taken = [(await queue.get(no_ack=True)).body for _ in bodies]
    assert taken == bodies
    assert await queue.get(fail=False) is None


async def test_a_foreign_look_destroys_nothing_either(broker, letters, foreign):
    """The management UI gets messages and gives them back, 50 times."""
    bodies = await fill(broker, 3)
    queue = await foreign.get_queue("mail.dead")
    for _ in range(50):
        for _ in bodies:
            await (await queue.get()).reject(requeue=True)
    assert sorted(await look(letters)) == bodies


async def test_a_look_that_fails_gives_everything_back(broker, letters):
    """An exception in the caller's own code."""
    bodies = await fill(broker, 5)

    async def fail() -> None:
        async with aclosing(letters.browse()) as seen:
            async for _ in seen:
                raise KeyError

    with pytest.raises(KeyError):
        await fail()
    assert await look(letters) == bodies


async def test_a_look_that_is_cancelled_gives_everything_back(broker, letters):
    """Ctrl-C, or a timeout, in the middle."""
    bodies = await fill(broker, 50)
    seen = asyncio.Event()

    async def slowly() -> None:
        async with aclosing(letters.browse()) as found:
            async for _ in found:
                seen.set()

    looking = asyncio.create_task(slowly())
    await seen.wait()
    looking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await looking
    await eventually(lambda: _sees(letters, sorted(bodies)), WAIT_S)


async def test_garbage_is_shown_as_it_is(letters, foreign):
    """A body that is no JSON, no type, no id, and headers that are a record of nothing."""
    garbage = aio_pika.Message(
        b"\xff\xfe", message_id="m", headers={"asyncq-error-type": 7, "asyncq-failed-at": "soon", "asyncq-reason": None}
    )
    await foreign.default_exchange.publish(garbage, "mail.dead")
    (letter,) = [letter async for letter in letters.browse()]
    assert letter.record is None
    assert (letter.message.body, letter.message.type) == (b"\xff\xfe", "")


# --- what the broker itself puts there


async def test_rejects_of_messages_from_the_ladder_end_there_too(broker, letters, foreign):
    """These have the digits of their delay in the routing key: 40 of them, and one that came without delay."""
    for number in range(40):
        await broker.publish(task(number), Queue("mail"), delay=Delay(0.17), timeout_s=WAIT_S)
    await broker.publish(task(40), Queue("mail"), timeout_s=WAIT_S)
    queue = await foreign.get_queue("mail")
    async with asyncio.timeout(WAIT_S), queue.iterator() as deliveries:
        rejected = 0
        async for delivery in deliveries:
            await delivery.reject(requeue=False)
            rejected += 1
            if rejected == 41:
                break
    expected = sorted(task(number).body for number in range(41))
    await eventually(lambda: _sees(letters, expected), WAIT_S)


async def _sees(letters, bodies: list[bytes]) -> bool:
    return sorted(await look(letters)) == bodies
