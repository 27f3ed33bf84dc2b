"""Processes are recorded before they run, and only the very same one is ever signalled."""

import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from asyncq.testing.node import process
from asyncq.testing.node.process import ProcessId, spawn
from support import eventually

SOURCES = {"proc": Path("/proc/self/stat").exists(), "ps": shutil.which("ps") is not None}


@pytest.fixture(params=[name for name, there in SOURCES.items() if there], autouse=True)
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Processes are looked up in /proc, or by `ps` on a machine without (macOS)."""
    if request.param == "ps":
        monkeypatch.setattr(process, "_PROC", tmp_path / "no-proc")


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that does nothing for a minute."""
    with subprocess.Popen(["sleep", "60"]) as sleeping:
        yield sleeping
        sleeping.kill()


def test_a_process_is_known_by_its_id_and_start_time(sleeper: "subprocess.Popen[bytes]") -> None:
    """The same process is found alive."""
    identity = ProcessId.of(sleeper.pid)
    assert identity is not None
    assert identity.alive()


def test_a_process_that_got_the_same_id_later_is_not_signalled(sleeper: "subprocess.Popen[bytes]") -> None:
    """After a reboot an id in an old record belongs to somebody else."""
    recorded = ProcessId(sleeper.pid, "another start time")
    assert not recorded.send(signal.SIGKILL)
    assert recorded.wait_gone(timeout_s=1.0)
    assert sleeper.poll() is None


def test_a_process_that_ended_and_was_not_collected_counts_as_gone(
    sleeper: "subprocess.Popen[bytes]",
) -> None:
    """A zombie holds no port and needs no further signal."""
    identity = ProcessId.of(sleeper.pid)
    assert identity is not None
    assert identity.send(signal.SIGKILL)
    assert identity.wait_gone(timeout_s=10.0)
    assert ProcessId.of(sleeper.pid) is None


def test_a_process_that_never_ran_is_unknown() -> None:
    """The highest id of 32-bit systems is beyond what Linux gives."""
    assert ProcessId.of(2**31 - 1) is None


async def test_a_program_runs_after_it_was_recorded(tmp_path: Path) -> None:
    """When `record` is called, the program has not begun."""
    touched = tmp_path / "touched"
    seen: list[tuple[ProcessId, bool]] = []
    identity = spawn(
        ["touch", str(touched)],
        env={"PATH": "/usr/bin:/bin"},
        output=tmp_path / "output",
        record=lambda it: seen.append((it, touched.exists())),
    )
    assert seen == [(identity, False)]
    await eventually(touched.exists)
    assert identity.wait_gone(timeout_s=10.0)


def test_a_program_that_cannot_be_recorded_never_runs(tmp_path: Path) -> None:
    """The error reaches the caller and the waiting child ends."""
    touched = tmp_path / "touched"
    children: list[ProcessId] = []

    def record(identity: ProcessId) -> None:
        children.append(identity)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        spawn(["touch", str(touched)], env={}, output=tmp_path / "output", record=record)
    assert not children[0].alive()
    assert not touched.exists()


def test_a_program_never_runs_when_its_starter_is_killed_before_recording_it(tmp_path: Path) -> None:
    """No process is left that nobody knows of."""
    touched, child = tmp_path / "touched", tmp_path / "child"
    code = f"""
        import os, pathlib, signal
        from asyncq.testing.node import process
        process._PROC = pathlib.Path({str(process._PROC)!r})
        def record(identity):
            pathlib.Path({str(child)!r}).write_text(f"{{identity.pid}} {{identity.started}}")
            os.kill(os.getpid(), signal.SIGKILL)
        process.spawn(
            ["touch", {str(touched)!r}], env={{}}, output=pathlib.Path({str(tmp_path / "output")!r}), record=record
        )
    """
    starter = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert starter.returncode == -signal.SIGKILL
    pid, _, started = child.read_text().partition(" ")
    waiting = ProcessId(int(pid), started)
    assert waiting.wait_gone(timeout_s=10.0)
    assert not touched.exists()
