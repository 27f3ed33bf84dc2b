"""What `asyncq doctor` reports, and whom it examines, as plain values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from asyncq.broker import QueueSpec
from asyncq.rabbitmq.declarations import QueueDeclaration
from asyncq.rabbitmq.topology import Names

__all__ = ["CURRENT", "OLDEST", "Finding", "Patient", "Severity", "messages", "release_of"]

Severity = Literal["ok", "note", "warning", "error"]

OLDEST = (3, 10)
CURRENT = (4, 3)
"""Of the versions that asyncq is tested with."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        severity: `ok`; `note`: good to know; `warning`: somebody should look; `error`: it does not work.
        check: What was looked at: a word that stays the same, for programs.
        seen: What was seen.
        todo: What to do.
    """

    severity: Severity
    check: str
    seen: str
    todo: str | None = None


@dataclass(frozen=True, slots=True)
class Patient:
    """Who is examined.

    Attributes:
        names: Of what asyncq declares.
        app: The app's name; None where only the broker is examined.
        queues: The task queues.
        limits: For each queue the task with the longest time limit, and that limit in seconds.
        declares: Whether the app declares what it needs; otherwise the whole delay ladder must stand.
        journal: The stream of cancellations and pauses; None where cancelling is switched off.
    """

    names: Names
    app: str | None
    queues: tuple[QueueSpec, ...]
    limits: Mapping[str, tuple[str, float]]
    declares: bool = True
    journal: QueueDeclaration | None = None


def release_of(version: str) -> tuple[int, int] | None:
    """Return major and minor of a version; None where it has none."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else None


def messages(count: int) -> str:
    """Return so many messages in words."""
    return f"{count} message{'s' * (count != 1)}"
