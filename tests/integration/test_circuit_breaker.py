"""A paused queue as RabbitMQ sees it: at most one message a slot is held, none is returned, and all run afterwards.

What a circuit breaker does on every broker is in the conformance suite. Here the pause goes by a clock that the test
moves, so it lasts until all was looked at.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import aio_pika

from asyncq import AsyncQ, CircuitBreaker, TaskContext, Unroutable
from asyncq.rabbitmq.adapter import RabbitMQ
from asyncq.testing.clock import ManualClock
from asyncq.worker.worker import Worker
from support import eventually

SLOTS = 4
FAULTS = 10
PAUSE_S = 30


def make_app(url: str) -> AsyncQ:
    return AsyncQ("shop", broker=url, breaker=CircuitBreaker(at_least=FAULTS, pause=PAUSE_S))


@contextlib.asynccontextmanager
async def working(app: AsyncQ, clock: ManualClock) -> AsyncIterator[Worker]:
    """Run a worker by this clock."""
    with app.using(RabbitMQ, clock):
        async with app:
            worker = app.worker({"shop": SLOTS, "other": 1})
            running = asyncio.create_task(worker.run())
            try:
                yield worker
            finally:
                worker.stop()
                await asyncio.wait_for(running, 30)


async def test_a_paused_queue_keeps_its_messages_and_after_the_pause_all_of_it_runs(broker_url, management):
    """Messages of a foreign client, without `message_id`; the other queue of the worker goes on."""
    app, clock = make_app(broker_url), ManualClock(datetime.now(UTC))
    failed: list[int] = []
    done: list[tuple[int, int, object]] = []
    fault = True

    @app.task(pass_context=True)
    async def work(ctx: TaskContext, n: int) -> None:
        if fault:
            failed.append(n)
            raise ConnectionError("the service is down")
        done.append((n, ctx.attempt, ctx.message.headers.get("x-delivery-count", 0)))

    @app.task(queue="other")
    async def fine(n: int) -> int:
        return n

    async def all_consume() -> bool:
        return len(await management.consumers("shop")) == SLOTS

    async def all_but_a_few_are_ready() -> bool:
        depth = (await management.depths())["shop"]
        return depth.messages == 100 - len(failed) and depth.unacked <= SLOTS

    async with working(app, clock) as worker:
        await eventually(all_consume, 30)
        async with await aio_pika.connect(broker_url) as connection, connection.channel() as channel:
            for n in range(100):
                message = aio_pika.Message(b'{"n": %d}' % n, type="shop.work", correlation_id=f"task-{n}")
                await channel.default_exchange.publish(message, "shop")
        for pauses in (1, 2):
            await eventually(lambda: worker.stats().breakers == {"shop": "open", "other": "closed"}, 30)
            await eventually(lambda: worker.stats().running == 0, 30)
            await eventually(all_but_a_few_are_ready, 30)
            assert [await fine.call(n) for n in range(5)] == list(range(5))
            assert FAULTS <= len(failed) < FAULTS + pauses * SLOTS + 1
            fault = pauses == 1
            clock.move(PAUSE_S)
        await eventually(lambda: len(failed) + len(done) == 100, 60)
        await eventually(all_consume, 30)
        assert worker.stats().breakers == {"shop": "closed", "other": "closed"}
        letters = [letter.message.task_id async for letter in app.dead_letters("shop").browse()]
    assert sorted(letters) == sorted(f"task-{n}" for n in failed)
    assert sorted(failed + [n for n, _, _ in done]) == list(range(100))
    assert {(attempt, count) for _, attempt, count in done} == {(1, 0)}


async def test_a_queue_that_was_deleted_in_its_pause_is_declared_and_consumed_again(broker_url):
    """After the pause at the latest: of a slot that does not consume any more, the broker tells nothing before."""
    app, clock = make_app(broker_url), ManualClock(datetime.now(UTC))
    done: list[int] = []
    fault = True

    @app.task
    async def work(n: int) -> None:
        if fault:
            raise ConnectionError("the service is down")
        done.append(n)

    async def runs_again() -> bool:
        with contextlib.suppress(Unroutable):  # it is not declared yet
            await work.options(reply=False).send(len(done))
        return len(done) > 2 * SLOTS  # more than what the slots may have kept

    async with working(app, clock) as worker:
        await app.send_many(work.options(reply=False).s(n) for n in range(50))
        await eventually(lambda: worker.stats().breakers["shop"] == "open", 30)
        async with await aio_pika.connect(broker_url) as connection, connection.channel() as channel:
            await channel.queue_delete("shop")
        fault = False
        clock.move(PAUSE_S)
        await eventually(runs_again, 60)
        assert worker.stats().breakers["shop"] == "closed"
