"""The redaction hook: the last who sees a line before it is written, to take out what nobody shall read.

Invariant: a hook that fails, or gives back what is no line, lets nothing of the line through, and breaks nothing.
"""

from __future__ import annotations

from typing import Any, Final

import structlog
from structlog.typing import EventDict, WrappedLogger

from asyncq.loggers import Redact

__all__ = ["redact_by", "redacted"]

_KEPT: Final = ("timestamp", "level", "logger")


class _Hook:
    """The one of this process."""

    def __init__(self) -> None:
        self.function: Redact | None = None


_HOOK: Final = _Hook()


def redact_by(function: Redact | None) -> None:
    """Let a function see every line from now on.

    Args:
        function: It gets the line as a dict (`event`, `level`, `logger`, `timestamp`, the values, `exception` as
            text), and changes it, or returns another. None: nobody.
    """
    _HOOK.function = function


def redacted(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Let the hook see a line; a processor of structlog's, which stands before what writes the line."""
    function = _HOOK.function
    if function is None:
        return event
    kept: dict[str, Any] = {name: event[name] for name in _KEPT if name in event}
    try:
        changed: Any = function(dict(event))
    except (Exception, structlog.DropEvent) as error:  # noqa: BLE001 - the invariant of this module
        return {**kept, "event": "a line is withheld: the redaction hook failed", "error": type(error).__name__}
    if not isinstance(changed, dict):
        what = type(changed).__name__
        return {**kept, "event": "a line is withheld: the redaction hook has returned no dict", "returned": what}
    return changed
