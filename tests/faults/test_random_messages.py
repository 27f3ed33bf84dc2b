"""A worker is fed random messages: every good one runs, every bad one is a dead letter, and the worker goes on."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import aiormq
import pytest

import foreign
from asyncq import AsyncQ
from asyncq.broker import DeadLetter, QueueSpec
from support import eventually

sys.path.insert(0, str(Path(__file__).parent))

from delays import QUEUE, ran, start_worker

TASK = "faults.receive"
AT_ONCE = 50


@dataclass(frozen=True)
class Fed:
    """A message that is fed to the worker.

    Attributes:
        properties: Its properties, as bytes.
        body: Unique where it has no id of its own.
        id: Its task id; None where that is random too.
        is_good: Whether it must run; None where that is for the worker to say.
    """

    properties: foreign.RawProperties
    body: bytes
    id: str | None
    is_good: bool | None


def feed(chance: random.Random, count: int) -> Iterator[Fed]:
    """Yield random messages: a quarter of them good ones, half of them bad ones, the others near the border."""
    for number in range(count):
        kind = chance.randrange(4)
        if kind == 0:
            yield good(chance, number)
        elif kind == 1:
            yield bad(chance, number)
        elif kind == 2:
            yield nameless(chance, number)
        else:
            yield doubtful(chance, number)


def good(chance: random.Random, number: int) -> Fed:
    """A task's message, with random properties where they do not matter."""
    arguments: dict[str, object] = {"key": chance.choice(["", "é\u202e𝄞", "x" * 1000])}
    if chance.random() < 0.5:
        arguments["more"] = [chance.randint(-(2**40), 2**40) for _ in range(chance.randint(0, 5))]
    if chance.random() < 0.3:
        arguments["$then"] = foreign.json_value(chance)
    text = json.dumps(arguments, ensure_ascii=chance.random() < 0.5).encode()
    return Fed(of_a_task(chance, f"good-{number}"), text, f"good-{number}", is_good=True)


def bad(chance: random.Random, number: int) -> Fed:
    """A message with one thing wrong."""
    fixed, body = {}, b'{"key": "x"}'
    match chance.randrange(6):
        case 0:
            fixed = {"message_type": short(chance.choice([b"unknown", b"faults", b"\xff\xfe", b"faults.receive "]))}
        case 1:
            fixed = {"content_type": short(chance.choice([b"application/x-python-serialize", b"text/plain", b"\xff"]))}
        case 2:
            fixed = {"content_encoding": short(chance.choice([b"gzip", b"binary", b"\xc3"]))}
        case 3:
            header = chance.choice(["asyncq-attempt", "asyncq-first-at", "asyncq-expires-at", "asyncq-unknown-since"])
            wrong = chance.choice([foreign.long_text("three"), foreign.integer(-1), b"t\x01", foreign.long_text("")])
            kind = "faults.unknown" if header == "asyncq-unknown-since" else TASK  # it is read for these only
            fixed = {"headers": foreign.table(chance, {header: wrong}), "message_type": short(kind.encode())}
        case 4:
            body = chance.choice([b"", b"\xff", b"[]", b"null", b'"text"', b"{", b"[" * 10_000])
        case _:
            body = chance.choice([b"{}", b'{"key": 1}', b'{"key": "x", "other": 1}', b'{"key": "x", "more": ["y"]}'])
    return Fed(of_a_task(chance, f"bad-{number}", **fixed), body, f"bad-{number}", is_good=False)


def nameless(chance: random.Random, number: int) -> Fed:
    """A message without a type, and all else at random: ids of raw bytes, or none."""
    body = foreign.body(chance) + f"#{number}".encode()
    if chance.random() < 0.02:
        body = chance.randbytes(300_000) + body
    return Fed(foreign.properties(chance, message_type=None), body, None, is_good=False)


def doubtful(chance: random.Random, number: int) -> Fed:
    """Something near a task's message: a damaged body, or any properties at all."""
    body = json.dumps({"key": "x", "more": [number]}).encode()
    if chance.random() < 0.7:
        body, fixed = foreign.damaged(chance, body), {}
    else:
        fixed = {"content_type": foreign.short_text(chance), "content_encoding": foreign.short_text(chance)}
    return Fed(of_a_task(chance, f"doubtful-{number}", **fixed), body, f"doubtful-{number}", is_good=None)


