"""The delay ladder for any delay and any queue: never early, rounded only as far as allowed, and no path has a hole.

A message walks through the plan by the rules of AMQP: bindings of a topic exchange, dead-lettering with the key
kept, alternate exchanges. No broker is asked; tests/integration/test_delay_ladder.py does that.
"""

from collections.abc import Iterator
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from asyncq.broker import Delay
from asyncq.errors import InvalidQueueName
from asyncq.queue_names import MAX_QUEUE_NAME_BYTES, check_queue_name
from asyncq.rabbitmq.declarations import BindingDeclaration, Declaration, ExchangeDeclaration, Plan, QueueDeclaration
from asyncq.rabbitmq.delay_routing import MAX_DELAY_S, MAX_UNITS, UNIT_MS, entry_key, path_plan, rounded_units, stops
from asyncq.rabbitmq.ladder_plan import ladder_plan
from asyncq.rabbitmq.topology import Names, base_plan, destination_binding

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


def is_legal(name: str) -> bool:
    try:
        check_queue_name(name)
    except InvalidQueueName:
        return False
    return True


QUEUES = st.one_of(
    st.text("abcXYZ019._-", min_size=1, max_size=MAX_QUEUE_NAME_BYTES),
    # Names that look like the digits of a key, or like the end of another name.
    st.lists(st.sampled_from(["0", "1", "f", "a", "mail", ""]), min_size=1, max_size=12).map(".".join),
).filter(is_legal)
DELAYS = st.builds(Delay, SECONDS, st.none() | SECONDS)


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


@given(ALL_UNITS)
def test_each_stop_makes_good_the_millisecond_that_its_clock_can_lose(units):
    """A message that arrives at 0.9 ms past a tick of the broker's clock has lost 0.9 ms of its stay."""
    way = stops(units)
    shortest_ms = sum(stop.ttl_ms - 1 for stop in way)
    assert shortest_ms == units * UNIT_MS


# --- a message walks through the plan


def matches(pattern: list[str], words: list[str]) -> bool:
    """AMQP's topic rule: `*` is one word, `#` any number; words may be empty."""
    if not pattern:
        return not words
    if pattern[0] == "#":
        return any(matches(pattern[1:], words[skip:]) for skip in range(len(words) + 1))
    return bool(words) and pattern[0] in {"*", words[0]} and matches(pattern[1:], words[1:])


def fits(part: BindingDeclaration, kind: str, key: str) -> bool:
    return kind == "fanout" or matches(part.key.split("."), key.split("."))


class Broker:
    """What stands, and where a message goes by it; `used` is what its messages have gone by."""

    def __init__(self, plan: Plan) -> None:
        self.queues = {part.name: part for part in plan if isinstance(part, QueueDeclaration)}
        self.exchanges = {part.name: part for part in plan if isinstance(part, ExchangeDeclaration)}
        self.bindings: dict[str, list[BindingDeclaration]] = {name: [] for name in self.exchanges}
        for part in dict.fromkeys(plan):
            if isinstance(part, BindingDeclaration) and (part.kind == "exchange" or part.destination in self.queues):
                self.bindings[part.exchange].append(part)
        self.used: list[Declaration] = []

    def routed(self, exchange: str, key: str) -> list[str]:
        """Return the queues that a publish reaches; one that two bindings lead to is in it twice."""
        reached: list[str] = []
        declared = self.exchanges[exchange]
        for part in self.bindings[exchange]:
            if fits(part, declared.type, key):
                self.used.append(part)
                reached += [part.destination] if part.kind == "queue" else self.routed(part.destination, key)
        alternate = declared.arguments.get("alternate-exchange")
        return self.routed(alternate, key) if not reached and alternate else reached

    def walk(self, key: str) -> Iterator[tuple[str, int]]:
        """Yield each queue that the message comes to, with its TTL; 0 for the queue where it stays.

        Nothing, where the entry exchange returns it.
        """
        exchange = NAMES.delay_enter
        while reached := self.routed(exchange, key):
            (name,) = reached  # never two
            self.used.append(self.queues[name])
            arguments = self.queues[name].arguments
            if "x-message-ttl" not in arguments:
                yield name, 0
                return
            yield name, int(arguments["x-message-ttl"])
            exchange = str(arguments["x-dead-letter-exchange"])
        assert exchange == NAMES.delay_enter, f"{exchange} has dropped a message"


