"""Where brokers differ by nature: one table, with the reason of each difference.

A behaviour asks `bench.differs(key)` for the variant that holds. So a difference is tested like everything else: a
broker that stops to differ fails the suite. And the suite fails where a declared difference is asked for by no test.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

__all__ = ["DIFFERENCES", "Difference"]


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference between brokers.

    Attributes:
        key: What the test asks for.
        behaviour: The test's name.
        brokers: Names of brokers that differ from the others, as patterns: `RabbitMQ 3.*`.
        what: What they do in place of it.
        reason: Why, with the source.
    """

    key: str
    behaviour: str
    brokers: tuple[str, ...]
    what: str
    reason: str

    def holds_for(self, broker: str) -> bool:
        """Tell whether the broker of this name is one of those that differ."""
        return any(fnmatchcase(broker, pattern) for pattern in self.brokers)


DIFFERENCES: tuple[Difference, ...] = (
    Difference(
        key="letters that were looked at go to the end",
        behaviour="test_a_look_at_some_of_the_letters_that_were_all_looked_at_before_keeps_their_order",
        brokers=("RabbitMQ *",),
        what="the letters of the second look are shown behind those that it did not reach",
        reason="A quorum queue keeps what was given back in a queue of its own, in the order of the giving back, and "
        "hands it out before the rest (measured on 3.10 and 4.3; `returns` in rabbit_fifo.erl). So the order stays "
        "as long as each look takes at least as many as the ones before it.",
    ),
    Difference(
        key="priority overtakes",
        behaviour="test_a_priority_decides_the_order_only_where_the_broker_has_priorities",
        brokers=("RabbitMQ 4.[3-9]*",),
        what="a message of higher priority is handed out before earlier ones",
        reason="Quorum queues have priorities from RabbitMQ 4.3 on, and those of messages from foreign senders count "
        "(measured on 4.3 and 3.10). 4.0 to 4.2 have two levels and mix them: the behaviour does not hold for these.",
    ),
)
