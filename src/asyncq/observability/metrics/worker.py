"""What a worker has done and does."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter

from asyncq.life import waited_s_of
from asyncq.observability.metrics.registry import gauge, set_state
from asyncq.observability.metrics.tally import SummedHistogram, Sums, Tally
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
    from asyncq.worker.execution import Executed
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
    """What a worker process has done and does. Call `look` once a second, and `add_up` before a scrape.

    Args:
        worker: The worker; it is observed from now on.
        tasks: The tasks that it has. Other names make no labels: they come from foreign messages.
        registry: Where the metrics are.
    """

    def __init__(self, worker: Worker, tasks: Mapping[str, AnyTask], registry: CollectorRegistry = REGISTRY) -> None:
        self._worker = worker
        self._tasks = tasks
        self._clock = worker.clock
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
        self._run = SummedHistogram(
            "asyncq_attempt_duration_seconds",
            "How long the code of attempts ran.",
            labels,
            buckets=_RUN_BUCKETS,
            registry=registry,
        )
        self._wait = SummedHistogram(
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
        self._tallies: dict[tuple[str, str], Tally] = {}
        self._order: list[Tally] = []
        self._wait_sums: dict[str, Sums] = {}
        self._adding = threading.Lock()
        self._running_labels = {(task.queue, name) for name, task in tasks.items() if task.queue in worker.queues}
        worker.observers.append(self.settled)

    def settled(self, executed: Executed, outcome: Outcome, seconds: float) -> None:
        """Count a delivery. This runs for every message, in the event loop."""
        message, queue = executed.delivery.message, executed.delivery.queue
        tally = self._tallies.get((queue, message.type)) or self._tally_of(queue, message.type)
        kind = type(outcome)
        tally.outcomes[kind] += 1
        ran_s = executed.ran_s
        if ran_s is not None:
            tally.runs.observe(ran_s)
            waited_s = waited_s_of(message, self._clock.now_ms() - int(seconds * 1000))
            if waited_s is not None:
                tally.waits.observe(waited_s)
        if kind in _MAY_BE_BURIED and _is_buried(outcome):
            self._dead_letters.labels(queue, tally.task).inc()

    def add_up(self) -> None:
        """Add to the metrics what was counted since the last time. Any thread may: a scrape tells of this moment."""
        with self._adding:
            for tally in self._order:
                queue, task = tally.queue, tally.task
                for kind, count in tally.new_outcomes():
                    self._deliveries.labels(queue, task, OUTCOMES[kind]).inc(count)
                if (runs := tally.runs.new()) is not None:
                    self._run.labels(queue, task).add(*runs)
                if (waits := tally.waits.new()) is not None:
                    self._wait.labels(queue).add(*waits)

    def look(self) -> None:
        """Set what is a state, and add up what was counted."""
        self.add_up()
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

    def _tally_of(self, queue: str, name: str) -> Tally:
        task = name if name in self._tasks else _UNKNOWN
        tally = self._tallies.get((queue, task))
        if tally is None:
            waits = self._wait_sums.setdefault(queue, Sums(_WAIT_BUCKETS))
            tally = self._tallies[queue, task] = Tally(queue, task, tuple(OUTCOMES), Sums(_RUN_BUCKETS), waits)
            self._order.append(tally)
        return tally


def _is_buried(outcome: Outcome) -> bool:
    return not isinstance(outcome, Expired) or outcome.failure is not None
