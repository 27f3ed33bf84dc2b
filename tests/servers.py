"""Private PostgreSQL, Redis and Prometheus servers for tests: own data, own port, on loopback only.

`python tests/servers.py` gets the programs, the Chromium of `browser.py`, and systemd-analyze: what is missing is
installed by apt, without starting the services in the packages. A server ends with the process that started it, however
that one ends.

Standard library and `asyncq.testing.node` only.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlencode

from asyncq.testing.node import NodeUnavailable
from asyncq.testing.node.apt import Apt
from asyncq.testing.node.ports import free_ports

START_TIMEOUT_S = 120.0
_FOUND_IN = f"{os.environ.get('PATH', '')}:/usr/local/bin:/usr/bin:/opt/homebrew/bin"


class ServerFailed(Exception):
    """A server was started and does not serve."""


class Server(ABC):
    """One private server.

    Args:
        user: The system user that it runs as; None for the present one.
    """

    def __init__(self, user: str | None) -> None:
        self._user = user
        self.port = free_ports(1)[0]
        self.folder = Path(tempfile.mkdtemp(prefix="asyncq-server-"))
        if user is not None:
            found = pwd.getpwnam(user)
            os.chown(self.folder, found.pw_uid, found.pw_gid)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """Where it is, for a result store."""

    @property
    @abstractmethod
    def command(self) -> Sequence[str]:
        """What runs it in the foreground."""

    @abstractmethod
    def serves(self) -> bool:
        """Return whether it answers."""

    stop_signal = signal.SIGTERM

    def start(self) -> None:
        """Start it, unless it runs, and wait until it serves."""
        if self._process is None:
            with (self.folder / "log").open("ab") as log:
                self._process = subprocess.Popen(
                    self.own(self.command, die_with_us=True),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.folder,
                    start_new_session=True,
                )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.serves():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise ServerFailed(f"{self.command[0]} does not serve:\n{(self.folder / 'log').read_text()[-3000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop it, if it runs; its data stays."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(self.stop_signal)
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to all its processes, if it runs: SIGSTOP freezes it, SIGCONT lets it go on."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, number)
            # PostgreSQL's children have groups of their own.
            for child in Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(child), number)

    def remove(self) -> None:
        """Stop it and delete its data."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def own(self, command: Sequence[str], *, die_with_us: bool = False) -> list[str]:
        """Return the command as the server's user runs it."""
        if shutil.which("setpriv") is None:
            return list(command)
        options = ["--pdeathsig", "KILL"] if die_with_us else []
        if self._user is not None:
            options += [f"--reuid={self._user}", f"--regid={pwd.getpwnam(self._user).pw_gid}", "--clear-groups"]
        return ["setpriv", *options, "--", *command] if options else list(command)


