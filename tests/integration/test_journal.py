"""Journals on RabbitMQ: what the stream is, and what no other broker has."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit, urlunsplit

import aio_pika
import pytest

import asyncq.rabbitmq.following as following_module
from asyncq import AsyncQ
from asyncq.broker import Identity, QueueSpec
from asyncq.errors import AccessRefused, QueueGone, TopologyMismatch
from asyncq.journal import CaughtUp, Entry, Interrupted
from asyncq.rabbitmq.adapter import RabbitMQ
from asyncq.settings import Settings
from asyncq.testing.node import Node, NodeUnavailable, Setup
from proxy import proxy_of
from support import eventually, working

STREAM = "asyncq.notes"
PRIVATE = pytest.mark.also_on("4.0")


@asynccontextmanager
async def opened(url, **settings):
    broker = RabbitMQ(Settings(broker_url=url, **settings))
    await broker.open(Identity("shop", "test"))
    try:
        yield broker
    finally:
        await broker.close()


async def append(broker, *bodies, keep_s=3600):
    for body in bodies:
        await broker.journal("notes", keep_s=keep_s).append(body, timeout_s=20)


async def until(following, last):
    """Return the bodies of the entries that come until this one, and until the follower has caught up."""
    bodies, caught_up = [], False
    async with asyncio.timeout(30):
        async for item in following:
            caught_up = caught_up or isinstance(item, CaughtUp)
            if isinstance(item, Entry):
                bodies.append(item.body)
            if caught_up and (last is None or last in bodies):
                return bodies
    raise AssertionError("the following has ended")


@PRIVATE
async def test_a_journal_is_a_stream_that_keeps_entries_for_so_long_in_small_segments(broker_url, management):
    """Nothing but its age limits it: no entry is refused, none is dropped for its size."""
    async with opened(broker_url) as broker:
        await append(broker, b"1", keep_s=3600.5)
        queue = await management.queue(STREAM)
        assert queue["arguments"] == {
            "x-queue-type": "stream",
            "x-max-age": "3601s",
            "x-stream-max-segment-size-bytes": 500_000,
        }
        assert queue["durable"]


@PRIVATE
async def test_old_entries_go_with_their_segment(broker_url):
    """So a journal is as large as what is kept, and a segment more; a follower begins with the oldest that is left."""
    async with opened(broker_url) as broker:
        body = b"x" * 20_000
        await append(broker, b"first", *[body] * 60, keep_s=1)

        async def first_is_gone() -> bool:
            await append(broker, *[body] * 10, keep_s=1)
            async with broker.journal("notes", keep_s=1).follow() as following:
                return b"first" not in await until(following, None)

        await eventually(first_is_gone, 30)


@PRIVATE
async def test_a_follower_whose_stream_was_made_anew_while_it_was_away_reads_that_from_its_first_entry(
    broker_url, monkeypatch
):
    """The broker says nothing of an offset that is beyond the end: it only never delivers anything."""
    monkeypatch.setattr(following_module, "_SILENCE_S", 0.5)
    async with proxy_of(broker_url) as proxy, opened(broker_url) as other, opened(proxy.url) as broker:
        await append(other, *[b"old"] * 50)
        async with broker.journal("notes", keep_s=3600).follow() as following:
            assert len(await until(following, b"old")) == 50
            await proxy.refuse()
            async with await aio_pika.connect(broker_url) as connection, connection.channel() as channel:
                await channel.queue_delete(STREAM)
            await append(other, b"new")
            await proxy.listen()
            heard = aiter(following)
            async with asyncio.timeout(30):
                assert await anext(heard) == Interrupted()
            assert await until(following, b"new") == [b"new"]


async def test_a_follower_goes_on_where_it_was_after_a_lost_connection(broker_url):
    """It does not read all again."""
    async with proxy_of(broker_url) as proxy, opened(broker_url) as other, opened(proxy.url) as broker:
        await append(other, *[b"old"] * 50)
        async with broker.journal("notes", keep_s=3600).follow() as following:
            await until(following, b"old")
            await proxy.refuse()
            await append(other, b"new")
            await proxy.listen()
            assert await until(following, b"new") == [b"new"]


@PRIVATE
async def test_a_stream_that_keeps_for_another_time_is_a_mismatch_that_says_what_to_set(broker_url):
    """Two apps of one namespace that do not agree: whoever comes second is told."""
    async with opened(broker_url) as broker:
        await append(broker, b"1", keep_s=3600)
        with pytest.raises(TopologyMismatch, match=r"'x-max-age'.*same time \(cancellations_kept_s"):
            await append(broker, b"2", keep_s=7200)
        with pytest.raises(TopologyMismatch, match="x-max-age"):
            async with broker.journal("notes", keep_s=7200).follow() as following:
                await until(following, None)
        await append(broker, b"3", keep_s=3600)


async def test_an_app_that_declares_nothing_says_that_the_stream_is_missing(broker_url):
    """With the command that declares it, and the way to do without."""
    async with opened(broker_url, declare=False) as broker:
        with pytest.raises(QueueGone, match=r"no stream 'asyncq.notes'.*topology apply.*cancellations_kept_s=0"):
            await append(broker, b"1")
        with pytest.raises(QueueGone, match="no stream"):
            async with broker.journal("notes", keep_s=3600).follow() as following:
                await until(following, None)


@pytest.fixture
def limited(node, broker_url):
    """Return a function: the URL of a user with these permissions."""
    parts = urlsplit(broker_url)
    user = f"limited-{parts.path[-6:]}"

    def grant(**rights):
        node.api("PUT", f"/users/{user}", {"password": "secret", "tags": ""})
        node.api("PUT", f"/permissions/{parts.path[1:]}/{user}", rights)
        return urlunsplit(parts._replace(netloc=f"{user}:secret@{parts.hostname}:{parts.port}"))

    yield grant
    node.api("DELETE", f"/users/{user}")


async def test_a_user_who_may_not_declare_uses_a_stream_that_stands(broker_url, limited):
    """Appending needs write on the default exchange, reading needs read on the stream."""
    url = limited(configure="^$", write=".*", read=".*")
    async with opened(url) as broker, opened(broker_url) as admin:
        with pytest.raises(AccessRefused, match="configure"):
            await append(broker, b"0")
        await append(admin, b"1")
        await append(broker, b"2")
        async with broker.journal("notes", keep_s=3600).follow() as following:
            assert await until(following, b"2") == [b"1", b"2"]


async def test_a_user_who_may_not_read_the_stream_is_told_so(broker_url, limited):
    """With the permission that is missing, and the way to do without."""
    url = limited(configure=".*", write=".*", read="^(?!asyncq.notes)")
    async with opened(url) as broker:
        with pytest.raises(AccessRefused, match=r"'asyncq.notes' cannot be read.*read on it.*cancellations_kept_s=0"):
            async with broker.journal("notes", keep_s=3600).follow() as following:
                await until(following, None)


@pytest.fixture
def url_without_streams(tmp_path):
    """The URL of a RabbitMQ 3.10 that came from an older version: nobody has switched the new features on."""
    flags = "quorum_queue, implicit_default_bindings, virtual_host_metadata, maintenance_mode_status, user_limits"
    setup = Setup(conf="", advanced=f"[{{rabbit, [{{forced_feature_flags_on_init, [{flags}]}}]}}].")
    try:
        node = Node.provide("3.10", name="no-streams", folder=tmp_path, setup=setup, temporary=True)
    except NodeUnavailable as error:
        pytest.skip(f"RabbitMQ 3.10 cannot be had: {error}")
    node.start()
    yield node.url
    node.remove()


async def test_a_broker_without_streams_is_said_by_who_cancels_and_by_the_worker(url_without_streams):
    """With the command that switches them on, and the way to do without."""
    said = r"no streams.*enable_feature_flag stream_queue.*cancellations_kept_s=0"
    app = AsyncQ("shop", broker=url_without_streams)

    @app.task
    async def work() -> int:
        return 1

    async with app:
        handle = await work.send()
        with pytest.raises(TopologyMismatch, match=said):
            await handle.cancel()
        with pytest.raises(TopologyMismatch, match=said):
            await asyncio.wait_for(app.worker().run(), 60)
    with app.using(RabbitMQ, cancellations_kept_s=0):
        async with working(app):
            assert await work.call() == 1


async def test_followers_read_to_the_end_again_when_only_the_consumers_connection_was_lost(broker_url, management):
    """What comes again by the new one must not be run before it is known what was cancelled meanwhile."""
    async with opened(broker_url) as broker:
        await broker.ensure([QueueSpec("shop")])
        async with broker.consume("shop", slots=1), broker.journal("notes", keep_s=3600).follow() as following:
            await until(following, None)
            await management.cut_only("consume")
            async with asyncio.timeout(30):
                assert await anext(aiter(following)) == Interrupted()
            await append(broker, b"new")
            assert await until(following, b"new") == [b"new"]


async def test_all_who_come_while_the_stream_is_being_made_read_it(broker_url):
    """As workers do that start at once on a fresh broker: for a moment it has no copy anywhere."""
    async with AsyncExitStack() as stack:
        brokers = [await stack.enter_async_context(opened(broker_url)) for _ in range(8)]
        followings = [
            await stack.enter_async_context(broker.journal("notes", keep_s=3600).follow()) for broker in brokers
        ]
        await append(brokers[0], b"all")
        assert await asyncio.gather(*(until(following, b"all") for following in followings)) == [[b"all"]] * 8
