"""What user code has left running when a worker has ended: asyncio tasks, asyncio's own threads, threads of its own.

They get a moment to end. Invariant: none of them holds up the end of the process for longer than that, although
Python itself would wait for them for ever.
"""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

__all__ = ["Leftovers"]

MOMENT_S = 2.0


class Leftovers:
    """Made in the worker's event loop before any task runs.

    It gives the loop a default executor of its own, because only who has made an executor can leave its threads
    behind: `asyncio.to_thread` and lookups of names run there.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(thread_name_prefix="asyncio")
        asyncio.get_running_loop().set_default_executor(self._executor)

    async def end(self, moment_s: float = MOMENT_S) -> list[str]:
        """Cancel what was left, wait a moment, and return the names of what goes on.

        Args:
            moment_s: How long all of it together may take to end, in seconds.
        """
        deadline = time.monotonic() + moment_s
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=moment_s)
        self._executor.shutdown(wait=False, cancel_futures=True)  # ends the threads that have nothing to do
        threads = [thread for thread in threading.enumerate() if thread is not threading.current_thread()]
        # Python waits for these at its exit.
        waited_for = [thread for thread in threads if not thread.daemon and not _is_idle_of_anyio(thread)]
        for thread in waited_for:
            thread.join(max(0.0, deadline - time.monotonic()))
        return [
            *(f"task {task.get_name()}" for task in tasks if not task.done()),
            *(f"thread {thread.name}" for thread in waited_for if thread.is_alive()),
        ]


def _is_idle_of_anyio(thread: threading.Thread) -> bool:
    """Tell whether this is a thread that anyio has for `def` dependencies, without work: it ends with the loop."""
    return thread in getattr(thread, "idle_workers", ())
