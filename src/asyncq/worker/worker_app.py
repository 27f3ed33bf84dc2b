"""What a worker needs of an app."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from asyncq.breaker import BreakerDefaults
from asyncq.broker import Broker
from asyncq.recording import Recorder
from asyncq.retry import RetryDefaults
from asyncq.settings import Settings
from asyncq.worker.attempt import AnyTask

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
    def breakers(self) -> BreakerDefaults:
        """When the slots of its queues pause."""
        ...
