"""What a program begins with, and how long it may take: read from the tree, without going on with it.

Pure functions; `interpreter.py` does what they say.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from asyncq.errors import InvalidOption
from asyncq.message import LATEST_MS
from asyncq.program import Arrival, Fork, Place, Program, Step

__all__ = ["has_step", "is_joined", "longest_s", "members", "next_messages", "over_ms"]


def is_joined(fork: Fork, place: Place) -> bool:
    """Tell whether anybody wants the list of a fork that has this place."""
    return fork.joined or place.has_more or place.chord is not None


def has_step(program: Program) -> bool:
    """Tell whether there is any task in it."""
    return any(isinstance(element, Step) or any(map(has_step, element.members)) for element in program)


def members(fork: Fork, place: Place, kept_until_ms: int) -> Iterator[tuple[Program, Place]]:
    """Yield the members of a fork, each with what the message of its first step carries."""
    wanted, size = is_joined(fork, place), len(fork.members)
    for index, member in enumerate(fork.members):
        arrival = Arrival(fork.id, index, size, kept_until_ms) if wanted else None
        yield member, Place(place.workflow, member[1:], chord=arrival, ends=False)


def next_messages(place: Place) -> Iterator[tuple[Step, Place]]:
    """Yield the steps that take the value now, each with what its message carries."""
    if not place.then:
        return
    element, rest = place.then[0], replace(place, then=place.then[1:])
    if isinstance(element, Step):
        yield element, rest
        return
    for member, inside in members(element, rest, LATEST_MS):
        yield from next_messages(replace(inside, then=member))


def over_ms(place: Place, now_ms: int) -> int | None:
    """Return when the time was over of a step that comes next, and would never run; None where there is none."""
    for step, _ in next_messages(place):
        try:
            step.sending.times_at(now_ms)
            step.sending.deadline_at(now_ms)
        except InvalidOption:
            return step.sending.expires_ms or step.sending.deadline_ms or now_ms
    return None


def longest_s(element: Step | Fork, now_ms: int) -> float:
    """Return how long an element may take by its own options, in seconds: delays, and time limits."""
    if isinstance(element, Fork):
        return max((sum(longest_s(item, now_ms) for item in member) for member in element.members), default=0.0)
    sending = element.sending
    delay_s = sending.delay_s or 0.0
    if sending.eta_ms is not None:
        delay_s = max(0.0, (sending.eta_ms - now_ms) / 1000)
    return delay_s + (sending.time_limit_s or 0.0)