def of_a_task(chance: random.Random, task_id: str, **fixed: object) -> foreign.RawProperties:
    """Return the properties of a task's message, random where nothing depends on them."""
    # Not among the random headers: `asyncq-attempt`, which a random value would make malformed.
    headers = foreign.table(chance, {"shop-size": foreign.long_text("x" * chance.choice([1, 1, 1, 70_000]))})
    while b"asyncq-" in headers:
        headers = foreign.table(chance)
    usual = {
        "message_type": short(TASK.encode()),
        "correlation_id": short(task_id.encode()),
        "content_type": chance.choice([None, short(b"application/json"), short(b"Application/JSON; charset=utf-8")]),
        "content_encoding": chance.choice([None, short(b"utf-8"), short(b"identity"), short(b"")]),
        "headers": headers,
    }
    return foreign.properties(chance, **{**usual, **fixed})


def short(raw: bytes) -> bytes:
    return bytes([len(raw)]) + raw


async def publish(url: str, messages: list[Fed]) -> None:
    """Publish by the AMQP client below aio-pika, which checks nothing; the broker confirms each."""
    connection = await aiormq.connect(url)
    channel = await connection.channel()
    for begin in range(0, len(messages), AT_ONCE):
        some = messages[begin : begin + AT_ONCE]
        await asyncio.gather(
            *(channel.basic_publish(item.body, routing_key=QUEUE, properties=item.properties) for item in some)
        )
    await connection.close()


async def survive(url: str, version: str, folder: Path, count: int) -> None:
    seed = int(os.environ.get("SEED", random.randrange(10**6)))
    print(f"\nseed {seed}")
    messages = list(feed(random.Random(seed), count))
    app = AsyncQ("faults-producer", broker=url)
    async with app:
        await app.broker.ensure([QueueSpec(QUEUE)])
        worker = await start_worker(url, folder, unknown_task_patience_s=0)
        try:
            await publish(url, messages)
            await all_at_an_end(url, folder, count)
            await app.send(TASK, {"key": "x"}, task_id="afterwards", reply=False)
            await eventually(lambda: "afterwards" in ran(folder), 60, message="the worker goes on")
        finally:
            if worker.returncode is None:
                worker.terminate()
            code = await asyncio.wait_for(worker.wait(), 90)
        letters = [letter async for letter in app.broker.dead_letters(QUEUE).browse()]
    assert code == 0
    account(version, messages, letters, {key for key in ran(folder) if key != "afterwards"})


async def all_at_an_end(url: str, folder: Path, count: int) -> None:
    connection = await aiormq.connect(url)
    try:
        channel = await connection.channel()

        async def at_an_end() -> bool:
            dead = await channel.queue_declare(f"{QUEUE}.dead", passive=True)
            return (dead.message_count or 0) + len(ran(folder)) == count

        await eventually(at_an_end, 900, message="each has run or is a dead letter")
    finally:
        await connection.close()


def account(version: str, messages: list[Fed], letters: list[DeadLetter], executed: set[str]) -> None:
    """Look for each message where it must be, and for nothing else."""
    reasons = Counter(letter.record.reason if letter.record else "by the broker" for letter in letters)
    print(f"{version}: {len(messages)} messages: {len(executed)} have run; dead letters {dict(reasons)}")
    by_id = {letter.message.task_id: letter for letter in letters}
    bodies = Counter(letter.message.body for letter in letters)
    for fed in messages:
        if fed.id is None:
            assert bodies[fed.body] == 1, fed
        elif fed.is_good is None:
            assert (fed.id in executed) != (fed.id in by_id), fed
        elif fed.is_good:
            assert fed.id in executed, (fed, by_id.get(fed.id))
        else:
            assert fed.id in by_id, fed
            assert by_id[fed.id].message.body == fed.body
    assert len(letters) + len(executed) == len(messages)
    assert set(reasons) <= {"malformed message", "invalid arguments", "unknown task"}


async def test_a_worker_goes_on_through_500_random_messages(broker_url, rabbitmq_version, tmp_path):
    """The short form."""
    await survive(broker_url, rabbitmq_version, tmp_path, 500)


@pytest.mark.prove
async def test_a_worker_goes_on_through_10_000_random_messages(broker_url, rabbitmq_version, tmp_path):
    """The full form."""
    await survive(broker_url, rabbitmq_version, tmp_path, 10_000)
