"""Long delays in stages: what the broker's ladder cannot carry at once is carried in several legs.

A message with a due time further away than one leg has the header `asyncq-staged-until`. A worker that meets it before
that time sends it on; the last leg is exact, and its header is gone.

Invariant: only a staged message is compared with a clock. Every other one is due when the broker delivers it: the
clocks of two machines differ, and a worker that is five minutes behind would delay everything by five more.
"""

from __future__ import annotations

from asyncq.errors import InvalidOption
from asyncq.message import STAGED_UNTIL, Headers

__all__ = ["LONGEST_DELAY_S", "LONGEST_LEG_S", "first_leg"]

LONGEST_LEG_S = 400 * 86400.0
"""Below what RabbitMQ's ladder reaches, which is 497 days."""

LONGEST_DELAY_S = 100 * 365.25 * 86400


def first_leg(delay_s: float, due_ms: int) -> tuple[float, Headers]:
    """Return how long the next leg of a delay takes, in seconds, and the header that tells of further ones.

    Args:
        delay_s: How far away the message is due, in seconds.
        due_ms: When that is, in milliseconds since the epoch.

    Raises:
        InvalidOption: Nobody waits for so long.
    """
    if delay_s <= LONGEST_LEG_S:
        return delay_s, {}
    if delay_s > LONGEST_DELAY_S:
        raise InvalidOption(f"A delay of {delay_s:g} seconds is too long: at most 100 years can be waited for.")
    return LONGEST_LEG_S, {STAGED_UNTIL: due_ms}
