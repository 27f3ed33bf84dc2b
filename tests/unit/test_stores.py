"""Result stores before any server: their URLs, their records, their schema."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncq.errors import ConfigurationError, StoreRefused, StoreSchemaMismatch, StoreUnavailable
from asyncq.outcome import Failure
from asyncq.result_store import DEFAULT_TTL_S
from asyncq.status import Progress, StatusUpdate, TaskState, TaskStatus
from asyncq.stores import schema
from asyncq.stores.gathering import Gathering
from asyncq.stores.record import Cursor, Unreadable, decode, encode, from_micros, key_of, micros
from asyncq.stores.urls import store_of

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:///results.db", "sqlite:///results.db"),
        ("sqlite:////var/lib/re%20sults.db", "sqlite:////var/lib/re sults.db"),
        ("postgresql://shop:secret@db:5433/shop?sslmode=require", "postgresql://shop@db:5433/shop"),
        ("postgres://shop:secret@db/shop", "postgres://shop@db/shop"),
        ("redis://:secret@cache:6380/2", "redis://cache:6380/2"),
        ("rediss://shop:secret@cache", "rediss://shop@cache"),
        ("redis://secret@cache", "redis://cache"),
        ("memory://", "memory://"),
    ],
)
def test_a_url_chooses_the_store_and_is_shown_without_its_password(url, shown):
    """Nothing is connected yet."""
    store = store_of(url)
    assert store is not None
    assert store.shown == shown


@pytest.mark.parametrize("url", ["none", "", " none "])
def test_none_is_no_store(url):
    """What an app has that wants none."""
    assert store_of(url) is None


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://u:secret@h/d", "no result store of the kind 'mysql'"),
        ("results.db", "no result store of the kind ''"),
        ("sqlite://results.db", "three slashes"),
        ("sqlite:///", "three slashes"),
        ("sqlite:///:memory:", "three slashes"),
        ("postgresql://u:secret@h:port/d", "cannot be read"),
        ("postgresql://u:sec/ret@h/d", "'@' behind its host|cannot be read"),
        ("postgresql://u:sec#ret@h/d", "'@' behind its host|cannot be read"),
        ("redis:///0", "has a host"),
        ("redis://h/name", "number as its database"),
    ],
)
def test_a_url_that_cannot_be_used_says_why_and_hides_the_password(url, message):
    """Also a part of it."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        store_of(url)
    assert "sec" not in str(caught.value).replace("rediss", "")


@pytest.mark.parametrize(
    ("url", "missing", "extra"),
    [
        ("sqlite:///x.db", "sqlalchemy", "sqlite"),
        ("postgresql://h/d", "asyncpg", "postgres"),
        ("postgresql://h/d", "sqlalchemy", "postgres"),
        ("redis://h", "redis", "redis"),
    ],
)
def test_what_is_not_installed_is_named_with_the_command_that_installs_it(url, missing, extra):
    """Before anything is stored, and where the URL is given."""
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from asyncq.errors import ConfigurationError\nfrom asyncq.stores.urls import store_of\n"
        f"try:\n    store_of({url!r})\nexcept ConfigurationError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"pip install 'asyncq[{extra}]'" in done.stdout
    assert missing in done.stdout


