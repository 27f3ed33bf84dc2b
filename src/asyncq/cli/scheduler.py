"""`asyncq scheduler`: one scheduler process, from start to hand-over; and a scheduler beside a worker.

Any number of them may run: one leads, and another follows when it ends. The first SIGTERM or SIGINT hands over; the
second ends the process at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from typing import Annotated

import typer

from asyncq.app import AsyncQ
from asyncq.cli.options import BrokerUrlOption, LogFormatOption, ServiceLogLevelOption, override
from asyncq.cli.text import printable, safe_urls
from asyncq.cli.version import asyncq_version
from asyncq.loading import load_app
from asyncq.loggers import get_logger
from asyncq.observability.logs import LogFormat, LogLevel, configure_logging
from asyncq.observability.redaction import redact_by

__all__ = ["scheduler", "scheduling"]

log = get_logger("asyncq.cli")


def scheduler(
    target: Annotated[str, typer.Argument(metavar="MODULE:APP", help="Where the app is, for example shop.tasks:app.")],
    *,
    log_level: ServiceLogLevelOption = LogLevel.INFO,
    log_format: LogFormatOption = LogFormat.CONSOLE,
    broker_url: BrokerUrlOption = None,
) -> None:
    """Send an app's scheduled tasks when they are due. Run as many as you like: one leads."""
    configure_logging(log_level, log_format)
    app = load_app(target)
    redact_by(app.redact)
    override(app, broker_url=broker_url)
    asyncio.run(_serve(app, target, as_log=log_format is LogFormat.JSON))


async def _serve(app: AsyncQ, target: str, *, as_log: bool) -> None:
    starting = asyncio.current_task()
    assert starting is not None  # noqa: S101 - a coroutine always runs in a task; a type for the checker
    stop: Callable[[], object] = starting.cancel
    received = 0

    def receive(number: signal.Signals) -> None:
        nonlocal received
        received += 1
        if received > 1:
            sys.stderr.flush()
            os._exit(128 + number)
        stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, receive, number)
    with contextlib.suppress(asyncio.CancelledError):  # a signal while it was still connecting: nothing had begun
        async with app.open(role="scheduler"):
            running = app.scheduler()
            stop = running.stop
            if as_log:
                log.info("scheduler starting", version=asyncq_version(), app=app.name, pid=os.getpid())
            else:
                typer.secho(f"asyncq {asyncq_version()}", bold=True, nl=False, err=True)
                typer.echo(f" scheduler, process {os.getpid()}", err=True)
                typer.echo(printable(f"  app     {app.name} ({target})"), err=True)
                typer.echo(printable(f"  broker  {safe_urls(app.settings.broker_url)}"), err=True)
            await running.run()


@contextlib.asynccontextmanager
async def scheduling(app: AsyncQ, *, wanted: bool) -> AsyncIterator[None]:
    """Run a scheduler beside what the block does, where it is wanted. Its failure is logged; the block goes on.

    Args:
        app: The app, open.
        wanted: Whether there is to be one.

    Raises:
        ConfigurationError: A schedule cannot be used, or there is none.
    """
    if not wanted:
        yield
        return
    beside = app.scheduler()

    async def run() -> None:
        try:
            await beside.run()
        except Exception:
            log.exception("the scheduler of this worker has ended; the worker goes on")

    running = asyncio.create_task(run(), name="asyncq scheduler")
    try:
        yield
    finally:
        beside.stop()
        await running
