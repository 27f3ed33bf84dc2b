"""The delay ladder's arithmetic: never early, rounded only as far as allowed, and every path complete.

The last tests let a message walk through the plan by the rules of AMQP: bindings of a topic exchange, dead-lettering
with the key kept, alternate exchanges.
"""

import math
from collections.abc import Iterator
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from asyncq.broker import Delay
from asyncq.errors import InvalidOption
from asyncq.queue_names import MAX_QUEUE_NAME_BYTES
from asyncq.rabbitmq.declarations import BindingDeclaration, ExchangeDeclaration, Plan, QueueDeclaration
from asyncq.rabbitmq.delay_routing import (
    MAX_DELAY_S,
    MAX_UNITS,
    UNIT_MS,
    Stop,
    digits,
    entry_key,
    path_plan,
    rounded_units,
    stops,
)
from asyncq.rabbitmq.topology import Names, destination_binding

NAMES = Names()
ALL_UNITS = st.one_of(
    st.integers(1, MAX_UNITS),
    # Numbers with many zeros: the passing on is where a path can be incomplete.
    st.lists(st.sampled_from("0000123f"), min_size=8, max_size=8).map(lambda d: int("".join(d), 16)).filter(bool),
)
SECONDS = st.one_of(
    st.floats(0, MAX_DELAY_S, allow_nan=False),
    st.decimals(0, "100000", places=3).map(float),
    st.integers(0, 40_000_000).map(float),
)
QUEUES = st.from_regex(r"\A[A-Za-z0-9._-]{1,40}\Z")


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


@given(SECONDS)
def test_an_exact_delay_is_never_early_and_less_than_10_ms_late(seconds):
    """Zero alone becomes a whole unit."""
    late_ms = rounded_units(Delay(seconds)) * UNIT_MS - Fraction(str(seconds)) * 1000
    assert 0 <= late_ms < UNIT_MS or (seconds == 0 and late_ms == UNIT_MS)


@given(SECONDS, SECONDS)
def test_a_rounded_delay_keeps_all_its_bounds(seconds, at_most_s):
    """Never early; at most 1/16 late beyond the unit; never past its limit, unless the delay is past it itself."""
    exact = rounded_units(Delay(seconds))
    rounded = rounded_units(Delay(seconds, at_most_s))
    assert rounded >= exact
    assert (rounded - exact) * 16 <= exact
    assert rounded == exact or rounded * UNIT_MS <= Fraction(str(at_most_s)) * 1000


@given(SECONDS)
def test_a_rounded_delay_with_room_takes_at_most_two_hops(seconds):
    """Two digits are two queues."""
    assume(seconds * 17 / 16 + 1 < MAX_DELAY_S)
    assert len(stops(rounded_units(Delay(seconds, MAX_DELAY_S)))) <= 2


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


@given(ALL_UNITS)
def test_each_stop_makes_good_the_millisecond_that_its_clock_can_lose(units):
    """A message that arrives at 0.9 ms past a tick of the broker's clock has lost 0.9 ms of its stay."""
    way = stops(units)
    shortest_ms = sum(stop.ttl_ms - 1 for stop in way)
    assert shortest_ms == units * UNIT_MS


def test_the_longest_key_fits_into_255_bytes():
    """AMQP's limit for a routing key."""
    assert len(entry_key(MAX_UNITS, "q" * MAX_QUEUE_NAME_BYTES)) <= 255


# --- a message walks through the plan


def matches(pattern: list[str], words: list[str]) -> bool:
    """AMQP's topic rule: `*` is one word, `#` any number; words may be empty."""
    if not pattern:
        return not words
    if pattern[0] == "#":
        return any(matches(pattern[1:], words[skip:]) for skip in range(len(words) + 1))
    return bool(words) and pattern[0] in {"*", words[0]} and matches(pattern[1:], words[1:])


def routed(plan: Plan, exchange: str, key: str) -> set[str]:
    """Return the queues that a publish reaches, through exchanges bound to exchanges."""
    reached: set[str] = set()
    for part in plan:
        if not isinstance(part, BindingDeclaration) or part.exchange != exchange:
            continue
        if matches(part.key.split("."), key.split(".")):
            reached |= {part.destination} if part.kind == "queue" else routed(plan, part.destination, key)
    return reached


def walk(plan: Plan, key: str) -> Iterator[tuple[str, int]]:
    """Yield each queue that the message comes to, with its TTL; 0 for the queue where it stays."""
    queues = {part.name: part.arguments for part in plan if isinstance(part, QueueDeclaration)}
    exchange = NAMES.delay_enter
    while True:
        (name,) = routed(plan, exchange, key)
        arguments = queues[name]
        if "x-message-ttl" not in arguments:
            yield name, 0
            return
        yield name, int(arguments["x-message-ttl"])
        exchange = str(arguments["x-dead-letter-exchange"])


def with_destinations(plan: Plan, *names: str) -> Plan:
    return (*plan, *(QueueDeclaration(name) for name in names), *(destination_binding(NAMES, name) for name in names))


@given(ALL_UNITS, QUEUES)
@settings(max_examples=300)
def test_the_path_of_every_delay_is_complete(units, queue):
    """Each step leads to exactly one queue, the last one to the destination, and the times add up."""
    plan = with_destinations(path_plan(NAMES, units), queue)
    *way, (last, _) = walk(plan, entry_key(units, queue))
    assert last == queue
    assert [name for name, _ in way] == [NAMES.delay_queue(stop.level, stop.digit) for stop in stops(units)]
    assert sum(ttl for _, ttl in way) == units * UNIT_MS + len(way)


@given(st.lists(ALL_UNITS, min_size=2, max_size=5), QUEUES)
def test_paths_do_not_disturb_each_other(many, queue):
    """With the declarations of other delays beside it, each message still goes its own way, and only that."""
    plan: Plan = tuple(part for units in many for part in path_plan(NAMES, units))
    plan = with_destinations(tuple(dict.fromkeys(plan)), queue)
    for units in many:
        *way, (last, _) = walk(plan, entry_key(units, queue))
        assert last == queue
        assert sum(ttl for _, ttl in way) == units * UNIT_MS + len(way)


@pytest.mark.parametrize(
    "queue", ["mail", "a.mail", "a..mail", ".mail", "mail.", "0.mail", "1.2.3.4.5.6.7.8", ".", "-"]
)
def test_a_queue_gets_only_what_is_for_it(queue):
    """Queues whose names are the ends, or look like the digits, of others' keys get nothing of theirs."""
    others = ["mail", "a.mail", "a..mail", ".mail", "mail.", "0.mail", "1.2.3.4.5.6.7.8", ".", "..", "-", "8"]
    plan = with_destinations(path_plan(NAMES, 0x12345678), *dict.fromkeys([queue, *others]))
    assert [name for name, _ in walk(plan, entry_key(0x12345678, queue))][-1] == queue


@given(ALL_UNITS)
def test_every_exchange_of_the_ladder_but_the_first_parks_what_it_cannot_route(units):
    """A hole in the path must not block the queue above it; at the entry the publisher must hear of it."""
    for part in path_plan(NAMES, units):
        if isinstance(part, ExchangeDeclaration) and part.name not in {NAMES.delay_enter, NAMES.unroutable}:
            assert part.arguments == {"alternate-exchange": NAMES.unroutable}


@given(ALL_UNITS)
def test_the_way_in_opens_last(units):
    """While anything is missing, no message can be in the ladder for it."""
    plan = path_plan(NAMES, units)
    ways_in = [part for part in plan if isinstance(part, BindingDeclaration) and part.exchange == NAMES.delay_enter]
    assert ways_in == [plan[-1]]


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
