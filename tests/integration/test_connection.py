"""Connections: lost, cut, refused, given up in the middle; nothing hangs, nothing leaks, nothing is claimed falsely."""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import time
from urllib.parse import quote, unquote, urlsplit

import aio_pika
import pytest

from asyncq import AsyncQ
from asyncq.broker import Exchange, Queue
from asyncq.errors import (
    AsyncQError,
    AuthenticationFailed,
    BrokerUnavailable,
    LeaseLost,
    MessageTooLarge,
    NotSent,
    PartlySent,
    PublishError,
    PublishUncertain,
    Refused,
    Unroutable,
)
from asyncq.message import Message, new_id
from asyncq.rabbitmq.connection import ConnectOptions, close_connection, connect, parse_urls
from proxy import proxy_of
from support import eventually

QUEUE = "shop"


def make_app(url: str, **settings) -> AsyncQ:
    app = AsyncQ("shop", broker=url, **settings)

    @app.task(reply=False)
    async def note(text: str) -> None:
        """Nobody runs it here."""

    return app


async def drain(url: str, queue: str = QUEUE) -> list[str]:
    """Take everything out of a queue, and return the task ids."""
    found = []
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        source = await channel.get_queue(queue, ensure=False)
        while (message := await source.get(no_ack=True, fail=False, timeout=10)) is not None:
            found.append(message.correlation_id)
    return found


async def test_of_a_thousand_sends_whose_connection_is_cut_each_ends_soon_and_tells_the_truth(broker_url):
    """Confirmed ones are in the queue, ones that were not sent are not, and none waits for its whole timeout."""
    seed = random.randrange(10**6)
    print("seed", seed)
    draw = random.Random(seed)
    confirmed, uncertain, unsent = set(), set(), set()

    async def send(task, task_id: str) -> None:
        try:
            await task.options(task_id=task_id).send("x" * 500)
        except NotSent:
            unsent.add(task_id)
        except PublishUncertain:
            uncertain.add(task_id)
        else:
            confirmed.add(task_id)

    async with proxy_of(broker_url) as proxy, make_app(proxy.url, publish_timeout_s=60) as app:
        task = app.tasks["shop.note"]
        began = time.monotonic()
        for batch in range(4):
            sending = [asyncio.create_task(send(task, f"{batch}.{number}")) for number in range(1000)]
            await asyncio.sleep(draw.uniform(0.0, 0.3))
            proxy.cut()
            await asyncio.gather(*sending)
        took_s = time.monotonic() - began
    print(f"confirmed {len(confirmed)}, uncertain {len(uncertain)}, not sent {len(unsent)}, in {took_s:.1f} s")
    assert took_s < 30
    queue = await drain(broker_url)
    assert len(queue) == len(set(queue))
    assert confirmed <= set(queue)
    assert not unsent & set(queue)


def message(**fields) -> Message:
    return Message(**{"type": "shop.note", "body": b"{}", "task_id": new_id(), "message_id": new_id()} | fields)


async def test_publishes_and_acks_that_wait_for_a_dying_connections_writer_are_let_go(broker_url):
    """The client's writer ends before the connection is closed; who waits for a place in its queue waits for ever."""
    async with make_app(broker_url, publish_timeout_s=60) as app:
        broker = app.broker
        await broker.publish(message(), Queue(QUEUE), timeout_s=10)
        async with broker.consume(QUEUE, slots=30) as subscription:
            delivery = await anext(aiter(subscription))
            for link in (broker._publishing, broker._consuming):
                (await link.ready())._writer_task.cancel()
            publishing = [asyncio.create_task(broker.publish(message(), Queue(QUEUE), timeout_s=60)) for _ in range(50)]
            acking = [asyncio.create_task(delivery.ack()) for _ in range(20)]
            async with asyncio.timeout(15):
                published = await asyncio.gather(*publishing, return_exceptions=True)
                acked = await asyncio.gather(*acking, return_exceptions=True)
    assert {type(item) for item in published} <= {type(None), PublishUncertain}
    assert {type(item) for item in acked} <= {type(None), LeaseLost}


