"""Replies: one queue for each client, and what becomes of it."""

from __future__ import annotations

import asyncio
import contextlib

import aio_pika
import pytest

from asyncq import AsyncQ, TaskContext
from asyncq.errors import NotSent, PublishUncertain, ReplyLost
from proxy import proxy_of
from support import eventually, working


def make_app(url: str, **settings) -> AsyncQ:
    app = AsyncQ("shop", broker=url, **settings)
    app.gate = asyncio.Event()

    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    @app.task
    async def gated(text: str) -> str:
        await app.gate.wait()
        return text

    @app.task(pass_context=True)
    async def counting(ctx: TaskContext, upto: int) -> int:
        for number in range(1, upto + 1):
            await ctx.progress(number, upto, label="COUNTING", square=number * number)
        return upto

    return app


async def reply_queue(management) -> str:
    return next(name for name in await management.queues() if ".reply." in name)


async def test_a_reply_outlives_a_cut_connection(broker_url, management):
    """The queue is durable, and it is read again; the higher consumer priority gets everything at once."""
    async with working(make_app(broker_url)) as app:
        handle = await app.tasks["shop.gated"].send("kept")
        await management.cut("consume")
        app.gate.set()
        assert await handle.result(timeout=20) == "kept"


async def test_the_reply_queue_goes_with_its_app_and_expires_where_the_process_died(broker_url, management):
    """It has x-expires, so a crashed producer leaves nothing for ever."""
    async with working(make_app(broker_url, reply_queue_ttl_s=123)) as app:
        await app.tasks["shop.add"].call(1, 2)
        arguments = (await management.queue(await reply_queue(management)))["arguments"]
        assert arguments["x-expires"] == 123_000
    assert not [name for name in await management.queues() if ".reply." in name]


async def test_replies_that_nobody_claims_take_no_memory(broker_url):
    """Handles hold weakly."""
    async with working(make_app(broker_url)) as app:
        add = app.tasks["shop.add"]
        for _ in range(50):
            await add.send(1, 2)
        await add.call(1, 2)
        assert len(app._client._replies.pending) <= 1


async def test_a_first_send_that_is_given_up_does_not_spoil_the_reply_queue_for_others(broker_url):
    """At whatever moment of its opening."""
    for step in range(12):
        async with make_app(broker_url) as app:
            add = app.tasks["shop.add"]
            first = asyncio.create_task(add.send(1, 2))
            second = asyncio.create_task(add.send(3, 4))
            await asyncio.sleep(step * 0.003)
            first.cancel()
            async with asyncio.timeout(10):
                await second
                await add.send(5, 6)


async def test_an_app_that_is_left_while_a_reply_queue_is_opened_leaves_nobody_waiting(broker_url):
    """The send ends, and says that nothing was sent."""
    async with proxy_of(broker_url) as proxy:
        app = make_app(proxy.url)
        async with app:
            proxy.freeze()
            sending = asyncio.create_task(app.tasks["shop.add"].send(1, 2))
            await eventually(lambda: proxy.accepted >= 3)
        async with asyncio.timeout(5):
            with pytest.raises(NotSent):
                await sending


@pytest.mark.parametrize("options", [{}, {"delay": 5, "reply": False}], ids=["reply", "delayed"])
async def test_a_send_that_waits_for_the_connection_ends_with_its_app(broker_url, options):
    """At once, not when its time is over."""
    async with proxy_of(broker_url) as proxy:
        app = make_app(proxy.url)
        async with app:
            await proxy.refuse()
            await eventually(lambda: app.broker.status().state == "connecting")
            sending = asyncio.create_task(app.tasks["shop.add"].options(**options).send(1, 2))
            done, _ = await asyncio.wait({sending}, timeout=0.5)
            assert not done  # it has tried, and waits for the next connection
        async with asyncio.timeout(3):
            with pytest.raises(NotSent):
                await sending


async def test_a_send_whose_reply_queue_cannot_be_opened_ends_with_its_timeout(broker_url):
    """Also where the connection for consuming had been there before, and is away now."""
    async with proxy_of(broker_url) as proxy, make_app(proxy.url, publish_timeout_s=1) as app:
        async with app.broker.consume("shop", slots=1):
            pass
        await proxy.refuse()
        await eventually(lambda: app.broker._consuming.status().state == "connecting")
        async with asyncio.timeout(5):
            with pytest.raises(NotSent, match="reply queue"):
                await app.tasks["shop.add"].send(1, 2)
        await proxy.listen()
        await eventually(lambda: app.broker.status().state == "ready")
        await app.tasks["shop.add"].send(1, 2)


@pytest.mark.parametrize("options", [{}, {"delay": 0.5}], ids=["at once", "delayed"])
async def test_a_first_send_that_is_cut_off_in_its_preparations_goes_on_by_the_next_connection(broker_url, options):
    """The reply queue and the way to it are opened by then, or not: nothing was sent yet, and there is time."""
    for step in range(20):
        async with proxy_of(broker_url) as proxy, make_app(proxy.url) as app:
            add = app.tasks["shop.add"]
            sending = asyncio.create_task(add.options(**options).send(1, 2))
            await asyncio.sleep(step * 0.004)
            proxy.cut()
            with contextlib.suppress(PublishUncertain):  # cut off after it was written
                await sending


async def test_a_task_sent_again_with_its_id_after_its_reply_was_lost_has_a_reply_to_wait_for(broker_url, management):
    """The old handle knows that its reply is lost; the new one must not inherit that."""
    async with working(make_app(broker_url)) as app:
        old = await app.tasks["shop.gated"].options(task_id="same").send("again")
        name = await reply_queue(management)
        async with await aio_pika.connect(broker_url) as connection, connection.channel() as channel:
            await channel.queue_delete(name)
        with pytest.raises(ReplyLost):
            await old.result(timeout=20)
        new = await app.tasks["shop.gated"].options(task_id="same").send("again")
        app.gate.set()
        assert await new.result(timeout=20) == "again"


async def test_replies_come_through_a_storm_of_cuts(broker_url):
    """Each call that was confirmed ends, with its own answer."""
    async with proxy_of(broker_url) as proxy, working(make_app(broker_url)), make_app(proxy.url) as client:
        add = client.tasks["shop.add"]

        async def call(n: int) -> None:
            while True:
                try:
                    handle = await add.options(task_id=f"storm-{n}").send(n, 1)
                except PublishUncertain:
                    continue
                assert await handle.result(timeout=30) == n + 1
                return

        calls = [asyncio.create_task(call(n)) for n in range(100)]
        for _ in range(6):
            await asyncio.sleep(0.1)
            proxy.cut()
        await asyncio.gather(*calls)


async def test_several_wait_for_one_result_and_follow_its_progress_each_for_itself(broker_url):
    """Giving up one of them is nothing to the others."""
    async with working(make_app(broker_url)) as app:
        handle = await app.tasks["shop.counting"].send(5)

        async def follow() -> list[float]:
            return [update.done async for update in handle.updates()]

        waiting = [asyncio.create_task(handle.result(timeout=10)) for _ in range(3)]
        waiting[0].cancel()
        assert await asyncio.gather(follow(), follow()) == [[1, 2, 3, 4, 5]] * 2
        assert await asyncio.gather(*waiting[1:]) == [5, 5]
