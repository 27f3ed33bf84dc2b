"""Metrics for Prometheus: what is counted, and by what names.

Everything is in `prometheus_client`'s own registry, so that what an application counts by it stands beside. The table
of names is in docs/metrics.md, and a test compares the two.

Counters and durations are counted where they happen. What is a state (in flight, slots, connection ...) is set once a
second, in the event loop.

Invariant: labels come from declarations, never from messages: a foreign message cannot make a new time series.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder

from asyncq.broker import BrokerState, BrokerStatus
from asyncq.outcome import (
    Cancelled,
    Deferred,
    Drained,
    Expired,
    Failed,
    LostLease,
    Outcome,
    Postponed,
    Rejected,
    Repeated,
    RetryLater,
    Snoozed,
    Staged,
    Succeeded,
    Throttled,
)
from asyncq.sends import Sent

if TYPE_CHECKING:  # a program that only sends need not load what works
    from asyncq.recording import Recorder
    from asyncq.scheduler.service import SchedulerStats
    from asyncq.worker.attempt import AnyTask
    from asyncq.worker.settled import Settled
    from asyncq.worker.worker import Worker

__all__ = ["ConnectionMetrics", "SchedulerMetrics", "SendMetrics", "WorkerMetrics", "scrape_all", "scrape_of"]

OUTCOMES: Final[Mapping[type[Outcome], str]] = {
    Succeeded: "succeeded",
    RetryLater: "retried",
    Failed: "failed",
    Rejected: "rejected",
    Cancelled: "cancelled",
    Expired: "expired",
    Snoozed: "snoozed",
    Postponed: "postponed",
    Deferred: "deferred",
    Staged: "staged",
    Throttled: "throttled",
    Drained: "handed_back",
    LostLease: "lease_lost",
    Repeated: "repeated",
}
_UNKNOWN: Final = "(unknown)"
_RUN_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1500.0)
_WAIT_BUCKETS: Final = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 21600.0)
_CONNECTION_STATES: Final[tuple[BrokerState, ...]] = ("connecting", "ready", "blocked", "fatal", "closed")
_BREAKER_STATES: Final = ("closed", "open", "half-open")


def scrape_all(accept: str) -> tuple[str, bytes]:
    """Return the content type and the text of all metrics of this process.

    Args:
        accept: What the request accepts, as its header says.
    """
    return scrape_of(REGISTRY, accept)


def scrape_of(registry: CollectorRegistry, accept: str) -> tuple[str, bytes]:
    """Return the content type and the text of all metrics of a registry."""
    encode, kind = choose_encoder(accept)
    return kind, encode(registry)


class WorkerMetrics:
    """What a worker process has done and does.

    Args:
        worker: The worker; it is observed from now on.
        tasks: The tasks that it has. Other names make no labels: they come from foreign messages.
        registry: Where the metrics are.
    """

    def __init__(self, worker: Worker, tasks: Mapping[str, AnyTask], registry: CollectorRegistry = REGISTRY) -> None:
        self._worker = worker
        self._tasks = tasks
        labels = ("queue", "task")
        self._deliveries = Counter(
            "asyncq_deliveries",
            "Deliveries that were settled, by how they ended.",
            (*labels, "outcome"),
            registry=registry,
        )
        self._dead_letters = Counter(
            "asyncq_dead_letters",
            "Messages that were put among the dead letters, by the queue that they came from.",
            labels,
            registry=registry,
        )
        self._run = Histogram(
            "asyncq_attempt_duration_seconds",
            "How long the code of attempts ran.",
            labels,
            buckets=_RUN_BUCKETS,
            registry=registry,
        )
        self._wait = Histogram(
            "asyncq_queue_wait_seconds",
            "How long what was run had waited in its queue, since it was sent or due.",
            ("queue",),
            buckets=_WAIT_BUCKETS,
            registry=registry,
        )
        self._in_flight = _gauge("asyncq_attempts_running", "Attempts that run.", labels, registry)
        self._slots = _gauge("asyncq_slots", "Slots: so many tasks of a queue run at once.", ("queue",), registry)
        self._breakers = _gauge(
            "asyncq_circuit_breakers",
            "Worker processes whose circuit breaker of this queue is in this state.",
            ("queue", "state"),
            registry,
        )
        self._threads = _gauge("asyncq_threads_busy", "Threads that run tasks, abandoned ones included.", (), registry)
        self._processes = _gauge("asyncq_task_processes_busy", "Processes that run tasks.", (), registry)
        self._overdue = _gauge(
            "asyncq_attempts_overdue", "Attempts that were given up, and whose code goes on.", (), registry
        )
        self._children: dict[tuple[str, str, type[Outcome]], Any] = {}
        self._runs: dict[tuple[str, str], Any] = {}
        self._waits: dict[str, Any] = {}
        self._running_labels = {(task.queue, name) for name, task in tasks.items() if task.queue in worker.queues}
        worker.observers.append(self.settled)

    def settled(self, settled: Settled) -> None:
        """Count a delivery. Its labels are looked up once each: this runs for every message."""
        queue, kind = settled.queue, type(settled.outcome)
        task = settled.task if settled.task in self._tasks else _UNKNOWN
        counter = self._children.get((queue, task, kind))
        if counter is None:
            counter = self._deliveries.labels(queue, task, OUTCOMES[kind])
            self._children[queue, task, kind] = counter
        counter.inc()
        if settled.ran_s is not None:
            run = self._runs.get((queue, task))
            if run is None:
                run = self._runs[queue, task] = self._run.labels(queue, task)
            run.observe(settled.ran_s)
        if settled.waited_s is not None:
            wait = self._waits.get(queue)
            if wait is None:
                wait = self._waits[queue] = self._wait.labels(queue)
            wait.observe(settled.waited_s)
        if _is_buried(settled.outcome):
            self._dead_letters.labels(queue, task).inc()

    def look(self) -> None:
        """Set what is a state."""
        stats = self._worker.stats()
        running: dict[tuple[str, str], int] = dict.fromkeys(self._running_labels, 0)
        for item in self._worker.running():
            running[item.queue, item.task] = running.get((item.queue, item.task), 0) + 1
        self._running_labels = set(running)
        for (queue, task), count in running.items():
            self._in_flight.labels(queue, task).set(count)
        for queue, count in self._worker.queues.items():
            self._slots.labels(queue).set(count)
        for queue, present in stats.breakers.items():
            _set_state(self._breakers, (queue,), present, _BREAKER_STATES)
        self._threads.set(stats.threads_busy)
        self._processes.set(stats.processes_busy)
        self._overdue.set(stats.overdue)


class ConnectionMetrics:
    """What every process of asyncq has: a connection, an event loop, perhaps a result store.

    Args:
        registry: Where the metrics are.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._connections = _gauge(
            "asyncq_connections", "Processes whose connection to the broker is in this state.", ("state",), registry
        )
        self._lag = _gauge(
            "asyncq_event_loop_lag_seconds",
            "How long the event loop took for its last answer; of several processes, the slowest.",
            (),
            registry,
            mode="livemax",
        )
        self._failed_writes = Counter(
            "asyncq_result_store_failed_writes", "Writes into the result store that failed.", registry=registry
        )
        self._missed = Counter(
            "asyncq_result_store_states_missed", "States that were not written into the store.", registry=registry
        )
        self._counted = _Differences()

    def look(self, status: BrokerStatus, lag_s: float, recorder: Recorder | None) -> None:
        """Set what is a state, and count what the result store has failed at."""
        _set_state(self._connections, (), status.state, _CONNECTION_STATES)
        self._lag.set(lag_s)
        if recorder is not None:
            self._failed_writes.inc(self._counted.new("failed", recorder.failed_writes))
            self._missed.inc(self._counted.new("missed", recorder.missed))


