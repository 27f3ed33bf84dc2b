"""A private RabbitMQ node, as tests and scripts use it."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from .apt import Apt
from .configuration import Ports, Setup
from .engine import Engine
from .errors import NodeError
from .leash import Leash
from .management import Management, ManagementError
from .ways import Wanted, provide, recorded


class Node:
    """A RabbitMQ broker of one's own, on free ports of 127.0.0.1.

    As a context manager it is started, and stopped at the end.

    Args:
        engine: What runs the broker; `Node.provide` chooses one.
        name: The node's name.
        setup: How it is configured.
        leashed: The node's folder, if the node is to end with this program, however that ends.
    """

    def __init__(self, engine: Engine, name: str, setup: Setup, *, leashed: Path | None = None) -> None:
        self._engine = engine
        self._setup = setup
        self._leashed = leashed
        self._leash: Leash | None = None
        self.name = name

    @classmethod
    def provide(
        cls,
        version: str | None = None,
        *,
        name: str = "asyncq",
        folder: Path,
        setup: Setup | None = None,
        temporary: bool = False,
    ) -> "Node":
        """Find a way to run a broker here; getting it may install packages or build a system folder.

        Args:
            version: The wanted version, such as "3.10" or "4.3"; None takes the first that can be had.
            name: The node's name, in its logs and in the management UI.
            folder: The node's own folder, for its record and data. The same folder is the same node.
            setup: User, virtual host and configuration.
            temporary: End the node with this program, even where that is killed. Its data stays.

        Raises:
            NodeUnavailable: There is no way; the message says what to install.
        """
        setup = Setup() if setup is None else setup
        engine = provide(Wanted(version, name, folder, setup, Apt()))
        return cls(engine, name, setup, leashed=folder if temporary else None)

    @classmethod
    def recorded(cls, folder: Path) -> "Node | None":
        """Return the node that was started in this folder, to stop it or ask about it, or None.

        Nothing is installed for this. To start it again, use `provide`.
        """
        found = recorded(folder)
        if found is None:
            return None
        engine, record = found
        return cls(engine, record.name, record.setup())

    def start(self) -> None:
        """Start the broker, or find it running, and wait until it accepts AMQP connections.

        Raises:
            NodeFailed: It did not come up; the message has its log.
        """
        if self._leashed is not None and self._leash is None:
            self._leash = Leash(self._leashed)
        self._engine.start()

    def stop(self) -> None:
        """Stop the broker, if it runs. Its data stays."""
        self._engine.stop()
        self._release()

    def restart(self) -> None:
        """Start the broker again on the same data and ports, after `kill` or while it runs."""
        self._engine.stop()
        self._engine.start()

    def kill(self) -> None:
        """End the whole broker by SIGKILL and wait until it is gone."""
        self._engine.kill()

    def end(self) -> None:
        """End the broker and what belongs to it by SIGKILL, if they run. Its data stays."""
        self._engine.end()
        self._release()

    def freeze(self) -> None:
        """Stop the broker's process in its tracks: connections stay open, nothing answers."""
        self._engine.freeze()

    def thaw(self) -> None:
        """Let a frozen broker go on."""
        self._engine.thaw()

    def remove(self) -> None:
        """End the broker at once and delete its data."""
        self._engine.remove()
        self._release()

    def rabbitmqctl(self, *arguments: str) -> str:
        """Run rabbitmqctl on this node and return what it prints.

        Raises:
            NodeFailed: It ended with an error, which is in the message.
        """
        return self._engine.rabbitmqctl(*arguments)

    @property
    def running(self) -> bool:
        """Whether the broker's process runs."""
        return self._engine.ports() is not None

    @property
    def how(self) -> str:
        """What runs the broker, in words."""
        return self._engine.how

    @property
    def user(self) -> str:
        """The user of the AMQP URL and of the management UI."""
        return self._setup.user

    @property
    def password(self) -> str:
        """The password of `user`."""
        return self._setup.password

    @property
    def ports(self) -> Ports:
        """The ports of the running broker, all on 127.0.0.1."""
        ports = self._engine.ports()
        if ports is None:
            raise NodeError(f"the node {self.name} is not running: start it first")
        return ports

    @property
    def url(self) -> str:
        """The AMQP URL, with user and password."""
        return self._setup.amqp_url(self.ports.amqp)

    @property
    def management_url(self) -> str:
        """The address of the management UI and its HTTP API."""
        return f"http://127.0.0.1:{self.ports.management}"

    @property
    def metrics_url(self) -> str:
        """The address of the Prometheus metrics, which are fresher than the management API's figures."""
        return f"http://127.0.0.1:{self.ports.prometheus}/metrics"

    @property
    def version(self) -> str:
        """The version that the broker itself reports, such as "3.10.8"."""
        return str(self.api("GET", "/overview")["rabbitmq_version"])

    def api(self, method: str, path: str, body: object = None) -> Any:
        """Call the management HTTP API and return the JSON of the answer.

        Args:
            method: `GET`, `PUT`, `POST` or `DELETE`.
            path: What follows `/api`; names in it are percent-encoded.
            body: What to send as JSON.

        Raises:
            ManagementError: The API refused the request, or it could not be reached.
        """
        return Management(self.management_url, self.user, self.password).request(method, path, body)

    def create_vhost(self, name: str) -> str:
        """Create a virtual host and return its AMQP URL."""
        path = quote(name, safe="")
        self.api("PUT", f"/vhosts/{path}")
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        self.api("PUT", f"/permissions/{path}/{quote(self.user, safe='')}", everything)
        return self._setup.amqp_url(self.ports.amqp, name)

    def delete_vhost(self, name: str) -> None:
        """Delete a virtual host with everything in it; one that is gone already is fine."""
        try:
            self.api("DELETE", f"/vhosts/{quote(name, safe='')}")
        except ManagementError as error:
            if error.status != 404:
                raise

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _release(self) -> None:
        if self._leash is not None:
            self._leash.release()
            self._leash = None
