"""The socket below a connection: what is written in one turn of the event loop goes out in one system call.

The AMQP client writes each frame by itself. A system call for each is a seventh of the CPU time of a publish or an
ack, and a packet each is work for the broker too.

Invariant: bytes leave in the order in which they were written, at the end of the loop's turn at the latest.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import aio_pika
from aiormq import TransportFactory
from aiormq.exceptions import AMQPConnectionError
from yarl import URL

__all__ = ["CoalescingConnection"]


class CoalescingConnection(aio_pika.Connection):
    """aio-pika's own connection, over a socket that joins small writes."""

    def __init__(self, url: URL, **kwargs: Any) -> None:
        super().__init__(url, **kwargs)
        # What stands here is passed on to aiormq, whose documented `transport_factory` this is.
        self.kwargs["transport_factory"] = _Coalescing()

    async def connect(self, timeout: float | None = None) -> None:
        """Connect, and leave it to the connection below to tell of its end.

        aio-pika tells of it in a task of its own. Nobody listens there, and one that begins while the event loop is
        being closed never ends: Python complains of it.
        """
        await super().connect(timeout)
        if self.transport is not None:
            self.transport.close_callback.finished.set()

    def __del__(self) -> None:
        """Close nothing: whoever has the connection below closes it."""


class _Coalescing(TransportFactory):
    """Opens TCP and TLS connections."""

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        contexts = kwargs.pop("ssl_context_provider")
        context: ssl.SSLContext | None = await contexts.get_context() if url.scheme == "amqps" else None
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        try:
            transport, _ = await loop.create_connection(
                lambda: protocol, url.host or "", url.port or 0, ssl=context, **kwargs
            )
        except OSError as error:
            raise AMQPConnectionError(*error.args) from error
        return reader, _Writer(transport, protocol, reader, loop)


class _Writer(asyncio.StreamWriter):
    """Keeps what is written until the turn of the loop ends."""

    def __init__(
        self,
        transport: asyncio.WriteTransport,
        protocol: asyncio.StreamReaderProtocol,
        reader: asyncio.StreamReader,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(transport, protocol, reader, loop)
        self._call_soon = loop.call_soon
        self._kept: list[bytes] = []

    def write(self, data: Any) -> None:
        """Keep the data; the first write of a turn plans the flush."""
        if not self._kept:
            self._call_soon(self._flush)
        self._kept.append(data)

    async def drain(self) -> None:
        """Send what is kept, and wait while the socket's buffer is full."""
        self._flush()
        await super().drain()

    def write_eof(self) -> None:
        """Send what is kept, and close the writing side."""
        self._flush()
        super().write_eof()

    def close(self) -> None:
        """Send what is kept, and close."""
        self._flush()
        super().close()

    def _flush(self) -> None:
        if not self._kept:
            return
        data = b"".join(self._kept)
        self._kept.clear()
        if not self.is_closing():  # the connection was lost meanwhile: its end has been reported already
            super().write(data)
