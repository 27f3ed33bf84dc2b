"""Run a worker's main task to its end, whatever the code of tasks does to the event loop.

asyncio ends its loop when code in any asyncio task exits: `sys.exit()` below `asyncio.wait_for`, `gather` or a
`TaskGroup` is in an asyncio task of its own, which no `except` of ours is around. The error is kept in that task, so
it also reaches the code that waits for it, as it should. The loop itself is unharmed, and is entered again.

Invariant: only the end of the main task ends the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from asyncq.loggers import get_logger

__all__ = ["run_to_end"]

T = TypeVar("T")

log = get_logger("asyncq.cli")


def run_to_end(main: Coroutine[Any, Any, T], loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None) -> T:
    """Run a coroutine in a new event loop; return its value, or raise its error.

    Args:
        main: The coroutine.
        loop_factory: Makes the loop; by default asyncio does.
    """
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        loop = runner.get_loop()
        task = loop.create_task(main)
        while True:
            try:
                return loop.run_until_complete(task)
            except (SystemExit, KeyboardInterrupt, RuntimeError) as error:  # the last one: somebody called loop.stop()
                if task.done() or loop.is_closed():
                    raise
                log.error(  # noqa: TRY400 - where it was raised is told with the task that fails
                    "the code of a task tried to end the worker, which goes on", error=type(error).__name__
                )
