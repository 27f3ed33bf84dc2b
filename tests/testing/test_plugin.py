"""The pytest plugin as a project sees it that has asyncq installed."""

import importlib.metadata
import json
import os
from types import SimpleNamespace

import pytest

import asyncq.testing.harness  # so that runs in this process find all modules, and load none a second time
from asyncq import AsyncQ
from asyncq.testing import plugin
from asyncq.testing.harness import Harness

VERSION = os.environ.get("ASYNCQ_TEST_VERSIONS", "3.10,4.3").split(",")[0].strip()

SHOP = """
from asyncq import AsyncQ, Fixed, RetryPolicy, current_context

app = AsyncQ("shop")
ran = []


@app.task(retry=RetryPolicy(max_attempts=3, backoff=Fixed(3600), jitter=False))
async def charge(order: int) -> int:
    ran.append(order)
    return current_context().attempt


@app.task(queue="mail")
def send_mail(to: str, subject: str = "Hello") -> str:
    return f"{subject}, {to}"
"""

CONFTEST = """
import asyncio

import pytest
import pytest_asyncio


@pytest_asyncio.fixture(autouse=True)
async def nothing_is_left_running():
    yield
    assert asyncio.all_tasks() == {asyncio.current_task()}
"""

# What any runner of async tests has to run alike; {mark} is its mark.
ALIKE = """
import time

import pytest
import shop
from asyncq import TaskFailed

{mark}


async def test_a_call(asyncq_app):
    assert asyncq_app is shop.app
    assert await shop.send_mail.call("ann") == "Hello, ann"


async def test_a_backoff(run_until_idle, faults, sent, asyncq_clock):
    began = time.monotonic()
    faults.fail(shop.charge, times=2, error=ConnectionError("the bank is away"))
    handle = await shop.charge.send(7)
    await run_until_idle()
    assert await handle.result(timeout=5) == 3
    assert asyncq_clock.monotonic() >= 7200
    assert time.monotonic() - began < 60
    sent.once(shop.charge, arguments={{"order": 7}})


async def test_jumping(asyncq_app, asyncq_clock, faults):
    faults.hang(shop.send_mail)
    with asyncq_clock.jumping(), pytest.raises(TaskFailed, match="TimeLimitExceeded"):
        await shop.send_mail.call("ann")


@pytest.mark.parametrize("order", [1, 2])
async def test_with_parameters(asyncq_app, order, tmp_path):
    assert await shop.charge.call(order) == 1
    assert tmp_path.is_dir()


class TestInAClass:
    async def test_with_self(self, asyncq_harness):
        assert isinstance(self, TestInAClass)
        assert await shop.charge.call(3) == 1
        assert asyncq_harness.node.count("shop") == 0

    @staticmethod
    async def test_without_self(asyncq_app):
        assert await shop.charge.call(3) == 1


async def test_without_the_app():
    pass
"""


@pytest.fixture
def project(pytester):
    """A project with an app, and warnings as errors. Its tests run in a process of their own."""
    pytester.makepyfile(shop=SHOP)

    def make(mode="strict", **options):
        lines = {
            "filterwarnings": '["error"]',
            "asyncio_mode": f'"{mode}"',
            "asyncio_default_fixture_loop_scope": '"function"',
            "asyncq_app": '"shop:app"',
        }
        lines.update(options)
        text = "\n".join(f"{name} = {value}" for name, value in lines.items() if value)
        pytester.makepyprojecttoml(f"[tool.pytest.ini_options]\n{text}\n")
        return pytester

    return make


def text_of(result):
    return "\n".join(result.outlines)


# --- what runs the tests


def test_pytest_finds_the_plugin_by_its_entry_point():
    """So nobody has to name it."""
    (found,) = {item.value for item in importlib.metadata.entry_points(group="pytest11") if item.name == "asyncq"}
    assert found == "asyncq.testing.plugin"


