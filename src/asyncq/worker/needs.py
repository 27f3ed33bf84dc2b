"""What a worker needs of an app."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Protocol

from asyncq.breaker import BreakerDefaults
from asyncq.broker import Broker
from asyncq.middleware import Middleware
from asyncq.recording import Recorder
from asyncq.retry import RetryDefaults
from asyncq.settings import Settings
from asyncq.worker.around import Overrides
from asyncq.worker.attempt import AnyTask

if TYPE_CHECKING:
    from asyncq.tracing.spans import Tracing

__all__ = ["WorkerApp"]


class WorkerApp(Protocol):
    """What a worker needs of an app, which is open."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def tasks(self) -> Mapping[str, AnyTask]:
        """What it can run, by name on the wire."""
        ...

    @property
    def broker(self) -> Broker:
        """Where it consumes."""
        ...

    @property
    def settings(self) -> Settings:
        """What it was told."""
        ...

    @property
    def retry_defaults(self) -> RetryDefaults:
        """The policies of tasks that have said nothing about theirs."""
        ...

    @property
    def recorder(self) -> Recorder | None:
        """Its way to its result store, if it has one."""
        ...

    @property
    def tracing(self) -> Tracing | None:
        """What makes its spans, if it has any."""
        ...

    @property
    def breakers(self) -> BreakerDefaults:
        """When the slots of its queues pause."""
        ...

    @property
    def middlewares(self) -> Sequence[Middleware]:
        """What runs around each attempt, from the outside to the inside."""
        ...

    @property
    def dependency_overrides(self) -> Overrides:
        """What stands in for which dependency: tests change it."""
        ...

    def open_lifespan(self) -> AbstractAsyncContextManager[Any] | None:
        """Return its lifespan, to be entered; None where it has none."""
        ...
