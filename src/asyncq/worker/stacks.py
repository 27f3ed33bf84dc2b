"""Where code is at the moment: the stacks of asyncio tasks and of threads, as text.

Anybody may look from any thread: frames of code that goes on meanwhile are read as they are.

Invariant: looking changes nothing, and raises nothing.
"""

from __future__ import annotations

import asyncio
import asyncio.events
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final

from asyncq.worker import around, runners

__all__ = ["stack_of_suspended", "stack_of_thread"]

_OURS: Final = frozenset(
    filename
    for filename in (
        runners.__file__,
        around.__file__,
        str(Path(around.__file__).with_name("injection.py")),  # which is imported where a task has dependencies only
        asyncio.events.__file__,
        asyncio.base_events.__file__,
    )
    if filename
)
"""What calls the code of tasks: what is below it in a stack is nobody's business."""


def stack_of_thread(ident: int) -> str:
    """Return the stack of a thread from the user's code on, innermost last; empty where there is no such thread."""
    frame: FrameType | None = sys._current_frames().get(ident)  # noqa: SLF001 - documented, and the only way
    if frame is None:
        return ""
    frames = list(traceback.walk_stack(frame))[::-1]
    last = max((number for number, (frame, _) in enumerate(frames) if frame.f_code.co_filename in _OURS), default=-1)
    return _text(frames[last + 1 :] or frames)


def stack_of_suspended(task: asyncio.Task[Any]) -> str:
    """Return where an asyncio task waits, through all that it awaits, innermost last, and what it waits for there."""
    frames = [(frame, line) for frame, line in _awaited(task.get_coro()) if frame.f_code.co_filename not in _OURS]
    waits_for = getattr(task, "_fut_waiter", None)
    return _text(frames) + (f"\n  waits for {waits_for!r}" if waits_for is not None else "")


def _awaited(code: object) -> Iterator[tuple[FrameType, int]]:
    """Yield the frames of a coroutine and of all that it awaits."""
    while code is not None:
        frame = _first(code, "cr_frame", "gi_frame", "ag_frame")
        if frame is not None:
            yield frame, frame.f_lineno
        code = _first(code, "cr_await", "gi_yieldfrom", "ag_await")


def _first(code: object, *names: str) -> Any:
    return next((found for name in names if (found := getattr(code, name, None)) is not None), None)


def _text(frames: list[tuple[FrameType, int]]) -> str:
    return "".join(traceback.StackSummary.extract(iter(frames)).format()).rstrip()
