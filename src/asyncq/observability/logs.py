"""Logs: one stream, for people or for machines.

structlog's own calls and the standard library's records go the same way and look the same. Everything goes to
standard error, so that a command's output stays what it printed.

Invariant: a call below the level costs next to nothing, and in the JSON format every line that a log call, an
unhandled exception or a warning makes is one JSON object.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import traceback
from enum import StrEnum
from types import TracebackType
from typing import Any, Final

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from asyncq.errors import InvalidOption
from asyncq.loggers import Redact
from asyncq.observability.redaction import redact_by, redacted
from asyncq.observability.task_lines import add_task
from asyncq.tracing.switch import current_ids

__all__ = ["LogFormat", "LogLevel", "configure_logging"]


class LogLevel(StrEnum):
    """The levels, in the order of their weight."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"


class LogFormat(StrEnum):
    """For people, or for machines."""

    CONSOLE = "console"
    JSON = "json"


# The client library reports a lost connection several times, with tracebacks; asyncq says it once, with the cause.
_TOLD_BY_ASYNCQ: Final = (
    "error when creating transport",
    "Cancelling cause reader exited abnormally",
    "It looks like you are going to send a frame",
    "Unexpected connection close from remote",
    "Got frame for closed channel",
)
_CLIENT_LOGGERS: Final = ("aiormq", "aio_pika")


def configure_logging(
    level: str = "info",
    format: str = "console",  # noqa: A002 - the option's own name
    *,
    redact: Redact | None = None,
) -> None:
    """Send all logs of this process to standard error.

    Call it once, when a program starts. The AMQP client's loggers speak at `warning` and above only.

    Args:
        level: `debug`, `info`, `warning`, `error` or `critical`. Calls below it do nothing.
        format: `console` for people, with colours only on a terminal; `json` for machines: one object a line,
            with `timestamp` (ISO 8601, UTC), `level` and `event`.
        redact: Sees every line before it is written, as a dict; see `asyncq.observability.redaction`.

    Raises:
        InvalidOption: There is no such level or format.
    """
    if level not in list(LogLevel):
        raise InvalidOption(f"There is no log level {level!r}. Levels: {', '.join(LogLevel)}.")
    if format not in list(LogFormat):
        raise InvalidOption(f"There is no log format {format!r}. Formats: {', '.join(LogFormat)}.")
    threshold = logging.getLevelNamesMapping()[level.upper()]
    redact_by(redact)
    stamps: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        add_task,
        structlog.processors.add_log_level,
        _name,
        _trace,
    ]
    ending = _json_ending() if format == LogFormat.JSON else _console_ending(colors=_has_colours())
    structlog.configure(
        processors=[*stamps, *ending],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=_Writer,
        cache_logger_on_first_use=True,
    )
    _configure_standard_library(threshold, stamps, ending)
    sys.excepthook = _log_unhandled
    threading.excepthook = _log_unhandled_in_thread


class _StandardError:
    """`sys.stderr` as it is when a line is written: tests and programs may put another in its place.

    A line that cannot be written (a full disk, a pipe whose reader is gone) is lost, and nothing else: it must end
    neither a task nor the worker.
    """

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            return sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()


_STANDARD_ERROR: Final = _StandardError()


class _Writer(structlog.WriteLogger):
    """What structlog writes to; it knows the name that `get_logger` was given."""

    def __init__(self, name: str | None = None, *_: object) -> None:
        super().__init__(file=_STANDARD_ERROR)  # type: ignore[arg-type]  # write and flush are all that it needs
        self.name = name


def _has_colours() -> bool:
    return sys.stderr.isatty()


def _json_ending() -> list[Processor]:
    return [
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        structlog.processors.UnicodeDecoder(),
        redacted,
        _important_first,
        structlog.processors.JSONRenderer(ensure_ascii=False),
    ]


def _console_ending(*, colors: bool) -> list[Processor]:
    return [
        structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S.%f", utc=False),
        _milliseconds,
        structlog.processors.format_exc_info,  # before the hook, which shall see tracebacks as well
        redacted,
        structlog.dev.ConsoleRenderer(
            colors=colors,
            pad_event_to=0,
            sort_keys=False,
            # structlog's own choice prints local variables, and with them passwords
            exception_formatter=structlog.dev.plain_traceback,
        ),
    ]


def _name(logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    record = event.get("_record")
    name = record.name if record is not None else getattr(logger, "name", None)
    if name is not None:
        event["logger"] = name
    return event


def _trace(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Say which span a line belongs to, where there are traces."""
    for name, value in current_ids().items():
        event.setdefault(name, value)
    return event


def _important_first(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    first = {name: event.pop(name) for name in ("timestamp", "level", "event", "logger") if name in event}
    return {**first, **event}


def _milliseconds(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    event["timestamp"] = event["timestamp"][:-3]
    return event


def _configure_standard_library(threshold: int, stamps: list[Processor], ending: list[Processor]) -> None:
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*stamps, structlog.stdlib.ExtraAdder()],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ending],
    )
    handler = _Handler(_STANDARD_ERROR)
    handler.setFormatter(formatter)
    handler.addFilter(_Duplicates(enabled=threshold > logging.DEBUG))
    logging.basicConfig(level=threshold, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    for name in _CLIENT_LOGGERS:
        logging.getLogger(name).setLevel(max(threshold, logging.WARNING))


class _Handler(logging.StreamHandler[Any]):
    """Says where a line is that cannot be made. Python's own way prints its values, past the hook and the format."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name that the base class calls
        error = type(sys.exception()).__name__
        with contextlib.suppress(Exception):
            structlog.get_logger(record.name).error(
                "a log line could not be made", where=f"{record.pathname}:{record.lineno}", error=error
            )


class _Duplicates(logging.Filter):
    """Holds back what asyncq reports itself; at `debug` it all comes through."""

    def __init__(self, *, enabled: bool) -> None:
        super().__init__()
        self._enabled = enabled

    def filter(self, record: logging.LogRecord) -> bool:
        if not self._enabled or not record.name.startswith(_CLIENT_LOGGERS):
            return True
        return not str(record.msg).startswith(_TOLD_BY_ASYNCQ)


def _log_unhandled(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    _log("unhandled exception", kind, error, trace)


def _log_unhandled_in_thread(arguments: threading.ExceptHookArgs) -> None:
    if issubclass(arguments.exc_type, SystemExit):
        return  # as the standard library does: a thread that ends itself
    name = arguments.thread.name if arguments.thread is not None else None
    error = arguments.exc_value or arguments.exc_type()
    _log("unhandled exception in a thread", arguments.exc_type, error, arguments.exc_traceback, thread=name)


def _log(
    event: str, kind: type[BaseException], error: BaseException, trace: TracebackType | None, **values: Any
) -> None:
    try:
        structlog.get_logger().critical(event, exc_info=(kind, error, trace), **values)
    except Exception:  # noqa: BLE001 - a broken log must not hide the error that it was to report
        traceback.print_exception(kind, error, trace)
