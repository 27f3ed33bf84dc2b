"""Dead letters survive whoever repairs them: a replay that is killed again and again, and many looks of each kind."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections import Counter
from contextlib import asynccontextmanager
from urllib.parse import quote

import aio_pika
import pytest
from typer.testing import CliRunner

from asyncq import AsyncQ
from asyncq.broker import DeadLetterRecord, Publication, Queue, QueueSpec
from asyncq.cli.application import application
from asyncq.dead_letters.run import BATCH
from asyncq.message import Message, new_id
from asyncq.outcome import Failure
from asyncq.rabbitmq.dead_letters import letter_of
from support import eventually

RECORD = DeadLetterRecord(
    Failure("builtins.ValueError", "no such address"), "no retry policy", 1_750_000_000_123, 1, "mail", "host 4711"
)


@asynccontextmanager
async def parked(url: str, count: int):
    """Open an app, with so many dead letters of its queue `mail`."""
    async with AsyncQ("faults", broker=url) as app:
        await app.broker.ensure([QueueSpec("mail")])
        for first in range(0, count, 1000):
            letters = [_letter(number) for number in range(first, min(first + 1000, count))]
            errors = await app.broker.publish_many(
                [Publication(one, Queue("mail.dead")) for one in letters], timeout_s=60
            )
            assert not any(errors)
        yield app


def _letter(number: int) -> Message:
    message = Message(type="shop.mail", body=b'{"n": %d}' % number, task_id=f"task {number}", message_id=new_id())
    return letter_of(message, RECORD)


async def start_replay(url: str, *options: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "asyncq", "dead", "replay", "mail", "--all", "--yes", *options),
        env={**os.environ, "ASYNCQ_BROKER_URL": url},
        stdout=asyncio.subprocess.DEVNULL,
    )


async def counted(channel: aio_pika.abc.AbstractChannel, queue: str) -> int:
    return (await channel.declare_queue(queue, passive=True)).declaration_result.message_count or 0


async def replay_with_kills(url: str, count: int, kills: int, *options: str) -> None:
    seed = int(os.environ.get("SEED", random.randrange(10**6)))
    print(f"seed {seed}")
    draw = random.Random(seed)
    moments = sorted(draw.randint(1, count * 9 // 10) for _ in range(kills))
    killed = 0
    async with parked(url, count), await aio_pika.connect(url) as connection, connection.channel() as channel:
        for moment in moments:
            process = await start_replay(url, *options)
            # As often as the broker answers: the moment passes quickly.
            while process.returncode is None and await counted(channel, "mail") < moment:
                pass
            if process.returncode is None:
                process.kill()
                killed += 1
            await process.wait()
        process = await start_replay(url, *options)
        assert await asyncio.wait_for(process.wait(), 240) == 0
        # What a killed replay had taken comes back when the broker has noticed its end: that was long ago, but sure.
        while await counted(channel, "mail.dead"):
            assert await asyncio.wait_for((await start_replay(url)).wait(), 240) == 0
        ids = await _drained(channel, "mail")
    twice = sum(ids.values()) - len(ids)
    print(f"{count} letters, {killed} kills at {moments}: {len(ids)} ids in their queue, {twice} copies too many")
    assert set(ids) == {f"task {number}" for number in range(count)}
    assert killed > 0
    assert twice <= killed * BATCH
    assert max(ids.values()) <= killed + 1


async def _drained(channel: aio_pika.abc.AbstractChannel, name: str) -> Counter[str]:
    ids: Counter[str] = Counter()
    await channel.set_qos(1000)
    queue = await channel.get_queue(name)
    left = await counted(channel, name)
    async with asyncio.timeout(240), queue.iterator() as messages:
        async for message in messages:
            ids[str(message.correlation_id)] += 1
            await message.ack()
            left -= 1
            if left == 0:
                break
    return ids


async def test_a_replay_that_is_killed_loses_no_letter(broker_url):
    """300 letters, three SIGKILLs: each letter is in its queue, and only those under way at a kill are there twice."""
    await replay_with_kills(broker_url, 300, 3, "--rate", "150")


@pytest.mark.prove
async def test_a_replay_of_ten_thousand_letters_that_is_killed_again_and_again_loses_none(broker_url):
    """Ten SIGKILLs at random moments, at full speed."""
    await replay_with_kills(broker_url, 10_000, 10)


@pytest.mark.parametrize("looks", [10, pytest.param(50, marks=pytest.mark.prove)])
async def test_looks_of_each_kind_take_nothing_away(broker_url, node, management, monkeypatch, looks):
    """By the library, by the command line, by AMQP as other tools do, and by the management API as its UI does."""
    monkeypatch.setattr(sys.modules["asyncq.cli.dead_queues"], "configure_logging", lambda *_: None)
    async with parked(broker_url, 40) as app, await aio_pika.connect(broker_url) as connection:
        expected = {f"task {number}" for number in range(40)}
        letters = app.dead_letters("mail")
        channel = await connection.channel()
        dead = await channel.get_queue("mail.dead")
        for _ in range(looks):
            assert {letter.message.task_id async for letter in letters.browse()} == expected
        for _ in range(looks):
            arguments = ["dead", "list", "mail", "--broker-url", broker_url]
            listed = await asyncio.to_thread(CliRunner().invoke, application, arguments)
            assert listed.exit_code == 0, listed.output
            assert listed.output.count("shop.mail") == 40
        for _ in range(looks):
            got = [await dead.get() for _ in range(40)]
            assert {message.correlation_id for message in got} == expected
            for message in got:
                await message.nack(requeue=True)
            await eventually(lambda: _holds(letters, 40))
        path = f"/queues/{quote(management._vhost, safe='')}/mail.dead/get"
        wanted = {"count": 40, "ackmode": "ack_requeue_true", "encoding": "auto"}
        for _ in range(looks):
            shown = await asyncio.to_thread(node.api, "POST", path, wanted)
            assert {message["properties"]["correlation_id"] for message in shown} == expected
            await eventually(lambda: _holds(letters, 40))
        assert {letter.message.task_id async for letter in letters.browse()} == expected
        assert all([letter.record == RECORD async for letter in letters.browse()])
    print(f"{4 * looks} looks at 40 letters: 40 letters")


async def _holds(letters, count: int) -> bool:
    return await letters.count() == count
