"""`asyncq dead list`: what is parked in a dead-letter queue, and why.

Looking takes nothing away.
"""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Annotated, Any

import typer

from asyncq.app import AsyncQ
from asyncq.broker import DeadLetter
from asyncq.cli.options import AppOption, BrokerUrlOption, LogLevelOption, app_for
from asyncq.cli.text import moment, printable
from asyncq.observability.logs import LogLevel, configure_logging
from asyncq.queue_names import check_queue_name

__all__ = ["dead"]

dead = typer.Typer(help="Look at dead letters: messages whose task has finally failed.", no_args_is_help=True)


@dead.callback()
def _family() -> None:
    """Keep `list` a word of its own while it is the only command."""


@dead.command("list")
def list_dead(
    queue: Annotated[str, typer.Argument(metavar="QUEUE", help="The task queue, for example mail.")],
    *,
    limit: Annotated[int, typer.Option(min=1, help="How many at most, oldest first.")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    app: AppOption = None,
    broker_url: BrokerUrlOption = None,
    log_level: LogLevelOption = LogLevel.CRITICAL,
) -> None:
    """List the dead letters of a task queue. They stay where they are."""
    configure_logging(log_level)
    check_queue_name(queue)
    letters = asyncio.run(_look(app_for(app, broker_url), queue, limit))
    for letter in letters:
        typer.echo(json.dumps(_as_json(letter), ensure_ascii=False) if as_json else _as_text(letter))
    if as_json:
        return
    if not letters:
        typer.echo(f"No dead letters of queue {queue}.")
    elif len(letters) == limit:
        typer.echo(f"{limit} shown; --limit shows more.")


async def _look(app: AsyncQ, queue: str, limit: int) -> list[DeadLetter]:
    # All of them before the first is printed: what is being looked at is out of others' sight until the look ends.
    async with app.open(role="cli"):
        return [letter async for letter in app.dead_letters(queue).browse(limit=limit)]


def _as_text(letter: DeadLetter) -> str:
    message, record = letter.message, letter.record
    lines = [f"{message.type or '(no task name)'}  {message.task_id}"]
    if record is None:
        lines.append("  dead-lettered by the broker itself: delivered too often, or rejected; no error is recorded")
    else:
        attempts = f"{record.attempts} attempt{'' if record.attempts == 1 else 's'}"
        lines.append(f"  {record.failure.type}: {_first_lines(record.failure.message)}")
        lines.append(f"  {record.reason}, {attempts}, {moment(record.failed_at_ms)}, by {record.worker}")
    return printable("\n".join(lines)) + "\n"


def _first_lines(text: str) -> str:
    lines = text.splitlines() or [""]
    shown = [lines[0], *(f"    {line}" for line in lines[1:5])]
    if len(lines) > 5:
        shown.append(f"    ... and {len(lines) - 5} more lines (--json shows all)")
    return "\n".join(shown)


def _as_json(letter: DeadLetter) -> dict[str, Any]:
    message, record = letter.message, letter.record
    known: dict[str, Any] = {"task": message.type, "id": message.task_id, **_arguments(message.body)}
    if record is None:
        return {**known, "reason": "dead-lettered by the broker itself"}
    return {
        **known,
        "reason": record.reason,
        "error_type": record.failure.type,
        "error_message": record.failure.message,
        "traceback": record.failure.traceback,
        "attempts": record.attempts,
        "failed_at": moment(record.failed_at_ms),
        "queue": record.queue,
        "worker": record.worker,
    }


def _arguments(body: bytes) -> dict[str, Any]:
    """Return the body as JSON where it can be printed as such: half a surrogate pair, for example, cannot."""
    try:
        arguments = json.loads(body)
        json.dumps(arguments, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return {"body_base64": base64.b64encode(body).decode()}
    return {"arguments": arguments}
