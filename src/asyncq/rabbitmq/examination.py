"""Compare what an app needs with what stands on the broker.

Pure. Invariant: a difference is reported where declaring the plan would be refused, or where a message would go
another way than planned; what RabbitMQ itself takes for equal is no difference.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from asyncq.rabbitmq.declarations import BindingDeclaration, Declaration, ExchangeDeclaration, Plan, QueueDeclaration
from asyncq.rabbitmq.findings import CURRENT, release_of
from asyncq.rabbitmq.lost_streams import looks_lost, mending_command
from asyncq.rabbitmq.refusals import remedy
from asyncq.rabbitmq.standing import Permissions, SeenExchange, SeenQueue, Standing
from asyncq.rabbitmq.topology import UNLIMITED_DELIVERIES

__all__ = ["MISSING", "Difference", "Grant", "compare", "in_words", "missing_grants"]

MISSING = "`asyncq topology apply MODULE:APP` declares it, and so does the start of an app that may."

# Arguments of a queue that RabbitMQ compares when it is declared again; others it ignores. Tried on 3.10 and 4.3; of
# `x-consumer-timeout` 3.10 knows nothing.
_COMPARED = frozenset(
    {
        "x-consumer-timeout",
        "x-dead-letter-exchange",
        "x-dead-letter-routing-key",
        "x-dead-letter-strategy",
        "x-delivery-limit",
        "x-expires",
        "x-max-in-memory-bytes",
        "x-max-in-memory-length",
        "x-max-length",
        "x-max-length-bytes",
        "x-max-priority",
        "x-message-ttl",
        "x-overflow",
        "x-queue-leader-locator",
        "x-queue-mode",
        "x-queue-type",
        "x-quorum-initial-group-size",
        "x-single-active-consumer",
    }
)


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as the plan wants it.

    Attributes:
        kind: `queue`, `exchange` or `binding`.
        name: Of the queue or the exchange; a binding in words.
        state: `missing`; `different`; or `unusable`: it is there, and the broker will not show it to us.
        argument: What is different.
        wanted: What the plan says; None for "not set".
        found: What the broker says.
        remedy: What to do.
    """

    kind: Literal["queue", "exchange", "binding"]
    name: str
    state: Literal["missing", "different", "unusable"]
    argument: str | None = None
    wanted: Any = None
    found: Any = None
    remedy: str = MISSING

    def __str__(self) -> str:
        subject = self.name if self.kind == "binding" else f"{self.kind} {self.name!r}"
        match self.state:
            case "missing":
                return f"{subject} is missing"
            case "unusable":
                return f"{subject} cannot be used: {self.found}"
            case "different":
                return f"{subject}: {self.argument} is {in_words(self.found)}, and asyncq needs {in_words(self.wanted)}"


def in_words(value: Any) -> str:
    """Return the value of an argument for people."""
    return "not set" if value is None else repr(value)


def compare(plan: Iterable[Declaration], standing: Standing) -> list[Difference]:
    """Return what of the plan is missing or different, in the plan's order."""
    found: list[Difference] = []
    for part in plan:
        match part:
            case QueueDeclaration(name):
                found += _queue(part, standing.queues.get(name), standing)
            case ExchangeDeclaration(name):
                found += _exchange(part, standing.exchanges.get(name), standing.vhost)
            case BindingDeclaration():
                if standing.bindings is not None and part not in standing.bindings:
                    found.append(Difference("binding", str(part), "missing"))
    return found


def _queue(wanted: QueueDeclaration, seen: SeenQueue | None, standing: Standing) -> Iterator[Difference]:
    if seen is None:
        yield Difference("queue", wanted.name, "missing")
        return
    if seen.trouble is not None:
        is_lost = wanted.arguments.get("x-queue-type") == "stream" and looks_lost(seen.trouble)
        how = _mending(wanted.name, standing) if is_lost else _USE
        yield Difference("queue", wanted.name, "unusable", found=seen.trouble, remedy=how)
    if seen.arguments is None:
        return
    theirs = {**seen.arguments, **({"x-queue-type": seen.type} if seen.type else {})}
    ours: Mapping[str, Any] = wanted.arguments
    pairs = [(name, ours.get(name), theirs.get(name)) for name in (*ours, *sorted(theirs.keys() - ours.keys()))]
    pairs = [("durable", True, seen.durable), *(pair for pair in pairs if pair[0] in _COMPARED)]
    for argument, value, found in pairs:
        if found != value:
            how = _queue_remedy(wanted, argument, found, standing.vhost)
            yield Difference("queue", wanted.name, "different", argument, value, found, how)


