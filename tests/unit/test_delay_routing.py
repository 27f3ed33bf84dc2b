"""The delay ladder's arithmetic, by tables: digits, rounding, keys and arguments.

test_properties_ladder.py tests it for any delay and any queue.
"""

import math

import pytest

from asyncq.broker import Delay
from asyncq.errors import InvalidOption
from asyncq.queue_names import MAX_QUEUE_NAME_BYTES
from asyncq.rabbitmq.declarations import QueueDeclaration
from asyncq.rabbitmq.delay_routing import (
    MAX_DELAY_S,
    MAX_UNITS,
    Stop,
    digits,
    entry_key,
    path_plan,
    rounded_units,
    stops,
)
from asyncq.rabbitmq.topology import Names

NAMES = Names()


@pytest.mark.parametrize(
    ("seconds", "units"),
    [
        (-5, 1),
        (0, 1),
        (0.000001, 1),
        (0.01, 1),
        (0.010001, 2),
        (0.02, 2),
        (0.07, 7),  # 0.07 * 100 is 7.000000000000001
        (0.29, 29),  # 0.29 * 100 is 28.999999999999996
        (1.234, 124),
        (60, 6_000),
        (3600.0, 360_000),
        (300 * 86_400, 2_592_000_000),
        (MAX_DELAY_S, MAX_UNITS),
    ],
)
def test_an_exact_delay_is_rounded_up_to_10_ms(seconds, units):
    """And reckoned in decimals, as it was written."""
    assert rounded_units(Delay(seconds)) == units


@pytest.mark.parametrize(
    ("seconds", "at_most_s", "units"),
    [
        (2.55, 600, 0xFF),  # two digits already
        (2.56, 600, 0x100),
        (2.57, 600, 0x110),
        (40.95, 600, 0x1000),  # 0xfff carries into one digit
        (12.34, 600, 0x4E0),  # 0x4d2
        (60, 600, 0x1800),  # 0x1770
        (60, 60, 0x1770),  # no room: exact
        (60, 60.005, 0x1770),
        (59.9, 60, 0x1770),  # 0x1766: three digits fit below the limit, two do not
        (59.98, 60, 0x1770),
        (59.98, 59.99, 0x176E),
        (60, 1, 0x1770),  # a limit below the delay is no reason to be early
        (0, 600, 1),
    ],
)
def test_a_backoff_is_rounded_up_to_few_digits_below_its_limit(seconds, at_most_s, units):
    """Two leading digits, or as few as the limit allows."""
    assert rounded_units(Delay(seconds, at_most_s)) == units


@pytest.mark.parametrize("seconds", [math.nextafter(MAX_DELAY_S, math.inf), 1e12, math.inf, math.nan])
def test_a_delay_that_the_ladder_cannot_carry_is_refused(seconds):
    """Rather than delivered at some other time."""
    with pytest.raises(InvalidOption):
        rounded_units(Delay(seconds))


def test_the_refusal_names_the_longest_delay():
    """The user learns how far it goes."""
    with pytest.raises(InvalidOption, match=r"42949672\.95 seconds \(497 days\)"):
        rounded_units(Delay(1e9))


@pytest.mark.parametrize(
    ("units", "text", "key", "way"),
    [
        (1, "00000001", "0.0.0.0.0.0.0.1.mail", (Stop(0, 1),)),
        (0x4D2, "000004d2", "0.0.0.0.0.4.d.2.mail", (Stop(2, 4), Stop(1, 13), Stop(0, 2))),
        (0x1000, "00001000", "0.0.0.0.1.0.0.0.mail", (Stop(3, 1),)),
        (0xF0000001, "f0000001", "f.0.0.0.0.0.0.1.mail", (Stop(7, 15), Stop(0, 1))),
    ],
)
def test_digits_key_and_stops_are_these(units, text, key, way):
    """Highest digit first, leading zeros included; a zero is no stop."""
    assert digits(units) == text
    assert entry_key(units, "mail") == key
    assert stops(units) == way


def test_the_longest_key_fits_into_255_bytes():
    """AMQP's limit for a routing key."""
    assert len(entry_key(MAX_UNITS, "q" * MAX_QUEUE_NAME_BYTES)) <= 255


def test_a_ladder_queue_loses_nothing_and_ends_no_delay_early():
    """Each argument is there because without it a delayed message can be lost, or come too early."""
    (queue,) = [
        part
        for part in path_plan(NAMES, 0xA0)
        if isinstance(part, QueueDeclaration) and part.name == NAMES.delay_queue(1, 10)
    ]
    assert queue.arguments == {
        "x-queue-type": "quorum",
        "x-message-ttl": 1601,
        "x-dead-letter-exchange": "asyncq.delay.v1.level0",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        "x-delivery-limit": 2_000_000_000,
    }
