"""From what AMQP has shown to what the management API tells besides: arguments, bindings, permissions, alarms.

Invariant: what could not be read is in `Standing.unread`, and is None where it would stand.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from asyncq.errors import AccessRefused, BrokerUnavailable
from asyncq.rabbitmq.declarations import BindingDeclaration
from asyncq.rabbitmq.management import ManagementApi, path_of
from asyncq.rabbitmq.standing import Node, Permissions, SeenExchange, SeenQueue, Standing

__all__ = ["completed"]


async def completed(standing: Standing, api: ManagementApi, cluster: str, *, everything: bool) -> Standing:
    """Return what AMQP has shown, with what the management API tells.

    Args:
        standing: What is known.
        api: Where to ask.
        cluster: The name of the cluster that AMQP leads to: another one's answers are worth nothing.
        everything: Permissions and the nodes' state too.
    """
    notes = _Notes()
    vhost = path_of(standing.vhost)
    overview = await notes.read(api, "/overview", "Arguments and bindings")
    if overview is None:
        return replace(standing, unread=(*notes.unread, *notes.by_silence()))
    there = (overview.get("cluster_name", cluster), overview.get("rabbitmq_version", standing.version))
    if there != (cluster, standing.version):
        reason = (
            f"Arguments and bindings could not be read: the management API at {api.url} belongs to another broker "
            f"({' '.join(there)}) than the one that AMQP leads to ({cluster} {standing.version})."
        )
        return replace(standing, unread=(reason, _OTHER_PLACE))
    raw_queues = await notes.read(api, f"/queues{vhost}?columns={_QUEUE_COLUMNS}", "Arguments and bindings")
    if raw_queues is None:
        return replace(standing, unread=tuple(notes.unread))
    raw_exchanges = await notes.read(api, f"/exchanges{vhost}", "Arguments of exchanges")
    raw_bindings = await notes.read(api, f"/bindings{vhost}", "Bindings")
    seen = replace(
        standing,
        queues=_merged_queues(standing.queues, raw_queues),
        exchanges=_merged_exchanges(standing.exchanges, raw_exchanges or ()),
        bindings=None if raw_bindings is None else frozenset(_bindings(raw_bindings)),
        complete=raw_exchanges is not None and raw_bindings is not None,
    )
    if everything:
        user = f"/permissions{vhost}{path_of(standing.user)}"
        permissions = await notes.read(api, user, f"Permissions of user {standing.user!r}")
        nodes = await notes.read(api, "/nodes", "Stopped nodes, and partitions of the cluster,")
        # What /nodes tells of alarms is up to 10 s old.
        health = await notes.read(api, "/health/checks/alarms", "Memory and disk alarms")
        seen = replace(
            seen,
            permissions=None if permissions is None else _permissions(permissions),
            nodes=None if nodes is None else [_node(node) for node in nodes],
            alarms=None if health is None else _alarms(health),
        )
    return replace(seen, unread=tuple(notes.unread))


_OTHER_PLACE = (
    "Where the management API is at another place, say so with --management-url or ASYNCQ_MANAGEMENT_URL; "
    "`rabbitmq-plugins enable rabbitmq_management` switches it on."
)
_QUEUE_COLUMNS = "name,type,durable,exclusive,arguments,effective_policy_definition,messages_ready,consumers"


@dataclass(slots=True)
class _Notes:
    """What could not be read."""

    unread: list[str] = field(default_factory=list)
    silent: bool = False

    async def read(self, api: ManagementApi, path: str, what: str) -> Any:
        """Return the answer; None, with a note, where there is none."""
        try:
            return await api.get(path)
        except AccessRefused as error:
            self.unread.append(f"{what} could not be read: {error}.")
        except BrokerUnavailable as error:
            self.silent = True
            self.unread.append(f"{what} could not be read: {error}.")
        return None

    def by_silence(self) -> Iterable[str]:
        if self.silent:
            yield _OTHER_PLACE


def _merged_queues(known: Any, raw: Iterable[dict[str, Any]]) -> dict[str, SeenQueue]:
    """Return all queues: counts by AMQP where they are known, for these are exact."""
    merged: dict[str, SeenQueue] = {}
    for queue in raw:
        name = queue["name"]
        seen = known.get(name) or SeenQueue(name, queue.get("messages_ready"), queue.get("consumers"))
        merged[name] = replace(
            seen,
            type=queue.get("type"),
            durable=queue.get("durable"),
            arguments=queue.get("arguments") or {},
            policy=queue.get("effective_policy_definition") or {},
        )
    # Declared or deleted between the two looks: AMQP is believed for what was asked for.
    return {**known, **merged}


def _merged_exchanges(known: Any, raw: Iterable[dict[str, Any]]) -> dict[str, SeenExchange]:
    merged = {
        exchange["name"]: replace(
            known.get(exchange["name"]) or SeenExchange(exchange["name"]),
            type=exchange.get("type"),
            durable=exchange.get("durable"),
            arguments=exchange.get("arguments") or {},
        )
        for exchange in raw
    }
    return {**known, **merged}


def _bindings(raw: Iterable[dict[str, Any]]) -> Iterable[BindingDeclaration]:
    for binding in raw:
        kind = "exchange" if binding["destination_type"] == "exchange" else "queue"
        yield BindingDeclaration(binding["source"], binding["routing_key"], binding["destination"], kind)  # type: ignore[arg-type]


def _permissions(raw: dict[str, Any]) -> Permissions:
    return Permissions(raw.get("configure", ""), raw.get("write", ""), raw.get("read", ""))


def _node(raw: dict[str, Any]) -> Node:
    return Node(
        raw.get("name", "?"),
        bool(raw.get("running")),
        partitions=tuple(raw.get("partitions") or ()),
    )


def _alarms(health: dict[str, Any]) -> list[tuple[str, str]]:
    return [(alarm.get("node", "?"), alarm.get("resource", "?")) for alarm in health.get("alarms") or ()]
