"""Rate limits: to each message its turn, once.

    comes in time ──────────▶ runs
    comes before its turn ──▶ the turn is reserved; back to the broker, delayed to it ──▶ runs when it comes

Turns are evenly spaced, and given in the order in which messages are taken: the virtual scheduling of ATM's generic
cell rate algorithm. What comes back with a turn of its own runs at once, however late it is, and takes no other one:
so a message is delayed once at most, holds no slot meanwhile, and a worker's memory is one number a task.

Invariant: of the messages that this worker has given turns to, no more have begun at any moment than the rate allows
since its first one. Late ones catch up, so a short time may see more.
Source: ITU-T I.371, the virtual scheduling algorithm
"""

from __future__ import annotations

import math

from asyncq.clock import Clock
from asyncq.message import Message, too_late_ms_of, turn_at_ms_of
from asyncq.outcome import Throttled
from asyncq.rate import Rate

__all__ = ["Turns"]

_TOLERANCE_S = 0.01
"""The delay ladder's unit: what comes so little before its turn runs, for no delay is shorter."""


class Turns:
    """The turns of one worker's tasks.

    Args:
        clock: What they go by.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._next_s: dict[str, float] = {}

    def take(self, task: str, rate: Rate | None, message: Message) -> Throttled | None:
        """Take the next turn for a message.

        Args:
            task: The task's name.
            rate: Its rate, where it has one.
            message: What is to run.

        Returns:
            None where it may run now; else when its turn is. One that expires before takes no turn away from others.

        Raises:
            MalformedMessage: Its turn is no time.
        """
        if rate is None or turn_at_ms_of(message) is not None:
            return None
        now_s = self._clock.monotonic()
        turn_s = max(now_s, self._next_s.get(task, now_s))
        if turn_s - now_s <= _TOLERANCE_S:
            self._next_s[task] = turn_s + rate.interval_s
            return None
        turn_ms = self._clock.now_ms() + math.ceil((turn_s - now_s) * 1000)
        expires_ms = too_late_ms_of(message)
        if expires_ms is None or turn_ms < expires_ms:
            self._next_s[task] = turn_s + rate.interval_s
        return Throttled(turn_ms, turn_s - now_s)
