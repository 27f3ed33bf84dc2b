"""Functions of tasks that run in processes of their own: these import them, so they are at the top of a module."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from pydantic_core import from_json, to_json

from asyncq.context import TaskContext, current_context
from asyncq.errors import SoftTimeLimit
from asyncq.signals import Reject, Retry, Snooze
from asyncq.signature import Signature
from asyncq.workflow.building import group

__all__ = [
    "AwkwardError",
    "ask_and_answer",
    "compute",
    "crash",
    "crash_once",
    "fail",
    "pid",
    "returns_something_else",
    "signalled",
    "sleep_on",
    "softly",
    "square",
    "squares",
    "tell",
    "until_cancelled",
]


class AwkwardError(ConnectionError):
    """An error that cannot be pickled: its arguments are not those of its `__init__`."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status} {reason}")
        self.status = status


def square(x: int) -> int:
    """Compute."""
    return x * x


def squares(ctx: TaskContext, numbers: list[int], task: str) -> list[int]:
    """Let others compute, by a workflow."""
    members = [Signature(task, to_json({"x": number}), ctx.queue, reply=True, decode=from_json) for number in numbers]
    handle = ctx.sync.send(group(members))
    updates = list(handle.updates())
    found: list[int] = handle.result(30)
    told = ctx.sync.workflow(handle.id)
    assert updates[-1].done == told.status().done == len(numbers)  # noqa: S101 - a test
    assert told.result(30) == found == ctx.sync.call(group(members))  # noqa: S101 - a test
    assert not handle.cancel()  # noqa: S101 - a test
    return found


def pid() -> int:
    """Tell the process."""
    return os.getpid()


def tell(ctx: TaskContext, word: str) -> dict[str, Any]:
    """Tell what a task knows."""
    ctx.log.warning("said in a process", word=word)
    return {
        "task": ctx.task_name if current_context() is ctx else "another",
        "task_id": ctx.task_id,
        "attempt": ctx.attempt,
        "queue": ctx.queue,
        "tenant": ctx.headers.get("tenant"),
        "deadline": ctx.deadline is not None,
        "cancelled": ctx.cancelled,
        "pid": os.getpid(),
    }


def ask_and_answer(ctx: TaskContext, x: int) -> list[int]:
    """Report progress, call a task, send another one, follow it and take its result."""
    from asyncq.signature import Signature  # noqa: PLC0415 - beside its only use

    def double(value: int) -> Signature[int]:
        return Signature("shop.double", b'{"x":%d}' % value, "shop", reply=True, decode=int)

    ctx.sync.progress(1, 3, label="HALF", note="x")
    called = ctx.sync.call(double(x))
    handle = ctx.sync.send(double(2 * x))
    updates = [int(update.done) for update in handle.updates()]
    stranger = ctx.sync.handle("nobody's")
    assert stranger.id == "nobody's"  # noqa: S101 - it fails the task, and so the test
    return [called, handle.result(30), *updates, int(handle.cancel())]


def fail(kind: str) -> None:
    """Fail."""
    if kind == "awkward":
        raise AwkwardError(503, "away")
    if kind == "exit":
        sys.exit(3)
    raise {"value": ValueError, "connection": ConnectionError}[kind](f"{kind} is wrong")


def crash(how: str) -> None:
    """End the process."""
    if how in {"forked", "daemon"} and os.fork() == 0:  # it holds what this process had open, its connections too
        if how == "daemon":
            os.setsid()
        time.sleep(60)
        os._exit(0)
    if how == "exit":
        os._exit(7)
    if how != "segfault":
        os.kill(os.getpid(), signal.SIGKILL)
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    ctypes.string_at(0)


def crash_once(mark: str) -> str:
    """End the process at the first attempt."""
    path = Path(mark)
    if not path.exists():
        path.touch()
        os._exit(1)
    return "done"


def returns_something_else() -> int:
    """Return what does not fit."""
    return "text"  # type: ignore[return-value]


def signalled(kind: str, mark: str) -> str:
    """Say by a signal how the first attempt ends."""
    path = Path(mark)
    if path.exists():
        return f"{kind}, attempt {current_context().attempt}"
    path.touch()
    if kind == "retry":
        raise Retry("later", after=0.05) from ConnectionError("away")
    if kind == "snooze":
        raise Snooze(0.05)
    raise Reject("not for us")


def sleep_on(mark: str) -> None:
    """Start a program, write down both process ids, and never end."""
    program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(mark).with_suffix(".new").write_text(f"{os.getpid()} {program.pid}")
    Path(mark).with_suffix(".new").rename(mark)
    time.sleep(600)


def softly(*, catch: bool) -> str:
    """Sleep; and clean up at the soft limit, or not."""
    try:
        time.sleep(600)
    except SoftTimeLimit:
        if not catch:
            raise
        return "what there was" if current_context().soft_limit_reached else "no limit"
    return "all"


def until_cancelled() -> str:
    """Run until the context says stop."""
    while not current_context().cancelled:
        time.sleep(0.005)
    return "saw it"


def compute(seconds: float) -> float:
    """Keep a core busy, and tell for how long."""
    began, number = time.monotonic(), 1
    while time.monotonic() - began < seconds:
        number = number * 31 % 1_000_003
    return time.monotonic() - began
