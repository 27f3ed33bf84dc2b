"""`asyncq dead export`: dead letters as JSON lines, however many there are.

Looking takes nothing away. Invariant: a file is there whole or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from asyncq.app import AsyncQ
from asyncq.cli.dead_options import FilterOptions, QueueArgument
from asyncq.cli.dead_queues import prepared
from asyncq.cli.dead_text import whole_as_json
from asyncq.cli.grouped import grouped
from asyncq.cli.options import AppOption, BrokerUrlOption, LogLevelOption
from asyncq.cli.progress import progress_bar
from asyncq.dead_letters.filters import DeadLetterFilter
from asyncq.errors import InvalidOption
from asyncq.observability.logs import LogLevel

__all__ = ["export"]

_AT_ONCE = 200


@grouped
def export(  # noqa: PLR0913 - the options of the command
    queue: QueueArgument,
    *,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="A new file; - is standard output.")
    ] = "-",
    which: FilterOptions,
    limit: Annotated[int | None, typer.Option(min=1, help="How many at most, oldest first.")] = None,
    app: AppOption = None,
    broker_url: BrokerUrlOption = None,
    log_level: LogLevelOption = LogLevel.CRITICAL,
) -> None:
    """Write dead letters as JSON, one object a line, with all that `show` tells. They stay where they are."""
    where = which.read()
    loaded = prepared(app, broker_url, log_level, queue)
    with _written_to(output) as write:
        count = asyncio.run(_export(loaded, queue, where, limit, write))
    if output != "-":
        typer.echo(f"{count} dead letters of queue {queue} written to {output}.", err=True)


async def _export(
    app: AsyncQ, queue: str, where: DeadLetterFilter | None, limit: int | None, write: Callable[[str], object]
) -> int:
    count = 0
    lines: list[str] = []
    async with app.open(role="cli"):
        letters = app.dead_letters(queue)
        total = await letters.count()
        with progress_bar(f"Exporting {queue}") as told:
            async with aclosing(letters.browse(where, limit)) as found:
                async for letter in found:
                    lines.append(json.dumps(whole_as_json(letter), ensure_ascii=False))
                    count += 1
                    if len(lines) == _AT_ONCE:
                        # In a thread: who reads from us may be slow, and the connection must live meanwhile.
                        await asyncio.to_thread(write, "\n".join([*lines, ""]))
                        lines.clear()
                        told(count, total)
            if lines:
                await asyncio.to_thread(write, "\n".join([*lines, ""]))
    return count


@contextmanager
def _written_to(output: str) -> Iterator[Callable[[str], object]]:
    if output == "-":
        yield sys.stdout.write
        sys.stdout.flush()
        return
    path = Path(output)
    if path.exists():
        raise InvalidOption(f"{output} exists already; name a new file.")
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("x", encoding="utf-8") as file:
            yield file.write
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
    except FileExistsError:
        raise InvalidOption(f"{part} exists already: another export writes it, or has left it. Delete it.") from None
    except OSError as error:
        raise InvalidOption(f"{output} cannot be written: {error.strerror or error}.") from None
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
