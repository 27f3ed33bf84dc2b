"""What the barrier of a chord does when it loses its channel in the middle: on a queue that fails at a given command.

How it works on real brokers is tests/integration/test_chord_queues.py's; a broker cannot be made to fail between two
of its commands.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import aiormq.exceptions as amqp
import pytest
from pamqp import commands

from asyncq.barrier import Member
from asyncq.errors import BrokerUnavailable, QueueGone, Unroutable
from asyncq.message import Message
from asyncq.rabbitmq.barrier import RabbitBarriers
from asyncq.rabbitmq.properties import properties_from
from asyncq.rabbitmq.topology import Names


class ChordQueue:
    """A queue with one consumer at a time, and channels to it.

    Attributes:
        ready: What nobody holds.
        fail: The command that fails next, and with what.
        is_gone: Whether it was deleted.
        channels: How many are open.
    """

    def __init__(self) -> None:
        self.ready: deque[Message] = deque()
        self.fail: tuple[str, Exception] | None = None
        self.is_gone = False
        self.channels = 0

    async def publish(self, message: Message, *_: Any, **__: Any) -> None:
        if self.is_gone:
            raise Unroutable("no queue")
        self.ready.append(message)

    @asynccontextmanager
    async def open_channel(self) -> AsyncIterator[Any]:
        channel = _Channel(self)
        self.channels += 1
        try:
            yield channel
        finally:
            self.channels -= 1
            self.ready.extendleft(reversed(channel.held.values()))


class _Channel:
    is_closed = False

    def __init__(self, queue: ChordQueue) -> None:
        self._queue = queue
        self.held: dict[int, Message] = {}
        self.on_consumer_cancel_callbacks: set[Any] = set()
        self.closing = asyncio.get_running_loop().create_future()

    def _may_fail(self, command: str) -> None:
        if self._queue.fail is not None and self._queue.fail[0] == command:
            error, self._queue.fail = self._queue.fail[1], None
            self._queue.is_gone = isinstance(error, amqp.ChannelNotFoundEntity)
            raise error

    async def basic_qos(self, **_: Any) -> None: ...

    async def basic_consume(self, _: str, callback: Callable[[Any], Any]) -> Any:
        for tag in range(1, len(self._queue.ready) + 1):
            message = self.held[tag] = self._queue.ready.popleft()
            header = SimpleNamespace(properties=properties_from(message))
            delivery = commands.Basic.Deliver("tag", tag)
            await callback(SimpleNamespace(delivery=delivery, header=header, body=message.body))
        return SimpleNamespace(consumer_tag="tag")

    async def basic_cancel(self, *_: Any, **__: Any) -> None:
        self._may_fail("basic_cancel")

    async def basic_ack(self, tag: int, **_: Any) -> None:
        self._may_fail("basic_ack")
        del self.held[tag]

    async def queue_declare(self, _: str, **__: Any) -> Any:
        if self.held:
            self._may_fail("queue_declare")
        if self._queue.is_gone:
            raise amqp.ChannelNotFoundEntity("no queue")
        return SimpleNamespace(message_count=len(self._queue.ready), consumer_count=0)


@pytest.fixture
async def barriers(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[ChordQueue, RabbitBarriers]]:
    monkeypatch.setattr("asyncq.rabbitmq.barrier._IDLE_S", 0.001)
    queue = ChordQueue()
    made = RabbitBarriers(Names("asyncq"), queue.publish, queue.open_channel, max_bytes=10**6, may_declare=True)
    await queue.publish(Message(type="asyncq.chord-head", body=b"head", task_id="c", message_id="head"))
    yield queue, made
    await made.close()


def member(index: int) -> Member:
    return Member(index, "succeeded", b"%d" % index, f"task-{index}", "work")


@pytest.mark.parametrize("command", ["basic_ack", "queue_declare"])
async def test_who_loses_the_channel_while_giving_back_comes_again(
    barriers: tuple[ChordQueue, RabbitBarriers], command: str
) -> None:
    """It gathers no longer: else whoever comes last, by the same client, would leave it to one who is not there."""
    queue, made = barriers
    assert await made.arrive("c", 2, member(0), timeout_s=1) is None
    queue.fail = (command, ConnectionError("connection lost"))
    with pytest.raises(BrokerUnavailable):
        await made.arrive("c", 2, member(0), timeout_s=1)
    assert await made.arrive("c", 2, member(0), timeout_s=1) is None
    gathered = await made.arrive("c", 2, member(1), timeout_s=1)
    assert gathered is not None
    assert [item.body for item in gathered.members] == [b"0", b"1"]
    await gathered.give_back()
    await made.close()
    assert queue.channels == 0


async def test_a_queue_that_goes_while_it_is_given_back_is_gone(barriers: tuple[ChordQueue, RabbitBarriers]) -> None:
    """As one that went before."""
    queue, made = barriers
    assert await made.arrive("c", 2, member(0), timeout_s=1) is None
    queue.fail = ("queue_declare", amqp.ChannelNotFoundEntity("no queue"))
    assert await made.arrive("c", 2, member(0), timeout_s=1) is None
    with pytest.raises(QueueGone):
        await made.arrive("c", 2, member(0), timeout_s=1)
    await made.close()
    assert queue.channels == 0
