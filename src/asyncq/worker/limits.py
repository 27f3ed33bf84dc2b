"""How long an attempt may take.

Of the send, the task and the settings, the first that says it decides; and no attempt goes on past the deadline of its
send. Pure, but for a warning.
"""

from __future__ import annotations

from dataclasses import replace

from asyncq.loggers import get_logger
from asyncq.message import Message, deadline_ms_of, limits_ms_of
from asyncq.worker.attempt import AnyTask, Limits

__all__ = ["LimitRules"]

log = get_logger("asyncq.worker")

_CONSUMER_TIMEOUT_S = 30 * 60.0
"""RabbitMQ's default. Nobody can ask it for its own."""


class LimitRules:
    """The limits of a worker's attempts.

    Args:
        defaults: Where neither the send nor the task says anything.
    """

    def __init__(self, defaults: Limits) -> None:
        self._defaults = defaults
        self._warned: set[str] = set()

    def of(self, task: AnyTask, message: Message) -> Limits:
        """Return the limits of an attempt that begins now."""
        defaults, run = self._defaults, task.run
        hard_ms, soft_ms = limits_ms_of(message)
        hard_s = _first(hard_ms, run.time_limit_s, defaults.limit_s)
        soft_s = _first(soft_ms, run.soft_time_limit_s, None)
        if hard_ms is not None and hard_ms / 1000 > max(_CONSUMER_TIMEOUT_S, defaults.limit_s):
            self._warn(task, hard_ms / 1000)
        deadline_ms = deadline_ms_of(message)
        left_s = None if deadline_ms is None else max(0.0, (deadline_ms - defaults.clock.now_ms()) / 1000)
        if hard_s is None:
            hard_s = defaults.limit_s
        by_deadline = left_s is not None and left_s < hard_s
        if left_s is not None and by_deadline:
            hard_s = left_s
        if soft_s is not None and soft_s >= hard_s:
            soft_s = None  # it would be told to stop at that moment anyway
        return replace(defaults, limit_s=hard_s, soft_limit_s=soft_s, by_deadline=by_deadline)

    def _warn(self, task: AnyTask, limit_s: float) -> None:
        if task.name not in self._warned:
            self._warned.add(task.name)
            log.warning(
                "a sender asks for a time limit above RabbitMQ's default consumer timeout of 30 minutes: where the "
                "queue has no longer one, the broker takes the message back while it runs",
                task=task.name,
                time_limit_s=limit_s,
            )


def _first(of_send_ms: int | None, of_task_s: float | None, default_s: float | None) -> float | None:
    if of_send_ms is not None:
        return of_send_ms / 1000
    return default_s if of_task_s is None else of_task_s
