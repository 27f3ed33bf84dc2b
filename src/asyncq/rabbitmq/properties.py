"""Between `Message` and AMQP's basic properties.

Only what the wire contract names is read: `expiration`, `user_id` and the like of a received message end here.
Importing this module lets pamqp read what foreign producers send; see `asyncq.rabbitmq.tables`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pamqp import commands
from pamqp.header import ContentHeader

from asyncq.message import Message, new_id
from asyncq.rabbitmq import tables

__all__ = ["message_from", "properties_from", "read_message", "written_message"]

_PERSISTENT = 2

tables.install()


class _Properties(commands.Basic.Properties):
    """Writes headers by `tables.table`: pamqp cannot write all that foreign producers send."""

    # No `__slots__` of its own: pamqp goes through those of `self` for the properties.

    def encode_property(self, name: str, value: Any) -> bytes:
        return tables.table(value) if name == "headers" else super().encode_property(name, value)


def properties_from(message: Message) -> commands.Basic.Properties:
    """Return the AMQP properties of a message. Always persistent."""
    properties = _Properties(
        content_type=message.content_type,
        content_encoding=message.content_encoding,
        headers=dict(message.headers) or None,
        delivery_mode=_PERSISTENT,
        priority=message.priority,
        correlation_id=message.task_id,
        reply_to=message.reply_to,
        message_id=message.message_id,
        message_type=message.type,
        app_id=message.app_id,
    )
    if message.timestamp_ms is not None:
        properties.timestamp = datetime.fromtimestamp(message.timestamp_ms / 1000, UTC)
    return properties


def message_from(properties: commands.Basic.Properties, body: bytes) -> Message:
    """Return a received message.

    A foreign message without a `correlation_id` takes its `message_id` as task id, else a new one. The new one
    is only stable while the message is not redelivered, which is all that can be had.
    """
    return Message(
        type=properties.message_type or "",
        body=body,
        task_id=properties.correlation_id or properties.message_id or new_id(),
        message_id=properties.message_id,
        reply_to=properties.reply_to,
        content_type=properties.content_type,
        content_encoding=properties.content_encoding,
        headers=properties.headers or {},
        timestamp_ms=_epoch_ms(properties.timestamp),
        app_id=properties.app_id,
        priority=properties.priority,
    )


def written_message(message: Message) -> bytes:
    """Return the bytes of the message's properties, as they go over the wire; the body follows them there."""
    written: bytes = ContentHeader(body_size=len(message.body), properties=properties_from(message)).marshal()
    return written


def read_message(written: bytes, body: bytes) -> Message:
    """Return the message of properties that `written_message` has written."""
    header = ContentHeader()
    header.unmarshal(written)
    assert header.properties is not None  # noqa: S101 - `unmarshal` sets it; a type for the checker
    return message_from(header.properties, body)


def _epoch_ms(timestamp: datetime | None) -> int | None:
    if timestamp is None:
        return None
    if timestamp.tzinfo is None:
        timestamp = timestamp.replace(tzinfo=UTC)
    seconds = timestamp.timestamp()
    return int(seconds * 1000) if 0 <= seconds <= tables.LATEST_SECOND else None
