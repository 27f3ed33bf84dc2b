"""A result store in the memory of this process, for tests and for trying things out.

All stores on one shelf share what is kept, across threads and event loops. Invariant: the same records, rules and
errors as in the real ones; only nothing lasts longer than the process.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import replace

from asyncq.errors import ResultStoreError
from asyncq.status import TaskStatus
from asyncq.stores.merging import Decide, Listing, MergingStore, Row, StoreOptions, other_schema
from asyncq.stores.record import key_of, micros

__all__ = ["MemoryStore", "Shelf", "shelf_of"]

_SCHEMA = 1


class Shelf:
    """What stores share.

    Attributes:
        rows: The records, with what they said when they were put.
        schema: The version of the records.
        away: Whether the store behaves as one that cannot be reached.
    """

    def __init__(self) -> None:
        self.rows: dict[str, tuple[Row, TaskStatus]] = {}
        self.schema = _SCHEMA
        self.away = False
        self.lock = threading.Lock()
        self.stores: set[MemoryStore] = set()


_shelves: dict[str, Shelf] = {}


def shelf_of(name: str) -> Shelf:
    """Return the shelf of this name: the same one for all of this process."""
    return _shelves.setdefault(name, Shelf())


class MemoryStore(MergingStore):
    """See `asyncq.result_store.ResultStore`.

    Args:
        shelf: Where the records are.
        shown: Its URL.
        options: See there.
    """

    def __init__(self, shelf: Shelf, shown: str = "memory://", options: StoreOptions | None = None) -> None:
        super().__init__(shown, options or StoreOptions())
        self._shelf = shelf
        self._loop: asyncio.AbstractEventLoop | None = None

    async def _connect(self) -> None:
        self._look()
        if self._shelf.schema != _SCHEMA:
            raise other_schema(self.shown, self._shelf.schema, _SCHEMA)
        self._loop = asyncio.get_running_loop()
        self._shelf.stores.add(self)

    async def _disconnect(self) -> None:
        self._shelf.stores.discard(self)

    async def _prepare(self) -> None:
        self._look()
        if self._shelf.schema != _SCHEMA:
            raise other_schema(self.shown, self._shelf.schema, _SCHEMA)

    async def _exchange(self, keys: Sequence[str], decide: Decide) -> set[str]:
        self._look()
        with self._shelf.lock:
            changes = decide({key: self._shelf.rows[key][0] for key in keys if key in self._shelf.rows})
            self._shelf.rows.update({change.row.key: (change.row, change.status) for change in changes})
        put = {change.row.key for change in changes}
        for store in tuple(self._shelf.stores):
            store.tell(put)
        await asyncio.sleep(0)  # as any write does, it lets others run
        return put

    def tell(self, keys: Collection[str]) -> None:
        """Ring for changed records, whatever thread they were changed in."""
        if self._loop is not None and not self._loop.is_closed():
            for key in keys:
                self._loop.call_soon_threadsafe(self._bell.ring, key)

    async def _read(self, keys: Sequence[str]) -> Mapping[str, Row]:
        self._look()
        with self._shelf.lock:
            return {key: self._shelf.rows[key][0] for key in keys if key in self._shelf.rows}

    async def _list(self, listing: Listing) -> Sequence[Row]:
        self._look()
        with self._shelf.lock:
            found = list(self._shelf.rows.values())
        rows = sorted(
            (row for row, status in found if _is_listed(row, status, listing)),
            key=lambda row: (row.created, row.key),
            reverse=True,
        )
        return [replace(row, result=None) for row in rows[: listing.limit]]

    async def _clean(self, now: int, ended_before: int | None) -> AsyncIterator[int]:
        self._look()
        with self._shelf.lock:
            gone = [key for key, found in self._shelf.rows.items() if _is_over(*found, now, ended_before)]
            for key in gone:
                del self._shelf.rows[key]
        yield len(gone)

    async def _listen(self) -> bool:
        return True

    def _error(self, error: Exception) -> ResultStoreError | None:
        return self._unavailable("it is away") if isinstance(error, ConnectionError) else None

    def _look(self) -> None:
        if self._shelf.away:
            raise ConnectionError


def _is_listed(row: Row, status: TaskStatus, listing: Listing) -> bool:
    return (
        (row.expires is None or row.expires > listing.now)
        and (listing.task is None or (status.task is not None and key_of(status.task) == listing.task))
        and (listing.state is None or status.state is listing.state)
        and (listing.since is None or row.created >= listing.since)
        and (listing.after is None or (row.created, row.key) < (listing.after.created, listing.after.key))
    )


def _is_over(row: Row, status: TaskStatus, now: int, ended_before: int | None) -> bool:
    if row.expires is not None and row.expires <= now:
        return True
    return ended_before is not None and status.finished_at is not None and micros(status.finished_at) < ended_before
