"""Log lines of a process of the pool, written by its worker: one stream, one format, one level.

Invariant: a line that cannot be sent is lost, and nothing else.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from typing import Any

from asyncq.context import log_values
from asyncq.loggers import EVENT, get_logger
from asyncq.tracing.switch import current_ids
from asyncq.worker.process_pool.frames import Wrote

__all__ = ["Forwarding", "forward_structlog", "write"]


class Forwarding(logging.Handler):
    """Sends records to the worker; in the process.

    Args:
        send: Sends a frame.
    """

    def __init__(self, send: Callable[[Wrote], None]) -> None:
        super().__init__()
        self._send = send
        self._formatter = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record."""
        try:
            trace = self._formatter.formatException(record.exc_info) if record.exc_info else None
            event, values = getattr(record, EVENT, (None, None))
            if event is None:
                event = record.getMessage()
            self._send(
                Wrote(record.name, record.levelno, str(event), _plain(values), trace, {**log_values(), **current_ids()})
            )
        except Exception:  # noqa: BLE001 - the invariant of this module; `handleError` would print to standard error
            return


def forward_structlog() -> None:
    """Let structlog write into the standard library's loggers, where a task's module has imported it; in the process.

    A program that has configured it in its own way is left alone.
    """
    structlog = sys.modules.get("structlog")
    if structlog is None or structlog.is_configured():
        return
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, _as_record],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLogger().getEffectiveLevel()),
        logger_factory=lambda *names: logging.getLogger(names[0] if names else None),
    )


def _as_record(_logger: object, _method: str, values: dict[str, Any]) -> tuple[tuple[str, str], dict[str, Any]]:
    event, trace = str(values.pop("event", "")), values.pop("exc_info", None)
    return ("%s", event), {"exc_info": trace, "extra": {EVENT: (event, values)}}


def _plain(values: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return values that any process can read."""
    if values is None:
        return None
    values.pop("exc_info", None)
    plain: dict[str, Any] = json.loads(json.dumps(values, default=repr))
    return plain


def write(line: Wrote) -> None:
    """Write a line; in the worker."""
    if line.values is not None:
        values = {**line.task, **line.values}
        if line.trace is not None:
            values["exception"] = line.trace
        level = {logging.DEBUG: "debug", logging.INFO: "info", logging.WARNING: "warning"}.get(line.level)
        level = level or ("critical" if line.level >= logging.CRITICAL else "error")
        getattr(get_logger(line.logger), level)(line.event.replace("%", "%%"), **values)
        return
    logger = logging.getLogger(line.logger)
    if logger.isEnabledFor(line.level):
        text = line.event if line.trace is None else f"{line.event}\n{line.trace}"
        record = logger.makeRecord(line.logger, line.level, "(task process)", 0, text, (), None, extra=line.task)
        logger.handle(record)