async def user_of(node, broker_url: str, **permissions: str) -> str:
    """Make a user with these permissions for the test's virtual host only; return its URL."""
    name, vhost = f"user-{new_id()}", urlsplit(broker_url).path[1:]
    await asyncio.to_thread(node.api, "PUT", f"/users/{name}", {"password": "p", "tags": ""})
    await asyncio.to_thread(node.api, "PUT", f"/permissions/{quote(unquote(vhost), safe='')}/{name}", permissions)
    return f"amqp://{name}:p@{broker_url.split('@')[1]}"


async def test_a_publish_that_is_not_allowed_claims_nothing_about_others_under_way(broker_url, node):
    """The broker closes the channel for it. What was taken just before must not be called refused."""
    async with make_app(broker_url):
        pass  # the queues stand now
    url = await user_of(node, broker_url, configure=".*", write=r"asyncq\..*", read=".*")
    async with make_app(url) as app:
        good = [message() for _ in range(200)]
        outcomes = await asyncio.gather(
            *(app.broker.publish(item, Exchange("asyncq.tasks", QUEUE), timeout_s=10) for item in good),
            app.broker.publish(message(), Queue(QUEUE), timeout_s=10),
            return_exceptions=True,
        )
    assert isinstance(outcomes.pop(), Refused)
    assert {type(item) for item in outcomes} <= {type(None), PublishUncertain}
    queue = await drain(broker_url)
    assert {item.task_id for item, outcome in zip(good, outcomes, strict=True) if outcome is None} <= set(queue)


async def test_an_exchange_deleted_under_many_publishes_makes_no_second_copy_of_any(broker_url):
    """One that was taken just before the deletion is under way, like those after it: nobody can tell them apart.

    Where the exchange is back and its binding not yet, a message is returned: `Unroutable`, and truly not kept.
    """
    async with make_app(broker_url) as app, await aio_pika.connect(broker_url) as connection:
        sending = [asyncio.create_task(app.tasks["shop.note"].send(str(n))) for n in range(500)]
        channel = await connection.channel()
        await channel.exchange_delete("asyncq.tasks")
        outcomes = await asyncio.gather(*sending, return_exceptions=True)
        failures = [item for item in outcomes if isinstance(item, BaseException)]
        assert {type(item) for item in failures} <= {PublishUncertain, Unroutable}
        await app.tasks["shop.note"].send("after")
    queue = await drain(broker_url)
    assert len(queue) == len(set(queue))
    assert len(queue) >= 501 - len(failures)


def test_a_connection_that_cannot_be_closed_in_order_leaves_no_task_behind_when_the_loop_ends(broker_url, monkeypatch):
    """A broker that is too slow to answer the closing handshake: no line of Python's own about lost tasks."""
    monkeypatch.setattr("asyncq.rabbitmq.connection._CLOSE_TIMEOUT_S", 0.05)
    complaints = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)

    async def close_in_vain():
        async with proxy_of(broker_url) as proxy:
            options = ConnectOptions(parse_urls(proxy.url), heartbeat_s=10, timeout_s=10)
            opened = await connect(options.urls[0], "left open", options)
            proxy.freeze()
            await close_connection(opened)
            for _ in range(2):  # turns of the loop, for what ends in this very moment
                await asyncio.sleep(0)
            return {task for task in asyncio.all_tasks() if "aiormq" in str(task) or "aio_pika" in str(task)}

    assert asyncio.run(close_in_vain()) == set()
    gc.collect()
    assert [str(item.exc_value) for item in complaints] == []


