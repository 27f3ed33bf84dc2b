"""What settlement publishes: copies, dead letters, replies. Each again and again while the lease lasts.

Invariant: a method that returns has published for good. The repeats of one publish are the same message with the
same ids. Where the lease is lost meanwhile, `LeaseLost` says that there is nothing to settle any more.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from asyncq.broker import (
    Broker,
    DeadLetterRecord,
    Delay,
    Delivery,
    Publication,
    Queue,
    QueueSpec,
    ReplyTo,
)
from asyncq.clock import Clock
from asyncq.errors import (
    BrokerError,
    BrokerRefused,
    LeaseLost,
    MessageTooLarge,
    PublishError,
    PublishUncertain,
    QueueGone,
    Refused,
    TopologyMismatch,
    Unroutable,
)
from asyncq.life import RUNS, runs_of
from asyncq.loggers import get_logger
from asyncq.message import UNKNOWN_SINCE, Message, copy_of, cut_text, new_id
from asyncq.outcome import Failure
from asyncq.tracing.switch import sending

if TYPE_CHECKING:
    from asyncq.tracing.spans import Tracing

__all__ = ["Publishing"]

log = get_logger("asyncq.worker")

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 10.0
_REFUSALS = 8  # about 13 seconds: after that it is the message, or a full queue, and no use in trying for ever

_FINAL = (MessageTooLarge, LeaseLost, QueueGone)

_UNCERTAIN_REPLIES = 4
"""After so many lost connections it is the reply's address that the broker cannot bear.

