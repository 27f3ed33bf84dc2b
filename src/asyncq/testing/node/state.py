"""The record of a node, in its folder: how it is run, its ports, its processes.

The file is replaced in one step, so that a program that is killed leaves the
old record or the new one. Whoever starts or stops a node holds the folder's
lock.
"""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .configuration import Ports, Setup
from .process import ProcessId


@dataclass(frozen=True)
class Record:
    """What is known of a node that was started.

    Args:
        name: Its name.
        engine: What runs it, in the words of that engine.
        user: The user of its URL.
        password: The user's password.
        vhost: The virtual host of its URL.
        ports: Its ports; kept over restarts.
        server: The broker's process, where it is a process of this machine.
        epmd: The node's own port mapper, likewise.
    """

    name: str
    engine: dict[str, str]
    user: str
    password: str
    vhost: str
    ports: Ports
    server: ProcessId | None = None
    epmd: ProcessId | None = None

    @classmethod
    def of(cls, name: str, engine: dict[str, str], setup: Setup, ports: Ports) -> "Record":
        """Return the record of a node that is about to start."""
        return cls(name, engine, setup.user, setup.password, setup.vhost, ports)

    def setup(self) -> Setup:
        """Return what is needed to speak to the node; its configuration files are not in the record."""
        return Setup(user=self.user, password=self.password, vhost=self.vhost)


class StateFile:
    """The record in one node's folder.

    Args:
        folder: The node's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "state.json"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other programs from starting or stopping the same node meanwhile."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def read(self) -> Record | None:
        """Return the record, or None where there is none, or none that can be read."""
        try:
            data: dict[str, Any] = json.loads(self._path.read_text())
            data["ports"] = Ports(**data["ports"])
            for process in ("server", "epmd"):
                data[process] = ProcessId(**data[process]) if data[process] else None
            return Record(**data)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, record: Record) -> None:
        """Replace the record. Only the owner may read it, as it holds a password."""
        new = self._path.with_suffix(".new")
        new.unlink(missing_ok=True)
        new.touch(mode=0o600)
        new.write_text(json.dumps(asdict(record), indent=2))
        new.replace(self._path)

    def update(self, **changes: ProcessId | None) -> None:
        """Change the processes in the record, if there is one."""
        record = self.read()
        if record is not None:
            self.write(replace(record, **changes))  # type: ignore[arg-type]  # the keys are server and epmd
