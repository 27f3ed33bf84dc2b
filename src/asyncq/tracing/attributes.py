"""What spans are called and say: OpenTelemetry's conventions for messaging, and asyncq's own attributes.

Pure. The conventions are those of https://opentelemetry.io/docs/specs/semconv/messaging/rabbitmq/.

Invariant: no argument and no result of a task is in a span.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from asyncq.broker import Exchange, Publication, Queue
from asyncq.message import Message
from asyncq.outcome import (
    Cancelled,
    Deferred,
    Drained,
    Expired,
    Failed,
    Failure,
    LostLease,
    Outcome,
    Postponed,
    Rejected,
    Repeated,
    RetryLater,
    Snoozed,
    Staged,
    Succeeded,
    Throttled,
)
from asyncq.settings import Settings

__all__ = [
    "Attributes",
    "attempt_attributes",
    "batch_attributes",
    "failure_of",
    "outcome_attributes",
    "send_attributes",
]
__all__ += ["server_attributes"]

Attributes = dict[str, str | int | float | bool]


def server_attributes(settings: Settings) -> Attributes:
    """Return what all spans of an app say of the broker.

    Of several brokers in turn nobody knows here which one has answered, so none is named.
    """
    url = settings.broker_url
    if url.startswith("memory:"):
        return {"messaging.system": "memory"}
    attributes: Attributes = {"messaging.system": "rabbitmq"}
    if "," not in url:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            return attributes
        if host:
            attributes["server.address"] = host
            attributes["server.port"] = port or (5671 if parts.scheme == "amqps" else 5672)
    return attributes


def send_attributes(publication: Publication, operation: str) -> Attributes:
    """Return what the span of one message's sending says.

    Args:
        publication: What is sent.
        operation: `send`, or `create` for one of many.
    """
    attributes = _message_attributes(publication.message, operation)
    match publication.to:
        case Exchange(exchange, key):
            attributes["messaging.destination.name"] = f"{exchange}:{key}"
            attributes["messaging.rabbitmq.destination.routing_key"] = key
        case Queue(name):
            attributes["messaging.destination.name"] = name
        case _:
            pass
    if publication.delay is not None:
        attributes["asyncq.delay_s"] = publication.delay.seconds
    return attributes


def batch_attributes(count: int) -> Attributes:
    """Return what the span of many messages' sending says."""
    return {
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.batch.message_count": count,
    }


def attempt_attributes(message: Message, queue: str, attempt: int) -> Attributes:
    """Return what the span of an attempt says from its beginning."""
    return {
        **_message_attributes(message, "process"),
        "messaging.destination.name": queue,
        "asyncq.attempt": attempt,
    }


def _message_attributes(message: Message, operation: str) -> Attributes:
    attributes: Attributes = {
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.message.conversation_id": message.task_id,
        "asyncq.task": message.type,
    }
    if message.message_id is not None:
        attributes["messaging.message.id"] = message.message_id
    return attributes


_OUTCOMES: Mapping[type[Outcome], str] = {
    Succeeded: "succeeded",
    RetryLater: "retry",
    Failed: "failed",
    Rejected: "rejected",
    Snoozed: "snoozed",
    Postponed: "postponed",
    Deferred: "deferred",
    Staged: "staged",
    Throttled: "throttled",
    Cancelled: "cancelled",
    Expired: "expired",
    Drained: "drained",
    LostLease: "lease_lost",
    Repeated: "repeated",
}


def outcome_attributes(outcome: Outcome) -> Attributes:
    """Return what the span of an attempt says at its end."""
    attributes: Attributes = {"asyncq.outcome": _OUTCOMES[type(outcome)]}
    match outcome:
        case RetryLater(delay_s=delay_s) | Snoozed(delay_s) | Postponed(delay_s) | Deferred(delay_s=delay_s):
            attributes["asyncq.delay_s"] = delay_s
        case Failed(reason=reason) | Rejected(reason=reason):
            attributes["asyncq.reason"] = reason
        case _:
            pass
    return attributes


def short(type_name: str) -> str:
    """Return the name of an exception's type as traces write it: those of Python itself without their module."""
    return type_name.removeprefix("builtins.")


def failure_of(outcome: Outcome) -> Failure | None:
    """Return what went wrong in an attempt; None where nothing did."""
    return outcome.failure if isinstance(outcome, (RetryLater, Failed, Rejected, Expired)) else None
