"""The conformance suite's own parts: the report, the table of differences, and that the suite is whole."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from asyncq.testing import conformance
from asyncq.testing.conformance.bench import Bench, behaviour
from asyncq.testing.conformance.differences import DIFFERENCES, Difference
from asyncq.testing.conformance.report import Results, render

ODD = Difference("order", "test_order_is_kept", ("RabbitMQ 3.*",), "they come in another order", "It is old")


class Nowhere:
    """A broker that is only a name."""

    def __init__(self, name):
        self.name = name

    def __getattr__(self, _):
        return None


def test_the_report_shows_behaviours_beside_brokers_and_explains_differences():
    """Memory first, versions by number; what failed and what was not run is said."""
    results = Results()
    for broker in ("RabbitMQ 4.10", "RabbitMQ 4.3", "RabbitMQ 3.10", "memory"):
        results.add("test_order_is_kept", broker, "passed")
    results.add("test_all_arrive", "memory", "passed")
    results.add("test_all_arrive", "RabbitMQ 4.3", "failed")
    results.add("test_all_arrive", "RabbitMQ 4.3", "passed")  # its teardown
    themes = [("consuming", ["test_order_is_kept", "test_all_arrive"])]
    assert [line.split() for line in render(results, themes, [ODD])] == [
        ["behaviour", "memory", "RabbitMQ", "3.10", "RabbitMQ", "4.3", "RabbitMQ", "4.10"],
        ["consuming"],
        ["order", "is", "kept", "ok", "differs", "(1)", "ok", "ok"],
        ["all", "arrive", "ok", "not", "run", "FAILED", "not", "run"],
        ["total", "2/2", "1/1", "1/2", "1/1"],
        [],
        ["(1)", "RabbitMQ", "3.*:", "they", "come", "in", "another", "order.", "It", "is", "old"],
    ]


async def test_a_declared_difference_that_its_behaviour_does_not_ask_for_fails_it():
    """On the brokers that it is declared for."""

    @behaviour
    async def test_order_is_kept(bench):
        pass

    await test_order_is_kept(Bench(Nowhere("memory"), [ODD]))
    with pytest.raises(AssertionError, match="does not ask for them"):
        await test_order_is_kept(Bench(Nowhere("RabbitMQ 3.10"), [ODD]))


async def test_a_behaviour_asks_for_its_own_declared_differences_only():
    """What differs and is not in the table is a fault."""
    answers = []

    @behaviour
    async def test_order_is_kept(bench):
        answers.append(bench.differs("order"))

    @behaviour
    async def test_something_else(bench):
        bench.differs("order")

    for name in ("memory", "RabbitMQ 3.10", "RabbitMQ 4.3"):
        await test_order_is_kept(Bench(Nowhere(name), [ODD]))
    assert answers == [False, True, False]
    with pytest.raises(AssertionError, match="not declared"):
        await test_something_else(Bench(Nowhere("memory"), [ODD]))


def test_every_declared_difference_belongs_to_a_behaviour_of_the_suite():
    """And each is declared once."""
    assert {item.behaviour for item in DIFFERENCES} <= set(conformance.__all__)
    assert len({item.key for item in DIFFERENCES}) == len(DIFFERENCES)


def test_every_theme_has_behaviours_with_a_sentence_and_none_hides_another():
    """The names of all of them together are what a user's module gets."""
    modules = [vars(getattr(conformance, theme)) for theme in conformance.THEMES]
    found = [(name, test) for module in modules for name, test in module.items() if name.startswith("test_")]
    assert [name for name, _ in found] == conformance.__all__
    assert all(test.__doc__ and test.pytestmark[0].name == "asyncio" for _, test in found)


THEIR_MODULE = """
import pytest
from asyncq.memory.broker import MemoryBroker
from asyncq.memory.node import MemoryNode
from asyncq.testing.conformance import *
from asyncq.testing.conformance.bench import Bench


class Mine:
    name = "my broker"

    def __init__(self):
        self.node = MemoryNode()

    def make(self, settings):
        return MemoryBroker(settings, self.node)

    async def delete_queue(self, name):
        self.node.delete_queue(name)

    async def cut(self, broker):
        broker.lose_connection()

    async def count(self, queue):
        return self.node.count(queue) + (queue == "shop")  # a fault


@pytest.fixture
def bench():
    return Bench(Mine())
"""


def test_somebody_who_writes_another_adapter_can_run_the_suite(tmp_path):
    """With one module, in pytest-asyncio's strict mode; a fault is shown with its values, and in the table."""
    (tmp_path / "test_mine.py").write_text(THEIR_MODULE)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = strict\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\n"
    )
    options = ["-q", "-p", "asyncq.testing.conformance.report", "-k", "two_messages or order_of_their_publishing"]
    command = [sys.executable, "-m", "pytest", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed, 1 passed" in done.stdout
    assert "assert 3 == 2" in done.stdout
    table = done.stdout.partition(" conformance ")[2]
    assert re.search(r"^behaviour +my broker$", table, re.MULTILINE)
    assert re.search(r"^  messages come in the order of their publishing +ok$", table, re.MULTILINE)
    assert re.search(r"^  a message that is published twice is two messages +FAILED$", table, re.MULTILINE)
    assert re.search(r"^total +1/2$", table, re.MULTILINE)
