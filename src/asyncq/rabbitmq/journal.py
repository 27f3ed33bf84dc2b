"""A journal on a RabbitMQ stream: a log that consumers read without taking anything out of it.

This side declares and appends; `following` reads. Segments are small, because only whole ones are dropped by age, and
never the last one.
Source: https://www.rabbitmq.com/docs/streams

Invariant: see `asyncq.journal`. A stream is declared before this process first appends to it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from asyncq.errors import (
    AccessRefused,
    BrokerUnavailable,
    NotSent,
    PublishUncertain,
    QueueGone,
    Refused,
    TopologyMismatch,
    Unroutable,
)
from asyncq.message import Message, new_id
from asyncq.rabbitmq.following import MARK, RabbitFollowing
from asyncq.rabbitmq.link import Link
from asyncq.rabbitmq.lost_streams import WHERE_TO_LOOK, LossWatch, looks_lost
from asyncq.rabbitmq.properties import properties_from
from asyncq.rabbitmq.publisher import Publisher, Target
from asyncq.rabbitmq.topology import OpenChannel, apply, journal_declaration

__all__ = ["JournalWires", "RabbitJournal"]

_ENTRY = "entry"


@dataclass(frozen=True, slots=True)
class JournalWires:
    """What a journal needs of its broker.

    Attributes:
        publisher: Appends, on the journals' connection.
        connect: Begins to open the journals' connection, where nobody has yet, and returns it.
        open_channel: Gives channels for declaring.
        may_declare: Whether this app declares anything.
        timeout_s: How long appending a mark waits for its confirm.
    """

    publisher: Publisher
    connect: Callable[[], Link]
    open_channel: OpenChannel
    may_declare: bool
    timeout_s: float


class RabbitJournal:
    """A stream; see `asyncq.journal.Journal`.

    Args:
        name: The stream's name.
        keep_s: How long entries are kept at least, in seconds.
        wires: The broker.
    """

    def __init__(self, name: str, keep_s: float, wires: JournalWires) -> None:
        self.name = name
        self.loss = LossWatch(name)
        self._declaration = journal_declaration(name, keep_s)
        self._wires = wires
        self.may_declare = wires.may_declare
        self._target = Target("", name, f"journal {name!r}")
        self._declaring = asyncio.Lock()
        self._declared = 0
        self._followings: set[RabbitFollowing] = set()

    async def append(self, body: bytes, *, timeout_s: float) -> None:
        """See `asyncq.journal.Journal.append`."""
        try:
            await self._append(_ENTRY, new_id(), body, timeout_s)
        except BrokerUnavailable as error:  # while it was declared
            raise NotSent(f"Nothing was appended to {self._target.words}: {error}") from error
        except (PublishUncertain, Refused) as error:
            if looks_lost(str(error)):
                raise type(error)(f"{error} {WHERE_TO_LOOK}") from error
            raise

    async def mark(self, mark: str) -> None:
        """Append a mark, by which its writer knows how far it has read."""
        await self._append(MARK, mark, b"", self._wires.timeout_s)

    async def _append(self, kind: str, message_id: str, body: bytes, timeout_s: float) -> None:
        message = Message(type=kind, body=body, task_id=message_id, message_id=message_id)
        publish = self._wires.publisher.publish
        self._wires.connect()
        # Before, not after the first return: RabbitMQ 3.10 ends the connection of who publishes to a stream in the
        # moment of its declaration ("Stream not found"), and with it all publishes that are under way.
        with contextlib.suppress(AccessRefused):  # then it must stand
            await self._declare(0)
        declared = self._declared
        try:
            await publish(body, properties_from(message), self._target, timeout_s=timeout_s)
        except Unroutable:
            if not self.may_declare:
                raise self.missing() from None
            await self._declare(declared)
            await publish(body, properties_from(message), self._target, timeout_s=timeout_s)

    async def declare(self) -> None:
        """Declare the stream, if this app declares anything.

        Raises:
            TopologyMismatch: It exists with other arguments, or this broker has no streams.
            AccessRefused: The user lacks a permission.
            BrokerUnavailable: The connection was lost.
        """
        await self._declare(None)

    async def _declare(self, known: int | None) -> None:
        """Declare it where it was declared no more often than this; None for in any case."""
        if not self.may_declare or (known is not None and self._declared > known):
            return
        async with self._declaring:
            if known is not None and self._declared > known:
                return
            try:
                await apply(self._wires.open_channel, (self._declaration,))
            except AccessRefused:
                self._declared += 1  # it will not be granted meanwhile: so it must stand
                raise
            except BrokerUnavailable as error:
                if (refusal := _no_streams(error)) is not None:
                    raise refusal from error
                raise
            self._declared += 1

    def missing(self) -> QueueGone:
        """Return the error where there is no such stream."""
        return QueueGone(
            f"There is no stream {self.name!r}, and this app does not declare it. `asyncq topology apply MODULE:APP`, "
            "run by a user who may, declares it; or switch cancelling off with cancellations_kept_s=0 "
            "(ASYNCQ_CANCELLATIONS_KEPT_S)."
        )

    @contextlib.asynccontextmanager
    async def follow(self) -> AsyncIterator[RabbitFollowing]:
        """See `asyncq.journal.Journal.follow`."""
        following = RabbitFollowing(self, self._wires.connect)
        following.open()
        self._followings.add(following)
        try:
            yield following
        finally:
            self._followings.discard(following)
            await following.close()

    def doubt(self) -> None:
        """Let all who follow it read up to the present end before they count as current again."""
        for following in self._followings:
            following.doubt()


def _no_streams(error: BrokerUnavailable) -> TopologyMismatch | None:
    """Return our error for a broker that has no streams, if it is that which ended the connection.

    RabbitMQ 3.10 with the feature flag off: INTERNAL_ERROR - Cannot declare a queue ... of type 'rabbit_stream_queue'
    on node ...: the corresponding feature flag is disabled
    """
    if "feature flag is disabled" not in str(error):
        return None
    return TopologyMismatch(
        "This broker has no streams, in which cancellations are kept: their feature flag is off, as on a broker that "
        "came from an older version. Switch it on with `rabbitmqctl enable_feature_flag stream_queue`; or do without "
        f"cancelling, by cancellations_kept_s=0 (ASYNCQ_CANCELLATIONS_KEPT_S). ({error})"
    )
