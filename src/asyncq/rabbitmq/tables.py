"""Read and write the header of a message, whatever a foreign producer has put there.

pamqp cannot read all that RabbitMQ hands out: a time beyond the year 9999, text that is not UTF-8, tables nested
some hundred deep. It raises in the reader of the connection, which ends the connection; the next one gets the same
message, and so on: one message would stop a worker. Nor can it write all that it reads: a large double, text
that is not UTF-8, a negative decimal. So a copy of such a message could not be published.

`install` therefore puts decoders of our own into pamqp's tables, which every frame is read by. They are pamqp's in
all that it can read, so other users of pamqp in this process lose nothing. `table` writes headers.

Invariant: what RabbitMQ lets through can be read, and what was read can be written again.
Source: https://www.rabbitmq.com/amqp-0-9-1-errata
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from pamqp import decode, encode

__all__ = ["LATEST_SECOND", "install", "read_table", "read_text", "table"]

_MAX_DEPTH = 32
_SHORT_TEXT_BYTES = 255
_KEY_BYTES = 128
_LARGEST_SCALAR_BYTES = 8
_MAX_INTEGER = 2**63 - 1
_LATEST = datetime.max.replace(tzinfo=UTC)
LATEST_SECOND = 2**32 - 1
"""In the year 2106. pamqp takes larger numbers for milliseconds: a later time would be another one in each copy."""

_LENGTH = struct.Struct(">I")
_DOUBLE = struct.Struct(">d")
_DECIMAL = struct.Struct(">Bi")
_TIME = struct.Struct(">Q")


def install() -> None:
    """Let pamqp read by our decoders."""
    decode.METHODS.update({"shortstr": read_text, "table": read_table, "timestamp": read_time})


# --- reading


def read_text(value: bytes) -> tuple[int, str]:
    """Read a short string, such as an id. Bytes that are not UTF-8 become readable escapes."""
    if not value:
        raise ValueError("a short string has no length")
    end = value[0] + 1
    return end, _text(value[1:end], _SHORT_TEXT_BYTES)


def read_time(value: bytes) -> tuple[int, datetime]:
    """Read a time. One that no `datetime` can express becomes the latest that it can."""
    try:
        return decode.timestamp(value)
    except (ValueError, OverflowError, OSError):
        if len(value) < _TIME.size:
            raise
        return _TIME.size, _LATEST


def read_table(value: bytes) -> tuple[int, dict[str, Any]]:
    """Read a table. What is nested too deep, or of an unknown type, becomes None."""
    end = _LENGTH.size + _length(value, 0)
    if end > len(value):
        raise ValueError("a table is longer than its frame")
    return end, _read_pairs(value, _LENGTH.size, end, 0)


def _read_pairs(value: bytes, at: int, end: int, depth: int) -> dict[str, Any]:
    pairs = {}
    while at < end:
        start = at + 1
        at = start + value[at]
        key = _text(value[start:at], _KEY_BYTES)
        at, pairs[key] = _read_item(value, at, end, depth)
    return pairs


def _read_items(value: bytes, at: int, end: int, depth: int) -> list[Any]:
    items = []
    while at < end:
        at, item = _read_item(value, at, end, depth)
        items.append(item)
    return items


def _read_item(value: bytes, at: int, end: int, depth: int) -> tuple[int, Any]:
    """Return where the item ends, and the item."""
    tag, at = value[at : at + 1], at + 1
    if tag in _SIZED:
        start = at + _LENGTH.size
        stop = start + _length(value, at)
        return stop, _SIZED[tag](value, start, min(stop, end), depth)
    if tag == b"T":
        return at + _TIME.size, _header_time(value[at : at + _TIME.size])
    if tag == b"D":
        scale, mantissa = _DECIMAL.unpack_from(value, at)
        return at + _DECIMAL.size, Decimal(mantissa).scaleb(-scale)
    read = decode.TABLE_MAPPING.get(tag)
    if read is None:
        return end, None  # where it ends is unknown: the rest of this table is lost
    size, item = read(value[at : at + _LARGEST_SCALAR_BYTES])
    return at + size, item


def _read_long_text(value: bytes, start: int, stop: int, _depth: int) -> str | bytes:
    raw = value[start:stop]
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _read_inner_table(value: bytes, start: int, stop: int, depth: int) -> dict[str, Any] | None:
    return _read_pairs(value, start, stop, depth + 1) if depth < _MAX_DEPTH else None


def _read_array(value: bytes, start: int, stop: int, depth: int) -> list[Any] | None:
    return _read_items(value, start, stop, depth + 1) if depth < _MAX_DEPTH else None


_SIZED = {
    b"S": _read_long_text,
    b"x": lambda value, start, stop, _depth: bytearray(value[start:stop]),
    b"F": _read_inner_table,
    b"A": _read_array,
}


def _header_time(value: bytes) -> datetime | int:
    """Return the time, or its number where no copy could carry the time: as that it can be passed on."""
    time = read_time(value)[1]
    return min(_TIME.unpack(value)[0], _MAX_INTEGER) if time.timestamp() > LATEST_SECOND else time


def _length(value: bytes, at: int) -> int:
    length: int = _LENGTH.unpack_from(value, at)[0]
    return length


def _text(raw: bytes, max_bytes: int) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        # It has become longer, and must still fit where it came from.
        return raw.decode(errors="backslashreplace").encode()[:max_bytes].decode(errors="ignore")


# --- writing


def table(values: Mapping[str, Any]) -> bytes:
    """Return headers as AMQP.

    Raises:
        TypeError: A value is nothing that AMQP knows, or out of its range.
    """
    pairs = b"".join(encode.short_string(_key(name)) + _item(value) for name, value in values.items())
    return _LENGTH.pack(len(pairs)) + pairs


def _item(value: Any) -> bytes:
    if isinstance(value, float):
        return b"d" + _DOUBLE.pack(value)  # pamqp writes single precision: 0.1 would not come back
    if isinstance(value, bytes):
        return b"S" + _LENGTH.pack(len(value)) + value
    if isinstance(value, Mapping):
        return b"F" + table(value)
    if isinstance(value, (list, tuple)):
        items = b"".join(map(_item, value))
        return b"A" + _LENGTH.pack(len(items)) + items
    written: bytes = encode.encode_table_value(value)
    return written


def _key(name: str) -> str:
    return name if len(name) <= _KEY_BYTES // 4 else name.encode()[:_KEY_BYTES].decode(errors="ignore")
