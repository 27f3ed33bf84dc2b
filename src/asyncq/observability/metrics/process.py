"""What every process of asyncq has: a connection, an event loop, perhaps a result store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter

from asyncq.broker import BrokerState, BrokerStatus
from asyncq.observability.metrics.registry import Differences, gauge, set_state

if TYPE_CHECKING:
    from asyncq.recording import Recorder

__all__ = ["ProcessMetrics"]

_CONNECTION_STATES: Final[tuple[BrokerState, ...]] = ("connecting", "ready", "blocked", "fatal", "closed")


class ProcessMetrics:
    """What every process of asyncq has: a connection, an event loop, perhaps a result store.

    Args:
        registry: Where the metrics are.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._connections = gauge(
            "asyncq_connections", "Processes whose connection to the broker is in this state.", ("state",), registry
        )
        self._lag = gauge(
            "asyncq_event_loop_lag_seconds",
            "How long the event loop took for its last answer, or owes one; of several processes, the slowest.",
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
        self._counted = Differences()

    def set_lag(self, lag_s: float) -> None:
        """Set how late the event loop is. Any thread may: while the loop is blocked, only others can."""
        self._lag.set(lag_s)

    def look(self, status: BrokerStatus, recorder: Recorder | None) -> None:
        """Set what is a state, and count what the result store has failed at."""
        set_state(self._connections, (), status.state, _CONNECTION_STATES)
        if recorder is not None:
            self._failed_writes.inc(self._counted.new("failed", recorder.failed_writes))
            self._missed.inc(self._counted.new("missed", recorder.missed))
