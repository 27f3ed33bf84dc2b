"""Delays: a ladder of queues with a time to live, which RabbitMQ itself walks down.

A delay is counted in units of 10 ms and written with 8 hexadecimal digits. There is a queue for each digit other
than 0 at each of the 8 levels; it holds a message for digit x 16^level units and then dead-letters it one level
down. The routing key carries the digits and the destination, and never changes on the way. 12.34 s for the queue
`mail` are 1,234 units, 0x4d2:

    publish ─▶ asyncq.delay.v1.enter        key 0.0.0.0.0.4.d.2.mail
                    │ 0.0.0.0.0.4.#
                    ▼
             [ level2.4 ] 10.24 s ─▶ level1 ─ *.*.*.*.*.*.d.# ─▶ [ level1.d ] 2.08 s ─┐
                                       └──── *.*.*.*.*.*.0.# ────────┐                │
                                             (digit 0: pass on)      ▼                │
                                                                   level0 ◀───────────┘
                                         ┌── *.*.*.*.*.*.*.2.# ──────┤
                                         ▼                           │ *.*.*.*.*.*.*.0.#
                                    [ level0.2 ] 0.02 s ─▶ deliver ◀─┘
                                                             │ *.*.*.*.*.*.*.*.mail
                                                             ▼
                                                          [ mail ]

In one queue all messages wait equally long, so none waits behind a longer one. A message is held by a replicated
queue at every moment, and handed down at least once: a broker's crash makes it late, or doubles it, but does not
lose it.

Invariant: a message is published only when its whole path stands, every queue and every binding of it, because a
missing lower queue blocks its parent for all others. And it is never early: the unit rounds up, and each hop
lasts a millisecond longer than it should, which is the resolution of the clock that expires messages.

What each failure does:

- The destination does not exist: `prepare` raises `Unroutable`, nothing is published.
- The destination is deleted while the message waits: the last exchange parks it in `asyncq.unroutable`.
- The entry queue was deleted, or the broker was set up anew, behind our back: nothing is bound for the key, and
  the entry exchange has no alternate exchange, so the broker returns the mandatory publish. The publisher calls
  `forget()`, then `prepare()` again, which declares everything, and publishes once more.
- A queue in the middle was deleted behind our back: we cannot see it. The message has been confirmed; it is parked
  in `asyncq.unroutable` when it comes to the hole, for every level has this alternate exchange. Without that the
  hole would block the queue above it.
- The broker is killed: messages under way may be late by up to about 3 minutes, when at-least-once dead-lettering
  sends again what was not confirmed; some come twice.
- The broker's clock is set back or forward: delays become longer or shorter by as much. No clock of ours counts.

Cost: declaring is lazy, because 120 queues are many for an app that needs ten; what stands is remembered, so a
delay that uses known queues costs no round trip. Two hops are cheaper than eight, so a delay that need not be
exact (a policy's backoff) is rounded up to two leading digits, by at most 1/16.

Priorities must be left behind before the ladder: with one, quorum queues of RabbitMQ 4 give messages out of order.
The same goes for `x-death` and `expiration` headers of a received message: RabbitMQ 3.10 silently drops a message
that, by its `x-death`, has been in a queue before, and `expiration` would shorten the delay.

Source: https://www.rabbitmq.com/docs/ttl, https://www.rabbitmq.com/docs/quorum-queues#dead-lettering
"""

from __future__ import annotations

import asyncio

import aiormq.exceptions as amqp

from asyncq.broker import Delay
from asyncq.errors import AccessRefused, NotSent, QueueGone, Unroutable
from asyncq.queue_names import check_queue_name
from asyncq.rabbitmq.common_errors import no_destination
from asyncq.rabbitmq.declarations import (
    BindingDeclaration,
    Declaration,
    ExchangeDeclaration,
    Plan,
    QueueDeclaration,
)
from asyncq.rabbitmq.delay_routing import entry_key, path_plan, rounded_units
from asyncq.rabbitmq.failures import operation_error, reraise_if_cancelled
from asyncq.rabbitmq.topology import Names, OpenChannel, apply, destination_binding
from asyncq.rabbitmq.undisturbed import undisturbed

__all__ = ["Ladder", "check_destination", "unbound_path"]


