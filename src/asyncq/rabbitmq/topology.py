"""What stands on the broker: names, queues, exchanges and bindings, as plain values; and their declaration.

Pure functions make plans; `apply` is the only thing here that talks to a broker.

                       key: queue              "mail"                    key: queue
    asyncq.tasks ──────────────────────▶ [ mail ] ──reject, limit──▶ asyncq.dead ──▶ [ mail.dead ]
      (direct)                              ▲                         (direct)
                                            │ *.*.*.*.*.*.*.*.mail      │ no queue for it
    asyncq.delay.v1.enter ─▶ the ladder ─▶ asyncq.delay.v1.deliver ─────┴──▶ asyncq.unroutable (fanout and queue)
      (topic; see delay.py)                  (topic)        no queue for it

Invariant: whatever asyncq publishes is either routed to a queue, or returned to its publisher, or, after its
confirm, parked in `asyncq.unroutable`. So the exchanges that a publisher uses (`tasks`, `delay.v1.enter`, and
`control`, which asks workers) have no alternate exchange, for with one the broker counts a message as routed and
`mandatory` tells nothing; and all others have one.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import aiormq.exceptions as amqp
from aiormq.abc import AbstractChannel

from asyncq.broker import QueueSpec
from asyncq.control import WorkerName
from asyncq.errors import BrokerError, BrokerUnavailable, InvalidQueueName
from asyncq.queue_names import DEAD_SUFFIX, check_queue_name
from asyncq.rabbitmq.declarations import (
    BindingDeclaration,
    Declaration,
    ExchangeDeclaration,
    Plan,
    QueueDeclaration,
    declare,
)
from asyncq.rabbitmq.failures import broker_text, reraise_if_cancelled
from asyncq.rabbitmq.refusals import refusal
from asyncq.rabbitmq.undisturbed import undisturbed

__all__ = [
    "DELAY_LEVELS",
    "UNLIMITED_DELIVERIES",
    "Names",
    "OpenChannel",
    "apply",
    "base_plan",
    "check_task_queue",
    "chord_queue_declaration",
    "dead_letter_plan",
    "delay_base_plan",
    "destination_binding",
    "journal_declaration",
    "leader_queue_declaration",
    "queue_plan",
    "reply_queue_declaration",
]

DELAY_LEVELS = 8
"""Digits of a delay on the ladder; delay.py says what they count."""

UNLIMITED_DELIVERIES = 2_000_000_000
"""As good as none, and alike on all versions: without a limit RabbitMQ 4 sets 20 for a quorum queue, and -1 means
"none" there but "drop at the first return" on 3.10."""

_SEGMENT_BYTES = 500_000

OpenChannel = Callable[[], AbstractAsyncContextManager[AbstractChannel]]
"""Gives a fresh channel. Each attempt needs a new one, because a refusal closes the channel that it came on."""

_PARKING_ARGUMENTS: Mapping[str, str | int] = {
    # Replicated, and never lost with one node.
    "x-queue-type": "quorum",
    # Each look (get, then give back: the management UI, `asyncq dead list`) counts as a delivery. With the default
    # limit of RabbitMQ 4 the 21st look would destroy what is kept here.
    "x-delivery-limit": UNLIMITED_DELIVERIES,
}


@dataclass(frozen=True, slots=True)
class Names:
    """The names of everything that asyncq declares.

    Args:
        namespace: Their common prefix. Apps in one virtual host that use the same one share exchanges.
    """

    namespace: str = "asyncq"

    @property
    def tasks_exchange(self) -> str:
        """Where tasks are published; the routing key is the queue's name."""
        return f"{self.namespace}.tasks"

    @property
    def dead_exchange(self) -> str:
        """Where the broker itself dead-letters; the routing key is the task queue's name."""
        return f"{self.namespace}.dead"

    @property
    def unroutable(self) -> str:
        """The last resort, an exchange and a queue of this name."""
        return f"{self.namespace}.unroutable"

    @property
    def delay_enter(self) -> str:
        """Where delayed messages are published."""
        return f"{self.namespace}.delay.v1.enter"

    @property
    def delay_deliver(self) -> str:
        """Where they leave the ladder."""
        return f"{self.namespace}.delay.v1.deliver"

    def delay_level(self, level: int) -> str:
        """Return the exchange in front of the ladder's queues of one level. Below level 0 comes the delivery."""
        return f"{self.namespace}.delay.v1.level{level}" if level >= 0 else self.delay_deliver

    def delay_queue(self, level: int, digit: int) -> str:
        """Return the queue that holds a message for one digit of its delay."""
        return f"{self.namespace}.delay.v1.level{level}.{digit:x}"

    def dead_queue(self, queue: str) -> str:
        """Return the dead-letter queue of a task queue."""
        return queue + DEAD_SUFFIX

    def reply_queue(self, app: str) -> str:
        """Return a new name for a reply queue of this process: another one with each call."""
        host = socket.gethostname()[:64]  # the whole name has 255 bytes at most
        return f"{self.namespace}.reply.{app}.{host}.{os.getpid()}.{os.urandom(4).hex()}"

    def leader_queue(self, name: str) -> str:
        """Return the queue whose active consumer leads under this name."""
        return f"{self.namespace}.{name}"

    def chord_queue(self, chord: str) -> str:
        """Return the queue at which the members of a chord arrive."""
        return f"{self.namespace}.chord.{chord}"

    def journal(self, name: str) -> str:
        """Return the stream of a journal."""
        return f"{self.namespace}.{name}"

    @property
    def control(self) -> str:
        """Where all workers are asked."""
        return f"{self.namespace}.control"

    def control_inbox(self, worker: WorkerName, opening: int) -> str:
        """Return the queue in which a worker hears questions, on the connection that is its n-th."""
        return f"{self.control}.inbox.{worker}.{opening}"

    def control_roll(self, worker: WorkerName, opening: int) -> str:
        """Return the queue by which the broker tells that it knows a worker; see control.py."""
        return f"{self.control}.roll.{worker}.{opening}"

    def worker_of_roll(self, queue: str) -> WorkerName | None:
        """Return the worker whose roll this queue is; None where it is no such queue."""
        prefix = f"{self.control}.roll."
        return WorkerName.read(queue[len(prefix) :].rpartition(".")[0]) if queue.startswith(prefix) else None

    def own(self, name: str) -> bool:
        """Tell whether a name is one of asyncq's own."""
        return name.startswith(f"{self.namespace}.")


