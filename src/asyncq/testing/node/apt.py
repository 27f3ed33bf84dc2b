"""Install packages by apt: announced first, and without starting the services in them.

A system broker on port 5672 (or a database) that nobody asked for would be a surprise, so
service start is blocked by a `policy-rc.d` meanwhile, and the service is not
left to start at the next boot.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .errors import NodeUnavailable

Run = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]
Say = Callable[[str], None]

_MARK = "# written by asyncq; removed again after the installation"
_POLICY = f"#!/bin/sh\n{_MARK}\nexit 101\n"
_SERVICES = ("rabbitmq-server", "postgresql", "redis-server", "prometheus")
_APT = ("apt-get", "-o", "DPkg::Lock::Timeout=120")


def say(text: str) -> None:
    """Tell the user; not on standard output, which may be read by a program."""
    print(text, file=sys.stderr, flush=True)


def run(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Run a command without questions and return what it says."""
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    return subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


@dataclass(frozen=True)
class Apt:
    """The package manager of this machine.

    Args:
        run: Runs a command.
        say: Tells the user.
        policy: The file that Debian asks whether a service may start.
        root: Whether this program runs as root.
    """

    run: Run = run
    say: Say = say
    policy: Path = Path("/usr/sbin/policy-rc.d")
    root: bool = os.geteuid() == 0

    def check(self) -> None:
        """Raise NodeUnavailable where packages cannot be installed."""
        if shutil.which("apt-get") is None:
            raise NodeUnavailable("there is no apt-get here")
        if not self.root:
            raise NodeUnavailable("installing packages needs root")

    def candidate(self, package: str) -> str:
        """Return the version that would be installed, after an update where apt has no lists; "" for none."""
        version = self._candidate(package)
        if not version:
            self.say("apt has no package lists (or old ones): apt-get update")
            self._must([*_APT, "update", "-qq"])
            version = self._candidate(package)
        return version

    def install(self, packages: Sequence[str], *, why: str) -> None:
        """Announce and install packages, with service start blocked.

        Args:
            packages: Their names.
            why: What they are for, to tell the user.

        Raises:
            NodeUnavailable: They cannot be installed; the message has apt's words.
        """
        self.check()
        self.say(announcement(packages, why))
        command = [*_APT, "install", "-y", "-qq", "--no-install-recommends", *packages]
        with blocked_services(self.policy):
            if self.run(command).returncode != 0:
                # Old lists name versions that the mirror no longer has.
                self._must([*_APT, "update", "-qq"])
                self._must(command)
            for service in _SERVICES:
                if service in packages:
                    self._must(["update-rc.d", service, "disable"])

    def _candidate(self, package: str) -> str:
        for line in self.run(["apt-cache", "policy", package]).stdout.splitlines():
            name, _, version = line.strip().partition(": ")
            if name == "Candidate" and version != "(none)":
                return version
        return ""

    def _must(self, command: Sequence[str]) -> None:
        answer = self.run(command)
        if answer.returncode != 0:
            raise NodeUnavailable(f"{' '.join(command)} failed:\n{answer.stdout}{answer.stderr}".rstrip())


def announcement(packages: Sequence[str], why: str) -> str:
    """Return what the user is told before packages are installed."""
    consequence = "No service is started by this, now or at the next boot."
    return f"Installing {', '.join(packages)} by apt, {why}.\n{consequence}"


@contextmanager
def blocked_services(policy: Path) -> Iterator[None]:
    """Forbid the start of services by packages, and restore the policy that was there before."""
    saved = policy.with_name(f"{policy.name}.saved-by-asyncq")
    if policy.exists() and _MARK in policy.read_text(errors="replace"):
        # Left by a run that was killed; what it saved is still beside it.
        policy.unlink()
    elif policy.exists():
        policy.replace(saved)
    try:
        policy.write_text(_POLICY)
        policy.chmod(0o755)
        yield
    finally:
        policy.unlink(missing_ok=True)
        if saved.exists():
            saved.replace(policy)
