"""The command line as people start it: processes of their own, in a folder with an app."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from asyncq.cli.application import application
from support import eventually

SHOP = """
import asyncio
import time
from pathlib import Path

from asyncq import AsyncQ

app = AsyncQ("shop")


@app.task(queue="mail")
async def greet(name: str, times: int = 1) -> list[str]:
    return [f"Hello {name}"] * times


@app.task(queue="mail")
async def fail(text: str) -> None:
    raise ValueError(text)


@app.task(queue="slow")
async def slow(folder: Path) -> str:
    (folder / "started").touch()
    while not (folder / "go").exists():
        await asyncio.sleep(0.02)
    (folder / "finished").touch()
    return "done"


@app.task(queue="slow")
def stuck(folder: Path) -> None:
    (folder / "started").touch()
    time.sleep(3600)
"""


class Shell:
    """A folder with `shop.py`, and the commands that are run in it.

    Args:
        folder: The current directory of the commands.
        broker_url: What ASYNCQ_BROKER_URL says.
    """

    def __init__(self, folder, broker_url):
        self.folder = folder
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("ASYNCQ_")},
            "ASYNCQ_BROKER_URL": broker_url,
            "ASYNCQ_CONNECT_TIMEOUT_S": "5",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
        }
        self.started = []
        (folder / "shop.py").write_text(SHOP)

    def run(self, *arguments, stdin="", environment=None):
        """Run a command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "asyncq", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=self.folder,
            env={**self.environment, **(environment or {})},
        )

    async def arun(self, *arguments, **options):
        """Run a command to its end while the event loop goes on."""
        return await asyncio.to_thread(self.run, *arguments, **options)

    def start(self, *arguments, environment=None, before=()):
        """Start a command that goes on; it is ended with the test. `before` is a program that starts Python."""
        running = Running(self, arguments, environment or {}, before)
        self.started.append(running)
        return running


class Running:
    """A command that goes on."""

    def __init__(self, shell, arguments, environment, before):
        self.log = Path(shell.folder, f"stderr-{len(shell.started)}.log")
        with self.log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [*before, sys.executable, "-m", "asyncq", *arguments],
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                cwd=shell.folder,
                env={**shell.environment, **environment},
            )

    @property
    def stderr(self):
        """What it has said so far."""
        return self.log.read_text()

    async def says(self, text, timeout=20):
        """Wait until it has said this."""
        try:
            await eventually(lambda: text in self.stderr or self._must_live(), timeout)
        except AssertionError:
            pytest.fail(f"{text!r} is not in what it said:\n{self.stderr}")

    def _must_live(self):
        if self.process.poll() is not None and self.process.returncode != 0:
            pytest.fail(f"ended with {self.process.returncode}:\n{self.stderr}")
        return False

    def signal(self, number=signal.SIGTERM):
        """Send it a signal."""
        self.process.send_signal(number)

    async def ends(self, timeout=20):
        """Wait for its end and return its exit code."""
        try:
            await eventually(lambda: self.process.poll() is not None, timeout)
        except AssertionError:
            pytest.fail(f"it goes on; it said:\n{self.stderr}")
        return self.process.returncode


@pytest.fixture
def shell(tmp_path, broker_url):
    """A folder with an app, and a broker."""
    prepared = Shell(tmp_path, broker_url)
    yield prepared
    for running in prepared.started:
        running.process.kill()
        running.process.wait()


@pytest.fixture
def offline_shell(tmp_path):
    """A folder with an app, and no broker: nobody listens on port 1."""
    return Shell(tmp_path, "amqp://guest:secret-word@127.0.0.1:1/")


def leave_logging(monkeypatch):
    """Let no command set up the logging of this process: other tests run in it, and look for what was logged."""
    for name, module in list(sys.modules.items()):
        if name.startswith("asyncq.cli.") and hasattr(module, "configure_logging"):
            monkeypatch.setattr(module, "configure_logging", lambda *_: None)


@pytest.fixture
def refusing(offline_shell, monkeypatch):
    """Run a command that is refused before it connects: in this process, which is faster.

    Logging belongs to a process, and this one has other tests in it, so it is not configured.
    """
    leave_logging(monkeypatch)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(offline_shell.folder)
    before = set(sys.modules)

    def run(*arguments, environment=None):
        given = {**offline_shell.environment, **(environment or {})}
        return CliRunner().invoke(application, list(arguments), env=given)

    yield run
    for name in set(sys.modules) - before:
        if str(offline_shell.folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


class InProcess:
    """Runs commands in this process, which is faster. Logging belongs to a process, so it is not configured.

    Args:
        shell: The folder, and the environment.
        monkeypatch: Undoes in the end what running them changes.
    """

    def __init__(self, shell, monkeypatch):
        self.environment = shell.environment
        leave_logging(monkeypatch)
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.chdir(shell.folder)

    def run(self, *arguments, environment=None):
        """Run a command to its end; the app is imported anew, with the settings of the environment."""
        try:
            return CliRunner().invoke(application, list(arguments), env={**self.environment, **(environment or {})})
        finally:
            for module in ("shop", "field"):
                sys.modules.pop(module, None)

    async def arun(self, *arguments, **options):
        """Run a command to its end while the event loop goes on."""
        return await asyncio.to_thread(self.run, *arguments, **options)


@pytest.fixture
def in_process(shell, monkeypatch):
    """A folder with an app, and a broker, for commands that run in this process."""
    return InProcess(shell, monkeypatch)


@pytest.fixture
def offline_in_process(offline_shell, monkeypatch):
    """The same without a broker: nobody listens."""
    return InProcess(offline_shell, monkeypatch)
