"""PostgreSQL, by asyncpg: for many processes on many machines.

A write is two statements, each a transaction of its own: one reads, one puts all records whose version is still the
one that was read, and tells of them by NOTIFY. No lock is held between the two.

Those who watch share one connection that listens. Where notifications do not get through (PgBouncer's transaction
pooling), they look for themselves every few seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import asyncpg  # type: ignore[import-untyped, unused-ignore]
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from asyncq.errors import ResultStoreError
from asyncq.stores.merging import Decide, StoreOptions, other_schema
from asyncq.stores.schema import VERSION, prepare
from asyncq.stores.sql import SqlStore, values_of

__all__ = ["PostgresStore"]

_TYPES = {"created": "bigint", "updated": "bigint", "expires": "bigint", "version": "bigint", "result": "bytea"}
_UNDEFINED_TABLE = "42P01"


class PostgresStore(SqlStore):
    """See `asyncq.result_store.ResultStore`.

    Args:
        url: SQLAlchemy's URL of the database.
        shown: It without a password.
        options: See there.
    """

    def __init__(self, url: sa.URL, shown: str, options: StoreOptions) -> None:
        super().__init__(shown, options)
        self._url = url
        self._channel = f"{options.namespace}_results"
        self._listening: AsyncConnection | None = None
        self._hears = False
        self._start_listening = asyncio.Lock()
        names = [column.name for column in self._tables.records.c]
        arrays = ", ".join(f"CAST(:{name} AS {_TYPES.get(name, 'text')}[])" for name in names)
        table = f'"{self._tables.records.name}"'
        self._put = sa.text(f"""
            WITH put AS (
                INSERT INTO {table} ({", ".join(names)})
                SELECT * FROM unnest({arrays})
                ON CONFLICT (id) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in names)}
                WHERE {table}.version = excluded.version - 1
                RETURNING id
            )
            SELECT id, pg_notify(:channel, id) FROM put
        """)  # noqa: S608 - names of our own; the namespace has letters, digits, _ and -

    def _make_engine(self) -> AsyncEngine:
        timeout_s = self._options.timeout_s
        return create_async_engine(
            self._url,
            isolation_level="AUTOCOMMIT",
            pool_timeout=timeout_s,
            connect_args={"timeout": timeout_s, "server_settings": {"application_name": "asyncq results"}},
        )

    async def _prepare(self) -> None:
        async def prepare_once(connection: AsyncConnection) -> int:
            transaction = await connection.execution_options(isolation_level="READ COMMITTED")
            async with transaction.begin():
                lock = sa.func.pg_advisory_xact_lock(sa.func.hashtext(self._channel))
                await transaction.execute(sa.select(lock))
                return await transaction.run_sync(prepare, self._tables)

        version = await self._run(prepare_once)
        if version != VERSION:
            raise other_schema(self.shown, version, VERSION)

    async def _disconnect(self) -> None:
        await self._stop_listening()
        await super()._disconnect()

    def _is_one_of(self, keys: Sequence[str]) -> sa.ColumnElement[bool]:
        # One parameter, whatever the number of keys: one statement that the server knows already.
        return self._tables.records.c.id == sa.any_(sa.bindparam("keys", list(keys), sa.ARRAY(sa.Text)))

    async def _exchange(self, keys: Sequence[str], decide: Decide) -> set[str]:
        async def exchange(connection: AsyncConnection) -> set[str]:
            changes = decide(await self._rows(connection, keys))
            if not changes:
                return set()
            rows = [values_of(change) for change in changes]
            columns: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
            put = await connection.execute(self._put, {**columns, "channel": self._channel})
            return {row[0] for row in put}

        return await self._run(exchange)

    # --- listening

    async def _listen(self) -> bool:
        async with self._start_listening:
            if not self._hears:
                await self._stop_listening()
                self._listening = await self._engine.connect()
                driver: Any = (await self._listening.get_raw_connection()).driver_connection
                driver.add_termination_listener(self._on_termination)
                await driver.add_listener(self._channel, self._on_notification)
                self._hears = True
        return True

    async def _stop_listening(self) -> None:
        listening, self._listening, self._hears = self._listening, None, False
        if listening is not None:
            await listening.invalidate()  # it goes back to nobody: it listens
            await listening.close()

    def _on_notification(self, connection: object, pid: int, channel: str, key: str) -> None:
        del connection, pid, channel
        self._bell.ring(key)

    def _on_termination(self, connection: object) -> None:
        del connection
        self._hears = False
        self._bell.ring_all()  # what came meanwhile was not told

    # --- errors

    def _error(self, error: Exception) -> ResultStoreError | None:
        if isinstance(error, asyncpg.PostgresError | asyncpg.InterfaceError):
            return self._unavailable(f"{type(error).__name__}: {error}".splitlines()[0].rstrip("."))
        return super()._error(error)

    def _is_missing_table(self, error: DBAPIError) -> bool:
        return getattr(error.orig, "sqlstate", None) == _UNDEFINED_TABLE
