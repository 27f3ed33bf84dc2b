"""The pytest plugin: a user's own app in tests, without any broker.

    asyncq_app        the app, open on a broker in memory, with a worker that runs during the test
    asyncq_clock      its time: stands still until the test moves it
    run_until_idle    let the worker do all there is; delays, backoffs and limits pass at once
    sent              what was sent
    faults            failure injection
    asyncq_harness    all of these in one: `app`, `clock`, `node`, `sent`, `faults`, `run_until_idle`
    asyncq_rabbitmq   a private RabbitMQ node for the session, where memory is not enough

    asyncq_target     to override: which app; without it the ini option `asyncq_app` tells
    asyncq_clock      to override: `ManualClock(start)` for a test about a certain day

pytest loads it by its entry point, so it imports nothing of asyncq before a test asks for it.

The app is opened inside the test's own coroutine, not in an async fixture: so it works in the event loop of whatever
runs the test, pytest-asyncio in both its modes and anyio's plugin alike. It is therefore open in the test's body,
and not yet in fixtures.

Invariant: when the test ends, however it ends, its item and its app are as they were before.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import unittest
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from asyncq.app import AsyncQ
    from asyncq.testing.clock import ManualClock
    from asyncq.testing.faults import Faults
    from asyncq.testing.harness import Harness
    from asyncq.testing.node import Node
    from asyncq.testing.sent import Sent

__all__: list[str] = []

_APP = "asyncq_app"
_VERSION = "asyncq_rabbitmq_version"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the ini options."""
    parser.addini(_APP, "The app under test, as MODULE:APP, for example shop.tasks:app.")
    parser.addini(_VERSION, "The RabbitMQ version of the fixture asyncq_rabbitmq, for example 4.3; by default any.")


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(request: pytest.FixtureRequest) -> Generator[None, object, object]:
    """Tell a fixture that sends too early what is wrong."""
    try:
        return (yield)
    except Exception as error:
        if type(error).__name__ == "NotOpen" and "asyncq_harness" in request.fixturenames:
            error.add_note(
                "The app under test is open in the test itself, not yet in its fixtures. Send in the test; or let the "
                "fixture return an `async def` function that sends, and await that in the test."
            )
        raise


@pytest.fixture
def asyncq_target(request: pytest.FixtureRequest) -> AsyncQ:
    """The app under test, from the ini option `asyncq_app`; override this fixture to give another."""
    from asyncq.errors import AsyncQError  # noqa: PLC0415 - see the module's docstring
    from asyncq.loading import load_app  # noqa: PLC0415

    target = str(request.config.getini(_APP))
    if not target:
        pytest.fail(
            "Which app is to be tested? Name it in pyproject.toml, under [tool.pytest.ini_options], as "
            '`asyncq_app = "shop.tasks:app"`; or define a fixture `asyncq_target` in conftest.py that returns it.',
            pytrace=False,
        )
    try:
        return load_app(target)
    except AsyncQError as error:
        said = "\n".join([str(error), *getattr(error, "__notes__", ())])
        pytest.fail(
            f"The ini option `{_APP} = {target}` leads to no app. {said}\n"
            'pytest finds modules in the current folder, and where the ini option `pythonpath = ["src"]` says.',
            pytrace=False,
        )


@pytest.fixture
def asyncq_clock() -> ManualClock:
    """The time of the app under test: it stands still until `await asyncq_clock.advance(60)`."""
    from asyncq.testing.clock import ManualClock  # noqa: PLC0415

    return ManualClock()


@pytest.fixture
def asyncq_resources() -> Any:
    """None: `ctx.resources` is what the app's lifespan yields. Override this fixture to give something else."""
    return None


@pytest.fixture
def asyncq_harness(
    request: pytest.FixtureRequest, asyncq_target: AsyncQ, asyncq_clock: ManualClock, asyncq_resources: Any
) -> Iterator[Harness]:
    """Everything about the app under test: `app`, `clock`, `node`, `sent`, `faults`, `run_until_idle`."""
    from asyncq.testing.harness import Harness  # noqa: PLC0415

    harness = Harness(asyncq_target, asyncq_clock, resources=asyncq_resources)
    # Faults may be ordered before the test runs, and the test may never run: another fixture can skip it.
    with harness.faults.injected(), _run_within(request.node, harness):
        yield harness


@pytest.fixture
def asyncq_app(asyncq_harness: Harness) -> AsyncQ:
    """The app under test, open on a broker in memory, with a worker that runs during the test."""
    return asyncq_harness.app


@pytest.fixture
def sent(asyncq_harness: Harness) -> Sent:
    """What was sent during the test."""
    return asyncq_harness.sent


@pytest.fixture
def faults(asyncq_harness: Harness) -> Faults:
    """Lets tasks fail or hang: `faults.fail(charge, times=2)`, `faults.hang(make_report)`."""
    return asyncq_harness.faults


@pytest.fixture
def run_until_idle(asyncq_harness: Harness) -> Callable[..., Awaitable[None]]:
    """Let the worker do all there is, when awaited; delays, backoffs and limits pass at once."""
    return asyncq_harness.run_until_idle


@pytest.fixture(scope="session")
def asyncq_rabbitmq(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A private RabbitMQ node, started for the session and removed after it: `asyncq_rabbitmq.url`.

    A test that must not see what others leave behind takes a virtual host of its own:
    `asyncq_rabbitmq.create_vhost(name)` returns its URL. Where no RabbitMQ can be had, the test is skipped.
    """
    from asyncq.testing.node import Node, NodeUnavailable  # noqa: PLC0415

    version = str(request.config.getini(_VERSION)) or None
    try:
        node = Node.provide(version, name="pytest", folder=tmp_path_factory.mktemp("rabbitmq"), temporary=True)
    except NodeUnavailable as error:
        pytest.skip(f"No RabbitMQ can be had: {error}")
    try:
        node.start()
        yield node
    finally:
        node.remove()


@contextmanager
def _run_within(item: pytest.Item, harness: Harness) -> Iterator[None]:
    """Let the test's coroutine run while the app is open and its worker works."""
    test = getattr(item, "obj", None)
    others = _who_else_runs(item)
    if others is not None:
        pytest.fail(
            f"{item.nodeid} is run by {others}, which the fixtures of asyncq cannot get into. Write `async with "
            "running(app) as harness:` in the test, with `from asyncq.testing.harness import running`.",
            pytrace=False,
        )
    if not isinstance(item, pytest.Function) or not inspect.iscoroutinefunction(test):
        pytest.fail(
            f"{item.nodeid} uses the app under test, so it must be an `async def` test: the app's worker runs in its "
            "event loop.",
            pytrace=False,
        )

    @functools.wraps(test)
    async def within(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pytest.fail(
                f"asyncq runs on asyncio, and {item.nodeid} runs on another event loop. With anyio's plugin, let the "
                "fixture `anyio_backend` return 'asyncio' for tests that use the app.",
                pytrace=False,
            )
        async with harness.working():
            return await test(*args, **kwargs)

    item.obj = within
    try:
        yield
    finally:
        item.obj = test


def _who_else_runs(item: pytest.Item) -> str | None:
    if hasattr(getattr(item, "obj", None), "hypothesis"):
        return "hypothesis, for many examples"
    return "unittest" if issubclass(getattr(item, "cls", None) or object, unittest.TestCase) else None
