"""Asking workers through RabbitMQ.

    asker ──key: its reply queue──▶ asyncq.control ─┬─▶ [ inbox of a worker ] ──▶ worker ──▶ the asker's reply queue
                                       (fanout)     │
                                                    └─▶ [ roll of a worker ] ──expires at once──▶ the same

AMQP has no list of who is bound to an exchange. So each worker has a second queue, which nobody consumes and whose
messages live for 0 ms. RabbitMQ dead-letters them to the default exchange under their own key, which is the asker's
reply queue, with the name of the queue that they came from: the broker itself tells who is known, within milliseconds
(3.10 and 4.3), also where the worker is frozen. Both queues are exclusive, so they end with the worker's connection.
Source: https://www.rabbitmq.com/docs/ttl, https://www.rabbitmq.com/docs/dlx

Invariant: see `asyncq.control`. Each connection of a worker has queues of its own names: those of a connection that the
broker has not given up yet are still locked, and their roll names the same worker. An asker returns only what it has
read without a break: after a lost connection nobody knows whether a worker that is not on the roll is gone, or only its
entry, with a broker that was restarted.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import aiormq.exceptions as amqp
from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from aiormq.connection import Connection

from asyncq.broker import Address, Exchange, Mailbox, ReplyTo
from asyncq.control import Roll, WorkerName
from asyncq.errors import BrokerError, NotOpen, ReplyLost, Unroutable
from asyncq.loggers import get_logger
from asyncq.message import Message, new_id
from asyncq.rabbitmq.common_errors import answers_lost
from asyncq.rabbitmq.connection import open_channel
from asyncq.rabbitmq.failures import broker_text, operation_error, reraise_if_cancelled
from asyncq.rabbitmq.link import Link
from asyncq.rabbitmq.properties import message_from
from asyncq.rabbitmq.topology import Names
from asyncq.rabbitmq.undisturbed import undisturbed

__all__ = ["Answering", "Asking", "RabbitListener", "RabbitQuestion"]

log = get_logger("asyncq.rabbitmq")

_QUESTION, _ANSWER = "asyncq.control.question", "asyncq.control.answer"
_WORKER = "asyncq-worker"

_SHORTEST_QUIET_S, _LONGEST_QUIET_S = 0.2, 1.0
_QUIET_FACTOR = 5
"""After so many times of how long the last arrival took, the roll counts as whole. On a broker that is not busy it is
called within milliseconds."""
_RETRY_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_CLOSE_TIMEOUT_S = 3.0

# The type is said, because a virtual host may have another default, and these are exclusive.
_INBOX: Mapping[str, str | int] = {"x-queue-type": "classic"}
_ROLL: Mapping[str, str | int] = {"x-queue-type": "classic", "x-message-ttl": 0, "x-dead-letter-exchange": ""}


class Publish(Protocol):
    """Publishes a message, and waits for the broker's confirm."""

    async def __call__(self, message: Message, to: Address, *, timeout_s: float) -> None:
        """See `asyncq.broker.Broker.publish`."""
        ...


# --- asking


@dataclass(slots=True)
class _Asked:
    """What has arrived so far."""

    wanted: Callable[[WorkerName], bool]
    known: set[WorkerName]
    answers: list[tuple[WorkerName, bytes]]

    @property
    def is_answered(self) -> bool:
        # The broker has routed the question: so somebody is known, though his roll may be on its way.
        answered = {name for name, _ in self.answers}
        return bool(self.known) and all(name in answered for name in self.known if self.wanted(name))


class Asking:
    """Asks all workers.

    Args:
        mailbox: Where the answers go. It raises `ReplyLost` where it was not read without a break.
        publish: Publishes the question.
        names: The names on this broker.
        publish_timeout_s: How long the broker's confirm is waited for, in seconds.
    """

    def __init__(self, mailbox: Mailbox, publish: Publish, names: Names, publish_timeout_s: float) -> None:
        self._mailbox = mailbox
        self._publish = publish
        self._names = names
        self._publish_timeout_s = publish_timeout_s

    async def ask(self, body: bytes, wanted: Callable[[WorkerName], bool], timeout_s: float) -> Roll:
        """See `asyncq.control.Control.ask`."""
        unique = new_id()
        question = Message(type=_QUESTION, body=body, task_id=unique, message_id=unique, reply_to=self._mailbox.address)
        try:
            await self._publish(
                question, Exchange(self._names.control, self._mailbox.address), timeout_s=self._publish_timeout_s
            )
        except Unroutable:  # no queue is bound: nobody is there
            return Roll((), ())
        asked = _Asked(wanted, set(), [])
        replies = aiter(self._mailbox)
        now = asyncio.get_running_loop().time
        began_s, quiet_s = now(), _SHORTEST_QUIET_S
        while (left_s := began_s + timeout_s - now()) > 0:
            try:
                async with asyncio.timeout(min(left_s, quiet_s) if asked.is_answered else left_s):
                    reply = await anext(replies)
            except TimeoutError:
                break
            except ReplyLost as error:
                raise answers_lost() from error
            if reply.task_id == unique:
                _take(asked, reply, self._names)
                quiet_s = min(_LONGEST_QUIET_S, max(_SHORTEST_QUIET_S, _QUIET_FACTOR * (now() - began_s)))
        return Roll(tuple(sorted(asked.known, key=str)), tuple(asked.answers))


def _take(asked: _Asked, reply: Message, names: Names) -> None:
    if reply.type == _ANSWER:
        name = WorkerName.read(str(reply.headers.get(_WORKER)))
        if name is not None:
            asked.known.add(name)
            asked.answers.append((name, reply.body))
        return
    deaths = reply.headers.get("x-death")
    death = deaths[0] if isinstance(deaths, list) and deaths else None
    queue = death.get("queue") if isinstance(death, dict) else None
    name = names.worker_of_roll(queue) if isinstance(queue, str) else None
    if name is not None:
        asked.known.add(name)