def test_it_works_under_pytest_asyncio_in_strict_mode(project):
    """With its mark, in functions and classes; nothing is left running."""
    pytester = project("strict")
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_shop=ALIKE.format(mark="pytestmark = pytest.mark.asyncio"))
    pytester.runpytest_subprocess("-q").assert_outcomes(passed=8)


def test_it_works_under_pytest_asyncio_in_auto_mode(project):
    """Without any mark."""
    pytester = project("auto")
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_shop=ALIKE.format(mark=""))
    pytester.runpytest_subprocess("-q").assert_outcomes(passed=8)


def test_it_works_under_anyios_plugin(project):
    """With anyio's mark, on its asyncio backend, and without pytest-asyncio."""
    pytester = project(asyncio_mode=None, asyncio_default_fixture_loop_scope=None)
    pytester.makeconftest("import pytest\n\n@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'\n")
    pytester.makepyfile(test_shop=ALIKE.format(mark="pytestmark = pytest.mark.anyio"))
    pytester.runpytest_subprocess("-q", "-p", "no:asyncio").assert_outcomes(passed=9)


def test_another_event_loop_than_asyncios_is_an_error_that_says_so(project):
    """As with anyio's trio backend."""
    item = project().getitem("async def test_func(): raise AssertionError")
    test = item.obj
    with plugin._run_within(item, Harness(AsyncQ("shop"))):
        coroutine = item.obj()
        with pytest.raises(pytest.fail.Exception, match=r"asyncq runs on asyncio, and .*::test_func runs on another"):
            coroutine.send(None)  # whoever runs it, there is no asyncio loop
    assert item.obj is test


def test_a_project_gives_resources_of_its_own(project):
    """By overriding a fixture; a test of another module has those of the app's lifespan."""
    pytester = project("auto")
    pytester.makepyfile(
        test_fake="""
        import pytest
        from asyncq import current_context
        from shop import app

        @app.lifespan
        async def lifespan(app):
            yield "real"

        @app.task
        def look() -> str:
            return current_context().resources

        @pytest.fixture
        def asyncq_resources():
            return "fake"

        async def test_fake(asyncq_app):
            assert await look.call() == "fake"
        """,
        test_real="""
        from test_fake import look

        async def test_real(asyncq_app):
            assert await look.call() == "real"
        """,
    )
    pytester.runpytest_subprocess("-q").assert_outcomes(passed=2)


def test_nothing_of_asyncq_is_imported_where_no_test_uses_it(project):
    """Pytest loads the plugin in every project of an environment; it has to cost nothing there."""
    pytester = project()
    pytester.makepyfile(
        test_other="""
        import json, sys

        def test_other(pytestconfig):
            assert pytestconfig.pluginmanager.hasplugin("asyncq")
            loaded = [name for name in sys.modules if name.split(".")[0] in ("asyncq", "pydantic")]
            print("loaded:", json.dumps(sorted(loaded)))
        """
    )
    result = pytester.runpytest_subprocess("-q", "-s")
    result.assert_outcomes(passed=1)
    (line,) = [line for line in result.outlines if line.startswith("loaded:")]
    assert json.loads(line.removeprefix("loaded:")) == ["asyncq", "asyncq.testing", "asyncq.testing.plugin"]


# --- tests that fail


