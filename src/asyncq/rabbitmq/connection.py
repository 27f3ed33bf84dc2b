"""One connection: its URL, opening and closing it, and opening a channel on it, so that no cancellation harms others.

Invariant: what is opened here for a caller that leaves in the middle is closed again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import aio_pika
from aiormq.channel import Channel
from aiormq.connection import Connection
from yarl import URL

from asyncq.broker import Identity
from asyncq.errors import ConfigurationError
from asyncq.rabbitmq.failures import connect_error, reraise_if_cancelled, safe_url
from asyncq.rabbitmq.transport import CoalescingConnection
from asyncq.rabbitmq.undisturbed import undisturbed

__all__ = [
    "ConnectOptions",
    "close_connection",
    "connect",
    "connection_name",
    "open_channel",
    "parse_urls",
    "release_writers",
    "urls_in_words",
]

T = TypeVar("T")

_CLOSE_TIMEOUT_S = 3.0
_CLEAN_UP_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class ConnectOptions:
    """How to connect.

    Attributes:
        urls: The brokers, tried in turn.
        heartbeat_s: The AMQP heartbeat. A dead peer is noticed after about three of them.
        timeout_s: For `open()` as a whole. The brokers share it, so that one which is silent leaves time for the next.
    """

    urls: tuple[URL, ...]
    heartbeat_s: int
    timeout_s: float

    @property
    def attempt_timeout_s(self) -> float:
        """For one attempt to connect to one broker, in seconds."""
        return self.timeout_s / len(self.urls)


def parse_urls(text: str) -> tuple[URL, ...]:
    """Return the broker URLs of a comma-separated list.

    Raises:
        ConfigurationError: One of them is no AMQP URL.
    """
    urls = []
    for part in text.split(","):
        try:
            url = URL(part.strip())
            port = url.port
        except ValueError:
            # Its text is not passed on: it can hold a part of the password.
            raise ConfigurationError(f"A broker URL cannot be read: its host or port is wrong. {_URL_HELP}") from None
        if "@" in _behind_the_host(part):
            raise ConfigurationError(f"A broker URL has an '@' behind its host. {_URL_HELP}")
        if url.scheme not in {"amqp", "amqps"} or not url.host or port == 0:
            raise ConfigurationError(f"{safe_url(url) or 'An empty string'} is no broker URL. {_URL_HELP}")
        urls.append(url)
    return tuple(urls)


def _behind_the_host(url: str) -> str:
    """Return what follows the host: where a password has an unescaped '/', '?' or '#', its rest is there."""
    _, scheme, rest = url.rpartition("://")
    return re.sub(r"^[^/?#]*", "", rest) if scheme else url


_URL_HELP = (
    "It looks like amqp://user:password@host:5672/vhost, or amqps:// for TLS; several are separated by commas. "
    "Special characters in user, password and virtual host are percent-encoded: %2F for '/', %2C for ','."
)


def urls_in_words(urls: Sequence[URL]) -> str:
    """Return the broker URLs for people, without passwords."""
    return ", ".join(safe_url(url) for url in urls)


def connection_name(identity: Identity, purpose: str) -> str:
    """Return the name that the management UI shows for a connection."""
    return f"asyncq {identity.app} {identity.role}-{purpose} {socket.gethostname()} {os.getpid()}"


async def connect(url: URL, name: str, options: ConnectOptions) -> Connection:
    """Connect to one broker.

    Raises:
        BrokerUnavailable: It does not answer, or not as RabbitMQ does.
        BrokerRefused: Wrong credentials, no such virtual host, no permission.
    """
    if "heartbeat" not in url.query:
        url = url.update_query(heartbeat=options.heartbeat_s)
    try:
        return await _or_discard(_connect(url, name, options), close_connection)
    except asyncio.CancelledError as error:
        reraise_if_cancelled()
        raise connect_error(error, url) from error
    except Exception as error:
        raise connect_error(error, url) from error


async def _connect(url: URL, name: str, options: ConnectOptions) -> Connection:
    opened = await aio_pika.connect(
        url,
        client_properties={"connection_name": name},
        timeout=options.attempt_timeout_s,
        connection_class=CoalescingConnection,
    )
    if opened.transport is None:
        raise ConnectionError("it was closed while it was being opened")
    connection = opened.transport.connection
    assert isinstance(connection, Connection)  # noqa: S101 - what aio_pika is built on; a type for the checker
    return connection


async def close_connection(connection: Connection) -> None:
    """Close a connection. It takes a few seconds at most, also when the caller is cancelled meanwhile."""
    await undisturbed(_close_in_time(connection))


async def _close_in_time(connection: Connection) -> None:
    ended = connection.closing
    # A frozen broker never answers the closing handshake.
    with contextlib.suppress(Exception, asyncio.CancelledError):
        async with asyncio.timeout(_CLOSE_TIMEOUT_S):
            await connection.close()
    # Where that was given up, aiormq's own tasks clean up behind us: they must not outlive the event loop.
    await asyncio.wait({ended}, timeout=_CLEAN_UP_TIMEOUT_S)
    await release_writers(connection)


async def release_writers(connection: Connection) -> None:
    """Let go of those who wait to write to a connection that is gone.

    aiormq passes frames to its writer through a queue of ten places. Who waits for a place when the writer ends
    waits for ever: a publish until its timeout, holding up all others, and an ack without end.
    """
    frames = connection.write_queue
    while not frames.empty():
        while not frames.empty():
            frames.get_nowait()
        await asyncio.sleep(0)  # those who had waited for these places write into them now


async def open_channel(connection: Connection, *, confirms: bool) -> Channel:
    """Open a channel. A caller that is cancelled leaves at once, and the channel is closed when it is open.

    Args:
        connection: An open connection.
        confirms: Open it for publishing: with confirms, and with an error for each returned message.

    Raises:
        Exception: Whatever the AMQP client raises; also `CancelledError` for a connection that is closed meanwhile.
    """
    return await _or_discard(_open_channel(connection, confirms=confirms), Channel.close)


async def _open_channel(connection: Connection, *, confirms: bool) -> Channel:
    channel = await connection.channel(publisher_confirms=confirms, on_return_raises=confirms)
    assert isinstance(channel, Channel)  # noqa: S101 - what aiormq makes; a type for the checker
    return channel


async def _or_discard(opening: Coroutine[Any, Any, T], discard: Callable[[T], Coroutine[Any, Any, None]]) -> T:
    """Return what `opening` opens. Where the caller is cancelled, discard it, as soon as it is open.

    Cancelling the opening itself would not do: there is always a moment in which it has succeeded and the
    cancellation wins, and then nobody closes what was opened.
    """
    task = asyncio.create_task(opening)
    _tasks.add(task)  # the event loop itself holds tasks only weakly
    task.add_done_callback(_tasks.discard)

    def opened(done: asyncio.Task[T]) -> None:
        if not done.cancelled() and done.exception() is None:
            closing = asyncio.create_task(discard(done.result()))
            _tasks.add(closing)
            closing.add_done_callback(_discarded)

    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(opened)
        raise


def _discarded(closing: asyncio.Task[None]) -> None:
    _tasks.discard(closing)
    if not closing.cancelled():
        closing.exception()  # seen: what cannot be closed is gone


_tasks: set[asyncio.Task[Any]] = set()
