"""The supervisor's loop.

    run() ─▶ first process ──ready──▶ the others ─▶ watch: restart what ends (restarts.py)
                 │ cannot start                         │ SIGTERM, SIGINT; or all were drained by `asyncq drain`
                 ▼                                      ▼
              give up: one message              drain all ──all have ended──▶ exit code
                                                        │ once more, or too late
                                                        ▼
                                                  kill what is left

The first process goes ahead alone, so that a wrong password or a broken app is told once, not by every process.

As process 1 of a container it gets the orphans of its whole process tree, and reaps them; and it sets a handler for
each signal that it answers to, because the kernel ignores signals without one there.

Invariant: it runs no code of the user's, blocks nowhere but in `select`, and leaves no worker behind: those of a
supervisor that is killed see the end of their link.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from asyncq.health import Health
from asyncq.loggers import get_logger
from asyncq.supervisor.process import WorkerProcess
from asyncq.supervisor.restarts import Ended, GiveUp, Restarts, exit_code_of_all
from asyncq.worker.exit_codes import after_signal

__all__ = ["Changes", "Supervisor"]

log = get_logger("asyncq.supervisor")

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_KILLED_END_S = 5.0


class Changes(Protocol):
    """Tells of changed source files."""

    def start(self, tell: Callable[[], object]) -> None:
        """Begin to watch; `tell` may be called in any thread."""
        ...

    def take(self) -> list[str]:
        """Return the files that have changed since the last time."""
        ...


class Supervisor:
    """Keeps worker processes running. `run` may be called in the main thread only.

    Args:
        command: How each is started.
        processes: How many.
        changes: Restarts all of them when source files change; None where nothing does.

    Attributes:
        on_end: Called with the number of a process that has ended, before another one takes its place.
    """

    def __init__(self, command: Sequence[str], processes: int, changes: Changes | None = None) -> None:
        self._command = list(command)
        self._changes = changes
        self.on_end: Callable[[int], object] = lambda _: None
        self._restarts = Restarts(processes)
        self._running: dict[int, WorkerProcess] = {}  # by place
        self._starts: dict[int, float] = {0: time.monotonic()}  # when a place is to be filled, by the monotonic clock
        self._places = range(processes)
        self._counts = [-1] * processes  # how often each place was filled again
        self._signals: list[int] = []
        self._stopping = False
        self._gave_up: GiveUp | None = None
        self._stopped_by = 0
        self._left: set[int] = set()  # places that stay empty
        self._last_ends: list[Ended] = []

    def health(self) -> tuple[Health, ...]:
        """Return how each process is; those that have left for good are no part of it. Safe in any thread."""
        running, left = dict(self._running), set(self._left)
        places = [place for place in self._places if place not in left] or self._places
        return tuple(running[place].health if place in running else self._health_of_empty(place) for place in places)

    def _health_of_empty(self, place: int) -> Health:
        if self._gave_up is not None:
            return Health("refused", self._gave_up.why, place + 1)
        if self._stopping or place in self._left:
            return Health("stopping", "", place + 1)
        return (
            Health("ended", "it is started again", place + 1)
            if self._counts[place] >= 0
            else Health("starting", "", place + 1)
        )

    def run(self) -> int:
        """Run until it is asked to stop, or nothing more can be done.

        Returns:
            The exit code; see `asyncq.worker.exit_codes`.
        """
        with selectors.DefaultSelector() as self._selector, self._woken_by_signals():
            if self._changes is not None:
                self._changes.start(self._wake)
            try:
                return self._watch()
            finally:
                for process in self._running.values():
                    process.kill()

    def _watch(self) -> int:
        while True:
            self._answer_signals()
            self._reap()
            if self._stopped_by:
                return after_signal(self._stopped_by)
            if self._changes is not None:
                self._restart_for_changes(self._changes.take())
            self._kill_the_late()
            if self._left >= set(self._places) or (self._stopping and not self._running):
                return self._conclude()
            if not self._stopping:
                self._start_what_is_due()
            for key, _ in self._selector.select(self._pause_s()):
                key.data()

    def _conclude(self) -> int:
        restarts = sum(max(0, count) for count in self._counts)
        log.info("all worker processes have ended", restarts=restarts)
        return self._gave_up.exit_code if self._gave_up is not None else exit_code_of_all(self._last_ends)

    def _pause_s(self) -> float | None:
        moments = [process.kill_at for process in self._running.values() if process.kill_at is not None]
        if not self._stopping:
            moments += self._starts.values()
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    # --- processes

    def _start_what_is_due(self) -> None:
        now = time.monotonic()
        for place in [place for place, due in self._starts.items() if due <= now]:
            try:
                process = WorkerProcess(self._command, place + 1)
            except OSError as error:  # no memory, too many processes: what may pass
                log.error("a worker process cannot be started, trying again", process=place + 1, cause=str(error))  # noqa: TRY400 - the traceback says nothing more
                self._starts[place] = now + 5.0
                continue
            del self._starts[place]
            self._counts[place] += 1
            self._running[place] = process
            self._selector.register(process.connection, selectors.EVENT_READ, lambda place=place: self._hear(place))
            log.info("worker process started", process=process.number, pid=process.pid, restarts=self._counts[place])

    def _hear(self, place: int) -> None:
        process = self._running.get(place)
        if process is None:
            return
        if process.hear():
            self._became_ready()
        if process.silent:
            self._selector.unregister(process.connection)

    def _became_ready(self) -> None:
        if not self._restarts.was_ready:
            now = time.monotonic()
            self._starts.update(dict.fromkeys(self._empty(), now))
        self._restarts.ready()

    def _empty(self) -> list[int]:
        """Return the places that are to be filled."""
        return [place for place in self._places if place not in self._running and place not in self._left]

    def _reap(self) -> None:
        """Take in every child that has ended; as process 1 also those that nobody here has started."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            place = next((place for place, process in self._running.items() if process.pid == pid), None)
            if place is None:
                log.debug("an orphan has ended", pid=pid)
            else:
                self._ended(place, status)

    def _ended(self, place: int, status: int) -> None:
        process = self._running.pop(place)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(process.connection)
        was_ready = process.ready
        ended = process.ended(status)
        self.on_end(process.number)
        if ended.was_ready and not was_ready:
            self._became_ready()
        keys = {"process": process.number, "pid": process.pid, "how": ended.how, "lived_s": round(ended.lived_s, 1)}
        if process.leaving:
            # Before the first one was ready, the others wait for it, and there is nobody left to wait for.
            self._left.update([place] if self._restarts.was_ready else self._places)
            log.info("worker process ended; it was asked to drain, so it is not started again", **keys)
        elif self._stopping:
            log.info("worker process ended", **keys)
        if process.leaving or self._stopping:
            self._last_ends.append(ended)
            return
        if self._changes is not None:
            self._ended_while_reloading(place, process, ended, keys)
            return
        decision = self._restarts.after(place, ended)
        if isinstance(decision, GiveUp):
            log.error("worker process ended", **keys)
            log.critical("giving up", why=decision.why, exit_code=decision.exit_code)
            self._gave_up = decision
            self._stop()
            return
        tell = log.info if ended.asked else log.error
        tell("worker process ended, starting it again", in_s=decision.after_s, **keys)
        self._starts[place] = time.monotonic() + decision.after_s

    def _ended_while_reloading(self, place: int, process: WorkerProcess, ended: Ended, keys: dict[str, object]) -> None:
        """Start it again where it was asked to end; otherwise the code is wrong, and only a change can help."""
        if process.draining or ended.asked:
            self._starts[place] = time.monotonic()
            return
        log.error("worker process ended, waiting for a change of the code", **keys)

    def _restart_for_changes(self, changed: list[str]) -> None:
        if not changed or self._stopping:
            return
        log.info("code changed, restarting", files=changed)
        for process in self._running.values():
            process.drain()
        if self._restarts.was_ready or not self._running:
            now = time.monotonic()
            waiting = self._empty() if self._restarts.was_ready else self._empty()[:1]
            self._starts.update(dict.fromkeys(waiting, now))

    # --- the end

    def _stop(self) -> None:
        self._stopping = True
        for process in self._running.values():
            process.drain()

    def _kill_the_late(self) -> None:
        now = time.monotonic()
        for process in self._running.values():
            if process.kill_at is not None and process.kill_at <= now:
                log.error(
                    "worker process does not end, killed; what it ran goes back to its queue",
                    process=process.number,
                    pid=process.pid,
                )
                process.kill_at = now + _KILLED_END_S
                process.kill()

    def _kill_all(self) -> None:
        for process in self._running.values():
            process.kill()
        deadline = time.monotonic() + _KILLED_END_S
        while self._running and time.monotonic() < deadline:
            self._selector.select(0.05)
            self._reap()

    # --- signals

    def _answer_signals(self) -> None:
        while self._signals:
            number = self._signals.pop(0)
            if number == signal.SIGUSR1:
                self._report()
            elif not self._stopping:
                log.info(
                    "stopping all worker processes; once more stops at once",
                    signal=signal.Signals(number).name,
                    running=len(self._running),
                )
                self._stop()
            else:
                log.warning("stopping at once; what was running goes back to its queue")
                self._kill_all()
                self._stopped_by = number
                return

    def _report(self) -> None:
        """Say what runs, and let each worker say what it runs."""
        for place in self._places:
            process = self._running.get(place)
            state = "ready"
            if process is None:
                state = "left" if place in self._left else "waiting"
            elif process.draining or process.leaving:
                state = "draining"
            log.info(
                "worker process",
                process=place + 1,
                pid=None if process is None else process.pid,
                state="starting" if process is not None and not process.ready else state,
                age_s=None if process is None else round(process.age_s, 1),
                restarts=max(0, self._counts[place]),
            )
        for process in self._running.values():
            process.signal(signal.SIGUSR1)

    def _receive(self, number: int, _frame: object) -> None:
        if number != signal.SIGCHLD:
            self._signals.append(number)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            self._waker.send(b"\0")

    @contextlib.contextmanager
    def _woken_by_signals(self) -> Iterator[None]:
        reader, self._waker = socket.socketpair()
        reader.settimeout(0)
        self._waker.settimeout(0)

        def drain_reader() -> None:
            with contextlib.suppress(BlockingIOError):
                reader.recv(4096)

        self._selector.register(reader, selectors.EVENT_READ, drain_reader)
        numbers = (*_STOP_SIGNALS, signal.SIGCHLD, signal.SIGUSR1)
        before = {number: signal.signal(number, self._receive) for number in numbers}
        wakeup = signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            reader.close()
            self._waker.close()