FAILING = """
import unittest

import hypothesis
import pytest
import pytest_asyncio
import shop

BEFORE = shop.app._broker_factory, shop.app._clock, shop.app.settings, shop.charge.function


async def test_1_fails_in_the_middle(asyncq_app, faults, sent):
    faults.fail(shop.charge, times=9)
    faults.hang(shop.send_mail, times=9)
    await shop.send_mail.send("ann")
    await shop.charge.options(delay=3600).send(1)
    assert len(sent) == 2
    raise LookupError("the test's own error")


def test_2_the_app_is_as_before():
    assert (shop.app._broker_factory, shop.app._clock, shop.app.settings, shop.charge.function) == BEFORE


async def test_3_sees_nothing_of_the_first(asyncq_harness):
    assert not asyncq_harness.sent
    assert asyncq_harness.node.delayed == 0
    shop.ran.clear()
    assert await shop.charge.call(2) == 1
    assert await shop.send_mail.call("bob") == "Hello, bob"
    await asyncq_harness.run_until_idle()
    assert shop.ran == [2]


async def test_4_asks_what_was_sent(asyncq_app, sent):
    await shop.send_mail.options(delay=3600).send("ann")
    await shop.charge.send(7)
    sent.once(shop.send_mail, arguments={"to": "bob"}, delay=3600)


@pytest.fixture
def unlucky(faults):
    faults.fail(shop.charge, times=3)
    pytest.skip("before the test begins")


async def test_4_never_runs(unlucky, asyncq_app):
    pass


def test_4_its_faults_are_gone():
    assert shop.charge.function is BEFORE[3]


def test_5_is_no_async_test(asyncq_app):
    pass


@hypothesis.given(hypothesis.strategies.integers())
async def test_5_is_run_by_hypothesis(asyncq_app, number):
    pass


class Test5OfUnittest(unittest.IsolatedAsyncioTestCase):
    @pytest.fixture(autouse=True)
    def needed(self, asyncq_app):
        pass

    async def test_it(self):
        pass


async def test_6_is_never_idle(run_until_idle, monkeypatch):
    import asyncio

    async def wait(order):
        await asyncio.Event().wait()

    monkeypatch.setattr(shop.charge, "function", wait)
    await shop.charge.send(1)
    await run_until_idle(timeout=0.2)


async def test_7_skips(asyncq_app):
    pytest.skip("not today")


@pytest.mark.xfail(raises=ZeroDivisionError, strict=True)
async def test_8_fails_as_expected(asyncq_app):
    raise ZeroDivisionError


@pytest_asyncio.fixture
async def customer(asyncq_app):
    await shop.charge.send(1)


async def test_9_sends_in_a_fixture(customer):
    pass
"""


def test_tests_that_fail_say_why_and_leave_the_app_as_it_was(project):
    """Their own errors, unchanged, with their own lines and none of ours."""
    pytester = project("auto")
    pytester.makepyfile(test_shop=FAILING)
    result = pytester.runpytest_subprocess("-q")
    result.assert_outcomes(passed=3, failed=3, errors=4, skipped=2, xfailed=1)
    text = text_of(result)

    assert "LookupError: the test's own error" in text
    assert "asyncq/testing/plugin.py" not in text
    assert "asyncq/testing/harness.py" not in text
    assert "asyncq/testing/sent.py" not in text
    assert "During handling of the above exception" not in text
    result.stdout.fnmatch_lines(
        [
            ">       sent.once(shop.send_mail, arguments={*",
            "E       AssertionError: shop.send_mail(to='bob') in 3600 s should have been sent once, and never was; *:",
            "E         1. shop.send_mail(to='ann', subject='Hello') to queue 'mail', in 3600 s",
            "E         2. shop.charge(order=7) to queue 'shop'",
        ]
    )
    assert (
        "test_shop.py::test_5_is_no_async_test uses the app under test, so it must be an `async def` test: the app's "
        "worker runs in its event loop."
    ) in text
    assert "test_5_is_run_by_hypothesis is run by hypothesis, for many examples, which the fixtures of " in text
    assert "Test5OfUnittest::test_it is run by unittest, which the fixtures of asyncq cannot get into. Write" in text
    result.stdout.fnmatch_lines(
        [
            ">       await run_until_idle(timeout=0.2)",
            "E       AssertionError: not idle within 0.2 real seconds, in which the clock was moved by 0 s",
            "E         running: shop.charge (attempt 1, id *)",
        ]
    )
    result.stdout.fnmatch_lines(
        [
            "E*NotOpen: The app 'shop' is not open.*",
            "E*The app under test is open in the test itself, not yet in its fixtures. *",
        ]
    )


# --- which app


