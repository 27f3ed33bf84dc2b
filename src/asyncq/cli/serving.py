"""One worker process, from its connections to its exit code."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from typing import TYPE_CHECKING

from asyncq.app import AsyncQ
from asyncq.cli.leftovers import Leftovers
from asyncq.cli.observing import Observation, Observing
from asyncq.cli.report import FAULT, exit_code_of, message_of, report
from asyncq.cli.scheduler import scheduling
from asyncq.cli.stopping import StopSignals, exit_at_once
from asyncq.errors import BrokerRefused, LifespanFailed, TopologyMismatch
from asyncq.loggers import get_logger
from asyncq.tracing.provider import flush
from asyncq.worker.exit_codes import LIFESPAN, REFUSED

if TYPE_CHECKING:
    from asyncq.supervisor.link import SupervisorLink
    from asyncq.worker.worker import Worker  # the other commands need not load it

__all__ = ["serve", "tell"]

log = get_logger("asyncq.cli")


async def serve(
    app: AsyncQ,
    queues: Mapping[str, int],
    how: Observing,
    *,
    max_tasks: int | None,
    as_log: bool,
    scheduler: bool,
) -> int:
    """Run a worker until it is asked to stop.

    Args:
        app: The app, closed.
        queues: Slots for each queue.
        how: How it is observed, and the way to its supervisor, if it has one.
        max_tasks: After so many tasks it drains, and asks to be started again.
        as_log: Whether errors are told as log lines.
        scheduler: Whether a scheduler runs beside it.

    Returns:
        The exit code; see `asyncq.worker.exit_codes`.
    """
    starting = asyncio.current_task()
    assert starting is not None  # noqa: S101 - a coroutine always runs in a task; a type for the checker
    stopping = StopSignals(starting.cancel)
    link = how.link
    if link is not None:
        link.on_drain = lambda: stopping.ask("supervisor")
    leftovers = Leftovers()
    running: Worker | None = None
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # until there is something to tell; by default it would end us
    try:
        with Observation(app, how) as observation:
            async with app.open(role="worker"):
                running = app.worker(queues=queues)
                observation.watch_worker(app, running)
                stopping.on_first = running.stop
                if link is not None:
                    running.on_retire = link.leave
                dump = running.dump
                signal.signal(signal.SIGUSR1, lambda *_: dump())
                if max_tasks is not None:
                    running.restart_after(max_tasks)
                telling = asyncio.create_task(_tell_supervisor(running, link, app.settings.drain_timeout_s))
                async with scheduling(app, observation, wanted=scheduler):
                    code = await running.run()
                telling.cancel()
    except Exception as error:
        if running is None:
            raise
        code = tell(error, as_log=as_log)
    if running.threads_abandoned:
        # That code cannot be stopped, and the interpreter would wait for it before it exits.
        flush()
        exit_at_once(code)
    if left := await leftovers.end():
        log.warning("tasks have left something running, which ends with this process", left=left)
        flush()
        exit_at_once(code)
    return code


async def _tell_supervisor(worker: Worker, link: SupervisorLink | None, drain_timeout_s: float) -> None:
    await worker.consuming()
    if link is not None:
        link.ready(drain_timeout_s)


def tell(error: Exception, *, as_log: bool) -> int:
    """Say why the worker ends, in the form that its log has, and return the exit code."""
    code = _exit_code(error)
    if as_log:
        trace = {"exc_info": error} if code == FAULT else {}
        log.critical("worker failed", error=type(error).__name__, message=message_of(error), exit_code=code, **trace)
    else:
        report(error)
    return code


def _exit_code(error: Exception) -> int:
    match error:
        case BrokerRefused() | TopologyMismatch():
            return REFUSED
        case LifespanFailed():
            return LIFESPAN
        case _:
            return exit_code_of(error)
