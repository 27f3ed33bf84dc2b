"""Publishing: confirmed and in the queue, or an error that says what happened."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from asyncq.broker import Address, Delay, Exchange, Publication, Queue, ReplyTo
from asyncq.errors import MessageTooLarge, NotSent, Refused, Unroutable
from asyncq.message import Message, new_id
from asyncq.testing.conformance.bench import QUEUE, WAIT_S, Bench, behaviour, make_message, put, take

TASKS = Exchange("asyncq.tasks", QUEUE)


@behaviour
async def test_a_message_whose_publish_has_returned_is_in_its_queue(bench: Bench) -> None:
    """Confirmed means kept: it is there for a connection that comes later."""
    async with bench.open() as broker:
        await put(broker, 3)
    assert await bench.count(QUEUE) == 3
    async with bench.open() as later, later.consume(QUEUE, slots=3) as subscription:
        assert len(await take(subscription, 3)) == 3


@behaviour
async def test_a_message_is_addressed_to_a_queue_or_to_the_tasks_exchange(bench: Bench) -> None:
    """Copies go to exactly one queue; sends go by the exchange, with the queue's name as key."""
    async with bench.open() as broker:
        await put(broker, 1, first=1, to=Queue(QUEUE))
        await put(broker, 1, first=2, to=TASKS)
        async with broker.consume(QUEUE, slots=2) as subscription:
            assert [item.message.task_id for item in await take(subscription, 2)] == ["task-1", "task-2"]


@behaviour
async def test_a_message_for_a_queue_that_does_not_exist_is_unroutable(bench: Bench) -> None:
    """At once and with a delay, whatever the kind of address; the error names the queue."""
    addresses: list[Address] = [Queue("nowhere"), Exchange("asyncq.tasks", "nowhere"), ReplyTo("nowhere")]
    async with bench.open() as broker:
        for address in addresses:
            with pytest.raises(Unroutable, match="'nowhere'"):
                await put(broker, to=address)
        for address in addresses[:2]:
            with pytest.raises(Unroutable, match="'nowhere'"):
                await put(broker, to=address, delay=Delay(60))


@behaviour
async def test_a_queue_that_was_deleted_takes_nothing_any_more(bench: Bench) -> None:
    """Neither at once nor delayed; its name is not remembered as good."""
    async with bench.open() as broker:
        await put(broker, to=TASKS)
        await bench.delete_queue(QUEUE)
        with pytest.raises(Unroutable):
            await put(broker, to=TASKS)
        with pytest.raises(Unroutable):
            await put(broker, to=TASKS, delay=Delay(60))


