"""Which event loop a worker runs on: uvloop's where it is installed, or asyncio's own."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable
from enum import StrEnum

from asyncq.errors import ConfigurationError

__all__ = ["EventLoop", "loop_factory"]


class EventLoop(StrEnum):
    """What `--loop` takes."""

    AUTO = "auto"
    ASYNCIO = "asyncio"
    UVLOOP = "uvloop"


def loop_factory(chosen: EventLoop) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes the event loop; None for asyncio's own way.

    Raises:
        ConfigurationError: uvloop is wanted, and it is not installed.
    """
    if chosen is EventLoop.ASYNCIO:
        return None
    if importlib.util.find_spec("uvloop") is None:
        if chosen is EventLoop.AUTO:
            return None
        raise ConfigurationError(
            "--loop uvloop needs the package uvloop, which is not installed. Install it: pip install 'asyncq[uvloop]'."
        )
    import uvloop  # noqa: PLC0415 - an optional extra

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
