"""Result stores on servers that behave badly: frozen, restarted, with a wrong password."""

from __future__ import annotations

import asyncio
import signal
import uuid
from datetime import UTC, datetime

import pytest

from asyncq.errors import StoreRefused, StoreSchemaMismatch, StoreUnavailable
from asyncq.status import StatusUpdate, TaskState
from asyncq.stores.urls import store_of
from servers import Postgres, Redis
from support import eventually


@pytest.fixture
def postgres(postgres_server):
    """A server that the test may freeze."""
    yield postgres_server
    postgres_server.send(signal.SIGCONT)
    postgres_server.start()


@pytest.fixture
def redis(redis_server):
    """A server that the test may freeze."""
    yield redis_server
    redis_server.send(signal.SIGCONT)
    redis_server.start()


def update(id_: str, state: TaskState = TaskState.QUEUED, attempt: int = 0) -> StatusUpdate:
    return StatusUpdate(id_, state, datetime.now(UTC), attempt=attempt)


def new_store(server, **options):
    store = store_of(server.url, **{"namespace": f"t-{uuid.uuid4().hex[:12]}", "timeout_s": 1.0, **options})
    assert store is not None
    return store


async def frozen(server):
    store = new_store(server, timeout_s=30.0)
    await store.init()
    await store.open()
    await store.write([update("a")])
    impatient = store_of(server.url, namespace=store._options.namespace, timeout_s=1.0)
    await impatient.open()
    server.send(signal.SIGSTOP)
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match=r"did not answer within 1 s|Timeout"):
            await impatient.read(["a"])
    with pytest.raises(StoreUnavailable):
        await impatient.write([update("a", TaskState.STARTED, 1)])
    server.send(signal.SIGCONT)

    async def written():
        try:
            await impatient.write([update("a", TaskState.SUCCEEDED, 1)])
        except StoreUnavailable:
            return False
        return True

    await eventually(written, 60)
    assert [status.state for status in await store.read(["a"])] == ["succeeded"]
    await impatient.close()
    await store.close()


async def test_a_frozen_postgresql_is_given_up_in_time_and_used_again_when_it_goes_on(postgres):
    """Nobody waits for ever."""
    await frozen(postgres)


async def test_a_frozen_redis_is_given_up_in_time_and_used_again_when_it_goes_on(redis):
    """Nobody waits for ever."""
    await frozen(redis)


async def test_postgresql_without_tables_says_what_to_do(postgres):
    """Creating them is a decision there."""
    store = new_store(postgres, timeout_s=30.0)
    with pytest.raises(StoreSchemaMismatch, match=r"not prepared for use: .*init"):
        await store.open()
    await store.init()
    await store.open()
    await store.close()


async def test_a_database_that_does_not_exist_is_named_without_the_password(postgres):
    """The server's own words, and the URL for people."""
    store = store_of(postgres.url.replace("/postgres", "/missing"), timeout_s=30.0)
    with pytest.raises(StoreRefused, match=r'postgresql://asyncq@127.*database "missing" does not exist') as caught:
        await store.open()
    assert "not-checked" not in str(caught.value)


async def test_a_redis_that_wants_another_password_says_so(redis):
    """Without showing the one that was tried."""
    store = store_of(redis.url.replace("redis://", "redis://someone:secret@"), timeout_s=30.0)
    with pytest.raises(StoreRefused, match=r"will not have us: .*[Pp]assword") as caught:
        await store.open()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("cancel_after", range(20))
async def test_a_cancelled_call_leaves_a_usable_postgresql_store(postgres, cancel_after):
    """At any moment of it."""
    store = new_store(postgres, timeout_s=30.0)
    await store.init()
    await store.open()
    await store.write([update(f"t{number}") for number in range(100)])
    calls = [
        asyncio.create_task(store.write([update(f"more-{number}") for number in range(100)])),
        asyncio.create_task(store.read([f"t{number}" for number in range(100)])),
        asyncio.create_task(store.list()),
    ]
    for _ in range(3 * cancel_after):
        await asyncio.sleep(0)
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    await store.write([update("a")])
    assert [status.state for status in await store.read(["a"])] == ["queued"]
    await store.close()


@pytest.mark.parametrize("kind", [Postgres, Redis])
async def test_notifications_are_used_where_they_come(kind, request):
    """A change is told, not found by looking again: looking would come after 5 s."""
    server = request.getfixturevalue("postgres_server" if kind is Postgres else "redis_server")
    store = new_store(server, timeout_s=30.0)
    await store.init()
    await store.open()
    await store.write([update("a")])
    rings = []
    ring = store._bell.ring
    store._bell.ring = lambda key: (rings.append(key), ring(key))
    seen = []

    async def follow():
        async for status in store.watch("a"):
            seen.append(status.state)  # noqa: PERF401 - one by one, as they come

    following = asyncio.create_task(follow())
    await eventually(lambda: seen == ["queued"], 60)
    await store.write([update("a", TaskState.STARTED, 1), update("b")])
    await eventually(lambda: "a" in rings, 60)
    await store.write([update("a", TaskState.SUCCEEDED, 1)])
    await asyncio.wait_for(following, 60)
    assert seen[-1] == "succeeded"
    await store.close()
