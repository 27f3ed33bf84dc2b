"""Reading a journal: from its first entry on, and again after whatever was lost.

    begin: declare ─▶ consume from the next offset ─▶ append a mark of our own
      │ our mark is read ────────────▶ CaughtUp: whatever was confirmed before the mark stands before it in the log
      │ in doubt ────────────────────▶ Interrupted; append another mark
      │ silence, and no mark ────────▶ begin at the first offset
      │ channel or connection lost ──▶ Interrupted; begin
      ▼ the stream was deleted ──────▶ Interrupted; begin at the first offset, of a new one

A stream has no end that AMQP 0-9-1 would tell of, hence the mark. An offset beyond the end, as after the stream was
deleted and declared anew while we were away, raises nothing: the consumer waits for ever (3.10 and 4.3), hence the
silence.
Source: https://www.rabbitmq.com/docs/streams

Invariant: see `asyncq.journal`. Marks are nobody's entries.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Protocol

import aiormq.exceptions as amqp
from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from aiormq.connection import Connection
from pamqp import commands

from asyncq.errors import (
    AccessRefused,
    AsyncQError,
    BrokerError,
    BrokerRefused,
    BrokerUnavailable,
    NotOpen,
    QueueGone,
    TopologyMismatch,
)
from asyncq.journal import CaughtUp, Entry, Heard, Interrupted
from asyncq.loggers import get_logger
from asyncq.message import new_id
from asyncq.rabbitmq.connection import open_channel
from asyncq.rabbitmq.failures import broker_text, operation_error, reraise_if_cancelled
from asyncq.rabbitmq.link import Link
from asyncq.rabbitmq.lost_streams import LossWatch
from asyncq.rabbitmq.properties import message_from
from asyncq.rabbitmq.undisturbed import undisturbed

__all__ = ["MARK", "RabbitFollowing", "Source"]

log = get_logger("asyncq.rabbitmq")

MARK = "mark"
"""The type of a message in the stream that is no entry."""

_PREFETCH = 1000
_ACK_EACH = 250
"""Acks only ask a stream for more. One for many, long before the prefetch is used up, is less work for both sides."""

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 5.0
_LONGEST_PAUSE_WHEN_LOST_S = 30.0
_NO_REPLICA = "replica on the local node"
_SILENCE_S = 10.0
_CLOSE_TIMEOUT_S = 3.0
_FATAL = (BrokerRefused, TopologyMismatch, NotOpen)


class Source(Protocol):
    """The journal that is read."""

    @property
    def name(self) -> str:
        """The stream's name."""
        ...

    @property
    def may_declare(self) -> bool:
        """Whether this app declares anything."""
        ...

    @property
    def loss(self) -> LossWatch:
        """Hears of each failure to read it."""
        ...

    async def declare(self) -> None:
        """Declare the stream, if this app declares anything."""
        ...

    async def mark(self, mark: str) -> None:
        """Append a mark, by which its writer knows how far it has read."""
        ...

    def missing(self) -> QueueGone:
        """Return the error where there is no such stream."""
        ...


