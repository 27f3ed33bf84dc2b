"""Reading a queue that only keeps, without taking anything from it: fast, in order, in little memory.

    begin: one basic.get, then the count
      │
      ▼        window full of what is not settled
    consumer 1 ──────────────▶ consumer 2 ──▶ ...        all on one channel
      │
      ▼ end
    given back, oldest first

A `basic.get` for each message costs a round trip; a consumer with a window reads ten times as many a second. A
consumer gets nothing more once its window is full, so then the next one takes over: what it holds stays ours until it
is settled or given back. The window grows from one message on, as far as their size allows.

Giving back in order takes care. A quorum queue puts messages back in the order of the commands that return them, but
within one command of more than 32 messages RabbitMQ 3.10 knows no order, and of more than 32 commands under way the
queue's client joins those that are left, by consumer. So they go back in commands of 32 messages, 15 at a time, and the
queue's count tells when these have been done. (Measured on 3.10 and 4.3; `rabbit_fifo.erl`, `rabbit_fifo_client.erl`.)

Invariant: what is not settled goes back: by `give_back`, or by the broker itself when the channel closes, then in no
particular order.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import aiormq.exceptions as amqp
from aiormq.abc import AbstractChannel, DeliveredMessage
from pamqp import commands

from asyncq.errors import BrokerError, BrokerUnavailable
from asyncq.rabbitmq.common_errors import no_dead_letters
from asyncq.rabbitmq.failures import operation_error, reraise_if_cancelled
from asyncq.rabbitmq.undisturbed import undisturbed

__all__ = ["Look", "asked", "passive_count"]

T = TypeVar("T")

_LARGEST_WINDOW = 500
_GROWTH = 8
_WINDOW_BYTES = 8 * 1024 * 1024
_IDLE_S = 0.2
_SILENT_LOOKS = 150  # that the queue says it has messages, and brings none: 30 s
_RETURNED_AT_ONCE = 32
_RETURNS_UNDER_WAY = 15
_RETURNING_S = 5.0
_COUNTED_EACH_S = 0.001


class Look:
    """One look at a queue, on a channel of its own.

    Args:
        channel: Open, and used by nobody else.
        parked: The queue that is read.
        queue: The task queue, for words.
    """

    def __init__(self, channel: AbstractChannel, parked: str, queue: str) -> None:
        self._channel = channel
        self._parked = parked
        self._queue = queue
        self._arrived: deque[DeliveredMessage] = deque()
        self._wake = asyncio.Event()
        self._settled = bytearray(1)  # by delivery tag, from 1
        self._bound = 0
        self._granted = 0  # how many the broker may have delivered by now
        self._consumers = 0
        self._consuming = False
        self._size = 1  # of the latest window
        self._window = 0
        self._filled = 0  # how many the present consumer has brought that are not settled
        self._first_of_window = 1
        self._largest = 1
        self._failure: BrokerError | None = None

    async def begin(self) -> int:
        """Fetch the first message, and return how many there are, this one included.

        Raises:
            QueueGone: There is no such queue.
            BrokerError: The broker could not be asked, or the connection was lost.
        """
        got = await self._ask(self._channel.basic_get(self._parked))
        if not isinstance(got.delivery, commands.Basic.GetOk):
            return 0
        self._keep(got)
        self._first_of_window = len(self._settled)
        self._channel.closing.add_done_callback(lambda _: self._wake.set())
        self._channel.on_consumer_cancel_callbacks.add(self._cancelled)
        # Asked after the first one has come: only by then has the broker surely put back what somebody looked at
        # just before.
        self._granted = 1
        self._bound = 1 + await self._ask(passive_count(self._channel, self._parked))
        return self._bound

    def stop_at(self, count: int) -> None:
        """Fetch no more than so many in all: what was fetched, and goes back, overtakes what was not."""
        self._bound = min(self._bound, count)

    async def next(self, wanted: int) -> DeliveredMessage | None:
        """Return the next message; None where there is none any more.

        Args:
            wanted: How many will be asked for at most, this one included: no more are fetched ahead than that.

        Raises:
            BrokerError: The connection was lost, or the queue is gone.
        """
        silent = empty = 0
        while not self._arrived:
            if self._failure is not None:
                raise self._failure
            if self._filled >= self._window:
                await self._ask(undisturbed(self._next_consumer(wanted)))
            if await self._woken():
                continue
            silent += 1
            empty = 0 if await self._ask(passive_count(self._channel, self._parked)) else empty + 1
            if empty == 2:  # the first time, some may have been on their way to us
                return None
            if silent == _SILENT_LOOKS:
                raise BrokerUnavailable(f"Queue {self._parked!r} holds messages, and the broker delivers none of them.")
        return self._arrived.popleft()

    async def _woken(self) -> bool:
        """Wait a moment; return whether something has happened."""
        if self._arrived:
            return True
        self._wake.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_IDLE_S):
                await self._wake.wait()
        return bool(self._arrived)

    async def settle(self, messages: Sequence[DeliveredMessage]) -> None:
        """Remove messages from the queue, and wait until the broker has heard it.

        Raises:
            BrokerError: The connection was lost.
        """
        if self._failure is not None:
            raise self._failure  # a consumer that the broker has cancelled settles nothing, silently
        tags = sorted(map(tag_of, messages))
        self._granted += len(tags)
        if self._granted > self._bound:
            await self._ask(undisturbed(self._stop_consumer()))  # else it brings one more for each that is settled
        for tag in tags:
            self._settled[tag] = 1
            self._filled -= tag >= self._first_of_window
        if self._settled.find(0, 1, tags[-1] + 1) < 0:  # none before them is left: one command for all
            await self._ask(self._channel.basic_ack(tags[-1], multiple=True, wait=False))
        else:
            for tag in tags:
                await self._ask(self._channel.basic_ack(tag, wait=False))
        # The broker works on the commands of a channel in their order.
        await self._ask(passive_count(self._channel, self._parked))

    async def give_back(self) -> None:
        """Give back what was not settled, in its old order. On a lost connection the broker does it itself."""
        with contextlib.suppress(BrokerError):
            await undisturbed(self._give_back())

    # --- consuming

    async def _next_consumer(self, wanted: int) -> None:
        await self._stop_consumer()
        fitting = max(1, _WINDOW_BYTES // self._largest)
        self._size = min(self._size * _GROWTH, _LARGEST_WINDOW, fitting)
        self._window = max(1, min(self._size, wanted))
        self._granted = self._first_of_window - 1 + self._window
        self._consumers += 1
        self._consuming = True
        await self._channel.basic_qos(prefetch_count=self._window)
        await self._channel.basic_consume(self._parked, self._on_message, consumer_tag=self._tag)

    @property
    def _tag(self) -> str:
        return f"asyncq.look.{self._consumers:08}"  # returned by consumer, in the order of their tags

    async def _stop_consumer(self) -> None:
        if self._consuming:
            await self._channel.basic_cancel(self._tag)
            await asyncio.sleep(0)  # what came before the answer has its callbacks under way
        self._consuming = False
        self._window = self._filled = 0
        self._first_of_window = len(self._settled)  # what it has brought takes no room of the next one's

    async def _on_message(self, message: DeliveredMessage) -> None:
        self._keep(message)
        self._filled += 1

    def _keep(self, message: DeliveredMessage) -> None:
        self._settled.extend(bytes(tag_of(message) + 1 - len(self._settled)))
        self._largest = max(self._largest, len(message.body))
        self._arrived.append(message)
        self._wake.set()

    def _cancelled(self, _: object) -> None:
        self._failure = BrokerUnavailable(
            f"The broker has taken back what was looked at in queue {self._parked!r}: the queue was deleted or moved, "
            "or its consumer timeout was over. Nothing is lost by that."
        )
        self._wake.set()

    # --- giving back

    async def _give_back(self) -> None:
        await self._ask(self._stop_consumer())
        tags = (tag for tag, settled in enumerate(self._settled) if tag and not settled)
        ready = await self._ask(passive_count(self._channel, self._parked))
        ordered = True
        while commands_ := list(islice(_batches(tags, _RETURNED_AT_ONCE), _RETURNS_UNDER_WAY)):
            for batch in commands_:
                await self._ask(self._channel.basic_nack(batch[-1], multiple=True, requeue=True, wait=False))
            ready += sum(map(len, commands_))
            ordered = ordered and await self._counts(ready)

    async def _counts(self, ready: int) -> bool:
        """Wait until so many are ready. Where somebody else takes them, this is never: return False after a while."""
        deadline = asyncio.get_running_loop().time() + _RETURNING_S
        while await self._ask(passive_count(self._channel, self._parked)) < ready:
            if asyncio.get_running_loop().time() > deadline:
                return False
            await asyncio.sleep(_COUNTED_EACH_S)
        return True

    async def _ask(self, answer: Awaitable[T]) -> T:
        return await asked(answer, self._parked, self._queue)


def _batches(tags: Iterator[int], size: int) -> Iterator[list[int]]:
    while batch := list(islice(tags, size)):
        yield batch


def tag_of(message: DeliveredMessage) -> int:
    """Return the delivery tag of a message that was fetched, or delivered to a consumer."""
    frame = message.delivery
    assert isinstance(frame, (commands.Basic.GetOk, commands.Basic.Deliver))  # noqa: S101 - a type for the checker
    return frame.delivery_tag or 0


async def passive_count(channel: AbstractChannel, queue: str) -> int:
    """Return how many messages are ready in a queue, exactly. Declares nothing."""
    return (await channel.queue_declare(queue, passive=True)).message_count or 0


async def asked(answer: Awaitable[T], parked: str, queue: str) -> T:
    """Wait for the broker's answer, with our errors in place of the AMQP client's.

    Args:
        answer: What to wait for.
        parked: The queue that was asked for.
        queue: Its task queue, for words.

    Raises:
        QueueGone: There is no such queue.
        BrokerError: The broker could not be asked, or the connection was lost.
    """
    doing = f"looking at queue {parked!r}"
    try:
        return await answer
    except amqp.ChannelNotFoundEntity:
        raise no_dead_letters(parked, queue) from None
    except asyncio.CancelledError as error:
        reraise_if_cancelled()
        raise operation_error(ConnectionError(*error.args), doing) from error
    except (amqp.AMQPError, amqp.ChannelInvalidStateError, OSError) as error:
        raise operation_error(error, doing) from error
