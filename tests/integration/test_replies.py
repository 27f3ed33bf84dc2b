"""Replies: one queue for each client, and what becomes of it."""

from __future__ import annotations

import asyncio

import aio_pika
import pytest

from asyncq import AsyncQ, TaskContext, TaskFailed
from asyncq.errors import InvalidResult, NoReply, NotSent, PublishUncertain, ReplyLost, ResultTimeout
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


async def test_a_call_returns_the_validated_result(broker_url):
    """Send, wait, and the value has its type."""
    async with working(make_app(broker_url)) as app:
        assert await app.tasks["shop.add"].call(1, 2) == 3
        assert await app.call("shop.add", {"a": 3, "b": 4}) == 7


async def test_many_calls_at_once_each_get_their_own_answer(broker_url):
    """Correlation by task id."""
    async with working(make_app(broker_url)) as app:
        add = app.tasks["shop.add"]
        assert await asyncio.gather(*(add.call(n, 1000) for n in range(200))) == [n + 1000 for n in range(200)]


async def test_progress_arrives_in_order_and_ends_with_the_result(broker_url):
    """Numbers, label and details."""
    async with working(make_app(broker_url)) as app:
        handle = await app.tasks["shop.counting"].send(5)
        updates = [update async for update in handle.updates()]
        assert [(item.done, item.total, item.label, item.details) for item in updates] == [
            (n, 5, "COUNTING", {"square": n * n}) for n in range(1, 6)
        ]
        assert await handle.result(timeout=1) == 5
        assert [item.done async for item in handle.updates()] == [1, 2, 3, 4, 5]


async def test_a_timeout_does_not_end_the_task_and_waiting_goes_on_by_calling_again(broker_url):
    """The error says both."""
    async with working(make_app(broker_url)) as app:
        handle = await app.tasks["shop.gated"].send("late")
        with pytest.raises(ResultTimeout, match="call result\\(\\) again"):
            await handle.result(timeout=0.1)
        app.gate.set()
        assert await handle.result(timeout=10) == "late"


async def test_a_task_sent_without_reply_has_no_result_to_wait_for(broker_url, management):
    """And no reply queue is made for it."""
    async with working(make_app(broker_url)) as app:
        handle = await app.tasks["shop.add"].options(reply=False).send(1, 2)
        with pytest.raises(NoReply, match="reply=True"):
            await handle.result()
        assert not [name for name in await management.queues() if ".reply." in name]


async def test_a_reply_outlives_a_cut_connection(broker_url, management):
    """The queue is durable, and it is read again; the higher consumer priority gets everything at once."""
    async with working(make_app(broker_url)) as app:
        handle = await app.tasks["shop.gated"].send("kept")
        await eventually(management.close_connections)
        app.gate.set()
        assert await handle.result(timeout=20) == "kept"


async def test_a_deleted_reply_queue_is_told_and_replaced(broker_url, management):
    """Pending handles raise ReplyLost; new calls work."""
    async with working(make_app(broker_url)) as app:
        handle = await app.tasks["shop.gated"].send("lost")
        waiting = asyncio.create_task(handle.result(timeout=20))
        await asyncio.sleep(0)
        name = await reply_queue(management)
        async with await aio_pika.connect(broker_url) as connection, connection.channel() as channel:
            await channel.queue_delete(name)
        with pytest.raises(ReplyLost, match="not affected"):
            await waiting
        app.gate.set()

        async def answered() -> bool:
            return await app.tasks["shop.add"].options(timeout=1).call(1, 1) == 2

        assert await answered()
        assert await reply_queue(management) != name


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
        assert len(app._client._pending) <= 1


async def test_a_result_that_does_not_fit_the_declared_type_here_is_named_so(broker_url):
    """Producer and worker of different versions."""
    worker_app = make_app(broker_url)
    other = AsyncQ("shop", broker=broker_url)

    @other.task(name="shop.add")
    async def add(a: int, b: int) -> dict[str, int]:
        raise NotImplementedError

    async with working(worker_app), other:
        with pytest.raises(InvalidResult, match="return type"):
            await add.call(1, 2)


async def test_a_remote_error_arrives_with_its_type_message_and_traceback(broker_url):
    """As TaskFailed, picklable or not."""
    app = make_app(broker_url)

    class Odd(Exception):
        def __init__(self, one, two):
            super().__init__(f"{one} and {two}")

    @app.task
    async def broken() -> None:
        raise Odd("this", "that")

    async with working(app):
        with pytest.raises(TaskFailed) as caught:
            await broken.call()
    assert caught.value.type.endswith("Odd")
    assert caught.value.message == "this and that"
    assert "raise Odd" in caught.value.traceback


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