class RabbitFollowing:
    """Reads a stream; see `asyncq.journal.Following`.

    Args:
        journal: What is read.
        connect: Begins to open the journals' connection, where nobody has yet, and returns it.
    """

    def __init__(self, journal: Source, connect: Callable[[], Link]) -> None:
        self._journal = journal
        self._connect = connect
        self._arrived: asyncio.Queue[Heard | AsyncQError | None] = asyncio.Queue()
        self._supervisor: asyncio.Task[None] | None = None
        self._channel: Channel | None = None
        self._reading = 0  # which reading of the stream is the present one: late deliveries of others do not count
        self._received = 0
        self._next_offset: int | None = None
        self._mark = ""
        self._marked: asyncio.Future[None] | None = None
        self._doubted: asyncio.Future[None] | None = None
        self._caught_up = 0
        self._closing: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Begin to read, in the background."""
        self._supervisor = asyncio.create_task(self._supervise(), name=f"asyncq journal {self._journal.name}")

    async def close(self) -> None:
        """Read no more."""
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            supervisor.cancel()
            await asyncio.gather(supervisor, return_exceptions=True)
        await self._leave()
        self._arrived.put_nowait(None)

    def doubt(self) -> None:
        """Count as interrupted until a mark is read that was not appended before now."""
        if self._caught_up:
            self._arrived.put_nowait(Interrupted())
        if self._doubted is not None and not self._doubted.done():
            self._doubted.set_result(None)

    def __aiter__(self) -> AsyncIterator[Heard]:
        return self

    async def __anext__(self) -> Heard:
        item = await self._arrived.get()
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, AsyncQError):
            self._arrived.put_nowait(item)  # it stays so
            raise item
        return item

    # --- reading

    async def _supervise(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            readings, lost = self._caught_up, False
            try:
                await self._read()
            except _FATAL as error:
                self._arrived.put_nowait(error)
                return
            except QueueGone as error:
                self._next_offset = None
                if not self._journal.may_declare and self._caught_up == 0:
                    self._arrived.put_nowait(error)
                    return
                log.warning("a journal is gone, and what was in it", journal=self._journal.name, cause=str(error))
            except BrokerError as error:
                lost = self._journal.loss.failed(str(error))
            except Exception:
                log.exception("a journal cannot be read, trying again", journal=self._journal.name)
            await self._leave()
            if self._caught_up > readings:
                pause_s = _FIRST_PAUSE_S
            await asyncio.sleep(pause_s)
            # A stream that stays away must not fill the log, nor the broker's.
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_WHEN_LOST_S if lost else _LONGEST_PAUSE_S)

    async def _read(self) -> None:
        """Read until the channel is lost.

        Raises:
            BrokerError: It could not be read, or not to its end.
        """
        connection = await self._connect().ready()
        refused: AccessRefused | None = None
        try:
            await self._journal.declare()
        except AccessRefused as error:  # then it must stand
            refused = error
        self._reading += 1
        try:
            channel = await undisturbed(self._consume_on(connection, self._reading))
        except QueueGone:
            raise refused or self._journal.missing() from None
        await self._stay_current(channel)
        if self._caught_up:
            self._arrived.put_nowait(Interrupted())

    async def _stay_current(self, channel: Channel) -> None:
        """Read up to a mark, and to another one after each doubt, until the channel is lost or silent."""
        while True:
            loop = asyncio.get_running_loop()
            # Before the mark is appended: whoever doubts from now on wants another one.
            self._doubted = doubted = loop.create_future()
            self._mark, self._marked = new_id(), loop.create_future()
            await self._journal.mark(self._mark)
            if not await self._is_read_to_the_mark(channel, self._marked):
                if not channel.closing.done():
                    self._next_offset = None  # it may be one of a stream that is gone: from the first, then
                return
            self._journal.loss.recovered()
            if doubted.done():
                continue
            self._caught_up += 1
            self._arrived.put_nowait(CaughtUp())
            await asyncio.wait({channel.closing, doubted}, return_when="FIRST_COMPLETED")
            if channel.closing.done():
                return

    async def _is_read_to_the_mark(self, channel: Channel, marked: asyncio.Future[None]) -> bool:
        while not marked.done():
            received = self._received
            await asyncio.wait({channel.closing, marked}, timeout=_SILENCE_S, return_when="FIRST_COMPLETED")
            if channel.is_closed or channel.closing.done() or received == self._received:
                return marked.done()
        return True

    async def _consume_on(self, connection: Connection, reading: int) -> Channel:
        name = self._journal.name
        try:
            channel = await open_channel(connection, confirms=False)
            self._channel = channel
            await channel.basic_qos(prefetch_count=_PREFETCH)
            channel.on_consumer_cancel_callbacks.add(lambda _: self._on_cancel(channel))
            await channel.basic_consume(
                name,
                lambda delivered: self._on_message(delivered, reading),
                consumer_tag=f"journal.{reading}",
                arguments={"x-stream-offset": "first" if self._next_offset is None else self._next_offset},
            )
        except amqp.ChannelNotFoundEntity as error:
            raise self._journal.missing() from error
        except amqp.ChannelPreconditionFailed as error:
            # Seen on 3.10 while the stream is being made by several at once, and in a cluster on a node without a copy.
            if _NO_REPLICA not in broker_text(error):
                raise operation_error(error, f"reading the stream {name!r}") from error
            raise BrokerUnavailable(
                f"The stream {name!r} has no running copy on the node that we are connected to: {broker_text(error)}. "
                "That passes while the stream is being made; else give the worker the URL of a node that has one."
            ) from error
        except amqp.ChannelAccessRefused as error:
            raise AccessRefused(
                f"The stream {name!r} cannot be read, so this worker would not hear of cancelled tasks: "
                f"{broker_text(error)}. Grant the user the permission read on it (and configure and write on it, for "
                "who declares it and who cancels), or switch cancelling off with cancellations_kept_s=0 "
                "(ASYNCQ_CANCELLATIONS_KEPT_S)."
            ) from error
        except asyncio.CancelledError as error:
            reraise_if_cancelled()
            raise operation_error(ConnectionError(*error.args), f"reading the stream {name!r}") from error
        except Exception as error:
            raise operation_error(error, f"reading the stream {name!r}") from error
        return channel

    async def _on_message(self, delivered: DeliveredMessage, reading: int) -> None:
        frame = delivered.delivery
        assert isinstance(frame, commands.Basic.Deliver)  # noqa: S101 - a consumer gets nothing else
        if reading == self._reading:
            message = message_from(delivered.header.properties, delivered.body)
            self._received += 1
            offset = message.headers.get("x-stream-offset")
            if isinstance(offset, int):
                self._next_offset = offset + 1
            if message.type != MARK:
                self._arrived.put_nowait(Entry(message.body))
            elif message.message_id == self._mark and self._marked is not None and not self._marked.done():
                self._marked.set_result(None)
        if frame.delivery_tag is not None and frame.delivery_tag % _ACK_EACH == 0:  # they count from 1 in a channel
            with contextlib.suppress(amqp.ChannelInvalidStateError):
                await delivered.channel.basic_ack(frame.delivery_tag, multiple=True, wait=False)

    def _on_cancel(self, channel: Channel) -> None:
        """The stream was deleted, or its node went away: find out by reading again."""
        self._next_offset = None

        async def closing() -> None:
            with contextlib.suppress(Exception):
                await channel.close()

        # In a task of its own: this callback runs inside the channel's reader.
        task = asyncio.get_running_loop().create_task(closing())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _leave(self) -> None:
        """Close the channel of a reading that has ended."""
        self._reading += 1
        channel, self._channel = self._channel, None
        if channel is None or channel.is_closed:
            return
        with contextlib.suppress(Exception, asyncio.CancelledError):
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await undisturbed(channel.close())
        reraise_if_cancelled()
