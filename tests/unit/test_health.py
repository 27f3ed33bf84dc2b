"""What is said of processes, and the thread that watches an event loop."""

import asyncio
import json
import os
import socket
import tempfile
import time
from pathlib import Path

import pytest

from asyncq.broker import BrokerStatus
from asyncq.errors import AuthenticationFailed, BrokerUnavailable
from asyncq.health import Health, HealthReport, health_by_broker
from asyncq.observability import sockets
from asyncq.observability.systemd import Systemd, told_to_systemd
from asyncq.pulse import Pulse
from support import eventually


@pytest.mark.parametrize(
    ("status", "state", "alive", "ready"),
    [
        (BrokerStatus("ready"), "ready", True, True),
        (BrokerStatus("connecting", BrokerUnavailable("nobody answers")), "connecting", True, False),
        (BrokerStatus("blocked", BrokerUnavailable("alarm")), "blocked", True, False),
        (BrokerStatus("fatal", AuthenticationFailed("wrong password")), "refused", False, False),
        (BrokerStatus("closed"), "stopping", True, False),
    ],
)
def test_the_state_of_the_connection_says_whether_a_restart_would_help(status, state, alive, ready):
    """Only where the broker will not have us: it will have no other process either, but a person is told."""
    health = health_by_broker(status)
    assert (health.state, health.alive, health.ready) == (state, alive, ready)
    assert str(status.cause or "") in health.words


def test_the_worst_process_speaks_for_all():
    """And only those that are not ready are told of."""
    report = HealthReport(
        "worker",
        "shop:app",
        1,
        (Health("ready", "", 1, 10), Health("connecting", "no\nbroker", 2, 11), Health("stuck", "for 40 s", 3, 12)),
    )
    assert (report.state, report.alive, report.ready) == ("stuck", False, False)
    assert report.words == "worker shop:app, process 1: process 2: connecting: no broker; process 3: stuck: for 40 s"
    assert HealthReport.from_json(json.loads(json.dumps(report.as_json()))) == report


@pytest.mark.parametrize("value", [{}, {"processes": 1}, {"processes": [{}]}, {"processes": [{"state": "happy"}]}, []])
def test_what_is_no_report_is_refused(value):
    """Somebody else may listen on that port."""
    with pytest.raises(ValueError, match=r"health|processes"):
        HealthReport.from_json({"role": "worker", "target": "x", "pid": 1} | value if value != [] else value)


async def test_a_loop_that_is_blocked_is_seen_while_it_is_and_looks_again_after_it():
    """The thread tells meanwhile what it sees."""
    looks, silences = [], []
    pulse = Pulse(lambda: looks.append(1), lambda: silences.append(pulse.silent_s), beat_s=0.02)
    pulse.start()
    await eventually(lambda: len(looks) > 2)
    assert pulse.silent_s < 10
    deadline = time.monotonic() + 30
    while max(silences, default=0) < 0.2 and time.monotonic() < deadline:
        time.sleep(0.01)  # noqa: ASYNC251 - this is what is tested
    assert max(silences) >= 0.2
    seen = len(looks)
    await eventually(lambda: len(looks) > seen and pulse.silent_s < 0.2)
    pulse.stop()
    seen = len(looks)
    await asyncio.sleep(0.1)
    assert len(looks) == seen


async def test_what_fails_in_a_look_or_a_word_does_not_end_the_watch():
    """It is logged; the next beat comes."""
    beats = []

    def fail():
        beats.append(1)
        raise ValueError("broken")

    pulse = Pulse(fail, fail, beat_s=0.01)
    pulse.start()
    await eventually(lambda: len(beats) > 6)
    pulse.stop()


@pytest.fixture
def systemd(monkeypatch):
    """The socket of a systemd that wants to hear of its unit, and kills it after a second of silence."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(f"{folder}/notify")
        heard.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", f"{folder}/notify")
        monkeypatch.setenv("WATCHDOG_USEC", "60000")
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        yield heard


def reported(state):
    return HealthReport("worker", "shop:app", 1, (Health(state),))


def test_systemd_hears_once_that_a_worker_is_ready_and_again_and_again_that_it_lives(systemd):
    """Not of one that is not alive: its watchdog is to bark."""
    present = ["starting"]
    with told_to_systemd(lambda: reported(present[0])):
        assert "NOTIFY_SOCKET" not in os.environ  # a task's own process is not the unit
        assert systemd.recv(4096).decode() == "STATUS=worker shop:app, process 1: starting\nWATCHDOG=1"
        present[0] = "ready"
        heard = [systemd.recv(4096).decode().split("\n") for _ in range(5)]
        assert sum("READY=1" in lines for lines in heard) == 1
        assert all("WATCHDOG=1" in lines for lines in heard)
        present[0] = "stuck"
        systemd.recv(4096)  # one may have been on its way
        systemd.recv(4096)
        assert systemd.recv(4096).decode() == "STATUS=worker shop:app, process 1: stuck"


def test_systemd_hears_once_that_a_worker_stops(systemd):
    """And a systemd that is gone meanwhile is no harm."""
    way = Systemd.from_environment()
    way.tell(reported("stopping"))
    way.tell(reported("stopping"))
    assert "STOPPING=1" in systemd.recv(4096).decode()
    assert "STOPPING=1" not in systemd.recv(4096).decode()
    Path(systemd.getsockname()).unlink()
    way.tell(reported("ready"))


def test_without_systemd_nothing_is_told(monkeypatch):
    """And no thread runs."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert Systemd.from_environment() is None
    monkeypatch.setenv("NOTIFY_SOCKET", "vsock:2:1")
    assert Systemd.from_environment() is None


@pytest.fixture
def place(monkeypatch):
    """A folder for temporary files, for this test alone, and no other one."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setattr(sockets, "_places", lambda: (Path(folder, "missing"), Path(folder)))
        yield Path(folder)


def test_a_process_is_found_by_its_socket_and_what_a_dead_one_has_left_is_removed(place):
    """The first folder cannot be had, so the second one is taken."""
    path = sockets.socket_of(4242)
    assert path.parent == place / f"asyncq-{os.getuid()}"
    assert path.parent.stat().st_mode & 0o777 == 0o700
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        assert list(sockets.sockets()) == [(4242, path)]
        with pytest.raises(OSError, match="somebody listens"):
            sockets.socket_of(4242)
    dead = path.with_name("4194303.sock")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(dead))
    (path.parent / "notes.txt").touch()
    assert list(sockets.sockets()) == []
    assert not dead.exists()


def test_a_folder_that_others_can_enter_is_not_used(place):
    """Somebody could have made it before us, to answer in our place."""
    folder = place / f"asyncq-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o755)
    with pytest.raises(PermissionError, match="not a folder of that user alone"):
        sockets.private_folder()
    assert list(sockets.sockets()) == []
    folder.rmdir()
    folder.symlink_to("/tmp")
    with pytest.raises(OSError, match="not a folder of that user alone"):
        sockets.private_folder()
