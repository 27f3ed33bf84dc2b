"""A task's life as server-sent events, read from a result store in memory."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import anyio
import pytest

from asyncq import Progress
from asyncq.errors import StoreUnavailable
from asyncq.integrations.server_sent_events import event_id, events_of
from asyncq.status import StatusUpdate, TaskState
from asyncq.stores.urls import store_of
from support import eventually

START = datetime(2026, 11, 26, 14, 0, tzinfo=UTC)


def data_of(status):
    """Return what is looked at here."""
    return f"{status.state} {status.progress.done if status.progress else ''}".strip()


@dataclass(frozen=True)
class Event:
    """One event as a browser reads it."""

    id: str
    data: str


def parse(text: str) -> Event:
    """Read one event."""
    assert text.endswith("\n\n")
    fields = dict(line.split(": ", 1) for line in text.splitlines() if line)
    return Event(fields["id"], fields["data"])


@pytest.fixture
async def store():
    """An open result store."""
    store = store_of(f"memory://{uuid.uuid4().hex}")
    await store.init()
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def tell(store):
    """Write what happens to task 42, a second after what was told before."""
    ticks = iter(range(1000))

    async def write(state, **facts):
        attempt = 0 if state is TaskState.QUEUED else 1
        at = START + timedelta(seconds=next(ticks))
        await store.write([StatusUpdate("42", state, at, attempt=attempt, **facts)])

    return write


async def test_each_status_is_an_event_and_the_final_one_is_the_last(store, tell):
    """Progress is a status too."""
    events = events_of(store.watch("42"), data_of)
    await tell(TaskState.QUEUED)
    seen = [parse(await anext(events))]
    await tell(TaskState.STARTED)
    seen.append(parse(await anext(events)))
    await tell(TaskState.STARTED, progress=Progress(1, 2))
    seen.append(parse(await anext(events)))
    await tell(TaskState.SUCCEEDED, progress=Progress(2, 2), result=b"1")
    seen += [parse(event) async for event in events]
    assert [event.data for event in seen] == ["queued", "started", "started 1", "succeeded 2"]
    assert len({event.id for event in seen}) == 4


async def test_who_connects_again_hears_only_what_is_new(store, tell):
    """The id of an event says which status it was."""
    await tell(TaskState.QUEUED)
    events = events_of(store.watch("42"), data_of)
    last = parse(await anext(events))
    await events.aclose()
    again = events_of(store.watch("42"), data_of, seen=last.id, keep_alive_s=0.05)
    assert (await anext(again)).startswith(":")  # it has looked, and found nothing new
    await tell(TaskState.SUCCEEDED, result=b"1")
    assert [parse(text).data async for text in again if not text.startswith(":")] == ["succeeded"]


async def test_an_id_that_is_not_known_is_harmless(store, tell):
    """A client may send anything."""
    await tell(TaskState.SUCCEEDED, result=b"1")
    assert [parse(event).data async for event in events_of(store.watch("42"), data_of, seen="?")] == ["succeeded"]


async def test_a_quiet_task_is_kept_alive_by_comments(store, tell):
    """Proxies close connections that are silent; a comment is no event."""
    await tell(TaskState.STARTED)
    events = events_of(store.watch("42"), data_of, keep_alive_s=0.01)
    texts = [await anext(events) for _ in range(4)]
    assert parse(texts[0]).data == "started"
    assert all(text.startswith(":") and text.endswith("\n\n") for text in texts[1:])
    await tell(TaskState.SUCCEEDED, result=b"1")
    assert [parse(text).data async for text in events if not text.startswith(":")] == ["succeeded"]


async def test_nobody_goes_on_reading_when_the_client_has_gone(store, tell):
    """Cancelled in the middle of a wait, as a server does it: again and again, until the response has ended."""
    await tell(TaskState.STARTED)
    ended = asyncio.Event()

    async def watched():
        try:
            async for status in store.watch("42"):
                yield status
        finally:
            await asyncio.sleep(0.01)  # as closing a connection takes a moment
            ended.set()

    seen = []

    async def serve():
        async for event in events_of(watched(), data_of):
            seen.append(event)  # noqa: PERF401 - one by one: it is looked at meanwhile

    async with anyio.create_task_group() as server:
        server.start_soon(serve)
        await eventually(lambda: seen)
        server.cancel_scope.cancel()
    assert ended.is_set()
    assert "asyncq events" not in {task.get_name() for task in asyncio.all_tasks()}


async def test_a_slow_client_holds_up_the_reading_and_gets_the_end(store, tell):
    """What it has not taken is not piled up: the store has the latest."""
    read = []

    async def watched():
        async for status in store.watch("42"):
            read.append(status)
            yield status

    await tell(TaskState.STARTED)
    events = events_of(watched(), data_of)
    assert parse(await anext(events)).data == "started"
    for done in range(100):
        await tell(TaskState.STARTED, progress=Progress(done, 100))
        await asyncio.sleep(0)
    await tell(TaskState.SUCCEEDED, progress=Progress(100, 100), result=b"1")
    assert len(read) < 10
    assert [parse(event).data async for event in events][-1] == "succeeded 100"


async def test_a_store_that_fails_ends_the_stream_so_that_the_client_asks_again(store, tell):
    """The answer has begun, so there is no other way to say it."""
    await tell(TaskState.STARTED)

    async def watched():
        async for status in store.watch("42"):
            yield status
            raise StoreUnavailable("the store is away")

    assert [parse(event).data async for event in events_of(watched(), data_of)] == ["started"]


async def test_statuses_of_one_state_have_ids_of_their_own(store, tell):
    """Also where only the time differs."""
    ids = set()
    for _ in range(3):
        await tell(TaskState.STARTED, progress=Progress(1, 2))
        ids.add(event_id((await store.read(["42"]))[0]))
    assert len(ids) == 3
