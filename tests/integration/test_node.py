"""A private node starts, dies, comes back, and leaves everything else alone."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import aio_pika
import pytest
from aio_pika.abc import AbstractConnection

from asyncq.testing.node import Node, NodeFailed, Setup
from asyncq.testing.node.ports import accepts
from asyncq.testing.node.process import ProcessId
from asyncq.testing.node.state import Record, StateFile
from support import Depth, VhostManagement, eventually

REPOSITORY = Path(__file__).parents[2]
# 127.0.0.1, the same in IPv6, and ::1.
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
NODE = REPOSITORY / "src/asyncq/testing/node"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for a node of the test's own, which is ended afterwards, come what may."""
    folder = tmp_path / "own-node"
    yield folder
    node = Node.recorded(folder)
    if node is not None:
        node.remove()


def record(folder: Path) -> Record:
    """Return the record of the node in a folder."""
    found = StateFile(folder).read()
    assert found is not None
    return found


async def connect(url: str) -> AbstractConnection:
    """Connect once, with a short timeout."""
    return await aio_pika.connect(url, timeout=5)


def test_a_node_says_what_it_is(private_node: Node, rabbitmq_version: str) -> None:
    """The broker itself reports the version that was asked for."""
    assert private_node.version.startswith(f"{rabbitmq_version}.")
    assert "asyncq" in private_node.rabbitmqctl("list_users")


def test_a_node_listens_on_loopback_only(private_node: Node) -> None:
    """AMQP, management, metrics, the protocol between nodes, the port mapper: nobody else reaches them."""
    ports = asdict(private_node.ports)
    listening = {port: address for address, port in _listeners() if port in ports.values()}
    assert set(listening) == set(ports.values())
    assert set(listening.values()) <= LOOPBACK


def test_starting_a_running_node_changes_nothing(private_node: Node) -> None:
    """It is the same process on the same ports."""
    before = private_node.url, private_node.rabbitmqctl("eval", "os:getpid().")
    private_node.start()
    assert (private_node.url, private_node.rabbitmqctl("eval", "os:getpid().")) == before


