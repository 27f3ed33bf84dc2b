"""Which dead letters are meant: by task, error, reason, age, id.

Pure. Invariant: what is not known about a letter does not match a condition on it: a letter without a time is neither
older nor newer than anything.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta

from asyncq.broker import DeadLetter
from asyncq.errors import InvalidOption
from asyncq.signals import seconds_of

__all__ = ["BY_THE_BROKER", "DeadLetterFilter", "reason_of"]

BY_THE_BROKER = "dead-lettered by the broker itself"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterFilter:
    """Which dead letters are meant. All conditions that are given must hold.

    Attributes:
        task: The task's name; `*` stands for any characters: `shop.*`.
        error: The error's type, as a whole or without its module: `builtins.ValueError`, `ValueError`, `*Timeout*`.
        reason: Why it was dead-lettered: `no retry policy`, `attempts*`; of the broker's own dead-lettering its word,
            such as `rejected` or `delivery_limit`.
        older_than: Parked longer ago than this, in seconds or as a `timedelta`.
        newer_than: Parked no longer ago than this.
        ids: Task ids, one of which it must have.

    Raises:
        InvalidOption: A value cannot be used.
    """

    task: str | None = None
    error: str | None = None
    reason: str | None = None
    older_than: float | timedelta | None = None
    newer_than: float | timedelta | None = None
    ids: Collection[str] | None = None

    def __post_init__(self) -> None:
        for name in ("task", "error", "reason"):
            pattern = getattr(self, name)
            if pattern is not None and (not isinstance(pattern, str) or not pattern):
                raise InvalidOption(f"DeadLetterFilter({name}=...) takes a text that is not empty, not {pattern!r}.")
        for name in ("older_than", "newer_than"):
            age = getattr(self, name)
            if age is not None:
                object.__setattr__(self, name, seconds_of(age, f"DeadLetterFilter({name}=...)"))
        if isinstance(self.ids, str):
            raise InvalidOption(f"DeadLetterFilter(ids=...) takes several ids: ids=[{self.ids!r}].")
        if self.ids is not None:
            object.__setattr__(self, "ids", frozenset(self.ids))

    def matches(self, letter: DeadLetter, now_ms: int) -> bool:
        """Tell whether a letter is meant.

        Args:
            letter: The letter.
            now_ms: From when its age counts, in milliseconds since the epoch.
        """
        if self.ids is not None and letter.message.task_id not in self.ids:
            return False
        if self.task is not None and not _fits(self.task, letter.message.type):
            return False
        if self.error is not None and not self._fits_error(letter):
            return False
        if self.reason is not None and not any(_fits(self.reason, text) for text in _reasons_of(letter)):
            return False
        return self._fits_age(letter, now_ms)

    def _fits_error(self, letter: DeadLetter) -> bool:
        if letter.record is None or self.error is None:
            return False
        kind = letter.record.failure.type
        return _fits(self.error, kind) or _fits(self.error, kind.rpartition(".")[2])

    def _fits_age(self, letter: DeadLetter, now_ms: int) -> bool:
        if self.older_than is None and self.newer_than is None:
            return True
        if letter.failed_at_ms is None:
            return False
        age_s = (now_ms - letter.failed_at_ms) / 1000
        older, newer = self.older_than, self.newer_than
        return (older is None or age_s > _seconds(older)) and (newer is None or age_s <= _seconds(newer))


def reason_of(letter: DeadLetter) -> str:
    """Return why a letter was parked, in words."""
    return BY_THE_BROKER if letter.record is None else letter.record.reason


def _reasons_of(letter: DeadLetter) -> list[str]:
    return [reason_of(letter), *([letter.broker_reason] if letter.broker_reason else [])]


def _seconds(age: float | timedelta) -> float:
    return age.total_seconds() if isinstance(age, timedelta) else age


def _fits(pattern: str, text: str) -> bool:
    """Compare, with `*` for any characters."""
    parts = map(re.escape, pattern.split("*"))
    return re.fullmatch(".*".join(parts), text, re.DOTALL) is not None