# --- being asked


@dataclass(frozen=True, slots=True)
class Answering:
    """How answers are sent.

    Attributes:
        publish: Publishes them.
        timeout_s: How long each waits for its confirm, in seconds.
    """

    publish: Publish
    timeout_s: float


class RabbitQuestion:
    """One question; see `asyncq.control.Question`."""

    __slots__ = ("_answering", "_message", "_name", "body")

    def __init__(self, message: Message, name: WorkerName, answering: Answering) -> None:
        self.body = message.body
        self._message = message
        self._name = name
        self._answering = answering

    async def answer(self, body: bytes) -> None:
        """See `asyncq.control.Question.answer`."""
        if self._message.reply_to is None:
            return
        answer = Message(
            type=_ANSWER,
            body=body,
            task_id=self._message.task_id,
            message_id=new_id(),
            headers={_WORKER: str(self._name)},
        )
        with contextlib.suppress(Unroutable):  # nobody waits any more
            await self._answering.publish(answer, ReplyTo(self._message.reply_to), timeout_s=self._answering.timeout_s)


class RabbitListener:
    """Hears questions on every connection that there is, one after the other; see `asyncq.control.Control.listen`.

    Args:
        link: The connection for consuming.
        names: The names on this broker.
        name: The worker.
        answering: Sends the answers.
    """

    def __init__(self, link: Link, names: Names, name: WorkerName, answering: Answering) -> None:
        self._link = link
        self._names = names
        self._name = name
        self._answering = answering
        self._heard: asyncio.Queue[RabbitQuestion | None] = asyncio.Queue()
        self._channel: Channel | None = None
        self._openings = 0
        self._tag = f"control.{name.name}"
        self._told = ""
        self._supervisor: asyncio.Task[None] | None = None

    def __aiter__(self) -> AsyncIterator[RabbitQuestion]:
        return self

    async def __anext__(self) -> RabbitQuestion:
        question = await self._heard.get()
        if question is None:
            raise StopAsyncIteration
        return question

    def open(self) -> None:
        """Begin to listen, in the background."""
        self._supervisor = asyncio.create_task(self._supervise(), name=f"asyncq control of {self._name.name}")

    async def close(self) -> None:
        """Hear no more, and leave the roll."""
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            supervisor.cancel()
            await asyncio.gather(supervisor, return_exceptions=True)
        await self._leave()
        self._heard.put_nowait(None)

    async def _supervise(self) -> None:
        pause_s = _RETRY_PAUSE_S
        while True:
            try:
                channel = await self._begin()
                pause_s, self._told = _RETRY_PAUSE_S, ""
                await asyncio.wait({channel.closing})
            except NotOpen:
                return
            except BrokerError as error:
                self._tell(error)
                if self._link.status().state == "fatal":
                    return
                pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)
            except Exception:
                log.exception("control cannot be listened to, trying again")
                pause_s = _LONGEST_PAUSE_S
            await self._leave()
            await asyncio.sleep(pause_s)

    def _tell(self, error: BrokerError) -> None:
        """Say once what is wrong."""
        if str(error) != self._told:
            self._told = str(error)
            log.warning("this worker works, but it cannot be asked or controlled", cause=self._told)

    async def _begin(self) -> Channel:
        connection = await self._link.ready()
        return await undisturbed(self._listen_on(connection))

    async def _listen_on(self, connection: Connection) -> Channel:
        self._openings += 1
        inbox = self._names.control_inbox(self._name, self._openings)
        roll = self._names.control_roll(self._name, self._openings)
        try:
            channel = self._channel = await open_channel(connection, confirms=False)
            for queue, arguments in ((inbox, _INBOX), (roll, _ROLL)):
                await channel.queue_declare(queue, exclusive=True, arguments=dict[str, Any](arguments))
                await channel.queue_bind(queue, self._names.control, "")
            await channel.basic_consume(inbox, self._on_message, no_ack=True, consumer_tag=self._tag)
        except asyncio.CancelledError as error:
            reraise_if_cancelled()
            raise operation_error(ConnectionError(*error.args), "opening the queue for control") from error
        except (amqp.ChannelAccessRefused, amqp.ChannelNotFoundEntity) as error:
            raise BrokerError(
                f"Queue {inbox!r} cannot be opened: {broker_text(error)}. Grant the user the permissions configure, "
                f"write and read on ^{self._names.namespace}\\.control and write on amq.default; where the exchange "
                f"{self._names.control!r} is missing, `asyncq topology apply MODULE:APP` declares it."
            ) from error
        except Exception as error:
            raise operation_error(error, "opening the queue for control") from error
        return channel

    async def _on_message(self, delivered: DeliveredMessage) -> None:
        message = message_from(delivered.header.properties, delivered.body)
        self._heard.put_nowait(RabbitQuestion(message, self._name, self._answering))

    async def _leave(self) -> None:
        channel, self._channel = self._channel, None
        if channel is None or channel.is_closed:
            return

        async def leaving() -> None:
            # The queues are the connection's, which goes on.
            await channel.queue_delete(self._names.control_roll(self._name, self._openings))
            await channel.basic_cancel(self._tag)  # else the deletion is reported as the broker's cancel
            await channel.queue_delete(self._names.control_inbox(self._name, self._openings))
            await channel.close()

        with contextlib.suppress(Exception, asyncio.CancelledError):
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await undisturbed(leaving())
        reraise_if_cancelled()
