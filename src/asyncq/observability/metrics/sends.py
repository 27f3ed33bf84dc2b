"""What was sent, by any program: a worker, a web service."""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Counter

from asyncq.sends import Sent

__all__ = ["SendMetrics"]


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
