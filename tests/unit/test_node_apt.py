"""Packages are announced first, and installing them starts no service."""

import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from asyncq.testing.node import NodeUnavailable
from asyncq.testing.node.apt import Apt, announcement, blocked_services


class Machine:
    """A machine's apt at the edge: it notes what is run, and what the policy said then."""

    def __init__(self, policy: Path, *, failing: Sequence[str] = (), candidates: Sequence[str] = ()) -> None:
        self.events: list[str] = []
        self._policy = policy
        self._failing = list(failing)
        self._candidates = list(candidates)

    def run(self, command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
        words = [word for word in command if not word.startswith("-")]
        blocked = self._policy.exists() and "exit 101" in self._policy.read_text()
        line = " ".join(word for word in words if "Lock" not in word)
        self.events.append(f"{line}{' (services blocked)' if blocked else ''}")
        if line in self._failing:
            self._failing.remove(line)
            return subprocess.CompletedProcess(command, 100, "", "E: 404 Not Found")
        candidate = self._candidates.pop(0) if line.startswith("apt-cache") else ""
        return subprocess.CompletedProcess(command, 0, f"  Candidate: {candidate}\n", "")

    def apt(self, *, root: bool = True) -> Apt:
        return Apt(run=self.run, say=lambda text: self.events.append(f"say: {text}"), policy=self._policy, root=root)


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """Where the machine has its service policy; there is none yet."""
    return tmp_path / "policy-rc.d"


def test_packages_are_announced_before_they_are_installed(policy: Path) -> None:
    """The user reads what, why, and that nothing is started; then services are blocked meanwhile."""
    machine = Machine(policy)
    machine.apt().install(["rabbitmq-server"], why="to run a private node")
    assert machine.events == [
        f"say: {announcement(['rabbitmq-server'], 'to run a private node')}",
        "apt-get install rabbitmq-server (services blocked)",
        "update-rc.d rabbitmq-server disable (services blocked)",
    ]
    assert not policy.exists()


def test_no_service_of_several_packages_is_left_to_start(policy: Path) -> None:
    """Each is switched off by its own name."""
    machine = Machine(policy)
    machine.apt().install(["redis-server", "postgresql"], why="x")
    assert machine.events[2:] == [
        "update-rc.d postgresql disable (services blocked)",
        "update-rc.d redis-server disable (services blocked)",
    ]


def test_an_announcement_says_what_and_why_and_that_nothing_is_started() -> None:
    """It is what the user reads before anything happens."""
    assert announcement(["mmdebstrap", "x"], "to unpack Debian").splitlines() == [
        "Installing mmdebstrap, x by apt, to unpack Debian.",
        "No service is started by this, now or at the next boot.",
    ]


def test_old_package_lists_are_updated_once(policy: Path) -> None:
    """A version that the mirror has no more makes the first attempt fail."""
    machine = Machine(policy, failing=["apt-get install mmdebstrap"])
    machine.apt().install(["mmdebstrap"], why="x")
    assert machine.events[1:] == [
        "apt-get install mmdebstrap (services blocked)",
        "apt-get update (services blocked)",
        "apt-get install mmdebstrap (services blocked)",
    ]


def test_a_failed_installation_says_what_apt_said_and_restores_the_policy(policy: Path) -> None:
    """The reason goes to the user, and the machine is as before."""
    policy.write_text("#!/bin/sh\nexit 0\n")
    machine = Machine(policy, failing=["apt-get install mmdebstrap"] * 2)
    with pytest.raises(NodeUnavailable, match="404 Not Found"):
        machine.apt().install(["mmdebstrap"], why="x")
    assert policy.read_text() == "#!/bin/sh\nexit 0\n"


def test_missing_package_lists_are_fetched(policy: Path) -> None:
    """A bare machine has none."""
    machine = Machine(policy, candidates=["(none)", "3.10.8-1.1"])
    assert machine.apt().candidate("rabbitmq-server") == "3.10.8-1.1"
    assert machine.events[2:] == ["apt-get update", "apt-cache policy rabbitmq-server"]


def test_who_is_not_root_is_told_so(policy: Path) -> None:
    """And nothing is run."""
    machine = Machine(policy)
    with pytest.raises(NodeUnavailable, match="needs root"):
        machine.apt(root=False).install(["rabbitmq-server"], why="x")
    assert machine.events == []


def test_an_existing_policy_is_restored_with_its_mode(policy: Path) -> None:
    """Containers often have one."""
    policy.write_text("#!/bin/sh\nexit 7\n")
    policy.chmod(0o700)
    with blocked_services(policy):
        assert subprocess.run([policy], check=False).returncode == 101
    assert policy.read_text() == "#!/bin/sh\nexit 7\n"
    assert stat.S_IMODE(policy.stat().st_mode) == 0o700


@pytest.mark.parametrize("before", ["#!/bin/sh\nexit 7\n", None])
def test_a_policy_left_by_a_killed_run_is_cleaned_up(policy: Path, before: str | None) -> None:
    """Our own leftover is never taken for the machine's policy."""
    if before is not None:
        policy.write_text(before)
    killed = blocked_services(policy)
    killed.__enter__()
    with blocked_services(policy):
        pass
    assert (policy.read_text() if policy.exists() else None) == before
