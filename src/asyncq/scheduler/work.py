"""What a scheduler has to do, and what it has done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from asyncq.broker import Publication
from asyncq.clock import Clock
from asyncq.scheduler.declared import Scheduled, Sends

__all__ = ["Counts", "Publish", "Work"]

Publish = Callable[[Publication], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Work:
    """What a scheduler has to do.

    Attributes:
        app: The app's name.
        scheduled: What it declares, by name.
        tz: The zone of a `Cron` that names none.
        send: Makes the messages of a signature or a workflow, and publishes them by what it is given.
        clock: Where the time comes from.
        timeout_s: How long a publish waits for its confirm, in seconds.
    """

    app: str
    scheduled: Mapping[str, Scheduled]
    tz: str
    send: Callable[[Sends, Publish], Awaitable[None]]
    clock: Clock
    timeout_s: float


@dataclass(slots=True)
class Counts:
    """What was done, over all terms of a scheduler.

    Attributes:
        sent: Confirmed ticks, by schedule.
        skipped: Fire times without a run, by schedule and reason: `missed`, `deadline`, `refused`.
        lag_s: How late the last tick was confirmed, in seconds.
    """

    sent: Counter[str] = field(default_factory=Counter)
    skipped: Counter[tuple[str, str]] = field(default_factory=Counter)
    lag_s: float = 0.0
