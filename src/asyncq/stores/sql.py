"""What the SQL stores have in common: connections, reading, listing and cleaning, by SQLAlchemy Core.

Every statement is a transaction of its own (AUTOCOMMIT), unless a store begins one itself. A connection that a server
has dropped is noticed when it is used; as every call here may be made again, it is, once, on a new connection.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from asyncq.errors import ResultStoreError
from asyncq.status import TaskState
from asyncq.stores.merging import Change, Listing, MergingStore, Row, StoreOptions, other_schema
from asyncq.stores.record import key_of, micros
from asyncq.stores.schema import VERSION, Tables, read_version

__all__ = ["SqlStore", "values_of"]

T = TypeVar("T")

_STEP = 500
_ENDED = [state.value for state in TaskState if state.final]


def values_of(change: Change) -> dict[str, Any]:
    """Return a row of the table for a change."""
    row, status = change.row, change.status
    return {
        "id": row.key,
        "task": None if status.task is None else key_of(status.task),
        "state": status.state.value,
        "created": row.created,
        "updated": micros(status.updated_at) if status.updated_at is not None else row.created,
        "expires": row.expires,
        "version": row.version,
        "data": row.data,
        "result": row.result,
    }


class SqlStore(MergingStore):
    """A `ResultStore` in a table.

    Args:
        shown: Its URL without a password.
        options: What it was told.
    """

    def __init__(self, shown: str, options: StoreOptions) -> None:
        super().__init__(shown, options)
        self._tables = Tables.of(options.namespace)
        self._connected: AsyncEngine | None = None

    @abstractmethod
    def _make_engine(self) -> AsyncEngine:
        """Return a new engine, which connects when it is used."""

    @property
    def _engine(self) -> AsyncEngine:
        if self._connected is None:
            self._connected = self._make_engine()
        return self._connected

    async def _connect(self) -> None:
        await self._run(self._check_schema)

    async def _check_schema(self, connection: AsyncConnection) -> None:
        version = await connection.run_sync(read_version, self._tables)
        if version != VERSION:
            raise other_schema(self.shown, version, VERSION)

    async def _disconnect(self) -> None:
        engine, self._connected = self._connected, None
        if engine is not None:
            await engine.dispose()

    async def _run(self, use: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Use a connection; once more on a new one, where the one at hand turns out to be dead."""
        try:
            async with self._engine.connect() as connection:
                return await use(connection)
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
        async with self._engine.connect() as connection:
            return await use(connection)

    async def _read(self, keys: Sequence[str]) -> Mapping[str, Row]:
        return await self._run(lambda connection: self._rows(connection, keys))

    async def _rows(self, connection: AsyncConnection, keys: Sequence[str]) -> dict[str, Row]:
        table = self._tables.records.c
        query = sa.select(table.id, table.version, table.created, table.expires, table.data, table.result)
        found = await connection.execute(query.where(self._is_one_of(keys)))
        return {row[0]: Row(*row) for row in found}

    def _is_one_of(self, keys: Sequence[str]) -> sa.ColumnElement[bool]:
        return self._tables.records.c.id.in_(keys)

    async def _list(self, listing: Listing) -> Sequence[Row]:
        table = self._tables.records.c
        query = (
            sa.select(table.id, table.version, table.created, table.expires, table.data)
            .where(sa.or_(table.expires.is_(None), table.expires > listing.now))
            .order_by(table.created.desc(), table.id.desc())
            .limit(listing.limit)
        )
        if listing.task is not None:
            query = query.where(table.task == listing.task)
        if listing.state is not None:
            query = query.where(table.state == listing.state.value)
        if listing.since is not None:
            query = query.where(table.created >= listing.since)
        if (after := listing.after) is not None:
            query = query.where(sa.tuple_(table.created, table.id) < sa.tuple_(after.created, after.key))

        async def read(connection: AsyncConnection) -> list[Row]:
            return [Row(*row) for row in await connection.execute(query)]

        return await self._run(read)

    async def _clean(self, now: int, ended_before: int | None) -> AsyncIterator[int]:
        table = self._tables.records.c
        expired = sa.select(table.id).where(table.expires <= now).order_by(table.expires)
        searches = [expired]
        if ended_before is not None:
            # What ended before a moment became known before it, too; that column has an index.
            ended = sa.and_(table.state.in_(_ENDED), table.updated < ended_before, table.created < ended_before)
            searches.append(sa.select(table.id).where(ended).order_by(table.created))
        for search in searches:
            chosen = search.limit(_STEP).with_for_update(skip_locked=True)  # SQLite ignores the last part
            statement = self._tables.records.delete().where(table.id.in_(chosen))
            while True:
                deleted = await self._run(partial(_count, statement))
                yield deleted
                if deleted < _STEP:
                    break

    def _error(self, error: Exception) -> ResultStoreError | None:
        if isinstance(error, DBAPIError):
            if self._is_missing_table(error):
                return other_schema(self.shown, None, VERSION)
            # Not the text of the error itself: that has the statement, and with it results of tasks.
            return self._unavailable(_in_words(error.orig or error))
        if isinstance(error, SQLAlchemyError | OSError):
            return self._unavailable(_in_words(error))
        return None

    @abstractmethod
    def _is_missing_table(self, error: DBAPIError) -> bool:
        """Return whether an error says that a table is not there."""


async def _count(statement: sa.Delete, connection: AsyncConnection) -> int:
    deleted = await connection.execute(statement)
    return deleted.rowcount


def _in_words(error: BaseException) -> str:
    cause = error.__cause__ or error  # SQLAlchemy's adapters put themselves around the driver's own error
    return f"{type(cause).__name__}: {cause}".splitlines()[0].rstrip(". :")
