"""Expiry on a real broker: what waits too long in a queue or in the delay ladder is not run.

What a worker decides, and when, is in tests/unit/test_expiry.py, by a clock that the tests move.
"""

import asyncio
import time

import aio_pika
import pytest

from asyncq import AsyncQ, Fixed, ResultTimeout, RetryPolicy, TaskContext, TaskExpired
from asyncq.message import EXPIRES_AT
from support import eventually, working


async def letters_of(app: AsyncQ, queue: str) -> list[object]:
    return [letter async for letter in app.dead_letters(queue).browse()]


async def test_a_task_that_waited_too_long_is_not_run_and_later_ones_are(broker_url):
    """Its handle says so, also the blocking one; it is no dead letter, and takes nothing else along."""
    app = AsyncQ("shop", broker=broker_url)
    runs: list[str] = []

    @app.task
    async def work(name: str) -> str:
        runs.append(name)
        return name

    async with app:
        sent = time.time()
        late = await work.options(expires=0.05).send("late")
        blocking = await asyncio.to_thread(app.sync.send, work.s("blocking").options(expires=0.05))
        in_time = await work.options(expires=600).send("in time")
        plain = await work.send("plain")
        with pytest.raises(ResultTimeout):  # no worker, so nobody knows; and so all of it is over
            await late.result(0.3)
        async with working(app):
            assert [await handle.result(20) for handle in (in_time, plain)] == ["in time", "plain"]
            with pytest.raises(TaskExpired) as caught:
                await late.result(20)
            with pytest.raises(TaskExpired):
                await asyncio.to_thread(blocking.result, 20)
        assert await letters_of(app, "shop") == []
    assert runs == ["in time", "plain"]
    expires, met = caught.value.expires.timestamp(), caught.value.met.timestamp()
    assert sent + 0.05 - 0.001 <= expires <= sent + 20
    assert met >= sent + 0.3


async def test_a_retry_carries_its_expiry_through_the_ladder(broker_url):
    """The attempts that fit are made; the one that does not ends the task, with the last error."""
    app = AsyncQ("shop", broker=broker_url)
    runs: list[tuple[int, bool]] = []

    @app.task(pass_context=True, retry=RetryPolicy(backoff=Fixed(2.5), jitter=False, max_attempts=100))
    async def fragile(ctx: TaskContext) -> None:
        assert ctx.expires is not None
        runs.append((ctx.attempt, time.time() < ctx.expires.timestamp()))
        raise ConnectionError(f"gone {ctx.attempt}")

    async with working(app):
        handle = await fragile.options(delay=0.1, expires=5).send()
        with pytest.raises(TaskExpired) as caught:
            await handle.result(20)
        (letter,) = await letters_of(app, "shop")
    assert letter.record is not None
    assert (letter.record.reason, letter.record.attempts) == ("expired", len(runs))
    assert 1 <= len(runs) <= 2
    assert runs == [(number, True) for number in range(1, len(runs) + 1)]
    assert caught.value.error == f"builtins.ConnectionError: gone {len(runs)}"


@pytest.mark.parametrize("foreign", ["soon", 1.5, True, 0, 2**62, {"a": 1}], ids=repr)
async def test_a_malformed_expiry_of_a_foreign_client_is_a_dead_letter(broker_url, foreign):
    """With its reason; a good one of the same client holds."""
    app = AsyncQ("shop", broker=broker_url)

    @app.task
    async def work() -> None:
        pytest.fail("it ran")

    async with working(app):
        async with await aio_pika.connect(broker_url) as connection:
            channel = await connection.channel()
            reply_queue = await channel.declare_queue(exclusive=True)
            for header in (foreign, 1):
                message = aio_pika.Message(
                    b"{}", type="shop.work", headers={EXPIRES_AT: header}, reply_to=reply_queue.name
                )
                await channel.default_exchange.publish(message, "shop")
            replies = [await eventually(lambda: reply_queue.get(fail=False)) for _ in range(2)]
        (letter,) = await letters_of(app, "shop")
    assert {reply.type for reply in replies} == {"rejected", "expired"}
    assert letter.record is not None
    assert letter.record.reason == "malformed message"
    assert EXPIRES_AT in letter.record.failure.message
