"""What all stores have in common: merging under concurrency, limits in time, what is read and listed.

A write reads the records with their versions, merges in Python by the one rule there is, and puts back each record
only if its version is still the same; what was changed by others meanwhile is read and merged again:

    read (version 7) ── merge ── put if still 7 ──► taken: version 8
                                     └──► somebody was faster: read again

Each round somebody's write is taken, so that all come to their end. A version begins with a random number: a record
that was deleted and made again is not taken for the old one.

Invariant: no record is put that was not merged from what it replaces. What breaks off leaves whole records.
"""

from __future__ import annotations

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from asyncq.errors import InvalidOption, NotOpen, ResultStoreError, StoreRefused, StoreSchemaMismatch, StoreUnavailable
from asyncq.loggers import get_logger
from asyncq.result_store import DEFAULT_TTL_S, StatusPage
from asyncq.status import StatusUpdate, TaskState, TaskStatus, merge
from asyncq.stores.gathering import Gathering
from asyncq.stores.record import Cursor, Unreadable, decode, encode, key_of, micros
from asyncq.stores.refusals import refusal_in
from asyncq.stores.watching import Bell, follow

__all__ = ["Change", "Decide", "Listing", "MergingStore", "Row", "StoreOptions", "machine_time", "other_schema"]

log = get_logger("asyncq.stores")

_MAX_LIMIT = 1000
_MAX_AT_ONCE = 500
_MAX_FIRST_VERSION = 1 << 62


