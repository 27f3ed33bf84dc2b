"""What was seen on a broker, as plain values.

Pure. None means "could not be read", never "is not there": what is absent is absent from the mappings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from asyncq.rabbitmq.declarations import BindingDeclaration

__all__ = ["Node", "Permissions", "SeenExchange", "SeenQueue", "Standing"]


@dataclass(frozen=True, slots=True)
class SeenQueue:
    """A queue that exists.

    Attributes:
        name: Its name.
        ready: Messages that wait in it: exact by AMQP, a few seconds old by the management API alone.
        consumers: How many there are.
        trouble: What the broker said where it would not show the queue: it exists, and cannot be used.
        type: `quorum`, `classic`, `stream`.
        durable: Whether it survives a restart of the broker.
        arguments: As it was declared.
        policy: What policies add.
    """

    name: str
    ready: int | None = None
    consumers: int | None = None
    trouble: str | None = None
    type: str | None = None
    durable: bool | None = None
    arguments: Mapping[str, Any] | None = None
    policy: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SeenExchange:
    """An exchange that exists."""

    name: str
    type: str | None = None
    durable: bool | None = None
    arguments: Mapping[str, Any] | None = None
    trouble: str | None = None


@dataclass(frozen=True, slots=True)
class Permissions:
    """What the user may do: three regular expressions over names."""

    configure: str
    write: str
    read: str


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the cluster."""

    name: str
    running: bool
    partitions: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Standing:
    """What was seen in one virtual host.

    Attributes:
        where: The broker's URL, without the password.
        user: Who looked.
        vhost: Where.
        product: `RabbitMQ`, as a rule.
        version: What the broker says about itself.
        queues: The queues that exist, of those that were asked for; all of them with `complete`.
        exchanges: The same for exchanges.
        bindings: All bindings.
        permissions: Of the user in this virtual host.
        nodes: Of the cluster.
        alarms: The alarms that are on, as (node, `memory` or `disk`).
        complete: Whether the management API has told about all queues, exchanges and bindings.
        unread: What could not be read and why, each a sentence.
    """

    where: str
    user: str
    vhost: str
    product: str
    version: str
    queues: Mapping[str, SeenQueue]
    exchanges: Mapping[str, SeenExchange]
    bindings: frozenset[BindingDeclaration] | None = None
    permissions: Permissions | None = None
    nodes: Sequence[Node] | None = None
    alarms: Sequence[tuple[str, str]] | None = None
    complete: bool = False
    unread: Sequence[str] = ()
