"""`asyncq result`, `asyncq status`, `asyncq results`: what the result store knows of tasks.

They need the result store only: no broker, and no worker.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer
from pydantic_core import from_json

from asyncq.app import AsyncQ
from asyncq.cli.dead_options import read_age
from asyncq.cli.options import AppOption, LogLevelOption, app_for, override
from asyncq.cli.status_text import as_json, as_table, shown
from asyncq.cli.workflow_text import tree, workflow_json
from asyncq.clock import SystemClock
from asyncq.errors import InvalidOption, ResultTimeout, TaskNotFound
from asyncq.observability.logs import LogLevel, configure_logging
from asyncq.options import checked_id
from asyncq.recording import Recorder, recorder_of
from asyncq.result_store import StatusPage
from asyncq.results import ResultHandle
from asyncq.status import TaskState, TaskStatus
from asyncq.stored_result import outcome_of
from asyncq.task_results import TaskResults
from asyncq.workflow_handle import WorkflowHandle, WorkflowStatus

__all__ = ["result", "results", "status"]

ResultsOption = Annotated[
    str | None,
    typer.Option(
        "--results",
        metavar="URL",
        help="The result store: sqlite:///results.db, postgresql://..., redis://... By default the app's own, then "
        "ASYNCQ_RESULTS.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="As JSON: an object a task, with all that is known.")]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", min=0, help="How long to wait for its end; by default not.")
]


def result(
    task_id: Annotated[str, typer.Argument(metavar="ID", help="The task's id.")],
    *,
    timeout: TimeoutOption = 0.0,
    as_json_: JsonOption = False,
    app: AppOption = None,
    results: ResultsOption = None,
    log_level: LogLevelOption = LogLevel.CRITICAL,
) -> None:
    """Print the result of a task or a workflow as JSON, whoever has sent it. Exits with 1 where there is none."""
    loaded = _prepared(app, results, log_level)
    found = asyncio.run(_ended(loaded, task_id, timeout))
    if isinstance(found, _Value):
        typer.echo(json.dumps(found.value, ensure_ascii=False))
        return
    if as_json_:
        typer.echo(json.dumps(as_json(found), ensure_ascii=False))
        outcome_of(found, bytes)
        return
    typer.echo(outcome_of(found, bytes).decode(errors="replace"))


def status(  # noqa: PLR0913 - the options of the command
    task_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="One task, whole. Without it: the latest tasks.")
    ] = None,
    *,
    task: Annotated[str | None, typer.Option("--task", metavar="NAME", help="Only tasks of this name.")] = None,
    state: Annotated[
        str | None, typer.Option("--state", metavar="STATE", help=f"Only tasks that are {', '.join(TaskState)}.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="AGE|ISO", help="Only those known for 90s, 30m, 2h, 7d; or since a moment."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most.")] = 20,
    cursor: Annotated[str | None, typer.Option(metavar="CURSOR", help="Go on where another listing ended.")] = None,
    as_json_: JsonOption = False,
    app: AppOption = None,
    results: ResultsOption = None,
    log_level: LogLevelOption = LogLevel.CRITICAL,
) -> None:
    """Show what is known of a task or, as a tree, of a workflow; or list the latest tasks."""
    moment = _read_since(since)
    if task_id is not None and any(value is not None for value in (task, state, since, cursor)):
        raise InvalidOption("Give either the ID of one task, or filters for a listing.")
    loaded = _prepared(app, results, log_level)
    if task_id is not None:
        found = asyncio.run(_known(loaded, task_id))
        if isinstance(found, WorkflowStatus):
            typer.echo(json.dumps(workflow_json(found), ensure_ascii=False) if as_json_ else tree(found))
        else:
            typer.echo(json.dumps(as_json(found), ensure_ascii=False) if as_json_ else shown(found))
        return
    page = asyncio.run(_listed(loaded, task, state, moment, limit, cursor))
    if as_json_:
        for item in page.items:
            typer.echo(json.dumps(as_json(item), ensure_ascii=False))
    else:
        typer.echo(as_table(page.items) if page.items else "No tasks.")
    if page.cursor is not None:
        typer.echo(f"More: --cursor {page.cursor}", err=True)


results = typer.Typer(help="The result store itself: prepare it, clean it.", no_args_is_help=True)


@results.command("init")
def init(
    *, app: AppOption = None, results: ResultsOption = None, log_level: LogLevelOption = LogLevel.CRITICAL
) -> None:
    """Create the store's tables, or bring them up to this version of asyncq. Doing it again changes nothing."""
    typer.echo(f"{asyncio.run(_prepared(app, results, log_level).results.init())} is ready.")


