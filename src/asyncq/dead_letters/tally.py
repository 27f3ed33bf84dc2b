"""Counting: letters by kind for a summary, and what becomes of the letters of one run for its report.

Invariant: it takes bounded memory, whatever is in the letters.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from asyncq.broker import DeadLetter
from asyncq.dead_letters.filters import DeadLetterFilter, reason_of
from asyncq.dead_letters.reports import LetterCount, PurgeReport, ReplayReport

__all__ = ["RunTally", "SummaryTally"]

_MOST_KINDS = 1000
_MOST_REASONS = 20
_MOST_FAILED_IDS = 100
_OTHERS = "(others)"


class SummaryTally:
    """Counts letters by queue, task, error type and reason."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str | None, str, str | None, str], LetterCount] = {}

    def add(self, letter: DeadLetter) -> None:
        """Count one letter."""
        error = None if letter.record is None else letter.record.failure.type
        kind = (letter.queue, letter.message.type, error, reason_of(letter))
        if kind not in self._counts and len(self._counts) >= _MOST_KINDS:
            kind = (letter.queue, _OTHERS, _OTHERS, _OTHERS)
        known = self._counts.get(kind) or LetterCount(*kind, 0, None, None)
        times = [time for time in (known.oldest_ms, known.newest_ms, letter.failed_at_ms) if time is not None]
        self._counts[kind] = replace(
            known, count=known.count + 1, oldest_ms=min(times, default=None), newest_ms=max(times, default=None)
        )

    def counts(self) -> list[LetterCount]:
        """Return the counts, the largest first."""
        return sorted(self._counts.values(), key=lambda kind: (-kind.count, kind.task, kind.error or ""))


class RunTally:
    """Counts what becomes of the letters of one run.

    Args:
        where: Which letters are meant.
        dry_run: Whether nothing is changed.
        limit: How many are meant at most.
    """

    def __init__(self, where: DeadLetterFilter, *, dry_run: bool, limit: int | None) -> None:
        self._missing = set(where.ids or ())
        self._dry_run = dry_run
        self._limit = limit
        self._failures: Counter[str] = Counter()
        self._failed_ids: list[str] = []
        self.total = 0
        self.examined = 0
        self.matched = 0
        self.done = 0
        self.failed = 0

    def is_full(self) -> bool:
        """Tell whether as many were met as are meant at most."""
        return self._limit is not None and self.matched >= self._limit

    def matches(self, letter: DeadLetter) -> None:
        """Count a letter that is meant."""
        self.matched += 1
        self._missing.discard(letter.message.task_id)

    def fails(self, letter: DeadLetter, reason: str) -> None:
        """Count one that stays, and why."""
        self.failed += 1
        if reason not in self._failures and len(self._failures) >= _MOST_REASONS:
            reason = _OTHERS
        self._failures[reason] += 1
        if len(self._failed_ids) < _MOST_FAILED_IDS:
            self._failed_ids.append(letter.message.task_id)

    def replay_report(self) -> ReplayReport:
        """Return what a replay has done so far."""
        return ReplayReport(
            total=self.total,
            examined=self.examined,
            matched=self.matched,
            replayed=self.done,
            failed=self.failed,
            failures=dict(self._failures),
            failed_ids=tuple(self._failed_ids),
            missing_ids=self._missing_ids,
            dry_run=self._dry_run,
        )

    def purge_report(self) -> PurgeReport:
        """Return what a purge has done so far."""
        return PurgeReport(
            total=self.total,
            examined=self.examined,
            purged=self.done,
            missing_ids=self._missing_ids,
            dry_run=self._dry_run,
        )

    @property
    def _missing_ids(self) -> tuple[str, ...]:
        return tuple(sorted(self._missing)) if self.examined >= self.total else ()
