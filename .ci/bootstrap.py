"""Make `.venv` in this checkout, with asyncq and the given extras: python3 .ci/bootstrap.py EXTRA...

Standard library only; it runs before anything is installed. A stamp records
what was installed, so a second run is quick, and a changed `pyproject.toml`
is installed again. An environment that lost its Python, or that was moved
with its checkout, is made anew.
"""
# ruff: noqa: INP001, T201, S603 - a program, not a package; it prints and runs pip

import fcntl
import hashlib
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent


class BootstrapError(Exception):
    """The environment cannot be made. The message says why and what to do."""


@dataclass(frozen=True)
class Interpreter:
    """The Python that the environment is made with.

    Args:
        path: Its program, never one inside an environment.
        version: Its major and minor version.
        distribution: Whether it is the one of the system's package manager.
        can_make_environments: Whether it has `venv` and `ensurepip`, which Debian has in a package of their own.
    """

    path: str
    version: tuple[int, int]
    distribution: bool
    can_make_environments: bool

    @classmethod
    def this(cls) -> "Interpreter":
        """Return the one that runs this program."""
        importlib.invalidate_caches()
        return cls(
            path=getattr(sys, "_base_executable", sys.executable),
            version=sys.version_info[:2],
            distribution=sys.base_prefix == "/usr",
            can_make_environments=find_spec("venv") is not None and find_spec("ensurepip") is not None,
        )

    @property
    def package(self) -> str:
        """The name of Debian's package with the missing modules."""
        return f"python{self.version[0]}.{self.version[1]}-venv"


@dataclass(frozen=True)
class Environment:
    """The virtual environment of a checkout."""

    checkout: Path

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self.checkout / ".venv"

    @property
    def python(self) -> Path:
        """Its Python."""
        return self.folder / "bin" / "python"

    @property
    def stamp(self) -> Path:
        """What was installed into it."""
        return self.folder / "asyncq-installed.json"

    def installed(self) -> set[str] | None:
        """Return the extras that are installed, or None where anything else has changed since."""
        try:
            record = json.loads(self.stamp.read_text())
        except (OSError, ValueError):
            return None
        return set(record["extras"]) if record.get("state") == self.state() else None

    def record(self, extras: set[str]) -> None:
        """Write down what is installed now."""
        self.stamp.write_text(json.dumps({"state": self.state(), "extras": sorted(extras)}) + "\n")

    def state(self) -> dict[str, str]:
        """Return what an installation depends on."""
        project = (self.checkout / "pyproject.toml").read_bytes()
        return {"checkout": str(self.checkout), "pyproject": hashlib.sha256(project).hexdigest()}

    def usable(self, wanted: tuple[int, int] | None = None) -> bool:
        """Return whether it works: its Python is the wanted one or just new enough, pip is there, nothing was moved."""
        right = f"sys.version_info[:2] == {wanted}" if wanted else "sys.version_info >= (3, 11)"
        check = f"import sys, importlib.util as u; sys.exit(not ({right} and u.find_spec('pip')))"
        try:
            scripts = (self.folder / "bin" / "pip").read_text(errors="replace")
            answer = subprocess.run([str(self.python), "-c", check], capture_output=True, check=False)
        except OSError:
            return False
        return answer.returncode == 0 and str(self.folder) in scripts


def main(arguments: Sequence[str]) -> int:
    """Make or refresh the environment and return the exit code."""
    environment = Environment(CHECKOUT)
    # Whoever names a Python wants that one; otherwise an environment that works is kept.
    python = Interpreter.this().version if os.environ.get("PYTHON") else None
    try:
        with one_at_a_time(CHECKOUT):
            refresh(environment, set(arguments), python)
    except BootstrapError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def refresh(environment: Environment, wanted: set[str], python: tuple[int, int] | None) -> None:
    """Bring the environment to what is wanted, if it is not.

    Args:
        environment: The environment.
        wanted: The extras that must be in it; others that are there stay.
        python: The version of Python that it must have, or None for any that will do.

    Raises:
        BootstrapError: It cannot be made, or pip failed.
    """
    installed = environment.installed()
    usable = environment.usable(python)
    if usable and installed is not None and wanted <= installed:
        return
    if not usable:
        make(environment, ensure_modules(Interpreter.this()))
        installed = set()
    install(environment, wanted | (installed or set()))


def ensure_modules(interpreter: Interpreter) -> Interpreter:
    """Return an interpreter that can make environments; as root on Debian or Ubuntu its package is installed.

    Raises:
        BootstrapError: It cannot; the message has the command that helps.
    """
    if interpreter.can_make_environments:
        return interpreter
    version = ".".join(map(str, interpreter.version))
    if not interpreter.distribution:
        raise BootstrapError(
            f"{interpreter.path} was built without venv or ensurepip.\n"
            "Name another Python 3.11 or newer: make PYTHON=/path/to/python3 ..."
        )
    install_by_apt(interpreter.package, why=f"because Python {version} needs it to make the virtual environment .venv")
    again = Interpreter.this()
    if not again.can_make_environments:
        raise BootstrapError(f"{interpreter.package} is installed, and {interpreter.path} still has no ensurepip.")
    return again


def install_by_apt(package: str, *, why: str) -> None:
    """Install a package, announced first.

    Raises:
        BootstrapError: It cannot be done from here; the message has the command.
    """
    # By its path: asyncq itself is not installed yet, and this part of it needs the standard library only.
    sys.path.insert(0, str(CHECKOUT / "src" / "asyncq" / "testing"))
    try:
        apt = importlib.import_module("node.apt")
        errors = importlib.import_module("node.errors")
    finally:
        sys.path.pop(0)
    manager = apt.Apt()
    try:
        manager.check()
        manager.candidate(package)  # updates the lists where there are none
        manager.install([package], why=why)
    except errors.NodeUnavailable as error:
        raise BootstrapError(
            f"The package {package} is missing, {why}. It cannot be installed from here: {error}\n"
            f"Install it, then run make again:\n\n    sudo apt-get install {package}\n"
        ) from error


def make(environment: Environment, interpreter: Interpreter) -> None:
    """Make an empty environment, in place of one that does not work.

    Raises:
        BootstrapError: Python's venv failed; the message has its words.
    """
    print(f"Making .venv with Python {'.'.join(map(str, interpreter.version))} ({interpreter.path})", flush=True)
    run([interpreter.path, "-m", "venv", "--clear", str(environment.folder)])


def install(environment: Environment, extras: set[str]) -> None:
    """Install asyncq, editable, and what the extras need.

    Raises:
        BootstrapError: pip failed; the message has its words.
    """
    names = ",".join(sorted(extras))
    print(f"Installing asyncq[{names}] into .venv (about a minute the first time)", flush=True)
    environment.stamp.unlink(missing_ok=True)
    began = time.monotonic()
    quiet = ["-q", "--no-input", "--disable-pip-version-check"]
    run([str(environment.python), "-m", "pip", "install", *quiet, "-e", f"{environment.checkout}[{names}]"])
    environment.record(extras)
    print(f"Installed in {time.monotonic() - began:.0f} s", flush=True)


def run(command: Sequence[str]) -> None:
    """Run a command, and show what it said only where it failed.

    Raises:
        BootstrapError: It failed.
    """
    answer = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if answer.returncode != 0:
        raise BootstrapError(f"{answer.stdout}\n{' '.join(command)}\nfailed with code {answer.returncode}.")


@contextmanager
def one_at_a_time(checkout: Path) -> Iterator[None]:
    """Let a second `make` in the same checkout wait for the first one."""
    folder = os.open(checkout, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