class Ladder:
    """The ladder as this process knows it: it declares what a delay needs, and remembers what stands.

    Use:

        generation = ladder.generation
        key = await ladder.prepare("mail", Delay(60))
        ... publish to `names.delay_enter` with `key`, mandatory; if the broker returns it:
        ladder.forget(generation)
        key = await ladder.prepare("mail", Delay(60))
        ... publish once more

    Args:
        names: The names of what asyncq declares.
        open_channel: Gives a fresh channel of the administration connection.
        may_declare: Otherwise a path must stand: its queues and exchanges are looked for, and nothing is declared.
    """

    def __init__(self, names: Names, open_channel: OpenChannel, *, may_declare: bool = True) -> None:
        self._names = names
        self._open_channel = open_channel
        self._may_declare = may_declare
        self._standing: set[Declaration] = set()
        self._generation = 0
        self._declaring = asyncio.Lock()

    @property
    def generation(self) -> int:
        """Goes up with each `forget`."""
        return self._generation

    async def prepare(self, queue: str, delay: Delay) -> str:
        """Make sure that the queue exists and that the whole path to it stands.

        Callers that come while somebody declares wait, and mostly find their own path standing after that.

        Args:
            queue: The destination.
            delay: How long the message shall wait. Less than 10 ms become 10 ms.

        Returns:
            The routing key for the entry exchange, `Names.delay_enter`.

        Raises:
            InvalidQueueName: A queue of this name cannot be on the ladder.
            InvalidOption: The delay is no number, or longer than the ladder.
            Unroutable: There is no such queue.
            NotSent: A part of the path is missing, and this process may not declare it.
            TopologyMismatch: A part of the ladder exists with other arguments.
            BrokerError: The broker could not be asked, or refused.
        """
        check_queue_name(queue)
        units = rounded_units(delay)
        destination = destination_binding(self._names, queue)
        path = path_plan(self._names, units)
        if destination not in self._standing or not self._standing.issuperset(path):
            async with self._declaring:
                # The same set throughout: what is declared across a `forget` is not believed later.
                standing = self._standing
                if destination not in standing:
                    await check_destination(self._open_channel, queue)
                missing = tuple(part for part in (*path, destination) if part not in standing)
                if self._may_declare:
                    await apply(self._open_channel, missing)
                else:
                    await check_path(self._open_channel, missing, queue)
                standing.update(missing)
        return entry_key(units, queue)

    def forget(self, generation: int | None = None) -> None:
        """Believe no longer that anything stands: after a returned publish, or a new connection.

        Args:
            generation: What `generation` was when the publish was prepared. Where somebody has forgotten since,
                nothing is done: of a hundred returned publishes one makes the ladder be declared again.
        """
        if generation is None or generation == self._generation:
            self._generation += 1
            self._standing = set()


async def check_destination(open_channel: OpenChannel, queue: str) -> None:
    """Return if the queue exists.

    Raises:
        Unroutable: It does not.
        BrokerError: The broker could not be asked.
    """
    try:
        await check_exists(open_channel, QueueDeclaration(queue))
    except QueueGone:
        raise no_destination(queue) from None


async def check_path(open_channel: OpenChannel, plan: Plan, queue: str) -> None:
    """Return if the queues and exchanges of a path exist. Bindings cannot be looked for.

    Raises:
        NotSent: One does not exist.
        BrokerError: The broker could not be asked.
    """
    for part in plan:
        if isinstance(part, BindingDeclaration):
            continue
        try:
            await check_exists(open_channel, part)
        except QueueGone:
            raise NotSent(_incomplete(queue, f"{part} of the delay ladder")) from None
        except AccessRefused:
            pass  # RabbitMQ 4.3 shows it only to who has a permission on it; a publisher needs none


def unbound_path(queue: str) -> Unroutable:
    """Return the error for a message that the ladder did not let in, where this process may not declare."""
    return Unroutable(_incomplete(queue, "the binding by which it would enter the delay ladder"))


def _incomplete(queue: str, missing: str) -> str:
    return (
        f"No delayed message was sent to queue {queue!r}: {missing} is missing, and this app declares nothing "
        "(declare=False, ASYNCQ_DECLARE). `asyncq topology apply MODULE:APP --delays` declares the whole ladder."
    )


async def check_exists(open_channel: OpenChannel, part: QueueDeclaration | ExchangeDeclaration) -> None:
    """Return if a queue or an exchange exists, whatever its arguments are.

    Raises:
        QueueGone: It does not.
        BrokerError: The broker could not be asked.
    """
    await undisturbed(_check_exists(open_channel, part))


async def _check_exists(open_channel: OpenChannel, part: QueueDeclaration | ExchangeDeclaration) -> None:
    doing = f"looking for {part}"
    try:
        async with open_channel() as channel:
            if isinstance(part, QueueDeclaration):
                await channel.queue_declare(part.name, passive=True)
            else:
                await channel.exchange_declare(part.name, passive=True)
    except amqp.ChannelNotFoundEntity as error:
        raise QueueGone(f"There is no {part}.") from error
    except asyncio.CancelledError as error:
        reraise_if_cancelled()
        raise operation_error(ConnectionError(*error.args), doing) from error
    except (amqp.AMQPError, amqp.ChannelInvalidStateError, OSError) as error:
        raise operation_error(error, doing) from error
