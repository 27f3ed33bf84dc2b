"""The reply queue of one process.

    open ──channel or connection lost──▶ open again, on the same queue; or ReplyLost, for who asked for that
      │ the queue is gone (404) ───────▶ ReplyLost for what was awaited; then a new queue, a new address

A durable classic queue with `x-expires`, so that replies outlive a dropped connection. Replies are acked by hand:
without acks, what the broker wrote into a half-open connection is lost. Each reopening consumes with a higher
`x-priority`, so that the broker prefers it at once to an older consumer that it still believes alive.
Source: https://www.rabbitmq.com/docs/ttl#queue-ttl, https://www.rabbitmq.com/docs/consumer-priority
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import aiormq.exceptions as amqp
from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from aiormq.connection import Connection
from pamqp import commands

from asyncq.errors import AccessRefused, BrokerError, NotOpen, ReplyLost
from asyncq.loggers import get_logger
from asyncq.message import Message
from asyncq.rabbitmq.common_errors import reply_queue_gone
from asyncq.rabbitmq.connection import open_channel
from asyncq.rabbitmq.declarations import declare
from asyncq.rabbitmq.failures import broker_text, operation_error, reraise_if_cancelled
from asyncq.rabbitmq.link import Link
from asyncq.rabbitmq.properties import message_from
from asyncq.rabbitmq.topology import reply_queue_declaration
from asyncq.rabbitmq.undisturbed import undisturbed

__all__ = ["RabbitMailbox"]

log = get_logger("asyncq.rabbitmq")

_PREFETCH = 200
_RETRY_PAUSE_S = 0.5
_CLOSE_TIMEOUT_S = 3.0


class RabbitMailbox:
    """A reply queue; see `asyncq.broker.Mailbox`.

    Args:
        link: The connection for consuming.
        new_name: Makes a new queue name.
        expires_s: How long the queue outlives its last consumer.
        reopens: Whether it goes on after a lost connection. Otherwise `ReplyLost` is raised at once, and it is over.
    """

    def __init__(self, link: Link, new_name: Callable[[], str], expires_s: float, *, reopens: bool = True) -> None:
        self._link = link
        self._new_name = new_name
        self._expires_s = expires_s
        self._reopens = reopens
        self._arrived: asyncio.Queue[Message | ReplyLost | None] = asyncio.Queue()
        self._channel: Channel | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._openings = 0
        self._tag = ""
        self._closed = False
        self._closing: asyncio.Task[None] | None = None
        self.address = new_name()

    async def open(self) -> None:
        """Declare the queue and consume it.

        Raises:
            BrokerError: It cannot be had.
        """
        await self._consume(self.address, create=True)
        self._supervisor = asyncio.create_task(self._supervise(), name=f"asyncq mailbox {self.address}")

    async def close(self) -> None:
        """Delete the queue: nobody will read it any more."""
        self._closed = True
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            supervisor.cancel()
            await asyncio.gather(supervisor, return_exceptions=True)
        channel, self._channel = self._channel, None
        if channel is not None:
            await self._delete(channel, self.address)
        self._arrived.put_nowait(None)

    async def _delete(self, channel: Channel, address: str) -> None:
        async def deleting() -> None:
            if not channel.is_closed:
                await channel.basic_cancel(self._tag)  # else the deletion is reported as the broker's cancel
                await channel.queue_delete(address)
                await channel.close()

        with contextlib.suppress(Exception, asyncio.CancelledError):
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await undisturbed(deleting())
        reraise_if_cancelled()

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        item = await self._arrived.get()
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, ReplyLost):
            raise item
        return item

    async def _supervise(self) -> None:
        while self._channel is not None:
            await asyncio.wait({self._channel.closing})
            if not self._reopens:
                self._arrived.put_nowait(
                    ReplyLost(f"The connection that reads the reply queue {self.address} was lost.")
                )
                return
            while not await self._consume_again():  # noqa: ASYNC110 - a pause between tries, not a wait for a flag
                await asyncio.sleep(_RETRY_PAUSE_S)

    async def _consume_again(self) -> bool:
        """Try once; return whether there is nothing left to try."""
        try:
            try:
                await self._consume(self.address, create=False)
            except ReplyLost as error:
                await self._replace(error)
        except NotOpen:
            self._channel = None
        except BrokerError as error:
            return self._give_up(error)
        return True

    async def _replace(self, error: ReplyLost) -> None:
        """Open a new queue in place of one that is gone. Only then is it anybody's address: it can take replies."""
        log.warning("the reply queue is gone, opening a new one", queue=self.address)
        address = self._new_name()
        await self._consume(address, create=True)
        self.address = address
        self._arrived.put_nowait(error)

    def _give_up(self, error: BrokerError) -> bool:
        """Return True where trying again is no use."""
        if self._link.status().state != "fatal":
            log.warning("cannot read replies, trying again", queue=self.address, cause=str(error))
            return False
        self._channel = None
        self._arrived.put_nowait(ReplyLost(f"Replies cannot be read any more: {error}"))
        return True

    async def _consume(self, address: str, *, create: bool) -> None:
        connection = await self._link.ready()
        await undisturbed(self._consume_on(connection, address, create=create))

    async def _consume_on(self, connection: Connection, address: str, *, create: bool) -> None:
        try:
            channel = await open_channel(connection, confirms=False)
            if create:
                await declare(channel, reply_queue_declaration(address, self._expires_s), nowait=False)
            await channel.basic_qos(prefetch_count=_PREFETCH)
            channel.on_consumer_cancel_callbacks.add(lambda _: self._on_cancel(channel))
            self._openings += 1
            self._tag = f"replies.{self._openings}"
            await channel.basic_consume(
                address, self._on_message, consumer_tag=self._tag, arguments={"x-priority": self._openings}
            )
        except amqp.ChannelNotFoundEntity as error:
            raise reply_queue_gone(address) from error
        except amqp.ChannelAccessRefused as error:
            raise AccessRefused(
                f"The reply queue {address!r} cannot be opened: {broker_text(error)}. Grant the user the "
                "permissions configure, write and read on such queues, or send with reply=False, which needs none."
            ) from error
        except asyncio.CancelledError as error:
            reraise_if_cancelled()
            raise operation_error(ConnectionError(*error.args), "opening the reply queue") from error
        except Exception as error:
            raise operation_error(error, "opening the reply queue") from error
        if self._closed:  # meanwhile
            await self._delete(channel, address)
            return
        self._channel = channel

    async def _on_message(self, delivered: DeliveredMessage) -> None:
        frame = delivered.delivery
        assert isinstance(frame, commands.Basic.Deliver)  # noqa: S101 - a consumer gets nothing else
        self._arrived.put_nowait(message_from(delivered.header.properties, delivered.body))
        with contextlib.suppress(amqp.ChannelInvalidStateError):  # the broker sends it again: it counts once
            if frame.delivery_tag is not None:
                await delivered.channel.basic_ack(frame.delivery_tag, wait=False)

    def _on_cancel(self, channel: Channel) -> None:
        """Find out by consuming again: the queue was deleted, or its node went away."""

        async def closing() -> None:
            with contextlib.suppress(Exception):
                await channel.close()

        # In a task of its own: this callback runs inside the channel's reader.
        self._closing = asyncio.get_running_loop().create_task(closing())