@results.command("clean")
def clean(
    *,
    older_than: Annotated[
        str | None, typer.Option("--older-than", metavar="AGE", help="Also what ended longer ago than 90s, 30m, 7d.")
    ] = None,
    app: AppOption = None,
    results: ResultsOption = None,
    log_level: LogLevelOption = LogLevel.CRITICAL,
) -> None:
    """Delete what has expired. Workers do so every hour by themselves."""
    age_s = read_age(older_than, "--older-than")
    before = None if age_s is None else datetime.now(UTC) - timedelta(seconds=age_s)
    gone = asyncio.run(_cleaned(_prepared(app, results, log_level), before))
    typer.echo(f"{gone} task{'' if gone == 1 else 's'} deleted.")


# --- asking


def _prepared(target: str | None, url: str | None, log_level: LogLevel) -> AsyncQ:
    configure_logging(log_level)
    app = app_for(target, None)
    override(app, results=url)
    return app


@asynccontextmanager
async def _open(app: AsyncQ) -> AsyncIterator[tuple[Recorder, TaskResults]]:
    """Open the result store of an app, and no broker."""
    recorder = recorder_of(app.settings, SystemClock())
    tasks = TaskResults(lambda: recorder, lambda: recorder)
    if recorder is None:
        await tasks.read([])  # says what is missing
        raise AssertionError
    try:
        yield recorder, tasks
    finally:
        await recorder.close()


@dataclass(frozen=True, slots=True)
class _Value:
    """The result of a workflow."""

    value: Any


async def _known(app: AsyncQ, task_id: str) -> TaskStatus | WorkflowStatus:
    async with _open(app) as (recorder, tasks):
        (found,) = await tasks.read([checked_id(task_id)])
        if found.workflow is not None:
            return await WorkflowHandle[Any](task_id, from_json, recorder=recorder).status()
    if found.state is TaskState.UNKNOWN:
        raise _not_found(recorder, task_id)
    return found


async def _ended(app: AsyncQ, task_id: str, timeout_s: float) -> TaskStatus | _Value:
    async with _open(app) as (recorder, tasks):
        handle = ResultHandle(checked_id(task_id), None, bytes, recorder, is_sent=False)
        (found,) = await tasks.read([task_id])
        if found.workflow is not None:
            return _Value(await WorkflowHandle[Any](task_id, from_json, recorder=recorder).result(timeout_s))
        if timeout_s > 0 and not found.state.final:
            try:
                async with asyncio.timeout(timeout_s):
                    async for found in handle.statuses():  # noqa: B007 - the last one is wanted
                        pass
            except TimeoutError:
                pass
    if found.state is TaskState.UNKNOWN:
        raise _not_found(recorder, task_id)
    if not found.state.final:
        raise ResultTimeout(f"Task {task_id} has not ended: it is {found.state}. --timeout SECONDS waits for its end.")
    return found


async def _listed(
    app: AsyncQ, task: str | None, state: str | None, since: datetime | None, limit: int, cursor: str | None
) -> StatusPage:
    async with _open(app) as (_, tasks):
        return await tasks.list(task=task, state=state, since=since, limit=limit, cursor=cursor)


async def _cleaned(app: AsyncQ, older_than: datetime | None) -> int:
    async with _open(app) as (_, tasks):
        return await tasks.clean(older_than)


def _not_found(recorder: Recorder, task_id: str) -> TaskNotFound:
    return TaskNotFound(
        f"The result store {recorder.shown} knows nothing of a task {task_id!r}: the id may be wrong, its record "
        "forgotten after its result_ttl, or the task kept with keep='nothing' or keep='errors'. `asyncq status` lists "
        "the latest tasks."
    )


def _read_since(text: str | None) -> datetime | None:
    """Return the moment that an age or an ISO date means."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        age_s = read_age(text, "--since")
        return None if age_s is None else datetime.now(UTC) - timedelta(seconds=age_s)
    if moment.tzinfo is None:
        raise InvalidOption(f"--since {text} has no time zone: write {text}Z or {text}+03:00.")
    return moment
