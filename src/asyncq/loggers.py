"""Our loggers: structlog where the program has configured it, the standard library's logging where it has not.

An unconfigured structlog prints every line to standard output. A library must not do that to a program which never
asked for it; the standard library's loggers show warnings and errors only, until somebody says otherwise.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from asyncq.errors import InvalidOption

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

__all__ = ["EVENT", "Redact", "checked_redact", "get_logger"]

EVENT = "asyncq_event"
"""The attribute of a log record of ours that has the event and its values apart."""


Redact = Callable[[dict[str, Any]], dict[str, Any]]
"""A redaction hook: it gets a log line as a dict, and returns what is written of it."""


def checked_redact(given: Any) -> Redact | None:
    """Return what was given as `AsyncQ(redact=...)`.

    Raises:
        InvalidOption: It cannot be called, or only awaited.
    """
    if given is not None and (not callable(given) or inspect.iscoroutinefunction(given)):
        raise InvalidOption(
            f"AsyncQ(redact=...) takes a `def` function that gets a log line as a dict and returns it, not {given!r}."
        )
    hook: Redact | None = given
    return hook


def get_logger(name: str) -> FilteringBoundLogger:
    """Return a logger that decides with each call where the line goes.

    Args:
        name: `asyncq.worker`, for example: the name of the standard library's logger.
    """
    logger: Any = _Logger(name, {})
    result: FilteringBoundLogger = logger
    return result


class _Logger:
    """The methods of structlog's bound logger that asyncq, and tasks through `ctx.log`, call."""

    __slots__ = ("_name", "_values")

    def __init__(self, name: str, values: dict[str, Any]) -> None:
        self._name = name
        self._values = values

    def bind(self, **values: Any) -> _Logger:
        return _Logger(self._name, {**self._values, **values})

    def new(self, **values: Any) -> _Logger:
        return _Logger(self._name, values)

    def unbind(self, *names: str) -> _Logger:
        return _Logger(self._name, {name: value for name, value in self._values.items() if name not in names})

    def is_enabled_for(self, level: int) -> bool:
        if (configured := _structlog_logger(self._name, {})) is not None:
            enabled: bool = configured.is_enabled_for(level)
            return enabled
        return logging.getLogger(self._name).isEnabledFor(level)

    def __getattr__(self, method: str) -> Any:
        if (configured := _structlog_logger(self._name, self._values)) is not None:
            return getattr(configured, method)
        if method not in _LEVELS:
            raise AttributeError(method)
        level = _LEVELS[method]

        def write(event: str, *args: Any, **values: Any) -> None:
            logger = logging.getLogger(self._name)
            if logger.isEnabledFor(level):
                trace = values.pop("exc_info", method == "exception")
                pairs = "".join(f" {key}={value!r}" for key, value in {**self._values, **values}.items())
                said = event % args if args else event
                # A handler that wants the values one by one, as those of a task's own process, finds them here.
                extra = {EVENT: (said, {**self._values, **values})}
                logger.log(level, "%s%s", said, pairs, exc_info=trace, extra=extra)

        return write


def _structlog_logger(name: str, values: dict[str, Any]) -> Any:
    """Return structlog's logger, if this program has configured it.

    A program that has not imported it cannot have configured it; and its import takes longer than all of asyncq's.
    """
    structlog = sys.modules.get("structlog")
    if structlog is None or not structlog.is_configured():
        return None
    return structlog.get_logger(name, **values)


_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "exception": logging.ERROR,
    "critical": logging.CRITICAL,
}