async def test_a_connection_that_confirms_nothing_any_more_is_given_up(broker_url, monkeypatch, caplog):
    """Though it lives: another one is opened, and sending goes on there."""
    monkeypatch.setattr("asyncq.rabbitmq.publisher.SILENCE_S", 0.5)
    async with proxy_of(broker_url) as proxy, make_app(proxy.url, heartbeat_s=600) as app:
        note = app.tasks["shop.note"]
        await note.send("before")
        opened = proxy.accepted
        proxy.freeze()
        with pytest.raises(PublishUncertain):
            await note.options(timeout=1).send("unknown")
        await eventually(lambda: proxy.accepted > opened, 20)
        assert "connection to the broker is given up" in caplog.text
        proxy.thaw()
        await note.options(timeout=20).send("after")


async def test_a_message_that_amqp_cannot_carry_is_refused_and_harms_no_other(broker_url):
    """It never left, and trying again is no use: the error says so, and is not a lost connection."""
    async with make_app(broker_url) as app:
        outcomes = await asyncio.gather(
            *(
                app.broker.publish(message(headers={"odd": object()} if n == 3 else {}), Queue(QUEUE), timeout_s=10)
                for n in range(6)
            ),
            return_exceptions=True,
        )
    assert isinstance(outcomes.pop(3), Refused)
    assert outcomes == [None] * 5


async def test_one_signature_that_cannot_be_sent_is_one_outcome_of_many(broker_url):
    """The others' handles are not thrown away with it."""
    async with make_app(broker_url, max_message_bytes=2000) as app:
        task = app.tasks["shop.note"]
        with pytest.raises(PartlySent, match="1 of 3") as caught:
            await app.send_many([task.s("a"), task.s("b" * 3000), task.s("c")])
        assert isinstance(caught.value.outcomes[1], MessageTooLarge)
    assert len(await drain(broker_url)) == 2


async def test_a_broker_that_is_silent_or_gone_leaves_time_for_the_next_one_of_the_list(broker_url):
    """Both for the connections that stay and for the one for declaring."""
    async with proxy_of(broker_url) as silent, proxy_of(broker_url) as gone:
        silent.freeze()
        await gone.refuse()
        for first in (silent.url, gone.url):
            async with make_app(f"{first},{broker_url}", connect_timeout_s=4) as app:
                await app.tasks["shop.note"].send("x")


async def test_from_a_list_of_brokers_the_next_one_takes_over_when_one_goes(broker_url):
    """And the first one again when the second goes."""
    async with proxy_of(broker_url) as one, proxy_of(broker_url) as two, make_app(f"{one.url},{two.url}") as app:

        async def sent() -> bool:
            try:
                await app.tasks["shop.note"].send("x")
            except PublishUncertain:
                return False  # it was under way in the very moment of the cut
            return True

        assert await sent()
        await one.refuse()
        await eventually(sent)
        assert two.open > 0
        await one.listen()
        await two.refuse()
        await eventually(sent)
        assert one.open > 0


async def test_an_app_whose_opening_is_given_up_at_any_moment_leaves_no_connection_and_no_task(broker_url):
    """Cancelled after each of many small steps."""
    async with proxy_of(broker_url) as proxy:
        async with make_app(proxy.url):
            pass  # everything is declared
        before = asyncio.all_tasks()
        for step in range(60):
            app = make_app(proxy.url)

            async def enter(app=app) -> None:
                async with app:
                    pass

            entering = asyncio.create_task(enter())
            await asyncio.sleep(step * 0.001)
            entering.cancel()
            async with asyncio.timeout(10):
                await asyncio.wait({entering})
            assert entering.cancelled() or entering.exception() is None, entering
        # What was being opened is opened, and closed at once: cutting a handshake short can leave it open for ever.
        await eventually(lambda: proxy.open == 0, timeout=20)
        await eventually(lambda: not {task for task in asyncio.all_tasks() - before if "Proxy" not in repr(task)})


