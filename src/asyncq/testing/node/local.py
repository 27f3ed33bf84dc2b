"""Run one private RabbitMQ node as processes of this machine.

The node has its own data, its own ports, its own port mapper (epmd) and its
own cookie, and listens on 127.0.0.1 only: it neither finds nor disturbs any
other node. Only processes that are recorded in the node's folder, and are
still the same ones, are ever signalled.
"""

import os
import re
import secrets
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

from .configuration import Ports, Setup
from .errors import NodeFailed
from .installation import WORKSPACE_LINK, Installation
from .logs import excerpt
from .ports import accepts, free_ports, is_free
from .process import ProcessId, spawn
from .readiness import wait_until_it_serves
from .state import Record, StateFile

_FREEZE_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 60.0
_COMMAND_TIMEOUT_S = 120.0
_PORTS_TIMEOUT_S = 3.0


class LocalEngine:
    """A node made of local processes.

    Args:
        installation: Which RabbitMQ.
        name: The node's name, for logs and process lists.
        folder: Where its record is; its data too, unless it runs in an unpacked system.
        setup: Its configuration.
    """

    def __init__(self, installation: Installation, name: str, folder: Path, setup: Setup) -> None:
        self._installation = installation
        # Erlang allows these characters in the first half of a node's name.
        self._name = re.sub(r"[^0-9A-Za-z_-]", "-", name)
        self._folder = folder.absolute()
        self._setup = setup
        self._state = StateFile(self._folder)

    @property
    def how(self) -> str:
        """Say in words what runs the node."""
        where = self._installation.root or self._installation.programs
        return f"rabbitmq-server {self._installation.version} of {where}"

    def ports(self) -> Ports | None:
        """Return the ports of the running node, or None when it does not run."""
        record = self._state.read()
        running = record is not None and record.server is not None and record.server.alive()
        return record.ports if record is not None and running else None

    def start(self) -> Ports:
        """Start the node on its data, or find it running, and wait until it serves.

        Raises:
            NodeFailed: It did not come up; the message has the first error in its log.
        """
        with self._state.lock():
            record = self._state.read()
            if record is None or record.server is None or not record.server.alive():
                record = self._launch(record)
            else:
                # It may have been left frozen.
                record.server.send(signal.SIGCONT)
            self._wait_until_it_serves(record)
            return record.ports

    def stop(self) -> None:
        """Stop the node and its port mapper, if they run."""
        with self._state.lock():
            record = self._state.read()
            if record is not None and record.server is not None:
                record.server.send(signal.SIGCONT)
                record.server.send(signal.SIGTERM)
                record.server.wait_gone(_STOP_TIMEOUT_S)
            _end(self._state)

    def kill(self) -> None:
        """End the broker by SIGKILL and wait until it is gone."""
        _kill(self._server())

    def freeze(self) -> None:
        """Stop the broker's process in its tracks (SIGSTOP): connections stay, nothing answers."""
        server = self._server()
        server.send(signal.SIGSTOP)
        if not server.wait_stopped(_FREEZE_TIMEOUT_S):
            raise NodeFailed("the broker's process did not stop on SIGSTOP")

    def thaw(self) -> None:
        """Let a frozen broker go on (SIGCONT)."""
        self._server().send(signal.SIGCONT)

    def end(self) -> None:
        """End the broker and its port mapper by SIGKILL, if they run."""
        with self._state.lock():
            _end(self._state)

    def remove(self) -> None:
        """End the node at once and delete its folder and data."""
        self.end()
        link = self._folder / WORKSPACE_LINK
        if link.is_symlink():
            shutil.rmtree(link.readlink(), ignore_errors=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def rabbitmqctl(self, *arguments: str) -> str:
        """Run rabbitmqctl on this node and return what it prints.

        Raises:
            NodeFailed: It ended with an error, which is in the message.
        """
        record = self._state.read()
        if record is None:
            raise NodeFailed(f"the node {self._name} was never started")
        answer = subprocess.run(
            self._installation.command("rabbitmqctl", "--node", self._node_name(), *arguments),
            env=self._environment(record.ports),
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_COMMAND_TIMEOUT_S,
            check=False,
        )
        if answer.returncode != 0:
            raise NodeFailed(f"rabbitmqctl {' '.join(arguments)}: {answer.stdout}{answer.stderr}")
        return answer.stdout

    def _launch(self, before: Record | None) -> Record:
        """Start the port mapper and the broker."""
        _end(self._state)
        ports = self._choose_ports(before)
        record = Record.of(self._name, self._installation.record(), self._setup, ports)
        self._state.write(record)
        self._prepare(ports)
        env = self._environment(ports)
        output = self._work / "output.log"
        output.write_bytes(b"")
        self._start_port_mapper(ports, env, output)
        server = self._installation.command("rabbitmq-server")
        identity = spawn(server, env=env, output=output, record=lambda it: self._state.update(server=it))
        return replace(record, server=identity)

    def _choose_ports(self, before: Record | None) -> Ports:
        """Return those of the last run where they are free, else new ones."""
        return before.ports if before is not None and _free_again(before.ports) else _new_ports()

    def _start_port_mapper(self, ports: Ports, env: dict[str, str], output: Path) -> None:
        """Start the node's own. Nodes of one cluster have one together: only through it do they find each other."""
        epmd = self._installation.command("epmd", "-address", "127.0.0.1", "-port", str(ports.epmd))
        spawn(epmd, env=env, output=output, record=lambda it: self._state.update(epmd=it))
        _wait_for_port(ports.epmd, output)

    def _prepare(self, ports: Ports) -> None:
        """Write the configuration and the cookie; the data of earlier runs stays."""
        for folder in (self._work, self._work / "home", self._work / "data", self._work / "log"):
            folder.mkdir(parents=True, exist_ok=True)
        root = self._installation.root
        seen_as = self._installation.inside(self._work)
        setup = self._setup
        if root is not None:
            setup = replace(setup, conf=f"{setup.conf}\n{_without_proc()}")
        setup.write(self._work, ports, seen_as=seen_as)
        cookie = self._work / "home" / ".erlang.cookie"
        if not cookie.exists():
            new = cookie.with_name("cookie.new")
            new.write_text(secrets.token_hex(16))
            new.chmod(0o400)
            new.replace(cookie)
        if root is not None:
            # Without it: "epmd error for host localhost: nxdomain".
            shutil.copyfile("/etc/hosts", root / "etc/hosts")

    def _environment(self, ports: Ports) -> dict[str, str]:
        """Return the whole environment of the node's programs."""
        work = self._installation.inside(self._work)
        loopback = "-kernel inet_dist_use_interface {127,0,0,1}"
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return {
            "PATH": path if self._installation.root else f"{os.environ.get('PATH', '')}:{path}",
            "HOME": str(work / "home"),
            "LANG": "C.UTF-8",
            "LC_ALL": "C.UTF-8",
            "ERL_EPMD_PORT": str(ports.epmd),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_CRASH_DUMP_BYTES": "0",
            "RABBITMQ_NODENAME": self._node_name(),
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(ports.amqp),
            "RABBITMQ_DIST_PORT": str(ports.distribution),
            "RABBITMQ_MNESIA_BASE": str(work / "data"),
            "RABBITMQ_LOG_BASE": str(work / "log"),
            "RABBITMQ_PID_FILE": str(work / "server.pid"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": str(work / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(work / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(work / "enabled_plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": loopback,
            "RABBITMQ_CTL_ERL_ARGS": loopback,
            # The start script becomes the broker, instead of staying as its parent.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def _wait_until_it_serves(self, record: Record) -> None:
        server = record.server
        try:
            wait_until_it_serves(record.ports, self._setup, alive=lambda: server is not None and server.alive())
        except NodeFailed as error:
            log = excerpt([self._work / "output.log", *sorted((self._work / "log").glob("*.log"))])
            _end(self._state)
            raise NodeFailed(f"the RabbitMQ node {self._name} did not start: {error}\n{log}") from None

    @property
    def _work(self) -> Path:
        return self._installation.workspace(self._folder)

    def _node_name(self) -> str:
        return f"{self._name}@localhost"

    def _server(self) -> ProcessId:
        record = self._state.read()
        if record is None or record.server is None or not record.server.alive():
            raise NodeFailed(f"the node {self._name} is not running")
        return record.server


def _end(state: StateFile) -> None:
    """End by SIGKILL what still runs of a node: the broker and its port mapper."""
    record = state.read()
    for process in () if record is None else (record.server, record.epmd):
        if process is not None:
            _kill(process)
    state.update(server=None, epmd=None)


def _kill(process: ProcessId) -> None:
    process.send(signal.SIGKILL)
    if not process.wait_gone(_STOP_TIMEOUT_S):
        raise NodeFailed(f"process {process.pid} does not end after SIGKILL")


def _new_ports() -> Ports:
    amqp, management, prometheus, distribution, epmd = free_ports(5)
    return Ports(amqp, management, prometheus, distribution, epmd)


def _free_again(ports: Ports) -> bool:
    """Return whether the ports of an earlier run are free; a killed process may hold them a moment longer."""
    numbers = (ports.amqp, ports.management, ports.prometheus, ports.distribution, ports.epmd)
    deadline = time.monotonic() + _PORTS_TIMEOUT_S
    while not all(is_free(number) for number in numbers):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _without_proc() -> str:
    """Return configuration for a node without /proc: nothing is mounted into an unpacked system."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return f"vm_memory_calculation_strategy = allocated\ntotal_memory_available_override_value = {memory}\n"


def _wait_for_port(port: int, output: Path) -> None:
    deadline = time.monotonic() + _COMMAND_TIMEOUT_S
    while not accepts(port):
        if time.monotonic() > deadline:
            raise NodeFailed(f"nothing listens on port {port}:\n{output.read_text(errors='replace')}")
        time.sleep(0.02)