def with_destinations(plan: Plan, *names: str) -> Plan:
    return (*plan, *(QueueDeclaration(name) for name in names), *(destination_binding(NAMES, name) for name in names))


WHOLE = tuple(dict.fromkeys((*base_plan(NAMES), *ladder_plan(NAMES))))


@given(DELAYS, QUEUES)
def test_the_path_of_every_delay_is_complete(delay, queue):
    """Each step leads to exactly one queue, the last one to the destination, and the times add up."""
    units = rounded_units(delay)
    plan = with_destinations(path_plan(NAMES, units), queue)
    *way, (last, _) = Broker(plan).walk(entry_key(units, queue))
    assert last == queue
    assert [name for name, _ in way] == [NAMES.delay_queue(stop.level, stop.digit) for stop in stops(units)]
    assert sum(ttl for _, ttl in way) == units * UNIT_MS + len(way)


@given(st.lists(ALL_UNITS, min_size=2, max_size=5), QUEUES)
def test_paths_do_not_disturb_each_other(many, queue):
    """With the declarations of other delays beside it, each message still goes its own way, and only that."""
    plan: Plan = tuple(part for units in many for part in path_plan(NAMES, units))
    broker = Broker(with_destinations(plan, queue))
    for units in many:
        *way, (last, _) = broker.walk(entry_key(units, queue))
        assert last == queue
        assert sum(ttl for _, ttl in way) == units * UNIT_MS + len(way)


@given(ALL_UNITS, st.lists(QUEUES, min_size=1, max_size=20, unique=True))
def test_a_queue_gets_only_what_is_for_it(units, queues):
    """On the whole ladder, whatever other queues there are."""
    broker = Broker(with_destinations(WHOLE, *queues))
    for queue in queues:
        assert list(broker.walk(entry_key(units, queue)))[-1] == (queue, 0)


AWKWARD = ["mail", "a.mail", "a..mail", ".mail", "mail.", "0.mail", "1.2.3.4.5.6.7.8", ".", "..", "-", "8"]


@pytest.mark.parametrize("queue", AWKWARD)
def test_a_queue_with_an_awkward_name_gets_only_what_is_for_it(queue):
    """Queues whose names are the ends, or look like the digits, of others' keys get nothing of theirs."""
    broker = Broker(with_destinations(WHOLE, *AWKWARD))
    assert list(broker.walk(entry_key(0x12345678, queue)))[-1] == (queue, 0)


# --- a ladder with a hole


PARTS = [
    part
    for part in with_destinations(WHOLE, "mail")
    if not isinstance(part, ExchangeDeclaration) and NAMES.unroutable not in str(part)
]


@given(ALL_UNITS, st.data())
def test_a_missing_part_holds_up_only_what_needs_it_and_that_is_not_dropped(units, data):
    """One queue, binding or destination less: its messages are returned at the entry, or parked. All others arrive."""
    whole = with_destinations(WHOLE, "mail", "other")
    ways = {queue: way_of(whole, units, queue)[1] for queue in ("mail", "other")}
    missing = data.draw(st.sampled_from(PARTS) | st.sampled_from(ways["mail"]))  # most parts are of no use to this one
    broken = tuple(part for part in whole if part != missing)
    for queue, needed in ways.items():
        ends, _ = way_of(broken, units, queue)
        if missing not in needed:
            assert ends[-1] == queue
        elif missing in needed[:2]:  # its binding at the entry, and the queue behind that
            assert ends == []
        else:
            assert ends[-1] == NAMES.unroutable


def way_of(plan: Plan, units: int, queue: str) -> tuple[list[str], list[Declaration]]:
    """Return the queues that a message comes through, and the parts of the plan that it needs for it."""
    broker = Broker(plan)
    return [name for name, _ in broker.walk(entry_key(units, queue))], broker.used


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
