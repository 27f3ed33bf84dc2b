"""`asyncq dead replay` and `purge`: send dead letters back, or remove them.

Invariant: nothing is changed that was not asked for in words: a filter or --all, and a yes.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Protocol, TypeVar

import typer

from asyncq.app import AsyncQ
from asyncq.cli.dead_options import FilterOptions, QueueArgument, read_changes
from asyncq.cli.dead_queues import prepared
from asyncq.cli.grouped import grouped
from asyncq.cli.options import AppOption, BrokerUrlOption, LogLevelOption
from asyncq.cli.progress import progress_bar
from asyncq.cli.text import printable
from asyncq.dead_letters.filters import DeadLetterFilter
from asyncq.dead_letters.reports import PurgeReport, ReplayReport
from asyncq.errors import InvalidOption, PartlyDone
from asyncq.observability.logs import LogLevel

__all__ = ["purge", "replay"]

AllOption = Annotated[bool, typer.Option("--all", help="All of them; needed where no filter is given.")]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="How many at most, oldest first.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
JsonOption = Annotated[bool, typer.Option("--json", help="The report as one JSON object.")]

R = TypeVar("R", ReplayReport, PurgeReport)
R_co = TypeVar("R_co", ReplayReport, PurgeReport, covariant=True)

_SOME_FAILED = 1


@grouped
def replay(  # noqa: PLR0913 - the options of the command
    queue: QueueArgument,
    *,
    everything: AllOption = False,
    which: FilterOptions,
    limit: LimitOption = None,
    to: Annotated[str | None, typer.Option("--to", metavar="QUEUE", help="To this queue, not their own.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=JSON", help="Change this argument. Repeatable.")
    ] = None,
    arguments: Annotated[
        str | None, typer.Option("--arguments", metavar="JSON", help="Change these arguments; - reads standard input.")
    ] = None,
    rate: Annotated[float | None, typer.Option("--rate", metavar="N", help="At most so many a second.")] = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
    app: AppOption = None,
    broker_url: BrokerUrlOption = None,
    log_level: LogLevelOption = LogLevel.CRITICAL,
) -> None:
    """Send dead letters back to their queue: the same tasks with the same ids, attempts from 1.

    Each is confirmed there before it leaves here, so none is lost, whatever stops this command; run it again to go on.
    Exits with 1 where some could not be sent: they stay, and the reasons are told.
    """
    where = which.read()
    _check_choice(where, everything=everything)
    changes = read_changes(arguments, settings or ())
    loaded = prepared(app, broker_url, log_level, queue)

    async def run(*, dry: bool, progress: Callable[[ReplayReport], object]) -> ReplayReport:
        return await loaded.dead_letters(queue).replay(
            where, to=to, arguments=changes, rate=rate, limit=limit, dry_run=dry, progress=progress
        )

    def ask() -> str:
        planned = _done(loaded, run, f"Looking at {queue}", dry=True)
        return (
            f"Send {_letters(planned.replayed)} of {planned.total} from {queue} back to {to or 'where they came from'}?"
        )

    if not _agreed(ask, yes=yes or dry_run):
        return
    report = _done(loaded, run, f"Replaying {queue}", dry=dry_run, as_json=as_json)
    words = "would be sent" if dry_run else "sent"
    _print(report, f"{_letters(report.replayed)} of {report.total} {words} back from {queue}.", as_json=as_json)


@grouped
def purge(  # noqa: PLR0913 - the options of the command
    queue: QueueArgument,
    *,
    everything: AllOption = False,
    which: FilterOptions,
    limit: LimitOption = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
    app: AppOption = None,
    broker_url: BrokerUrlOption = None,
    log_level: LogLevelOption = LogLevel.CRITICAL,
) -> None:
    """Remove dead letters for good. `asyncq dead export` keeps a copy of them before."""
    where = which.read()
    _check_choice(where, everything=everything)
    loaded = prepared(app, broker_url, log_level, queue)

    async def run(*, dry: bool, progress: Callable[[PurgeReport], object]) -> PurgeReport:
        return await loaded.dead_letters(queue).purge(where, limit=limit, dry_run=dry, progress=progress)

    def ask() -> str:
        planned = _done(loaded, run, f"Looking at {queue}", dry=True)
        return f"Remove {_letters(planned.purged)} of {planned.total} of {queue} for good?"

    if not _agreed(ask, yes=yes or dry_run):
        return
    report = _done(loaded, run, f"Purging {queue}", dry=dry_run, as_json=as_json)
    words = "would be removed" if dry_run else "removed"
    _print(report, f"{_letters(report.purged)} of {report.total} of {queue} {words}.", as_json=as_json)


# --- before


def _check_choice(where: DeadLetterFilter | None, *, everything: bool) -> None:
    if everything and where is not None:
        raise InvalidOption("--all and a filter contradict each other: give one of them.")
    if where is None and not everything:
        raise InvalidOption("Say which ones: --all, or a filter such as --task, --error, --older-than, --id.")


def _agreed(ask: Callable[[], str], *, yes: bool) -> bool:
    if yes:
        return True
    if not sys.stdin.isatty():
        raise InvalidOption("Nobody can be asked, for standard input is no terminal: give --yes, or --dry-run.")
    if typer.confirm(ask(), err=True):
        return True
    typer.echo("Nothing was changed.", err=True)
    return False


# --- while it runs


class _Work(Protocol[R_co]):
    async def __call__(self, *, dry: bool, progress: Callable[[R_co], object]) -> R_co: ...


def _done(app: AsyncQ, work: _Work[R], what: str, *, dry: bool, as_json: bool = False) -> R:
    """Do the work, with a progress bar; where it ends in the middle, tell how far it came."""
    reports: list[R] = []
    try:
        return asyncio.run(_working(app, work, what, reports, dry=dry))
    except PartlyDone as error:
        if as_json:
            typer.echo(json.dumps(asdict(error.report)))
        raise
    except KeyboardInterrupt:
        if reports and not dry:
            done = reports[-1].replayed if isinstance(reports[-1], ReplayReport) else reports[-1].purged
            typer.echo(
                f"Interrupted after {_letters(done)}. The rest is where it was; run it again to go on.", err=True
            )
        raise


async def _working(app: AsyncQ, work: _Work[R], what: str, reports: list[R], *, dry: bool) -> R:
    async with app.open(role="cli"):
        with progress_bar(what) as told:

            def progress(report: R) -> None:
                reports[:] = [report]
                told(report.examined, report.total)

            return await work(dry=dry, progress=progress)


# --- after


def _print(report: ReplayReport | PurgeReport, words: str, *, as_json: bool) -> None:
    failures = report.failures if isinstance(report, ReplayReport) else {}
    if as_json:
        typer.echo(json.dumps(asdict(report), ensure_ascii=False))
    else:
        typer.echo(words)
        for reason, count in sorted(failures.items(), key=lambda item: -item[1]):
            typer.echo(printable(f"{_letters(count)} stayed: {reason}"), err=True)
        for task_id in report.missing_ids:
            typer.echo(printable(f"No dead letter has the id {task_id!r}."), err=True)
    if failures or report.missing_ids:
        raise typer.Exit(_SOME_FAILED)


def _letters(count: int) -> str:
    return f"{count} dead letter{'' if count == 1 else 's'}"