def machine_time() -> datetime:
    """Return the present moment, in UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """What every store can be told.

    Attributes:
        namespace: The prefix of its tables or keys.
        ttl_s: How long a record is kept after its task's end, in seconds; None for ever.
        timeout_s: How long one call may take, in seconds.
        now: The time that records expire by; aware.
    """

    namespace: str = "asyncq"
    ttl_s: float | None = DEFAULT_TTL_S
    timeout_s: float = 10.0
    now: Callable[[], datetime] = machine_time


@dataclass(frozen=True, slots=True)
class Row:
    """A record as it is in a store.

    Attributes:
        key: The id, as `key_of` makes it.
        version: Changes with each write.
        created: When it became known, in microseconds since the epoch.
        expires: When it may be forgotten, likewise; None for never.
        data: What `encode` made, or what somebody else has put there.
        result: The result; None where there is none, or where it was not asked for.
    """

    key: str
    version: int
    created: int
    expires: int | None
    data: str | bytes
    result: bytes | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """A record to be put in the place of another.

    Attributes:
        row: The new record.
        status: What it says.
        replaced: The version that it replaces; None for none.
    """

    row: Row
    status: TaskStatus
    replaced: int | None


Decide = Callable[[Mapping[str, Row]], list[Change]]


@dataclass(frozen=True, slots=True)
class Listing:
    """What is to be listed: see `ResultStore.list`. Times in microseconds since the epoch."""

    task: str | None
    state: TaskState | None
    since: int | None
    limit: int
    after: Cursor | None
    now: int


def other_schema(shown: str, found: int | None, wanted: int) -> StoreSchemaMismatch:
    """Return the error for a store that is prepared for another version of asyncq, or (None) for none."""
    if found is None:
        return StoreSchemaMismatch(
            f"The result store {shown} is not prepared for use: run `asyncq results init` once, or "
            "`await store.init()`."
        )
    if found < wanted:
        return StoreSchemaMismatch(
            f"The result store {shown} has the schema {found} of an older asyncq; this one uses {wanted}: "
            "`asyncq results init`, or `await store.init()`, brings it up to date."
        )
    return StoreSchemaMismatch(
        f"The result store {shown} has the schema {found} of a newer asyncq; this one uses {wanted}. Install that "
        "newer version here too, or use a namespace or a database of your own."
    )


class MergingStore(ABC):
    """A `ResultStore`, but for what a kind of store does in its own way: the abstract methods.

    Args:
        shown: Its URL without a password.
        options: What it was told.
    """

    def __init__(self, shown: str, options: StoreOptions) -> None:
        self.shown = shown
        self._options = options
        self._is_open = False
        self._bell = Bell()
        self._gathering = Gathering(self._write_batch)

    # --- what a kind of store does

    @abstractmethod
    async def _connect(self) -> None:
        """Connect and check the schema. Called again after it has failed."""

    @abstractmethod
    async def _disconnect(self) -> None:
        """Let go of everything. Also called after `_connect` or `init` has failed."""

    @abstractmethod
    async def _prepare(self) -> None:
        """Create or migrate."""

    @abstractmethod
    async def _exchange(self, keys: Sequence[str], decide: Decide) -> set[str]:
        """Read records, and put what `decide` makes of them where nobody was faster; return the keys that were put."""

    @abstractmethod
    async def _read(self, keys: Sequence[str]) -> Mapping[str, Row]:
        """Return the records that there are, with their results."""

    @abstractmethod
    async def _list(self, listing: Listing) -> Sequence[Row]:
        """Return records, newest first, without results; `limit` of them where there are so many."""

    @abstractmethod
    def _clean(self, now: int, ended_before: int | None) -> AsyncIterator[int]:
        """Delete in steps, each of them short, and yield how many went in each."""

    @abstractmethod
    def _error(self, error: Exception) -> ResultStoreError | None:
        """Return what an error of a driver means; None where it is none of a driver's."""

    async def _listen(self) -> bool:
        """Make sure that changes ring the bell. Return whether this store can do so at all."""
        return False

    # --- life

    async def open(self) -> None:
        """See `asyncq.result_store.ResultStore.open`."""
        if self._is_open:
            return
        try:
            async with self._limited():
                await self._connect()
        except StoreUnavailable as error:
            await self._disconnect()
            refusal = refusal_in(error)
            if refusal is None:
                raise
            raise StoreRefused(
                f"The result store {self.shown} will not have us: {refusal}. Check its URL, user and password, that "
                "the database or the folder exists, and that it may be written."
            ) from error
        except BaseException:
            await self._disconnect()
            raise
        self._is_open = True

    async def close(self) -> None:
        """See `asyncq.result_store.ResultStore.close`."""
        self._is_open = False
        self._bell.ring_all()
        await self._gathering.drain()
        await self._disconnect()

    async def init(self) -> None:
        """See `asyncq.result_store.ResultStore.init`."""
        try:
            async with self._limited():
                await self._prepare()
        finally:
            if not self._is_open:
                await self._disconnect()

    # --- use

    async def write(self, updates: Sequence[StatusUpdate]) -> None:
        """See `asyncq.result_store.ResultStore.write`. Writes of one moment go together."""
        self._check_open()
        if updates:
            await self._gathering.write(updates)

    async def _write_batch(self, updates: Sequence[StatusUpdate]) -> None:
        waiting: dict[str, list[StatusUpdate]] = {}
        for update in updates:
            waiting.setdefault(key_of(update.id), []).append(update)
        # One order for all writers, so that databases with locks on rows never wait for each other in a circle.
        keys = sorted(waiting)
        for begin in range(0, len(keys), _MAX_AT_ONCE):
            async with self._limited():
                await self._write({key: waiting[key] for key in keys[begin : begin + _MAX_AT_ONCE]})

    async def _write(self, waiting: Mapping[str, Sequence[StatusUpdate]]) -> None:
        while waiting:
            lost = await self._write_once(waiting)
            waiting = {key: updates for key, updates in waiting.items() if key in lost}
            if waiting:
                await asyncio.sleep(random.uniform(0, 0.005))  # noqa: S311 - two that collide should not do so again

    async def _write_once(self, waiting: Mapping[str, Sequence[StatusUpdate]]) -> set[str]:
        """Return the keys for which somebody was faster."""
        wanted: set[str] = set()

        def decide(rows: Mapping[str, Row]) -> list[Change]:
            found = (self._change(key, rows.get(key), updates) for key, updates in waiting.items())
            changes = [change for change in found if change is not None]
            wanted.clear()
            wanted.update(change.row.key for change in changes)
            return changes

        return wanted - await self._exchange(list(waiting), decide)

    def _change(self, key: str, row: Row | None, updates: Iterable[StatusUpdate]) -> Change | None:
        """Return what is to be put; None where the updates change nothing."""
        now = micros(self._options.now())
        live = row if row is not None and (row.expires is None or row.expires > now) else None
        before = None if live is None else self._status(live)
        after = before
        for update in updates:
            after = merge(after, update, self._options.ttl_s)
        if after is None or after == before:
            return None
        version = random.randrange(_MAX_FIRST_VERSION) if row is None else row.version + 1  # noqa: S311 - no secret
        new = Row(
            key=key,
            version=version,
            created=now if live is None else live.created,
            expires=None if after.expires_at is None else micros(after.expires_at),
            data=encode(after),
            result=after.result,
        )
        return Change(new, after, None if row is None else row.version)

    async def read(self, ids: Sequence[str]) -> list[TaskStatus | None]:
        """See `asyncq.result_store.ResultStore.read`."""
        self._check_open()
        keys = [key_of(id_) for id_ in ids]
        rows: dict[str, Row] = {}
        for begin in range(0, len(keys), _MAX_AT_ONCE):
            async with self._limited():
                rows |= await self._read(keys[begin : begin + _MAX_AT_ONCE])
        now = micros(self._options.now())
        found = (rows.get(key) for key in keys)
        return [
            None if row is None or (row.expires is not None and row.expires <= now) else self._status(row)
            for row in found
        ]

    async def list(
        self,
        *,
        task: str | None = None,
        state: TaskState | None = None,
        since: datetime | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> StatusPage:
        """See `asyncq.result_store.ResultStore.list`."""
        self._check_open()
        if not 1 <= limit <= _MAX_LIMIT:
            raise InvalidOption(f"limit= of a listing is from 1 to {_MAX_LIMIT}, not {limit}.")
        if since is not None and since.tzinfo is None:
            raise InvalidOption(f"since= needs a time zone: datetime.now(UTC) - timedelta(hours=1), not {since!r}.")
        listing = Listing(
            task=None if task is None else key_of(task),
            state=state,
            since=None if since is None else micros(since),
            limit=limit + 1,  # one more tells whether there is another page
            after=None if cursor is None else Cursor.read(cursor),
            now=micros(self._options.now()),
        )
        async with self._limited():
            rows = await self._list(listing)
        page = rows[:limit]
        more = str(Cursor(page[-1].created, page[-1].key)) if len(rows) > limit else None
        return StatusPage(tuple(self._status(row) for row in page), more)

    def watch(self, id: str) -> AsyncIterator[TaskStatus]:  # noqa: A002 - the seam's word
        """See `asyncq.result_store.ResultStore.watch`."""
        self._check_open()
        return self._watch(id)

    async def _watch(self, id_: str) -> AsyncIterator[TaskStatus]:
        async def look() -> tuple[TaskStatus | None, bool]:
            async with self._limited():
                told = await self._listen()  # before the look, so that no change falls between the two
            return (await self.read([id_]))[0], told

        with self._bell.heard(key_of(id_)) as rung:
            async for status in follow(look, rung, self.shown):
                yield status

    async def clean(self, older_than: datetime | None = None) -> int:
        """See `asyncq.result_store.ResultStore.clean`."""
        self._check_open()
        if older_than is not None and older_than.tzinfo is None:
            raise InvalidOption(f"older_than= needs a time zone: datetime.now(UTC), not {older_than!r}.")
        steps = self._clean(micros(self._options.now()), None if older_than is None else micros(older_than))
        count = 0
        while True:
            async with self._limited():
                try:
                    count += await anext(steps)
                except StopAsyncIteration:
                    return count
            await asyncio.sleep(0)

    # --- shared by the kinds

    def _status(self, row: Row) -> TaskStatus:
        try:
            return decode(row.key, row.data, row.result)
        except Unreadable as error:
            log.warning("a record of the result store cannot be read", store=self.shown, id=row.key, error=str(error))
            return TaskStatus(row.key)

    def _check_open(self) -> None:
        if not self._is_open:
            raise NotOpen(f"The result store {self.shown} is not open: `await store.open()` first.")

    @asynccontextmanager
    async def _limited(self) -> AsyncIterator[None]:
        """Limit a call in time, and turn a driver's errors into ours."""
        limit = self._options.timeout_s
        try:
            async with asyncio.timeout(limit):
                yield
        except TimeoutError as error:
            raise self._unavailable(f"it did not answer within {limit:g} s") from error
        except Exception as error:
            meant = self._error(error)
            if meant is None:
                raise
            raise meant from error

    def _unavailable(self, reason: str) -> StoreUnavailable:
        return StoreUnavailable(
            f"The result store {self.shown} cannot be used now: {reason}. Check that it runs and can be reached; "
            "what was to be written is not certain to be kept, and may be written again."
        )
