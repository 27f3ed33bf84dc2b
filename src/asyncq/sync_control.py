"""`app.sync.control`: asking workers, and changing them while they run, from code without an event loop.

Each method is that of `asyncq.controller.Controller`, and waits for it in the loop of `app.sync`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from asyncq.control_values import Answers, Drained, QueueState, WorkerPing, WorkerStatistics, WorkerTasks
from asyncq.controller import ANSWER_S, Controller
from asyncq.pauses import PauseNote
from asyncq.sync import LoopBridge

__all__ = ["SyncControl"]

T = TypeVar("T")


class SyncControl:
    """The blocking form of `app.control`, safe with threads. `host`, `worker` and `timeout` are as in `Controller`.

    Args:
        bridge: The way into the loop.
        controller: Asks workers there.
    """

    def __init__(self, bridge: Callable[[], LoopBridge], controller: Callable[[], Controller]) -> None:
        self._bridge = bridge
        self._controller = controller

    @property
    def everybody(self) -> SyncControl:
        """The same for the workers of all apps in this namespace."""
        return SyncControl(self._bridge, lambda: self._controller().everybody)

    def ping(
        self, *, host: str | None = None, worker: str | None = None, timeout: float = ANSWER_S
    ) -> Answers[WorkerPing]:
        """Return which workers are there; raises what `Controller.ping` raises."""
        return self._run("ping", lambda control: control.ping(host=host, worker=worker, timeout=timeout))

    def active(
        self, *, host: str | None = None, worker: str | None = None, timeout: float = ANSWER_S
    ) -> Answers[WorkerTasks]:
        """Return what workers run at the moment; see `Controller.active`."""
        return self._run("active", lambda control: control.active(host=host, worker=worker, timeout=timeout))

    def stats(
        self, *, host: str | None = None, worker: str | None = None, timeout: float = ANSWER_S
    ) -> Answers[WorkerStatistics]:
        """Return what workers have done since their start, and how they are; see `Controller.stats`."""
        return self._run("stats", lambda control: control.stats(host=host, worker=worker, timeout=timeout))

    def paused(self) -> Mapping[str, PauseNote]:
        """Return the queues that are paused everywhere; see `Controller.paused`."""
        return self._run("paused", lambda control: control.paused())

    def pause(
        self, queue: str, *, host: str | None = None, worker: str | None = None, timeout: float = ANSWER_S
    ) -> Answers[QueueState]:
        """Let workers take nothing from a queue, until `resume`; see `Controller.pause`."""
        return self._run("pause", lambda control: control.pause(queue, host=host, worker=worker, timeout=timeout))

    def resume(
        self, queue: str, *, host: str | None = None, worker: str | None = None, timeout: float = ANSWER_S
    ) -> Answers[QueueState]:
        """Let workers take from a queue again; see `Controller.resume`."""
        return self._run("resume", lambda control: control.resume(queue, host=host, worker=worker, timeout=timeout))

    def scale(
        self, queue: str, slots: int, *, host: str | None = None, worker: str | None = None, timeout: float = ANSWER_S
    ) -> Answers[QueueState]:
        """Let each worker process run so many tasks of a queue at once; see `Controller.scale`."""
        return self._run(
            "scale", lambda control: control.scale(queue, slots, host=host, worker=worker, timeout=timeout)
        )

    def drain(
        self, *, host: str | None = None, worker: str | None = None, timeout: float = ANSWER_S, wait: float = 0
    ) -> Drained:
        """Let workers finish what runs, and end; with `wait`, tell who has ended then. See `Controller.drain`."""
        return self._run("drain", lambda control: control.drain(host=host, worker=worker, timeout=timeout, wait=wait))

    def _run(self, name: str, start: Callable[[Controller], Coroutine[Any, Any, T]]) -> T:
        instead = f"await app.control.{name}(...)"
        LoopBridge.refuse_in_loop(instead)
        return self._bridge().run(lambda: start(self._controller()), instead)
