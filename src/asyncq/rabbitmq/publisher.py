"""Publishing: every message persistent, mandatory, and confirmed, or one of five errors.

    not sent ──written──▶ under way ──ack──▶ confirmed
        │                     ├─return────▶ Unroutable
        │                     ├─nack──────▶ Refused
        ▼ timeout             ▼ timeout, or the connection is lost
     NotSent              PublishUncertain

A message that was not written waits for the connection to come back, as long as its timeout lasts. One that was
under way when the connection was lost may or may not be in its queue; only the caller can know whether a second
copy does harm, so nothing is sent again behind its back.

A connection on which nothing is answered for `SILENCE_S` is given up, though it lives: in a cluster, messages that were
under way to a queue whose node was killed can keep the broker from taking any other on that connection, for minutes.

Narrow waist: encoded properties and body bytes in, a confirm out. Nothing above depends on the AMQP client.
Source: https://www.rabbitmq.com/docs/confirms
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

import aiormq.exceptions as amqp
from aiormq.channel import Channel
from aiormq.connection import Connection
from pamqp import commands

from asyncq.broker import BrokerStatus
from asyncq.errors import (
    BrokerError,
    BrokerRefused,
    MessageTooLarge,
    NotOpen,
    NotSent,
    PublishUncertain,
    Refused,
)
from asyncq.rabbitmq.common_errors import too_large, unroutable, unwritable
from asyncq.rabbitmq.connection import open_channel
from asyncq.rabbitmq.failures import broker_text, reraise_if_cancelled

__all__ = ["Publisher", "PublishingLink", "Target"]

SILENCE_S: Final = 25.0
"""Longer than a busy broker takes for one of many confirms, and shorter than `publish_timeout_s` is by default."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a message goes.

    Attributes:
        exchange: Its name; empty for the default exchange.
        key: The routing key.
        words: The target in words, for messages to people: `queue 'mail'`.
    """

    exchange: str
    key: str
    words: str


class PublishingLink(Protocol):
    """What a publisher needs of a connection: `asyncq.rabbitmq.link.Link` has it."""

    def status(self) -> BrokerStatus:
        """Return the present state."""
        ...

    def is_blocked(self) -> bool:
        """Tell whether the broker's alarm is on."""
        ...

    async def unblocked(self) -> Connection:
        """Wait for the open connection, and the end of an alarm. Raises `BrokerRefused` or `NotOpen`."""
        ...

    def give_up(self, why: str) -> None:
        """Close the open connection, which is of no use."""
        ...


