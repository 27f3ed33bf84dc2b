"""What a worker has done and does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram

from asyncq.observability.metrics.registry import gauge, set_state
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

if TYPE_CHECKING:
    from asyncq.worker.attempt import AnyTask
    from asyncq.worker.settled import Settled
    from asyncq.worker.worker import Worker

__all__ = ["OUTCOMES", "WorkerMetrics"]

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
_MAY_BE_BURIED: Final = frozenset({Failed, Rejected, Expired})
_UNKNOWN: Final = "(unknown)"
_RUN_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1500.0)
_WAIT_BUCKETS: Final = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 21600.0)
_BREAKER_STATES: Final = ("closed", "open", "half-open")


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
        self._in_flight = gauge("asyncq_attempts_running", "Attempts that run.", labels, registry)
        self._slots = gauge("asyncq_slots", "Slots: so many tasks of a queue run at once.", ("queue",), registry)
        self._breakers = gauge(
            "asyncq_circuit_breakers",
            "Worker processes whose circuit breaker of this queue is in this state.",
            ("queue", "state"),
            registry,
        )
        self._threads = gauge("asyncq_threads_busy", "Threads that run tasks, abandoned ones included.", (), registry)
        self._processes = gauge("asyncq_task_processes_busy", "Processes that run tasks.", (), registry)
        self._overdue = gauge(
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
        if kind in _MAY_BE_BURIED and _is_buried(settled.outcome):
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
            set_state(self._breakers, (queue,), present, _BREAKER_STATES)
        self._threads.set(stats.threads_busy)
        self._processes.set(stats.processes_busy)
        self._overdue.set(stats.overdue)


def _is_buried(outcome: Outcome) -> bool:
    return not isinstance(outcome, Expired) or outcome.failure is not None
