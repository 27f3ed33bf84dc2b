"""Queues, exchanges and bindings as plain values, and how one is declared.

Everything is durable and shared. Two declarations of one name count as equal only with equal arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from aiormq.abc import AbstractChannel

__all__ = ["BindingDeclaration", "Declaration", "ExchangeDeclaration", "Plan", "QueueDeclaration", "declare"]


@dataclass(frozen=True, slots=True)
class ExchangeDeclaration:
    """A durable exchange."""

    name: str
    type: Literal["direct", "topic", "fanout"]
    arguments: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        return f"exchange {self.name!r}"


@dataclass(frozen=True, slots=True)
class QueueDeclaration:
    """A durable queue."""

    name: str
    arguments: Mapping[str, str | int] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        return f"queue {self.name!r}"


@dataclass(frozen=True, slots=True)
class BindingDeclaration:
    """A binding of a queue, or of another exchange, to an exchange."""

    exchange: str
    key: str
    destination: str
    kind: Literal["queue", "exchange"] = "queue"

    def __str__(self) -> str:
        return f"the binding of {self.kind} {self.destination!r} to exchange {self.exchange!r} with key {self.key!r}"


Declaration = ExchangeDeclaration | QueueDeclaration | BindingDeclaration
Plan = tuple[Declaration, ...]
"""Declarations, in the order in which they must come to be."""


async def declare(channel: AbstractChannel, declaration: Declaration, *, nowait: Literal[True, False]) -> None:
    """Declare one thing. With `nowait` the broker answers a refusal only, by closing the channel."""
    match declaration:
        case ExchangeDeclaration(name, kind, arguments):
            await channel.exchange_declare(
                name, exchange_type=kind, durable=True, arguments=dict[str, Any](arguments), nowait=nowait
            )
        case QueueDeclaration(name, arguments):
            await channel.queue_declare(name, durable=True, arguments=dict[str, Any](arguments), nowait=nowait)
        case BindingDeclaration(exchange, key, destination, "queue"):
            await channel.queue_bind(destination, exchange, key, nowait=nowait)
        case BindingDeclaration(exchange, key, destination):
            await channel.exchange_bind(destination, exchange, key, nowait=nowait)
