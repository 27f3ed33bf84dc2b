"""The connection for declaring and looking. It exists only while it is needed.

Passive checks run here: a 404 closes the channel, and nothing else may be on it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from aiormq.abc import AbstractChannel
from aiormq.connection import Connection

from asyncq.errors import BrokerError, BrokerRefused, BrokerUnavailable
from asyncq.rabbitmq.connection import ConnectOptions, close_connection, connect
from asyncq.rabbitmq.failures import operation_error, reraise_if_cancelled

__all__ = ["Administration"]

_IDLE_S = 10.0


class Administration:
    """Gives channels of one connection, which is opened by the first and closed some time after the last.

    Args:
        name: For the management UI.
        options: How to connect.
    """

    def __init__(self, name: str, options: ConnectOptions) -> None:
        self._name = name
        self._options = options
        self._lock = asyncio.Lock()
        self._connection: Connection | None = None
        self._users = 0
        self._idle: asyncio.TimerHandle | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._preferred = 0
        self._closed = False

    @contextlib.asynccontextmanager
    async def channel(self) -> AsyncIterator[AbstractChannel]:
        """Yield a fresh channel.

        Raises:
            BrokerError: It cannot be had; what the caller's own operations raise passes unchanged.
        """
        self._users += 1
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        try:
            channel = await self._open_channel()
            try:
                yield channel
            finally:
                with contextlib.suppress(Exception, asyncio.CancelledError):
                    await channel.close()
                reraise_if_cancelled()
        finally:
            self._users -= 1
            if self._users == 0 and self._connection is not None:
                self._idle = asyncio.get_running_loop().call_later(_IDLE_S, self._close_idle)

    async def _open_channel(self) -> AbstractChannel:
        async with self._lock:
            if self._connection is None or self._connection.is_closed:
                connection = await self._connect_to_any()
                if self._closed:
                    await close_connection(connection)
                    raise BrokerUnavailable("The connection to the broker was closed while something was declared.")
                self._connection = connection
            try:
                return await self._connection.channel(publisher_confirms=False, timeout=self._options.timeout_s)
            except asyncio.CancelledError as error:
                reraise_if_cancelled()
                raise operation_error(ConnectionError(*error.args), "opening a channel") from error
            except Exception as error:
                raise operation_error(error, "opening a channel") from error

    async def _connect_to_any(self) -> Connection:
        failures: list[BrokerError] = []
        urls = self._options.urls
        for _ in urls:
            try:
                return await connect(urls[self._preferred], self._name, self._options)
            except BrokerRefused:
                raise
            except BrokerError as error:
                failures.append(error)
                self._preferred = (self._preferred + 1) % len(urls)  # the one that answers is the first one next time
        raise failures[0]

    def _close_idle(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            task = asyncio.get_running_loop().create_task(close_connection(connection))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close the connection; it is not opened again. Idempotent."""
        self._closed = True
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        self._close_idle()
        await asyncio.gather(*self._closing, return_exceptions=True)
