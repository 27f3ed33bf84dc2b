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
from collections.abc import Callable, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import Any

from asyncq.worker.attempt import Attempt, Raised, Returned
from asyncq.worker.places import Places, Taken
from asyncq.worker.soft_limit import SoftLimited
from asyncq.worker.thread_turns import take_turns

__all__ = ["ThreadPool", "refuse_coroutine", "run_coroutine", "start_on_loop"]

_Job = tuple[Attempt, Callable[[], None]]


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
    attempt.code_ended(await run_coroutine(attempt, args, kwargs))


async def run_coroutine(attempt: Attempt, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Returned | Raised:
    """Run the attempt's coroutine function in this asyncio task, which is its `code`.

    Returns:
        How it ended.
    """
    try:
        code = attempt.task.function(*args, **kwargs)
        return Returned(await (code if attempt.limits.soft_limit_s is None else SoftLimited(code, attempt)))
    except BaseException as error:  # noqa: BLE001 - the invariant of this module
        return Raised(error)


def refuse_coroutine(value: object, task: str) -> None:
    """Say why nothing has run, where a decorator that is `def` hides an `async def` function."""
    if inspect.iscoroutine(value):
        value.close()
        raise TypeError(
            f"The function of task {task!r} is no `async def`, and it returned a coroutine, which nobody awaits. "
            "A decorator may hide the `async def`: let its wrapper be `async def` as well."
        )


class ThreadPool:
    """Threads for `def` tasks.

    Places are counted here, because code that overruns its limit cannot be stopped: it keeps its place until it
    returns. The threads are daemons: an abandoned one must not hold up the end of the process.

    They are started by a thread of their own: `Thread.start` waits until the new one runs, and beside busy threads
    that takes long (50 of them had blocked the event loop for 10 s).

    Args:
        places: How many may run at once.
    """

    def __init__(self, places: int) -> None:
        self._places = Places(places)
        self._threads: list[threading.Thread] = []
        self._running: dict[Attempt, int] = {}
        self._to_start: SimpleQueue[threading.Thread | None] | None = None
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()

    @property
    def busy(self) -> int:
        """How many threads run user code."""
        return self._places.held

    def thread_of(self, attempt: Attempt) -> int | None:
        """Return the identifier of the thread that runs an attempt; None where none does."""
        return self._running.get(attempt)

    async def place(self) -> Taken:
        """Wait for a free place and take it; see `Places.take`."""
        return await self._places.take()

    def resize(self, places: int) -> None:
        """Let so many run at once from now on."""
        self._places.resize(places)

    def give_back(self) -> None:
        """Free a place that `place()` has given, unused."""
        self._places.free()

    def refuse(self) -> None:
        """Let nobody wait for a place any more: the worker stops."""
        self._places.refuse()

    def start(
        self, attempt: Attempt, args: Sequence[Any], kwargs: Mapping[str, Any], context: contextvars.Context
    ) -> None:
        """Run the attempt's function in a thread. The place was taken by `place()`; it is free again at the end."""
        loop = asyncio.get_running_loop()

        def job() -> None:
            ending: Returned | Raised
            self._running[attempt] = threading.get_ident()
            take_turns(1)
            try:
                value = context.run(attempt.task.function, *args, **kwargs)
                refuse_coroutine(value, attempt.task.name)
                ending = Returned(value)
            except BaseException as error:  # noqa: BLE001 - the invariant of this module
                ending = Raised(error)
            finally:
                take_turns(-1)
            del self._running[attempt]
            with contextlib.suppress(RuntimeError):  # the loop has ended without us: nobody is there to hear it
                loop.call_soon_threadsafe(self._ended, attempt, ending)

        self._jobs.put((attempt, job))
        if len(self._threads) < self.busy:
            thread = threading.Thread(target=self._work, name=f"asyncq-task-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            self._start_soon(thread, loop)

    def close(self) -> None:
        """Let the idle threads end. Those that run code end after it."""
        if self._to_start is not None:
            self._to_start.put(None)
        for _ in self._threads:
            self._jobs.put(None)
        self._threads.clear()

    def _start_soon(self, thread: threading.Thread, loop: asyncio.AbstractEventLoop) -> None:
        if self._to_start is None:
            self._to_start = SimpleQueue()
            starter = threading.Thread(
                target=self._start_threads, args=(self._to_start, loop), name="asyncq-task-starter", daemon=True
            )
            try:
                starter.start()
            except RuntimeError as error:
                self._to_start = None
                self._not_started(thread, error)
                return
        self._to_start.put(thread)

    def _start_threads(self, to_start: SimpleQueue[threading.Thread | None], loop: asyncio.AbstractEventLoop) -> None:
        while (thread := to_start.get()) is not None:
            try:
                thread.start()
            except RuntimeError as error:  # the system has no more threads for us
                with contextlib.suppress(RuntimeError):  # the loop has ended without us
                    loop.call_soon_threadsafe(self._not_started, thread, error)

    def _not_started(self, thread: threading.Thread, error: RuntimeError) -> None:
        """End a job that has no thread; where another thread has taken it meanwhile, all is well."""
        with contextlib.suppress(ValueError):  # the pool is closed
            self._threads.remove(thread)
        with contextlib.suppress(Empty):
            job = self._jobs.get_nowait()
            if job is None:
                self._jobs.put(None)
            else:
                self._ended(job[0], Raised(error))

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job[1]()
            del job  # an idle thread must not keep the last task's arguments alive

    def _ended(self, attempt: Attempt, ending: Returned | Raised) -> None:
        self._places.free()
        attempt.code_ended(ending)
