"""What a worker writes about each delivery: one line, below its level almost for free.

Invariant: asyncq itself puts no argument and no result of a task into a log. Validation errors quote them, so only
their type is written. What a task's own error says is the task's to answer for.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime

from asyncq.loggers import get_logger
from asyncq.message import cut_text
from asyncq.outcome import (
    Cancelled,
    Deferred,
    Drained,
    Expired,
    Failed,
    Failure,
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
from asyncq.worker.execution import Executed

__all__ = ["Report"]

log = get_logger("asyncq.worker")

_MESSAGE_BYTES = 500


class Report:
    """Writes the lines. Whether successes are written is asked once: it is the only question of the fast path."""

    __slots__ = ("_tells_all",)

    def __init__(self) -> None:
        self._tells_all = log.is_enabled_for(logging.INFO)

    def write(self, executed: Executed, outcome: Outcome, duration_s: float) -> None:
        """Tell how a delivery ended.

        Args:
            executed: How it ran.
            outcome: What was settled.
            duration_s: From the delivery to its ack.
        """
        level, event = _EVENTS[type(outcome)]
        if isinstance(outcome, Expired) and outcome.failure is not None:
            level, event = "error", "task expired after a failed attempt, it is among the dead letters"
        if level == "info" and not self._tells_all:
            return
        message = executed.delivery.message
        getattr(log, level)(
            event,
            task=message.type,
            task_id=message.task_id,
            attempt=executed.number,
            queue=executed.delivery.queue,
            duration_ms=round(duration_s * 1000, 1),
            **_details(outcome),
        )


_EVENTS: Mapping[type[Outcome], tuple[str, str]] = {
    Succeeded: ("info", "task succeeded"),
    RetryLater: ("warning", "task failed, it runs again later"),
    Failed: ("error", "task failed, it is among the dead letters"),
    Rejected: ("error", "message rejected, it is among the dead letters"),
    Snoozed: ("info", "task snoozed"),
    Postponed: ("info", "no place for the task in this worker, its message comes again"),
    Deferred: ("warning", "task unknown here, its message waits"),
    Staged: ("info", "task not due yet, its message goes on to the next leg of its delay"),
    Throttled: ("info", "task over its rate, its message waits for its turn"),
    Cancelled: ("info", "task cancelled"),
    Expired: ("warning", "task expired, it is not run any more"),
    Drained: ("info", "task handed back, because the worker stops"),
    LostLease: ("info", "delivery left to the broker, because its lease is lost"),
    Repeated: ("info", "tick came again after its end, it is not run a second time"),
}


def _details(outcome: Outcome) -> dict[str, object]:
    match outcome:
        case RetryLater(failure, delay_s):
            return {"delay_s": round(delay_s, 3), **_error(failure)}
        case Snoozed(delay_s) | Postponed(delay_s) | Deferred(_, delay_s) | Staged(_, delay_s) | Throttled(_, delay_s):
            return {"delay_s": round(delay_s, 3)}
        case Expired(expires_ms, _, failure):
            expires = datetime.fromtimestamp(expires_ms / 1000, UTC).isoformat(timespec="milliseconds")
            return {"expires": expires, **({} if failure is None else _error(failure))}
        case Rejected(failure, "invalid arguments" as reason):
            return {"reason": reason, "error": failure.type}
        case Failed(failure, reason) | Rejected(failure, reason):
            return {"reason": reason, **_error(failure)}
        case _:
            return {}


def _error(failure: Failure) -> dict[str, object]:
    if failure.quotes_arguments:
        return {"error": failure.type}
    return {"error": failure.type, "message": cut_text(failure.message, _MESSAGE_BYTES)}