def test_a_store_loads_only_what_it_needs():
    """An app with Redis has no SQLAlchemy, and the seam alone loads no driver."""
    code = (
        "import sys\nfrom asyncq.stores.urls import store_of\nimport asyncq.result_store\n"
        "drivers = ('sqlalchemy', 'aiosqlite', 'asyncpg', 'redis')\n"
        "print([name for name in drivers if name in sys.modules])\n"
        "store_of('memory://'); store_of('redis://h')\nprint([name for name in drivers if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "['redis']"]


# --- records

texts = st.text(st.characters(), max_size=20) | st.sampled_from(["\0", "\ud800", "ä"])
moments = st.none() | st.datetimes(datetime(1970, 1, 1), datetime(2500, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False)
statuses = st.builds(
    TaskStatus,
    id=texts,
    state=st.sampled_from(TaskState),
    task=st.none() | texts,
    queue=st.none() | texts,
    attempt=st.integers(0, 2**31),
    worker=st.none() | texts,
    progress=st.none()
    | st.builds(
        Progress, numbers, st.none() | numbers, st.none() | texts, st.dictionaries(texts, st.none() | texts | numbers)
    ),
    result=st.none() | st.binary(max_size=20),
    error=st.none() | st.builds(Failure, texts, texts, texts),
    parent_id=st.none() | texts,
    root_id=st.none() | texts,
    workflow=st.none() | texts,
    **dict.fromkeys(
        ("queued_at", "due_at", "started_at", "retry_at", "finished_at", "updated_at", "expires_at"), moments
    ),
)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(statuses)
def test_whatever_is_written_down_is_read_as_the_same(status):
    """Any texts, with halves of surrogate pairs and NULs; what is stored is plain text."""
    text = encode(status)
    assert "\0" not in text
    assert decode(key_of(status.id), text.encode(), status.result) == status


FIELDS = ["id", "state", "attempt", "task", "progress", "done", "details", "error", "type", "queued_at", "label"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=6),
    max_leaves=8,
)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.binary(max_size=30) | json_values.map(json.dumps))
def test_whatever_else_is_there_is_unreadable_and_nothing_worse(data):
    """Bytes of others, and JSON that is not ours."""
    try:
        status = decode("id", data, None)
    except Unreadable:
        return
    assert isinstance(status, TaskStatus)
    assert decode(key_of(status.id), encode(status), None) == status


def test_times_and_cursors_are_exact():
    """To the microsecond."""
    assert from_micros(micros(NOW)) == NOW
    assert Cursor.read(str(Cursor(micros(NOW), "a:b"))) == Cursor(micros(NOW), "a:b")


# --- SQLite's file


def update(id_: str, state: TaskState = TaskState.QUEUED) -> StatusUpdate:
    return StatusUpdate(id_, state, datetime.now(UTC))


async def test_a_file_whose_folder_does_not_exist_says_so(tmp_path):
    """And can be used once it does."""
    store = store_of(f"sqlite:///{tmp_path}/none/results.db")
    with pytest.raises(StoreRefused, match=r"none/results\.db will not have us: .*unable to open"):
        await store.open()
    (tmp_path / "none").mkdir()
    await store.open()
    await store.write([update("a")])
    await store.close()


async def test_a_file_that_is_no_database_says_so(tmp_path):
    """Somebody else's."""
    (tmp_path / "results.db").write_text("just a text, and long enough to be looked at as a database" * 20)
    store = store_of(f"sqlite:///{tmp_path}/results.db")
    with pytest.raises(StoreRefused, match="not a database"):
        await store.open()


async def test_tables_that_are_dropped_under_a_store_are_named_as_that(tmp_path):
    """Not as an outage that would end by itself."""
    file = tmp_path / "results.db"
    store = store_of(f"sqlite:///{file}")
    await store.open()
    connection = sqlite3.connect(file)
    connection.execute("DROP TABLE asyncq_results")
    connection.close()
    with pytest.raises(StoreSchemaMismatch, match="not prepared"):
        await store.write([update("a")])
    await store.close()


async def test_an_older_schema_is_brought_up_to_date_step_by_step(tmp_path, monkeypatch):
    """By `init`, once, with what is there kept; a version that is ahead is refused."""
    url = f"sqlite:///{tmp_path}/results.db"
    old = store_of(url)
    await old.open()
    await old.write([update("a")])
    await old.close()
    monkeypatch.setattr(schema, "VERSION", 3)
    for module in ("asyncq.stores.sql", "asyncq.stores.sqlite"):
        monkeypatch.setattr(f"{module}.VERSION", 3)
    steps = {2: ['ALTER TABLE "{records}" ADD COLUMN extra TEXT'], 3: ['UPDATE "{records}" SET extra = state']}
    monkeypatch.setattr(schema, "STEPS", steps)
    store = store_of(url)
    with pytest.raises(StoreSchemaMismatch, match=r"schema 1 of an older asyncq; this one uses 3.*init"):
        await store.open()
    await store.init()
    await store.init()
    await store.open()
    assert [status.state for status in await store.read(["a"])] == ["queued"]
    await store.close()
    connection = sqlite3.connect(tmp_path / "results.db")
    assert connection.execute("SELECT extra FROM asyncq_results").fetchall() == [("queued",)]
    connection.close()


