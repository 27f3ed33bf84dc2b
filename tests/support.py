"""What tests share: waiting for a condition, a broker that was given, a look at its queues."""

import asyncio
import contextlib
import inspect
import os
import re
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlencode, urlsplit, urlunsplit

import aio_pika

from asyncq import AsyncQ
from asyncq.testing.node import Node
from asyncq.testing.node.management import Management, ManagementError

T = TypeVar("T")

POLL_S = 0.02

_SAMPLE = re.compile(
    r'rabbitmq_detailed_queue_messages_(?P<kind>ready|unacked)\{.*queue="(?P<queue>[^"]*)".*\} (?P<value>\S+)'
)


async def eventually(
    predicate: Callable[[], T | Awaitable[T]], timeout: float = 10.0, *, message: str | None = None
) -> T:
    """Wait until `predicate` (plain or async) returns something true, and return that.

    An `AssertionError` in it counts as "not yet", so that it may hold asserts.

    Args:
        predicate: The condition, asked every 20 ms.
        timeout: Seconds until the wait fails.
        message: What was waited for, in words; by default the predicate's source line.
    """
    deadline = time.monotonic() + timeout
    while True:
        last: object
        try:
            answer = predicate()
            value = await answer if inspect.isawaitable(answer) else answer
            if value:
                return value
            last = value
        except AssertionError as error:
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {message or _source(predicate)}; last: {last!r}")
        await asyncio.sleep(POLL_S)


def _source(predicate: Callable[..., object]) -> str:
    try:
        return inspect.getsource(predicate).strip()
    except (OSError, TypeError):
        return repr(predicate)


@contextlib.asynccontextmanager
async def working(app: AsyncQ, queues: Mapping[str, int] | None = None) -> AsyncIterator[AsyncQ]:
    """Open the app, with a worker for its tasks in this very process; drain it in the end."""
    async with app:
        worker = app.worker(queues)
        running = asyncio.create_task(worker.run())
        try:
            yield app
        finally:
            worker.stop()
            await asyncio.wait_for(running, 30)
            await asyncio.to_thread(app.sync.close)


class GivenBroker:
    """The broker of ASYNCQ_TEST_BROKER_URL. Only virtual hosts that the tests created are touched.

    Args:
        url: Its AMQP URL; the user needs the tag `administrator`.
        management_url: Its management API; by default port 15672 of the same host.
    """

    def __init__(self, url: str, management_url: str | None) -> None:
        parts = urlsplit(url)
        self.url = url
        self.user = unquote(parts.username or "guest")
        self.password = unquote(parts.password or "guest")
        self.management_url = management_url or f"http://{parts.hostname}:15672"
        self._parts = parts
        self._management = Management(self.management_url, self.user, self.password)

    @property
    def version(self) -> str:
        """The version that the broker reports."""
        return str(self.api("GET", "/overview")["rabbitmq_version"])

    def api(self, method: str, path: str, body: object = None) -> Any:
        """Call the management HTTP API."""
        return self._management.request(method, path, body)

    def create_vhost(self, name: str) -> str:
        """Create a virtual host and return its URL."""
        path = quote(name, safe="")
        self.api("PUT", f"/vhosts/{path}")
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        self.api("PUT", f"/permissions/{path}/{quote(self.user, safe='')}", everything)
        return urlunsplit(self._parts._replace(path=f"/{path}"))

    def delete_vhost(self, name: str) -> None:
        """Delete a virtual host that the tests created."""
        self.api("DELETE", f"/vhosts/{quote(name, safe='')}")


@dataclass(frozen=True)
class Depth:
    """How many messages a queue holds."""

    ready: int
    unacked: int

    @property
    def messages(self) -> int:
        """All of them."""
        return self.ready + self.unacked


