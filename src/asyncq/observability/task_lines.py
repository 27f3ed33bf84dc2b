"""Log lines of code that a task runs say which task it is: structlog's own, and those of the standard library.

`configure_logging` does it by itself; these are for programs that configure their logs in their own way. The values
are looked up when a line is written, so a task that writes none pays nothing.
"""

from __future__ import annotations

import logging
from typing import Any

from structlog.typing import EventDict, WrappedLogger

from asyncq.context import log_values

__all__ = ["TaskFilter", "add_task"]

_NAMES = ("task_id", "task", "attempt", "queue")


def add_task(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Add `task_id`, `task`, `attempt` and `queue` of the running task; a processor of structlog's."""
    for name, value in log_values().items():
        event.setdefault(name, value)
    return event


class TaskFilter(logging.Filter):
    """Gives each record `task_id`, `task`, `attempt` and `queue` of the running task, for format strings.

    Where no task runs, each of them is `-`. Add it to a handler: `handler.addFilter(TaskFilter())`.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record through."""
        values: dict[str, Any] = log_values()
        for name in _NAMES:
            if not hasattr(record, name):
                setattr(record, name, values.get(name, "-"))
        return True
