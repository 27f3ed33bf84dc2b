"""Where RabbitMQ's programs are, and how to run them.

They are called at their real path: the commands that Debian puts into
`/usr/sbin` change to the system user of the system's own broker.
"""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

_DEBIAN = Path("usr/lib/rabbitmq/bin")

# Where nodes keep their data inside an unpacked system.
NODES = Path("var/lib/asyncq-nodes")
WORKSPACE_LINK = "data-in-unpacked-system"


@dataclass(frozen=True)
class Installation:
    """One RabbitMQ on this machine.

    Args:
        programs: The folder with `rabbitmq-server` and `rabbitmqctl`, as seen from `root`.
        version: The version by its files, such as "3.10.8"; empty where they do not tell.
        root: The folder of an unpacked system that is entered by chroot, or None.
    """

    programs: Path
    version: str
    root: Path | None = None

    @classmethod
    def recorded(cls, record: dict[str, str]) -> "Installation":
        """Return the installation that `record` described."""
        root = Path(record["root"]) if record["root"] else None
        return cls(Path(record["programs"]), record["version"], root)

    def record(self) -> dict[str, str]:
        """Return a description that `recorded` understands."""
        return {
            "kind": "local",
            "programs": str(self.programs),
            "version": self.version,
            "root": str(self.root or ""),
        }

    def present(self) -> bool:
        """Return whether the server is still there."""
        return self._outside(self.programs / "rabbitmq-server").exists()

    def command(self, program: str, *arguments: str) -> list[str]:
        """Return the command that runs one of RabbitMQ's programs, or one of Erlang's by its name."""
        path = self.programs / program
        called = [str(path) if self._outside(path).exists() else program, *arguments]
        return called if self.root is None else ["chroot", str(self.root), *called]

    def workspace(self, folder: Path) -> Path:
        """Return where a node of `folder` keeps its data: there, or inside the unpacked system.

        A chroot sees nothing outside its root, and a mount could be left
        behind by a crash. A link in `folder` says which one is the node's.
        """
        if self.root is None:
            return folder
        link = folder / WORKSPACE_LINK
        if link.is_symlink():
            return link.readlink()
        nodes = self.root / NODES
        nodes.mkdir(parents=True, exist_ok=True)
        workspace = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=nodes))
        (workspace / "owner").write_text(str(folder))
        folder.mkdir(parents=True, exist_ok=True)
        link.symlink_to(workspace)
        return workspace

    def inside(self, path: Path) -> Path:
        """Return a path as RabbitMQ's programs see it."""
        return path if self.root is None else Path("/") / path.relative_to(self.root)

    def _outside(self, path: Path) -> Path:
        return path if self.root is None else self.root / path.relative_to("/")


def installed() -> Installation | None:
    """Return the RabbitMQ that is installed on this machine, or None."""
    debian = Path("/") / _DEBIAN
    if (debian / "rabbitmq-server").exists():
        return Installation(debian, version_of(debian))
    path = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/opt/homebrew/sbin"
    found = shutil.which("rabbitmq-server", path=path)
    if found is None:
        return None
    programs = Path(found).resolve().parent
    return Installation(programs, version_of(programs))


def unpacked(root: Path) -> Installation | None:
    """Return the RabbitMQ of a Debian system that was unpacked into a folder, or None."""
    programs = root / _DEBIAN
    if not (programs / "rabbitmq-server").exists():
        return None
    return Installation(Path("/") / _DEBIAN, version_of(programs), root)


def version_of(programs: Path) -> str:
    """Return the version of the RabbitMQ whose programs these are, or an empty string."""
    # Debian and the generic build call the folder rabbitmq_server-3.10.8; Homebrew's is .../rabbitmq/4.0.5/sbin.
    for folder in [*programs.parent.glob("lib/rabbitmq_server-*"), *programs.parents]:
        candidate = folder.name.removeprefix("rabbitmq_server-")
        if candidate[:1].isdigit() and "." in candidate:
            return candidate
    return ""


def matches(version: str, wanted: str | None) -> bool:
    """Return whether a version such as "4.3.6" is what was asked for, such as "4.3" or anything."""
    return wanted is None or version == wanted or version.startswith(f"{wanted}.")
