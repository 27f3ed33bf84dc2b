"""`asyncq topology`: what an app needs on the broker, shown, declared, or compared with what stands.

Invariant: only `apply` changes anything.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Annotated

import typer

from asyncq.app import AsyncQ
from asyncq.broker import QueueSpec
from asyncq.cancellations import JOURNAL
from asyncq.cli import topology_text
from asyncq.cli.grouped import grouped
from asyncq.cli.options import Reaching, app_for
from asyncq.cli.text import printable
from asyncq.registry import queues_of

if TYPE_CHECKING:  # most commands need not load the AMQP client
    from asyncq.rabbitmq.declarations import Plan
    from asyncq.rabbitmq.standing import Standing

__all__ = ["IN_MEMORY", "ManagementUrlOption", "TargetArgument", "in_memory", "task_queues", "topology"]

IN_MEMORY = (
    "The broker of this app is in memory (memory://): it lives in the app's own process, so there is nothing to look "
    "at or to declare."
)

TargetArgument = Annotated[
    str, typer.Argument(metavar="MODULE:APP", help="Where the app is, for example shop.tasks:app.")
]
ManagementUrlOption = Annotated[
    str | None,
    typer.Option(
        "--management-url",
        metavar="URL",
        envvar="ASYNCQ_MANAGEMENT_URL",
        help="RabbitMQ's management API. By default the broker's host, port 15672 (15671 where the broker has TLS).",
    ),
]
DelaysOption = Annotated[
    bool,
    typer.Option(
        "--delays", help="With the whole delay ladder, 120 queues. Without it an app declares what each delay needs."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="As one JSON object.")]

topology = typer.Typer(
    help="What an app needs on the broker: show it, declare it, compare it with what stands.", no_args_is_help=True
)


@topology.command()
def show(target: TargetArgument, *, delays: DelaysOption = False, as_json: JsonOption = False) -> None:
    """Show the exchanges, queues and bindings that an app needs. No broker is asked."""
    app = app_for(target, None)
    plan = _plan(app, delays=delays)
    typer.echo(
        topology_text.plan_as_json(app, plan) if as_json else topology_text.plan_as_text(app, plan, delays=delays)
    )


@topology.command()
@grouped
def apply(
    target: TargetArgument,
    *,
    delays: DelaysOption = False,
    as_json: JsonOption = False,
    reaching: Reaching,
) -> None:
    """Declare what an app needs. What stands already is left as it is."""
    app = reaching.app(target)
    if in_memory(app, as_json=as_json):
        return
    plan = _plan(app, delays=delays)
    before = asyncio.run(_apply(app, plan))
    as_told = topology_text.declared_as_json if as_json else topology_text.declared_as_text
    typer.echo(printable(as_told(plan, before)))


@topology.command()
@grouped
def verify(
    target: TargetArgument,
    *,
    delays: DelaysOption = False,
    as_json: JsonOption = False,
    management_url: ManagementUrlOption = None,
    reaching: Reaching,
) -> None:
    """Compare what stands with what an app needs, and declare nothing. Exits with 1 for differences."""
    _compare(reaching.app(target), management_url, delays=delays, as_json=as_json, as_diff=False)


@topology.command()
@grouped
def diff(
    target: TargetArgument,
    *,
    delays: DelaysOption = False,
    as_json: JsonOption = False,
    management_url: ManagementUrlOption = None,
    reaching: Reaching,
) -> None:
    """Print the differences: - what stands, + what the app needs. Exits with 1 where there are any."""
    _compare(reaching.app(target), management_url, delays=delays, as_json=as_json, as_diff=True)


def _compare(app: AsyncQ, management_url: str | None, *, delays: bool, as_json: bool, as_diff: bool) -> None:
    from asyncq.rabbitmq.examination import compare  # noqa: PLC0415

    if in_memory(app, as_json=as_json):
        return
    plan = _plan(app, delays=delays)
    standing = asyncio.run(_look(app, plan, management_url))
    differences = compare(plan, standing)
    if as_json:
        text = topology_text.differences_as_json(standing, differences)
    elif as_diff:
        text = topology_text.differences_as_diff(app, standing, differences)
    else:
        text = topology_text.differences_as_text(plan, standing, differences)
    if text:
        typer.echo(printable(text))
    if differences:
        raise typer.Exit(1)


async def _look(app: AsyncQ, plan: Plan, management_url: str | None) -> Standing:
    from asyncq.rabbitmq.inspection import inspecting  # noqa: PLC0415

    async with inspecting(app.settings, app.name) as inspector:
        return await inspector.look(plan, management_url)


async def _apply(app: AsyncQ, plan: Plan) -> Standing:
    """Declare the plan, and return what stood before."""
    from asyncq.rabbitmq.inspection import declaring, inspecting  # noqa: PLC0415
    from asyncq.rabbitmq.topology import apply as declare_all  # noqa: PLC0415

    async with inspecting(app.settings, app.name) as inspector:
        before = await inspector.existing(plan)
    async with declaring(app.settings, app.name) as open_channel:
        await declare_all(open_channel, plan)
    return before


def _plan(app: AsyncQ, *, delays: bool) -> Plan:
    from asyncq.rabbitmq.diagnosis import plan_of  # noqa: PLC0415
    from asyncq.rabbitmq.ladder_plan import ladder_plan  # noqa: PLC0415
    from asyncq.rabbitmq.topology import Names, journal_declaration, leader_queue_declaration  # noqa: PLC0415
    from asyncq.scheduler.requests import leadership_name  # noqa: PLC0415

    names, keep_s = Names(app.settings.namespace), app.settings.cancellations_kept_s
    ladder = ladder_plan(names) if delays else ()
    leader = (leader_queue_declaration(names, leadership_name(app.name)),) if app.schedules else ()
    journals = (journal_declaration(names.journal(JOURNAL), keep_s),) if keep_s > 0 else ()
    # Both have the ladder's ends.
    return tuple(dict.fromkeys((*plan_of(names, task_queues(app)), *leader, *journals, *ladder)))


def task_queues(app: AsyncQ) -> tuple[QueueSpec, ...]:
    """Return the queues that an app's tasks are sent to."""
    return tuple(QueueSpec(name, app.settings.delivery_limit) for name in queues_of(app.tasks))


def in_memory(app: AsyncQ, *, as_json: bool) -> bool:
    """Tell whether the app has a broker in memory, after saying what that means."""
    if not app.settings.broker_url.startswith("memory:"):
        return False
    typer.echo(json.dumps({"broker": "memory", "note": IN_MEMORY}) if as_json else IN_MEMORY)
    return True
