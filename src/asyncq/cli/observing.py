"""What a command shows of itself while it runs: its health, and its metrics where they are wanted.

    the command's event loop ◀──looks once a second── pulse thread ──▶ its supervisor, if it has one
                                                          │
                     endpoint threads (HTTP) ◀────────────┘  answer also while the loop is stuck

Invariant: metrics are imported only where they are wanted: `prometheus_client` is an extra.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer

from asyncq.app import AsyncQ
from asyncq.broker import Broker
from asyncq.errors import ConfigurationError
from asyncq.health import Health, HealthReport, health_by_broker
from asyncq.observability.endpoint import Endpoint, Scrape
from asyncq.observability.systemd import told_to_systemd
from asyncq.pulse import Pulse
from asyncq.recording import Recorder
from asyncq.settings import Settings
from asyncq.supervisor.link import SupervisorLink

if TYPE_CHECKING:
    from asyncq.observability.metrics.process import ProcessMetrics
    from asyncq.scheduler.service import Scheduler
    from asyncq.worker.worker import Worker

__all__ = ["MetricsHostOption", "MetricsPortOption", "Observation", "Observing", "check_metrics", "served"]

MetricsPortOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=65535,
        help="Serve /metrics, /healthz and /readyz on this port; 0 takes a free one. Needs asyncq[metrics].",
    ),
]
MetricsHostOption = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="Where that port is: 127.0.0.1 by default; 0.0.0.0 for all who can reach it."),
]


def check_metrics() -> None:
    """Refuse what cannot be.

    Raises:
        ConfigurationError: `prometheus_client` is not installed.
    """
    if importlib.util.find_spec("prometheus_client") is None:
        raise ConfigurationError(
            "Metrics need the package prometheus-client, which is not installed. Install it: pip install "
            "'asyncq[metrics]'. Health alone needs neither it nor a port: `asyncq health`."
        )


@contextlib.contextmanager
def served(report: Callable[[], HealthReport], settings: Settings, scrape: Scrape | None) -> Iterator[None]:
    """Serve health, and metrics where a port is set, until the block ends; and tell systemd, where it wants to know.

    Args:
        report: How the processes are; safe in any thread.
        settings: The port, and the address.
        scrape: Makes the text of the metrics.

    Raises:
        ConfigurationError: The port cannot be had.
    """
    endpoint = Endpoint(report, scrape)
    try:
        if settings.metrics_port is not None:
            endpoint.listen(settings.metrics_host, settings.metrics_port)
        endpoint.listen_locally()
        with told_to_systemd(report):
            yield
    finally:
        endpoint.close()


@dataclass(frozen=True, slots=True)
class Observing:
    """How a command is observed.

    Attributes:
        target: MODULE:APP, for people.
        link: The way to its supervisor, which serves what is told to it.
        metrics_folder: Where the supervisor reads metrics; None where it wants none.
    """

    target: str
    link: SupervisorLink | None = None
    metrics_folder: Path | None = None


class Observation:
    """Looks at this process, in its event loop, and serves what it sees. Use it as a context manager.

    Args:
        app: The app.
        how: Who is told.
        role: `worker` or `scheduler`.

    Raises:
        ConfigurationError: Metrics cannot be had.
    """

    def __init__(self, app: AsyncQ, how: Observing, role: str = "worker") -> None:
        self._how = how
        self._role = role
        self._settings = app.settings
        self._stuck_after_s = app.settings.stuck_loop_after_s
        self._with_metrics = how.metrics_folder is not None or (
            how.link is None and app.settings.metrics_port is not None
        )
        self._seen = Health("starting", pid=os.getpid())
        self._looks: list[Callable[[], object]] = []
        self._adding_up: list[Callable[[], None]] = []
        self._phase: Callable[[], str] = lambda: "starting"
        self._broker: Broker | None = None
        self._recorder: Recorder | None = None
        self._metrics: ProcessMetrics | None = None
        self._pulse = Pulse(self._look, self._tell)
        self._serving = contextlib.ExitStack()
        if how.link is not None and app.settings.metrics_port is not None and how.metrics_folder is None:
            raise ConfigurationError(
                "metrics_port is set in the app's code, which a supervisor never reads. Give it to the command: "
                "--metrics-port, or ASYNCQ_METRICS_PORT."
            )
        if self._with_metrics:
            check_metrics()
            from asyncq.observability.metrics.process import ProcessMetrics  # noqa: PLC0415 - an extra
            from asyncq.observability.metrics.sends import SendMetrics  # noqa: PLC0415

            self._metrics = metrics = ProcessMetrics()
            self._looks.append(lambda: self._look_at_process(metrics))
            app.observe_sends(SendMetrics().sent)

    def __enter__(self) -> Self:
        if self._how.link is None:
            scrape: Scrape | None = None
            if self._with_metrics:
                scrape = self._scrape
            self._serving.enter_context(served(self.report, self._settings, scrape))
        self._pulse.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._pulse.stop()
        self._serving.close()

    def watch_worker(self, app: AsyncQ, worker: Worker) -> None:
        """Observe this worker, of an app that is open, from now on."""
        self._watch(app, lambda: worker.phase)
        if self._with_metrics:
            from asyncq.observability.metrics.worker import WorkerMetrics  # noqa: PLC0415 - an extra

            metrics = WorkerMetrics(worker, app.tasks)
            self._looks.append(metrics.look)
            self._adding_up.append(metrics.add_up)

    def watch_scheduler(self, app: AsyncQ, scheduler: Scheduler) -> None:
        """Observe this scheduler, of an app that is open, from now on."""
        if self._broker is None:
            self._watch(app, lambda: "stopping" if scheduler.stopping else "consuming")
        if self._with_metrics:
            from asyncq.observability.metrics.scheduler import SchedulerMetrics  # noqa: PLC0415 - an extra

            metrics = SchedulerMetrics()
            self._looks.append(lambda: metrics.look(scheduler.stats))

    def health(self) -> Health:
        """Return how this process is. Safe in any thread."""
        silent_s = self._pulse.silent_s
        if silent_s > self._stuck_after_s:
            detail = f"its event loop has not answered for {silent_s:.0f} s"
            return Health("stuck", detail, self._seen.process, self._seen.pid)
        return self._seen

    def report(self) -> HealthReport:
        """Return the same as it is served. Safe in any thread."""
        return HealthReport(self._role, self._how.target, os.getpid(), (self.health(),))

    def _scrape(self, accept: str) -> tuple[str, bytes]:
        from asyncq.observability.metrics.registry import scrape_all  # noqa: PLC0415 - an extra

        for add_up in self._adding_up:
            add_up()
        return scrape_all(accept)

    def _watch(self, app: AsyncQ, phase: Callable[[], str]) -> None:
        self._broker, self._recorder, self._phase = app.broker, app.recorder, phase

    def _look(self) -> None:
        self._seen = self._state()
        for look in self._looks:
            look()

    def _look_at_process(self, metrics: ProcessMetrics) -> None:
        if self._broker is not None:
            metrics.look(self._broker.status(), self._recorder)

    def _state(self) -> Health:
        pid, phase = os.getpid(), self._phase()
        if self._broker is None:
            return Health("starting", pid=pid)
        found = health_by_broker(self._broker.status())
        if found.state == "ready" and phase != "consuming":
            return Health("stopping" if phase == "stopping" else "starting", pid=pid)
        return Health(found.state, found.detail, pid=pid)

    def _tell(self) -> None:
        if self._metrics is not None:
            self._metrics.set_lag(self._pulse.lag_s)
        if self._how.link is not None:
            self._how.link.health(self.health(), self._stuck_after_s)
