"""A circuit breaker: whether the work of a queue fails so often that its slots had better pause.

    closed ──nearly every delivery fails──▶ open ──the pause is over──▶ half-open
      ▲                                      ▲                           │    │
      │                                      └────the first one fails────┘    │
      └──────────────────────────the first one succeeds───────────────────────┘

Pure: the time comes as an argument, and nothing here pauses anything. A delivery that began before the latest change
of state tells how things were before it, so it is not counted: what ran into the pause decides nothing after it.

Invariant: deliveries are counted in ten slices of the window, so the memory is the same whatever the throughput. What
is as old as nine tenths of the window is always counted, what is as old as the window never.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

from asyncq.errors import InvalidOption
from asyncq.signals import seconds_of

__all__ = ["DEFAULT_BREAKER", "Breaker", "BreakerDefaults", "BreakerState", "CircuitBreaker", "breaker_defaults_of"]

BreakerState = Literal["closed", "open", "half-open"]

_SLICES = 10
_LONGEST_PAUSE_S = 15 * 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitBreaker:
    """When the slots of a queue pause, because nearly every delivery fails, and for how long.

    Args:
        failures: The share of failed deliveries that is too much: more than 0, at most 1.
        at_least: So many deliveries must have ended within the window before their share says anything.
        window: How far back deliveries are counted, in seconds or as a `timedelta`; to a tenth of it.
        pause: How long the slots take nothing, in seconds or as a `timedelta`; at most 15 minutes. Then the first
            delivery decides whether they go on, or pause again.

    Raises:
        InvalidOption: A value cannot be used; the message says what is wanted.
    """

    failures: float = 0.95
    at_least: int = 20
    window: float | timedelta = 60.0
    pause: float | timedelta = 30.0

    def __post_init__(self) -> None:
        share = self.failures
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise InvalidOption(
                f"CircuitBreaker(failures=...) takes a share, more than 0 and at most 1, such as 0.95, not {share!r}."
            )
        if isinstance(self.at_least, bool) or not isinstance(self.at_least, int) or self.at_least < 1:
            raise InvalidOption(f"CircuitBreaker(at_least=...) must be 1 or more deliveries, not {self.at_least!r}.")
        for name in ("window", "pause"):
            seconds = seconds_of(getattr(self, name), f"CircuitBreaker({name}=...)")
            if seconds == 0:
                raise InvalidOption(
                    f"CircuitBreaker({name}=...) must be more than zero. Where slots are never to pause: breaker=None."
                )
            object.__setattr__(self, name, seconds)
        if self.pause_s > _LONGEST_PAUSE_S:
            raise InvalidOption(
                f"CircuitBreaker(pause=...) must be at most {_LONGEST_PAUSE_S:g} s, not {self.pause_s:g} s: a paused "
                "slot may hold a delivery, and RabbitMQ takes that back after its consumer timeout. A queue that "
                "still fails after the pause is paused again."
            )

    @property
    def window_s(self) -> float:
        """The window, in seconds."""
        return seconds_of(self.window, "window")

    @property
    def pause_s(self) -> float:
        """The pause, in seconds."""
        return seconds_of(self.pause, "pause")


DEFAULT_BREAKER = CircuitBreaker()
"""The circuit breaker of an app that says nothing about it."""


@dataclass(frozen=True, slots=True)
class BreakerDefaults:
    """The circuit breakers of an app's queues; None means that a queue has none.

    Args:
        app: Of all queues that say nothing about theirs.
        queues: By the name of the queue.
    """

    app: CircuitBreaker | None = DEFAULT_BREAKER
    queues: Mapping[str, CircuitBreaker | None] = field(default_factory=dict)

    def of(self, queue: str) -> CircuitBreaker | None:
        """Return the circuit breaker of this queue."""
        return self.queues.get(queue, self.app)


def breaker_defaults_of(breaker: Any, queues: Mapping[str, Mapping[str, Any]]) -> BreakerDefaults:
    """Return the checked circuit breakers of an app.

    Args:
        breaker: What was given as `AsyncQ(breaker=...)`.
        queues: What was given as `AsyncQ(queues=...)`: a mapping of mappings.

    Raises:
        InvalidOption: A value cannot be used; the message says where it stands.
    """
    found = {
        name: _checked(options["breaker"], f"AsyncQ(queues={{{name!r}: ...}})['breaker']")
        for name, options in queues.items()
        if "breaker" in options
    }
    return BreakerDefaults(_checked(breaker, "AsyncQ(breaker=...)"), found)


def _checked(value: Any, what: str) -> CircuitBreaker | None:
    if value is not None and not isinstance(value, CircuitBreaker):
        raise InvalidOption(f"{what} takes a CircuitBreaker, or None for no circuit breaker, not {value!r}.")
    return value


class Breaker:
    """The circuit breaker of one queue, as it stands.

    Args:
        rules: When it opens.

    Attributes:
        state: Closed: the slots work. Open: they pause. Half-open: they work, and the first delivery decides.
    """

    def __init__(self, rules: CircuitBreaker) -> None:
        self.state: BreakerState = "closed"
        self._failures = rules.failures
        self._at_least = rules.at_least
        self._slice_s = rules.window_s / _SLICES
        self._slices: deque[_Slice] = deque()
        self._since_s = float("-inf")

    def counts(self) -> tuple[int, int]:
        """Return how many deliveries of the window have failed, and of how many."""
        return sum(item.failed for item in self._slices), sum(item.of for item in self._slices)

    def count(self, *, failed: bool, began_s: float, now_s: float) -> BreakerState | None:
        """Count one delivery that has ended.

        Args:
            failed: How it ended.
            began_s: When it began, in seconds of a clock that never goes back.
            now_s: The time now, by the same clock.

        Returns:
            The new state, where this has changed it.
        """
        if self.state == "open" or began_s < self._since_s:
            return None
        if self.state == "half-open":
            return self._change("open" if failed else "closed", now_s)
        self._add(failed=failed, now_s=now_s)
        if not failed:
            return None
        bad, of = self.counts()
        if of < self._at_least or bad / of < self._failures:
            return None
        return self._change("open", now_s)

    def half_open(self, now_s: float) -> None:
        """End the pause: the first delivery that begins from now on decides."""
        self._change("half-open", now_s)

    def _change(self, state: BreakerState, now_s: float) -> BreakerState:
        if state == "half-open":
            self._slices.clear()
        self.state, self._since_s = state, now_s
        return state

    def _add(self, *, failed: bool, now_s: float) -> None:
        number = int(now_s // self._slice_s)
        if not self._slices or self._slices[-1].number != number:
            self._slices.append(_Slice(number))
            while self._slices[0].number <= number - _SLICES:
                self._slices.popleft()
        self._slices[-1].of += 1
        self._slices[-1].failed += failed


class _Slice:
    """What was counted in one tenth of the window."""

    __slots__ = ("failed", "number", "of")

    def __init__(self, number: int) -> None:
        self.number = number
        self.failed = 0
        self.of = 0
