"""What became of many dead letters, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["LetterCount", "PurgeReport", "ReplayReport"]


@dataclass(frozen=True, slots=True)
class LetterCount:
    """How many letters of one kind there are.

    Attributes:
        queue: The task queue that they came out of; None where that is not known.
        task: The task's name; empty where a message has none.
        error: The error's type; None where the broker itself has parked them.
        reason: Why they were parked.
        count: How many there are.
        oldest_ms: When the first of them was parked, in milliseconds since the epoch; None where that is not known.
        newest_ms: When the last one was.
    """

    queue: str | None
    task: str
    error: str | None
    reason: str
    count: int
    oldest_ms: int | None
    newest_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayReport:
    """What a replay has done.

    Attributes:
        total: How many letters there were when it began.
        examined: How many of them were looked at.
        matched: How many were meant.
        replayed: How many are in their queue again; in a dry run, how many would be sent there.
        failed: How many were meant, and could not be sent: they stayed.
        failures: Why, each reason with how many letters had it; at most 20 reasons.
        failed_ids: The task ids of the first 100 of them.
        missing_ids: Of the ids that were asked for, those that no letter had; empty where not all were looked at.
        dry_run: Whether nothing was changed.
    """

    total: int = 0
    examined: int = 0
    matched: int = 0
    replayed: int = 0
    failed: int = 0
    failures: Mapping[str, int] = field(default_factory=dict)
    failed_ids: tuple[str, ...] = ()
    missing_ids: tuple[str, ...] = ()
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PurgeReport:
    """What a purge has done.

    Attributes:
        total: How many letters there were when it began.
        examined: How many of them were looked at.
        purged: How many are gone; in a dry run, how many would be.
        missing_ids: Of the ids that were asked for, those that no letter had; empty where not all were looked at.
        dry_run: Whether nothing was changed.
    """

    total: int = 0
    examined: int = 0
    purged: int = 0
    missing_ids: tuple[str, ...] = ()
    dry_run: bool = False
