"""The result stores that the conformance suite runs on: each test gets a namespace, or a file, of its own."""

from __future__ import annotations

import sqlite3
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import redis.asyncio

from asyncq.result_store import ResultStore
from asyncq.stores.memory import shelf_of
from asyncq.stores.urls import store_of
from servers import Postgres, Redis, Server


class UnderTest:
    """What they have in common.

    Args:
        url: The store's URL.
    """

    name: str
    readable_when_away = False

    def __init__(self, url: str) -> None:
        self.url: str | None = url
        self.namespace = f"t-{uuid.uuid4().hex[:12]}"
        self._url = url

    def make(self, **options: Any) -> ResultStore:
        if "namespace" in options:  # of this test alone, too
            options["namespace"] = f"{self.namespace}-{options['namespace']}"
        store = store_of(self._url, **{"namespace": self.namespace, "timeout_s": 30, **options})
        assert store is not None
        return store


class MemoryUnderTest(UnderTest):
    """A shelf."""

    name = "memory"

    def __init__(self) -> None:
        super().__init__(f"memory://{uuid.uuid4().hex}")
        self.url = None

    @property
    def _shelf(self) -> Any:
        return shelf_of(f"{self.namespace} {self._url.partition('://')[2]}")

    async def go_away(self) -> None:
        self._shelf.away = True

    async def come_back(self) -> None:
        self._shelf.away = False

    async def spoil(self, id_: str, data: str) -> None:
        row, status = self._shelf.rows[id_]
        self._shelf.rows[id_] = replace(row, data=data), status

    async def set_schema(self, version: int) -> None:
        self._shelf.schema = version


class SqliteUnderTest(UnderTest):
    """A file. It is away while somebody else holds its write lock."""

    name = "SQLite"
    readable_when_away = True

    def __init__(self, file: Path) -> None:
        super().__init__(f"sqlite:///{file}")
        self._file = file
        self._locking: sqlite3.Connection | None = None

    async def go_away(self) -> None:
        self._locking = sqlite3.connect(self._file, isolation_level=None, timeout=30)
        self._locking.execute("BEGIN IMMEDIATE")

    async def come_back(self) -> None:
        if self._locking is not None:
            self._locking.execute("ROLLBACK")
            self._locking.close()

    def _execute(self, statement: str, *values: Any) -> None:
        connection = sqlite3.connect(self._file, timeout=30)
        with connection:
            connection.execute(statement.format(table=f'"{self.namespace}_results'), values)
        connection.close()

    async def spoil(self, id_: str, data: str) -> None:
        self._execute('UPDATE {table}" SET data = ? WHERE id = ?', data, id_)

    async def set_schema(self, version: int) -> None:
        await self.make().init()
        self._execute('UPDATE {table}_schema" SET version = ?', version)


class ServedUnderTest(UnderTest):
    """A store with a server that can be stopped."""

    def __init__(self, server: Server) -> None:
        super().__init__(server.url)
        self._server = server

    async def go_away(self) -> None:
        self._server.stop()

    async def come_back(self) -> None:
        # In this thread: a server ends with the thread that has started it.
        self._server.start()


class PostgresUnderTest(ServedUnderTest):
    """A database that is shared."""

    name = "PostgreSQL"

    def __init__(self, server: Postgres) -> None:
        super().__init__(server)

    async def _execute(self, statement: str, *values: Any) -> None:
        connection = await asyncpg.connect(self._server.url)
        await connection.execute(statement.format(table=f'"{self.namespace}_results'), *values)
        await connection.close()

    async def spoil(self, id_: str, data: str) -> None:
        await self._execute('UPDATE {table}" SET data = $1 WHERE id = $2', data, id_)

    async def set_schema(self, version: int) -> None:
        await self._execute('UPDATE {table}_schema" SET version = $1', version)


class RedisUnderTest(ServedUnderTest):
    """A database that is shared."""

    name = "Redis"

    def __init__(self, server: Redis) -> None:
        super().__init__(server)

    async def spoil(self, id_: str, data: str) -> None:
        async with redis.asyncio.from_url(self._server.url) as client:
            await client.hset(f"{self.namespace}:results:task:{id_}", "data", data)

    async def set_schema(self, version: int) -> None:
        async with redis.asyncio.from_url(self._server.url) as client:
            await client.set(f"{self.namespace}:results:schema", version)
