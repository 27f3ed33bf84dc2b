"""`RabbitMQ`: the seam of `asyncq.broker`, put together from the modules beside this one.

Four connections: publishing, consuming (opened with the first subscription or mailbox), journals (opened with the
first that is followed or appended to), and administration (only while something is declared or looked at).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Sequence

from aiormq.connection import Connection

from asyncq.broker import (
    Address,
    BrokerStatus,
    DeadLetters,
    Delay,
    Exchange,
    Identity,
    Publication,
    Queue,
    QueueSpec,
)
from asyncq.control import Roll, WorkerName
from asyncq.errors import (
    AccessRefused,
    AsyncQError,
    BrokerError,
    BrokerUnavailable,
    NotOpen,
    NotSent,
    PublishError,
    Unroutable,
)
from asyncq.loggers import get_logger
from asyncq.message import Message, copy_of
from asyncq.rabbitmq.administration import Administration
from asyncq.rabbitmq.barrier import RabbitBarriers
from asyncq.rabbitmq.connection import ConnectOptions, connection_name, parse_urls
from asyncq.rabbitmq.consumer import RabbitSubscription
from asyncq.rabbitmq.control import Answering, Asking, RabbitListener
from asyncq.rabbitmq.dead_letters import RabbitDeadLetters
from asyncq.rabbitmq.delay import Ladder, unbound_path
from asyncq.rabbitmq.journal import RabbitJournal
from asyncq.rabbitmq.journals import Journals
from asyncq.rabbitmq.leadership import RabbitCampaign
from asyncq.rabbitmq.link import Link
from asyncq.rabbitmq.properties import properties_from
from asyncq.rabbitmq.publisher import Publisher, Target
from asyncq.rabbitmq.replies import RabbitMailbox
from asyncq.rabbitmq.topology import Names, apply, base_plan, leader_queue_declaration, queue_plan
from asyncq.rabbitmq.undisturbed import undisturbed
from asyncq.settings import Settings

__all__ = ["RabbitMQ"]

log = get_logger("asyncq.rabbitmq")

_FIRST_PAUSE_S = 0.1


class RabbitMQ:
    """A RabbitMQ node or cluster; see `asyncq.broker.Broker`.

    Args:
        settings: Where it is and how to talk to it.

    Raises:
        ConfigurationError: The broker's URL cannot be read.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._options = ConnectOptions(
            parse_urls(settings.broker_url), settings.heartbeat_s, settings.connect_timeout_s
        )
        self._names = Names(settings.namespace)
        self._specs: dict[str, QueueSpec] = {}
        self._identity = Identity("", "")
        self._is_open = False

    # --- life

    async def open(self, identity: Identity) -> None:
        """See `asyncq.broker.Broker.open`."""
        self._identity = identity
        self._administration = Administration(connection_name(identity, "admin"), self._options)
        self._publishing = Link(connection_name(identity, "publish"), self._options, self._reopened)
        self._consuming = Link(connection_name(identity, "consume"), self._options, self._consuming_reopened)
        self._consuming_opened = False
        self._consuming_lock = asyncio.Lock()
        self._journals = Journals(
            self._names,
            Link(connection_name(identity, "journal"), self._options),
            self._administration.channel,
            self._settings,
        )
        self._publisher = Publisher(self._publishing, self._settings.max_message_bytes, self._declare_missing)
        self._ladder = Ladder(self._names, self._administration.channel, may_declare=self._settings.declare)
        self._barriers = RabbitBarriers(
            self._names,
            self.publish,
            self._administration.channel,
            max_bytes=self._settings.max_message_bytes,
            may_declare=self._settings.declare,
        )
        await self._publishing.open()
        try:
            await self._declare_all()
        except AccessRefused as error:
            log.warning("exchanges cannot be declared by this user, so they must exist", cause=str(error))
        except BaseException:
            await self.close()
            raise
        self._is_open = True

    async def close(self) -> None:
        """See `asyncq.broker.Broker.close`."""
        self._is_open = False
        await undisturbed(self._close())

    async def _close(self) -> None:
        await asyncio.gather(
            self._publishing.close(), self._consuming.close(), self._journals.close(), self._administration.close()
        )
        await self._barriers.close()  # last: a question that is under way has its end by now

    def status(self) -> BrokerStatus:
        """See `asyncq.broker.Broker.status`. The worse one of publishing and consuming counts.

        Without the journals' connection work goes on, so it is none of the worker's health.
        """
        if not self._is_open:
            return BrokerStatus("closed")
        publishing = self._publishing.status()
        consuming = self._consuming.status()
        if not self._consuming_opened or publishing.state != "ready":
            return publishing
        return consuming

    # --- declaring

    async def ensure(self, queues: Collection[QueueSpec]) -> None:
        """See `asyncq.broker.Broker.ensure`."""
        plans = [queue_plan(self._names, spec) for spec in queues]
        if not self._settings.declare:
            return  # the names are checked; what stands is for `asyncq topology verify` to say
        await apply(self._administration.channel, tuple(part for plan in plans for part in plan))
        self._specs.update({spec.name: spec for spec in queues})

    async def _declare_missing(self) -> None:
        if not self._settings.declare:
            raise BrokerError(
                "This app declares nothing (declare=False, ASYNCQ_DECLARE). `asyncq topology apply MODULE:APP` "
                "declares what it needs, and `asyncq topology verify MODULE:APP` says what is missing."
            )
        await self._declare_all()

    async def _declare_all(self) -> None:
        if not self._settings.declare:
            return
        plan = base_plan(self._names)
        for spec in self._specs.values():
            plan = (*plan, *queue_plan(self._names, spec))
        await apply(self._administration.channel, plan)

    async def _reopened(self, _: Connection) -> None:
        """Declare everything again: the broker may have come back empty, or be another one."""
        if self._is_open:
            self._ladder.forget()
            await self._declare_all()

    # --- publishing

    async def publish(self, message: Message, to: Address, *, delay: Delay | None = None, timeout_s: float) -> None:
        """See `asyncq.broker.Broker.publish`."""
        await self._publish_by(self._publisher, message, to, delay, timeout_s)

    async def _publish_by(
        self, publisher: Publisher, message: Message, to: Address, delay: Delay | None, timeout_s: float
    ) -> None:
        if delay is not None and not delay.seconds <= 0:  # what is no number is refused further on
            await self._publish_delayed(publisher, message, to, delay, timeout_s)
        else:
            await publisher.publish(message.body, properties_from(message), _target(to), timeout_s=timeout_s)

    async def publish_many(self, items: Sequence[Publication], *, timeout_s: float) -> list[PublishError | None]:
        """See `asyncq.broker.Broker.publish_many`."""

        async def one(item: Publication) -> PublishError | None:
            try:
                await self.publish(item.message, item.to, delay=item.delay, timeout_s=timeout_s)
            except PublishError as error:
                return error
            except AsyncQError as error:  # of this one alone: the others are under way
                refused = NotSent(f"A message for {item.to} was not sent: {error}")
                refused.__cause__ = error
                return refused
            return None

        return list(await asyncio.gather(*map(one, items)))

    async def _publish_delayed(
        self, publisher: Publisher, message: Message, to: Address, delay: Delay, timeout_s: float
    ) -> None:
        queue = to.queue
        properties = properties_from(message)
        properties.priority = None  # inside the ladder a priority would overtake, and so delay, others
        deadline = asyncio.get_running_loop().time() + timeout_s
        for last_try in (False, True):
            key, generation = await self._path_to(queue, delay, deadline, timeout_s)
            target = Target(self._names.delay_enter, key, f"delay queue on the way to queue {queue!r}")
            left_s = max(0.001, deadline - asyncio.get_running_loop().time())
            try:
                await publisher.publish(message.body, properties, target, timeout_s=left_s)
            except Unroutable:
                if last_try:
                    if not self._settings.declare:
                        raise unbound_path(queue) from None
                    raise
                self._ladder.forget(generation)  # a part of the ladder was deleted: it came back, so once more
            else:
                return

    async def _path_to(self, queue: str, delay: Delay, deadline: float, timeout_s: float) -> tuple[str, int]:
        """Return the routing key once the path stands, and the ladder's generation that it stands in.

        Where the connection is lost meanwhile, the next one goes on: nothing was sent yet.
        """
        lost, pause_s = "", _FIRST_PAUSE_S
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    generation = self._ladder.generation
                    try:
                        return await self._ladder.prepare(queue, delay), generation
                    except BrokerUnavailable as error:
                        lost = f": {error}"
                    await asyncio.sleep(pause_s)
                    pause_s *= 2
                    await self._publishing.ready()  # its supervisor knows how to wait for a broker
        except TimeoutError:
            raise NotSent(
                f"No delayed message was sent to queue {queue!r} within {timeout_s:g} s{lost or '.'}"
            ) from None
        except PublishError:
            raise
        except (BrokerError, NotOpen) as error:
            raise NotSent(f"No delayed message was sent to queue {queue!r}: {error}") from error

    async def _hand_back(self, queue: str, message: Message) -> None:
        await self.publish(copy_of(message, headers={}), Queue(queue), timeout_s=self._settings.publish_timeout_s)

    # --- consuming

    @contextlib.asynccontextmanager
    async def consume(self, queue: str, *, slots: int) -> AsyncIterator[RabbitSubscription]:
        """See `asyncq.broker.Broker.consume`."""
        await self._open_consuming()
        subscription = RabbitSubscription(
            self._consuming, queue, self._identity.app, slots, lambda message: self._hand_back(queue, message)
        )
        try:
            await subscription.open()
            yield subscription
        finally:
            await subscription.close()

    @contextlib.asynccontextmanager
    async def mailbox(self, *, reopens: bool = True) -> AsyncIterator[RabbitMailbox]:
        """See `asyncq.broker.Broker.mailbox`, and `RabbitMailbox` for `reopens`."""
        await self._open_consuming()
        mailbox = RabbitMailbox(
            self._consuming,
            lambda: self._names.reply_queue(self._identity.app),
            self._settings.reply_queue_ttl_s,
            reopens=reopens,
        )
        try:
            await mailbox.open()
            yield mailbox
        finally:
            await mailbox.close()

    def journal(self, name: str, *, keep_s: float) -> RabbitJournal:
        """See `asyncq.broker.Broker.journal`."""
        return self._journals.get(name, keep_s)

    def barriers(self) -> RabbitBarriers:
        """See `asyncq.broker.Broker.barriers`."""
        return self._barriers

    async def _open_consuming(self) -> Link:
        async with self._consuming_lock:
            if not self._consuming_opened:
                await self._consuming.open()
                self._consuming_opened = True
        return self._consuming

    async def _consuming_reopened(self, _: Connection) -> None:
        """Deliver nothing before what was cancelled in the outage is known."""
        if self._consuming_opened:
            self._journals.doubt()

    # --- asking workers

    async def ask(self, body: bytes, *, wanted: Callable[[WorkerName], bool], timeout_s: float) -> Roll:
        """See `asyncq.control.Control.ask`."""
        async with self.mailbox(reopens=False) as mailbox:
            asking = Asking(mailbox, self.publish, self._names, self._settings.publish_timeout_s)
            return await asking.ask(body, wanted, timeout_s)

    @contextlib.asynccontextmanager
    async def listen(self, name: WorkerName) -> AsyncIterator[RabbitListener]:
        """See `asyncq.control.Control.listen`."""
        answering = Answering(self.publish, self._settings.publish_timeout_s)
        listener = RabbitListener(await self._open_consuming(), self._names, name, answering)
        listener.open()
        try:
            yield listener
        finally:
            await undisturbed(listener.close())  # else a worker that ends stays on the roll while the app is open

    # --- leading

    @contextlib.asynccontextmanager
    async def campaign(self, name: str) -> AsyncIterator[RabbitCampaign]:
        """See `asyncq.leadership.Leadership.campaign`."""
        queue = leader_queue_declaration(self._names, name)

        async def prepare() -> None:
            if self._settings.declare:
                await apply(self._administration.channel, (queue,))

        campaign = RabbitCampaign(
            queue.name,
            connection_name(self._identity, "lead"),
            self._options,
            prepare,
            lambda held: Publisher(held, self._settings.max_message_bytes, self._declare_missing),
            self._publish_by,
        )
        try:
            yield campaign
        finally:
            await undisturbed(campaign.close())

    async def tell_leader(self, name: str, message: Message, *, timeout_s: float) -> None:
        """See `asyncq.leadership.Leadership.tell_leader`."""
        queue = leader_queue_declaration(self._names, name).name
        await self.publish(message, Queue(queue), timeout_s=timeout_s)

    def dead_letters(self, queue: str) -> DeadLetters:
        """See `asyncq.broker.Broker.dead_letters`."""
        return RabbitDeadLetters(self._names, queue, self.publish, self._administration.channel)


def _target(to: Address) -> Target:
    if isinstance(to, Exchange):
        return Target(to.name, to.key, str(to))
    return Target("", to.name, str(to))  # the default exchange: its keys are the queues' names
