"""The program of a process of the pool: run one task after the other, until the worker is gone.

    reader thread   frames from the worker: runs into a queue; the rest (stop it, an answer) at once; at the end of the
                    socket the whole process group is killed, whatever the task does
    main thread     imports the task's function, validates, runs, writes the result as JSON

Invariant: whatever a task does, the answer is a value; only a crash ends this process early.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import logging
import os
import signal
import socket
import sys
import threading
from functools import partial
from queue import SimpleQueue
from types import FrameType
from typing import Any

from asyncq.chunk import called_by
from asyncq.context import TaskContext, running
from asyncq.errors import MalformedMessage, ResultNotSerialisable, SoftTimeLimit
from asyncq.importable import Place, import_function
from asyncq.options import RunOptions
from asyncq.task import AnyTask, Declaration, make_task
from asyncq.tracing.provider import set_up_provider
from asyncq.tracing.switch import enter
from asyncq.worker.process_pool.asking import Asking
from asyncq.worker.process_pool.frames import (
    LENGTH,
    Answer,
    Cancel,
    Ended,
    Load,
    Loaded,
    Ready,
    Refused,
    Result,
    Run,
    Soften,
    Stop,
    Unfit,
    packed,
    unpacked,
)
from asyncq.worker.process_pool.logs import Forwarding, forward_structlog
from asyncq.worker.process_pool.raised import RaisedError
from asyncq.worker.runners import refuse_coroutine
from asyncq.worker.soft_limit import soft_limit_error

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1
_METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"

_Ending = Result | Unfit | Refused | RaisedError


def main(descriptor: int, log_level: int, traced_service: str = "") -> None:
    """Serve the worker at the other end of a socket.

    Args:
        descriptor: The socket.
        log_level: What is logged below this level goes nowhere.
        traced_service: The service name of this process's tracer provider; empty where it gets none from us.
    """
    connection = socket.socket(fileno=descriptor)
    connection.set_inheritable(False)
    os.environ.pop(_METRICS_FOLDER, None)  # one more set of files for each process that ever ran would fill it
    child = _Child(connection)
    _ignore_stop_signals()
    signal.signal(signal.SIGUSR2, child.on_signal)
    _die_with_parent()
    logging.basicConfig(level=log_level, handlers=[Forwarding(child.send)], force=True)
    logging.captureWarnings(capture=True)
    if traced_service:
        set_up_provider(traced_service)
    with contextlib.suppress(OSError):  # the worker is gone; the reader thread ends what is left
        child.serve()


def _ignore_stop_signals() -> None:
    """Leave it to the worker: who stops it may signal all its processes, and the task has time until the drain ends.

    A handler, not SIG_IGN, which the programs that a task starts would inherit.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)


