"""`asyncq schedule`: an app's schedules, listed, looked at, paused, resumed, triggered.

What the code says is read from the app; what the leader knows (pauses, last runs, its lag) is asked of it.
"""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from asyncq.app import AsyncQ
from asyncq.cli.grouped import grouped
from asyncq.cli.options import Reaching, app_for
from asyncq.cli.text import moment, printable
from asyncq.cli.topology import TargetArgument
from asyncq.errors import InvalidOption, Unroutable
from asyncq.schedule import fire_times, resolved
from asyncq.scheduler.control import ask
from asyncq.scheduler.declared import Scheduled, Sends
from asyncq.scheduler.requests import PAUSE, REPORT, RESUME
from asyncq.signature import Signature

__all__ = ["schedule"]

_ANSWER_S = 5.0
_FAR = datetime(9999, 1, 1, tzinfo=UTC)

schedule = typer.Typer(help="An app's schedules: list, show, next, pause, resume, trigger.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The schedule's name.")]
JsonOption = Annotated[bool, typer.Option("--json", help="As one JSON object.")]


@schedule.command("list")
@grouped
def list_(
    target: TargetArgument,
    *,
    as_json: JsonOption = False,
    reaching: Reaching,
) -> None:
    """List the schedules, with next and last runs, and who leads."""
    app = reaching.app(target)
    declared = _declared(app)
    told = asyncio.run(_report(app))
    rows = {name: _row(app, found, told) for name, found in sorted(declared.items())}
    if as_json:
        typer.echo(json.dumps({"leader": _leader(told), "schedules": rows}, ensure_ascii=False))
        return
    if told is None:
        typer.echo("No scheduler leads at the moment: nothing is sent.", err=True)
    else:
        lag_s = told["lag_s"]
        typer.echo(f"Leader: {printable(told['leader'])}, since {moment(told['leads_since_ms'])}, lag {lag_s:.3f} s")
    width = max((len(name) for name in rows), default=0)
    for name, row in rows.items():
        state = "paused" if row["paused"] else f"next {row['next'] or 'never'}"
        typer.echo(
            printable(f"{name:<{width}}  {row['when']}  {state}  last {row['last'] or 'unknown'}  {row['task']}")
        )


@schedule.command()
@grouped
def show(target: TargetArgument, name: NameArgument, *, reaching: Reaching) -> None:
    """Show all that is known of one schedule, as JSON."""
    app = reaching.app(target)
    found = _one(app, name)
    told = asyncio.run(_report(app))
    more = {
        **_what(found.sends),
        "missed": found.schedule.missed,
        "catch_up": found.schedule.catch_up,
        "deadline_s": found.schedule.deadline_s,
        "leader": _leader(told),
    }
    typer.echo(json.dumps({"name": name, **_row(app, found, told), **more}, indent=2, ensure_ascii=False))


@schedule.command("next")
def next_(
    target: TargetArgument,
    name: NameArgument,
    *,
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=1000, help="How many.")] = 5,
) -> None:
    """Print the next fire times of a schedule by its code, in UTC. No broker is asked."""
    app = app_for(target, None)
    now = datetime.now(UTC)
    when = resolved(_one(app, name).schedule.when, app.schedules.tz, now)
    for at in fire_times(when.next_after, now, _FAR, count):
        typer.echo(at.isoformat())


@schedule.command()
@grouped
def pause(target: TargetArgument, name: NameArgument, *, reaching: Reaching) -> None:
    """Let a schedule send nothing until it is resumed; restarts and deployments do not change that."""
    _request(target, name, PAUSE, reaching)


@schedule.command()
@grouped
def resume(target: TargetArgument, name: NameArgument, *, reaching: Reaching) -> None:
    """Let a paused schedule send again, from its next fire time on."""
    _request(target, name, RESUME, reaching)


@schedule.command()
@grouped
def trigger(target: TargetArgument, name: NameArgument, *, reaching: Reaching) -> None:
    """Send what a schedule sends now, besides its fire times; also while it is paused. Prints the id."""
    app = reaching.app(target)
    sends = _one(app, name).sends

    async def send() -> str:
        async with app.open(role="cli"):
            handle = await app.send(sends)
            return handle.id

    typer.echo(asyncio.run(send()))


def _request(target: str, name: str, kind: str, reaching: Reaching) -> None:
    app = reaching.app(target)
    _one(app, name)

    async def send() -> Any:
        async with app.open(role="cli"):
            return await ask(app.broker, app.name, kind, name, timeout_s=_ANSWER_S)

    done = {PAUSE: "paused", RESUME: "resumed"}[kind]
    if asyncio.run(send()) is None:
        typer.echo(f"{name} will be {done} when a scheduler leads; none does at the moment.")
    else:
        typer.echo(f"{name} is {done}.")


async def _report(app: AsyncQ) -> Any:
    async with app.open(role="cli"):
        try:
            return await ask(app.broker, app.name, REPORT, timeout_s=_ANSWER_S)
        except Unroutable:
            return None


def _declared(app: AsyncQ) -> dict[str, Scheduled]:
    app.load_included()
    app.resolve()
    return app.schedules.resolve(app.signature, app.tasks)


def _one(app: AsyncQ, name: str) -> Scheduled:
    declared = _declared(app)
    if name not in declared:
        known = ", ".join(sorted(declared)) or "none"
        raise InvalidOption(f"App {app.name!r} has no schedule {name!r}. It has: {known}.")
    return declared[name]


def _row(app: AsyncQ, found: Scheduled, told: Any) -> dict[str, Any]:
    now = datetime.now(UTC)
    when = resolved(found.schedule.when, app.schedules.tz, now)
    known = {} if told is None else told["schedules"].get(found.schedule.name, {})
    upcoming = when.next_after(now)
    next_ms = known.get("next_ms") or (None if upcoming is None else round(upcoming.timestamp() * 1000))
    paused = bool(known.get("paused"))
    return {
        "when": known.get("when") or str(when),
        "task": found.named,
        "paused": paused,
        "next": None if paused or next_ms is None else moment(next_ms),
        "last": None if known.get("last_ms") is None else moment(known["last_ms"]),
        "sent": known.get("sent", 0),
        "skipped": known.get("skipped", {}),
    }


def _what(sends: Sends) -> dict[str, Any]:
    if isinstance(sends, Signature):
        return {"arguments": json.loads(sends.body), "queue": sends.sending.queue or sends.queue}
    return {"workflow": json.loads(sends.to_json()), "tree": str(sends).splitlines()}


def _leader(told: Any) -> dict[str, Any] | None:
    return None if told is None else {key: told[key] for key in ("leader", "leads_since_ms", "watermark_ms", "lag_s")}
