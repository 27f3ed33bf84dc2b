"""An app and its real result store, when that is silent, comes late, or will never come."""

from __future__ import annotations

import asyncio
import signal
import time
import uuid

import pytest

from asyncq import AsyncQ, ResultTimeout, StoreUnavailable, TaskNotFound, TaskState
from asyncq.errors import StoreRefused
from support import eventually, working

pytestmark = pytest.mark.any_version


@pytest.fixture
def redis(redis_server):
    """A server that the test may freeze."""
    yield redis_server
    redis_server.send(signal.SIGCONT)
    redis_server.start()


def make_app(broker_url, server, **settings) -> AsyncQ:
    return AsyncQ("shop", broker=broker_url, results=server.url, namespace=f"t-{uuid.uuid4().hex[:12]}", **settings)


async def test_a_frozen_store_holds_up_no_send_and_its_ends_come_when_it_thaws(broker_url, redis):
    """Sends go on, senders get their results, and what was kept back is written then."""
    app = make_app(broker_url, redis, results_timeout_s=1)

    @app.task
    async def double(number: int) -> int:
        return 2 * number

    async with working(app, {"shop": 20}):
        assert await double.call(1) == 2
        redis.send(signal.SIGSTOP)
        handles = [await double.send(number) for number in range(20)]
        assert [await handle.result(30) for handle in handles] == [2 * number for number in range(20)]
        with pytest.raises(ResultTimeout, match="could not be asked") as caught:
            await app.handle(handles[0].id).result(0.1)
        assert not isinstance(caught.value, TaskNotFound)
        redis.send(signal.SIGCONT)
        for number, handle in enumerate(handles):
            assert await app.handle(handle.id).result(60) == 2 * number


async def test_all_who_wait_for_a_silent_store_wait_no_longer_than_one(broker_url, redis):
    """Its opening is shared: a web service must not pile up requests."""
    app = make_app(broker_url, redis, results_timeout_s=1)
    redis.send(signal.SIGSTOP)
    async with app:
        began = time.monotonic()
        asked = [app.handle(f"task-{number}").status() for number in range(20)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(answer) for answer in answers} == {StoreUnavailable}
        assert time.monotonic() - began < 10  # not 20 times a second


async def test_a_worker_that_stops_beside_a_silent_store_hands_its_tasks_back(broker_url, redis):
    """Within its drain timeout and a moment, and uncounted: they run again elsewhere."""
    app = make_app(broker_url, redis, results_timeout_s=30, drain_timeout_s=0.5)
    runs = []

    @app.task
    async def work() -> str:
        runs.append(1)
        return "done"

    async with app:
        handle = await work.options(reply=False).send()
        redis.send(signal.SIGSTOP)
        worker = app.worker()
        running = asyncio.create_task(worker.run())
        await eventually(lambda: runs)
        worker.stop()
        await asyncio.wait_for(running, 30)
        assert worker.stats().outcomes == {"Drained": 1}
        redis.send(signal.SIGCONT)
        async with working(app):
            await eventually(lambda: len(runs) == 2, 30)
            assert await app.handle(handle.id).result(60) == "done"
        status = await handle.status()
    assert (status.state, status.attempt) == (TaskState.SUCCEEDED, 1)


async def test_a_task_that_has_failed_does_not_run_again_for_the_stores_sake(broker_url, redis):
    """It is a dead letter already: once, however long the store stays away."""
    app = make_app(broker_url, redis, results_timeout_s=30, drain_timeout_s=0.5)
    runs = []

    @app.task
    async def fail() -> None:
        runs.append(1)
        raise ValueError

    async with app:
        await fail.options(reply=False).send()
        redis.send(signal.SIGSTOP)
        worker = app.worker()
        running = asyncio.create_task(worker.run())
        await eventually(lambda: app.dead_letters("shop").count())
        worker.stop()
        await asyncio.wait_for(running, 30)
        assert worker.stats().outcomes == {"Failed": 1}
        assert await app.dead_letters("shop").count() == 1
    assert runs == [1]


async def test_a_store_that_can_never_work_keeps_the_app_from_opening(broker_url, tmp_path):
    """Else its tasks would run again and again, and nobody would know why."""
    app = AsyncQ("shop", broker=broker_url, results=f"sqlite:///{tmp_path}/none/results.db")
    with pytest.raises(StoreRefused, match="unable to open database file"):
        async with app:
            pass


async def test_a_drained_attempt_is_started_again_by_whoever_runs_it_next(broker_url, tmp_path):
    """Whatever came first into the store, and by whose clock: the later run counts."""
    app = AsyncQ("shop", broker=broker_url, results=f"sqlite:///{tmp_path}/results.db", drain_timeout_s=0.1)
    going = asyncio.Event()
    runs = []

    @app.task
    async def work() -> str:
        runs.append(1)
        await going.wait()
        return "done"

    async with app:
        handle = await work.options(reply=False).send()
        first, second = app.worker(), app.worker()
        running = asyncio.create_task(first.run())
        await eventually(lambda: runs)
        other = asyncio.create_task(second.run())
        first.stop()
        await asyncio.wait_for(running, 30)
        await eventually(lambda: len(runs) == 2)

        async def started_again() -> bool:
            status = await handle.status()
            return status.state is TaskState.STARTED and status.run >= 1000

        await eventually(started_again)
        going.set()
        assert await app.handle(handle.id).result(30) == "done"
        second.stop()
        await asyncio.wait_for(other, 30)


async def test_what_expires_between_two_runs_is_expired_in_the_store(broker_url, tmp_path):
    """Not started, or to be run again, for ever."""
    app = AsyncQ("shop", broker=broker_url, results=f"sqlite:///{tmp_path}/results.db", drain_timeout_s=0.1)
    runs = []

    @app.task
    async def work() -> None:
        runs.append(1)
        await asyncio.sleep(60)

    async with app:
        handle = await work.options(reply=False, expires=1.5).send()
        worker = app.worker()
        running = asyncio.create_task(worker.run())
        await eventually(lambda: runs)
        worker.stop()
        await asyncio.wait_for(running, 30)
        await asyncio.sleep(1.6)  # the time is what is tested: it must be over before a worker takes it
        async with working(app):
            *_, last = [status async for status in app.handle(handle.id).statuses()]
    assert last.state is TaskState.EXPIRED


async def test_an_id_that_is_used_again_has_a_new_life(broker_url, tmp_path):
    """A daily report under one name: today's is not yesterday's."""
    app = AsyncQ("shop", broker=broker_url, results=f"sqlite:///{tmp_path}/results.db")
    days = []

    @app.task
    async def report() -> int:
        days.append(1)
        return len(days)

    daily = report.options(task_id="daily-report", reply=False)
    async with app:
        for day in (1, 2, 3):
            await daily.send()
            assert (await app.handle("daily-report").status()).state is TaskState.QUEUED
            async with working(app):
                assert await report.handle("daily-report").result(30) == day
