"""Messages of foreign producers with headers and properties that AMQP clients do not expect."""

import asyncio
import contextlib
import random
import struct
from collections.abc import AsyncIterator
from typing import Any

import aiormq
import pytest
from aiormq.exceptions import AMQPError
from pamqp import commands

from asyncq.app import AsyncQ
from asyncq.message import attempt_of
from asyncq.retry import Fixed, RetryPolicy
from asyncq.worker.worker import Worker
from support import eventually

QUEUE = "shop"
AGAIN = RetryPolicy(backoff=Fixed(0.02), jitter=False, max_attempts=2)
FLAGS = commands.Basic.Properties.flags


class Raw(commands.Basic.Properties):
    """Properties that are on the wire already."""

    def __init__(self, flags: int, wire: bytes) -> None:
        super().__init__(message_id="unused")
        self.wire = struct.pack(">H", flags) + wire

    def marshal(self) -> bytes:
        return self.wire


def short(raw: bytes) -> bytes:
    return bytes([len(raw)]) + raw


def sized(tag: bytes, raw: bytes) -> bytes:
    return tag + struct.pack(">I", len(raw)) + raw


def table(*pairs: tuple[bytes, bytes]) -> bytes:
    return sized(b"", b"".join(short(key) + value for key, value in pairs))


def foreign(headers: bytes = table(), type_: bytes = b"shop.fail", correlation_id: bytes = b"1", tail: bytes = b""):
    """Return properties; in the order of AMQP: headers, correlation_id, timestamp, type."""
    flags = FLAGS["headers"] | FLAGS["correlation_id"] | FLAGS["message_type"] | (FLAGS["timestamp"] if tail else 0)
    return Raw(flags, headers + short(correlation_id) + tail + short(type_))


def nested(depth: int) -> bytes:
    value = b"V"
    for _ in range(depth):
        value = sized(b"F", b"\x01n" + value)
    return value


async def publish(url: str, properties: commands.Basic.Properties) -> bool:
    """Publish a message; return whether the broker has taken it."""
    connection = await aiormq.connect(url)
    try:
        channel = await connection.channel()
        await channel.basic_publish(b"{}", routing_key=QUEUE, properties=properties, timeout=10)
    except (AMQPError, asyncio.CancelledError):
        return False
    else:
        return True
    finally:
        with contextlib.suppress(Exception):
            await connection.close()


@contextlib.asynccontextmanager
async def failing_app(url: str) -> AsyncIterator[tuple[AsyncQ, Worker, list[int]]]:
    """Run a worker of one slot, whose only task fails twice; nothing pauses it for that."""
    app, attempts = AsyncQ("shop", broker=url, breaker=None), []

    @app.task(retry=AGAIN, pass_context=True)
    async def fail(ctx: Any) -> None:
        attempts.append(attempt_of(ctx.message))
        raise ValueError("no luck")

    async with app:
        worker = app.worker({QUEUE: 1})
        running = asyncio.create_task(worker.run())
        try:
            await asyncio.wait_for(worker.consuming(), 30)
            yield app, worker, attempts
        finally:
            worker.stop()
            await asyncio.wait_for(running, 30)


ODD = {
    "a timestamp beyond the year 9999": foreign(tail=struct.pack(">Q", 2**63)),
    "a header with such a time": foreign(table((b"t", b"T" + b"\x7f" + b"\xff" * 7))),
    "such a time in an array in a table": foreign(
        table((b"t", sized(b"F", short(b"a") + sized(b"A", b"T" + b"\x7f" * 8))))
    ),
    "a correlation id of raw bytes": foreign(correlation_id=b"\xff\xfe\x00\x80"),
    "a header name that is not UTF-8": foreign(table((b"\xe9", b"t\x01"))),
    "a header text that is not UTF-8": foreign(table((b"k", sized(b"S", b"caf\xe9")))),
    "a large double": foreign(table((b"k", b"d" + struct.pack(">d", 1e300)))),
    "a negative decimal": foreign(table((b"k", b"D" + struct.pack(">Bi", 2, -1)))),
    "tables nested 3000 deep": foreign(table((b"k", nested(3000)))),
}


@pytest.mark.parametrize("properties", ODD.values(), ids=ODD.keys())
async def test_an_odd_message_is_run_retried_and_dead_lettered_like_any_other(broker_url, properties, caplog):
    """It must not end the connection, which would bring it again and again; and copies of it can be published."""
    async with failing_app(broker_url) as (app, worker, attempts):
        assert await publish(broker_url, properties)
        await eventually(lambda: worker.stats().outcomes == {"RetryLater": 1, "Failed": 1}, 10)
        letters = [letter async for letter in app.broker.dead_letters(QUEUE).browse()]
    assert attempts == [1, 2]
    assert [letter.record.reason for letter in letters if letter.record] == ["attempts exhausted"]
    assert "deliveries interrupted" not in caplog.text


async def test_a_type_that_is_not_utf_8_is_an_unknown_task(broker_url):
    """And can be dead-lettered as one."""
    app = AsyncQ("shop", broker=broker_url, unknown_task_patience_s=0)

    @app.task
    async def work() -> None: ...

    async with app:
        worker = app.worker({QUEUE: 1})
        running = asyncio.create_task(worker.run())
        await asyncio.wait_for(worker.consuming(), 30)
        assert await publish(broker_url, foreign(type_=b"\xff"))
        await eventually(lambda: worker.stats().outcomes == {"Rejected": 1}, 10)
        (letter,) = [letter async for letter in app.broker.dead_letters(QUEUE).browse()]
        worker.stop()
        await asyncio.wait_for(running, 30)
    assert letter.message.type == "\\xff"


async def test_random_header_tables_never_stop_a_worker(broker_url, caplog):
    """Whatever the broker takes is run twice and dead-lettered."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)

    def item(depth: int = 0) -> bytes:
        tags = b"tbBsuIilLfdDSTVx" + (b"FA" * 3 if depth < 6 else b"")
        tag = bytes([chance.choice(tags)])
        if tag in b"Sx":
            return sized(tag, chance.randbytes(chance.randint(0, 30)))
        if tag == b"A":
            return sized(tag, b"".join(item(depth + 1) for _ in range(chance.randint(0, 4))))
        if tag == b"F":
            return sized(tag, b"".join(pair(depth + 1) for _ in range(chance.randint(0, 4))))
        sizes = {b"t": 1, b"b": 1, b"B": 1, b"s": 2, b"u": 2, b"I": 4, b"i": 4, b"f": 4, b"D": 5, b"V": 0}
        return tag + chance.randbytes(sizes.get(tag, 8))

    def pair(depth: int) -> bytes:
        return short(chance.randbytes(chance.randint(1, 20))) + item(depth)

    taken = 0
    async with failing_app(broker_url) as (_, worker, attempts):
        for number in range(60):
            headers = sized(b"", b"".join(pair(0) for _ in range(chance.randint(1, 6))))
            taken += await publish(broker_url, foreign(headers, correlation_id=str(number).encode()))
        assert taken > 10, "the broker refuses most of them"
        await eventually(lambda: worker.stats().outcomes == {"RetryLater": taken, "Failed": taken}, 30)
    assert sorted(attempts) == [1] * taken + [2] * taken
    assert "deliveries interrupted" not in caplog.text
