"""Which broker the demo gets, what is said where there is none, and what is refused."""

import asyncio
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import demo.broker
from asyncq.testing.node import Node, NodeUnavailable
from demo.__main__ import main
from demo.memory_stage import MemoryStage
from demo.settings import DemoError, DemoSettings, Run
from demo.view import PlainView

pytestmark = pytest.mark.any_version

ROOT = Path(__file__).resolve().parents[2]
OFFER = "make demo BROKER=memory"
BROKER_FIRST = ["-B .ci/brokers.py any", "-m demo"]
DEMO_ONLY = ["-m demo"]


@pytest.fixture
def brokers():
    """`.ci/brokers.py`, which is a program outside of any package."""
    spec = importlib.util.spec_from_file_location("brokers", ROOT / ".ci" / "brokers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def no_rabbitmq(monkeypatch):
    """A machine on which no RabbitMQ can be had."""

    def provide(version=None, *, folder):
        raise NodeUnavailable(f"RabbitMQ {version} cannot be had here.")

    monkeypatch.setattr(Node, "provide", provide)


@pytest.mark.usefixtures("no_rabbitmq")
def test_where_no_broker_can_be_had_the_demo_is_offered_without_one(brokers, capsys):
    """With the reason, and with the exit code of a failure: nothing goes on in memory unasked."""
    assert brokers.main(["any"]) == 1
    said = capsys.readouterr().out
    assert "cannot be had here" in said
    assert said.splitlines()[-2].strip() == OFFER


@pytest.mark.usefixtures("no_rabbitmq")
def test_versions_that_tests_cannot_have_are_only_said(brokers, capsys):
    """The tests that need them say the rest, and the demo is not their matter."""
    assert brokers.main(["3.10", "4.3"]) == 0
    said = capsys.readouterr().out
    assert "RabbitMQ 3.10 cannot be had" in said
    assert "RabbitMQ 4.3 cannot be had" in said
    assert OFFER not in said


@pytest.mark.parametrize(
    ("environment", "broker_code", "commands", "code"),
    [
        ({}, 0, BROKER_FIRST, 0),
        ({}, 1, BROKER_FIRST[:1], 2),
        ({"BROKER": "memory"}, 1, DEMO_ONLY, 0),
        ({"BROKER": "unknown"}, 1, DEMO_ONLY, 0),
        ({"ASYNCQ_BROKER_URL": "amqp://somewhere/"}, 1, DEMO_ONLY, 0),
    ],
)
def test_make_demo_gets_a_broker_only_where_it_needs_one(tmp_path, environment, broker_code, commands, code):
    """And without the one that it needs, it ends there. An unknown BROKER is for the demo itself to refuse."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name, script in {
        ".ci/venv": "",
        ".venv/bin/python": f'echo "$@" >> ran; case "$*" in *brokers.py*) exit {broker_code};; esac',
    }.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": os.environ["PATH"], **environment}
    ended = subprocess.run(["make", "demo"], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert (tmp_path / "ran").read_text().splitlines() == commands
    assert ended.returncode == code


async def test_a_private_broker_that_does_not_start_is_told_with_the_offer(tmp_path, monkeypatch):
    """Also where the demo is started without make."""
    command = tmp_path / "broker"
    command.write_text("#!/bin/sh\necho 'no RabbitMQ here' >&2\nexit 4\n")
    command.chmod(0o755)
    monkeypatch.setattr(demo.broker, "COMMAND", command)
    with pytest.raises(DemoError, match=f"(?s)no RabbitMQ here.*{OFFER}"):
        await demo.broker.start_private_broker()


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"BROKER": "redis"}, "used:\n  BROKER=redis is not known. BROKER=memory runs the demo without RabbitMQ"),
        ({"BROKER": "memory", "KEEP": "1"}, "leave one of the two out"),
        ({"ASYNCQ_BROKER_URL": "memory://shop"}, OFFER),
        ({"DEMO_SAMPLES": "0"}, "DEMO_SAMPLES: Input should be greater"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_started(monkeypatch, capsys, tmp_path, environment, says):
    """With what is allowed, and the exit code for a wrong call."""
    clean(monkeypatch)
    for name, value in {"DEMO_OUTPUT": str(tmp_path / "out"), **environment}.items():
        monkeypatch.setenv(name, value)
    assert main() == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("broker", "in_memory"), [("", False), ("memory", True)])
def test_memory_is_taken_only_when_it_is_asked_for(monkeypatch, broker, in_memory):
    """An empty BROKER, as make passes it on, is none."""
    clean(monkeypatch)
    monkeypatch.setenv("BROKER", broker)
    assert DemoSettings().in_memory is in_memory


async def test_a_worker_that_ends_by_itself_ends_the_demo_in_memory(tmp_path):
    """With its error: the story would wait for its results in vain."""

    async def work():
        raise OSError("the disk is gone")

    stage = MemoryStage(Run("test", tmp_path), PlainView())
    stage.running = [asyncio.create_task(asyncio.Event().wait()), asyncio.create_task(work(), name="worker mail")]
    with pytest.raises(DemoError, match=r"worker mail ended by itself: OSError\('the disk is gone'\)"):
        await stage.watch()
    stage.running[0].cancel()


def clean(monkeypatch):
    """Take away what the environment says to the demo."""
    for name in ("BROKER", "KEEP", "PICTURES", "ASYNCQ_BROKER_URL"):
        monkeypatch.delenv(name, raising=False)
