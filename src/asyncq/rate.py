"""A rate, as people write it: "5/s", "100/m", "1000/h".

Pure. Invariant: a `Rate` is a number of whole turns in a time, so that one turn has a length.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from asyncq.errors import InvalidOption

__all__ = ["Rate"]

_FORM = re.compile(r"\s*(?P<count>[0-9]{1,9})\s*/\s*(?P<unit>[smhd])\s*")
_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_MOST_A_SECOND = 10_000


@dataclass(frozen=True, slots=True)
class Rate:
    """So many attempts in so much time.

    Attributes:
        count: How many.
        period_s: In how many seconds.
    """

    count: int
    period_s: float

    @property
    def interval_s(self) -> float:
        """How much time is between two turns, in seconds."""
        return self.period_s / self.count

    @classmethod
    def of(cls, text: Any, where: str) -> Rate:
        """Return the rate of a text.

        Args:
            text: A whole number, a slash, and s, m, h or d: "100/m".
            where: What was given so, for the error: `@task(rate=...)`.

        Raises:
            InvalidOption: It is none, or no worker could keep it.
        """
        found = _FORM.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise InvalidOption(
                f"{where} takes a whole number in a second, minute, hour or day, such as '5/s', '100/m', '1000/h' or "
                f"'20/d', not {text!r}."
            )
        rate = cls(int(found["count"]), _UNITS_S[found["unit"]])
        if rate.count < 1 or rate.count / rate.period_s > _MOST_A_SECOND:
            raise InvalidOption(
                f"{where} must be at least 1 and at most {_MOST_A_SECOND} a second, not {text!r}. For a task that may "
                "run as often as it comes, leave it out."
            )
        return rate
