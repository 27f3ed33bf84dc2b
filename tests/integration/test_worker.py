"""A worker on a real broker: what happens to tasks that fail, hang, lie, or lose their worker."""

import asyncio
import contextlib
import json
import signal
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import aio_pika
import pytest

from asyncq.app import AsyncQ
from asyncq.context import TaskContext
from asyncq.errors import TaskFailed
from asyncq.retry import Fixed, RetryPolicy
from asyncq.worker.worker import Worker
from support import eventually

QUEUE = "shop"
SOON = RetryPolicy(backoff=Fixed(0.02), jitter=False, max_attempts=3)


@contextlib.asynccontextmanager
async def working(app: AsyncQ, slots: int = 4, *, grace_s: float = 0.1) -> AsyncIterator[Worker]:
    """Open the app and run a worker for its queue."""
    async with app:
        worker = app.worker({QUEUE: slots})
        worker._grace_s = grace_s
        running = asyncio.create_task(worker.run())
        try:
            await asyncio.wait_for(worker.consuming(), 30)
            yield worker
        finally:
            worker.stop()
            await asyncio.wait_for(running, 30)


@contextlib.asynccontextmanager
async def foreign(url: str) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
    """Another program's AMQP client."""
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        yield channel


async def publish(url: str, body: bytes | dict, **properties) -> None:
    """Publish a message as a foreign producer does."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with foreign(url) as channel:
        message = aio_pika.Message(raw, **{"content_type": "application/json", **properties})
        await channel.default_exchange.publish(message, QUEUE)


async def dead_letter(url: str) -> aio_pika.abc.AbstractIncomingMessage:
    """Wait for the dead letter, and take it."""
    async with foreign(url) as channel:
        queue = await channel.get_queue(f"{QUEUE}.dead", ensure=False)

        async def get():
            return await queue.get(no_ack=True, fail=False)

        return await eventually(get, 20)


# --- tasks that misbehave


async def test_a_thread_that_overruns_is_settled_and_keeps_its_slot(broker_url, management):
    """Its consumer is gone until it returns, so nothing waits behind it; then the slot is open again."""
    app = AsyncQ("shop", broker=broker_url)
    go_on = threading.Event()

    @app.task(time_limit=0.1)
    def stuck() -> None:
        go_on.wait(30)

    @app.task
    async def quick(n: int) -> int:
        return n

    try:
        async with working(app, slots=2) as worker:
            with pytest.raises(TaskFailed, match="TimeLimitExceeded"):
                await stuck.call()

            async def consumers() -> int:
                return len(await management.consumers(QUEUE))

            async def one_consumer_is_left() -> bool:
                return await consumers() == 1

            await eventually(one_consumer_is_left, 20)
            assert worker.stats().threads_busy == 1
            assert [await quick.call(n) for n in range(5)] == list(range(5))
            go_on.set()

            async def both_consume() -> bool:
                return await consumers() == 2

            await eventually(both_consume, 20)
            assert worker.stats().threads_busy == 0
            assert await quick.call(7) == 7
    finally:
        go_on.set()


# --- messages that misbehave


async def test_a_message_with_nothing_but_type_and_body_is_run(broker_url):
    """What a foreign producer must do is little: no ids, no content type."""
    app = AsyncQ("shop", broker=broker_url)
    seen = []

    @app.task(pass_context=True)
    async def work(ctx: TaskContext, x: int) -> None:
        seen.append((x, ctx.attempt, bool(ctx.task_id)))

    async with working(app):
        await publish(broker_url, {"x": 1}, type="shop.work", content_type=None)
        await eventually(lambda: seen == [(1, 1, True)])


async def test_a_foreign_message_full_of_poison_ends_as_a_dead_letter_and_harms_nobody(broker_url):
    """user_id, expiration, CC and 100 KB of headers: copies are made from a whitelist."""
    app = AsyncQ("shop", broker=broker_url)

    @app.task(retry=SOON)
    async def work(x: int) -> None:
        raise ValueError("no")

    user = broker_url.split("//")[1].split(":")[0]
    async with working(app):
        headers = {"CC": ["shop.other"], **{f"foreign-{n}": "x" * 10_000 for n in range(10)}}
        await publish(broker_url, {"x": 1}, type="shop.work", user_id=user, expiration=60, headers=headers)
        letter = await dead_letter(broker_url)
    assert letter.headers["asyncq-attempts"] == 3
    assert letter.expiration is None
    assert letter.user_id is None
    assert "CC" not in letter.headers


# --- lost workers, queues and connections

KILLED = """
import asyncio, os, sys
from asyncq.app import AsyncQ

app = AsyncQ("shop", broker=sys.argv[1])

@app.task
async def work(path: str) -> str:
    with open(path, "a") as file:
        file.write("killed\\n")
    await asyncio.sleep(600)
    return "never"

