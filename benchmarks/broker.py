"""The broker that the benchmark runs on: ASYNCQ_TEST_BROKER_URL, or a private node; a virtual host of its own."""

from __future__ import annotations

import contextlib
import os
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from asyncq.testing.node import Node
from asyncq.testing.node.management import Management

__all__ = ["BenchBroker", "bench_broker"]


@dataclass(frozen=True, slots=True)
class BenchBroker:
    """Where to connect.

    Attributes:
        url: The AMQP URL of the virtual host.
        version: What the broker says of itself.
        how: What runs it, in words.
    """

    url: str
    version: str
    how: str


@contextlib.contextmanager
def bench_broker(version: str | None) -> Iterator[BenchBroker]:
    """Yield a broker with an empty virtual host, which is deleted afterwards.

    Args:
        version: Take a private node of this version. None: the broker of ASYNCQ_TEST_BROKER_URL, or else a private
            node of the first version that can be had.

    Raises:
        NodeUnavailable: There is no way to have a node here; the message says what to install.
    """
    vhost = f"asyncq-bench-{uuid.uuid4().hex[:12]}"
    given = os.environ.get("ASYNCQ_TEST_BROKER_URL")
    if given and version is None:
        with _given_broker(given, vhost) as found:
            yield found
        return
    with tempfile.TemporaryDirectory(prefix="asyncq-bench-") as folder:
        node = Node.provide(version, name="asyncq-bench", folder=Path(folder) / "node", temporary=True)
        node.start()
        try:
            yield BenchBroker(node.create_vhost(vhost), node.version, node.how)
        finally:
            node.remove()


@contextlib.contextmanager
def _given_broker(url: str, vhost: str) -> Iterator[BenchBroker]:
    parts = urlsplit(url)
    user, password = unquote(parts.username or "guest"), unquote(parts.password or "guest")
    management_url = os.environ.get("ASYNCQ_TEST_MANAGEMENT_URL") or f"http://{parts.hostname}:15672"
    management = Management(management_url, user, password)
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    management.request("PUT", f"/vhosts/{vhost}")
    try:
        management.request("PUT", f"/permissions/{vhost}/{quote(user, safe='')}", everything)
        version = str(management.request("GET", "/overview")["rabbitmq_version"])
        yield BenchBroker(urlunsplit(parts._replace(path=f"/{vhost}")), version, "ASYNCQ_TEST_BROKER_URL")
    finally:
        management.request("DELETE", f"/vhosts/{vhost}")
