"""What the commands that ask workers have in common: their options, how they ask, and how they show the answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict, TypeVar

import typer

from asyncq.cli.control_text import remarks
from asyncq.cli.options import BrokerUrlOption, LogLevelOption, app_for
from asyncq.cli.text import printable
from asyncq.control_values import Answers, WorkerAnswer
from asyncq.controller import Controller
from asyncq.observability.logs import LogLevel, configure_logging

__all__ = ["Asking", "Whom"]

A = TypeVar("A", bound=WorkerAnswer)
F = TypeVar("F", bound=Answers[Any])

_INCOMPLETE = 1

AppOption = Annotated[
    str | None,
    typer.Option(
        "--app", metavar="MODULE:APP", help="Only workers of this app, on its broker. By default those of all apps."
    ),
]
HostOption = Annotated[str | None, typer.Option("--host", metavar="HOST", help="Only workers on this host.")]
WorkerOption = Annotated[
    str | None, typer.Option("--worker", metavar="HOST:PID", help="Only this worker, by its name as `ping` shows it.")
]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", min=0.1, max=3600, help="How long answers are waited for.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="As one JSON object.")]


class Whom(TypedDict):
    """Whom a question is for, and how long answers are waited for: arguments of every method of `Controller`."""

    host: str | None
    worker: str | None
    timeout: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """One command: whom it asks, how workers are reached, and how the answers are shown.

    Its fields are options (see `grouped`).
    """

    host: HostOption = None
    worker: WorkerOption = None
    timeout: TimeoutOption = 2.0
    as_json: JsonOption = False
    app: AppOption = None
    broker_url: BrokerUrlOption = None
    log_level: LogLevelOption = LogLevel.CRITICAL

    def ask(self, question: Callable[[Controller, Whom], Awaitable[F]]) -> F:
        """Ask, and return the answers."""
        configure_logging(self.log_level)
        app = app_for(self.app, self.broker_url)
        whom = Whom(host=self.host, worker=self.worker, timeout=self.timeout)

        async def asking() -> F:
            async with app.open(role="cli"):
                return await question(app.control.everybody if self.app is None else app.control, whom)

        return asyncio.run(asking())

    def show(self, found: Answers[A], text: str, *, kept: str = "", missing: str = "") -> None:
        """Show the answers, and end with 1 where some are missing.

        Args:
            found: What was answered.
            text: The same for people.
            kept: What is said where all workers are meant, and it counts also for those to come.
            missing: What is said besides of workers that have not done what was asked.
        """
        if self.host is not None or self.worker is not None:
            kept = ""
        if self.as_json:
            typer.echo(found.model_dump_json())
        elif kept:
            typer.echo(printable(kept))
        if text and not self.as_json:
            typer.echo(text)
        for remark in (*remarks(found, self.timeout), *([missing] if missing else ())):
            typer.echo(remark, err=True)
        if found.complete:
            return
        if not found.answers and not found.silent and not found.failed:
            typer.echo("No worker is there.", err=True)
            if kept:
                return
        raise typer.Exit(_INCOMPLETE)
