"""The dead letters of one task queue: putting a failed task there, and looking at what is there.

A dead letter is the original body with whitelisted properties, and headers that say why it is here. RabbitMQ puts
messages here too, when a worker rejects one or the queue's delivery limit is reached; these have RabbitMQ's own
`x-death` header and no record of ours.

Invariant: looking changes nothing. A look takes messages without acknowledging them and gives them back, which the
broker counts as deliveries, so the queue has a limit of 2,000,000,000. They are given back by one `basic.nack` for
all: closing the channel would return them as well, but a quorum queue then puts them back in no particular order.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable
from typing import Protocol, TypeVar

import aiormq.exceptions as amqp
from aiormq.abc import AbstractChannel, DeliveredMessage
from pamqp import commands

from asyncq.broker import Address, DeadLetter, DeadLetterRecord, Queue
from asyncq.errors import BrokerError, NotSent, Unroutable
from asyncq.history import history_of, history_text
from asyncq.message import FIRST_AT, HISTORY, UNKNOWN_SINCE, Headers, Message, copy_of, cut_text
from asyncq.outcome import Failure
from asyncq.rabbitmq.common_errors import no_dead_letters
from asyncq.rabbitmq.failures import operation_error, reraise_if_cancelled
from asyncq.rabbitmq.properties import message_from
from asyncq.rabbitmq.topology import Names, OpenChannel, apply, base_plan, dead_letter_plan

__all__ = ["PublishTo", "RabbitDeadLetters", "letter_of", "record_from", "record_headers"]

ERROR_TYPE = "asyncq-error-type"
ERROR_MESSAGE = "asyncq-error-message"
ERROR_TRACEBACK = "asyncq-error-traceback"
REASON = "asyncq-reason"
FAILED_AT = "asyncq-failed-at"
ATTEMPTS = "asyncq-attempts"
QUEUE = "asyncq-queue"
WORKER = "asyncq-worker"

T = TypeVar("T")

_BY_THE_BROKER = "x-death"
_TRACEBACK_BYTES = 8 * 1024
_TEXT_BYTES = 4 * 1024


class PublishTo(Protocol):
    """How a message is published; see `asyncq.broker.Broker.publish`."""

    async def __call__(self, message: Message, to: Address, *, timeout_s: float) -> None:
        """Publish one message and wait for its confirm."""


class RabbitDeadLetters:
    """See `asyncq.broker.DeadLetters`.

    Args:
        names: The names of what asyncq declares.
        queue: The task queue.
        publish: Publishes one message.
        open_channel: Gives a fresh channel of the administration connection.
    """

    def __init__(self, names: Names, queue: str, publish: PublishTo, open_channel: OpenChannel) -> None:
        self._names = names
        self._queue = queue
        self._publish = publish
        self._open_channel = open_channel

    async def put(self, message: Message, record: DeadLetterRecord, *, timeout_s: float) -> None:
        """Park a copy of the message. Where the dead-letter queue was deleted, it is declared again.

        Raises:
            PublishError: As from `asyncq.broker.Broker.publish`. `Unroutable` only if it was deleted once more.
        """
        letter = letter_of(message, record)
        to = Queue(self._names.dead_queue(self._queue))
        deadline = asyncio.get_running_loop().time() + timeout_s
        try:
            await self._publish(letter, to, timeout_s=timeout_s)
        except Unroutable:
            await self._declare(deadline)
            left_s = max(0.001, deadline - asyncio.get_running_loop().time())
            await self._publish(letter, to, timeout_s=left_s)

    async def _declare(self, deadline: float) -> None:
        plan = (*base_plan(self._names), *dead_letter_plan(self._names, self._queue))
        failed = f"Nothing was put into queue {self._names.dead_queue(self._queue)!r}, which was deleted"
        try:
            async with asyncio.timeout_at(deadline):
                await apply(self._open_channel, plan)
        except TimeoutError:
            raise NotSent(f"{failed}: it could not be declared again in time.") from None
        except BrokerError as error:
            raise NotSent(f"{failed}: {error}") from error

    async def browse(self, *, limit: int | None = None) -> AsyncGenerator[DeadLetter, None]:
        """Look at what is parked now, oldest first. Nothing is changed by looking.

        One message at a time is fetched, so any number of them may be there. What has been looked at is out of
        others' sight until the iteration ends; leave it early with `contextlib.aclosing`.

        Args:
            limit: How many to look at; None means all that are there when the look begins.

        Raises:
            QueueGone: There is no such dead-letter queue.
            BrokerError: The broker could not be asked, or the connection was lost.
        """
        dead = self._names.dead_queue(self._queue)
        async with self._open_channel() as channel:
            last_tag: int | None = None
            left = 1 if limit is None else min(limit, 1)
            try:
                while left:
                    got = await self._ask(channel.basic_get(dead))
                    if not isinstance(got.delivery, commands.Basic.GetOk):
                        break
                    if last_tag is None:
                        # How many there are bounds the look: letters may come in faster than they are read. Asked
                        # after the first one has come: only by then has the broker surely put back what somebody
                        # looked at just before.
                        there = 1 + await self._ask(_count(channel, dead))
                        left = there if limit is None else min(limit, there)
                    last_tag = got.delivery.delivery_tag
                    yield _dead_letter(got)
                    left -= 1
            finally:
                if last_tag is not None:
                    await _give_back(channel, last_tag)

    async def _ask(self, answer: Awaitable[T]) -> T:
        dead = self._names.dead_queue(self._queue)
        doing = f"looking at queue {dead!r}"
        try:
            return await answer
        except amqp.ChannelNotFoundEntity:
            raise no_dead_letters(dead, self._queue) from None
        except asyncio.CancelledError as error:
            reraise_if_cancelled()
            raise operation_error(ConnectionError(*error.args), doing) from error
        except (amqp.AMQPError, amqp.ChannelInvalidStateError, OSError) as error:
            raise operation_error(error, doing) from error


async def _count(channel: AbstractChannel, queue: str) -> int:
    return (await channel.queue_declare(queue, passive=True)).message_count or 0


async def _give_back(channel: AbstractChannel, last_tag: int) -> None:
    # On a lost connection the broker does it itself.
    with contextlib.suppress(amqp.AMQPError, amqp.ChannelInvalidStateError, OSError):
        await channel.basic_nack(last_tag, multiple=True, requeue=True)


def _dead_letter(got: DeliveredMessage) -> DeadLetter:
    message = message_from(got.header.properties, got.body)
    return DeadLetter(message, record_from(message.headers))


def letter_of(message: Message, record: DeadLetterRecord) -> Message:
    """Return the copy of a message that is parked."""
    # A dead letter may be sent back by other tools: it must not find its patience for an unknown task used up, nor
    # the time for its retries.
    return copy_of(message, headers=record_headers(record), drop=(UNKNOWN_SINCE, FIRST_AT))


def record_headers(record: DeadLetterRecord) -> Headers:
    """Return the headers that say why a message is here."""
    return {
        ERROR_TYPE: cut_text(record.failure.type, _TEXT_BYTES),
        ERROR_MESSAGE: cut_text(record.failure.message, _TEXT_BYTES),
        ERROR_TRACEBACK: cut_text(record.failure.traceback, _TRACEBACK_BYTES),
        REASON: cut_text(record.reason, _TEXT_BYTES),
        FAILED_AT: record.failed_at_ms,
        ATTEMPTS: record.attempts,
        QUEUE: record.queue,
        WORKER: record.worker,
        **({HISTORY: history_text(record.history)} if record.history else {}),
    }


def record_from(headers: Headers) -> DeadLetterRecord | None:
    """Return why a message was dead-lettered, or None where that was not by us, or the headers are no record.

    A message with RabbitMQ's own `x-death` was put here by RabbitMQ: our copies have none. If it has a record
    nevertheless, then that is of an earlier death, from which somebody has sent it back.
    """
    if _BY_THE_BROKER in headers:
        return None
    texts = [headers.get(name) for name in (ERROR_TYPE, ERROR_MESSAGE, ERROR_TRACEBACK, REASON, QUEUE, WORKER)]
    numbers = [headers.get(name) for name in (FAILED_AT, ATTEMPTS)]
    if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
        return None
    kind, message, traceback, reason, queue, worker = (str(text) for text in texts)
    failed_at_ms, attempts = (int(number) for number in numbers if number is not None)
    return DeadLetterRecord(
        Failure(kind, message, traceback), reason, failed_at_ms, attempts, queue, worker, history_of(headers)
    )