class Postgres(Server):
    """A PostgreSQL. It refuses to run as root, and runs as the user of its package then."""

    stop_signal = signal.SIGINT  # "fast": connections are cut, nothing is lost

    def __init__(self) -> None:
        self._programs = postgres_programs()
        super().__init__("postgres" if os.geteuid() == 0 else None)
        self.data = self.folder / "data"
        options = ["-U", "asyncq", "-E", "UTF8", "--locale=C.UTF-8", "--auth=trust", "--no-sync"]
        made = subprocess.run(
            self.own([str(self._programs / "initdb"), "-D", str(self.data), *options]),
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode != 0:
            self.remove()
            raise ServerFailed(f"initdb failed:\n{made.stdout}{made.stderr}")

    @property
    def url(self) -> str:
        return f"postgresql://asyncq:not-checked@127.0.0.1:{self.port}/postgres"

    @property
    def command(self) -> Sequence[str]:
        settings = {"listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": self.folder}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [str(self._programs / "postgres"), "-D", str(self.data), *options]

    def serves(self) -> bool:
        ready = [str(self._programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port), "-t", "2"]
        return subprocess.run(ready, check=False).returncode == 0


class Redis(Server):
    """A Redis that keeps what it was told, also when it is stopped."""

    def __init__(self) -> None:
        self._program = redis_program()
        super().__init__(None)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def command(self) -> Sequence[str]:
        settings = {"bind": "127.0.0.1", "port": self.port, "dir": self.folder, "appendonly": "yes", "save": ""}
        return [self._program, *(part for name, value in settings.items() for part in (f"--{name}", str(value)))]

    def serves(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False


class Prometheus(Server):
    """A Prometheus that scrapes one address, five times a second.

    Args:
        target: `host:port` of what it scrapes.
    """

    def __init__(self, target: str) -> None:
        self._program = prometheus_program()
        super().__init__(None)
        (self.folder / "prometheus.yml").write_text(
            "global: {scrape_interval: 200ms, scrape_timeout: 200ms}\n"
            f"scrape_configs: [{{job_name: asyncq, static_configs: [{{targets: ['{target}']}}]}}]\n"
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def command(self) -> Sequence[str]:
        options = {
            "config.file": self.folder / "prometheus.yml",
            "storage.tsdb.path": self.folder / "data",
            "web.listen-address": f"127.0.0.1:{self.port}",
        }
        return [self._program, *(f"--{name}={value}" for name, value in options.items())]

    def serves(self) -> bool:
        try:
            return b"Ready" in self._get("/-/ready")
        except OSError:
            return False

    def query(self, text: str) -> dict[tuple[str, ...], float]:
        """Return the present values of a query in PromQL, by the values of their labels in the order of their names."""
        answer = json.loads(self._get(f"/api/v1/query?{urlencode({'query': text})}"))
        return {
            tuple(value for _, value in sorted(item["metric"].items())): float(item["value"][1])
            for item in answer["data"]["result"]
        }

    def _get(self, path: str) -> bytes:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.url + path, timeout=10) as answer:
            return bytes(answer.read())


def postgres_programs() -> Path:
    """Return the folder of PostgreSQL's programs: the newest that is installed.

    Raises:
        NodeUnavailable: There is none.
    """
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    if debian:
        return debian[-1].parent
    found = shutil.which("initdb", path=_FOUND_IN)
    if found is None:
        raise NodeUnavailable("There is no PostgreSQL here. Debian, Ubuntu: apt-get install postgresql")
    return Path(found).resolve().parent


def redis_program() -> str:
    """Return Redis's program.

    Raises:
        NodeUnavailable: There is none.
    """
    found = shutil.which("redis-server", path=_FOUND_IN) or shutil.which("valkey-server", path=_FOUND_IN)
    if found is None:
        raise NodeUnavailable("There is no Redis here. Debian, Ubuntu: apt-get install redis-server")
    return found


def chromium_programs() -> tuple[str, str]:
    """Return Chromium and the driver for it.

    Raises:
        NodeUnavailable: One of them is not there.
    """
    chromium = shutil.which("chromium", path=_FOUND_IN)
    driver = shutil.which("chromedriver", path=_FOUND_IN)
    if chromium is None or driver is None:
        raise NodeUnavailable("There is no Chromium here. Debian: apt-get install chromium chromium-driver")
    return chromium, driver


def prometheus_program() -> str:
    """Return Prometheus's program.

    Raises:
        NodeUnavailable: There is none.
    """
    found = shutil.which("prometheus", path=_FOUND_IN)
    if found is None:
        raise NodeUnavailable("There is no Prometheus here. Debian, Ubuntu: apt-get install prometheus")
    return found


def systemd_analyze_program() -> str:
    """Return the program that checks units.

    Raises:
        NodeUnavailable: There is none.
    """
    found = shutil.which("systemd-analyze", path=_FOUND_IN)
    if found is None:
        raise NodeUnavailable("There is no systemd-analyze here. Debian, Ubuntu: apt-get install systemd")
    return found


_NEEDED = (
    ("to test result stores on private servers", ["postgresql"], postgres_programs),
    ("to test result stores on private servers", ["redis-server"], redis_program),
    ("to test metrics", ["prometheus"], prometheus_program),
    ("to check the unit of a worker", ["systemd"], systemd_analyze_program),
    ("to test pages in a browser", ["chromium", "chromium-driver"], chromium_programs),
)


def install() -> list[NodeUnavailable]:
    """Get what is missing, and return why some of it cannot be had."""
    failures = []
    for why, packages, find in _NEEDED:
        try:
            try:
                find()
            except NodeUnavailable:
                apt = Apt()
                apt.check()
                for package in packages:
                    if not apt.candidate(package):
                        raise NodeUnavailable(f"apt has no package {package}") from None
                apt.install(packages, why=why)
        except NodeUnavailable as error:
            failures.append(error)
    return failures


def main() -> int:
    """Get the programs. What cannot be had is only said: its tests are skipped with the reason, or fail under CI."""
    for error in install():
        print(f"For some tests a program cannot be had here: {error}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
