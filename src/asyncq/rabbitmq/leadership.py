"""Leadership on RabbitMQ: who is the active consumer of a quorum queue leads.

    connect ─▶ declare ─▶ consume ─▶ seed ─▶ wait ──first message──▶ term ──connection, consumer or queue lost──┐
       ▲                                                                                                        │
       └────────────────────────────────────────────────────────────────────────────────────────────────────────┘

The queue has a single active consumer: the broker names the next one when the connection of the active one is gone.

    the leader is killed            its socket is closed: the next one leads within milliseconds
    it is frozen, or cut off        after about three heartbeats, of 5 s at most, the broker gives it up. When it wakes
                                    up, its connection is closed, and with it goes all that it would still publish
    the broker restarts             all stand for it again; the states are in the queue
    the queue is deleted            the states are lost; the first who declares it again leads, and begins anew

What a term publishes goes out on the connection that holds the states: that is the fence. Whatever ends the leadership
otherwise (a consumer that the broker cancels, a channel error) makes us close that connection before anything else.
Source: https://www.rabbitmq.com/docs/consumers#single-active-consumer
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any

import aiormq.exceptions as amqp
from aiormq.abc import DeliveredMessage
from aiormq.connection import Connection
from pamqp import commands

from asyncq.broker import Address, BrokerStatus, Delay, Queue
from asyncq.errors import BrokerError, BrokerRefused, BrokerUnavailable, LeaseLost, NotOpen
from asyncq.loggers import get_logger
from asyncq.message import Message
from asyncq.rabbitmq.connection import ConnectOptions, close_connection, connect, open_channel
from asyncq.rabbitmq.failures import operation_error, reraise_if_cancelled
from asyncq.rabbitmq.link import is_unblocked
from asyncq.rabbitmq.properties import message_from, properties_from
from asyncq.rabbitmq.publisher import Publisher, Target
from asyncq.rabbitmq.tokens import HELD_AT_ONCE, TokenNote, Tokens, over_message, seed

__all__ = ["RabbitCampaign", "RabbitTerm"]

log = get_logger("asyncq.rabbitmq")

_LONGEST_HEARTBEAT_S = 5
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0
_RENEW_S = 300.0
"""Well below the consumer timeout, 30 minutes by default: a message held longer would cost the leadership."""

Publish = Callable[[Publisher, Message, Address, Delay | None, float], Awaitable[None]]


class HeldConnection:
    """The one connection of a candidate. When it is gone, it is not opened again: that would not be the same term."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._over = asyncio.Event()
        self._closing: asyncio.Task[None] | None = None
        self._loss = connection.closing
        self._loss.add_done_callback(self.lost)

    def lost(self, loss: asyncio.Future[Any]) -> None:
        """Hear that it, or the channel of the consumer, is gone."""
        if not loss.cancelled():
            loss.exception()  # seen: the reason does not matter
        self.end()

    @property
    def is_over(self) -> bool:
        """Whether it is gone."""
        return self._over.is_set() or self._connection.is_closed

    async def over(self) -> None:
        """Return when it is gone."""
        await self._over.wait()

    def end(self) -> None:
        """Close it, from wherever it is noticed that we lead no longer."""
        self._over.set()
        if self._closing is None:
            self._closing = asyncio.create_task(close_connection(self._connection))

    async def close(self) -> None:
        """Close it, and wait until that is done."""
        self.end()
        if self._closing is not None:
            await asyncio.shield(self._closing)

    # --- what the publisher asks

    def status(self) -> BrokerStatus:
        """See `asyncq.rabbitmq.link.Link.status`."""
        if self.is_over:
            return BrokerStatus("closed", BrokerUnavailable("The connection of this term is gone."))
        return BrokerStatus("blocked" if self.is_blocked() else "ready")

    def give_up(self, why: str) -> None:
        """See `asyncq.rabbitmq.link.Link.give_up`: another one leads then."""
        log.warning("the leader's connection is given up", cause=why)
        self.end()

    def is_blocked(self) -> bool:
        """See `asyncq.rabbitmq.link.Link.is_blocked`."""
        return not self.is_over and not is_unblocked(self._connection)

    async def unblocked(self) -> Connection:
        """See `asyncq.rabbitmq.link.Link.unblocked`.

        Raises:
            NotOpen: It is gone.
        """
        while not self.is_over:
            if is_unblocked(self._connection):
                return self._connection
            calm = asyncio.ensure_future(self._connection.ready())
            over = asyncio.ensure_future(self._over.wait())
            try:
                await asyncio.wait({calm, over}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                calm.cancel()
                over.cancel()
        raise NotOpen("The connection of this term is gone.")


class RabbitTerm:
    """See `asyncq.leadership.Term`."""

    def __init__(self, held: HeldConnection, publisher: Publisher, queue: str, publish: Publish) -> None:
        self._held = held
        self._publisher = publisher
        self._target = Target("", queue, f"queue {queue!r}")
        self._publish = publish
        self._tokens = Tokens(self._put, held.over)
        self._timeout_s = 30.0
        self._renewing: asyncio.Task[None] | None = None

    @property
    def states(self) -> Mapping[str, bytes]:
        """See `asyncq.leadership.Term.states`."""
        return self._tokens.states

    @property
    def is_lost(self) -> bool:
        """See `asyncq.leadership.Term.is_lost`."""
        return self._held.is_over

    async def begin(self) -> None:
        """Wait until we lead."""
        await self._tokens.begin()
        self._renewing = asyncio.create_task(self._renew(), name="asyncq renews what a leader holds")

    async def close(self) -> None:
        """End the term: the next candidate leads."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
        await self._held.close()

    async def save(self, name: str, state: bytes, *, timeout_s: float) -> None:
        """See `asyncq.leadership.Term.save`."""
        self._timeout_s = timeout_s
        with self._telling_that_it_is_over():
            await self._tokens.save(name, state)

    async def publish(self, message: Message, to: Address, *, delay: Delay | None = None, timeout_s: float) -> None:
        """See `asyncq.leadership.Term.publish`."""
        with self._telling_that_it_is_over():
            await self._publish(self._publisher, message, to, delay, timeout_s)

    async def note(self) -> TokenNote:
        """See `asyncq.leadership.Term.note`."""
        return await self._tokens.note()

    async def lost(self) -> None:
        """See `asyncq.leadership.Term.lost`."""
        await self._held.over()

    @contextlib.contextmanager
    def _telling_that_it_is_over(self) -> Iterator[None]:
        if self.is_lost:
            raise over_message()
        try:
            yield
        except BrokerError as error:
            if self.is_lost:
                raise over_message() from error
            raise

    async def _put(self, message: Message) -> None:
        await self._publisher.publish(message.body, properties_from(message), self._target, timeout_s=self._timeout_s)

    async def _renew(self) -> None:
        while not self.is_lost:
            await asyncio.sleep(_RENEW_S)
            try:
                await self._tokens.renew()
            except BrokerError as error:
                log.warning("what the leader holds could not be renewed, trying again", cause=str(error))

    # --- deliveries

    async def on_message(self, delivered: DeliveredMessage) -> None:
        """Take a delivery from the AMQP client."""
        frame = delivered.delivery
        assert isinstance(frame, commands.Basic.Deliver)  # noqa: S101 - a consumer gets nothing else
        tag, channel = frame.delivery_tag, delivered.channel

        async def ack() -> None:
            try:
                await channel.basic_ack(tag or 0, wait=False)
            except (amqp.AMQPError, amqp.ChannelInvalidStateError, ConnectionError) as error:
                raise over_message() from error

        with contextlib.suppress(LeaseLost):  # the broker sends it to the next leader
            await self._tokens.arrived(message_from(delivered.header.properties, delivered.body), ack)


class RabbitCampaign(AsyncIterator[RabbitTerm]):
    """The candidature of one process for one queue; see `asyncq.leadership.Leadership.campaign`.

    Args:
        queue: The leader's queue.
        name: Of the connection, for the management UI.
        options: How to connect.
        prepare: Declares the queue.
        publisher: Makes a publisher on a connection.
        publish: Publishes by it.
    """

    def __init__(
        self,
        queue: str,
        name: str,
        options: ConnectOptions,
        prepare: Callable[[], Awaitable[None]],
        publisher: Callable[[HeldConnection], Publisher],
        publish: Publish,
    ) -> None:
        self._queue = queue
        self._name = name
        self._options = dataclasses.replace(options, heartbeat_s=min(options.heartbeat_s, _LONGEST_HEARTBEAT_S))
        self._prepare = prepare
        self._publisher = publisher
        self._publish = publish
        self._term: RabbitTerm | None = None

    async def close(self) -> None:
        """End the present term, and stand no longer."""
        term, self._term = self._term, None
        if term is not None:
            await term.close()

    async def __anext__(self) -> RabbitTerm:
        await self.close()
        tries = 0
        while True:
            try:
                self._term = await self._stand(tries)
                await self._term.begin()
            except BrokerRefused:
                await self.close()
                raise
            except BrokerError as error:
                waited = self._term is not None
                await self.close()
                tries = 1 if waited else tries + 1
                log.warning("cannot stand for the leadership, trying again", queue=self._queue, cause=str(error))
                await asyncio.sleep(_pause_s(tries))
            except BaseException:
                await self.close()
                raise
            else:
                return self._term

    async def _stand(self, tries: int) -> RabbitTerm:
        await self._prepare()
        urls = self._options.urls
        held = HeldConnection(await connect(urls[tries % len(urls)], self._name, self._options))
        term = RabbitTerm(held, self._publisher(held), self._queue, self._publish)
        try:
            await self._consume(held, term)
            await term.publish(seed(), Queue(self._queue), timeout_s=self._options.timeout_s)
        except BaseException:
            await term.close()
            raise
        return term

    async def _consume(self, held: HeldConnection, term: RabbitTerm) -> None:
        try:
            channel = await open_channel(await held.unblocked(), confirms=False)
            channel.closing.add_done_callback(held.lost)
            channel.on_consumer_cancel_callbacks.add(lambda _: held.end())
            await channel.basic_qos(prefetch_count=HELD_AT_ONCE)
            await channel.basic_consume(self._queue, term.on_message, consumer_tag=f"leader.{self._queue}")
        except asyncio.CancelledError as error:
            reraise_if_cancelled()
            raise operation_error(ConnectionError(*error.args), "standing for the leadership") from error
        except Exception as error:
            raise operation_error(error, "standing for the leadership") from error


def _pause_s(tries: int) -> float:
    longest: float = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(tries, 8))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