async def test_a_write_that_is_cancelled_leaves_the_file_free_for_others(tmp_path):
    """The write lock goes with it."""
    store, other = (store_of(f"sqlite:///{tmp_path}/results.db") for _ in range(2))
    await store.open()
    await other.open()
    for number in range(30):
        writing = asyncio.create_task(store.write([update(f"t{n}") for n in range(200)]))
        await asyncio.sleep(number / 3000)
        writing.cancel()
        await asyncio.wait([writing])
        await other.write([update(f"other-{number}")])
    assert all(status is not None for status in await store.read([f"other-{number}" for number in range(30)]))
    await store.close()
    await other.close()


# --- writes that go together


class Batches:
    """What is written, batch by batch; each waits until it is let through."""

    def __init__(self) -> None:
        self.written: list[list[str]] = []
        self.gate = asyncio.Event()
        self.error: Exception | None = None

    async def write(self, updates) -> None:
        self.written.append([item.id for item in updates])
        await self.gate.wait()
        if self.error is not None and (isinstance(self.error, StoreUnavailable) or "bad" in self.written[-1]):
            raise self.error


async def begun(gathering: Gathering, *names: str) -> list[asyncio.Task[None]]:
    tasks = []
    for name in names:
        tasks.append(asyncio.create_task(gathering.write([update(name)])))
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    return tasks


async def test_what_comes_while_a_batch_is_on_its_way_goes_together():
    """Each caller returns when its own is written; who has given up is left out."""
    batches = Batches()
    gathering = Gathering(batches.write)
    tasks = await begun(gathering, "a", "b", "c", "d")
    tasks[2].cancel()
    await asyncio.sleep(0)
    batches.gate.set()
    await asyncio.gather(tasks[0], tasks[1], tasks[3])
    assert batches.written == [["a"], ["b", "d"]]
    await gathering.write([update("e")])
    await gathering.drain()
    assert batches.written == [["a"], ["b", "d"], ["e"]]


async def test_no_batch_grows_without_bounds():
    """Five hundred updates, or one call's."""
    batches = Batches()
    gathering = Gathering(batches.write)
    first = await begun(gathering, "a")
    more = [asyncio.create_task(gathering.write([update("b")] * 300)) for _ in range(3)]
    await asyncio.sleep(0)
    batches.gate.set()
    await asyncio.gather(*first, *more)
    assert [len(batch) for batch in batches.written] == [1, 300, 300, 300]


async def test_when_the_store_is_away_all_who_wait_hear_so():
    """No call takes longer than one may; the next one tries again."""
    batches = Batches()
    gathering = Gathering(batches.write)
    tasks = await begun(gathering, "a", "b", "c")
    batches.error = StoreUnavailable("away")
    batches.gate.set()
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(error) for error in errors] == ["away"] * 3
    assert len({id(error) for error in errors}) == 3
    assert batches.written == [["a"]]
    batches.error = None
    await gathering.write([update("d")])


async def test_an_update_that_cannot_be_written_fails_only_its_own_caller():
    """The others of its batch are written without it."""
    batches = Batches()
    gathering = Gathering(batches.write)
    tasks = await begun(gathering, "a", "b", "bad", "c")
    batches.error = TypeError("not so")
    batches.gate.set()
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(error) for error in errors] == ["None", "None", "not so", "None"]
    assert batches.written == [["a"], ["b", "bad", "c"], ["b"], ["bad"], ["c"]]


def test_a_week_is_how_long_results_are_kept_unless_told_otherwise():
    """Seven days."""
    assert timedelta(seconds=DEFAULT_TTL_S) == timedelta(days=7)
