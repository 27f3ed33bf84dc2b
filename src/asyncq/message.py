"""The wire contract, version 1: what a message is, and how copies of it are made.

A producer in any language can send a task: a JSON object as body, the task's name as `type`. Everything else
has a default. Pure values; no broker.

Invariant: every copy of a received message (retry, dead letter, hand-back) is built by `copy_of`, from a
whitelist, because a copy with the original's properties can be poison: a foreign `user_id` closes the channel,
a kept `expiration` makes the copy vanish, `CC` multiplies it, and too large a header closes the connection.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha1
from typing import Any

from asyncq.errors import MalformedMessage

__all__ = [
    "ATTEMPT",
    "CALLBACK_DEPTH",
    "CONTENT_TYPE_JSON",
    "DEADLINE_AT",
    "DUE_AT",
    "EXPIRES_AT",
    "FIRST_AT",
    "HISTORY",
    "LATEST_MS",
    "MAX_HEADERS_BYTES",
    "PARENT_ID",
    "RESERVED_HEADER_PREFIX",
    "ROOT_ID",
    "SOFT_LIMIT_MS",
    "STAGED_UNTIL",
    "TIME_LIMIT_MS",
    "TURN_AT",
    "UNKNOWN_SINCE",
    "HeaderValue",
    "Headers",
    "Message",
    "ReplyType",
    "attempt_of",
    "copy_of",
    "cut_text",
    "deadline_ms_of",
    "derived_id",
    "expires_at_ms_of",
    "first_at_ms_of",
    "headers_size",
    "limits_ms_of",
    "new_id",
    "root_id_of",
    "staged_until_ms_of",
    "too_late_ms_of",
    "turn_at_ms_of",
    "unknown_since_ms_of",
]

CONTENT_TYPE_JSON = "application/json"

RESERVED_HEADER_PREFIX = "asyncq-"
ATTEMPT = "asyncq-attempt"
UNKNOWN_SINCE = "asyncq-unknown-since"
CALLBACK_DEPTH = "asyncq-callback-depth"
DEADLINE_AT = "asyncq-deadline-at"
DUE_AT = "asyncq-due-at"
EXPIRES_AT = "asyncq-expires-at"
FIRST_AT = "asyncq-first-at"
HISTORY = "asyncq-history"
SOFT_LIMIT_MS = "asyncq-soft-limit-ms"
STAGED_UNTIL = "asyncq-staged-until"
TIME_LIMIT_MS = "asyncq-time-limit-ms"
TURN_AT = "asyncq-turn-at"
ROOT_ID = "asyncq-root-id"
PARENT_ID = "asyncq-parent-id"
MAX_HEADERS_BYTES = 64 * 1024
"""All headers together. A header frame cannot be split, and RabbitMQ's default frame_max is 128 KiB."""

HeaderValue = Any
"""A string, an integer, or whatever a foreign client has put there."""
Headers = Mapping[str, HeaderValue]

_FOLLOWS = uuid.UUID("6f6b5b0e-9c1f-4a53-8f0c-5e1c2f0f9d11").bytes
_LONGEST_ID = 255
_NEVER_COPIED = ("x-", "CC", "BCC")

LATEST_MS = 253_402_300_799_999
"""Where a `datetime` ends, in milliseconds since the epoch. Who counts in microseconds is far beyond it."""


