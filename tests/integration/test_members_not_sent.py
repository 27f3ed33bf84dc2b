"""Members of a chord that a worker cannot send, because the broker does not take them: on a real broker."""

from __future__ import annotations

import aio_pika

from asyncq import AsyncQ, FailedMember, chord
from support import working

WAIT_S = 30.0


async def test_a_member_whose_queue_cannot_be_had_fails_alone(broker_url, monkeypatch):
    """Another program has declared a queue of that name, to which nothing of ours leads. The other members run."""
    monkeypatch.setattr("asyncq.worker.publishing._REFUSALS", 2)
    async with await aio_pika.connect(broker_url) as connection, connection.channel() as channel:
        await channel.declare_queue("theirs", durable=True)
    app = AsyncQ("shop", broker=broker_url)

    @app.task
    async def number() -> int:
        return 1

    @app.task
    async def double(x: int) -> int:
        return 2 * x

    @app.task
    async def both(values: list[int | FailedMember]) -> list[int | FailedMember]:
        return values

    lost = double.options(queue="theirs").partial()
    async with working(app):
        handle = await (number.s() | chord([double, lost], both, errors="collect")).send()
        value, failed = await handle.result(WAIT_S)
    assert value == 2
    assert isinstance(failed, FailedMember)
    assert (failed.failed, failed.index, failed.task) == ("failed", 1, "shop.double")
    assert failed.error_type == "asyncq.errors.Unroutable"
