"""Headers of foreign messages: all that a broker hands out can be read, and written again."""

import random
import struct
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from pamqp import commands, decode, encode, frame, header

from asyncq.message import Message, copy_of
from asyncq.rabbitmq.properties import message_from, properties_from, read_message, written_message
from asyncq.rabbitmq.tables import read_table, read_text, table


def long_text(raw: bytes) -> bytes:
    return b"S" + struct.pack(">I", len(raw)) + raw


def raw_table(*pairs: tuple[bytes, bytes]) -> bytes:
    """Return a table as it is on the wire; values carry their tag."""
    raw = b"".join(bytes([len(key)]) + key + value for key, value in pairs)
    return struct.pack(">I", len(raw)) + raw


def nested(depth: int, tag: bytes = b"F") -> bytes:
    """Return a value that holds itself so many times."""
    value = b"V"
    for _ in range(depth):
        inner = b"\x01n" + value if tag == b"F" else value
        value = tag + struct.pack(">I", len(inner)) + inner
    return value


FOREIGN = {
    "a time beyond the year 9999": b"T" + struct.pack(">Q", 2**63),
    "the largest time": b"T" + b"\xff" * 8,
    "a time in milliseconds": b"T" + struct.pack(">Q", 1_800_000_000_000),
    "text that is not UTF-8": long_text(b"caf\xe9"),
    "a large double": b"d" + struct.pack(">d", 1e300),
    "not a number": b"d" + struct.pack(">d", float("nan")),
    "a negative decimal": b"D" + struct.pack(">Bi", 2, -150),
    "a decimal of a large scale": b"D" + struct.pack(">Bi", 255, 2**31 - 1),
    "tables nested deep": nested(3000),
    "arrays nested deep": nested(3000, b"A"),
    "bytes": b"x" + struct.pack(">I", 3) + b"\x00\xff\x01",
    "an unknown type": b"?" + b"\x00" * 8,
    "a large integer": b"l" + struct.pack(">q", -(2**63)),
    "an unsigned integer": b"i" + struct.pack(">I", 2**32 - 1),
}


def through_a_frame(headers: bytes) -> Message:
    """Return the message that the client's reader makes of a header frame."""
    payload = struct.pack(">HxxQH", commands.Basic.frame_id, 0, commands.Basic.Properties.flags["headers"]) + headers
    raw = struct.pack(">BHI", 2, 1, len(payload)) + payload + b"\xce"
    _, _, content = frame.unmarshal(raw)
    assert isinstance(content, header.ContentHeader)
    return message_from(content.properties, b"{}")


@pytest.mark.parametrize("value", FOREIGN.values(), ids=FOREIGN.keys())
@pytest.mark.parametrize("place", ["value", "array", "table"])
def test_what_a_foreign_producer_sends_is_read_and_a_copy_of_it_written(value: bytes, place: str) -> None:
    """One such message must not end the connection, and its retry and its dead letter must be possible."""
    if place == "array":
        value = b"A" + struct.pack(">I", len(value)) + value
    elif place == "table":
        value = b"F" + raw_table((b"k", value))
    message = through_a_frame(raw_table((b"before", long_text(b"x")), (b"odd", value)))
    assert message.headers["before"] == "x"
    assert "odd" in message.headers
    copy = copy_of(message, headers={"asyncq-attempt": 2})
    again = through_a_frame(table(copy.headers))
    assert again.headers["asyncq-attempt"] == 2
    assert repr(again.headers["odd"]) == repr(message.headers["odd"])
    assert properties_from(copy).marshal()


def test_what_comes_after_an_odd_value_is_read_as_well() -> None:
    """Its length is known, so it is stepped over."""
    odd = [(str(n).encode(), value) for n, (name, value) in enumerate(FOREIGN.items()) if "unknown" not in name]
    message = through_a_frame(raw_table(*odd, (b"after", b"t\x01")))
    assert len(message.headers) == len(odd) + 1
    assert message.headers["after"] is True


