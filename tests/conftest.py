"""Brokers for the tests: private RabbitMQ nodes, and a virtual host of its own for each test.

ASYNCQ_TEST_VERSIONS says on which versions (default "3.10,4.3"). With
ASYNCQ_TEST_BROKER_URL the tests use that broker instead, in virtual hosts of
their own; what kills or freezes a broker does so to a private one all the same.
"""

import contextlib
import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit
from zlib import crc32

import pytest
import structlog
from hypothesis import HealthCheck, settings

from asyncq.testing.node import Node, NodeUnavailable

# Tests are no package: this makes `from support import eventually` work in all of them.
sys.path.insert(0, str(Path(__file__).parent))

from servers import Postgres, Prometheus, Redis, Server
from support import GivenBroker, VhostManagement, given_broker
from versions import TEST_SETUP, VERSIONS

# A busy machine is no fault of the tested code: no deadlines. A failure prints what repeats it.
settings.register_profile("test", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("prove", settings.get_profile("test"), max_examples=2000)
settings.load_profile("test")

S = TypeVar("S", bound=Server)

pytest_plugins = ["pytester"]  # the pytest plugin is tested by it, in tests/testing

GIVEN = "given"
# Folders whose tests start programs, and wait for them.
_LONG = {"cli", "faults", "workers", "stores"}


def pytest_configure() -> None:
    """Let Ctrl-C work in the programs that tests start: a run in a shell's background ignores it, and hands that on."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what uses a broker on every version, and on those of `also_on`; all tests of one version run together."""
    if "rabbitmq_version" not in metafunc.fixturenames:
        return
    given = given_broker() is not None and "private_node" not in metafunc.fixturenames
    also_on = [version for mark in metafunc.definition.iter_markers("also_on") for version in mark.args]
    versions = [GIVEN] if given else list(dict.fromkeys([*VERSIONS, *also_on]))
    if metafunc.definition.get_closest_marker("any_version") is not None:
        name = metafunc.definition.nodeid.encode()
        versions = [versions[crc32(name) % len(versions)]]  # so each of them has about as many
    metafunc.parametrize("rabbitmq_version", versions, scope="session")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With pytest-xdist, give the tests of one RabbitMQ version to two processes: most of them wait, for no processor.

    Each of the two has nodes of its own.
    """
    for item in items:
        version = getattr(item, "callspec", None) and item.callspec.params.get("rabbitmq_version")
        if version:
            long = item.path.parent.name in _LONG
            item.add_marker(pytest.mark.xdist_group(f"{version} {'long' if long else 'short'}"))
            continue  # what needs a server as well starts one there: that costs less than another RabbitMQ
        for server in ("postgres_server", "redis_server"):
            if server in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.xdist_group(server))


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """What a test does to the logging of its process must not hide what a later one logs.

    `structlog.testing.capture_logs` leaves structlog set up, and then no line comes to `caplog`; and so does a command
    that sets up the standard library's logging at a higher level.
    """
    level = logging.getLogger().level
    yield
    structlog.reset_defaults()
    assert logging.getLogger().level == level, "this test has left another log level than it found"


@pytest.fixture(scope="session")
def node(rabbitmq_version: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node | GivenBroker]:
    """A running broker that tests share: use `broker_url` for a virtual host of one's own."""
    given = given_broker()
    if given is not None:
        yield given
        return
    shared = provide(rabbitmq_version, f"test-{rabbitmq_version}", tmp_path_factory)
    yield shared
    shared.remove()


@pytest.fixture
def broker_url(node: Node | GivenBroker) -> Iterator[str]:
    """The AMQP URL of a fresh virtual host, deleted after the test."""
    vhost = f"asyncq-test-{uuid.uuid4().hex[:12]}"
    yield node.create_vhost(vhost)
    node.delete_vhost(vhost)


@pytest.fixture
def management(node: Node | GivenBroker, broker_url: str) -> VhostManagement:
    """The test's virtual host (that of `broker_url`) as the management API shows it."""
    return VhostManagement(node, unquote(urlsplit(broker_url).path[1:]), broker_url)


@pytest.fixture(scope="session")
def killable_node(rabbitmq_version: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """The private node behind `private_node`; tests ask for that one."""
    own = provide(rabbitmq_version, f"killable-{rabbitmq_version}", tmp_path_factory)
    yield own
    own.remove()


@pytest.fixture
def private_node(killable_node: Node) -> Node:
    """A running node that the test may kill, freeze and restart. Its virtual host "/" is fresh.

    The node is healed before the next test: thawed, started again, emptied.
    """
    killable_node.start()
    for vhost in killable_node.api("GET", "/vhosts"):
        killable_node.delete_vhost(vhost["name"])
    killable_node.create_vhost("/")
    return killable_node


@pytest.fixture
def private_management(private_node: Node) -> VhostManagement:
    """The virtual host "/" of `private_node`."""
    return VhostManagement(private_node, "/", private_node.url)


def provide(version: str, name: str, folders: pytest.TempPathFactory) -> Node:
    """Start a node, or skip with the reason; under CI a version that is missing is a failure."""
    try:
        node = Node.provide(version, name=name, folder=folders.mktemp(name), setup=TEST_SETUP, temporary=True)
    except NodeUnavailable as error:
        if os.environ.get("CI"):
            pytest.fail(f"RabbitMQ {version} cannot be had, and CI is set: {error}")
        pytest.skip(f"RabbitMQ {version} cannot be had: {error}")
    node.start()
    return node


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """A private PostgreSQL that tests share; each uses a namespace of its own. Whoever stops it starts it again."""
    yield from served(Postgres)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Server]:
    """A private Redis that tests share, likewise."""
    yield from served(Redis)


@pytest.fixture
def prometheus() -> Iterator[Callable[[str], Prometheus]]:
    """Starts a private Prometheus that scrapes an address, `host:port`."""
    with contextlib.ExitStack() as stack:

        def start(target: str) -> Prometheus:
            return stack.enter_context(contextlib.contextmanager(served)(partial(Prometheus, target)))

        yield start


def served(kind: Callable[[], S]) -> Iterator[S]:
    """Start a server, or skip with the reason; under CI that it cannot be had is a failure."""
    try:
        server = kind()
    except NodeUnavailable as error:
        if os.environ.get("CI"):
            pytest.fail(f"A server cannot be had, and CI is set: {error}")
        pytest.skip(f"A server cannot be had: {error}")
    try:
        server.start()
        yield server
    finally:
        server.remove()
