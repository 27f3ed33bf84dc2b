"""`asyncq dead list` and `show`: what is parked in dead-letter queues, and why.

Looking takes nothing away.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from typing import Annotated

import typer

from asyncq.app import AsyncQ
from asyncq.broker import DeadLetter
from asyncq.cli.dead_options import FilterOptions, QueueArgument
from asyncq.cli.dead_queues import prepared, queues_of
from asyncq.cli.dead_text import as_json, as_text, count_as_json, counts_as_table, shown, whole_as_json
from asyncq.cli.grouped import grouped
from asyncq.cli.options import AppOption, BrokerUrlOption, LogLevelOption
from asyncq.cli.progress import progress_bar
from asyncq.cli.topology import ManagementUrlOption
from asyncq.dead_letters.filters import DeadLetterFilter
from asyncq.dead_letters.queue import DeadLetterQueue
from asyncq.dead_letters.reports import LetterCount
from asyncq.dead_letters.tally import SummaryTally
from asyncq.errors import InvalidOption, QueueGone, UnknownDeadLetter
from asyncq.observability.logs import LogLevel

__all__ = ["list_dead", "show"]

_TOLD_EACH = 100


@grouped
def list_dead(  # noqa: PLR0913 - the options of the command
    queue: Annotated[
        str | None,
        typer.Argument(
            metavar="[QUEUE]",
            help="The task queue, for example mail; or asyncq.unroutable. Without it: a table of what all hold.",
        ),
    ] = None,
    *,
    which: FilterOptions,
    limit: Annotated[int, typer.Option(min=1, help="How many at most, oldest first.")] = 100,
    summary: Annotated[bool, typer.Option("--summary", help="A table of counts by task and error.")] = False,
    count: Annotated[bool, typer.Option("--count", help="Only how many there are: the letters are not read.")] = False,
    as_json_: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    app: AppOption = None,
    broker_url: BrokerUrlOption = None,
    management_url: ManagementUrlOption = None,
    log_level: LogLevelOption = LogLevel.CRITICAL,
) -> None:
    """List dead letters, or count them by queue, task and error. They stay where they are."""
    where = which.read()
    if count and (summary or where is not None):
        raise InvalidOption("--count reads no letters, so it knows no filter: give --summary in its place.")
    loaded = prepared(app, broker_url, log_level, queue)
    if queue is not None and not (summary or count):
        _print_letters(asyncio.run(_look(loaded, queue, where, limit)), queue, limit, as_json_=as_json_)
        return
    names = asyncio.run(queues_of(loaded, management_url, whole_broker=app is None)) if queue is None else [queue]
    if count:
        _print_numbers(asyncio.run(_count(loaded, names, strict=queue is not None)), as_json_=as_json_)
    else:
        _print_counts(asyncio.run(_sum_up(loaded, names, where, strict=queue is not None)), as_json_=as_json_)


def show(
    queue: QueueArgument,
    task_id: Annotated[str, typer.Argument(metavar="ID", help="The task's id.")],
    *,
    as_json_: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
    app: AppOption = None,
    broker_url: BrokerUrlOption = None,
    log_level: LogLevelOption = LogLevel.CRITICAL,
) -> None:
    """Show one dead letter whole: arguments, headers, error, traceback, failed attempts."""
    letter = asyncio.run(_get(prepared(app, broker_url, log_level, queue), queue, task_id))
    if letter is None:
        raise UnknownDeadLetter(
            f"No dead letter of queue {queue} has the id {task_id!r}. `asyncq dead list {queue}` shows those that "
            "there are."
        )
    typer.echo(json.dumps(whole_as_json(letter), ensure_ascii=False, indent=2) if as_json_ else shown(letter))


# --- asking


async def _look(app: AsyncQ, queue: str, where: DeadLetterFilter | None, limit: int) -> list[DeadLetter]:
    # All of them before the first is printed: what is being looked at is out of others' sight until the look ends.
    async with app.open(role="cli"):
        return [letter async for letter in app.dead_letters(queue).browse(where, limit)]


async def _get(app: AsyncQ, queue: str, task_id: str) -> DeadLetter | None:
    async with app.open(role="cli"):
        return await app.dead_letters(queue).get(task_id)


async def _count(app: AsyncQ, names: list[str], *, strict: bool) -> dict[str, int]:
    numbers = {}
    async with app.open(role="cli"):
        for name in names:
            try:
                numbers[name] = await app.dead_letters(name).count()
            except QueueGone:  # deleted meanwhile, or an app that declares nothing
                if strict:
                    raise
    return numbers


async def _sum_up(
    app: AsyncQ, names: list[str], where: DeadLetterFilter | None, *, strict: bool
) -> dict[str, list[LetterCount]]:
    counts = {}
    async with app.open(role="cli"):
        for name in names:
            try:
                counts[name] = await _sum_up_one(app.dead_letters(name), where)
            except QueueGone:
                if strict:
                    raise
    return counts


async def _sum_up_one(letters: DeadLetterQueue, where: DeadLetterFilter | None) -> list[LetterCount]:
    total = await letters.count()
    tally = SummaryTally()
    with progress_bar(f"Reading {letters.queue}") as told:
        done = 0
        async with aclosing(letters.browse(where)) as found:
            async for letter in found:
                tally.add(letter)
                done += 1
                if done % _TOLD_EACH == 0:
                    told(done, total)
    return tally.counts()


# --- printing


def _print_letters(letters: list[DeadLetter], queue: str, limit: int, *, as_json_: bool) -> None:
    for letter in letters:
        typer.echo(json.dumps(as_json(letter), ensure_ascii=False) if as_json_ else as_text(letter))
    if as_json_:
        return
    if not letters:
        typer.echo(f"No dead letters of queue {queue}.")
    elif len(letters) == limit:
        typer.echo(f"{limit} shown; --limit shows more, --summary counts all.")


def _print_numbers(numbers: dict[str, int], *, as_json_: bool) -> None:
    for name, number in numbers.items():
        typer.echo(json.dumps({"dead_letters_of": name, "count": number}) if as_json_ else f"{number:>9}  {name}")


def _print_counts(counts: dict[str, list[LetterCount]], *, as_json_: bool) -> None:
    if as_json_:
        for name, kinds in counts.items():
            for kind in kinds:
                typer.echo(json.dumps(count_as_json(name, kind), ensure_ascii=False))
    elif any(counts.values()):
        typer.echo(counts_as_table(counts))
    else:
        typer.echo(f"No dead letters in {len(counts)} queue{'' if len(counts) == 1 else 's'}.")
