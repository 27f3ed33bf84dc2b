"""What `asyncq topology` prints: plans and differences, as text for people and as JSON for programs.

Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Any

from asyncq.app import AsyncQ

if TYPE_CHECKING:  # most commands need not load the AMQP client
    from asyncq.rabbitmq.declarations import BindingDeclaration, ExchangeDeclaration, Plan, QueueDeclaration
    from asyncq.rabbitmq.examination import Difference
    from asyncq.rabbitmq.standing import Standing

__all__ = [
    "declared_as_json",
    "declared_as_text",
    "differences_as_diff",
    "differences_as_json",
    "differences_as_text",
    "plan_as_json",
    "plan_as_text",
]


def plan_as_text(app: AsyncQ, plan: Plan, *, delays: bool) -> str:
    """Return a plan for people."""
    exchanges, queues, bindings = _parts(plan)
    lines = [f"App {app.name!r} with namespace {app.settings.namespace!r} needs:", "", "Exchanges"]
    width = max(len(exchange.name) for exchange in exchanges)
    lines += [f"  {one.name:<{width}}  {one.type}  {_in_words(one.arguments)}".rstrip() for one in exchanges]
    lines += ["", "Queues"]
    for queue in queues:
        lines.append(f"  {queue.name}")
        lines += [f"      {name} = {value}" for name, value in queue.arguments.items()]
    lines += ["", "Bindings"]
    lines += [
        f"  {one.exchange} -> {one.destination}  {f'key {one.key}' if one.key else ''}".rstrip() for one in bindings
    ]
    if not app.tasks:
        lines += [
            "",
            "The app has no tasks, so this is what every app needs. Other modules: AsyncQ(..., include=[...]).",
        ]
    if not delays:
        lines += ["", "What a delay needs is declared when it is first used; --delays shows the whole ladder."]
    return "\n".join(lines)


def plan_as_json(app: AsyncQ, plan: Plan) -> str:
    """Return a plan for programs."""
    exchanges, queues, bindings = _parts(plan)
    return _json(
        {
            "app": app.name,
            "namespace": app.settings.namespace,
            "exchanges": [asdict(exchange) for exchange in exchanges],
            "queues": [asdict(queue) for queue in queues],
            "bindings": [asdict(binding) for binding in bindings],
        }
    )


def declared_as_text(plan: Plan, before: Standing) -> str:
    """Return what was declared, and what of it is new."""
    exchanges, queues, bindings = _parts(plan)
    lines = [f"Declared on {before.where}:"]
    width = max(len(name) for _, names, _ in _declared(exchanges, queues, before) for name in names)
    for kind, names, stood in _declared(exchanges, queues, before):
        lines += [f"  {kind:<8}  {name:<{width}}  {'stood already' if name in stood else 'new'}" for name in names]
    return "\n".join([*lines, f"  and {len(bindings)} binding{'s' * (len(bindings) != 1)} between them"])


def declared_as_json(plan: Plan, before: Standing) -> str:
    """Return what was declared, and what of it is new."""
    exchanges, queues, bindings = _parts(plan)
    objects = [
        {"kind": kind, "name": name, "new": name not in stood}
        for kind, names, stood in _declared(exchanges, queues, before)
        for name in names
    ]
    return _json({"broker": before.where, "declared": objects, "bindings": len(bindings)})


def differences_as_text(plan: Plan, standing: Standing, differences: Sequence[Difference]) -> str:
    """Return what is missing or different, each with what to do."""
    if differences:
        lines = [f"{standing.where}: {len(differences)} of what the app needs is missing or different", ""]
        for remedy, ones in groupby(
            sorted(differences, key=lambda one: one.state != "missing"), lambda one: one.remedy
        ):
            lines += [*map(str, ones), f"    -> {remedy}"]
    elif standing.complete:
        lines = [f"{standing.where}: all {len(plan)} exchanges, queues and bindings stand as the app needs them."]
    else:
        lines = [f"{standing.where}: all exchanges and queues of the app exist."]
    return "\n".join([*lines, *_unchecked(standing)])


def differences_as_diff(app: AsyncQ, standing: Standing, differences: Sequence[Difference]) -> str:
    """Return the differences line by line: - what stands, + what the app needs. Empty where there are none."""
    lines = [f"--- {standing.where}", f"+++ app {app.name}"] if differences else []
    for (kind, name), group in groupby(differences, lambda one: (one.kind, one.name)):
        subject = name if kind == "binding" else f"{kind} {name}"
        ones = list(group)
        if ones[0].state == "missing":
            lines.append(f"+{subject}")
            continue
        lines.append(f" {subject}")
        for one in ones:
            if one.state == "unusable":
                lines.append(f"!    {one.found}")
                continue
            if one.found is not None:
                lines.append(f"-    {one.argument} = {_value(one.found)}")
            if one.wanted is not None:
                lines.append(f"+    {one.argument} = {_value(one.wanted)}")
    return "\n".join([*lines, *_unchecked(standing)]).strip("\n")


def differences_as_json(standing: Standing, differences: Sequence[Difference]) -> str:
    """Return the differences for programs."""
    return _json(
        {
            "broker": standing.where,
            "version": standing.version,
            "arguments_and_bindings_checked": standing.complete,
            "differences": [asdict(difference) for difference in differences],
            "not_checked": list(standing.unread),
        }
    )


def _unchecked(standing: Standing) -> list[str]:
    if standing.complete:
        return []
    return [
        "",
        "Not checked: arguments, types and bindings of what exists, for AMQP does not tell them.",
        *standing.unread,
    ]


def _parts(plan: Plan) -> tuple[list[ExchangeDeclaration], list[QueueDeclaration], list[BindingDeclaration]]:
    from asyncq.rabbitmq.declarations import BindingDeclaration, ExchangeDeclaration, QueueDeclaration  # noqa: PLC0415

    return (
        [part for part in plan if isinstance(part, ExchangeDeclaration)],
        [part for part in plan if isinstance(part, QueueDeclaration)],
        [part for part in plan if isinstance(part, BindingDeclaration)],
    )


def _declared(
    exchanges: Iterable[ExchangeDeclaration], queues: Iterable[QueueDeclaration], before: Standing
) -> Iterable[tuple[str, list[str], Iterable[str]]]:
    yield "exchange", [exchange.name for exchange in exchanges], before.exchanges
    yield "queue", [queue.name for queue in queues], before.queues


def _in_words(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in arguments.items())


def _value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2, default=str)