class SendMetrics:
    """What was sent, and how the broker answered. Give `sent` to `AsyncQ.observe_sends`.

    Args:
        registry: Where the metrics are.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._sends = Counter(
            "asyncq_sends",
            "Tasks that were sent, by how the broker answered.",
            ("queue", "outcome"),
            registry=registry,
        )

    def sent(self, sent: Sent) -> None:
        """Count one."""
        self._sends.labels(sent.queue, sent.outcome).inc()


class SchedulerMetrics:
    """What a scheduler has done, and what comes next.

    Args:
        registry: Where the metrics are.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._leads = _gauge("asyncq_scheduler_leads", "Whether a scheduler leads here.", (), registry)
        self._terms = Counter("asyncq_scheduler_terms", "How often a scheduler has come to lead.", registry=registry)
        self._ticks = Counter("asyncq_scheduler_ticks", "Ticks that were sent.", ("schedule",), registry=registry)
        self._skipped = Counter(
            "asyncq_scheduler_skipped", "Fire times that got no run.", ("schedule", "reason"), registry=registry
        )
        self._lag = _gauge(
            "asyncq_scheduler_tick_lag_seconds",
            "How late the last tick was confirmed.",
            (),
            registry,
            mode="livemax",
        )
        self._late = _gauge(
            "asyncq_scheduler_late_seconds",
            "For how long the next fire time is over, and its tick not sent; 0 where all is in time.",
            (),
            registry,
            mode="livemax",
        )
        self._next = _gauge(
            "asyncq_scheduler_next_fire_timestamp_seconds",
            "When a schedule fires next, in seconds since the epoch, as the leader sees it; 0 elsewhere.",
            ("schedule",),
            registry,
            mode="livemax",
        )
        self._counted = _Differences()
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


class _Differences:
    """What has come to totals that somebody else keeps."""

    def __init__(self) -> None:
        self._seen: dict[object, int] = {}

    def new(self, key: object, total: int) -> int:
        """Return how much was added to this total since the last time."""
        before = self._seen.get(key, 0)
        self._seen[key] = total
        return max(0, total - before)


def _gauge(
    name: str,
    words: str,
    labels: Iterable[str],
    registry: CollectorRegistry,
    *,
    mode: Any = "livesum",
) -> Gauge:
    """Return a gauge; of several processes those that live count."""
    return Gauge(name, words, labels, registry=registry, multiprocess_mode=mode)


def _set_state(gauge: Gauge, labels: tuple[str, ...], present: str, states: Iterable[str]) -> None:
    for state in states:
        gauge.labels(*labels, state).set(state == present)


def _is_buried(outcome: Outcome) -> bool:
    return isinstance(outcome, Failed | Rejected) or (isinstance(outcome, Expired) and outcome.failure is not None)