class VhostManagement:
    """One virtual host as its operator sees it.

    What exists is exact. Figures are late: depths by 0.2 s on private nodes,
    consumers and connections by 1 s, all by 5 s on a given broker. So wait for
    them by `eventually`, and never take a 0 for an empty queue without another
    sign; `ready` is exact.

    Args:
        node: The broker.
        vhost: The virtual host.
        url: The virtual host's AMQP URL.
    """

    def __init__(self, node: Node | GivenBroker, vhost: str, url: str) -> None:
        self._node = node
        self._vhost = vhost
        self._url = url
        self._path = quote(vhost, safe="")

    async def queue(self, name: str) -> dict[str, Any]:
        """Return one queue: `messages`, `messages_ready`, `messages_unacknowledged`, `consumers`, `arguments`.

        Raises:
            ManagementError: With status 404 when there is no such queue.
        """
        return dict(await self._get(f"/queues/{self._path}/{quote(name, safe='')}"))

    async def queues(self) -> dict[str, dict[str, Any]]:
        """Return all queues by name."""
        (listed,) = await eventually(self._listed)
        return {queue["name"]: queue for queue in listed}

    async def _listed(self) -> tuple[list[dict[str, Any]]]:
        # RabbitMQ 3.10 answers 500 while a stream is being declared: until its process runs, it cannot be listed.
        try:
            return (await self._get(f"/queues/{self._path}"),)
        except ManagementError as error:
            if error.status != 500:
                raise
            raise AssertionError(str(error)) from None  # which `eventually` takes for "not yet"

    async def depth(self, name: str) -> int:
        """Return how many messages a queue holds, unacknowledged ones included; 0 where there is no queue."""
        return (await self.depths()).get(name, Depth(0, 0)).messages

    async def depths(self) -> dict[str, Depth]:
        """Return the depths of all queues whose figures are known, by name."""
        if isinstance(self._node, Node):
            return await asyncio.to_thread(_depths_by_metrics, self._node.metrics_url, self._vhost)
        return {
            name: Depth(queue.get("messages_ready", 0), queue.get("messages_unacknowledged", 0))
            for name, queue in (await self.queues()).items()
        }

    async def ready(self, name: str) -> int:
        """Return how many messages wait in a queue, exactly, by a passive declaration.

        Raises:
            aio_pika.exceptions.ChannelNotFoundEntity: There is no such queue.
        """
        async with await aio_pika.connect(self._url) as connection, connection.channel() as channel:
            queue = await channel.declare_queue(name, passive=True)
            return queue.declaration_result.message_count or 0

    async def consumers(self, queue: str) -> list[dict[str, Any]]:
        """Return the consumers of a queue, with `consumer_tag` and `prefetch_count`."""
        found = await self._get(f"/consumers/{self._path}")
        return [consumer for consumer in found if consumer["queue"]["name"] == queue]

    async def exchanges(self) -> dict[str, dict[str, Any]]:
        """Return all exchanges by name."""
        return {exchange["name"]: exchange for exchange in await self._get(f"/exchanges/{self._path}")}

    async def bindings(self) -> list[dict[str, Any]]:
        """Return all bindings."""
        return list(await self._get(f"/bindings/{self._path}"))

    async def connections(self) -> list[dict[str, Any]]:
        """Return the connections to this virtual host."""
        found = await self._get("/connections")
        return [connection for connection in found if connection.get("vhost") == self._vhost]

    async def cut(self, purpose: str) -> None:
        """Make the broker close all connections to this virtual host, once it shows the one that matters.

        The list is late and grows one by one: whoever closes what it shows first may well miss that one.

        Args:
            purpose: `publish` or `consume`: one connection for that has been closed when this returns.
        """

        async def closed() -> bool:
            shown = await self.connections()
            for connection in shown:
                await asyncio.to_thread(self._close_connection, connection["name"])
            names = [connection.get("client_properties", {}).get("connection_name", "") for connection in shown]
            return any(f"-{purpose} " in name for name in names)

        await eventually(closed, 20)

    async def cut_only(self, purpose: str) -> None:
        """Make the broker close the connections for one purpose, once it shows one; see `cut`.

        Args:
            purpose: `publish`, `consume` or `journal`.
        """

        async def closed() -> bool:
            names = [
                connection["name"]
                for connection in await self.connections()
                if f"-{purpose} " in connection.get("client_properties", {}).get("connection_name", "")
            ]
            for name in names:
                await asyncio.to_thread(self._close_connection, name)
            return bool(names)

        await eventually(closed, 20)

    def _close_connection(self, name: str) -> None:
        try:
            self._node.api("DELETE", f"/connections/{quote(name, safe='')}")
        except ManagementError as error:
            if error.status != 404:  # the list also shows connections that have just ended
                raise

    async def _get(self, path: str) -> Any:
        # In a thread: the tested code shares this event loop.
        return await asyncio.to_thread(self._node.api, "GET", path)


def _depths_by_metrics(url: str, vhost: str) -> dict[str, Depth]:
    query = urlencode({"vhost": vhost, "family": "queue_coarse_metrics"})
    with urllib.request.urlopen(f"{url}/detailed?{query}", timeout=10) as response:
        lines = response.read().decode().splitlines()
    found: dict[str, dict[str, int]] = {}
    for line in lines:
        sample = _SAMPLE.match(line)
        if sample is not None:
            found.setdefault(sample["queue"], {})[sample["kind"]] = int(float(sample["value"]))
    return {name: Depth(kinds.get("ready", 0), kinds.get("unacked", 0)) for name, kinds in found.items()}


def given_broker() -> GivenBroker | None:
    """Return the broker of ASYNCQ_TEST_BROKER_URL, if that is set."""
    url = os.environ.get("ASYNCQ_TEST_BROKER_URL")
    return GivenBroker(url, os.environ.get("ASYNCQ_TEST_MANAGEMENT_URL")) if url else None
