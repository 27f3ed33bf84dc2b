"""Messages as foreign producers may write them, at random: properties of every AMQP type, and bodies near JSON.

The bytes are made here, by nobody's client: what is tested reads them. Each function takes a `random.Random`; under
Hypothesis that is `strategies.randoms()`, which makes a failure small.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Mapping
from typing import Any

from pamqp import commands

_MAX_DEPTH = 4
_TEXTS = ("", "a", "application/json", "utf-8", "é\u202e𝄞", "asyncq-attempt", "x-death", " ", "\0", "0")


class RawProperties(commands.Basic.Properties):
    """AMQP properties; a value that is bytes goes on the wire as it is."""

    # No `__slots__` of its own: pamqp goes through those of `self` for the properties.

    def encode_property(self, name: str, value: Any) -> bytes:
        return value if isinstance(value, bytes) else super().encode_property(name, value)

    def validate(self) -> None:
        """Check nothing: others do not either."""


def properties(chance: random.Random, **fixed: Any) -> RawProperties:
    """Return random properties, each one there or not; never `user_id` and `expiration`, which the broker looks at.

    Args:
        chance: The source of chance.
        fixed: Properties as they shall be; None for one that shall not be there.
    """
    makers: Mapping[str, Callable[[], Any]] = {
        "content_type": lambda: short_text(chance),
        "content_encoding": lambda: short_text(chance),
        "headers": lambda: table(chance),
        "delivery_mode": lambda: bytes([chance.choice([1, 2])]),
        "priority": lambda: bytes([chance.randint(0, 255)]),
        "correlation_id": lambda: short_text(chance),
        "reply_to": lambda: short_text(chance),
        "message_id": lambda: short_text(chance),
        "timestamp": lambda: _time(chance),
        "message_type": lambda: short_text(chance),
        "app_id": lambda: short_text(chance),
    }
    made = {name: make() for name, make in makers.items() if name not in fixed and chance.random() < 0.6}
    found = RawProperties()
    for name, value in {**made, **fixed}.items():
        setattr(found, name, value)
    return found


def short_text(chance: random.Random) -> bytes:
    """Return a short string with its length: text, or bytes that are none."""
    raw = _text(chance, 255)
    return bytes([len(raw)]) + raw


def table(chance: random.Random, extra: Mapping[str, bytes] | None = None, depth: int = 0) -> bytes:
    """Return a table with its length.

    Args:
        chance: The source of chance.
        extra: Further pairs, whose values carry their type.
        depth: How deep in other tables it is.
    """
    pairs = {_text(chance, 128): item(chance, depth) for _ in range(chance.randint(0, 5))}
    pairs.update({name.encode(): value for name, value in (extra or {}).items()})
    raw = b"".join(bytes([len(key)]) + key + value for key, value in pairs.items())
    return struct.pack(">I", len(raw)) + raw


def item(chance: random.Random, depth: int = 0) -> bytes:
    """Return a value with its type: of each that RabbitMQ knows."""
    simple: dict[bytes, Callable[[], bytes]] = {
        b"t": lambda: bytes([chance.choice([0, 1, 255])]),
        b"b": lambda: _number(chance, ">b", -(2**7), 2**7 - 1),
        b"B": lambda: _number(chance, ">B", 0, 2**8 - 1),
        b"s": lambda: _number(chance, ">h", -(2**15), 2**15 - 1),
        b"u": lambda: _number(chance, ">H", 0, 2**16 - 1),
        b"I": lambda: _number(chance, ">i", -(2**31), 2**31 - 1),
        b"i": lambda: _number(chance, ">I", 0, 2**32 - 1),
        b"l": lambda: _number(chance, ">q", -(2**63), 2**63 - 1),
        b"T": lambda: _time(chance),
        b"f": lambda: _float(chance, ">f"),
        b"d": lambda: _float(chance, ">d"),
        b"D": lambda: bytes([chance.choice([0, 2, 255])]) + _number(chance, ">i", -(2**31), 2**31 - 1),
        b"V": lambda: b"",
        b"S": lambda: _sized(_text(chance, 400)),
        b"x": lambda: _sized(chance.randbytes(chance.randint(0, 40))),
    }
    nested: dict[bytes, Callable[[], bytes]] = {
        b"F": lambda: table(chance, depth=depth + 1),
        b"A": lambda: _sized(b"".join(item(chance, depth + 1) for _ in range(chance.randint(0, 4)))),
    }
    makers = simple if depth >= _MAX_DEPTH else {**simple, **nested}
    tag = chance.choice(sorted(makers))
    return tag + makers[tag]()


def long_text(text: str) -> bytes:
    """Return a long string with its type, for a header."""
    return b"S" + _sized(text.encode())


def integer(value: int) -> bytes:
    """Return an integer with its type, for a header."""
    return b"l" + struct.pack(">q", value)


def body(chance: random.Random) -> bytes:
    """Return random bytes, or random JSON, or what is nearly JSON."""
    kind = chance.randrange(4)
    if kind == 0:
        return chance.randbytes(chance.randint(0, 300))
    text = json.dumps(json_value(chance), ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")
    return text if kind == 1 else damaged(chance, text)


def damaged(chance: random.Random, text: bytes) -> bytes:
    """Return the text with one change: a byte more, less or other, an end too early, more after the end."""
    at = chance.randint(0, len(text))
    return chance.choice(
        [
            text[:at],
            text[at:],
            text[:at] + chance.randbytes(1) + text[at:],
            text[:at] + text[at + 1 :],
            text[:at] + chance.choice([b'"$x":1,', b"NaN", b"1e999", b'"\\ud800"', b"\xef\xbb\xbf"]) + text[at:],
            text + text,
            b"[" * chance.choice([10, 1000, 50_000]) + text,
        ]
    )


def json_value(chance: random.Random, depth: int = 0) -> Any:
    """Return a value that JSON can express."""
    simple: list[Callable[[], Any]] = [
        lambda: chance.choice([None, True, False]),
        lambda: chance.randint(-(10 ** chance.randint(0, 40)), 10 ** chance.randint(0, 40)),
        lambda: chance.uniform(-1e6, 1e6),
        lambda: _text(chance, 60).decode("utf-8", "replace"),
    ]
    nested: list[Callable[[], Any]] = [
        lambda: [json_value(chance, depth + 1) for _ in range(chance.randint(0, 4))],
        lambda: {
            chance.choice(["n", "text", "$then", "", "é"]): json_value(chance, depth + 1)
            for _ in range(chance.randint(0, 4))
        },
    ]
    return chance.choice(simple if depth >= _MAX_DEPTH else simple + nested)()


def _text(chance: random.Random, max_bytes: int) -> bytes:
    kind = chance.randrange(4)
    if kind == 0:
        return chance.choice(_TEXTS).encode()
    if kind == 1:
        return chance.randbytes(chance.choice([1, 16, chance.randint(0, max_bytes), max_bytes]))  # mostly no UTF-8
    text = "".join(chance.choice("abcxyz0189.-_/ é€𝄞\n") for _ in range(chance.randint(0, 60)))
    return text.encode()[:max_bytes]


def _number(chance: random.Random, form: str, least: int, largest: int) -> bytes:
    near = [least, largest, 0, 1, max(least, -1), chance.randint(least, largest)]
    return struct.pack(form, chance.choice(near))


def _time(chance: random.Random) -> bytes:
    """Seconds as AMQP has it, or milliseconds; times of long ago and far ahead."""
    second = chance.choice([0, 1, 1_700_000_000, 2**32 - 1, 2**32, 253_402_300_799, 253_402_300_800])
    return struct.pack(">Q", chance.choice([second, second * 1000, second * 1000 + 1, chance.randrange(2**64)]))


def _float(chance: random.Random, form: str) -> bytes:
    """Finite ones only: RabbitMQ ends the connection of whoever sends others in a header (3.10, 4.3)."""
    large = 1e300 if form == ">d" else 1e30
    return struct.pack(form, chance.choice([0.0, -0.0, 0.1, large, chance.uniform(-1e9, 1e9)]))


def _sized(raw: bytes) -> bytes:
    return struct.pack(">I", len(raw)) + raw