async def test_a_killed_node_comes_back_with_its_data_and_ports(private_node: Node) -> None:
    """A confirmed persistent message survives SIGKILL, and clients find the node where it was."""
    url = private_node.url
    async with await connect(url) as connection:
        channel = await connection.channel()
        await channel.declare_queue("kept", durable=True)
        message = aio_pika.Message(b"x", delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(message, "kept")
        # RabbitMQ 4.0.5 forgets a queue when it is killed within moments of its declaration.
        private_node.rabbitmqctl("eval", "mnesia:sync_log().")
        private_node.kill()
    assert not private_node.running
    with pytest.raises(ConnectionError):
        await connect(url)
    private_node.restart()
    assert private_node.url == url
    async with await connect(url) as connection:
        queue = await (await connection.channel()).declare_queue("kept", passive=True)
        assert queue.declaration_result.message_count == 1


async def test_a_frozen_node_answers_nothing_until_it_is_thawed(private_node: Node) -> None:
    """Its port still takes connections, as a machine that hangs does."""
    private_node.freeze()
    assert private_node.running
    with pytest.raises(asyncio.TimeoutError):
        await aio_pika.connect(private_node.url, timeout=1)
    private_node.thaw()
    async with await connect(private_node.url) as connection:
        assert not connection.is_closed


async def test_what_a_test_left_behind_is_gone_for_the_next(
    private_node: Node, private_management: VhostManagement
) -> None:
    """The tests before this one killed and froze the node, and made a queue."""
    assert await private_management.queues() == {}
    assert [vhost["name"] for vhost in private_node.api("GET", "/vhosts")] == ["/"]


async def test_each_test_has_a_vhost_of_its_own(broker_url: str, node: Node, management: VhostManagement) -> None:
    """Its queues are in no other one."""
    async with await connect(broker_url) as connection:
        await (await connection.channel()).declare_queue("mine")
    assert set(await management.queues()) == {"mine"}
    other = node.create_vhost("asyncq-test/of another")
    async with await connect(other) as connection:
        channel = await connection.channel()
        with pytest.raises(aio_pika.exceptions.ChannelNotFoundEntity):
            await channel.declare_queue("mine", passive=True)
    node.delete_vhost("asyncq-test/of another")


async def test_depths_are_seen_with_what_is_unacknowledged(broker_url: str, management: VhostManagement) -> None:
    """On classic and quorum queues."""
    async with await connect(broker_url) as connection:
        channel = await connection.channel()
        for kind in ("classic", "quorum"):
            queue = await channel.declare_queue(kind, durable=True, arguments={"x-queue-type": kind})
            for _ in range(3):
                await channel.default_exchange.publish(aio_pika.Message(b"x"), kind)
            assert await management.ready(kind) == 3
            assert await queue.get() is not None
            await eventually(_depth_is(management, kind, ready=2, unacked=1))


def test_stopping_a_node_leaves_the_others_alone(private_node: Node, rabbitmq_version: str, folder: Path) -> None:
    """Two nodes of one machine have nothing in common, not even the port mapper."""
    other = Node.provide(rabbitmq_version, name="other", folder=folder, temporary=True)
    with other:
        of_other = record(folder)
        assert other.url != private_node.url
    for process in (of_other.server, of_other.epmd):
        assert process is not None
        assert not process.alive()
    assert not accepts(of_other.ports.amqp)
    assert not accepts(of_other.ports.epmd)
    # Through its port mapper too.
    assert "asyncq" in private_node.rabbitmqctl("list_users")


def test_a_stale_record_never_costs_another_process_its_life(
    private_node: Node, rabbitmq_version: str, folder: Path
) -> None:
    """The ids in an old record may belong to others by now: they go on, and the node starts."""
    with subprocess.Popen(["sleep", "600"]) as innocent:
        state = StateFile(folder)
        folder.mkdir()
        node = Node.provide(rabbitmq_version, name="stale", folder=folder, temporary=True)
        with node:
            before = record(folder)
            node.kill()
            old = ProcessId(innocent.pid, "long ago")
            state.write(replace(before, server=old, epmd=old))
            assert not node.running
            with pytest.raises(NodeFailed, match="is not running"):
                node.kill()
            # The true port mapper runs on, unrecorded, and holds its port: others are taken.
            node.start()
            assert node.version
            assert record(folder).ports != before.ports
        assert innocent.poll() is None
        assert before.epmd is not None
        before.epmd.send(signal.SIGKILL)
        innocent.kill()


@pytest.mark.parametrize("temporary", [True, False])
async def test_a_node_whose_starter_was_killed(rabbitmq_version: str, folder: Path, *, temporary: bool) -> None:
    """A temporary one ends too; another one is found running by the next start."""
    code = f"""
        import os, pathlib, signal
        from asyncq.testing.node import Node
        node = Node.provide(
            {rabbitmq_version!r}, name="orphan", folder=pathlib.Path({str(folder)!r}), temporary={temporary}
        )
        node.start()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    starter = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, check=False
    )
    assert starter.returncode == -signal.SIGKILL, starter.stderr
    started = record(folder)
    server, epmd = started.server, started.epmd
    assert server is not None
    assert epmd is not None
    if temporary:
        await eventually(lambda: not server.alive() and not epmd.alive(), timeout=30)
    else:
        node = Node.provide(rabbitmq_version, name="orphan", folder=folder)
        node.start()
        assert record(folder).server == server
        node.end()
        assert not server.alive()
        assert not epmd.alive()


def test_a_node_that_cannot_start_says_why_and_leaves_nothing(rabbitmq_version: str, folder: Path) -> None:
    """The first error in its log is in the message."""
    node = Node.provide(rabbitmq_version, name="broken", folder=folder, setup=Setup(conf="no.such.key = 1\n"))
    with pytest.raises(NodeFailed, match=r"did not start: its process has ended[\s\S]*no\.such\.key"):
        node.start()
    left = record(folder)
    assert (left.server, left.epmd) == (None, None)
    assert not accepts(left.ports.epmd)


def test_the_command_works_before_anything_is_installed(tmp_path: Path, rabbitmq_version: str) -> None:
    """By path, with nothing but the standard library; exit codes tell how it went."""
    shutil.copytree(REPOSITORY / "rabbitmq", tmp_path / "rabbitmq")
    shutil.copytree(NODE, tmp_path / "src/asyncq/testing/node", ignore=shutil.ignore_patterns("__pycache__"))
    broker = _command(tmp_path / "rabbitmq/broker")
    try:
        assert broker("status").returncode == 3
        started = broker("start", "--version", rabbitmq_version, "--json")
        assert started.returncode == 0, started.stderr
        facts = json.loads(started.stdout)
        assert facts["started_by_us"] is True
        assert facts["url"].startswith("amqp://asyncq:asyncq@127.0.0.1:")
        assert facts["url"].endswith("/asyncq")
        assert json.loads(broker("start", "--json").stdout) == facts | {"started_by_us": False}
        assert json.loads(broker("status", "--json").stdout) == facts
        node = Node.recorded(tmp_path / ".local/rabbitmq")
        assert node is not None
        assert node.api("GET", "/policies/asyncq/bound-task-queues")["definition"]["max-length-bytes"] > 0
        assert broker("start", "--version", "1.0").returncode == 1
    finally:
        stopped = broker("stop")
    assert stopped.returncode == 0, stopped.stderr
    assert broker("status").returncode == 3
    assert broker("stop").returncode == 0
    assert broker("no-such-command").returncode == 2
    assert not list(tmp_path.rglob("__pycache__"))


def _command(path: Path) -> "Callable[..., subprocess.CompletedProcess[str]]":
    """Return a function that runs a command, without any package of this environment."""
    env = {"PATH": os.environ["PATH"], "PYTHONNOUSERSITE": "1", "HOME": os.environ.get("HOME", "/")}
    if "ASYNCQ_CACHE" in os.environ:
        env["ASYNCQ_CACHE"] = os.environ["ASYNCQ_CACHE"]

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([path, *arguments], env=env, capture_output=True, text=True, check=False)

    return run


def _listeners() -> Iterator[tuple[str, int]]:
    """Return address (as Linux writes it) and port of everything that listens on this machine."""
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        if table.exists():
            for line in table.read_text().splitlines()[1:]:
                _, local, _, state = line.split()[:4]
                address, _, port = local.partition(":")
                if state == "0A":
                    yield address, int(port, 16)


def _depth_is(management: VhostManagement, queue: str, *, ready: int, unacked: int) -> Callable[[], object]:
    async def check() -> bool:
        assert (await management.depths()).get(queue) == Depth(ready, unacked)
        return True

    return check