def test_without_the_option_the_error_says_what_to_do(project):
    """The two ways, with an example of each."""
    pytester = project(asyncq_app=None)
    pytester.makepyfile("import pytest\n\n@pytest.mark.asyncio\nasync def test_it(asyncq_app): ...\n")
    result = pytester.runpytest_inprocess("-q")
    result.assert_outcomes(errors=1)
    assert (
        "Which app is to be tested? Name it in pyproject.toml, under [tool.pytest.ini_options], as "
        '`asyncq_app = "shop.tasks:app"`; or define a fixture `asyncq_target` in conftest.py that returns it.'
    ) in text_of(result)
    assert "Traceback" not in text_of(result)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("shop", "'shop' names no app. Write MODULE:APP"),
        ("shop:nope", "Module 'shop' has no 'nope'. Its apps: shop:app."),
        ("shop:charge", "shop:charge is of type AsyncTask, not an AsyncQ app."),
        ("shpo:app", "There is no module 'shpo'*Is it 'shop'?*"),
        ("broken:app", "Module 'broken' is there, but importing it failed: ZeroDivisionError"),
        ("half:app", "*no_such_module*"),
    ],
)
def test_a_target_that_leads_to_no_app_says_what_is_wrong(project, target, says):
    """At which step it fails, as the command line says it."""
    pytester = project(asyncq_app=json.dumps(target))
    pytester.makepyfile(
        broken="1 / 0",
        half="from asyncq import AsyncQ\napp = AsyncQ('half', include=['no_such_module'])",
        test_it="import pytest\n\n@pytest.mark.asyncio\nasync def test_it(asyncq_app): ...\n",
    )
    result = pytester.runpytest_inprocess("-q")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"*The ini option `asyncq_app = {target}` leads to no app. {says}*"])
    result.stdout.fnmatch_lines(['*and where the ini option `pythonpath = *"src"*` says.*'])


OVERRIDING = '''
from datetime import UTC, datetime

import pytest
from asyncq import AsyncQ
from asyncq.testing.clock import ManualClock

pytestmark = pytest.mark.asyncio


@pytest.fixture(params=["one", "two"])
def asyncq_target(request):
    return AsyncQ(request.param)


@pytest.fixture
def asyncq_clock():
    return ManualClock(datetime(2028, 2, 29, tzinfo=UTC))


async def test_another_app_and_time(asyncq_app, asyncq_clock, request):
    @asyncq_app.task
    async def task() -> str:
        return asyncq_app.name

    assert await task.call() in {"one", "two"}
    assert asyncq_clock.now() == datetime(2028, 2, 29, tzinfo=UTC)


class TestAnAppThatCannotStart:
    @pytest.fixture
    def asyncq_target(self):
        return AsyncQ("broken", include=["no_such_module"])

    async def test_it(self, asyncq_app):
        raise AssertionError("unreachable")


class TestAnAppThatIsOpen:
    @pytest.fixture(params=["first", "again"])
    def asyncq_target(self, request):
        return AsyncQ("open")

    async def test_it(self, asyncq_app, asyncq_target):
        async with asyncq_target:  # it may be entered again
            pass


async def test_a_second_setup_of_an_item(request, asyncq_harness):
    """As plugins do it that run a failed test once more: what was wrapped is unwrapped after the test."""
    assert request.node.obj.__name__ == "test_a_second_setup_of_an_item"


'''


def test_the_app_and_the_clock_are_given_by_fixtures(project):
    """Overriding them in a test file; a worker that cannot start fails the test with its own error."""
    pytester = project(asyncq_app=None)
    pytester.makepyfile(OVERRIDING)
    result = pytester.runpytest_inprocess("-q")
    result.assert_outcomes(passed=6, failed=1)
    result.stdout.fnmatch_lines(["E*ConfigurationError: *no_such_module*"])


