"""The first way that works is taken, and when none does the reasons are told."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from asyncq.testing.node import NodeFailed, NodeUnavailable, Setup, container, ways
from asyncq.testing.node.apt import Apt
from asyncq.testing.node.configuration import Ports
from asyncq.testing.node.installation import Installation, matches, unpacked
from asyncq.testing.node.local import LocalEngine
from asyncq.testing.node.state import Record, StateFile
from asyncq.testing.node.ways import Wanted, provide, recorded

NOT_ROOT = Apt(root=False)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without RabbitMQ, cache, Docker and Podman. Return the folder of its commands."""
    commands = tmp_path / "commands"
    commands.mkdir()
    (commands / "apt-get").symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(commands))
    monkeypatch.setenv("ASYNCQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ways, "installed", lambda: None)
    return commands


def wanted(folder: Path, version: str | None = None) -> Wanted:
    """Return what a user without root asks for."""
    return Wanted(version, "test", folder, Setup(), NOT_ROOT)


def a_server(programs: Path) -> Installation:
    """Make a RabbitMQ 3.10.8 of empty files."""
    programs.mkdir(parents=True, exist_ok=True)
    (programs / "rabbitmq-server").touch()
    return Installation(programs, "3.10.8")


def test_an_installed_server_is_taken_first(bare: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing else is looked at."""
    monkeypatch.setattr(ways, "installed", lambda: a_server(tmp_path / "bin"))
    engine = provide(wanted(tmp_path / "node"))
    assert engine.how == f"rabbitmq-server 3.10.8 of {tmp_path / 'bin'}"


def test_when_no_way_works_each_reason_is_told(bare: Path, tmp_path: Path) -> None:
    """The message ends with what to install."""
    with pytest.raises(NodeUnavailable) as caught:
        provide(wanted(tmp_path / "node", "4.3"))
    message = str(caught.value)
    assert message.startswith("RabbitMQ 4.3 cannot be had here.\n")
    assert "  installed: there is no rabbitmq-server on this machine\n" in message
    assert f"  unpacked: there is no unpacked system in {tmp_path}/cache/rabbitmq-4.3\n" in message
    assert "  apt: installing packages needs root\n" in message
    assert "  unpack: installing packages needs root\n" in message
    assert "  container: docker is not installed; podman is not installed\n" in message
    assert "sudo apt-get install rabbitmq-server" in message


def test_another_installed_version_is_left_alone(bare: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Asking for 4.3 never upgrades what the machine has."""
    monkeypatch.setattr(ways, "installed", lambda: a_server(tmp_path / "bin"))
    with pytest.raises(NodeUnavailable, match="another version is installed, and it is left alone"):
        provide(wanted(tmp_path / "node", "4.3"))


def test_an_unknown_version_says_which_are_known(bare: Path, tmp_path: Path) -> None:
    """Debian has no RabbitMQ 2."""
    with pytest.raises(NodeUnavailable, match=r"unpack: no Debian release is known .*3\.10, 4\.0, 4\.3"):
        provide(wanted(tmp_path / "node", "2.0"))


def test_a_node_keeps_its_version(bare: Path, tmp_path: Path) -> None:
    """Its data fit no other, so that another one is refused and none is the same one."""
    folder = tmp_path / "node"
    folder.mkdir()
    engine = a_server(tmp_path / "bin").record()
    StateFile(folder).write(Record.of("test", engine, Setup(), Ports(1, 2, 3, 4, 5)))
    assert isinstance(provide(wanted(folder)), LocalEngine)
    with pytest.raises(NodeFailed, match=r"has a node of RabbitMQ 3\.10\.8, not 4\.3"):
        provide(wanted(folder, "4.3"))


def test_asking_about_a_folder_without_node_installs_nothing(bare: Path, tmp_path: Path) -> None:
    """`stop` and `status` on a bare machine just say so."""
    assert recorded(tmp_path / "node") is None
    assert not (tmp_path / "node").exists()


def test_a_docker_that_does_not_answer_is_passed_over_soon(
    bare: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A daemon that hangs must not hang us."""
    (bare / "docker").write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    (bare / "docker").chmod(0o755)
    monkeypatch.setattr(container, "_PROBE_TIMEOUT_S", 0.3)
    began = time.monotonic()
    with pytest.raises(NodeUnavailable, match="`docker info` does not answer within"):
        container.find_tool()
    assert time.monotonic() - began < 10


def test_a_docker_without_daemon_is_passed_over_with_its_words(bare: Path) -> None:
    """Many machines have the program only."""
    (bare / "docker").write_text("#!/bin/sh\necho 'Cannot connect to the Docker daemon' >&2\nexit 1\n")
    (bare / "docker").chmod(0o755)
    with pytest.raises(NodeUnavailable, match="Cannot connect to the Docker daemon"):
        container.find_tool()


@pytest.mark.parametrize(
    ("version", "asked", "fits"),
    [
        ("4.3.6", None, True),
        ("4.3.6", "4.3", True),
        ("4.3.6", "4.3.6", True),
        ("4.3.6", "4", True),
        ("4.30.1", "4.3", False),
        ("3.10.8", "3.1", False),
        ("", "4.3", False),
    ],
)
def test_versions_fit_by_whole_numbers(version: str, asked: str | None, *, fits: bool) -> None:
    """3.1 is not 3.10."""
    assert matches(version, asked) is fits


def test_an_unfinished_system_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    """A folder without the server in it is none."""
    (tmp_path / "usr/lib").mkdir(parents=True)
    assert unpacked(tmp_path) is None


def test_programs_of_an_unpacked_system_run_inside_it(tmp_path: Path) -> None:
    """They are entered by chroot; Erlang's own programs are found by name there."""
    programs = tmp_path / "usr/lib/rabbitmq/bin"
    (programs.parent / "lib/rabbitmq_server-4.3.6").mkdir(parents=True)
    a_server(programs)
    found = unpacked(tmp_path)
    assert found is not None
    assert found.version == "4.3.6"
    assert found.command("rabbitmq-server") == [
        "chroot",
        str(tmp_path),
        "/usr/lib/rabbitmq/bin/rabbitmq-server",
    ]
    assert found.command("epmd", "-port", "1") == ["chroot", str(tmp_path), "epmd", "-port", "1"]


def test_data_of_an_unpacked_system_belong_to_one_folder(tmp_path: Path) -> None:
    """A new folder of the same name starts from nothing."""
    system = Installation(Path("/usr/lib/rabbitmq/bin"), "4.3.6", tmp_path / "system")
    folder = tmp_path / "node"
    first = system.workspace(folder)
    assert system.workspace(folder) == first
    assert system.inside(first / "log").parts[:3] == ("/", "var", "lib")
    subprocess.run(["/bin/rm", "-r", str(folder)], check=True, env=dict(os.environ))
    assert system.workspace(folder) != first
