"""`asyncq status` and `asyncq result` of a workflow: what any process knows of it by the result store."""

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest

from asyncq import AsyncQ
from asyncq.outcome import Failure
from asyncq.program import node_id
from asyncq.status import StatusUpdate, TaskState
from asyncq.workflow_progress.shape import ForkShape, WorkflowShape

pytestmark = pytest.mark.any_version

SHAPE = WorkflowShape(("shop.fetch", ForkShape((("shop.count",),) * 3), "shop.merge"))
NOW = datetime.now(UTC)


@pytest.fixture
def kept(offline_in_process, tmp_path):
    """Commands with an empty store, and what writes into that; no broker is there."""
    url = f"sqlite:///{tmp_path}/results.db"
    offline_in_process.environment["ASYNCQ_RESULTS"] = url
    asyncio.run(AsyncQ("writer", broker="memory://", results=url).results.init())

    def write(workflow, shape, *tasks):
        update = StatusUpdate(workflow, TaskState.QUEUED, NOW, task="chain", workflow=shape.to_json(), life=1)

        async def written():
            async with AsyncQ("writer", broker="memory://", results=url) as app:
                await app.recorder.write([update, *tasks])

        asyncio.run(written())

    return offline_in_process, write


def ended(workflow, path, task, state=TaskState.SUCCEEDED, **fields):
    """Return the end of a workflow's task."""
    times = {"started_at": NOW, "at": NOW + timedelta(seconds=0.25)}
    return StatusUpdate(node_id(workflow, path), state, attempt=1, task=task, **times, **fields)


def test_a_workflow_is_shown_as_a_tree(kept):
    """A line a task: its place, name, state and how long it took; what never runs says so."""
    shell, write = kept
    write(
        "w1",
        SHAPE,
        ended("w1", "0", "shop.fetch", result=b"7"),
        ended("w1", "1.0.0", "shop.count"),
        ended("w1", "1.1.0", "shop.count", TaskState.FAILED, error=Failure("builtins.ValueError", "no \x1b[numbers")),
        StatusUpdate(node_id("w1", "1.2.0"), TaskState.STARTED, NOW, attempt=1, task="shop.count"),
    )
    shown = shell.run("status", "w1")
    assert shown.stdout.splitlines() == [
        "w1  started: 3 of 5 tasks have ended",
        "  0  shop.fetch  succeeded  0.25 s",
        "  1  3 at once",
        "    1.0.0  shop.count  succeeded  0.25 s",
        r"    1.1.0  shop.count  failed  0.25 s  ValueError: no \x1b[numbers",
        "    1.2.0  shop.count  started",
        "  2  shop.merge  not sent yet",
    ], shown.stderr
    told = json.loads((shell.run("status", "w1", "--json")).stdout)
    assert (told["state"], told["done"], told["total"]) == ("started", 3, 5)
    assert [task["path"] for task in told["tasks"]] == ["0", "1.0.0", "1.1.0", "1.2.0", "2"]
    assert told["tasks"][0]["result"] == 7
    listed = shell.run("status")
    assert "w1" in listed.stdout


def test_the_result_of_a_workflow_is_printed_or_why_there_is_none(kept):
    """Of a group a list; of one that has not ended how far it is; of one that failed the members that did."""
    shell, write = kept
    group = WorkflowShape((ForkShape((("shop.count",),) * 2),))
    write("w2", group, *(ended("w2", f"0.{n}.0", "shop.count", result=b"%d" % n) for n in range(2)))
    write("w3", SHAPE, ended("w3", "0", "shop.fetch"))
    error = Failure("builtins.ValueError", "no numbers")
    ends = [ended("w4", f"1.{n}.0", "shop.count", TaskState.FAILED, error=error) for n in range(3)]
    write("w4", SHAPE, ended("w4", "0", "shop.fetch"), *ends)
    printed = shell.run("result", "w2")
    assert json.loads(printed.stdout) == [0, 1], printed.stderr
    waiting = shell.run("result", "w3")
    assert (waiting.exit_code, "1 of its 5 tasks have ended" in waiting.stderr) == (1, True), waiting.stderr
    failed = shell.run("result", "w4")
    assert failed.exit_code == 1
    assert "3 of 3 members failed" in failed.stderr
    assert "no numbers" in failed.stderr
    assert "Traceback" not in failed.stderr
    tree = shell.run("status", "w4")
    assert "  2  shop.merge  never runs" in tree.stdout


def test_of_a_large_group_only_what_is_worth_looking_at_is_shown(kept):
    """The rest is counted."""
    shell, write = kept
    many = WorkflowShape((ForkShape((("shop.count",),) * 5000, "collect"), "shop.merge"))
    error = Failure("builtins.ValueError", "no numbers")
    ends = [ended("w5", f"0.{n}.0", "shop.count") for n in range(300)]
    ends += [ended("w5", f"0.{n}.0", "shop.count", TaskState.FAILED, error=error) for n in (400, 4999)]
    write("w5", many, *ends)
    shown = shell.run("status", "w5")
    assert shown.stdout.splitlines() == [
        "w5  started: 302 of 5001 tasks have ended",
        "  0  5000 at once, errors are collected",
        "    0.400.0  shop.count  failed  0.25 s  ValueError: no numbers",
        "    0.4999.0  shop.count  failed  0.25 s  ValueError: no numbers",
        "    and 300 succeeded, 4,698 not sent yet",
        "  1  shop.merge  not sent yet",
    ], shown.stderr
