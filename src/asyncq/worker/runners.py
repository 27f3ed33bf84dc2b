"""How the user's code runs: `async def` in an asyncio task of its own, `def` in a thread of our own pool.

Invariant: nothing that the code raises leaves it as an exception. `sys.exit()`, `KeyboardInterrupt`, a
`CancelledError` that nobody asked for: all are values, so that one task cannot end the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import Any

from asyncq.worker.attempt import Attempt, Raised, Returned

__all__ = ["ThreadPool", "start_on_loop"]

_Job = Callable[[], None]


def start_on_loop(
    attempt: Attempt, args: Sequence[Any], kwargs: Mapping[str, Any], context: contextvars.Context
) -> None:
    """Run the attempt's coroutine function in an asyncio task of its own.

    Args:
        attempt: It gets the asyncio task, and is told the end.
        args: Positional arguments.
        kwargs: Keyword arguments.
        context: The context variables that the code sees.
    """
    code = _coroutine(attempt, args, kwargs)
    attempt.code = asyncio.get_running_loop().create_task(code, name=attempt.task.name, context=context)


async def _coroutine(attempt: Attempt, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    try:
        value = await attempt.task.function(*args, **kwargs)
    except BaseException as error:  # noqa: BLE001 - the invariant of this module
        attempt.code_ended(Raised(error))
    else:
        attempt.code_ended(Returned(value))


def _refuse_coroutine(value: object, task: str) -> None:
    """Say why nothing has run, where a decorator that is `def` hides an `async def` function."""
    if inspect.iscoroutine(value):
        value.close()
        raise TypeError(
            f"The function of task {task!r} is no `async def`, and it returned a coroutine, which nobody awaits. "
            "A decorator may hide the `async def`: let its wrapper be `async def` as well."
        )


class ThreadPool:
    """Threads for `def` tasks: one place a slot.

    Places are counted here, because code that overruns its limit cannot be stopped: it keeps its place until it
    returns. The threads are daemons: an abandoned one must not hold up the end of the process.

    Args:
        places: How many may run at once.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._busy = 0
        self._refusing = False
        self._threads: list[threading.Thread] = []
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def busy(self) -> int:
        """How many threads run user code."""
        return self._busy

    async def place(self) -> bool:
        """Wait for a free place and take it. Mostly there is one: only code that goes on without a lease holds more.

        Returns:
            Whether there is one: False where the worker stops meanwhile.
        """
        while self._busy >= self._places:
            if self._refusing:
                return False
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            try:
                await waiter
            except BaseException:
                if waiter.done() and not waiter.cancelled():
                    self._wake_next()
                raise
        self._busy += 1
        return True

    def give_back(self) -> None:
        """Free a place that `place()` has given, unused."""
        self._busy -= 1
        self._wake_next()

    def refuse(self) -> None:
        """Let nobody wait for a place any more: the worker stops."""
        self._refusing = True
        while self._waiting:
            self._wake_next()

    def start(
        self, attempt: Attempt, args: Sequence[Any], kwargs: Mapping[str, Any], context: contextvars.Context
    ) -> None:
        """Run the attempt's function in a thread. The place was taken by `place()`; it is free again at the end."""
        loop = asyncio.get_running_loop()

        def job() -> None:
            ending: Returned | Raised
            try:
                value = context.run(attempt.task.function, *args, **kwargs)
                _refuse_coroutine(value, attempt.task.name)
                ending = Returned(value)
            except BaseException as error:  # noqa: BLE001 - the invariant of this module
                ending = Raised(error)
            with contextlib.suppress(RuntimeError):  # the loop has ended without us: nobody is there to hear it
                loop.call_soon_threadsafe(self._ended, attempt, ending)

        if len(self._threads) < self._busy:
            thread = threading.Thread(target=self._work, name=f"asyncq-task-{len(self._threads)}", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # the system has no more threads for us
                self._ended(attempt, Raised(error))
                return
            self._threads.append(thread)
        self._jobs.put(job)

    def close(self) -> None:
        """Let the idle threads end. Those that run code end after it."""
        for _ in self._threads:
            self._jobs.put(None)
        self._threads.clear()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # an idle thread must not keep the last task's arguments alive

    def _ended(self, attempt: Attempt, ending: Returned | Raised) -> None:
        self._busy -= 1
        self._wake_next()
        attempt.code_ended(ending)

    def _wake_next(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
