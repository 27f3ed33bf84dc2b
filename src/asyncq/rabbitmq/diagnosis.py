"""What `asyncq doctor` finds: from what was seen on a broker to findings, each with what to do.

Pure. Invariant: what could not be seen is a finding too; silence never means that something is well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from asyncq.broker import QueueSpec
from asyncq.rabbitmq.declarations import BindingDeclaration, Declaration, ExchangeDeclaration, Plan, QueueDeclaration
from asyncq.rabbitmq.examination import MISSING, Difference, compare, missing_grants
from asyncq.rabbitmq.findings import CURRENT, OLDEST, Finding, Patient, release_of
from asyncq.rabbitmq.ladder_plan import ladder_plan
from asyncq.rabbitmq.queue_findings import delivery_limits, messages_left, policies, time_limits
from asyncq.rabbitmq.standing import Standing
from asyncq.rabbitmq.topology import Names, base_plan, queue_plan

__all__ = ["diagnose", "found_dead_letters", "found_queues", "plan_of"]


def plan_of(names: Names, queues: Iterable[QueueSpec]) -> Plan:
    """Return what task queues need, the base included."""
    return (*base_plan(names), *(part for spec in queues for part in queue_plan(names, spec)))


def found_queues(names: Names, standing: Standing) -> tuple[QueueSpec, ...]:
    """Return the task queues that stand on the broker, whoever has declared them: they dead-letter to our exchange."""
    found = []
    for name, queue in sorted(standing.queues.items()):
        arguments = queue.arguments or {}
        if arguments.get("x-dead-letter-exchange") == names.dead_exchange and not names.own(name):
            limit = arguments.get("x-delivery-limit")
            found.append(QueueSpec(name, limit) if isinstance(limit, int) else QueueSpec(name))
    return tuple(found)


def found_dead_letters(names: Names, standing: Standing) -> list[str]:
    """Return the task queues that have a dead-letter queue on the broker, also where they themselves are gone."""
    bound = {
        part.key
        for part in standing.bindings or ()
        if part.exchange == names.dead_exchange and part.destination == names.dead_queue(part.key)
    }
    return sorted(queue for queue in bound if names.dead_queue(queue) in standing.queues)


def diagnose(patient: Patient, standing: Standing) -> list[Finding]:
    """Return all findings, in the order in which a person would ask."""
    return [
        Finding("ok", "connection", f"connected to {standing.where} as user {standing.user!r}"),
        _version(standing),
        *_alarms(standing),
        *_nodes(standing),
        *_permissions(patient, standing),
        *_objects(patient, standing),
        *messages_left(patient, standing),
        *policies(patient, standing),
        *delivery_limits(patient, standing),
        *time_limits(patient, standing),
        *(Finding("note", "not-checked", reason) for reason in standing.unread),
    ]


_KEEPS_ORDER = (4, 0)
"""Since when we have seen no quorum queue lose messages of many consumers: docs/production.md, RabbitMQ 3."""

_FEW_SLOTS = (
    "Upgrade to RabbitMQ 4. Until then give a queue at most 32 slots, in all workers together: with more, a broker "
    "that is killed twice can lose tasks (docs/production.md, RabbitMQ 3)."
)


def _version(standing: Standing) -> Finding:
    seen = f"{standing.product or 'an unknown product'} {standing.version}".strip()
    release = release_of(standing.version)
    if release is None or standing.product != "RabbitMQ":
        return Finding(
            "warning", "version", seen, "asyncq is made for RabbitMQ 3.10 and later, and tested with no other."
        )
    if release < OLDEST:
        return Finding("error", "version", f"{seen}, older than 3.10", "Upgrade RabbitMQ; asyncq does not support it.")
    if release < CURRENT:
        # Source: COMMUNITY_SUPPORT.md of rabbitmq-server: patches go to the latest series only.
        return Finding(
            "note",
            "version",
            f"{seen}: supported by asyncq; RabbitMQ's community patches go to the latest series only",
            "Plan an upgrade." if release >= _KEEPS_ORDER else _FEW_SLOTS,
        )
    if release > CURRENT:
        return Finding("note", "version", f"{seen}: newer than what this asyncq was tested with (4.3)")
    return Finding("ok", "version", seen)


def _alarms(standing: Standing) -> Iterator[Finding]:
    for node, resource in standing.alarms or ():
        yield Finding(
            "error",
            "alarms",
            f"node {node} has its {resource} alarm on, so publishing waits",
            "Free disk space on it." if resource == "disk" else "Find what fills it, or give it more.",
        )
    if standing.alarms is not None and not standing.alarms:
        yield Finding("ok", "alarms", "no memory or disk alarm")


def _nodes(standing: Standing) -> Iterator[Finding]:
    if standing.nodes is None:
        return
    for node in standing.nodes:
        if not node.running:
            yield Finding(
                "error", "nodes", f"node {node.name} does not run", "Start it, or remove it from the cluster."
            )
        if node.partitions:
            yield Finding(
                "error",
                "nodes",
                f"node {node.name} is cut off from {', '.join(node.partitions)}",
                "Heal the network, then the partition: https://www.rabbitmq.com/docs/partitions",
            )
    if all(node.running and not node.partitions for node in standing.nodes):
        count = len(standing.nodes)
        yield Finding("ok", "nodes", f"{count} node{'s' * (count != 1)}, all running, no partition")


def _permissions(patient: Patient, standing: Standing) -> Iterator[Finding]:
    if standing.permissions is None:
        return
    plan = (*plan_of(patient.names, patient.queues), *ladder_plan(patient.names))
    reply = QueueDeclaration(f"{patient.names.namespace}.reply.{patient.app or 'APP'}.HOST.PID.RANDOM")
    inbox = QueueDeclaration(f"{patient.names.control}.inbox.{patient.app or 'APP'}:HOST:PID")
    lacking = missing_grants((*plan, reply, inbox), standing.permissions)
    grant = (
        f"`rabbitmqctl set_permissions --vhost '{standing.vhost}' '{standing.user}' CONFIGURE WRITE READ`, each a "
        "regular expression that matches the names ('.*' matches all)."
    )
    for permission in ("write", "read"):
        names = [one.name for one in lacking if one.permission == permission]
        if names:
            yield Finding("error", "permissions", f"user {standing.user!r} may not {permission} {_some(names)}", grant)
    configure = [one.name for one in lacking if one.permission == "configure"]
    if reply.name in configure:
        seen = f"user {standing.user!r} may not configure {reply.name}, so it gets no results of tasks"
        yield Finding("warning", "permissions", seen, grant)
    if inbox.name in configure:
        seen = f"user {standing.user!r} may not configure {inbox.name}, so its workers cannot be asked or controlled"
        yield Finding("warning", "permissions", seen, grant)
    others = [name for name in configure if name not in {reply.name, inbox.name}]
    if others:
        yield Finding(
            "note",
            "permissions",
            f"user {standing.user!r} may not configure {_some(others)}",
            "Let a user who may run `asyncq topology apply MODULE:APP --delays`.",
        )
    if not lacking:
        yield Finding("ok", "permissions", f"user {standing.user!r} may do all that asyncq needs")


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _objects(patient: Patient, standing: Standing) -> Iterator[Finding]:
    plan = plan_of(patient.names, patient.queues)
    if patient.declares:
        differences = compare((*plan, *_standing_ladder(patient.names, standing)), standing)
    else:
        differences = compare(plan, standing)
        incomplete = compare([part for part in ladder_plan(patient.names) if part not in plan], standing)
        if incomplete:
            yield Finding(
                "error",
                "delays",
                f"{len(incomplete)} parts of the delay ladder are missing or different, and this app declares nothing: "
                "delays, and retries of failed tasks, that need one are refused",
                "`asyncq topology apply MODULE:APP --delays` declares it; `diff --delays` shows what is wrong.",
            )
    differences += _journal(patient, standing)
    missing = [str(one).removesuffix(" is missing") for one in differences if one.state == "missing"]
    if patient.app is None and not any(map(patient.names.own, (*standing.queues, *standing.exchanges))):
        yield Finding("note", "topology", f"nothing of asyncq stands here (namespace {patient.names.namespace!r})")
        return
    if missing:
        yield Finding("error", "topology", f"missing: {_some(missing)}", MISSING)
    for one in differences:
        if one.state != "missing":
            yield Finding("error", "topology", str(one), one.remedy)
    if differences:
        return
    if standing.complete:
        yield Finding("ok", "topology", f"all {len(plan)} queues, exchanges and bindings stand as asyncq needs them")
    else:
        yield Finding("ok", "topology", "all queues and exchanges exist; their arguments and bindings were not checked")


def _journal(patient: Patient, standing: Standing) -> list[Difference]:
    """Return what is wrong with the stream of cancellations, if it stands: the first worker declares it."""
    if patient.journal is None or patient.journal.name not in standing.queues:
        return []
    found = compare([patient.journal], standing)
    # How long its entries are kept, an app says.
    return [one for one in found if one.state == "unusable" or patient.app is not None]


def _standing_ladder(names: Names, standing: Standing) -> Iterator[Declaration]:
    """Return what must hold for the part of the ladder that stands: its arguments, and a way on from each queue.

    Bindings of its queues are declared as delays need them, so that one is missing tells nothing.
    """
    if not standing.complete:
        return
    plan = ladder_plan(names)
    queues = [part for part in plan if isinstance(part, QueueDeclaration) and part.name in standing.queues]
    exchanges = {str(queue.arguments.get("x-dead-letter-exchange")) for queue in queues} | standing.exchanges.keys()
    yield from queues
    for part in plan:
        match part:
            case ExchangeDeclaration(name) if name in exchanges:
                yield part
            case BindingDeclaration(exchange, kind="exchange") if exchange in exchanges:
                yield part
            case _:
                pass
