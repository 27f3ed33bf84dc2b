"""`asyncq doctor`: look at the broker, and say what is wrong and what to do.

Invariant: it changes nothing, and it always ends with findings: an absent broker is one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from asyncq.app import AsyncQ
from asyncq.cancellations import JOURNAL
from asyncq.cli.options import BrokerUrlOption, LogLevelOption, app_for
from asyncq.cli.text import printable
from asyncq.cli.topology import ManagementUrlOption, in_memory, task_queues
from asyncq.errors import BrokerError
from asyncq.observability.logs import LogLevel, configure_logging

if TYPE_CHECKING:  # most commands need not load the AMQP client
    from asyncq.rabbitmq.declarations import QueueDeclaration
    from asyncq.rabbitmq.findings import Finding, Patient
    from asyncq.rabbitmq.topology import Names

__all__ = ["doctor"]

_STATUS = {"ok": 0, "note": 0, "warning": 1, "error": 2}
_COLOURS = {"ok": "green", "note": "blue", "warning": "yellow", "error": "red"}


def doctor(
    target: Annotated[
        str | None,
        typer.Argument(metavar="[MODULE:APP]", help="The app. Without it: all task queues that the broker has."),
    ] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
    management_url: ManagementUrlOption = None,
    broker_url: BrokerUrlOption = None,
    log_level: LogLevelOption = LogLevel.CRITICAL,
) -> None:
    """Look at the broker and its queues, and say what to do. Changes nothing.

    Exits with 0 where there is nothing to do, with 1 for warnings, with 2 for errors.
    """
    configure_logging(log_level)
    app = app_for(target, broker_url)
    if in_memory(app, as_json=as_json):
        return
    findings = asyncio.run(_examine(app, management_url, whole_broker=target is None))
    worst = max((finding.severity for finding in findings), key=lambda severity: _STATUS[severity])
    if as_json:
        report = {"status": worst, "findings": [asdict(finding) for finding in findings]}
        typer.echo(json.dumps(report, ensure_ascii=False, indent=2))
    else:
        _print(findings)
    raise typer.Exit(_STATUS[worst])


async def _examine(app: AsyncQ, management_url: str | None, *, whole_broker: bool) -> Sequence[Finding]:
    from asyncq.rabbitmq.diagnosis import diagnose, found_queues, plan_of  # noqa: PLC0415
    from asyncq.rabbitmq.findings import Finding, Patient  # noqa: PLC0415
    from asyncq.rabbitmq.inspection import inspecting  # noqa: PLC0415
    from asyncq.rabbitmq.ladder_plan import ladder_plan  # noqa: PLC0415
    from asyncq.rabbitmq.topology import Names  # noqa: PLC0415

    names = Names(app.settings.namespace)
    journal = _journal(app, names)
    journals = () if journal is None else (journal,)
    try:
        patient = Patient(names, None, (), {}) if whole_broker else _patient(app, names, journal)
        async with inspecting(app.settings, app.name) as inspector:
            ladder = () if patient.declares else ladder_plan(names)
            plan = (*plan_of(names, patient.queues), *ladder)
            standing = await inspector.look((*plan, *journals), management_url, everything=True)
            if whole_broker:
                patient = Patient(names, None, found_queues(names, standing), {}, journal=journal)
                # Once more for exact counts: the management API's are some seconds old.
                plan = (*plan_of(names, patient.queues), *journals)
                standing = await inspector.look(plan, management_url, everything=True)
    except BrokerError as error:
        return [Finding("error", "connection", str(error), "Nothing else can be looked at before that.")]
    findings = diagnose(patient, standing)
    if management_url is not None and not standing.complete:
        # Who names it counts on it.
        seen = "the management API that was named could not be used, so what only it tells was not looked at"
        findings.append(Finding("warning", "management", seen, "See what stands as not-checked."))
    return findings


def _journal(app: AsyncQ, names: Names) -> QueueDeclaration | None:
    from asyncq.rabbitmq.topology import journal_declaration  # noqa: PLC0415

    keep_s = app.settings.cancellations_kept_s
    return journal_declaration(names.journal(JOURNAL), keep_s) if keep_s > 0 else None


def _patient(app: AsyncQ, names: Names, journal: QueueDeclaration | None) -> Patient:
    from asyncq.rabbitmq.findings import Patient  # noqa: PLC0415

    longest: dict[str, tuple[str, float]] = {}
    for name, task in sorted(app.tasks.items()):
        limit_s = task.run.time_limit_s or app.settings.time_limit_s
        if limit_s > longest.get(task.queue, ("", 0.0))[1]:
            longest[task.queue] = (name, limit_s)
    return Patient(names, app.name, task_queues(app), longest, app.settings.declare, journal)


def _print(findings: Sequence[Finding]) -> None:
    for finding in findings:
        typer.secho(f"{finding.severity:<8}", fg=_COLOURS[finding.severity], nl=False)
        typer.echo(printable(f"{finding.check:<13} {finding.seen}"))
        if finding.todo is not None:
            typer.echo(printable(f"{'':<22}-> {finding.todo}"))
    errors = sum(finding.severity == "error" for finding in findings)
    warnings = sum(finding.severity == "warning" for finding in findings)
    typer.echo(f"\n{errors} to repair, {warnings} to look at." if errors or warnings else "\nNothing to do.")
