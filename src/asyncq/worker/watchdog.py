"""A thread that watches the event loop, and tells what runs when it is asked.

    thread ──"are you there?"──▶ loop ──"yes"──▶ thread, which rests and asks again
                  │ no answer for `blocked_loop_after_s`
                  ▼
       which task blocks it, since when, with its stack; again after twice the time; and when it goes on

A task that blocks the loop blocks all of the worker: the other tasks, and the heartbeats to the broker. So whoever
is to tell of it cannot run on the loop.

Invariant: it reads and never touches: neither the loop nor a task notices it.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Final, Literal

from asyncq.loggers import get_logger
from asyncq.worker.attempt import Attempt
from asyncq.worker.attempts import Attempts
from asyncq.worker.runners import ThreadPool
from asyncq.worker.stacks import stack_of_suspended, stack_of_thread

__all__ = ["Watchdog"]

log = get_logger("asyncq.worker")

_REST: Final = 0.25
"""Which part of the time it rests between two questions; for the other part it waits for the answer."""
_SUSPENDED_S: Final = 0.1

_Word = Literal["beat", "dump", "stop"]


class Watchdog:
    """Watches the running event loop from `start` to `stop`.

    Args:
        attempts: What runs on it.
        threads: What runs in threads.
        blocked_after_s: For how long the loop may not answer, in seconds; 0 watches nothing, and dumps all the same.
        process_of: Returns the id of the process that runs an attempt, where one does.
    """

    def __init__(
        self,
        attempts: Attempts,
        threads: ThreadPool,
        blocked_after_s: float,
        process_of: Callable[[Attempt], int | None] = lambda _: None,
    ) -> None:
        self._attempts = attempts
        self._threads = threads
        self._blocked_after_s = blocked_after_s
        self._process_of = process_of
        self._words: SimpleQueue[_Word] = SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0

    def start(self) -> None:
        """Begin, in the loop that is to be watched."""
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        context = contextvars.copy_context()  # with what the log says of this process
        threading.Thread(target=context.run, args=(self._run,), name="asyncq-watchdog", daemon=True).start()

    def stop(self) -> None:
        """End the thread."""
        self._words.put("stop")

    def dump(self) -> None:
        """Tell what runs, with the stacks, in the log. Safe in a signal's handler."""
        self._words.put("dump")  # a SimpleQueue is reentrant, a log is not

    # --- in the thread

    def _run(self) -> None:
        if self._blocked_after_s <= 0:
            while self._heard(None) != "stop":
                pass
            return
        while self._ask() and not self._heard_within(self._blocked_after_s * _REST):
            pass

    def _ask(self) -> bool:
        """Ask the loop, and wait for its answer, however long it takes; return whether to go on."""
        asked = time.monotonic()
        assert self._loop is not None  # noqa: S101 - set by `start`
        try:
            self._loop.call_soon_threadsafe(self._words.put, "beat")
        except RuntimeError:
            return False  # the loop is closed
        alarm_s, blocked = self._blocked_after_s * (1 - _REST), False
        while True:
            word = self._heard(asked + alarm_s - time.monotonic())
            if word is None:
                blocked = self._tell_blocked(asked) or blocked
                alarm_s = 2 * (time.monotonic() - asked)
            elif word == "stop":
                return False
            else:
                if blocked:
                    log.warning("the event loop goes on", blocked_s=round(time.monotonic() - asked, 3))
                return True

    def _heard_within(self, seconds: float) -> bool:
        """Rest; return whether it was asked to stop meanwhile."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._heard(left) == "stop":
                return True
        return False

    def _heard(self, timeout_s: float | None) -> Literal["beat", "stop"] | None:
        """Return the next word for the loop's watch, None where none comes in time. Dumps on the way."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            try:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                word = self._words.get(timeout=left)
            except Empty:
                return None
            if word != "dump":
                return word
            try:
                self._tell_all()
            except Exception:
                log.exception("what runs could not be told")

    def _tell_blocked(self, asked: float) -> bool:
        """Say which task blocks the loop; return whether one does."""
        stack, task = stack_of_thread(self._loop_thread), asyncio.current_task(self._loop)
        attempt = self._attempt_of(task)
        if task is None:
            # Perhaps all of the process was suspended, and the loop is about to answer.
            try:
                self._words.put(self._words.get(timeout=_SUSPENDED_S))
            except Empty:
                pass
            else:
                return False
        log.warning(
            "the event loop is blocked: nothing else runs meanwhile, the heartbeats to the broker included",
            **(_keys(attempt) if attempt is not None else {"task": task.get_name() if task is not None else None}),
            blocked_s=round(time.monotonic() - asked, 3),
            stack=stack,
        )
        return True

    def _attempt_of(self, task: asyncio.Task[object] | None) -> Attempt | None:
        """Return the attempt whose code this asyncio task runs, if it is one's."""
        return next((item for item in self._all() if task is not None and item.code is task), None)

    def _all(self) -> tuple[Attempt, ...]:
        return (*self._attempts, *self._attempts.given_up())

    def _tell_all(self) -> None:
        attempts = self._all()
        log.warning("running tasks, as SIGUSR1 asks", running=len(attempts))
        on_loop = asyncio.current_task(self._loop)
        for attempt in attempts:
            log.warning(
                "running task",
                **_keys(attempt),
                seconds=round(attempt.seconds, 3),
                interrupted=attempt.interrupted,
                stack=self._stack_of(attempt, on_loop),
            )

    def _stack_of(self, attempt: Attempt, on_loop: asyncio.Task[object] | None) -> str:
        if attempt.code is not None:
            running = attempt.code is on_loop
            return stack_of_thread(self._loop_thread) if running else stack_of_suspended(attempt.code)
        if (process := self._process_of(attempt)) is not None:
            return f"  in process {process}"
        thread = self._threads.thread_of(attempt)
        return stack_of_thread(thread) if thread is not None else ""


def _keys(attempt: Attempt) -> dict[str, object]:
    return {
        "task": attempt.task.name,
        "task_id": attempt.delivery.message.task_id,
        "attempt": attempt.number,
        "queue": attempt.delivery.queue,
    }
