"""Which names queues and apps may have.

Pure. Invariant: a name that passes here can be a queue's name, a routing key on the delay ladder, and part of the
names that asyncq makes from it.
"""

from __future__ import annotations

import re

from asyncq.errors import ConfigurationError, InvalidQueueName

__all__ = ["DEAD_SUFFIX", "MAX_APP_NAME_BYTES", "MAX_QUEUE_NAME_BYTES", "check_app_name", "check_queue_name"]

DEAD_SUFFIX = ".dead"
MAX_QUEUE_NAME_BYTES = 200
"""AMQP allows 255 bytes for a routing key, and on the delay ladder the digits of the delay stand before the queue's
name."""
MAX_APP_NAME_BYTES = 100
"""The name of a reply queue holds the app's name, the host's and more, in 255 bytes."""

_ALLOWED = re.compile(r"[A-Za-z0-9._-]+")
_RESERVED_PREFIXES = {
    "asyncq.": "names that begin so are asyncq's own",
    "amq.": "RabbitMQ keeps names that begin so for itself",
}


def check_queue_name(name: str) -> None:
    """Check the name of a task queue.

    Args:
        name: The queue's name.

    Raises:
        InvalidQueueName: RabbitMQ or the delay ladder could not carry it; the message says why.
    """
    fault = _fault(name, MAX_QUEUE_NAME_BYTES)
    if fault is not None:
        raise InvalidQueueName(f"The queue name {name!r} cannot be used: {fault}")


def check_app_name(name: str) -> None:
    """Check the name of an app: it is the default of its tasks' queue, and a part of other names.

    Args:
        name: The app's name.

    Raises:
        ConfigurationError: It cannot be used; the message says why.
    """
    fault = _fault(name, MAX_APP_NAME_BYTES)
    if fault is not None:
        raise ConfigurationError(f"The app name {name!r} cannot be used: {fault}")


def _fault(name: object, max_bytes: int) -> str | None:
    """Return what is wrong with the name and what to do, or None."""
    if not isinstance(name, str):
        return "it must be a string."
    if not _ALLOWED.fullmatch(name):
        return "it needs at least one character, and only letters a-z and A-Z, digits, '.', '_' and '-'."
    if len(name) > max_bytes:  # all characters are ASCII here
        return f"it has {len(name)} bytes, more than {max_bytes}."
    for prefix, owner in _RESERVED_PREFIXES.items():
        if name.startswith(prefix):
            return f"it begins with {prefix!r}, and {owner}."
    if name.endswith(DEAD_SUFFIX):
        return f"it ends with {DEAD_SUFFIX!r}, which is for the dead letters of another queue."
    return None