def _die_with_parent() -> None:
    """Let the system kill this process with its worker, also while C code holds the interpreter lock."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class _Child:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._jobs: SimpleQueue[Run | Load | Stop] = SimpleQueue()
        self._asking = Asking(self.send)
        self._services = self._asking.services()
        self._tasks: dict[tuple[Place, str, bool], AnyTask] = {}
        self._clean = contextvars.copy_context()  # each task starts from this, not from what another one has set
        self._running: Run | None = None
        self._context: TaskContext | None = None
        self._softened: set[int] = set()
        self._cancelled: set[int] = set()
        self._main = threading.get_ident()
        self._main_sends = False

    def send(self, frame: object) -> None:
        """Say something to the worker."""
        whole = packed(frame)  # not under the lock: it runs code of the user's, which may log
        in_main = threading.get_ident() == self._main
        if in_main:
            self._main_sends = True
        try:
            with self._sending:
                self._connection.sendall(whole)
        finally:
            if in_main:
                self._main_sends = False
        if in_main and self._softened:
            self.on_signal(signal.SIGUSR2, None)

    def serve(self) -> None:
        """Work until the worker says stop."""
        threading.Thread(target=self._read, name="asyncq-worker-connection", daemon=True).start()
        self.send(Ready())
        while not isinstance(job := self._jobs.get(), Stop):
            if isinstance(job, Load):
                self.send(Loaded(self._load(job)))
            else:
                self.send(Ended(job.number, self._run(job)))
            del job  # nothing of a task stays alive after it

    # --- the reader thread

    def _read(self) -> None:
        stream = self._connection.makefile("rb")
        with contextlib.suppress(OSError):
            while len(head := stream.read(LENGTH.size)) == LENGTH.size:
                self._take(unpacked(stream.read(*LENGTH.unpack(head))))
        # The worker is gone: nobody wants the result, and what the task has started shall end as well.
        os.killpg(0, signal.SIGKILL) if os.getpgid(0) == os.getpid() else os._exit(1)

    def _take(self, frame: Any) -> None:
        match frame:
            case Run() | Load() | Stop():
                self._jobs.put(frame)
            case Answer():
                self._asking.answered(frame)
            case Soften(number):
                self._softened.add(number)
                signal.pthread_kill(self._main, signal.SIGUSR2)
            case Cancel(number):
                self._cancelled.add(number)
                self._mark()

    # --- the main thread

    def on_signal(self, _signal: int, _frame: FrameType | None) -> None:
        """Raise the soft limit in the code that this signal has interrupted, if it is still the same run.

        Not in the middle of a frame: the worker could read nothing after half of one. It is raised after it.
        """
        run = self._running
        if not self._main_sends and run is not None and run.number in self._softened:
            self._softened.discard(run.number)
            if self._context is not None:
                self._context.mark_soft_limit()
            raise soft_limit_error(run.message.type, run.soft_limit_s)

    def _mark(self) -> None:
        run, context = self._running, self._context
        if run is not None and context is not None and run.number in self._cancelled:
            context.mark_cancelled()

    def _load(self, load: Load) -> RaisedError | None:
        try:
            self._task(load.place, load.task, pass_context=False, probe=True)
        except BaseException as error:  # noqa: BLE001 - whatever a module does while it is imported
            return RaisedError.of(error)
        return None

    def _task(self, place: Place, name: str, *, pass_context: bool, probe: bool = False) -> AnyTask | None:
        known = self._tasks.get((place, name, pass_context))
        if known is not None:
            return known
        function = import_function(place, name)
        forward_structlog()
        if probe:
            return None
        declaration = Declaration(name=name, queue=name, run=RunOptions(), pass_context=pass_context)
        no_sender: Any = None  # tasks are sent by ctx.sync
        task = make_task(function, declaration, no_sender)
        task.resolve()
        self._tasks[place, name, pass_context] = task
        return task

    def _run(self, run: Run) -> _Ending:
        message = run.message
        self._softened &= {run.number}
        self._cancelled &= {run.number}  # what came too late for an earlier run is for nobody
        try:
            task = self._task(run.place, message.type, pass_context=run.pass_context)
            assert task is not None  # noqa: S101 - only a probe returns None
            task = called_by(message.body, task)
        except BaseException as error:  # noqa: BLE001 - whatever a module does while it is imported
            return RaisedError.of(error)
        try:
            args, kwargs = task.arguments.decode(message.body)
        except MalformedMessage as error:
            return Refused("malformed message", RaisedError.of(error))
        except BaseException as error:  # noqa: BLE001 - a validator of the user's may raise anything
            return Refused("invalid arguments", RaisedError.of(error))
        context = TaskContext(message, run.queue, run.attempt, self._services, run.deadline_ms)
        if run.pass_context:
            args = (context, *args)
        return self._called(run, task, context, partial(task.function, *args, **kwargs))

    def _called(self, run: Run, task: AnyTask, context: TaskContext, call: partial[Any]) -> _Ending:
        variables = self._clean.copy()
        variables.run(running(context).__enter__)
        enter(run.trace, variables)
        returned: list[Any] = []
        try:
            try:
                self._context, self._running = context, run
                self._mark()
                if run.number in self._softened:  # it came before the run did
                    self.on_signal(signal.SIGUSR2, None)
                returned.append(variables.run(call))
            finally:
                self._running = self._context = None
        except SoftTimeLimit as error:
            if not returned:  # it was raised in the code; else it came when the code had ended, and counts for nothing
                return RaisedError.of(error)
        except BaseException as error:  # noqa: BLE001 - sys.exit() in a task must not end the process
            return RaisedError.of(error)
        try:
            refuse_coroutine(returned[0], task.name)
        except TypeError as error:
            return RaisedError.of(error)
        try:
            return Result(task.results.encode(returned[0]))
        except BaseException as error:  # noqa: BLE001 - a serialiser of the user's may raise anything
            if not isinstance(error, ResultNotSerialisable):
                error.add_note("raised while the task's result was written as JSON")
            return Unfit(RaisedError.of(error))
