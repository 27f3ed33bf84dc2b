"""Choose how a broker can be had on this machine.

The ways are tried in a fixed order and the first that works is taken. Nothing
is installed or built where something is there already.
"""

from dataclasses import dataclass
from pathlib import Path

from .apt import Apt
from .configuration import Setup
from .container import ContainerEngine, find_tool, image
from .engine import Engine
from .errors import NodeFailed, NodeUnavailable
from .installation import Installation, installed, matches
from .local import LocalEngine
from .state import Record, StateFile
from .unpacked import build, find


@dataclass(frozen=True)
class Wanted:
    """What is looked for.

    Args:
        version: The version, such as "4.3"; None for any.
        name: The node's name.
        folder: The node's folder.
        setup: Its configuration.
        apt: The machine's package manager.
    """

    version: str | None
    name: str
    folder: Path
    setup: Setup
    apt: Apt

    def local(self, installation: Installation) -> Engine:
        """Return the engine that runs this node by an installation."""
        return LocalEngine(installation, self.name, self.folder, self.setup)


def provide(wanted: Wanted) -> Engine:
    """Return what can run the wanted broker; this may install packages or build a system folder.

    Raises:
        NodeUnavailable: No way works; the message has the reason for each, and what to install.
        NodeFailed: The folder has a node of another version.
    """
    existing = by_record(wanted)
    if existing is not None:
        return existing
    reasons = []
    for label, way in (
        ("installed", by_installed),
        ("unpacked", by_unpacked),
        ("apt", by_apt),
        ("unpack", by_building),
        ("container", by_container),
    ):
        try:
            return way(wanted)
        except NodeUnavailable as error:
            reasons.append(f"  {label}: {error}")
    version = f"RabbitMQ {wanted.version}" if wanted.version else "RabbitMQ"
    raise NodeUnavailable("\n".join([f"{version} cannot be had here.", *reasons, advice()]))


def advice() -> str:
    """Say what to install, for whoever cannot be helped automatically."""
    return (
        "Install one of these and try again:\n"
        "  Debian, Ubuntu:  sudo apt-get install rabbitmq-server\n"
        "                   (it starts a system broker; this program does not use that one)\n"
        "  macOS:           brew install rabbitmq   (not tried by us)\n"
        "  anywhere:        Docker or Podman, with its daemon running   (not tried by us)\n"
        "Or set ASYNCQ_BROKER_URL to a broker that you have."
    )


def recorded(folder: Path) -> tuple[Engine, Record] | None:
    """Return the engine of the node that was started in this folder, and its record, or None.

    Nothing is installed or started: this is for stopping a node and asking about it.
    """
    record = StateFile(folder.absolute()).read()
    if record is None:
        return None
    then = Wanted(None, record.name, folder, record.setup(), Apt())
    return engine_of(record, then), record


def engine_of(record: Record, wanted: Wanted) -> Engine:
    """Return the engine that a record names, for a node as wanted."""
    if record.engine["kind"] == "container":
        tool, name = record.engine["tool"], record.engine["image"]
        return ContainerEngine(tool, name, wanted.name, wanted.folder, wanted.setup)
    return wanted.local(Installation.recorded(record.engine))


def by_record(wanted: Wanted) -> Engine | None:
    """Return the engine that ran this node before, or None: its data fit no other version.

    Raises:
        NodeFailed: The node is not of the wanted version.
    """
    record = StateFile(wanted.folder.absolute()).read()
    if record is None:
        return None
    version = record.engine["version"]
    if not matches(version, wanted.version):
        raise NodeFailed(
            f"{wanted.folder} has a node of RabbitMQ {version}, not {wanted.version}: "
            "stop it and remove the folder, or use another folder"
        )
    if record.engine["kind"] == "local" and not Installation.recorded(record.engine).present():
        return None
    return engine_of(record, wanted)


def by_installed(wanted: Wanted) -> Engine:
    """Use the rabbitmq-server that is installed."""
    found = installed()
    if found is None:
        raise NodeUnavailable("there is no rabbitmq-server on this machine")
    if not matches(found.version, wanted.version):
        raise NodeUnavailable(f"the rabbitmq-server on this machine is {found.version}")
    return wanted.local(found)


def by_unpacked(wanted: Wanted) -> Engine:
    """Use a system that was unpacked earlier."""
    if wanted.version is None:
        raise NodeUnavailable("only where a version is asked for")
    return wanted.local(find(wanted.version))


def by_apt(wanted: Wanted) -> Engine:
    """Install rabbitmq-server, where the machine's packages have the wanted version."""
    if installed() is not None:
        raise NodeUnavailable("another version is installed, and it is left alone")
    wanted.apt.check()
    candidate = wanted.apt.candidate("rabbitmq-server")
    if not candidate or not matches(candidate.partition("-")[0], wanted.version):
        raise NodeUnavailable(f"apt offers rabbitmq-server {candidate or 'in no version'}")
    wanted.apt.install(["rabbitmq-server"], why="to run a private node in a folder of your own")
    found = installed()
    if found is None:
        raise NodeUnavailable("rabbitmq-server was installed and cannot be found")
    return wanted.local(found)


def by_building(wanted: Wanted) -> Engine:
    """Unpack a Debian system that has the wanted version."""
    if wanted.version is None:
        raise NodeUnavailable("only where a version is asked for")
    return wanted.local(build(wanted.version, wanted.apt))


def by_container(wanted: Wanted) -> Engine:
    """Use the official image, by Docker or Podman."""
    tool = find_tool()
    return ContainerEngine(tool, image(wanted.version), wanted.name, wanted.folder, wanted.setup)
