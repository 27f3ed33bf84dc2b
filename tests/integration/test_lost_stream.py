"""A stream of cancellations that the broker has lost: work goes on undisturbed, and an operator mends it."""

from __future__ import annotations

import asyncio
import logging
import shlex

import pytest

import asyncq.controller as controller_module
import asyncq.rabbitmq.following as following_module
import asyncq.rabbitmq.lost_streams as lost_streams_module
import asyncq.worker.revocations as revocations_module
from asyncq import AsyncQ
from asyncq.errors import BrokerUnavailable, PublishError, TaskCancelled
from asyncq.rabbitmq.findings import release_of
from asyncq.rabbitmq.lost_streams import mending_command
from lost_streams import lose_stream
from support import eventually, working

STREAM = "asyncq.cancellations"


@pytest.fixture
def soon(monkeypatch, caplog):
    """Let nobody wait for long, and keep what is logged."""
    monkeypatch.setattr(controller_module, "_READ_S", 2.0)
    monkeypatch.setattr(revocations_module, "_PATIENCE_S", 0.2)
    monkeypatch.setattr(lost_streams_module, "_LOST_AFTER_S", 1.0)
    for name in ("_FIRST_PAUSE_S", "_LONGEST_PAUSE_S", "_LONGEST_PAUSE_WHEN_LOST_S"):
        monkeypatch.setattr(following_module, name, 0.3)
    caplog.set_level(logging.INFO)


def lines(caplog, words):
    return [line for line in caplog.messages if words in line]


@pytest.mark.also_on("4.0")
async def test_a_lost_stream_disturbs_nothing_that_runs_and_is_mended_by_deleting_it(private_node, soon, caplog):
    """Whoever reads it, or cancels, loses a connection at each try; what runs keeps its message, and runs once."""
    app = AsyncQ("shop", broker=private_node.url)
    began, go_on, runs = asyncio.Event(), asyncio.Event(), []

    @app.task
    async def work(number: int) -> int:
        runs.append(number)
        began.set()
        await go_on.wait()
        return number

    async with working(app, {"shop": 2}):
        running = await work.send(1)
        await asyncio.wait_for(began.wait(), 20)
        await asyncio.to_thread(lose_stream, private_node, STREAM)
        with pytest.raises(BrokerUnavailable, match="could not be read"):
            await app.control.paused()
        with pytest.raises(PublishError, match="asyncq doctor"):
            await app.cancel("nobody")
        assert len(lines(caplog, "cannot be read, trying again")) > 1
        assert app.broker.status().state == "ready"
        next_one = await work.send(2)
        await eventually(lambda: runs == [1, 2], 20)
        go_on.set()
        assert [await running.result(20), await next_one.result(20)] == [1, 2]
        assert runs == [1, 2]
        assert not lines(caplog, "lease lost")
        lost = lines(caplog, "connection to the broker lost")
        assert lost
        assert all("-journal " in line for line in lost)
        await eventually(lambda: lines(caplog, "has lost a journal"), 30)
        assert "asyncq doctor" in lines(caplog, "has lost a journal")[0]
        go_on.clear()
        program, *arguments = shlex.split(mending_command(STREAM, "/", release_of(private_node.version)))
        assert program == "rabbitmqctl"
        await asyncio.to_thread(private_node.rabbitmqctl, *arguments)
        stopped = await work.send(3)
        await eventually(lambda: runs == [1, 2, 3], 20)
        await eventually(lambda: lines(caplog, "that was lost can be read again"), 60)
        await stopped.cancel()
        with pytest.raises(TaskCancelled):
            await stopped.result(20)
        assert len(lines(caplog, "has lost a journal")) == 1
