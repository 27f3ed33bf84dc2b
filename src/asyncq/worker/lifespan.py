"""The app's lifespan around the life of a worker.

    enter ──▶ the worker consumes, drains and ends ──▶ leave
      │
      ├── it raises: `LifespanFailed`, and the worker has consumed nothing
      └── the worker is to stop meanwhile: entering is cancelled, and there is nothing to leave

Invariant: what was entered is left, however the worker ends, by the code after its `yield`: how the worker ended is no
exception there. It is entered and left in one asyncio task, as context managers of asyncio and anyio want it.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from asyncq.context import no_lifespan
from asyncq.errors import AsyncQError, LifespanFailed
from asyncq.loggers import get_logger
from asyncq.worker.exit_codes import DRAINED

__all__ = ["run_in_lifespan"]

log = get_logger("asyncq.worker")


async def run_in_lifespan(
    lifespan: AbstractAsyncContextManager[Any] | None,
    stopping: asyncio.Event,
    work: Callable[[Callable[[], Any]], Awaitable[int]],
) -> int:
    """Run a worker within its app's lifespan.

    Args:
        lifespan: The app's; None where it has none.
        stopping: Set when the worker shall stop.
        work: Runs the worker. It gets a function that returns the resources, and returns the exit code.

    Returns:
        The exit code.

    Raises:
        LifespanFailed: What the lifespan raised before its `yield`, or after it.
        AsyncQError: What has ended the worker.
    """
    if lifespan is None:
        return await work(no_lifespan)
    try:
        resources = await _enter(lifespan, stopping)
    except _StoppedBefore:
        return DRAINED
    try:
        code = await work(lambda: resources)
    except AsyncQError:
        try:
            await _leave(lifespan)
        except LifespanFailed as failed:  # what has ended the worker says more, also to whoever starts it again
            log.error("the lifespan failed after what has ended the worker", exc_info=failed)  # noqa: TRY400
        raise
    except BaseException:
        await _leave(lifespan)
        raise
    await _leave(lifespan)
    return code


class _StoppedBefore(Exception):
    """The worker is to stop, and its lifespan was not entered yet."""


async def _enter(lifespan: AbstractAsyncContextManager[Any], stopping: asyncio.Event) -> Any:
    here = asyncio.current_task()
    assert here is not None  # noqa: S101 - a coroutine always runs in a task; a type for the checker
    entering, cancelled = True, False

    def cancel(waited: asyncio.Future[Any]) -> None:
        nonlocal cancelled
        if entering and not waited.cancelled():
            cancelled = here.cancel()

    waiting = asyncio.ensure_future(stopping.wait())
    waiting.add_done_callback(cancel)
    try:
        return await lifespan.__aenter__()
    except asyncio.CancelledError:
        if cancelled:
            raise _StoppedBefore from None
        raise
    except Exception as error:
        raise _failed("before its `yield`, so the worker has run nothing", error) from error
    finally:
        entering = False
        waiting.cancel()
        if cancelled:
            here.uncancel()


async def _leave(lifespan: AbstractAsyncContextManager[Any]) -> None:
    try:
        await lifespan.__aexit__(None, None, None)
    except Exception as error:
        raise _failed("after its `yield`; the worker had come to its end", error) from error


def _failed(when: str, error: Exception) -> LifespanFailed:
    failed = LifespanFailed(f"The app's lifespan failed {when}: {type(error).__name__}: {error}")
    # Where in the user's code: for the log and the command line, which show no traceback of an error of ours.
    failed.add_note("".join(traceback.format_exception(error)).rstrip())
    return failed