class Publisher:
    """All publishes of one process, on one channel of one connection.

    Args:
        link: The connection for publishing.
        max_message_bytes: Larger bodies are refused here: the broker would close the channel for them, and with
            it everything that is under way.
        declare: Declares our exchanges again; called when the broker says that one is missing.
    """

    def __init__(self, link: PublishingLink, max_message_bytes: int, declare: Callable[[], Awaitable[None]]) -> None:
        self._link = link
        self._max_message_bytes = max_message_bytes
        self._declare = declare
        self._channel: Channel | None = None
        self._opening = asyncio.Lock()
        self._under_way = 0
        self._silent_since_s = 0.0

    async def publish(
        self, body: bytes, properties: commands.Basic.Properties, target: Target, *, timeout_s: float
    ) -> None:
        """Publish one message and wait for its confirm.

        Raises:
            Unroutable: Returned by the broker: no queue for it.
            Refused: Nacked, or it breaks a rule of the broker or of AMQP.
            MessageTooLarge: Not sent.
            NotSent: No connection in time.
            PublishUncertain: No answer in time, or the connection was lost in between.
        """
        self._check_size(body, target)
        written, channel = False, None
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    channel = await self._open_channel()
                    written = True
                    try:
                        await self._answered(
                            channel.basic_publish(
                                body,
                                exchange=target.exchange,
                                routing_key=target.key,
                                properties=properties,
                                mandatory=True,
                                wait=False,
                            )
                        )
                    except amqp.ChannelInvalidStateError:
                        written = False  # the channel was closed before a byte was written: another one, then
                        continue
                    except amqp.ChannelNotFoundEntity as error:
                        # Of several under way, some may have been taken just before the exchange was deleted.
                        if not _names_exchange(error, target) or len(channel.confirmations) > 1:
                            raise
                        written = False  # our exchange was deleted, so the broker cannot have taken it
                        await self._declare_again(target)
                        continue
                    return
        except TimeoutError:
            self._give_up_if_silent(channel)
            raise self._timed_out(target, timeout_s, written=written) from None
        except asyncio.CancelledError as error:
            reraise_if_cancelled()
            raise _lost(target, error) from error
        except BrokerError:
            raise
        except Exception as error:
            if channel is not None and not channel.is_closed and not isinstance(error, amqp.AMQPError):
                # The channel lives, so it is not what ended the publish: the frames could not be made.
                raise unwritable(error, target.words) from error
            raise self._failed(error, body, target) from error

    async def _answered(self, publishing: Awaitable[object]) -> None:
        """Wait for the broker's answer, and remember that there was one."""
        if self._under_way == 0:
            self._silent_since_s = time.monotonic()
        self._under_way += 1
        try:
            await publishing
            self._silent_since_s = time.monotonic()
        except amqp.DeliveryError:  # a return or a nack
            self._silent_since_s = time.monotonic()
            raise
        finally:
            self._under_way -= 1

    def _give_up_if_silent(self, channel: Channel | None) -> None:
        silent_s = time.monotonic() - self._silent_since_s
        is_in_use = channel is not None and channel is self._channel and not channel.is_closed
        if is_in_use and silent_s >= SILENCE_S and not self._link.is_blocked():
            self._link.give_up(f"nothing was confirmed for {silent_s:.0f} s")

    def _check_size(self, body: bytes, target: Target) -> None:
        if len(body) > self._max_message_bytes:
            raise too_large(len(body), self._max_message_bytes, target.words)

    async def _open_channel(self) -> Channel:
        """Return the open channel, or open one on the connection of the moment. Waits while the broker is blocked."""
        channel = self._channel
        if channel is not None and not channel.is_closed:
            if self._link.is_blocked():
                await self._unblocked()  # the broker reads nothing now: better not sent than uncertain
            return channel
        async with self._opening:
            channel = self._channel
            while channel is None or channel.is_closed:
                connection = await self._unblocked()
                try:
                    channel = await open_channel(connection, confirms=True)
                except asyncio.CancelledError:
                    reraise_if_cancelled()
                except Exception:  # noqa: BLE001 - the connection went away meanwhile; the link brings the next one
                    await asyncio.sleep(0.01)
            self._channel = channel
            return channel

    async def _unblocked(self) -> Connection:
        try:
            return await self._link.unblocked()
        except (BrokerRefused, NotOpen) as error:
            raise NotSent(f"Nothing was sent: {error}") from error

    async def _declare_again(self, target: Target) -> None:
        try:
            await self._declare()
        except BrokerError as error:
            raise NotSent(
                f"Nothing was sent to {target.words}: the exchange {target.exchange!r} is gone, and could not be "
                f"declared again: {error}"
            ) from error

    def _timed_out(self, target: Target, timeout_s: float, *, written: bool) -> NotSent | PublishUncertain:
        status = self._link.status()
        if not written:
            why = {"blocked": "is blocked by an alarm", "ready": "did not answer"}.get(status.state, "is not connected")
            cause = f": {status.cause}" if status.cause else "."
            return NotSent(f"No message was sent to {target.words} within {timeout_s:g} s: the broker {why}{cause}")
        return PublishUncertain(
            f"The broker did not confirm a message to {target.words} within {timeout_s:g} s (connection: "
            f"{status.state}). It may or may not be in the queue; sending it again with the same task_id is safe "
            "where the task may run twice."
        )

    def _failed(self, error: Exception, body: bytes, target: Target) -> BrokerError:
        said = broker_text(error)
        if isinstance(error, amqp.PublishError):
            return unroutable(target.words)
        if isinstance(error, amqp.DeliveryError):
            return Refused(
                f"The broker did not take a message for {target.words}: it may be full (x-max-length with "
                "reject-publish), or it has lost its majority of nodes. It was not kept."
            )
        if isinstance(error, amqp.ChannelPreconditionFailed) and "larger than" in said:
            limit = _limit(said)
            if limit is None or len(body) > limit:
                return MessageTooLarge(f"The broker refused a message of {len(body)} bytes for {target.words}: {said}")
        if isinstance(error, amqp.ChannelAccessRefused) and _names_exchange(error, target):
            return Refused(f"The broker does not let this user publish to {target.words}: {said}")
        return _lost(target, error)


def _names_exchange(error: amqp.AMQPChannelError, target: Target) -> bool:
    """Tell whether the broker means this message: the error ends the channel, and with it what others have under way.

    The text is, for example: NOT_FOUND - no exchange 'asyncq.tasks' in vhost '/'; or: ACCESS_REFUSED - write access to
    exchange 'amq.default' in vhost '/' refused for user 'shop'.
    """
    return f"exchange '{target.exchange or 'amq.default'}'" in broker_text(error)


def _limit(said: str) -> int | None:
    # The text is: PRECONDITION_FAILED - message size 20000012 is larger than configured max size 16777216
    found = re.search(r"max size (\d+)", said)
    return int(found[1]) if found else None


def _lost(target: Target, error: BaseException) -> PublishUncertain:
    return PublishUncertain(
        f"The connection was lost while a message to {target.words} was under way ({broker_text(error)}). It may or "
        "may not be in the queue; sending it again with the same task_id is safe where the task may run twice."
    )
