"""Retry policies on a real broker, where the wire itself matters: defaults of a queue, foreign headers.

What every broker must do is in the conformance suite.
"""

import json

import aio_pika
import pytest

from asyncq import AsyncQ, Fixed, RetryPolicy, TaskContext, TaskFailed
from asyncq.broker import DeadLetter
from support import eventually, working

SOON = RetryPolicy(backoff=Fixed(0.02), jitter=False, max_attempts=3)


async def letters_of(app: AsyncQ, queue: str) -> list[DeadLetter]:
    return [letter async for letter in app.dead_letters(queue).browse()]


async def test_the_defaults_are_those_of_the_queue_that_a_message_comes_out_of(broker_url):
    """Not of the queue that its task is declared for, and also after a stay in the ladder."""
    app = AsyncQ("shop", broker=broker_url, queues={"patient": {"retry": SOON}})
    runs: list[tuple[str, int]] = []

    @app.task(pass_context=True)
    async def fragile(ctx: TaskContext) -> None:
        runs.append((ctx.queue, ctx.attempt))
        raise ConnectionError

    async with working(app, {"shop": 1, "patient": 1}):
        for queue in ("shop", "patient"):
            with pytest.raises(TaskFailed):
                await fragile.options(queue=queue).call()
    assert runs == [("shop", 1), ("patient", 1), ("patient", 2), ("patient", 3)]


@pytest.mark.parametrize(
    "foreign",
    ["no JSON", ["a", {"b": 1}], {"a": 1}, True, 7, json.dumps([{"attempt": 1}])],
    ids=lambda value: type(value).__name__,
)
async def test_whatever_a_foreign_client_writes_as_history_is_replaced(broker_url, foreign):
    """The task runs, and is retried, as if nothing had been there."""
    app = AsyncQ("shop", broker=broker_url)

    @app.task(retry=SOON)
    async def fragile() -> None:
        raise ConnectionError("gone")

    async with working(app):
        async with await aio_pika.connect(broker_url) as connection:
            channel = await connection.channel()
            message = aio_pika.Message(b"{}", type="shop.fragile", headers={"asyncq-history": foreign})
            await channel.default_exchange.publish(message, "shop")
        (letter,) = await eventually(lambda: letters_of(app, "shop"))
    assert letter.record is not None
    assert letter.record.reason == "attempts exhausted"
    assert [(entry.attempt, entry.message) for entry in letter.record.history] == [(n, "gone") for n in (1, 2, 3)]