RabbitMQ 3.10 ends the connection of whoever publishes to a malformed `amq.rabbitmq.reply-to` address: publishes of
all others would be cut off with it, for as long as one tries.
"""

T = TypeVar("T")


class Publishing:
    """Publishes on behalf of deliveries.

    Args:
        broker: Where to.
        clock: For timestamps.
        tracing: Makes the spans of the tasks that are sent; None for none.
        timeout_s: How long one publish waits for its confirm.
        delivery_limit: Of the task queues, should one have to be declared again.
    """

    def __init__(
        self, broker: Broker, clock: Clock, tracing: Tracing | None = None, *, timeout_s: float, delivery_limit: int
    ) -> None:
        self._broker = broker
        self._clock = clock
        self._tracing = tracing
        self._timeout_s = timeout_s
        self._delivery_limit = delivery_limit

    async def copy(self, delivery: Delivery, copy: Message, delay: Delay | None) -> None:
        """Publish a copy of the delivery's message to its own queue.

        Raises:
            MessageTooLarge: However often one tries.
            Refused: Again and again.
            LeaseLost: See above.
        """
        address = Queue(delivery.queue)
        await self._persist(
            delivery, lambda: self._broker.publish(copy, address, delay=delay, timeout_s=self._timeout_s)
        )

    async def follower(self, delivery: Delivery, item: Publication) -> None:
        """Send a task that follows from the delivery's. Its queue is declared where there is none yet.

        Raises:
            MessageTooLarge: However often one tries.
            PublishError: Again and again the broker says no: the queue is full, or there is none and it cannot be had.
            LeaseLost: See above.
        """
        with sending(self._tracing, [item], renew=True) as (sent,):

            async def publish() -> None:
                await self._broker.publish(sent.message, sent.to, delay=sent.delay, timeout_s=self._timeout_s)

            await self._persist(delivery, publish, queues=[item.to.queue], is_no=_is_no)

    async def followers(self, delivery: Delivery, items: Sequence[Publication]) -> list[PublishError | None]:
        """Send tasks that follow from the delivery's, with their confirms pipelined. Missing queues are declared.

        What may be in its queue already when it is published again says so: whoever runs it may not be alone.

        Returns:
            For each the error that `follower` would raise, or None: the others were sent all the same.

        Raises:
            LeaseLost: See above.
        """
        errors: list[PublishError | None] = [None] * len(items)
        with sending(self._tracing, items, renew=True) as sent:
            left = dict(enumerate(sent))

            async def publish() -> None:
                for place, error in zip(
                    tuple(left),
                    await self._broker.publish_many(tuple(left.values()), timeout_s=self._timeout_s),
                    strict=True,
                ):
                    errors[place] = error
                    if error is None or isinstance(error, MessageTooLarge):
                        del left[place]
                    elif isinstance(error, PublishUncertain):
                        left[place] = _again(left[place])
                if unsent := [error for place in left if (error := errors[place]) is not None]:
                    raise min(unsent, key=_urgency)

            queues = sorted({item.to.queue for item in items})
            try:
                await self._persist(delivery, publish, queues=queues, is_no=_is_no)
            except PublishError as error:
                log.debug("some of what follows was not sent", of=len(items), unsent=len(left), cause=str(error))
        return errors

    async def persist(self, delivery: Delivery, operation: Callable[[], Awaitable[T]]) -> T:
        """Do something on the broker, again and again until it is done.

        Raises:
            QueueGone: At once.
            BrokerError: Again and again the broker says no.
            LeaseLost: See above.
        """
        return await self._persist(delivery, operation, is_no=_is_no)

    async def dead_letter(self, delivery: Delivery, record: DeadLetterRecord) -> None:
        """Park the delivery's message with its error. Raises what `copy` raises."""
        parked = copy_of(delivery.message, headers={}, drop=(UNKNOWN_SINCE,))
        letters = self._broker.dead_letters(delivery.queue)
        await self._persist(delivery, lambda: letters.put(parked, record, timeout_s=self._timeout_s))

    async def reply(self, delivery: Delivery, kind: str, body: bytes) -> None:
        """Answer the sender, if one waits. An address that takes no reply does not keep the task from its end.

        Args:
            delivery: The delivery that is answered.
            kind: A `ReplyType`.
            body: JSON.

        Raises:
            MessageTooLarge: However often one tries.
            LeaseLost: See above.
        """
        if delivery.message.reply_to is not None:
            await self.reply_to(delivery, delivery.message.reply_to, kind, body, task_id=delivery.message.task_id)

    async def reply_to(self, delivery: Delivery, reply_queue: str, kind: str, body: bytes, *, task_id: str) -> None:
        """Answer at a given address. As `reply`.

        Args:
            delivery: On whose behalf.
            reply_queue: Where to.
            kind: A `ReplyType`.
            body: JSON.
            task_id: Whose end is told.

        Raises:
            MessageTooLarge: However often one tries.
            LeaseLost: See above.
        """
        message = delivery.message
        answer = Message(
            type=kind,
            body=body,
            task_id=task_id,
            message_id=new_id(),
            timestamp_ms=self._clock.now_ms(),
            app_id=message.app_id,
        )
        address = ReplyTo(reply_queue)
        uncertain = 0

        async def publish() -> None:
            nonlocal uncertain
            try:
                await self._broker.publish(answer, address, timeout_s=self._timeout_s)
            except Unroutable:
                log.debug("nobody waits for this reply any more", task=message.type, task_id=message.task_id)
            except PublishUncertain as error:
                uncertain += 1
                if uncertain < _UNCERTAIN_REPLIES:
                    raise
                log.warning("the reply was given up", task=message.type, task_id=message.task_id, cause=str(error))

        try:
            await self._persist(delivery, publish)
        except Refused as error:  # a full reply queue of somebody else's must not keep the task from its end
            log.warning("the reply was refused", task=message.type, task_id=message.task_id, cause=str(error))

    async def failure_reply(self, delivery: Delivery, kind: str, failure: Failure) -> None:
        """Tell the sender, if one waits, what went wrong."""
        if delivery.message.reply_to is None:
            return
        try:
            await self.reply(delivery, kind, _error_body(failure))
        except MessageTooLarge:
            short = Failure(cut_text(failure.type, 200), cut_text(failure.message, 200))
            try:
                await self.reply(delivery, kind, _error_body(short))
            except MessageTooLarge as error:
                log.warning("the reply was not sent", task_id=delivery.message.task_id, cause=str(error))

    async def _persist(
        self,
        delivery: Delivery,
        operation: Callable[[], Awaitable[T]],
        *,
        queues: Sequence[str] = (),
        is_no: Callable[[BrokerError], bool] = lambda error: isinstance(error, Refused),
    ) -> T:
        """Do something on the broker, for as long as it takes.

        Args:
            delivery: On whose behalf.
            operation: Does it once.
            queues: What is declared again where nothing takes a message; without it the delivery's own.
            is_no: Whether an error is one of those that are raised when they come again and again.
        """
        try:
            return await operation()
        except _FINAL:
            raise
        except BrokerError as error:
            return await self._repeat(delivery, operation, error, queues or [delivery.queue], is_no)

    async def _repeat(
        self,
        delivery: Delivery,
        operation: Callable[[], Awaitable[T]],
        error: BrokerError,
        queues: Sequence[str],
        is_no: Callable[[BrokerError], bool],
    ) -> T:
        """Do it again, with growing pauses, until it is done, hopeless, or no longer ours to do."""
        lost = asyncio.ensure_future(delivery.lost())
        pause_s, refusals = _FIRST_PAUSE_S, 0
        try:
            while True:
                refusals += is_no(error)
                if refusals >= _REFUSALS:
                    raise error
                await self._pause(delivery, lost, pause_s, error)
                pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
                try:
                    if isinstance(error, Unroutable):
                        await self._declare_again(queues)
                    return await operation()
                except _FINAL:
                    raise
                except BrokerError as again:
                    error = again
        finally:
            lost.cancel()

    async def _pause(self, delivery: Delivery, lost: asyncio.Future[None], pause_s: float, error: BrokerError) -> None:
        message = delivery.message
        log.warning(
            "a publish of the settlement failed, trying again",
            task=message.type,
            task_id=message.task_id,
            pause_s=pause_s,
            cause=str(error),
        )
        await asyncio.wait({lost}, timeout=pause_s)  # by the machine's time: the broker recovers by no other
        if lost.done():
            raise LeaseLost(f"The delivery of task {message.task_id} is no longer ours.") from error

    async def _declare_again(self, queues: Sequence[str]) -> None:
        try:
            await self._broker.ensure([QueueSpec(queue, self._delivery_limit) for queue in queues])
        except BrokerError as error:
            log.warning("a queue could not be declared again", queues=", ".join(queues), cause=str(error))


def _is_no(error: BrokerError) -> bool:
    """Tell whether the broker has said no, and not merely nothing: also on the way, to what a delay needs."""
    return isinstance(error, (Refused, Unroutable, BrokerRefused, TopologyMismatch)) or isinstance(
        error.__cause__, (BrokerRefused, QueueGone, TopologyMismatch)
    )


def _again(item: Publication) -> Publication:
    message = item.message
    return replace(item, message=replace(message, headers={**message.headers, RUNS: max(1, runs_of(message))}))


def _urgency(error: PublishError) -> int:
    """Return the place of an error among those of many messages: nobody gives up while some were not refused."""
    return 1 + (not isinstance(error, Unroutable)) if _is_no(error) else 0


def _error_body(failure: Failure) -> bytes:
    record = {"type": failure.type, "message": failure.message, "traceback": failure.traceback}
    return json.dumps(record, ensure_ascii=False).encode()