@behaviour
async def test_a_message_that_is_too_large_is_refused_before_it_is_sent_and_harms_no_other(bench: Bench) -> None:
    """The error names the setting; what was under way beside it arrives."""
    async with bench.open(max_message_bytes=10_000) as broker:

        async def publish(size: int) -> None:
            await broker.publish(make_message(body=b"x" * size), Queue(QUEUE), timeout_s=WAIT_S)

        sizes = (10, 10_001, 10_000, 20, 30)
        outcomes = await asyncio.gather(*map(publish, sizes), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [
            MessageTooLarge if size > 10_000 else type(None) for size in sizes
        ]
        assert "max_message_bytes" in str(outcomes[1])
        too_large = make_message(body=b"x" * 10_001)
        with pytest.raises(MessageTooLarge):
            await broker.publish(too_large, Queue(QUEUE), delay=Delay(60), timeout_s=WAIT_S)
    assert await bench.count(QUEUE) == 4


@behaviour
async def test_what_cannot_be_written_is_refused_and_harms_no_other(bench: Bench) -> None:
    """A header that AMQP has no type for, and an id of more than 255 bytes."""
    bad = [make_message(headers={"odd": object()}), make_message(task_id="x" * 300)]
    async with bench.open() as broker:
        for message in bad:
            outcomes = await asyncio.gather(
                broker.publish(make_message(1), Queue(QUEUE), timeout_s=WAIT_S),
                broker.publish(message, Queue(QUEUE), timeout_s=WAIT_S),
                broker.publish(make_message(2), Queue(QUEUE), timeout_s=WAIT_S),
                return_exceptions=True,
            )
            assert [type(outcome) for outcome in outcomes] == [type(None), Refused, type(None)]
    assert await bench.count(QUEUE) == 4


@behaviour
async def test_after_close_nothing_is_sent(bench: Bench) -> None:
    """And the error says that nothing was."""
    async with bench.open() as broker:
        await broker.close()
        with pytest.raises(NotSent):
            await put(broker)
        with pytest.raises(NotSent):
            await put(broker, delay=Delay(60))
    assert await bench.count(QUEUE) == 0


@behaviour
async def test_publish_many_gives_an_answer_for_each_message_in_order(bench: Bench) -> None:
    """None for what was confirmed, its own error for what was not; one bad message does not end the others."""
    async with bench.open(max_message_bytes=10_000) as broker:
        items = [
            Publication(make_message(1), TASKS),
            Publication(make_message(2), Exchange("asyncq.tasks", "nowhere")),
            Publication(make_message(3, body=b"x" * 20_000), TASKS),
            Publication(make_message(4), Queue(QUEUE)),
            Publication(make_message(5), TASKS, Delay(1e12)),
            Publication(make_message(6), TASKS, Delay(0.01)),
        ]
        answers = await broker.publish_many(items, timeout_s=WAIT_S)
        assert [type(answer) for answer in answers] == [
            type(None),
            Unroutable,
            MessageTooLarge,
            type(None),
            NotSent,
            type(None),
        ]
        async with broker.consume(QUEUE, slots=4) as subscription:
            assert {item.message.task_id for item in await take(subscription, 3)} == {"task-1", "task-4", "task-6"}
        assert await broker.publish_many([], timeout_s=WAIT_S) == []


@behaviour
async def test_many_messages_at_once_arrive_each_once(bench: Bench) -> None:
    """500 of them, their confirms pipelined."""
    async with bench.open() as broker:
        items = [Publication(make_message(number), TASKS) for number in range(500)]
        assert await broker.publish_many(items, timeout_s=WAIT_S) == [None] * 500
        async with broker.consume(QUEUE, slots=50) as subscription:
            seen = []
            async with asyncio.timeout(WAIT_S):
                async for delivery in subscription:
                    seen.append(delivery.message.task_id)
                    await delivery.ack()
                    if len(seen) == 500:
                        break
    assert sorted(seen) == sorted(item.message.task_id for item in items)


async def _there_and_back(bench: Bench, *messages: Message, delay: Delay | None = None) -> list[Message]:
    """Publish the messages and return them as they are received, without the headers that brokers add."""
    async with bench.open() as broker, broker.consume(QUEUE, slots=1) as subscription:
        received = []
        for message in messages:
            await broker.publish(message, Queue(QUEUE), delay=delay, timeout_s=WAIT_S)
            (delivery,) = await take(subscription, 1)
            received.append(delivery.message)
            await delivery.ack()
    return [_without_broker_headers(message) for message in received]


def _without_broker_headers(message: Message) -> Message:
    headers = {name: value for name, value in message.headers.items() if not name.startswith("x-")}
    return Message(**{**{name: getattr(message, name) for name in message.__slots__}, "headers": headers})


FULL = Message(
    type="shop.grüße",
    body='{"text":"größer, ßtraße, 漢字, 🎉"}'.encode(),
    task_id="my-id",
    message_id="m-1",
    reply_to="somebody",
    content_type="application/json; charset=utf-8",
    content_encoding="utf-8",
    headers={"asyncq-attempt": 3, "traceparent": "00-1-2-3", "mine": "größer"},
    timestamp_ms=1_750_000_000_000,
    app_id="shop",
)


@behaviour
async def test_every_field_of_a_message_survives_the_way(bench: Bench) -> None:
    """Those that are set, and those that are not; also on the way of a delayed message."""
    bare = Message(type="", body=b"", task_id="t", message_id=new_id(), content_type=None)
    assert await _there_and_back(bench, FULL, bare) == [FULL, bare]
    assert await _there_and_back(bench, FULL, bare, delay=Delay(0.05)) == [FULL, bare]


@behaviour
async def test_a_timestamp_is_kept_in_whole_seconds(bench: Bench) -> None:
    """As AMQP has it; exact times travel in headers."""
    (received,) = await _there_and_back(bench, make_message(timestamp_ms=1_750_000_000_987))
    assert received.timestamp_ms == 1_750_000_000_000


@behaviour
async def test_headers_keep_their_values_and_types(bench: Bench) -> None:
    """Numbers of all sizes, text, bytes that are no text, times, lists and tables in each other."""
    headers = {
        "text": "ä" * 1000,
        "empty": "",
        "yes": True,
        "no": False,
        "none": None,
        "integers": [0, 1, -1, 127, 128, 255, 2**31, -(2**31), 2**63 - 1, -(2**63)],
        "floats": [0.1, -1.5, 1e300, 5e-324],
        "decimal": Decimal("12.34"),
        "time": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "raw": b"\xff\x00\xfe",
        "deep": {"list": [1, ["two", {"three": 3.0}]], "table": {}},
    }
    (received,) = await _there_and_back(bench, make_message(headers=headers))
    assert received.headers == headers
    assert {name: type(value) for name, value in received.headers.items()} == {
        name: type(value) for name, value in headers.items()
    }


@behaviour
async def test_bodies_are_bytes_that_come_as_they_went(bench: Bench) -> None:
    """Empty, every byte there is, and more than one frame holds."""
    bodies = [b"", bytes(range(256)), bytes(range(256)) * 4096]
    received = await _there_and_back(bench, *(make_message(body=body) for body in bodies))
    assert [message.body for message in received] == bodies


@behaviour
async def test_a_message_that_is_published_twice_is_two_messages(bench: Bench) -> None:
    """No broker removes duplicates: whoever publishes again knows why."""
    message = make_message()
    async with bench.open() as broker:
        for _ in range(2):
            await broker.publish(message, Queue(QUEUE), timeout_s=WAIT_S)
    assert await bench.count(QUEUE) == 2
