"""The dead letters of one task queue: putting a failed task there, and looking at what is there.

A dead letter is the original body with whitelisted properties, and headers that say why it is here. RabbitMQ puts
messages here too, when a worker rejects one or the queue's delivery limit is reached; these have RabbitMQ's own
`x-death` header and no record of ours.

Invariant: looking changes nothing. A look takes messages without acknowledging them and gives them back (look.py).
The broker counts that as deliveries, so the queue has a limit of 2,000,000,000.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Protocol

from aiormq.abc import DeliveredMessage

from asyncq.broker import Address, DeadLetter, DeadLetterRecord, Queue
from asyncq.errors import BrokerError, NotSent, Unroutable
from asyncq.history import history_of, history_text
from asyncq.message import FIRST_AT, HISTORY, TURN_AT, UNKNOWN_SINCE, Headers, Message, copy_of, cut_text
from asyncq.outcome import Failure
from asyncq.rabbitmq.letter_origin import BY_THE_BROKER, letter_from, parked_in
from asyncq.rabbitmq.look import Look, asked, passive_count
from asyncq.rabbitmq.properties import message_from
from asyncq.rabbitmq.taking import RabbitTaking
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
        self._parked = parked_in(names, queue)
        self._publish = publish
        self._open_channel = open_channel

    async def put(self, message: Message, record: DeadLetterRecord, *, timeout_s: float) -> None:
        """Park a copy of the message. Where the dead-letter queue was deleted, it is declared again.

        Raises:
            PublishError: As from `asyncq.broker.Broker.publish`. `Unroutable` only if it was deleted once more.
        """
        letter = letter_of(message, record)
        to = Queue(self._parked)
        deadline = asyncio.get_running_loop().time() + timeout_s
        try:
            await self._publish(letter, to, timeout_s=timeout_s)
        except Unroutable:
            await self._declare(deadline)
            left_s = max(0.001, deadline - asyncio.get_running_loop().time())
            await self._publish(letter, to, timeout_s=left_s)

    async def _declare(self, deadline: float) -> None:
        plan = (*base_plan(self._names), *dead_letter_plan(self._names, self._queue))
        failed = f"Nothing was put into queue {self._parked!r}, which was deleted"
        try:
            async with asyncio.timeout_at(deadline):
                await apply(self._open_channel, plan)
        except TimeoutError:
            raise NotSent(f"{failed}: it could not be declared again in time.") from None
        except BrokerError as error:
            raise NotSent(f"{failed}: {error}") from error

    async def count(self) -> int:
        """Return how many are parked. What somebody looks at in this moment is not counted.

        Raises:
            QueueGone: There is no such dead-letter queue.
            BrokerError: The broker could not be asked.
        """
        async with self._open_channel() as channel:
            return await asked(passive_count(channel, self._parked), self._parked, self._queue)

    async def browse(self, *, limit: int | None = None) -> AsyncGenerator[DeadLetter, None]:
        """Look at what is parked now, oldest first. Nothing is changed by looking.

        Any number of them may be there: they are read as they are asked for, some hundred ahead at most. What has
        been looked at is out of others' sight until the iteration ends; leave it early with `contextlib.aclosing`.

        Args:
            limit: How many to look at; None means all that are there when the look begins.

        Raises:
            QueueGone: There is no such dead-letter queue.
            BrokerError: The broker could not be asked, or the connection was lost.
        """
        if limit == 0:
            return
        async with self._open_channel() as channel:
            look = Look(channel, self._parked, self._queue)
            try:
                there = await look.begin()
                for left in range(there if limit is None else min(limit, there), 0, -1):
                    message = await look.next(left)
                    if message is None:
                        break
                    yield self._letter(message)
            finally:
                await look.give_back()

    @contextlib.asynccontextmanager
    async def take(self) -> AsyncIterator[RabbitTaking]:
        """See `asyncq.broker.DeadLetters.take`."""
        taking = RabbitTaking(self._open_channel, self._parked, self._queue, self._letter)
        try:
            await taking.begin()
            yield taking
        finally:
            await taking.end()

    def _letter(self, message: DeliveredMessage) -> DeadLetter:
        return read_letter(message, self._names, self._parked)


def read_letter(delivered: DeliveredMessage, names: Names, parked: str) -> DeadLetter:
    """Return the letter that was read from a queue."""
    message = message_from(delivered.header.properties, delivered.body)
    frame = delivered.delivery
    exchange, key = getattr(frame, "exchange", None) or "", getattr(frame, "routing_key", None) or ""
    return letter_from(message, record_from(message.headers), names=names, parked=parked, exchange=exchange, key=key)


def letter_of(message: Message, record: DeadLetterRecord) -> Message:
    """Return the copy of a message that is parked."""
    # A dead letter may be sent back by other tools: it must not find its patience for an unknown task used up, nor
    # the time for its retries, nor a turn that it has had.
    return copy_of(message, headers=record_headers(record), drop=(UNKNOWN_SINCE, FIRST_AT, TURN_AT))


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
    if BY_THE_BROKER in headers:
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
