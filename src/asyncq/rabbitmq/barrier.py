"""The barrier of a chord: one quorum queue, which holds what follows and how the members have ended.

    arrive: publish ─confirmed─▶ count the queue ─fewer than all─▶ somebody else comes later
                                      │ all
                                      ▼
            consume (single active consumer) ─▶ each member once?
                                      │ yes                       │ no: some came twice
                                      ▼                           ▼
                  gathered ─▶ goes on ─▶ the queue is deleted     settle what is there twice, give the rest back,
                                                                  count again

The count after one's own confirm includes all that was confirmed before, so the last one to arrive sees all of them.
Several may; the queue has a consumer as soon as one of them gathers, and then the others wait until it has none. Of two
that begin in the same moment one is the active consumer; the other leaves, and waits as well. So does who comes by the
same client: the task of the one that gathers may have come again already, and would leave the chord to itself.

A barrier that was opened twice (its workflow was sent again, or a worker has died behind it) has members that come
twice. Its queue stays when it is done, without what follows: a late one finds it, and leaves. It expires.

Whoever holds messages hides them from the counts of others. It lets go of them by closing its channel, never by
cancelling its consumer: the broker then takes the consumer away and puts the messages back in one step. So a queue
without a consumer shows all that is there.

What each failure does:

    who gathers dies                its messages go back, and so does the task that it has brought: whoever gets that
                                    brings it again. The task may come first, by a connection that the broker knows to
                                    be dead while it still believes in the one that gathers: that is why one waits
    the same member twice           the second one is settled when it is met
    the queue's leader moves        its count may read 0 for some seconds: asked again
    the queue is gone               what follows was done; or it has expired: the caller can tell, by its own message

Publishing into a queue does not renew its `x-expires`, so that is long.
Sources: https://www.rabbitmq.com/docs/consumers#single-active-consumer, https://www.rabbitmq.com/docs/ttl#queue-ttl
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import aiormq.exceptions as amqp
from aiormq.abc import AbstractChannel, DeliveredMessage
from pamqp import commands

from asyncq.barrier import Member
from asyncq.broker import Queue
from asyncq.errors import AccessRefused, BrokerUnavailable, QueueGone, TopologyMismatch, Unroutable
from asyncq.loggers import get_logger
from asyncq.message import Message, ReplyType, new_id
from asyncq.rabbitmq.counting import Counting
from asyncq.rabbitmq.dead_letters import PublishTo
from asyncq.rabbitmq.failures import operation_error, reraise_if_cancelled
from asyncq.rabbitmq.properties import message_from
from asyncq.rabbitmq.topology import Names, OpenChannel, apply, chord_queue_declaration
from asyncq.rabbitmq.undisturbed import undisturbed

__all__ = ["RabbitBarriers"]

log = get_logger("asyncq.rabbitmq")

HEAD: Final = "asyncq.chord-head"
INDEX: Final = "asyncq-index"
TASK: Final = "asyncq-task"

_SPARE = 1000
_LARGEST_PREFETCH = 65_535
_IDLE_S = 0.2
_LONGEST_PATIENCE_S = 5.0
_COUNT_PAUSE_S = 0.1
_COUNTS = 100  # 10 s: a queue elects its leader in less
_SHORTEST_WAIT_S = 0.02
_LONGEST_WAIT_S = 1.0
_WAITS = 120  # two minutes; the broker gives up a silent connection after two heartbeats


class _Gone(Exception):
    """The queue that is consumed was deleted."""


class RabbitBarriers:
    """See `asyncq.barrier.Barriers`.

    Args:
        names: How queues are called.
        publish: Publishes one message.
        open_channel: Gives a fresh channel of the administration connection.
        max_bytes: How much the values of a chord may be together.
        may_declare: Whether this app declares queues.
    """

    def __init__(
        self, names: Names, publish: PublishTo, open_channel: OpenChannel, *, max_bytes: int, may_declare: bool
    ) -> None:
        self._names = names
        self._publish = publish
        self._open_channel = open_channel
        self._max_bytes = max_bytes
        self._may_declare = may_declare
        self._gathering: dict[str, asyncio.Event] = {}
        self._counting = Counting(open_channel)

    async def open(self, chord: str, head: bytes, *, keep_s: float, timeout_s: float) -> None:
        """See `asyncq.barrier.Barriers.open`."""
        if not self._may_declare:
            raise AccessRefused(
                "A chord, or a group that something follows, has a queue of its own, and this app declares nothing "
                "(declare=False, ASYNCQ_DECLARE). Let it declare, or use chains, and groups that nothing follows."
            )
        declaration = chord_queue_declaration(self._names, chord, keep_s)
        with contextlib.suppress(TopologyMismatch):  # it stands, from a sender with another idea of how long
            await apply(self._open_channel, (declaration,))
        message = Message(type=HEAD, body=head, task_id=chord, message_id=new_id())
        await self._publish(message, Queue(declaration.name), timeout_s=timeout_s)

    async def arrive(self, chord: str, size: int, member: Member, *, timeout_s: float) -> RabbitGathered | None:
        """See `asyncq.barrier.Barriers.arrive`."""
        queue = self._names.chord_queue(chord)
        await self._put(queue, member, timeout_s)
        heads = 1
        while True:
            gathered = await self._gathered(queue, size, heads)
            if gathered is None or gathered.is_complete:
                return gathered
            await gathered.give_back_once_each()
            heads = max(heads, gathered.heads)

    async def _gathered(self, queue: str, size: int, heads: int) -> RabbitGathered | None:
        """Return what is there, if that may be all; None where others come later, or somebody else has gone on."""
        patience_s = _IDLE_S
        while True:
            ready = await self._count(queue)
            if ready < size + heads:
                return None
            if queue in self._gathering:  # since the answer
                continue
            gathered = RabbitGathered(queue, size, self._max_bytes, lambda: self._gathering.pop(queue).set())
            self._gathering[queue] = asyncio.Event()
            is_begun = False
            try:
                is_begun = await gathered.begin(self._open_channel, ready, patience_s)
            finally:
                if not is_begun:
                    await gathered.give_back()
            if is_begun:
                return gathered
            patience_s = min(_LONGEST_PATIENCE_S, 2 * patience_s)  # perhaps the broker is slow

    async def remove(self, chord: str) -> None:
        """See `asyncq.barrier.Barriers.remove`."""
        with contextlib.suppress(Exception):
            async with self._open_channel() as channel:
                await channel.queue_delete(self._names.chord_queue(chord))
        reraise_if_cancelled()

    async def _put(self, queue: str, member: Member, timeout_s: float) -> None:
        message = Message(
            type=member.kind,
            body=member.body,
            task_id=member.task_id,
            message_id=new_id(),
            headers={INDEX: member.index, TASK: member.task},
        )
        try:
            await self._publish(message, Queue(queue), timeout_s=timeout_s)
        except Unroutable:
            raise QueueGone(
                f"There is no queue {queue!r} (any more), at which the members of a chord arrive."
            ) from None

    async def _count(self, queue: str) -> int:
        """Return how many messages are there, as soon as nobody holds any: 0 where there is no such queue any more."""
        empty = waits = 0
        while empty < _COUNTS and waits < _WAITS:
            counted = await self._counting.count(queue)
            if counted is None:
                return 0
            if (gathering := self._gathering.get(queue)) is not None:
                await gathering.wait()
            elif counted.consumers:
                await asyncio.sleep(min(_LONGEST_WAIT_S, _SHORTEST_WAIT_S * 2**waits))
                waits += 1
            elif counted.ready:
                return counted.ready
            else:  # though we have put one: its leader is moving
                await asyncio.sleep(_COUNT_PAUSE_S)
                empty += 1
        if waits == _WAITS:
            raise BrokerUnavailable(f"The members in queue {queue!r} are held by a connection that does not go on.")
        raise BrokerUnavailable(f"Queue {queue!r} does not tell how many messages it holds: it has no leader, perhaps.")

    async def close(self) -> None:
        """Let go of what is kept between the questions."""
        await self._counting.close()


class RabbitGathered:
    """See `asyncq.barrier.Gathered`.

    Args:
        queue: The chord's.
        size: How many members there are.
        max_bytes: How much their values may be together.
        end: Called when it holds nothing any more.

    Attributes:
        was_held: See `asyncq.barrier.Gathered.was_held`.
    """

    def __init__(self, queue: str, size: int, max_bytes: int, end: Callable[[], None]) -> None:
        self._queue = queue
        self._size = size
        self._left_bytes = max_bytes
        self._end: Callable[[], None] | None = end
        self._stack = contextlib.AsyncExitStack()
        self._channel: AbstractChannel
        self._head: bytes | None = None
        self._members: dict[int, Member] = {}
        self._tags: dict[int, int] = {}
        self._tag = ""
        self._arrived = asyncio.Event()
        self._over = asyncio.Event()
        self._surplus: list[int] = []
        self._brought = 0
        self._heads: list[int] = []
        self.was_held = False

    @property
    def head(self) -> bytes:
        """See `asyncq.barrier.Gathered.head`."""
        return self._head or b""

    @property
    def members(self) -> Sequence[Member]:
        """See `asyncq.barrier.Gathered.members`."""
        return [self._members[index] for index in range(self._size)]

    @property
    def is_too_large(self) -> bool:
        """See `asyncq.barrier.Gathered.is_too_large`."""
        return self._left_bytes < 0

    @property
    def heads(self) -> int:
        """How often it was opened."""
        return len(self._heads)

    @property
    def is_complete(self) -> bool:
        """Whether every member is here."""
        return self._head is not None and len(self._members) == self._size

    async def begin(self, open_channel: OpenChannel, count: int, patience_s: float) -> bool:
        """Consume all that is there; return False where the queue is gone, or somebody else consumes it.

        Args:
            open_channel: Gives a fresh channel.
            count: How many messages there were: where that is more than one for each member, all are looked at.
            patience_s: How long the first message may take, in seconds.

        Raises:
            BrokerError: The connection was lost.
        """
        with _our_errors(f"reading queue {self._queue!r}"):
            try:
                channel = self._channel = await self._stack.enter_async_context(open_channel())
                channel.on_consumer_cancel_callbacks.add(lambda _: self._over.set())
                channel.closing.add_done_callback(lambda _: self._over.set())
                await channel.basic_qos(prefetch_count=min(_LARGEST_PREFETCH, self._size + 1 + _SPARE))
                answer = await channel.basic_consume(self._queue, self._on_message)
                self._tag = answer.consumer_tag or ""
                return await self._all_there(count, patience_s)
            except (amqp.ChannelNotFoundEntity, _Gone):
                return False

    async def _all_there(self, count: int, patience_s: float) -> bool:
        """Wait until it is complete, or until there is nothing more; return False where somebody else has it."""
        empty = 0
        while not self.is_complete or self._brought < count:
            if await self._woken(_IDLE_S if self._brought else patience_s):
                empty = 0
                continue
            if self._brought == 0:  # two began at once, and the other one is the active consumer
                return False
            answer = await self._channel.queue_declare(self._queue, passive=True)
            empty = 0 if answer.message_count else empty + 1
            if empty == 2:  # the first time, some may have been on their way to us
                break
        return True

    async def _woken(self, timeout_s: float) -> bool:
        """Wait for the next message, and return whether one came.

        Raises:
            _Gone: The queue was deleted.
            ConnectionError: The connection was lost.
        """
        arrived, over = (asyncio.ensure_future(event.wait()) for event in (self._arrived, self._over))
        try:
            await asyncio.wait({arrived, over}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            arrived.cancel()
            over.cancel()
        for tag in self._surplus:
            await self._channel.basic_ack(tag, wait=False)
        self._surplus.clear()
        if self._arrived.is_set():
            self._arrived.clear()
            return True
        if self._over.is_set():
            if self._channel.is_closed:
                raise ConnectionError("the connection was lost")
            raise _Gone
        return False

    async def _on_message(self, delivered: DeliveredMessage) -> None:
        frame = delivered.delivery
        assert isinstance(frame, commands.Basic.Deliver)  # noqa: S101 - a consumer gets nothing else
        tag = frame.delivery_tag or 0
        self._brought += 1
        self.was_held |= bool(frame.redelivered)
        message = message_from(delivered.header.properties, delivered.body)
        index = message.headers.get(INDEX)
        if message.type == HEAD:
            self._heads.append(tag)
            self._head = self._head or message.body
        elif isinstance(index, int) and 0 <= index < self._size:
            known = self._members.get(index)
            is_better = known is None or (message.type == ReplyType.SUCCEEDED and known.kind != ReplyType.SUCCEEDED)
            self._keep_tag(index, tag, is_better=is_better)
            if is_better:
                self._members[index] = self._member(index, message)
        else:  # nobody of asyncq has put it there
            self._surplus.append(tag)
        self._arrived.set()

    def _member(self, index: int, message: Message) -> Member:
        self._left_bytes -= len(message.body) + 1
        is_value = message.type == ReplyType.SUCCEEDED
        body = b"" if is_value and self.is_too_large else message.body
        return Member(index, message.type, body, message.task_id, str(message.headers.get(TASK, "")))

    def _keep_tag(self, index: int, tag: int, *, is_better: bool) -> None:
        """Hold one message for each member; what came twice is settled."""
        if not is_better:
            self._surplus.append(tag)
            return
        if (worse := self._tags.get(index)) is not None:
            self._surplus.append(worse)
        self._tags[index] = tag

    async def done(self) -> None:
        """See `asyncq.barrier.Gathered.done`. Where it cannot be deleted, it expires."""
        try:
            if self.heads > 1:
                await self._settle_all_but_one()
            else:
                # Else the broker cancels it, and that is logged. What follows is on its way: nobody needs the messages.
                await self._channel.basic_cancel(self._tag, nowait=True)
                await self._channel.queue_delete(self._queue)
        except (amqp.AMQPError, amqp.ChannelInvalidStateError, OSError, asyncio.CancelledError) as error:
            reraise_if_cancelled()
            log.warning("the queue of a chord could not be deleted, it expires later", queue=self._queue, cause=error)
        await self.give_back()

    async def _settle_all_but_one(self) -> None:
        """Leave a queue that can never be complete, having no head, and is not empty, as one is that has no leader."""
        self._surplus += self._heads
        self._surplus += [tag for index, tag in self._tags.items() if index > 0]
        await self._settle_surplus()

    async def _settle_surplus(self) -> None:
        for tag in self._surplus:
            await self._channel.basic_ack(tag, wait=False)
        self._surplus.clear()
        # The broker works on the commands of a channel in their order: after the answer all are settled.
        await self._channel.queue_declare(self._queue, passive=True)

    async def give_back_once_each(self) -> None:
        """Give back what is not complete, without the members that are there twice.

        Raises:
            BrokerError: The connection was lost: all that was held is back then.
        """
        try:
            with contextlib.suppress(amqp.ChannelNotFoundEntity), _our_errors(f"giving back to queue {self._queue!r}"):
                await self._settle_surplus()
        finally:
            await self.give_back()  # else the next one who comes by this client would wait for this one

    async def give_back(self) -> None:
        """See `asyncq.barrier.Gathered.give_back`."""
        end, self._end = self._end, None
        if end is not None:
            try:
                await undisturbed(self._stack.aclose())
            finally:
                end()


@contextlib.contextmanager
def _our_errors(doing: str) -> Iterator[None]:
    try:
        yield
    except amqp.ChannelNotFoundEntity:
        raise
    except asyncio.CancelledError as error:
        reraise_if_cancelled()
        raise operation_error(ConnectionError(*error.args), doing) from error
    except (amqp.AMQPError, amqp.ChannelInvalidStateError, OSError) as error:
        raise operation_error(error, doing) from error
