"""Run the broker as a container of the official image, by Docker or Podman.

Only the container that is named after the node's folder is ever touched, and
its ports are published on 127.0.0.1 only.
"""

import hashlib
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from .configuration import Ports, Setup
from .errors import NodeFailed, NodeUnavailable
from .ports import free_ports
from .readiness import wait_until_it_serves
from .state import Record, StateFile

Run = Callable[[Sequence[str], float], "subprocess.CompletedProcess[str]"]

_PROBE_TIMEOUT_S = 5.0
_PULL_TIMEOUT_S = 600.0
_COMMAND_TIMEOUT_S = 60.0
_IN_CONTAINER = Ports(amqp=5672, management=15672, prometheus=15692, distribution=25672, epmd=4369)
_FILES = ("rabbitmq.conf", "advanced.config", "enabled_plugins", "definitions.json")


def run(command: Sequence[str], timeout_s: float) -> "subprocess.CompletedProcess[str]":
    """Run a command with a time limit and return what it says."""
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False
    )


def image(version: str | None) -> str:
    """Return the official image for a version."""
    return f"docker.io/library/rabbitmq:{version or '4'}-management"


def find_tool(run: Run = run) -> str:
    """Return `docker` or `podman`, whichever works.

    Raises:
        NodeUnavailable: None of them is installed, or none answers within 5 seconds.
    """
    problems = []
    for tool in ("docker", "podman"):
        if shutil.which(tool) is None:
            problems.append(f"{tool} is not installed")
            continue
        try:
            answer = run([tool, "info"], _PROBE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            problems.append(f"`{tool} info` does not answer within {_PROBE_TIMEOUT_S:g} s")
            continue
        if answer.returncode == 0:
            return tool
        problems.append(f"`{tool} info` failed: {(answer.stderr or answer.stdout).strip()[-200:]}")
    raise NodeUnavailable("; ".join(problems))


class ContainerEngine:
    """A node in a container.

    Args:
        tool: `docker` or `podman`.
        image: The image to run.
        name: The node's name.
        folder: Where its record and configuration are; its data is in the container.
        setup: Its configuration.
    """

    def __init__(self, tool: str, image: str, name: str, folder: Path, setup: Setup) -> None:
        self._tool = tool
        self._image = image
        self._name = name
        self._folder = folder.absolute()
        self._setup = setup
        self._state = StateFile(self._folder)
        digest = hashlib.sha256(str(self._folder).encode()).hexdigest()[:12]
        self._container = f"asyncq-{re.sub(r'[^0-9A-Za-z_.-]', '-', name)}-{digest}"

    @property
    def how(self) -> str:
        """Say in words what runs the node."""
        return f"{self._image} by {self._tool}, container {self._container}"

    def ports(self) -> Ports | None:
        """Return the ports of the running broker, or None."""
        record = self._state.read()
        return record.ports if record is not None and self._status() in {"running", "paused"} else None

    def start(self) -> Ports:
        """Start the container, or find it running, and wait until the broker serves.

        Raises:
            NodeFailed: It did not come up; the message has its log.
        """
        with self._state.lock():
            record = self._state.read()
            status = self._status()
            if record is None or status is None:
                record = self._create()
            elif status == "paused":
                self._must("unpause", self._container)
            elif status != "running":
                self._must("start", self._container)
            try:
                wait_until_it_serves(record.ports, self._setup, alive=lambda: self._status() in {"running", "created"})
            except NodeFailed as error:
                logs = self._call("logs", "--tail", "30", self._container)
                raise NodeFailed(f"{self.how} did not start: {error}\n{logs.stdout}{logs.stderr}") from None
            return record.ports

    def stop(self) -> None:
        """Stop the container, if it runs. Its data stays in it."""
        with self._state.lock():
            status = self._status()
            if status == "paused":
                self._must("unpause", self._container)
            if status in {"running", "paused"}:
                self._must("stop", self._container)

    def kill(self) -> None:
        """End the broker by SIGKILL and wait until it is gone."""
        if self._status() == "paused":
            self._must("unpause", self._container)
        self._must("kill", "--signal", "KILL", self._container)
        self._must("wait", self._container)

    def end(self) -> None:
        """End the broker by SIGKILL, if it runs."""
        with self._state.lock():
            if self._status() in {"running", "paused"}:
                self.kill()

    def freeze(self) -> None:
        """Stop the broker in its tracks."""
        self._must("pause", self._container)

    def thaw(self) -> None:
        """Let a frozen broker go on."""
        self._must("unpause", self._container)

    def remove(self) -> None:
        """Delete the container with its data, and the node's folder."""
        with self._state.lock():
            if self._status() is not None:
                self._must("rm", "--force", "--volumes", self._container)
        shutil.rmtree(self._folder, ignore_errors=True)

    def rabbitmqctl(self, *arguments: str) -> str:
        """Run rabbitmqctl in the container and return what it prints."""
        return self._must("exec", self._container, "rabbitmqctl", *arguments)

    def _create(self) -> Record:
        """Make and start the container, on new ports."""
        amqp, management, prometheus = free_ports(3)
        ports = Ports(amqp, management, prometheus, distribution=0, epmd=0)
        version = self._image.rpartition(":")[2].removesuffix("-management")
        engine = {"kind": "container", "tool": self._tool, "image": self._image, "version": version}
        record = Record.of(self._name, engine, self._setup, ports)
        self._state.write(record)
        self._setup.write(self._folder, _IN_CONTAINER, seen_as=Path("/etc/rabbitmq"), address="0.0.0.0")
        options = ["--detach", "--name", self._container, "--hostname", "asyncq"]
        for ours, theirs in (
            (ports.amqp, _IN_CONTAINER.amqp),
            (ports.management, _IN_CONTAINER.management),
            (ports.prometheus, _IN_CONTAINER.prometheus),
        ):
            options += ["--publish", f"127.0.0.1:{ours}:{theirs}"]
        for file in _FILES:
            options += ["--volume", f"{self._folder / file}:/etc/rabbitmq/{file}:ro"]
        # One that pulls first: the image has some 100 MB.
        self._must("run", *options, self._image, timeout_s=_PULL_TIMEOUT_S)
        return record

    def _status(self) -> str | None:
        """Return Docker's word for the container's state, or None when there is no container."""
        answer = self._call("inspect", "--type", "container", "--format", "{{.State.Status}}", self._container)
        return answer.stdout.strip() if answer.returncode == 0 else None

    def _must(self, *arguments: str, timeout_s: float = _COMMAND_TIMEOUT_S) -> str:
        answer = self._call(*arguments, timeout_s=timeout_s)
        if answer.returncode != 0:
            raise NodeFailed(f"{self._tool} {' '.join(arguments)}: {answer.stdout}{answer.stderr}".rstrip())
        return answer.stdout

    def _call(self, *arguments: str, timeout_s: float = _COMMAND_TIMEOUT_S) -> "subprocess.CompletedProcess[str]":
        try:
            return run([self._tool, *arguments], timeout_s)
        except (subprocess.TimeoutExpired, OSError) as error:
            raise NodeFailed(f"{self._tool} {arguments[0]}: {error}") from error
