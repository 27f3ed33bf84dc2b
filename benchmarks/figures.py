"""What was measured: pairs of figures, their ratios, and whether a limit is kept. Pure values."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["RAW", "Figure", "Limit", "Pair", "missed"]

RAW = "raw aio-pika"


@dataclass(frozen=True, slots=True)
class Limit:
    """What a ratio may be.

    Attributes:
        kind: Whether more or less is better.
        value: The limit of the median ratio.
    """

    kind: Literal["at least", "at most"]
    value: float

    def kept_by(self, ratio: float) -> bool:
        """Tell whether a ratio keeps it."""
        return ratio >= self.value if self.kind == "at least" else ratio <= self.value

    def __str__(self) -> str:
        return f"{'>=' if self.kind == 'at least' else '<='} {self.value:g}"


@dataclass(frozen=True, slots=True)
class Pair:
    """One round: the other side's figure, and asyncq's right beside it."""

    other: float
    asyncq: float

    @property
    def ratio(self) -> float:
        """Return asyncq's figure in units of the other side's."""
        return self.asyncq / self.other


@dataclass(slots=True)
class Figure:
    """One thing that was measured, in several rounds.

    The rounds of both sides alternate, and each ratio is of two neighbours, because other work on the same machine
    changes the figures more than anything that is compared here.

    Attributes:
        name: In words.
        unit: Of the absolute figures.
        limit: What the median ratio must keep; None where it is only recorded.
        rounds: A pair each.
        beside: What the other side is.
    """

    name: str
    unit: str
    limit: Limit | None = None
    rounds: list[Pair] = field(default_factory=list)
    beside: str = RAW

    @property
    def ratio(self) -> float:
        """The median ratio."""
        return statistics.median(pair.ratio for pair in self.rounds)

    @property
    def spread(self) -> tuple[float, float]:
        """The smallest and the largest ratio."""
        ratios = [pair.ratio for pair in self.rounds]
        return min(ratios), max(ratios)

    @property
    def other(self) -> float:
        """The median of the other side's absolute figures."""
        return statistics.median(pair.other for pair in self.rounds)

    @property
    def asyncq(self) -> float:
        """The median of asyncq's absolute figures."""
        return statistics.median(pair.asyncq for pair in self.rounds)

    @property
    def kept(self) -> bool | None:
        """Whether the limit is kept; None without one."""
        return None if self.limit is None else self.limit.kept_by(self.ratio)

    def as_json(self) -> dict[str, Any]:
        """Return all of it."""
        low, high = self.spread
        return {
            "name": self.name,
            "beside": self.beside,
            "unit": self.unit,
            "limit": None if self.limit is None else str(self.limit),
            "kept": self.kept,
            "ratio": {"median": self.ratio, "min": low, "max": high},
            "other": self.other,
            "asyncq": self.asyncq,
            "rounds": [{"other": pair.other, "asyncq": pair.asyncq} for pair in self.rounds],
        }


def missed(figures: Sequence[Figure]) -> list[Figure]:
    """Return those that do not keep their limit."""
    return [figure for figure in figures if figure.kept is False]
