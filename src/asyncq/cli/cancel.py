"""`asyncq cancel`: let tasks not run, or stop them where they run, by their ids."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import typer

from asyncq.app import AsyncQ
from asyncq.cancellations import checked_ids
from asyncq.cli.options import AppOption, BrokerUrlOption, LogLevelOption, app_for
from asyncq.errors import InvalidOption
from asyncq.observability.logs import LogLevel, configure_logging

__all__ = ["cancel"]

IdsArgument = Annotated[
    list[str], typer.Argument(metavar="ID...", help="Ids of tasks; - reads them from standard input, one a line.")
]


def cancel(
    ids: IdsArgument,
    *,
    undo: Annotated[bool, typer.Option("--undo", help="Take a cancellation back.")] = False,
    app: AppOption = None,
    broker_url: BrokerUrlOption = None,
    log_level: LogLevelOption = LogLevel.CRITICAL,
) -> None:
    """Cancel tasks: what runs is stopped, and what waits does not run any more. Returns when the broker has it.

    Unknown ids, and tasks that have ended, are no error: nobody can know whether a worker comes to them later.
    """
    wanted = checked_ids(_ids(ids))
    configure_logging(log_level)
    asyncio.run(_cancel(app_for(app, broker_url), wanted, undo=undo))
    tasks = f"{len(wanted)} task{'' if len(wanted) == 1 else 's'}"
    typer.echo(f"The cancellation of {tasks} is taken back." if undo else f"{tasks} cancelled.")


def _ids(given: list[str]) -> list[str]:
    if "-" not in given:
        return given
    if given != ["-"]:
        raise InvalidOption("- reads the ids from standard input: give no others beside it.")
    found = [line.strip() for line in sys.stdin if line.strip()]
    if not found:
        raise InvalidOption("Standard input has no ids: one a line is wanted.")
    return found


async def _cancel(app: AsyncQ, ids: tuple[str, ...], *, undo: bool) -> None:
    async with app.open(role="cli"):
        await (app.undo_cancel(*ids) if undo else app.cancel(*ids))
