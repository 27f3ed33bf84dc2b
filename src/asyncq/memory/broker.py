"""`MemoryBroker`: the seam of `asyncq.broker` in this process, for tests and for trying things out.

The same outcomes, checks and errors as with RabbitMQ, and the same wire contract: messages are kept as the bytes of
their AMQP properties and body, written and read by the RabbitMQ adapter's own functions.

Invariant: a publish that returns has put its message into a queue. Nothing here waits for anything outside this
process.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Collection, Sequence

from asyncq.broker import Address, BrokerStatus, DeadLetters, Delay, Exchange, Identity, Publication, Queue, QueueSpec
from asyncq.clock import Timer
from asyncq.control import Roll, WorkerName
from asyncq.errors import AsyncQError, NotOpen, NotSent, PublishError
from asyncq.loggers import get_logger
from asyncq.memory.barrier import MemoryBarriers, MemoryGathered
from asyncq.memory.consumer import MemorySubscription
from asyncq.memory.control import MemoryAsking, MemoryListener
from asyncq.memory.dead_letters import MemoryDeadLetters
from asyncq.memory.journal import MemoryFollowing, MemoryJournal
from asyncq.memory.leadership import MemoryCampaign
from asyncq.memory.mailbox import MemoryMailbox
from asyncq.memory.node import MemoryNode
from asyncq.message import Message, copy_of
from asyncq.queue_names import check_queue_name
from asyncq.rabbitmq.common_errors import no_destination, too_large, unroutable, unwritable
from asyncq.rabbitmq.delay_routing import UNIT_MS, rounded_units
from asyncq.rabbitmq.topology import Names, check_task_queue, leader_queue_declaration
from asyncq.settings import Settings

__all__ = ["MemoryBroker"]

log = get_logger("asyncq.memory")


class MemoryBroker:
    """A client of a node in memory; see `asyncq.broker.Broker`.

    Args:
        settings: Names and limits.
        node: Where the queues are.
    """

    def __init__(self, settings: Settings, node: MemoryNode) -> None:
        self._settings = settings
        self._node = node
        self._names = Names(settings.namespace)
        self._identity = Identity("", "")
        self.is_open = False
        self._loop: asyncio.AbstractEventLoop
        self._timer: Timer | None = None
        self._subscriptions: set[MemorySubscription] = set()
        self._campaigns: set[MemoryCampaign] = set()
        self.followings: set[MemoryFollowing] = set()
        self._gathered: set[MemoryGathered] = set()
        self._askings: set[MemoryAsking] = set()

    # --- life

    async def open(self, identity: Identity) -> None:
        """See `asyncq.broker.Broker.open`."""
        if not self._node.announced:
            self._node.announced = True
            log.warning(
                "the broker is in memory: for tests and for trying things out; no other process sees it, and what is "
                "queued ends with this process",
                node=self._node.name,
            )
        self._identity = identity
        self._loop = asyncio.get_running_loop()
        self._node.declare(self._names, ())
        self.is_open = True
        self._node.attach(self)

    async def close(self) -> None:
        """See `asyncq.broker.Broker.close`."""
        self.is_open = False
        self._node.detach(self)
        self._disarm()
        for subscription in tuple(self._subscriptions):
            subscription.close()
        self._lose_what_is_under_way()
        for following in tuple(self.followings):
            following.end(NotOpen("The connection to the broker is closed."))

    def status(self) -> BrokerStatus:
        """See `asyncq.broker.Broker.status`."""
        return BrokerStatus("ready" if self.is_open else "closed")

    def lose_connection(self) -> None:
        """Do what a lost connection does: all leases end, and consuming goes on."""
        for subscription in tuple(self._subscriptions):
            subscription.lose_leases()
        self._lose_what_is_under_way()
        for following in tuple(self.followings):
            following.begin_again()

    def _lose_what_is_under_way(self) -> None:
        for campaign in tuple(self._campaigns):
            campaign.lose_connection()
        for gathered in tuple(self._gathered):
            gathered.lose()
        for asking in tuple(self._askings):
            asking.lose()

    async def ensure(self, queues: Collection[QueueSpec]) -> None:
        """See `asyncq.broker.Broker.ensure`."""
        self._check_open()
        for spec in queues:
            check_task_queue(self._names, spec.name)
        self._node.declare(self._names, queues)

    # --- publishing

    async def publish(self, message: Message, to: Address, *, delay: Delay | None = None, timeout_s: float) -> None:
        """See `asyncq.broker.Broker.publish`."""
        del timeout_s  # nothing here takes time
        if not self.is_open:
            raise NotSent("Nothing was sent: the connection to the broker is closed.")
        if delay is not None and not delay.seconds <= 0:  # what is no number is refused further on
            self._delay(message, to, delay)
        else:
            self._put(message, to)
        if isinstance(to, Exchange):
            self._node.told(Publication(message, to, delay))
        await asyncio.sleep(0)  # as any publish does, it lets others run

    async def publish_many(self, items: Sequence[Publication], *, timeout_s: float) -> list[PublishError | None]:
        """See `asyncq.broker.Broker.publish_many`."""
        errors: list[PublishError | None] = []
        for item in items:
            try:
                await self.publish(item.message, item.to, delay=item.delay, timeout_s=timeout_s)
            except PublishError as error:
                errors.append(error)
            except AsyncQError as error:  # of this one alone
                refused = NotSent(f"A message for {item.to} was not sent: {error}")
                refused.__cause__ = error
                errors.append(refused)
            else:
                errors.append(None)
        return errors

    def _put(self, message: Message, to: Address) -> None:
        self._check_size(message, to)
        routed = not isinstance(to, Exchange) or self._node.is_bound(to.name, to.key)
        try:
            taken = routed and self._node.put(to.queue, message)
        except Exception as error:
            raise unwritable(error, str(to)) from error
        if not taken:
            raise unroutable(str(to))

    def _delay(self, message: Message, to: Address, delay: Delay) -> None:
        check_queue_name(to.queue)
        seconds = rounded_units(delay) * UNIT_MS / 1000
        if to.queue not in self._node.queues:
            raise no_destination(to.queue)
        self._check_size(message, to)
        try:
            # The ladder carries no priority.
            self._node.delay(to.queue, dataclasses.replace(message, priority=None), seconds)
        except Exception as error:
            raise unwritable(error, str(to)) from error

    def _check_size(self, message: Message, to: Address) -> None:
        limit = self._settings.max_message_bytes
        if len(message.body) > limit:
            raise too_large(len(message.body), limit, str(to))

    async def _hand_back(self, queue: str, message: Message) -> None:
        await self.publish(copy_of(message, headers={}), Queue(queue), timeout_s=self._settings.publish_timeout_s)

    # --- delays that are due

    def rearm(self) -> None:
        """See `asyncq.memory.node.Alarm.rearm`."""
        self._node.call(self._loop, self._arm)

    def _arm(self) -> None:
        self._disarm()
        due_s = self._node.next_due_s
        if due_s is not None and self.is_open:
            self._timer = self._node.clock.call_later(due_s, self._ring)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        self._node.release_due(self._names)
        self._arm()

    # --- consuming

    @contextlib.asynccontextmanager
    async def consume(self, queue: str, *, slots: int) -> AsyncIterator[MemorySubscription]:
        """See `asyncq.broker.Broker.consume`."""
        self._check_open()
        subscription = MemorySubscription(self._node, queue, slots, lambda message: self._hand_back(queue, message))
        subscription.open()
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            subscription.close()

    @contextlib.asynccontextmanager
    async def mailbox(self) -> AsyncIterator[MemoryMailbox]:
        """See `asyncq.broker.Broker.mailbox`."""
        self._check_open()
        mailbox = MemoryMailbox(self._node, self._names, self._identity.app)
        try:
            yield mailbox
        finally:
            mailbox.close()

    # --- leading

    @contextlib.asynccontextmanager
    async def campaign(self, name: str) -> AsyncIterator[MemoryCampaign]:
        """See `asyncq.leadership.Leadership.campaign`."""
        self._check_open()
        queue = leader_queue_declaration(self._names, name).name

        async def publish(message: Message, to: Address, delay: Delay | None) -> None:
            await self.publish(message, to, delay=delay, timeout_s=0)

        campaign = MemoryCampaign(self._node, self._names, queue, publish)
        self._campaigns.add(campaign)
        try:
            yield campaign
        finally:
            self._campaigns.discard(campaign)
            await campaign.close()

    async def tell_leader(self, name: str, message: Message, *, timeout_s: float) -> None:
        """See `asyncq.leadership.Leadership.tell_leader`."""
        queue = leader_queue_declaration(self._names, name).name
        await self.publish(message, Queue(queue), timeout_s=timeout_s)

    # --- asking workers

    async def ask(self, body: bytes, *, wanted: Callable[[WorkerName], bool], timeout_s: float) -> Roll:
        """See `asyncq.control.Control.ask`."""
        if not self.is_open:
            raise NotSent("Nothing was asked: the connection to the broker is closed.")
        asking = MemoryAsking(self._node)
        self._askings.add(asking)
        try:
            return await asking.ask(body, wanted, timeout_s)
        finally:
            self._askings.discard(asking)

    @contextlib.asynccontextmanager
    async def listen(self, name: WorkerName) -> AsyncIterator[MemoryListener]:
        """See `asyncq.control.Control.listen`."""
        self._check_open()
        listener = MemoryListener(self._node, name)
        end = self._node.add_listener(listener)
        try:
            yield listener
        finally:
            end()
            listener.close()

    # --- what is kept

    def dead_letters(self, queue: str) -> DeadLetters:
        """See `asyncq.broker.Broker.dead_letters`."""
        return MemoryDeadLetters(self._node, self._names, queue, self.publish)

    def journal(self, name: str, *, keep_s: float) -> MemoryJournal:
        """See `asyncq.broker.Broker.journal`."""
        return MemoryJournal(self._node, self._names.journal(name), keep_s, self._settings.max_message_bytes, self)

    def barriers(self) -> MemoryBarriers:
        """See `asyncq.broker.Broker.barriers`."""
        return MemoryBarriers(self._node, self._names, self._settings.max_message_bytes, self._gathered)

    def _check_open(self) -> None:
        if not self.is_open:
            raise NotOpen("The connection to the broker is closed.")