def test_a_test_that_runs_again_gets_a_fresh_app(project):
    """Plugins for flaky tests set up the same item a second time."""
    pytester = project()
    pytester.makeconftest(
        """
        import pytest
        from _pytest.runner import runtestprotocol

        @pytest.hookimpl(tryfirst=True)
        def pytest_runtest_protocol(item, nextitem):
            for _ in range(2):
                item._initrequest()
                for report in runtestprotocol(item, nextitem=nextitem, log=False):
                    item.ihook.pytest_runtest_logreport(report=report)
            return True
        """
    )
    pytester.makepyfile(
        "import pytest, shop\n\n@pytest.mark.asyncio\nasync def test_it(asyncq_app, sent):\n"
        "    assert await shop.charge.call(1) == 1\n    assert len(sent) == 1\n"
    )
    pytester.runpytest_inprocess("-q").assert_outcomes(passed=2)


def test_the_fixtures_are_listed_with_their_purpose(project):
    """`pytest --fixtures` is where people look."""
    result = project().runpytest_inprocess("--fixtures")
    for name in (
        "asyncq_app",
        "asyncq_clock",
        "asyncq_harness",
        "asyncq_rabbitmq",
        "asyncq_target",
        "faults",
        "run_until_idle",
        "sent",
    ):
        assert any(line.startswith(name) and "plugin.py" in line for line in result.outlines), name
    assert "no docstring available" not in text_of(result).partition("asyncq")[2].partition("fixtures defined from")[0]


# --- a real broker


@pytest.mark.xdist_group(VERSION)
def test_a_private_rabbitmq_lasts_for_the_session(project):
    """Two tests in virtual hosts of their own on one node; after it, nothing is left of it."""
    pytester = project()
    pytester.makepyfile(
        """
        import pytest
        from asyncq import AsyncQ

        NODES = []


        @pytest.mark.asyncio
        @pytest.mark.parametrize("name", ["one", "two"])
        async def test_for_real(asyncq_rabbitmq, name):
            app = AsyncQ("shop", broker=asyncq_rabbitmq.create_vhost(name))

            @app.task
            async def add(a: int, b: int) -> int:
                return a + b

            async with app:
                import asyncio
                worker = app.worker()
                running = asyncio.create_task(worker.run())
                assert await add.call(1, 2) == 3
                worker.stop()
                await running
            NODES.append(asyncq_rabbitmq.url)
            assert len(set(NODES)) == 1


        def test_its_address(asyncq_rabbitmq):
            print("version:", asyncq_rabbitmq.version)
        """
    )
    result = pytester.runpytest_subprocess("-q", "-s", "-o", f"asyncq_rabbitmq_version={VERSION}")
    if result.parseoutcomes().get("skipped") and not os.environ.get("CI"):
        pytest.skip(f"RabbitMQ {VERSION} cannot be had")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines([f"*version: {VERSION}*"])


def test_without_any_rabbitmq_its_tests_are_skipped(project, monkeypatch):
    """With what to install."""

    def provide(*args, **kwargs):
        raise asyncq.testing.node.NodeUnavailable("install rabbitmq-server")

    monkeypatch.setattr("asyncq.testing.node.Node.provide", provide)
    pytester = project()
    pytester.makepyfile("def test_it(asyncq_rabbitmq): ...")
    result = pytester.runpytest_inprocess("-q", "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*No RabbitMQ can be had: install rabbitmq-server"])


def test_a_rabbitmq_that_does_not_start_is_removed(project, monkeypatch):
    """What was begun is taken away."""
    did = []

    def start():
        did.append("start")
        raise asyncq.testing.node.NodeUnavailable("no")

    node = SimpleNamespace(start=start, remove=lambda: did.append("remove"))
    monkeypatch.setattr("asyncq.testing.node.Node.provide", lambda *args, **kwargs: node)
    pytester = project()
    pytester.makepyfile("def test_it(asyncq_rabbitmq): ...")
    pytester.runpytest_inprocess("-q").assert_outcomes(errors=1)
    assert did == ["start", "remove"]
