"""Debian systems unpacked into folders, to have RabbitMQ versions that this machine's packages do not have.

A folder is built under another name and renamed when it is whole, so that an
interrupted build is never taken for a system. Nothing is ever mounted in it.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .apt import Apt
from .errors import NodeUnavailable
from .installation import NODES, WORKSPACE_LINK, Installation, matches, unpacked
from .process import ProcessId

# Debian's release names, and the RabbitMQ in each.
SUITES = {"3.10": "bookworm", "4.0": "trixie", "4.3": "forky"}

# A node that is about to start has not linked its data yet.
_YOUNG_S = 60.0


def cache() -> Path:
    """Return the folder of the unpacked systems: ASYNCQ_CACHE, or ~/.cache/asyncq."""
    return Path(os.environ.get("ASYNCQ_CACHE") or "~/.cache/asyncq").expanduser().absolute()


def find(version: str) -> Installation:
    """Return the unpacked system with this version.

    Raises:
        NodeUnavailable: There is none, or chroot is not possible.
    """
    found = unpacked(_folder(version))
    if found is None:
        raise NodeUnavailable(f"there is no unpacked system in {_folder(version)}")
    if os.geteuid() != 0:
        raise NodeUnavailable(f"running the unpacked system in {_folder(version)} needs root, for chroot")
    if not matches(found.version, version):
        raise NodeUnavailable(f"{_folder(version)} has RabbitMQ {found.version}: remove it for a new one")
    _remove_orphans(_folder(version))
    return found


def build(version: str, apt: Apt) -> Installation:
    """Unpack a Debian system with this version of RabbitMQ into the cache.

    Raises:
        NodeUnavailable: It is not known where to get the version, or it cannot be built here.
    """
    suite = SUITES.get(version)
    if suite is None:
        raise NodeUnavailable(f"no Debian release is known for RabbitMQ {version} (known: {', '.join(SUITES)})")
    apt.check()
    if shutil.which("mmdebstrap") is None:
        apt.candidate("mmdebstrap")
        apt.install(["mmdebstrap"], why="to unpack a Debian system with another RabbitMQ")
    target = _folder(version)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _lock(target.with_name(f"{target.name}.lock")):
        if unpacked(target) is None:
            _build(suite, version, target, apt)
    return find(version)


def _build(suite: str, version: str, target: Path, apt: Apt) -> None:
    unfinished = target.with_name(f"{target.name}.unfinished")
    _discard(unfinished)
    apt.say(f"Unpacking Debian {suite} with RabbitMQ {version} into {target} (about 250 MB, under a minute).")
    began = time.monotonic()
    answer = apt.run(
        [
            "mmdebstrap",
            "--variant=minbase",
            "--include=rabbitmq-server",
            # Debian testing's index may be older than its own date of expiry.
            '--aptopt=Acquire::Check-Valid-Until "false"',
            suite,
            str(unfinished),
        ]
    )
    built = unpacked(unfinished)
    if answer.returncode != 0 or built is None:
        raise NodeUnavailable(f"mmdebstrap could not unpack Debian {suite}:\n{answer.stderr[-2000:]}")
    if not matches(built.version, version):
        _discard(unfinished)
        raise NodeUnavailable(f"Debian {suite} has RabbitMQ {built.version} now, not {version}")
    unfinished.rename(target)
    apt.say(f"Unpacked in {time.monotonic() - began:.0f} s.")


def _folder(version: str) -> Path:
    return cache() / f"rabbitmq-{version}"


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Let one program at a time build; the next one finds the system there."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _discard(folder: Path) -> None:
    """Delete what an interrupted build left, unless something is mounted in it."""
    mounts = Path("/proc/self/mountinfo")
    inside = f" {folder}/"
    if mounts.exists() and inside in mounts.read_text():
        raise NodeUnavailable(f"something is mounted below {folder}: unmount it first")
    if folder.exists():
        shutil.rmtree(folder)


def _remove_orphans(root: Path) -> None:
    """Delete the data of nodes whose own folder is gone, such as a test's temporary one."""
    for owner in (root / NODES).glob("*/owner"):
        workspace = owner.parent
        link = Path(owner.read_text()) / WORKSPACE_LINK
        owned = link.is_symlink() and link.readlink() == workspace
        if not owned and _age_s(owner) > _YOUNG_S and not _runs(workspace):
            shutil.rmtree(workspace, ignore_errors=True)


def _age_s(path: Path) -> float:
    return time.time() - path.stat().st_mtime


def _runs(workspace: Path) -> bool:
    """Return whether a process has the id that RabbitMQ wrote into this node's data."""
    try:
        return ProcessId.of(int((workspace / "server.pid").read_text())) is not None
    except (OSError, ValueError):
        return False