def test_a_key_that_is_not_utf_8_is_escaped() -> None:
    """It is some other program's, and nobody here asks for it."""
    assert through_a_frame(raw_table((b"\xff", b"t\x01"))).headers == {"\\xff": True}


def test_a_key_that_became_longer_still_fits() -> None:
    """AMQP allows 128 bytes."""
    (key,) = through_a_frame(raw_table((b"\xff" * 128, b"V"))).headers
    assert len(key) == 128


def test_an_id_that_is_not_utf_8_is_escaped_and_still_fits() -> None:
    """For example the 16 bytes of a UUID."""
    assert read_text(b"\x02\xff\x01rest") == (3, "\\xff\x01")
    size, text = read_text(b"\xff" + b"\xff" * 255)
    assert (size, len(text)) == (256, 255)


@pytest.mark.parametrize("seconds", [2**64 - 1, 2**63, 253_402_300_800_000])
def test_a_timestamp_that_no_datetime_can_express_is_left_out(seconds: int) -> None:
    """The property says when it was sent; nothing depends on it."""
    flags = commands.Basic.Properties.flags["timestamp"]
    properties = commands.Basic.Properties()
    properties.unmarshal(flags, struct.pack(">Q", seconds))
    assert message_from(properties, b"").timestamp_ms is None


@pytest.mark.parametrize("number", [2**32 - 1, 2**32 * 1000, 253_402_300_799_000, 253_402_300_000])
def test_a_time_is_the_same_in_each_copy(number: int) -> None:
    """A number of more than 32 bits is read as milliseconds, and seconds are written: after 2106 they are as large."""
    flags = commands.Basic.Properties.flags["timestamp"]
    properties = commands.Basic.Properties()
    properties.unmarshal(flags, struct.pack(">Q", number))
    message = message_from(properties, b"")
    assert read_message(written_message(message), b"").timestamp_ms == message.timestamp_ms
    first = through_a_frame(raw_table((b"at", b"T" + struct.pack(">Q", number)))).headers
    assert through_a_frame(table(first)).headers == first


def test_numbers_with_a_fraction_come_back_as_they_were() -> None:
    """In single precision 0.1 would become 0.10000000149011612."""
    message = Message(type="t", body=b"", task_id="1", message_id="2", headers={"ratio": 0.1, "large": 1e300})
    properties = commands.Basic.Properties()
    raw = properties_from(message).marshal()
    flags = struct.unpack(">H", raw[:2])[0]
    properties.unmarshal(flags, raw[2:])
    assert properties.headers == {"ratio": 0.1, "large": 1e300}


def test_all_that_pamqp_can_write_is_read_as_pamqp_reads_it() -> None:
    """Other users of pamqp in this process notice nothing."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)

    def value(depth: int = 0) -> Any:
        makers = [
            lambda: chance.choice([True, False, None]),
            lambda: chance.randint(-(2 ** chance.randint(0, 62)), 2 ** chance.randint(0, 62)),
            lambda: float(chance.randint(-1000, 1000)) / 8,
            lambda: "".join(chance.choices("aé€𝄞 \n", k=chance.randint(0, 40))),
            lambda: bytearray(chance.randbytes(chance.randint(0, 20))),
            lambda: Decimal(chance.randint(0, 2**31 - 1)).scaleb(-chance.randint(0, 8)),
            lambda: datetime.fromtimestamp(chance.randint(0, 2**32 - 1), UTC),
            lambda: [value(depth + 1) for _ in range(chance.randint(0, 3))] if depth < 4 else 1,
            lambda: {str(n): value(depth + 1) for n in range(chance.randint(0, 3))} if depth < 4 else 1,
        ]
        return chance.choice(makers)()

    for _ in range(300):
        pairs = {str(n): value() for n in range(chance.randint(0, 6))}
        raw = encode.field_table(pairs)
        assert read_table(raw) == decode.field_table(raw) == (len(raw), pairs)
        assert read_table(table(pairs))[1] == pairs
