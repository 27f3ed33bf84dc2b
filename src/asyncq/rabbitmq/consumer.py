"""Consuming: one subscription is n consumers with prefetch 1 on one channel.

    consuming ──channel or connection lost──▶ consuming again, as soon as the link is ready
        │ consumer cancelled by the broker ──▶ that consumer consumes again
        │ the queue does not exist (404) ────▶ QueueGone: whoever iterates decides
        ▼ stop()
    stopped: nothing new; what was not started is handed back; the channel stays for the acks of the rest

A lease is the right to settle one delivery. It ends with its channel, and with the broker's cancel notification
for its consumer: after a queue's deletion, and from RabbitMQ 4.3 on after the consumer timeout, the channel stays
open, and a late ack raises nothing and does nothing.
Source: https://www.rabbitmq.com/docs/consumer-cancel, https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout

Invariant: the AMQP client's callbacks only put a delivery into a queue. The client cancels its callbacks with the
connection, so nothing of the user's may run in them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable

import aiormq.exceptions as amqp
from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from pamqp import commands

from asyncq.errors import AsyncQError, BrokerError, NotOpen, QueueGone
from asyncq.loggers import get_logger
from asyncq.message import Message
from asyncq.rabbitmq.common_errors import queue_gone
from asyncq.rabbitmq.connection import open_channel
from asyncq.rabbitmq.delivery import ConsumerSlot, RabbitDelivery
from asyncq.rabbitmq.failures import operation_error, reraise_if_cancelled
from asyncq.rabbitmq.handing_back import HandingBack
from asyncq.rabbitmq.link import Link
from asyncq.rabbitmq.undisturbed import undisturbed

__all__ = ["RabbitSubscription"]

log = get_logger("asyncq.rabbitmq")

_RETRY_PAUSE_S = 0.5
_CLOSE_TIMEOUT_S = 3.0
_ON_ITS_WAY_S = 0.25
"""For how long after its last ack a slot may have the next message on its way to it."""


class RabbitSubscription:
    """The deliveries of one queue; see `asyncq.broker.Subscription`.

    Args:
        link: The connection for consuming.
        queue: The queue's name.
        app: The app's name, for the consumer tags.
        slots: How many of them.
        hand_back: Publishes a message to the end of its queue again.
    """

    def __init__(
        self, link: Link, queue: str, app: str, slots: int, hand_back: Callable[[Message], Awaitable[None]]
    ) -> None:
        self.queue = queue
        self.hand_back = hand_back
        self._link = link
        self._app = app
        self._numbers = list(range(slots))  # of the slots that there are, those included that are given up
        self._surplus: set[int] = set()  # of the slots that are given up, as soon as they have finished
        self._deliveries: asyncio.Queue[RabbitDelivery | None] = asyncio.Queue()
        self._kept: list[RabbitDelivery] = []  # while paused or stopping: brought, and not started
        self._arrived = asyncio.Event()
        self._slots: dict[int, ConsumerSlot] = {}
        self._by_tag: dict[str, ConsumerSlot] = {}
        self._recoveries = 0
        self._channel: Channel | None = None
        self._slots_on: Channel | None = None  # the channel that the slots were made on
        self._supervisor: asyncio.Task[None] | None = None
        self._recovering: set[asyncio.Task[None]] = set()
        self._handing_back = HandingBack()
        self._held: set[int] = set()
        self._left: set[int] = set()  # slots that have ended their work in a pause
        self._paused = False
        self._stopped = False
        self._end: AsyncQError | None = None

    # --- iteration

    def __aiter__(self) -> AsyncIterator[RabbitDelivery]:
        return self

    async def __anext__(self) -> RabbitDelivery:
        while True:
            delivery = await self._deliveries.get()
            if delivery is None:
                self._deliveries.put_nowait(None)  # for the other slots that iterate
                if self._end is not None:
                    raise self._end
                raise StopAsyncIteration
            if not delivery.is_lost:
                return delivery

    # --- life

    async def open(self) -> None:
        """Start consuming.

        Raises:
            QueueGone: There is no such queue.
            BrokerError: It cannot be consumed.
        """
        await self._consume()
        self._supervisor = asyncio.create_task(self._supervise(), name=f"asyncq subscription of {self.queue}")

    async def close(self) -> None:
        """Close the channel: what is unsettled goes back to the queue."""
        self._stopped = True
        tasks = [task for task in (self._supervisor, *self._recovering, *self._handing_back.tasks) if task is not None]
        self._supervisor = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._finish(None)
        await self._close_channel()

    async def pause(self) -> None:
        """See `asyncq.broker.Subscription.pause`.

        No consumer is cancelled here: one that holds a delivery gets no other, by its prefetch of 1, and one that
        holds none may have one on its way. What comes after a cancel the broker returns to the queue, and counts that
        before RabbitMQ 4.3 (measured on 3.10). See `settling`.
        """
        self._paused = True
        self._kept += self._unstarted()

    async def resume(self) -> None:
        """See `asyncq.broker.Subscription.resume`."""
        self._paused = False
        self._left.clear()
        kept, self._kept = self._kept, []
        for delivery in kept:
            self._deliveries.put_nowait(delivery)
        await self._adjust_all()

    async def resize(self, slots: int) -> None:
        """See `asyncq.broker.Subscription.resize`.

        Consumers are cancelled as in `stop`, and for the same reason.
        """
        numbers = [number for number in self._numbers if number not in self._surplus]
        if self._stopped or slots == len(numbers):
            return
        if slots < len(numbers):
            numbers.sort(key=self._is_busy)
            self._surplus.update(numbers[: len(numbers) - slots])
            self._hand_back_surplus()
            await self._let_arrive(self._surplus)
        else:
            self._add_slots(slots - len(numbers))
        await self._adjust_all()

    def _add_slots(self, count: int) -> None:
        """Take back what was given up, and make as many new ones as are missing."""
        for number in sorted(self._surplus)[:count]:
            self._surplus.discard(number)
            count -= 1
        first = max(self._numbers, default=-1) + 1
        self._numbers += range(first, first + count)
        channel = self._channel
        if count and channel is not None and channel is self._slots_on and not channel.closing.done():
            self._make_slots(channel, self._numbers[-count:])  # else they come with the next channel

    def _is_busy(self, number: int) -> bool:
        slot = self._slots.get(number)
        return slot is not None and slot.free_since is None

    def _hand_back_surplus(self) -> None:
        """Hand back what surplus slots have brought, and no one has started."""
        for delivery in self._unstarted():
            if delivery.slot in self._surplus:
                self._handing_back.add(delivery)
            else:
                self._deliveries.put_nowait(delivery)
        kept, self._kept = self._kept, []
        for delivery in kept:
            if delivery.slot in self._surplus:
                self._handing_back.add(delivery)
            else:
                self._kept.append(delivery)

    async def stop(self) -> None:
        """See `asyncq.broker.Subscription.stop`.

        A consumer is cancelled while its slot holds a delivery, for the same reason as in `pause`: a slot that has
        just become free gets a moment to be filled. What remains are messages that are published in the very moment
        of the cancel.
        """
        if self._stopped:
            return
        self._stopped = True
        self._kept += self._unstarted()
        await self._let_arrive(self._numbers)
        await self._adjust_all()
        await self._handing_back.finish()
        unstarted = [item for item in self._kept if not item.is_lost]
        self._kept = []
        for result in await asyncio.gather(*(item.release() for item in unstarted), return_exceptions=True):
            if isinstance(result, BaseException):
                log.warning("a delivery could not be handed back, the broker does it", cause=str(result))
        self._finish(None)

    async def settling(self, slot: ConsumerSlot) -> None:
        """Hear that this slot's delivery is about to be settled: in a pause or a stop, that brings no other one."""
        if slot.gone.done():
            return
        if self._paused:
            self._left.add(slot.number)
        if self._paused or self._stopped or slot.number in self._surplus:
            await self._adjust(slot)

    async def hold(self, number: int) -> None:
        """Bring nothing new into this slot, whatever becomes of its channel."""
        self._held.add(number)
        if number in self._slots:
            await self._adjust(self._slots[number])

    async def free(self, number: int) -> None:
        """Open a held slot again."""
        self._held.discard(number)
        if number in self._slots:
            with contextlib.suppress(BrokerError):  # the channel is lost then: the supervisor starts all of them again
                await self._adjust(self._slots[number])

    async def _let_arrive(self, numbers: Collection[int]) -> None:
        """Wait until none of these slots may have a message on its way to it that was sent after its last ack."""
        now = asyncio.get_running_loop().time
        while True:
            waits = [
                slot.free_since + _ON_ITS_WAY_S - now()
                for slot in self._slots.values()
                if slot.number in numbers
                and slot.free_since is not None
                and slot.tag in slot.channel.consumers
                and not slot.gone.done()
            ]
            longest_s = max(waits, default=0.0)
            if longest_s <= 0:
                return
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(longest_s):
                    await self._arrived.wait()

    def _unstarted(self) -> list[RabbitDelivery]:
        """Take out what waits for a slot. The end of the iteration stays."""
        unstarted, ended = [], False
        while not self._deliveries.empty():
            delivery = self._deliveries.get_nowait()
            if delivery is None:
                ended = True
            else:
                unstarted.append(delivery)
        if ended:
            self._deliveries.put_nowait(None)
        return unstarted

    def _finish(self, error: AsyncQError | None) -> None:
        self._end = self._end or error
        self._deliveries.put_nowait(None)

    # --- the channel

    async def _supervise(self) -> None:
        """Consume again after every loss of the channel, until `close()` cancels this."""
        while self._channel is not None:
            await asyncio.wait({self._channel.closing})
            if self._stopped:
                return
            log.warning("deliveries interrupted, consuming again", queue=self.queue)
            while not await self._consume_again():
                await self._close_channel()  # what it has taken would never be settled
                await asyncio.sleep(_RETRY_PAUSE_S)

    async def _consume_again(self) -> bool:
        """Try once; return whether there is nothing left to try."""
        try:
            await self._consume()
        except (QueueGone, NotOpen) as error:
            self._channel = None
            self._finish(error)
        except BrokerError as error:
            if self._link.status().state != "fatal":
                log.warning("cannot consume, trying again", queue=self.queue, cause=str(error))
                return False
            self._channel = None
            self._finish(error)
        return True

    async def _consume(self) -> None:
        connection = await self._link.ready()
        try:
            channel = self._channel = await open_channel(connection, confirms=False)
            await channel.basic_qos(prefetch_count=1)  # for each consumer that follows, not for the channel
        except asyncio.CancelledError as error:
            reraise_if_cancelled()
            raise operation_error(ConnectionError(*error.args), "opening a channel") from error
        except Exception as error:
            raise operation_error(error, "opening a channel") from error
        self._kept = [delivery for delivery in self._kept if not delivery.is_lost]
        self._numbers = [number for number in self._numbers if number not in self._surplus]
        self._surplus.clear()
        self._slots.clear()
        self._by_tag.clear()
        channel.on_consumer_cancel_callbacks.add(self._on_cancel)
        self._slots_on = channel
        self._make_slots(channel, self._numbers)
        for slot in tuple(self._slots.values()):
            await self._adjust(slot)

    def _make_slots(self, channel: Channel, numbers: list[int]) -> None:
        new_lease = asyncio.get_running_loop().create_future
        slots = [ConsumerSlot(number, self._tag(number), channel, new_lease()) for number in numbers]
        self._slots.update({slot.number: slot for slot in slots})
        self._by_tag.update({slot.tag: slot for slot in slots})
        channel.closing.add_done_callback(lambda closing: _end_leases(closing, slots))

    def _tag(self, number: int) -> str:
        return f"{self._app}.{self.queue}.{number + 1}"

    async def _close_channel(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None and not channel.is_closed:
            with contextlib.suppress(Exception, asyncio.CancelledError):
                async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                    await undisturbed(channel.close())
            reraise_if_cancelled()

    # --- consumers

    async def _adjust_all(self) -> None:
        with contextlib.suppress(BrokerError):  # the channel is lost then: the supervisor starts all of them again
            await asyncio.gather(*(self._adjust(slot) for slot in list(self._slots.values())))

    async def _adjust(self, slot: ConsumerSlot) -> None:
        """Make the slot consume, or not, as is wanted by now. A caller that is cancelled leaves at once."""
        if not slot.gone.done():
            await undisturbed(self._reconcile(slot))

    async def _reconcile(self, slot: ConsumerSlot) -> None:
        async with slot.changing:
            unwanted = slot.number in self._held or slot.number in self._left or slot.number in self._surplus
            wanted = not (self._stopped or unwanted)
            consuming = slot.tag in slot.channel.consumers
            if slot.gone.done() or wanted == consuming:
                return
            if wanted:
                await self._start(slot)
            else:
                await self._cancel(slot)

    async def _start(self, slot: ConsumerSlot) -> None:
        try:
            slot.settled()
            await slot.channel.basic_consume(self.queue, self._on_message, consumer_tag=slot.tag)
        except amqp.ChannelNotFoundEntity as error:
            raise queue_gone(self.queue) from error
        except asyncio.CancelledError as error:
            reraise_if_cancelled()
            raise operation_error(ConnectionError(*error.args), f"consuming from {self.queue!r}") from error
        except Exception as error:
            raise operation_error(error, f"consuming from {self.queue!r}") from error

    async def _cancel(self, slot: ConsumerSlot) -> None:
        try:
            await slot.channel.basic_cancel(slot.tag)
        except asyncio.CancelledError:
            reraise_if_cancelled()
        except Exception as error:  # noqa: BLE001 - a lost channel has cancelled it already
            log.debug("consumer could not be cancelled", tag=slot.tag, cause=str(error))

    # --- callbacks of the AMQP client: hand over, nothing else

    async def _on_message(self, delivered: DeliveredMessage) -> None:
        frame = delivered.delivery
        assert isinstance(frame, commands.Basic.Deliver)  # noqa: S101 - a consumer gets nothing else
        slot = self._by_tag.get(frame.consumer_tag or "")
        if slot is None or slot.channel is not delivered.channel or frame.delivery_tag is None:
            return  # of an earlier channel: the broker has taken it back already
        delivery = RabbitDelivery(self, slot, delivered, frame.delivery_tag)
        slot.free_since = None
        self._arrived.set()
        if slot.number in self._surplus and not self._stopped:
            self._handing_back.add(delivery)
        elif self._paused or self._stopped:
            self._kept.append(delivery)
        else:
            self._deliveries.put_nowait(delivery)

    def _on_cancel(self, frame: commands.Basic.Cancel) -> None:
        slot = self._by_tag.pop(frame.consumer_tag or "", None)
        if slot is None or slot.gone.done():
            return
        slot.gone.set_result(None)
        log.warning("the broker cancelled a consumer", queue=self.queue, tag=slot.tag)
        if not self._stopped:
            task = asyncio.get_running_loop().create_task(self._recover(slot))
            self._recovering.add(task)
            task.add_done_callback(self._recovering.discard)

    async def _recover(self, slot: ConsumerSlot) -> None:
        """Consume again after the broker's cancel: on the same channel, with a new lease.

        The tag is a new one: RabbitMQ 4.3 keeps the old one for a while, and its reuse would close the connection.
        """
        self._recoveries += 1
        tag = f"{self._tag(slot.number)}.{self._recoveries}"
        fresh = ConsumerSlot(slot.number, tag, slot.channel, asyncio.get_running_loop().create_future())
        self._slots[slot.number] = self._by_tag[tag] = fresh
        slot.channel.closing.add_done_callback(lambda closing: _end_leases(closing, (fresh,)))
        try:
            await self._adjust(fresh)
        except QueueGone as error:
            self._finish(error)
        except BrokerError as error:
            log.debug("consumer not restarted, the channel's supervisor does it", cause=str(error))


def _end_leases(closing: asyncio.Future[object], slots: Iterable[ConsumerSlot]) -> None:
    if not closing.cancelled():
        closing.exception()  # seen
    for slot in slots:
        if not slot.gone.done():
            slot.gone.set_result(None)
