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
from asyncq.cli.observing import MetricsHostOption, MetricsPortOption, Observation, Observing
from asyncq.cli.options import BrokerUrlOption, LogFormatOption, ServiceLogLevelOption, override
from asyncq.cli.text import printable, safe_urls
from asyncq.cli.tracing import TracingOption, trace
from asyncq.loading import load_app
from asyncq.loggers import get_logger
from asyncq.observability.logs import LogFormat, LogLevel, configure_logging
from asyncq.observability.redaction import redact_by
from asyncq.version import asyncq_version

__all__ = ["scheduler", "scheduling"]

log = get_logger("asyncq.cli")


def scheduler(  # noqa: PLR0913 - the options of the command
    target: Annotated[str, typer.Argument(metavar="MODULE:APP", help="Where the app is, for example shop.tasks:app.")],
    *,
    log_level: ServiceLogLevelOption = LogLevel.INFO,
    log_format: LogFormatOption = LogFormat.CONSOLE,
    tracing: TracingOption = False,
    broker_url: BrokerUrlOption = None,
    metrics_port: MetricsPortOption = None,
    metrics_host: MetricsHostOption = None,
) -> None:
    """Send an app's scheduled tasks when they are due. Run as many as you like: one leads."""
    configure_logging(log_level, log_format)
    app = load_app(target)
    redact_by(app.redact)
    override(app, broker_url=broker_url, metrics_port=metrics_port, metrics_host=metrics_host)
    trace(app, wanted=tracing)
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
    # Suppressed: a signal while it was still connecting, when nothing had begun.
    with contextlib.suppress(asyncio.CancelledError), Observation(app, Observing(target), "scheduler") as observation:
        async with app.open(role="scheduler"):
            running = app.scheduler()
            observation.watch_scheduler(app, running)
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
async def scheduling(app: AsyncQ, observation: Observation, *, wanted: bool) -> AsyncIterator[None]:
    """Run a scheduler beside what the block does, where it is wanted. Its failure is logged; the block goes on.

    Args:
        app: The app, open.
        observation: What is observed of this process.
        wanted: Whether there is to be one.

    Raises:
        ConfigurationError: A schedule cannot be used, or there is none.
    """
    if not wanted:
        yield
        return
    beside = app.scheduler()
    observation.watch_scheduler(app, beside)

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