async def test_an_app_whose_leaving_is_given_up_at_any_moment_leaves_no_connection_and_no_task(broker_url):
    """Cancelled after each of many turns of the event loop."""
    async with proxy_of(broker_url) as proxy:
        before = asyncio.all_tasks()
        for turns in range(1, 20):
            app = await make_app(proxy.url).__aenter__()
            leaving = asyncio.create_task(app.__aexit__(None, None, None))
            for _ in range(turns):
                await asyncio.sleep(0)
            leaving.cancel()
            await asyncio.wait({leaving})
        await eventually(lambda: proxy.open == 0, timeout=20)
        await eventually(lambda: not {task for task in asyncio.all_tasks() - before if "Proxy" not in repr(task)})


async def test_a_send_that_is_given_up_at_any_moment_harms_no_other(broker_url):
    """Neither the one that waits for the channel, nor those under way."""
    async with proxy_of(broker_url) as proxy, make_app(proxy.url) as app:
        for step in range(40):
            if step % 4 == 0:
                await (await app.broker._publishing.ready()).close()  # the next send opens a channel
            task = app.tasks["shop.note"]
            given_up = [asyncio.create_task(task.send("given up")) for _ in range(3)]
            others = [asyncio.create_task(task.options(task_id=f"{step}.{n}").send("x")) for n in range(3)]
            await asyncio.sleep(step * 0.0005)
            for sending in given_up:
                sending.cancel()
            await asyncio.gather(*others)
            await asyncio.gather(*given_up, return_exceptions=True)
    assert {f"{step}.{n}" for step in range(40) for n in range(3)} <= set(await drain(broker_url))


async def test_an_app_is_left_within_seconds_when_its_broker_is_frozen(broker_url):
    """Nothing may hold up the end of a program."""
    async with proxy_of(broker_url) as proxy:
        async with make_app(proxy.url) as app:
            await app.tasks["shop.note"].send("x")
            async with app.broker.consume(QUEUE, slots=2):
                proxy.freeze()
                began = time.monotonic()
        assert time.monotonic() - began < 12


async def test_an_app_that_could_not_be_entered_can_be_entered_when_the_broker_is_there(broker_url):
    """Also by somebody who had waited while the first one failed."""
    async with proxy_of(broker_url) as proxy:
        proxy.freeze()
        app = make_app(proxy.url, connect_timeout_s=1)

        async def use() -> str:
            async with app:
                return (await app.tasks["shop.note"].send("x")).id

        first = asyncio.create_task(use())
        await eventually(lambda: proxy.accepted == 1)
        second = asyncio.create_task(use())
        third = asyncio.create_task(use())
        with pytest.raises(AsyncQError):
            await first
        proxy.thaw()
        assert await asyncio.gather(second, third)
        assert await use()


async def test_a_user_who_may_not_declare_can_send_to_queues_that_exist(broker_url, node, caplog):
    """And is told what is missing, where something is."""
    async with make_app(broker_url):
        pass
    url = await user_of(node, broker_url, configure="^$", write=".*", read=".*")
    async with make_app(url) as app:
        await app.tasks["shop.note"].send("x")
        assert "must exist" in caplog.text
        with pytest.raises(NotSent, match=r"configure.*reply=False|reply=False.*configure"):
            await app.tasks["shop.note"].options(reply=True).send("x")
        with pytest.raises(PublishError, match="permission"):
            await app.tasks["shop.note"].options(delay=60).send("x")
    assert len(await drain(broker_url)) == 1


async def test_tls_at_a_port_without_it_is_named_so(broker_url):
    """Not a broker that cannot be reached."""
    url = broker_url.replace("amqp://", "amqps://")
    with pytest.raises(BrokerUnavailable, match="TLS"):
        async with make_app(url, connect_timeout_s=5):
            pass


async def test_a_password_is_in_no_log_line(broker_url, caplog):
    """Connecting, losing and refusing, with everything logged."""
    caplog.set_level("DEBUG")
    user, rest = broker_url.split("@")
    with pytest.raises(AuthenticationFailed) as caught:
        async with make_app(f"{user.rpartition(':')[0]}:s3%2Fcret%40@{rest}"):
            pass
    assert "cret" not in caplog.text + str(caught.value)
