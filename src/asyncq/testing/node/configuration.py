"""What a node is configured with: user, virtual host, and the text of its configuration files.

The listeners are not part of it: a node listens on 127.0.0.1 only, on ports of its own.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .errors import NodeError

# A task may run for hours on a developer's machine, for example in a debugger.
_BASE_CONF = """\
consumer_timeout = 86400000
"""
_PLUGINS = ("rabbitmq_management", "rabbitmq_prometheus")

# What a node decides itself, by the beginning of the key.
_OWN = ("listeners.", "management.tcp.", "management.ssl.", "prometheus.tcp.", "load_definitions")


@dataclass(frozen=True)
class Ports:
    """The ports of one node, all on 127.0.0.1."""

    amqp: int
    management: int
    prometheus: int
    distribution: int
    epmd: int


@dataclass(frozen=True)
class Setup:
    """How a node is set up.

    Args:
        user: The one user, an administrator.
        password: Its password.
        vhost: The virtual host of the node's URL.
        conf: Text in the format of rabbitmq.conf. Listeners in it do not count.
        advanced: Erlang terms in the format of advanced.config, for what rabbitmq.conf has no key for.
        plugins: The plugins to enable.
        definitions: More definitions (policies, queues), in the format of RabbitMQ's export.
    """

    user: str = "asyncq"
    password: str = "asyncq"  # the node listens on loopback only
    vhost: str = "/"
    conf: str = _BASE_CONF
    advanced: str = "[]."
    plugins: tuple[str, ...] = _PLUGINS
    definitions: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_folder(cls, folder: Path) -> "Setup":
        """Read `rabbitmq.conf`, `enabled_plugins` and `definitions.json` of a folder.

        The first user with a password and the first virtual host make the node's URL.

        Raises:
            NodeError: A file is missing, or it holds no user or no virtual host.
        """
        try:
            conf = (folder / "rabbitmq.conf").read_text()
            plugins = (folder / "enabled_plugins").read_text()
            definitions = json.loads((folder / "definitions.json").read_text())
            user = next(user for user in definitions["users"] if user.get("password"))
            vhost = definitions["vhosts"][0]["name"]
        except OSError as error:
            raise NodeError(f"cannot read the broker's configuration: {error}") from error
        except (ValueError, KeyError, IndexError, StopIteration) as error:
            raise NodeError(
                f"{folder / 'definitions.json'} must hold a user with a password and a virtual host"
            ) from error
        names = plugins.strip().removeprefix("[").removesuffix(".").removesuffix("]")
        return cls(
            user=user["name"],
            password=user["password"],
            vhost=vhost,
            conf=conf,
            plugins=tuple(name.strip() for name in names.split(",") if name.strip()),
            definitions=definitions,
        )

    def amqp_url(self, port: int, vhost: str | None = None) -> str:
        """Return the AMQP URL of a virtual host, by default of this setup's one."""
        vhost = self.vhost if vhost is None else vhost
        credentials = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}"
        # The default virtual host "/" is what an empty path means to clients.
        path = "" if vhost == "/" else quote(vhost, safe="")
        return f"amqp://{credentials}@127.0.0.1:{port}/{path}"

    def write(self, folder: Path, ports: Ports, *, seen_as: Path, address: str = "127.0.0.1") -> None:
        """Write the node's configuration files.

        Args:
            folder: Where to.
            ports: The ports to listen on.
            seen_as: The same folder as the node sees it (a chroot has another root).
            address: Where to listen; a container has no other network than its own.
        """
        listeners = {
            "listeners.tcp.1": f"{address}:{ports.amqp}",
            "management.tcp.ip": address,
            "management.tcp.port": str(ports.management),
            "prometheus.tcp.ip": address,
            "prometheus.tcp.port": str(ports.prometheus),
            "load_definitions": str(seen_as / "definitions.json"),
        }
        own = "".join(f"{key} = {value}\n" for key, value in listeners.items())
        (folder / "rabbitmq.conf").write_text(f"{_without(_OWN, self.conf)}\n{own}")
        (folder / "advanced.config").write_text(self.advanced + "\n")
        (folder / "enabled_plugins").write_text(f"[{','.join(self.plugins)}].\n")
        (folder / "definitions.json").write_text(json.dumps(self.all_definitions(), indent=2))

    def all_definitions(self) -> dict[str, Any]:
        """Return the definitions with the user, the virtual host and the permissions in it."""
        if self.definitions.get("users"):
            return self.definitions
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        return self.definitions | {
            "users": [{"name": self.user, "password": self.password, "tags": "administrator"}],
            "vhosts": [{"name": self.vhost}],
            "permissions": [{"user": self.user, "vhost": self.vhost, **everything}],
        }


def _without(keys: tuple[str, ...], conf: str) -> str:
    """Return a configuration without the lines whose keys begin so."""
    return "\n".join(line for line in conf.splitlines() if not line.lstrip().startswith(keys))