def base_plan(names: Names) -> Plan:
    """Return what every queue needs: the exchanges, and the queue for what finds none."""
    return (
        *delay_base_plan(names),
        ExchangeDeclaration(names.dead_exchange, "direct", {"alternate-exchange": names.unroutable}),
        # No alternate exchange: with one, `mandatory` would tell the sender nothing. So it is with the next one.
        ExchangeDeclaration(names.control, "fanout"),
        ExchangeDeclaration(names.tasks_exchange, "direct"),
    )


def delay_base_plan(names: Names) -> Plan:
    """Return both ends of the delay ladder, and the queue for what finds no destination."""
    return (
        ExchangeDeclaration(names.unroutable, "fanout"),
        QueueDeclaration(names.unroutable, _PARKING_ARGUMENTS),
        BindingDeclaration(names.unroutable, "", names.unroutable),
        # A message whose destination was deleted while it waited: it was confirmed long ago, so it is kept.
        ExchangeDeclaration(names.delay_deliver, "topic", {"alternate-exchange": names.unroutable}),
        # No alternate exchange: publishers enter here, and `mandatory` must tell them the truth.
        ExchangeDeclaration(names.delay_enter, "topic"),
    )


def queue_plan(names: Names, spec: QueueSpec) -> Plan:
    """Return a task queue, its dead-letter queue and all its bindings. `base_plan` must stand before.

    Raises:
        InvalidQueueName: RabbitMQ or the ladder cannot carry the name, or it is one of asyncq's own.
    """
    check_task_queue(names, spec.name)
    arguments: Mapping[str, str | int] = {
        # Replicated; the only type that counts deliveries and dead-letters at least once.
        "x-queue-type": "quorum",
        "x-dead-letter-exchange": names.dead_exchange,
        # Without it a dead letter keeps its routing key, and a message that came by the delay ladder has the
        # digits of its delay there: it would find no dead-letter queue and block those behind it.
        "x-dead-letter-routing-key": spec.name,
        # At most once, the default, loses dead letters when a node dies or the target is not available.
        # Source: https://www.rabbitmq.com/docs/quorum-queues#dead-lettering
        "x-dead-letter-strategy": "at-least-once",
        # At-least-once dead-lettering demands it: the other overflow policy drops from the head.
        "x-overflow": "reject-publish",
        # The last line against a message that kills every worker which takes it. RabbitMQ 4 would take 20, older
        # ones none; workers settle such a message themselves, before this limit is reached.
        "x-delivery-limit": spec.delivery_limit,
    }
    return (
        *dead_letter_plan(names, spec.name),
        QueueDeclaration(spec.name, arguments),
        destination_binding(names, spec.name),
        # Last: tasks come in by it, and by now nothing that they may need is missing.
        BindingDeclaration(names.tasks_exchange, spec.name, spec.name),
    )


def dead_letter_plan(names: Names, queue: str) -> Plan:
    """Return the dead-letter queue of a task queue. `base_plan` must stand before."""
    dead = names.dead_queue(queue)
    return (QueueDeclaration(dead, _PARKING_ARGUMENTS), BindingDeclaration(names.dead_exchange, queue, dead))


def destination_binding(names: Names, queue: str) -> BindingDeclaration:
    """Return the ladder's last step: from its last exchange to the queue that a delayed message is for.

    The key has exactly one star for each digit. A leading `#` would give a message for the queue `a.mail` to the
    queue `mail` as well, because `#` takes any number of words.
    """
    return BindingDeclaration(names.delay_deliver, "*." * DELAY_LEVELS + queue, queue)


def reply_queue_declaration(name: str, ttl_s: float) -> QueueDeclaration:
    """Return a reply queue: durable, so that replies outlive a dropped connection, for as long as `ttl_s`."""
    return QueueDeclaration(
        name,
        {
            # Said, because a virtual host may have another default; a queue that lives as long as one process needs
            # no replicas.
            "x-queue-type": "classic",
            "x-expires": round(ttl_s * 1000),
        },
    )


