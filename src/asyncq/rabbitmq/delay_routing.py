"""The arithmetic of the delay ladder: from a delay to its digits, its queues and all that must stand for it.

Pure. delay.py has the picture. Invariant: the stops of a delay last at least as long as the delay, together and
one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from asyncq.broker import Delay
from asyncq.errors import InvalidOption
from asyncq.rabbitmq.declarations import (
    BindingDeclaration,
    Declaration,
    ExchangeDeclaration,
    Plan,
    QueueDeclaration,
)
from asyncq.rabbitmq.topology import DELAY_LEVELS, UNLIMITED_DELIVERIES, Names, delay_base_plan

__all__ = ["MAX_DELAY_S", "MAX_UNITS", "UNIT_MS", "Stop", "digits", "entry_key", "path_plan", "rounded_units", "stops"]

RADIX = 16
UNIT_MS = 10
MAX_UNITS = RADIX**DELAY_LEVELS - 1
MAX_DELAY_S = MAX_UNITS * UNIT_MS / 1000
"""About 497 days."""

_LEADING_DIGITS = 2
_CLOCK_RESOLUTION_MS = 1


@dataclass(frozen=True, slots=True)
class Stop:
    """A queue that a message waits in.

    Attributes:
        level: From 0, the lowest.
        digit: From 1 to 15.
    """

    level: int
    digit: int

    @property
    def ttl_ms(self) -> int:
        """How long it waits here, in milliseconds: what the digit says, and one more.

        A quorum queue stamps and expires messages by a clock that counts whole milliseconds, so it may end a stay
        up to one too early.
        """
        units: int = self.digit * RADIX**self.level
        return units * UNIT_MS + _CLOCK_RESOLUTION_MS


def rounded_units(delay: Delay) -> int:
    """Return the delay in units of 10 ms: never less than asked for, and at least one.

    Where the delay says how far it may be rounded up, it becomes as few leading hexadecimal digits as that allows,
    but two: at most two hops, and at most 1/16 longer. Only close below the limit it needs more digits, down to the
    exact delay.

    Raises:
        InvalidOption: It is no number, or longer than the ladder.
    """
    exact = max(1, _units(delay.seconds, math.ceil))
    if exact > MAX_UNITS:
        raise InvalidOption(
            f"A delay of {delay.seconds:g} seconds is too long: at most {MAX_DELAY_S:.2f} seconds (497 days) can be "
            "waited for. Send a later part of the work from a scheduled task."
        )
    if delay.at_most_s is None:
        return exact
    limit = min(_units(delay.at_most_s, math.floor), MAX_UNITS)
    length = len(f"{exact:x}")
    for kept in range(_LEADING_DIGITS, length):
        step = RADIX ** (length - kept)
        rounded: int = -(-exact // step) * step
        if rounded <= limit:
            return rounded
    return exact


def _units(seconds: float, rounding: Callable[[Fraction], int]) -> int:
    if not math.isfinite(seconds):
        raise InvalidOption(f"A delay must be a finite number of seconds, not {seconds!r}.")
    # By its decimal digits: 0.07 s are 7 units, while 0.07 * 100 is a little more, which would be rounded to 8.
    return rounding(Fraction(str(seconds)) * 1000 / UNIT_MS)


def digits(units: int) -> str:
    """Return the digits of a delay, highest first, leading zeros included."""
    return f"{units:0{DELAY_LEVELS}x}"


def stops(units: int) -> tuple[Stop, ...]:
    """Return the queues that a message waits in, in order. The first one is where it enters."""
    levels = range(DELAY_LEVELS - 1, -1, -1)
    return tuple(
        Stop(level, int(digit, RADIX)) for level, digit in zip(levels, digits(units), strict=True) if digit != "0"
    )


def entry_key(units: int, queue: str) -> str:
    """Return the routing key of a message for `queue`, which it keeps all the way."""
    return ".".join(digits(units)) + "." + queue


def path_plan(names: Names, units: int) -> Plan:
    """Return all that a delay needs, from one end of the ladder to the other.

    The binding by which messages come in is the last one: when it stands, so does the path.
    """
    entry, *lower = stops(units)
    exchanges: list[Declaration] = []
    passing_on: list[Declaration] = []
    for level in range(entry.level):
        exchanges.append(
            # At every level: a message that finds a hole in the path is parked, and does not block those behind it.
            ExchangeDeclaration(names.delay_level(level), "topic", {"alternate-exchange": names.unroutable})
        )
        passing_on.append(
            BindingDeclaration(
                names.delay_level(level), _pattern(level, 0), names.delay_level(level - 1), kind="exchange"
            )
        )
    queues = [_queue(names, stop) for stop in (*lower, entry)]
    steps = [
        BindingDeclaration(
            names.delay_level(stop.level), _pattern(stop.level, stop.digit), names.delay_queue(stop.level, stop.digit)
        )
        for stop in lower
    ]
    return (
        *delay_base_plan(names),
        *exchanges,
        *passing_on,
        *queues,
        *steps,
        BindingDeclaration(names.delay_enter, _entry_pattern(entry), names.delay_queue(entry.level, entry.digit)),
    )


def _queue(names: Names, stop: Stop) -> QueueDeclaration:
    arguments: Mapping[str, str | int] = {
        # Replicated, and the only type that can dead-letter at least once: in tests with a killed broker, classic
        # queues lost hundreds of 3,000 delayed messages, these none.
        "x-queue-type": "quorum",
        "x-message-ttl": stop.ttl_ms,
        # The next level; the routing key is kept, because none is set here.
        "x-dead-letter-exchange": names.delay_level(stop.level - 1),
        # Expired messages are held here until the next queue has confirmed them.
        "x-dead-letter-strategy": "at-least-once",
        # At-least-once dead-lettering demands it.
        "x-overflow": "reject-publish",
        # Somebody who looks at the queue in the management UI gives the messages back. With the default limit of
        # RabbitMQ 4 the 21st look would end their delay.
        "x-delivery-limit": UNLIMITED_DELIVERIES,
    }
    return QueueDeclaration(names.delay_queue(stop.level, stop.digit), arguments)


def _pattern(level: int, digit: int) -> str:
    """Match one digit at its place. `#` stands for what follows: it takes empty words as well, as in `a..mail`."""
    return "*." * (DELAY_LEVELS - 1 - level) + f"{digit:x}.#"


def _entry_pattern(entry: Stop) -> str:
    """Match the highest digit and the zeros before it, so that each key has exactly one entry queue."""
    return "0." * (DELAY_LEVELS - 1 - entry.level) + f"{entry.digit:x}.#"
