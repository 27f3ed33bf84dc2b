"""SQLite: one file, for all processes of one machine.

In WAL mode readers and the one writer do not hinder each other. A write is one short transaction that takes the write
lock at its beginning (BEGIN IMMEDIATE): a transaction that reads first and then wants to write could only fail there.
Writers in other processes wait for the lock as long as a call may take.

With `synchronous=NORMAL` a power cut can take back the last writes, never damage the file; a killed process loses none.
A call that is cancelled is brought to its end in the background. SQLAlchemy would drop its connection without closing
it, and with that the write lock would stay until the garbage is collected.

SQLite tells nobody of changes: those who watch look again, at first every 0.1 s, later every second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from asyncq.stores.merging import Decide, StoreOptions, other_schema
from asyncq.stores.schema import VERSION, prepare, read_version
from asyncq.stores.sql import SqlStore, values_of

__all__ = ["SqliteStore"]

T = TypeVar("T")


class SqliteStore(SqlStore):
    """See `asyncq.result_store.ResultStore`. `open` prepares a file that is new.

    Args:
        path: The file.
        shown: Its URL.
        options: See there.
    """

    def __init__(self, path: str, shown: str, options: StoreOptions) -> None:
        super().__init__(shown, options)
        self._path = path
        self._writing = asyncio.Lock()
        self._running: set[asyncio.Task[Any]] = set()
        table = self._tables.records
        new = insert(table)
        self._put = new.on_conflict_do_update(
            index_elements=[table.c.id], set_={column.name: new.excluded[column.name] for column in table.c}
        )

    async def _connect(self) -> None:
        self._look_for_folder()
        await super()._connect()

    def _look_for_folder(self) -> None:
        """Tell of a missing folder before a connection does: its thread would say so when nobody listens any more."""
        folder = Path(self._path).absolute().parent
        if not folder.is_dir():
            cause = FileNotFoundError(f"unable to open database file: there is no folder {folder}")
            raise self._unavailable(str(cause)) from cause

    def _make_engine(self) -> AsyncEngine:
        # The lock is waited for a little less long than the call may take, so that the error tells of the lock.
        busy_s = 0.8 * self._options.timeout_s
        engine = create_async_engine(
            sa.URL.create("sqlite+aiosqlite", database=self._path),
            isolation_level="AUTOCOMMIT",
            connect_args={"timeout": busy_s},
        )
        sa.event.listen(engine.sync_engine, "connect", _set_up)
        return engine

    async def _check_schema(self, connection: AsyncConnection) -> None:
        if await connection.run_sync(read_version, self._tables) is None:
            await self._prepare()
        await super()._check_schema(connection)

    async def _prepare(self) -> None:
        self._look_for_folder()
        await self._run(self._prepare_on)

    async def _prepare_on(self, connection: AsyncConnection) -> None:
        await connection.exec_driver_sql("BEGIN IMMEDIATE")
        version = await connection.run_sync(prepare, self._tables)
        await connection.exec_driver_sql("COMMIT")
        if version != VERSION:
            raise other_schema(self.shown, version, VERSION)

    async def _disconnect(self) -> None:
        if self._running:
            await asyncio.wait(tuple(self._running))
        await super()._disconnect()

    async def _run(self, use: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        return await self._to_its_end(super()._run(use))

    async def _to_its_end(self, call: Coroutine[Any, Any, T]) -> T:
        task = asyncio.create_task(call)
        self._running.add(task)
        task.add_done_callback(self._ran)
        return await asyncio.shield(task)

    def _ran(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # nobody else may ask for it any more

    async def _exchange(self, keys: Sequence[str], decide: Decide) -> set[str]:
        # One after the other: within one process they need not wait by trying again. Waiting here ends with the caller.
        await self._writing.acquire()
        return await self._to_its_end(self._exchange_alone(keys, decide))

    async def _exchange_alone(self, keys: Sequence[str], decide: Decide) -> set[str]:
        async def exchange(connection: AsyncConnection) -> set[str]:
            await connection.exec_driver_sql("BEGIN IMMEDIATE")  # what fails is rolled back with the connection
            changes = decide(await self._rows(connection, keys))
            if changes:
                await connection.execute(self._put, [values_of(change) for change in changes])
            await connection.exec_driver_sql("COMMIT")
            return {change.row.key for change in changes}

        try:
            return await super()._run(exchange)
        finally:
            self._writing.release()

    def _is_missing_table(self, error: DBAPIError) -> bool:
        return "no such table" in str(error.orig)


def _set_up(connection: Any, record: object) -> None:
    del record
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()
