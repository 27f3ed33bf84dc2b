"""What a scheduler has done, and what comes next."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, CollectorRegistry, Counter

from asyncq.observability.metrics.registry import Differences, gauge

if TYPE_CHECKING:
    from asyncq.scheduler.service import SchedulerStats

__all__ = ["SchedulerMetrics"]


class SchedulerMetrics:
    """What a scheduler has done, and what comes next.

    Args:
        registry: Where the metrics are.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._leads = gauge("asyncq_scheduler_leads", "Whether a scheduler leads here.", (), registry)
        self._terms = Counter("asyncq_scheduler_terms", "How often a scheduler has come to lead.", registry=registry)
        self._ticks = Counter("asyncq_scheduler_ticks", "Ticks that were sent.", ("schedule",), registry=registry)
        self._skipped = Counter(
            "asyncq_scheduler_skipped", "Fire times that got no run.", ("schedule", "reason"), registry=registry
        )
        self._lag = gauge(
            "asyncq_scheduler_tick_lag_seconds",
            "How late the last tick was confirmed.",
            (),
            registry,
            mode="livemax",
        )
        self._late = gauge(
            "asyncq_scheduler_late_seconds",
            "For how long the next fire time is over, and its tick not sent; 0 where all is in time.",
            (),
            registry,
            mode="livemax",
        )
        self._next = gauge(
            "asyncq_scheduler_next_fire_timestamp_seconds",
            "When a schedule fires next, in seconds since the epoch, as the leader sees it; 0 elsewhere.",
            ("schedule",),
            registry,
            mode="livemax",
        )
        self._counted = Differences()
        self._known: set[str] = set()

    def look(self, stats: SchedulerStats) -> None:
        """Count what is new, and set what is a state."""
        self._leads.set(stats.leads)
        self._terms.inc(self._counted.new("terms", stats.terms))
        for schedule, count in stats.sent.items():
            self._ticks.labels(schedule).inc(self._counted.new(("sent", schedule), count))
        for (schedule, reason), count in stats.skipped.items():
            self._skipped.labels(schedule, reason).inc(self._counted.new(("skipped", schedule, reason), count))
        self._lag.set(stats.lag_s)
        soonest_ms = min(stats.upcoming.values(), default=None)
        self._late.set(0.0 if soonest_ms is None else max(0.0, time.time() - soonest_ms / 1000))
        self._known |= stats.upcoming.keys()
        for schedule in self._known:
            self._next.labels(schedule).set(stats.upcoming.get(schedule, 0) / 1000)
