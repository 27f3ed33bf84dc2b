"""`SoftTimeLimit` in a coroutine: a cancellation that arrives as another exception.

The coroutine is cancelled by its asyncio task, as `asyncio.timeout` does it, so that whatever it waits for is cancelled
as well. On its way into the coroutine the `CancelledError` becomes a `SoftTimeLimit`, which is one too: the clean-up of
task groups, timeouts and locks does its work, and the task's own code tells the two apart. asyncio tasks that the code
has started itself are cancelled plainly.

Invariant: of all cancellations only our own is turned, and only the step that it causes. Where something else comes
first (the awaited task absorbed it, the drain began), it is forgotten. The asyncio task's count of cancellations is
as before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Generator
from typing import Any

from asyncq.errors import SoftTimeLimit
from asyncq.worker.attempt import Attempt

__all__ = ["SoftLimited", "soft_limit_error"]

_LOOK_AGAIN_S = 0.01


def soft_limit_error(task: str, limit_s: float | None) -> SoftTimeLimit:
    """Return what is raised in the code of a task at its soft limit."""
    return SoftTimeLimit(f"Task {task} has reached its soft time limit of {limit_s:g} s.")


class SoftLimited(Generator[Any, Any, Any]):
    """A coroutine, to be awaited in the asyncio task of an attempt.

    Args:
        coroutine: The user's.
        attempt: It is told here how to raise the soft limit.

    Attributes:
        cr_await: The coroutine, for whoever follows the chain of awaits to show where the code is.
    """

    def __init__(self, coroutine: Awaitable[Any], attempt: Attempt) -> None:
        self.cr_await = coroutine
        self._steps = coroutine.__await__()
        self._attempt = attempt
        self._pending = self._begun = False
        attempt.on_soft_limit = self._reach

    def __await__(self) -> SoftLimited:
        return self

    def send(self, value: Any, /) -> Any:
        """Go on with a value."""
        self._begun = True
        self._take()
        if value is None:
            return next(self._steps)
        return self._steps.send(value)

    def throw(self, error: Any, value: Any = None, _trace: Any = None, /) -> Any:
        """Go on with an exception; with our own cancellation as the soft limit."""
        raised = next((item for item in (error, value) if isinstance(item, BaseException)), None) or error()
        if self._take() and isinstance(raised, asyncio.CancelledError) and self._attempt.interrupted is None:
            raised = soft_limit_error(self._attempt.task.name, self._attempt.limits.soft_limit_s)
        return self._steps.throw(raised)

    def close(self) -> None:
        """End the coroutine."""
        self._steps.close()

    def _reach(self) -> None:
        code = self._attempt.code
        if code is None or self._attempt.finished:
            return
        if not self._begun:  # cancelled before its first step, it would not run a line
            code.get_loop().call_later(_LOOK_AGAIN_S, self._reach)
            return
        self._pending = True
        code.cancel()

    def _take(self) -> bool:
        """Return whether our cancellation was on its way, and forget it."""
        pending, self._pending = self._pending, False
        if pending and self._attempt.code is not None:
            self._attempt.code.uncancel()
        return pending
