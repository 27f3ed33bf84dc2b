"""A cluster of three private RabbitMQ nodes on this machine, whose nodes tests kill and start again.

Each is a node as `asyncq.testing.node` runs it, with data and ports of its own. What makes them one cluster: they share
a port mapper, which outlives each of them, and a cookie, and each is told the names of all.
Source: https://www.rabbitmq.com/docs/cluster-formation#peer-discovery-classic-config
"""

from __future__ import annotations

import asyncio
import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from asyncq.testing.node import ManagementError, Node, Setup
from asyncq.testing.node.apt import Apt
from asyncq.testing.node.configuration import Ports
from asyncq.testing.node.errors import NodeUnavailable
from asyncq.testing.node.installation import Installation
from asyncq.testing.node.leash import Leash
from asyncq.testing.node.local import LocalEngine, _wait_for_port
from asyncq.testing.node.ports import free_ports
from asyncq.testing.node.process import spawn
from asyncq.testing.node.state import Record, StateFile
from asyncq.testing.node.ways import Wanted, provide
from support import eventually

SIZE = 3
CHORDS = "asyncq.chord."


class Cluster:
    """Three nodes, of which any two are a majority.

    Args:
        version: Of RabbitMQ.
        folder: A folder of its own.
        setup: How each node is set up.
    """

    def __init__(self, version: str, folder: Path, setup: Setup) -> None:
        names = [f"{folder.name}-{letter}" for letter in "abc"[:SIZE]]
        setup = replace(setup, conf=setup.conf + _formation(names))
        installation = _installation(version, folder / "any", setup)
        self._mapper = _PortMapper(installation, folder / "mapper", setup)
        cookie = secrets.token_hex(16)
        self.nodes: list[Node] = []
        numbers = iter(free_ports(4 * SIZE))  # all at once: none twice
        for name in names:
            ports = Ports(next(numbers), next(numbers), next(numbers), next(numbers), self._mapper.port)
            engine = _MemberEngine(installation, name, folder / name, setup)
            engine.join(ports, cookie)
            self.nodes.append(Node(engine, name, setup, leashed=folder / name))

    @property
    def version(self) -> str:
        """What the nodes report."""
        return self.nodes[0].version

    def start(self) -> None:
        """Start all nodes at once: each waits for the others, to form the cluster."""
        self._mapper.start()
        with ThreadPoolExecutor(SIZE) as pool:
            list(pool.map(Node.start, self.nodes))

    def settle(self) -> None:
        """Restart each node once in order: RabbitMQ may lose a quorum queue that is only seconds old when it is killed.

        docs/failures.md tells of it. In a cluster such a copy comes back empty, and the next kill may take another one.
        """
        for node in self.nodes:
            node.restart()

    def remove(self) -> None:
        """End all nodes and delete their data."""
        for node in self.nodes:
            node.remove()
        self._mapper.remove()

    def add_vhost(self, name: str) -> None:
        """Create a virtual host. Not by the management API: three nodes on a busy machine are too slow for it."""
        node = self.nodes[0]
        node.rabbitmqctl("add_vhost", name)
        node.rabbitmqctl("set_permissions", "-p", name, node.user, ".*", ".*", ".*")

    def urls(self, vhost: str, *first: int) -> str:
        """Return the URLs of nodes for a virtual host, in this order."""
        return ",".join(f"{self.nodes[number].url.rpartition('/')[0]}/{quote(vhost, safe='')}" for number in first)

    def number(self, name: str) -> int:
        """Return which of the nodes has this name."""
        return [f"{node.name}@localhost" for node in self.nodes].index(name)

    async def queues(self, vhost: str) -> list[dict[str, Any]]:
        """Return the queues of a virtual host, as the first node that answers knows them."""
        for node in self.nodes:
            try:
                return list(await asyncio.to_thread(node.api, "GET", f"/queues/{quote(vhost, safe='')}"))
            except (ManagementError, OSError):
                continue
        raise AssertionError("no node tells its queues")

    async def leaders(self, vhost: str) -> dict[str, int]:
        """Return which node leads each quorum queue and stream."""
        return {
            queue["name"]: self.number(queue["leader"])
            for queue in await self.queues(vhost)
            if queue.get("leader") and queue.get("type") in {"quorum", "stream"}
        }

    async def whole(self, vhost: str, timeout_s: float = 120) -> None:
        """Wait until each task queue, rung and stream has all its copies again: only then another node may be killed.

        Not the queues of chords: one that was being declared in the moment of a kill may stay without a majority.
        """

        async def has_all() -> bool:
            lacking = await self.lacking(vhost)
            kept = {name: online for name, online in lacking.items() if not name.startswith(CHORDS)}
            assert not kept, kept
            return True

        await eventually(has_all, timeout_s, message="all copies are online")

    async def lacking(self, vhost: str) -> dict[str, list[str]]:
        """Return the quorum queues and streams that lack a copy, with the nodes on which they have one."""
        found = [queue for queue in await self.queues(vhost) if queue.get("type") in {"quorum", "stream"}]
        return {queue["name"]: queue.get("online") or [] for queue in found if len(queue.get("online") or ()) < SIZE}


class _PortMapper:
    """The port mapper (epmd) of all nodes. It has a record as nodes have one, so that it is ended as they are."""

    def __init__(self, installation: Installation, folder: Path, setup: Setup) -> None:
        self._installation = installation
        self._folder = folder
        self._setup = setup
        (self.port,) = free_ports(1)
        self._leash: Leash | None = None

    def start(self) -> None:
        state = StateFile(self._folder)
        with state.lock():
            ports = Ports(0, 0, 0, 0, self.port)
            state.write(Record.of("mapper", self._installation.record(), self._setup, ports))
            self._leash = Leash(self._folder)
            spawn(
                self._installation.command("epmd", "-address", "127.0.0.1", "-port", str(self.port)),
                env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
                output=self._folder / "output.log",
                record=lambda process: state.update(epmd=process),
            )
            _wait_for_port(self.port, self._folder / "output.log")

    def remove(self) -> None:
        recorded = Node.recorded(self._folder)
        if recorded is not None:
            recorded.remove()
        if self._leash is not None:
            self._leash.release()


class _MemberEngine(LocalEngine):
    """A node that shares its port mapper and its cookie."""

    def join(self, ports: Ports, cookie: str) -> None:
        self._ports = ports
        path = self._work / "home" / ".erlang.cookie"
        path.parent.mkdir(parents=True)
        path.write_text(cookie)
        path.chmod(0o400)

    def _choose_ports(self, before: Record | None) -> Ports:
        """Always the same: clients, and the other nodes, know them."""
        return self._ports

    def _start_port_mapper(self, ports: Ports, env: dict[str, str], output: Path) -> None:
        """It runs."""


def _installation(version: str, folder: Path, setup: Setup) -> Installation:
    engine = provide(Wanted(version, "any", folder, setup, Apt()))
    if not isinstance(engine, LocalEngine):
        raise NodeUnavailable(f"RabbitMQ {version} can be had as a container only")
    return engine._installation


def _formation(names: list[str]) -> str:
    lines = ["", "cluster_formation.peer_discovery_backend = classic_config"]
    lines += [f"cluster_formation.classic_config.nodes.{n} = {name}@localhost" for n, name in enumerate(names, 1)]
    # As a cluster is run: else all queues of an app have their leaders on the node that it is connected to.
    lines += ["cluster_partition_handling = pause_minority", "queue_leader_locator = balanced", ""]
    return "\n".join(lines)