def leader_queue_declaration(names: Names, name: str) -> QueueDeclaration:
    """Return the queue whose active consumer leads, and which holds the leader's states; see leadership.py.

    Raises:
        InvalidQueueName: RabbitMQ could not carry it.
    """
    check_queue_name(name)
    return QueueDeclaration(
        names.leader_queue(name),
        {
            "x-queue-type": "quorum",
            # A quorum queue takes two exclusive consumers, so this is what makes one of them the leader.
            "x-single-active-consumer": True,
            # Each leader that dies returns the states: RabbitMQ 4 would drop them with its 21st.
            "x-delivery-limit": UNLIMITED_DELIVERIES,
        },
    )


def chord_queue_declaration(names: Names, chord: str, keep_s: float) -> QueueDeclaration:
    """Return the queue at which the members of a chord arrive; see barrier.py. It stands for `keep_s` at least."""
    return QueueDeclaration(
        names.chord_queue(chord),
        {
            "x-queue-type": "quorum",
            # Several who arrive last see all members: one of them gets them.
            "x-single-active-consumer": True,
            # Chords that were left behind go away by themselves. Publishing does not renew it.
            "x-expires": round(keep_s * 1000),
            # Each worker that dies while it gathers returns them all: RabbitMQ 4 would drop them with the 21st.
            "x-delivery-limit": UNLIMITED_DELIVERIES,
        },
    )


def journal_declaration(name: str, keep_s: float) -> QueueDeclaration:
    """Return the stream of a journal, which keeps each entry for `keep_s` at least."""
    return QueueDeclaration(
        name,
        {
            "x-queue-type": "stream",
            "x-max-age": f"{math.ceil(keep_s)}s",
            # Only whole segments are dropped by age. The default of 500 MB would never be full, and all would be read
            # at each start of a worker.
            "x-stream-max-segment-size-bytes": _SEGMENT_BYTES,
        },
    )


def check_task_queue(names: Names, name: str) -> None:
    """Check the name of a task queue.

    Raises:
        InvalidQueueName: RabbitMQ or the ladder cannot carry it, or it is one of asyncq's own.
    """
    check_queue_name(name)
    if names.own(name):
        raise InvalidQueueName(
            f"Queue name {name!r} begins with {names.namespace + '.'!r}, which is kept for asyncq's own queues. "
            "Use another name, or another namespace (ASYNCQ_NAMESPACE)."
        )


async def apply(open_channel: OpenChannel, plan: Plan) -> None:
    """Declare what the plan names, in its order. What stands already is left as it is.

    One round trip to the broker, if it agrees with everything: it works on the commands of a channel in their
    order, so only the last one is waited for. A caller that is cancelled leaves at once; the declaring goes on.

    Raises:
        TopologyMismatch: Something exists with other arguments.
        AccessRefused: The user lacks a permission.
        BrokerUnavailable: The connection was lost.
    """
    if plan:
        await undisturbed(_apply(open_channel, plan))


async def _apply(open_channel: OpenChannel, plan: Plan) -> None:
    try:
        async with open_channel() as channel:
            await _declare_all(channel, plan)
            return
    except (amqp.AMQPChannelError, amqp.ChannelInvalidStateError):
        # Refused; by which declaration is not known, for the error may meet a later one. Declaring is idempotent, so
        # one by one tells. An operator who has mended it meanwhile is welcome.
        pass
    for declaration in plan:
        async with open_channel() as channel:
            await _declare(channel, declaration)


async def _declare_all(channel: AbstractChannel, plan: Plan) -> None:
    try:
        for declaration in plan[:-1]:
            await declare(channel, declaration, nowait=True)
        await declare(channel, plan[-1], nowait=False)
    except (amqp.AMQPChannelError, amqp.ChannelInvalidStateError):
        raise
    except (amqp.AMQPError, OSError, asyncio.CancelledError) as error:
        raise _lost(error, "declaring queues and exchanges") from error


async def _declare(channel: AbstractChannel, declaration: Declaration) -> None:
    try:
        await declare(channel, declaration, nowait=False)
    except amqp.AMQPChannelError as error:
        raise _refused(error, declaration) from error
    except (amqp.AMQPError, amqp.ChannelInvalidStateError, OSError, asyncio.CancelledError) as error:
        raise _lost(error, f"declaring {declaration}") from error


def _refused(error: BaseException, declaration: Declaration) -> BrokerError:
    match declaration:
        case ExchangeDeclaration(name):
            return refusal(error, "exchange", name, f"declaring {declaration}")
        case QueueDeclaration(name):
            return refusal(error, "queue", name, f"declaring {declaration}")
        case BindingDeclaration(destination=name):
            return refusal(error, "binding", name, f"declaring {declaration}")


def _lost(error: BaseException, doing: str) -> BrokerUnavailable:
    reraise_if_cancelled()  # a real cancellation is not ours to translate
    return BrokerUnavailable(f"The connection to the broker was lost while {doing}: {broker_text(error)}")
