"""Read what stands on a broker.

By AMQP: whether queues and exchanges exist, how many messages wait, how many consumers there are. By the management
API, where it can be had: arguments, bindings, permissions, alarms.

Invariant: looking declares nothing. What could not be read is in `Standing.unread`, and is None where it would stand.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import aiormq.exceptions as amqp
from aiormq.connection import Connection
from yarl import URL

from asyncq.broker import Identity
from asyncq.errors import BrokerError, BrokerRefused
from asyncq.rabbitmq.administration import Administration
from asyncq.rabbitmq.connection import ConnectOptions, close_connection, connect, connection_name, parse_urls
from asyncq.rabbitmq.declarations import ExchangeDeclaration, Plan, QueueDeclaration
from asyncq.rabbitmq.failures import broker_text, operation_error, reraise_if_cancelled, safe_url
from asyncq.rabbitmq.management import ManagementApi, management_url
from asyncq.rabbitmq.management_reading import completed
from asyncq.rabbitmq.standing import SeenExchange, SeenQueue, Standing
from asyncq.rabbitmq.stream_probe import stream_trouble
from asyncq.rabbitmq.topology import OpenChannel
from asyncq.settings import Settings

__all__ = ["Inspector", "declaring", "inspecting"]

_MISSING = object()


@asynccontextmanager
async def inspecting(settings: Settings, app: str) -> AsyncIterator[Inspector]:
    """Connect to the first broker of the settings that answers, and yield what looks around there.

    Raises:
        BrokerUnavailable: None answers.
        BrokerRefused: Wrong credentials, no such virtual host, no permission.
        ConfigurationError: The broker's URL cannot be read.
    """
    options = _options(settings)
    name = connection_name(Identity(app, "cli"), "inspect")
    failure: BrokerError | None = None
    for url in options.urls:
        try:
            connection = await connect(url, name, options)
        except BrokerRefused:
            raise
        except BrokerError as error:
            failure = failure or error
            continue
        try:
            yield Inspector(connection, url, name, options)
        finally:
            await close_connection(connection)
        return
    assert failure is not None  # noqa: S101 - there is at least one URL
    raise failure


@asynccontextmanager
async def declaring(settings: Settings, app: str) -> AsyncIterator[OpenChannel]:
    """Yield what `asyncq.rabbitmq.topology.apply` needs, for a program that does nothing but declare.

    Raises:
        ConfigurationError: The broker's URL cannot be read.
    """
    administration = Administration(connection_name(Identity(app, "cli"), "admin"), _options(settings))
    try:
        yield administration.channel
    finally:
        await administration.close()


def _options(settings: Settings) -> ConnectOptions:
    return ConnectOptions(parse_urls(settings.broker_url), settings.heartbeat_s, settings.connect_timeout_s)


class Inspector:
    """Looks around in one virtual host.

    Args:
        connection: Open, and used by nobody else.
        url: Where it leads to.
        name: Of further connections, for the management UI.
        options: How to connect, and how long to wait for each answer.
    """

    def __init__(self, connection: Connection, url: URL, name: str, options: ConnectOptions) -> None:
        self._connection = connection
        self._url = url
        self._name = name
        self._options = options
        self._timeout_s = options.timeout_s

    async def look(self, plan: Plan, management: str | None, *, everything: bool = False) -> Standing:
        """Return what stands of a plan, and what the management API tells besides.

        Args:
            plan: The names to ask for.
            management: Where the management API is; by default where RabbitMQ's defaults put it.
            everything: Read permissions and the nodes' state too.

        Raises:
            BrokerUnavailable: The connection was lost.
            ConfigurationError: The management URL cannot be read.
        """
        api = ManagementApi(management or management_url(self._url), self._url, self._timeout_s)
        cluster = _text(self._connection.server_properties.get("cluster_name"))
        return await completed(await self.existing(plan), api, cluster, everything=everything)

    async def existing(self, plan: Plan) -> Standing:
        """Return which queues and exchanges of a plan exist.

        Raises:
            BrokerUnavailable: The connection was lost.
        """
        queues, exchanges = await self._by_amqp(plan)
        said = self._connection.server_properties
        return Standing(
            where=safe_url(self._url),
            user=self._url.user or "guest",
            vhost=self._vhost,
            product=_text(said.get("product")),
            version=_text(said.get("version")),
            queues=queues,
            exchanges=exchanges,
        )

    @property
    def _vhost(self) -> str:
        return str(self._url.path)[1:] or "/"

    # --- by AMQP

    async def _by_amqp(self, plan: Plan) -> tuple[dict[str, SeenQueue], dict[str, SeenExchange]]:
        queues = {}
        exchanges = {}
        for part in plan:
            match part:
                case QueueDeclaration(name, arguments):
                    queue = await self._queue(name)
                    if queue is not None and queue.trouble is None and arguments.get("x-queue-type") == "stream":
                        trouble = await stream_trouble(name, self._url, self._name, self._options)
                        queue = replace(queue, trouble=trouble)
                    if queue is not None:
                        queues[name] = queue
                case ExchangeDeclaration(name):
                    exchange = await self._exchange(name)
                    if exchange is not None:
                        exchanges[name] = exchange
        return queues, exchanges

    async def _queue(self, name: str) -> SeenQueue | None:
        """Return a queue as a passive declaration shows it; None where there is none."""
        seen = await self._passively("queue", name)
        if isinstance(seen, str):
            return SeenQueue(name, trouble=seen)
        return None if seen is _MISSING else SeenQueue(name, ready=seen.message_count, consumers=seen.consumer_count)

    async def _exchange(self, name: str) -> SeenExchange | None:
        seen = await self._passively("exchange", name)
        if isinstance(seen, str):
            return SeenExchange(name, trouble=seen)
        return None if seen is _MISSING else SeenExchange(name)

    async def _passively(self, kind: str, name: str) -> Any:
        """Return the broker's answer, `_MISSING`, or what it said in place of an answer."""
        doing = f"looking for {kind} {name!r}"
        try:
            async with asyncio.timeout(self._timeout_s):
                # A channel for each: a 404 closes it.
                channel = await self._connection.channel(publisher_confirms=False)
                declare = channel.queue_declare if kind == "queue" else channel.exchange_declare
                answer = await declare(name, passive=True)
                await channel.close()
                return answer
        except amqp.ChannelNotFoundEntity as error:
            said = broker_text(error)
            return said if "inaccessible" in said else _MISSING  # its node is down: it is there, and cannot be used
        except (amqp.ChannelLockedResource, amqp.ChannelAccessRefused) as error:
            return broker_text(error)
        except TimeoutError:
            return f"no answer within {self._timeout_s:g} s"  # a quorum queue without a majority, for example
        except asyncio.CancelledError as error:
            reraise_if_cancelled()
            raise operation_error(ConnectionError(*error.args), doing) from error
        except (amqp.AMQPError, amqp.ChannelInvalidStateError, OSError) as error:
            raise operation_error(error, doing) from error


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value or "")