async def main():
    async with app:
        await app.worker({"shop": 2}).run()

asyncio.run(main())
"""


async def test_a_task_whose_worker_is_killed_is_run_by_another_one(broker_url, tmp_path):
    """SIGKILL in the middle of the task: the broker gives it out again."""
    app = AsyncQ("shop", broker=broker_url)

    @app.task
    async def work(path: str) -> str:
        with Path(path).open("a") as file:  # noqa: ASYNC230 - one line
            file.write("done\n")
        return "done"

    ledger, program = tmp_path / "ledger", tmp_path / "victim.py"
    program.write_text(KILLED)
    victim = await asyncio.create_subprocess_exec(sys.executable, str(program), broker_url)
    try:
        async with app:
            await eventually(lambda: _declared(broker_url), 20)
            handle = await work.send(str(ledger))
            await eventually(lambda: ledger.exists() and ledger.read_text() == "killed\n", 20)
            victim.send_signal(signal.SIGKILL)
            await victim.wait()
            async with working(app):
                assert await handle.result(30) == "done"
    finally:
        if victim.returncode is None:
            victim.kill()
            await victim.wait()
    assert ledger.read_text() == "killed\ndone\n"


async def _declared(url: str) -> bool:
    async with foreign(url) as channel:
        try:
            await channel.declare_queue(QUEUE, passive=True)
        except aio_pika.exceptions.ChannelNotFoundEntity:
            return False
        return True


async def test_a_task_that_runs_while_the_connection_is_lost_runs_once(broker_url, management, caplog):
    """The redelivery becomes the new lease of the attempt that still runs, and its result is sent."""
    caplog.set_level("INFO", logger="asyncq.worker")
    app = AsyncQ("shop", broker=broker_url)
    runs, go_on = [], asyncio.Event()

    @app.task
    async def long(n: int) -> int:
        runs.append(n)
        await go_on.wait()
        return n

    async with working(app, slots=3):
        handles = [await long.send(n) for n in range(3)]
        await eventually(lambda: len(runs) == 3)
        await asyncio.sleep(1.2)  # the attempts are watched from their first second on
        await management.cut("consume")
        await eventually(lambda: caplog.text.count("got its lease back") == 3, 30)
        go_on.set()
        assert [await handle.result(30) for handle in handles] == [0, 1, 2]
    assert sorted(runs) == [0, 1, 2]


# --- drain


@pytest.mark.parametrize("in_thread", [False, True], ids=["async", "thread"])
async def test_what_does_not_finish_in_time_is_handed_back_and_nothing_is_counted(broker_url, management, in_thread):
    """The same attempt runs elsewhere; neither our count nor the broker's has grown."""
    app = AsyncQ("shop", broker=broker_url, drain_timeout_s=0.2)
    attempts, go_on, deliveries = [], threading.Event(), []

    async def long(ctx: TaskContext) -> str:
        attempts.append(ctx.attempt)
        deliveries.append(ctx.message.headers.get("x-delivery-count", 0))
        if len(attempts) == 1:
            await asyncio.sleep(60)
        return "done"

    def long_in_thread(ctx: TaskContext) -> str:
        attempts.append(ctx.attempt)
        deliveries.append(ctx.message.headers.get("x-delivery-count", 0))
        if len(attempts) == 1:
            go_on.wait(30)
        return "done"

    task = app.task(name="shop.long", pass_context=True)(long_in_thread if in_thread else long)
    try:
        async with app:
            async with working(app, slots=1) as worker:
                handle = await task.send()
                await eventually(lambda: attempts == [1])
            assert worker.stats().outcomes == {"Drained": 1}
            assert worker.threads_abandoned == int(in_thread)
            async with working(app, slots=1):
                assert await handle.result(10) == "done"
    finally:
        go_on.set()
    assert attempts == [1, 1]
    assert deliveries == [0, 0]
    assert await management.ready(QUEUE) == 0


@pytest.mark.parametrize("address", ["nobody", "amq.rabbitmq.reply-to.g1h2AA", "amq.rabbitmq.reply-to.bogus.bogus=="])
async def test_a_reply_address_that_the_broker_cannot_bear_does_not_keep_a_task_from_its_end(broker_url, address):
    """RabbitMQ 3.10 ends the connection for a malformed address of its direct reply-to; the slot is free again."""
    app = AsyncQ("shop", broker=broker_url)

    @app.task
    async def double(x: int) -> int:
        return x * 2

    async with working(app, slots=1) as worker:
        await publish(broker_url, {"x": 1}, type="shop.double", reply_to=address)
        await eventually(lambda: worker.stats().outcomes == {"Succeeded": 1}, 30)
        assert await (await double.send(4)).result(10) == 8