class ReplyType:
    """The values of `type` in a reply."""

    PROGRESS = "progress"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    REJECTED = "rejected"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message as the wire carries it.

    Attributes:
        type: The task's name, or the kind of a reply.
        body: JSON.
        task_id: `correlation_id`: the same for every attempt of one task.
        message_id: Unique for each publish; None only in a received foreign message.
        reply_to: The producer's reply queue, where a result is wanted.
        content_type: As AMQP means it; None where a foreign producer has set none.
        content_encoding: As AMQP means it; asyncq itself sets none.
        headers: `asyncq-*`, `traceparent`, and the user's own.
        timestamp_ms: When it was published, in milliseconds since the epoch.
        app_id: The producing app.
        priority: As AMQP means it.
    """

    type: str
    body: bytes
    task_id: str
    message_id: str | None
    reply_to: str | None = None
    content_type: str | None = CONTENT_TYPE_JSON
    content_encoding: str | None = None
    headers: Headers = field(default_factory=dict)
    timestamp_ms: int | None = None
    app_id: str | None = None
    priority: int | None = None


def new_id() -> str:
    """Return a new UUID of version 7: unique, and sorted by the time of its making (RFC 9562, section 5.7)."""
    random_bits = int.from_bytes(os.urandom(10), "big")
    value = (time.time_ns() // 1_000_000) << 80
    value |= 0x7 << 76 | (random_bits >> 68 & 0xFFF) << 64
    value |= 0x2 << 62 | random_bits & 0x3FFF_FFFF_FFFF_FFFF
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def derived_id(task_id: str, position: str) -> str:
    """Return the id of a message that follows from a task: the same one each time (UUID version 5).

    Args:
        task_id: The task that it follows from.
        position: What it is to that task: `$on_failure` ...
    """
    # As uuid.uuid5 makes it, in half of its time: a workflow has an id for each of its members.
    digest = sha1(_FOLLOWS + f"{position} {task_id}".encode(), usedforsecurity=False).digest()
    text = bytes((*digest[:6], digest[6] & 0x0F | 0x50, digest[7], digest[8] & 0x3F | 0x80, *digest[9:16])).hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def root_id_of(message: Message) -> str:
    """Return the id of the first task of the family that a message belongs to.

    What a foreign client has put there is believed only where it can be an id: it goes on to all that follows.
    """
    root_id = message.headers.get(ROOT_ID)
    return root_id if isinstance(root_id, str) and 1 <= len(root_id) <= _LONGEST_ID else message.task_id


def attempt_of(message: Message) -> int:
    """Return the number of the attempt that this message asks for; 1 where it says nothing.

    Raises:
        MalformedMessage: The header is not a positive integer.
    """
    value = _integer_header(message, ATTEMPT)
    return 1 if value is None else value


def unknown_since_ms_of(message: Message) -> int | None:
    """Return when a worker first met this message without knowing its task, or None.

    Raises:
        MalformedMessage: The header is not a positive integer.
    """
    return _integer_header(message, UNKNOWN_SINCE)


def first_at_ms_of(message: Message) -> int | None:
    """Return when the first attempt that failed began, in milliseconds since the epoch; None before the first retry.

    Raises:
        MalformedMessage: The header is not a positive integer.
    """
    return _integer_header(message, FIRST_AT)


def expires_at_ms_of(message: Message) -> int | None:
    """Return from when on the task must not begin any more, in milliseconds since the epoch; None where it may always.

    Raises:
        MalformedMessage: The header is no such time.
    """
    return _moment_header(message, EXPIRES_AT, "expiry")


def deadline_ms_of(message: Message) -> int | None:
    """Return by when the task's work must be done, in milliseconds since the epoch; None where nobody has said it.

    Raises:
        MalformedMessage: The header is no such time.
    """
    return _moment_header(message, DEADLINE_AT, "deadline")


def too_late_ms_of(message: Message) -> int | None:
    """Return from when on no attempt may begin: its expiry or its deadline, whichever is first; None for never.

    Raises:
        MalformedMessage: One of the two is no such time.
    """
    ends = [end for end in (expires_at_ms_of(message), deadline_ms_of(message)) if end is not None]
    return min(ends, default=None)


def limits_ms_of(message: Message) -> tuple[int | None, int | None]:
    """Return the hard and the soft time limit that the sender has asked for, in milliseconds; None for neither.

    Raises:
        MalformedMessage: One is no positive integer, or too large.
    """
    remedy = "It is a duration in milliseconds; leave it out for the task's own limit."
    hard_ms, soft_ms = (_bounded_header(message, name, remedy) for name in (TIME_LIMIT_MS, SOFT_LIMIT_MS))
    return hard_ms, soft_ms


def staged_until_ms_of(message: Message) -> int | None:
    """Return when a message that is delayed in stages is due, in milliseconds since the epoch; None where it is not.

    Raises:
        MalformedMessage: The header is not a positive integer.
    """
    return _integer_header(message, STAGED_UNTIL)


def turn_at_ms_of(message: Message) -> int | None:
    """Return when the turn of a message is that was over its task's rate, in milliseconds since the epoch; None before.

    Raises:
        MalformedMessage: The header is not a positive integer.
    """
    return _integer_header(message, TURN_AT)


def _moment_header(message: Message, name: str, what: str) -> int | None:
    remedy = f"It is a time in milliseconds since the epoch, at most in the year 9999; leave it out for no {what}."
    return _bounded_header(message, name, remedy)


def _bounded_header(message: Message, name: str, remedy: str) -> int | None:
    value = _integer_header(message, name, remedy)
    if value is not None and value > LATEST_MS:
        raise MalformedMessage(f"Header {name} of task {message.task_id} is too large: {value}. {remedy}")
    return value


def _integer_header(message: Message, name: str, remedy: str = "Leave it out: asyncq sets it itself.") -> int | None:
    value = message.headers.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise MalformedMessage(
            f"Header {name} of task {message.task_id} must be a positive integer, not {value!r}. {remedy}"
        )
    return value


def copy_of(message: Message, *, headers: Headers, drop: tuple[str, ...] = ()) -> Message:
    """Return the copy of a received message that is safe to publish.

    Args:
        message: The received message.
        headers: Headers that the copy gets in addition; they win over the original's.
        drop: Names of headers that the copy does not take over.

    Returns:
        A message with a new `message_id`, the same task id and body, and headers that fit one frame: foreign
        headers go first where they do not, the largest one first.
    """
    kept = {
        name: value
        for name, value in message.headers.items()
        if not name.startswith(_NEVER_COPIED) and name not in drop
    }
    kept.update(headers)
    _shrink(kept, headers)
    return Message(
        type=message.type,
        body=message.body,
        task_id=message.task_id,
        message_id=new_id(),
        reply_to=message.reply_to,
        content_type=message.content_type,
        content_encoding=message.content_encoding,
        headers=kept,
        timestamp_ms=message.timestamp_ms,
        app_id=message.app_id,
        priority=message.priority,
    )


def _shrink(headers: dict[str, HeaderValue], keep: Headers) -> None:
    """Drop headers until all of them fit: foreign ones first, the largest first; never those of `keep`."""
    size = headers_size(headers)
    if size <= MAX_HEADERS_BYTES:
        return
    sizes = {name: headers_size({name: value}) for name, value in headers.items() if name not in keep}
    own = (RESERVED_HEADER_PREFIX, "trace")
    for name in sorted(sizes, key=lambda name: (name.startswith(own), -sizes[name])):
        del headers[name]
        size -= sizes[name]
        if size <= MAX_HEADERS_BYTES:
            return


def headers_size(value: HeaderValue) -> int:
    """Return an upper estimate of the bytes that a header value takes on the wire."""
    if isinstance(value, Mapping):
        return sum(len(str(name).encode()) + 6 + headers_size(item) for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return 8 + sum(headers_size(item) for item in value)
    if isinstance(value, str):
        return 8 + len(value.encode())
    if isinstance(value, (bytes, bytearray)):
        return 8 + len(value)
    return 16


def cut_text(text: str, max_bytes: int) -> str:
    """Return the text, cut in its middle so that it takes at most `max_bytes` of UTF-8."""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= max_bytes:
        return raw.decode()
    mark = b"\n[... cut ...]\n"
    half = (max_bytes - len(mark)) // 2
    # `ignore` drops the bytes of a character that the cut has split.
    return raw[:half].decode(errors="ignore") + mark.decode() + raw[-half:].decode(errors="ignore")