def _mending(stream: str, standing: Standing) -> str:
    command = mending_command(stream, standing.vhost, release_of(standing.version) or CURRENT)
    return (
        "If that goes on although all nodes run, the broker has lost the stream: workers do not hear of cancellations "
        f"and pauses, and those that start wait for it. `{command}` on one of its nodes deletes it, with what was "
        "cancelled and paused; workers declare it again."
    )


def _queue_remedy(wanted: QueueDeclaration, argument: str, found: Any, vhost: str) -> str:
    keeps = wanted.arguments.get("x-delivery-limit") == UNLIMITED_DELIVERIES
    # No setting is for the limit of a queue that only keeps, so it is not what the remedy shall be about.
    said = remedy("queue", wanted.name, vhost, "" if keeps else argument, in_words(found))
    if keeps and argument == "x-delivery-limit":
        said += " Until then each look at its messages counts as a delivery, and too many of them destroy a message."
    if argument == "x-consumer-timeout":
        said += " To allow longer tasks give it a policy with `consumer-timeout` in place of the argument."
    return said


def _exchange(wanted: ExchangeDeclaration, seen: SeenExchange | None, vhost: str) -> Iterator[Difference]:
    if seen is None:
        yield Difference("exchange", wanted.name, "missing")
        return
    if seen.trouble is not None:
        yield Difference("exchange", wanted.name, "unusable", found=seen.trouble, remedy=_USE)
    if seen.arguments is None:
        return
    # The alternate exchange is the only argument of an exchange that RabbitMQ compares.
    alternate = "alternate-exchange"
    for argument, value, found in (
        ("type", wanted.type, seen.type),
        ("durable", True, seen.durable),
        (alternate, wanted.arguments.get(alternate), seen.arguments.get(alternate)),
    ):
        if found != value:
            said = remedy("exchange", wanted.name, vhost, argument, in_words(found))
            yield Difference("exchange", wanted.name, "different", argument, value, found, said)


_USE = (
    "See what the broker says of it (management UI, the broker's log); give the user a permission on it if that lacks."
)


@dataclass(frozen=True, slots=True)
class Grant:
    """A permission that is needed on something."""

    permission: Literal["configure", "write", "read"]
    name: str


def missing_grants(plan: Plan, permissions: Permissions) -> list[Grant]:
    """Return what the plan needs and the user has not: to declare it, to publish to it, to consume from it.

    Source: https://www.rabbitmq.com/docs/access-control#authorisation
    """
    patterns = {"configure": permissions.configure, "write": permissions.write, "read": permissions.read}
    wanted = dict.fromkeys(_grants(plan))
    return [grant for grant in wanted if not _matches(patterns[grant.permission], grant.name)]


def _matches(pattern: str, name: str) -> bool:
    try:
        # RabbitMQ takes an empty pattern for one that matches nothing but the empty name.
        return re.search(pattern or "^$", name) is not None
    except re.error:
        return True  # Erlang reads some that Python does not; no alarm for that


def _grants(plan: Plan) -> Iterable[Grant]:
    yield Grant("write", "amq.default")
    for part in plan:
        match part:
            case QueueDeclaration(name, arguments):
                yield Grant("configure", name)
                yield Grant("read", name)
                if "x-dead-letter-exchange" in arguments:
                    yield Grant("write", str(arguments["x-dead-letter-exchange"]))
            case ExchangeDeclaration(name, _, arguments):
                yield Grant("configure", name)
                yield Grant("write", name)
                if "alternate-exchange" in arguments:
                    yield Grant("read", name)
                    yield Grant("write", arguments["alternate-exchange"])
            case BindingDeclaration(exchange, _, destination):
                yield Grant("write", destination)
                yield Grant("read", exchange)
