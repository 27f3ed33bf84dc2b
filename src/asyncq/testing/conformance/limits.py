"""Limits: soft and hard, of a task and of a send; deadlines; how many run at once; how large a result may be."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta

import pytest

from asyncq.context import TaskContext, current_context
from asyncq.errors import SoftTimeLimit, TaskExpired, TaskFailed, TaskRejected
from asyncq.message import DEADLINE_AT, SOFT_LIMIT_MS, TIME_LIMIT_MS
from asyncq.retry import Fixed, RetryPolicy
from asyncq.testing.conformance.bench import QUEUE, WAIT_S, Bench, behaviour, eventually

_SOON = Fixed(0.05)


@behaviour
async def test_the_soft_limit_is_raised_in_an_async_task(bench: Bench) -> None:
    """Whatever it waits for is cancelled as usual; it can clean up with awaits, and return what it has."""
    app = bench.app()
    cleaned = []

    async def child() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            cleaned.append("child")

    @app.task(soft_time_limit=0.1, time_limit=20)
    async def work(*, catch: bool) -> str:
        try:
            async with asyncio.timeout(600), asyncio.TaskGroup() as group:
                group.create_task(child())
        except SoftTimeLimit:
            cleaned.append("group")
            if not catch:
                raise
            await asyncio.sleep(0.01)
            async with asyncio.TaskGroup() as group:  # all of asyncio works on as ever
                group.create_task(asyncio.sleep(0))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await asyncio.sleep(600)
            assert current_context().soft_limit_reached
            return "what there was"
        return "all"

    async with bench.working(app, {QUEUE: 1}):
        assert await work.call(catch=True) == "what there was"
        with pytest.raises(TaskFailed, match=r"soft time limit of 0.1 s") as caught:
            await work.call(catch=False)
        assert caught.value.type == "asyncq.errors.SoftTimeLimit"
    assert cleaned == ["child", "group"] * 2


@behaviour
async def test_a_soft_limit_is_retried_only_by_its_name(bench: Bench) -> None:
    """A task that took too long once mostly does so again."""
    app = bench.app()
    attempts: dict[str, int] = {"any": 0, "named": 0}

    @app.task(soft_time_limit=0.05, retry=RetryPolicy(on=(Exception,), backoff=_SOON))
    async def any_error() -> None:
        attempts["any"] += 1
        await asyncio.sleep(600)

    @app.task(soft_time_limit=0.05, retry=RetryPolicy(on=(SoftTimeLimit,), max_attempts=3, backoff=_SOON))
    async def named() -> None:
        attempts["named"] += 1
        await asyncio.sleep(600)

    async with bench.working(app, {QUEUE: 1}):
        for task in (any_error, named):
            with pytest.raises(TaskFailed, match="SoftTimeLimit"):
                await task.call()
    assert attempts == {"any": 1, "named": 3}


@behaviour
async def test_a_thread_sees_its_soft_limit_and_nothing_is_raised_in_it(bench: Bench) -> None:
    """An exception at any instruction would break whatever it interrupts."""
    app = bench.app()

    @app.task(pass_context=True, soft_time_limit=0.1)
    def work(ctx: TaskContext) -> str:
        never = threading.Event()
        while not ctx.soft_limit_reached:
            never.wait(0.005)
        return "what there was"

    async with bench.working(app, {QUEUE: 1}):
        assert await work.call() == "what there was"


@behaviour
async def test_a_send_has_limits_of_its_own(bench: Bench) -> None:
    """They travel with the message, and win over those of the task."""
    app = bench.app()

    @app.task(time_limit=600)
    async def work() -> str:
        try:
            await asyncio.sleep(600)
        except SoftTimeLimit:
            return "soft"
        return "all"

    async with bench.working(app, {QUEUE: 1}):
        with pytest.raises(TaskFailed, match=r"longer than its time limit of 0.1 s"):
            await work.options(time_limit=0.1).call()
        assert await work.options(time_limit=timedelta(seconds=20), soft_time_limit=0.1).call() == "soft"


@behaviour
async def test_a_malformed_limit_makes_a_malformed_message(bench: Bench) -> None:
    """It is rejected, with a reason that its sender can act on."""
    app = bench.app()

    @app.task
    async def work() -> None: ...

    async with bench.working(app, {QUEUE: 1}):
        for header in (TIME_LIMIT_MS, SOFT_LIMIT_MS, DEADLINE_AT):
            for value in ("soon", 0, -5, True, 2**62):
                signature = work.s()
                object.__setattr__(signature.sending, "headers", {header: value})
                try:
                    with pytest.raises(TaskRejected, match=header):
                        await app.call(signature)
                finally:
                    object.__setattr__(signature.sending, "headers", {})


@behaviour
async def test_a_deadline_stops_an_attempt_and_is_inherited_by_what_it_sends(bench: Bench) -> None:
    """Unless the send says otherwise; a task without one passes none on."""
    app = bench.app()
    seen: dict[str, object] = {}

    @app.task
    async def child(name: str) -> None:
        context = current_context()
        seen[name] = context.headers.get(DEADLINE_AT)

    @app.task
    async def parent(name: str) -> None:
        seen[name] = current_context().headers.get(DEADLINE_AT)
        for options, suffix in (({}, "child"), ({"deadline": None}, "free"), ({"deadline": 1000}, "longer")):
            handle = await child.options(**options).send(f"{name} {suffix}")
            await handle.result(WAIT_S)

    @app.task(time_limit=600)
    async def long() -> None:
        await asyncio.sleep(600)

    async with bench.working(app, {QUEUE: 3}):
        await parent.call("none")
        assert (seen["none"], seen["none child"]) == (None, None)
        moment = datetime.now(UTC) + timedelta(seconds=100)
        await parent.options(deadline=moment).call("some")
        deadline_ms = int(moment.timestamp() * 1000)
        assert seen["some"] == seen["some child"] == seen["some longer"] == deadline_ms
        assert seen["some free"] is None
        with pytest.raises(TaskFailed, match="at the deadline of its send"):
            await long.options(deadline=1).call()


@behaviour
async def test_nothing_begins_after_its_deadline(bench: Bench) -> None:
    """Neither a first attempt nor a retry."""
    app = bench.app()
    began = []

    @app.task(retry=RetryPolicy(backoff=Fixed(5), jitter=False))
    async def work(name: str) -> None:
        began.append(name)
        raise ConnectionError(name)

    async with bench.working(app, {QUEUE: 1}):
        with pytest.raises(TaskExpired):
            await work.options(deadline=datetime.now(UTC) - timedelta(seconds=1)).call("late")
        with pytest.raises(TaskExpired, match="ConnectionError: retried"):
            await work.options(deadline=3).call("retried")
    assert began == ["retried"]


@behaviour
async def test_no_more_attempts_of_a_task_run_at_once_than_its_max_concurrency(bench: Bench) -> None:
    """The slots work on other tasks meanwhile; all are run in the end, and no attempt is counted for the wait."""
    app = bench.app()
    now, most, attempts = 0, 0, set()

    @app.task(max_concurrency=2)
    async def narrow(n: int) -> int:
        nonlocal now, most
        now += 1
        most = max(most, now)
        attempts.add(current_context().attempt)
        await asyncio.sleep(0.05)
        now -= 1
        return n

    @app.task
    async def wide() -> str:
        return "through"

    async with bench.working(app, {QUEUE: 8}):
        handles = await app.send_many(narrow.s(n) for n in range(30))
        assert await wide.call() == "through"
        assert [await handle.result(WAIT_S) for handle in handles] == list(range(30))
    assert most == 2
    assert attempts == {1}


@behaviour
async def test_a_worker_runs_as_many_threads_as_it_was_told(bench: Bench) -> None:
    """However many slots it has."""
    app = bench.app(threads=2)
    go_on = threading.Event()

    @app.task
    def work() -> None:
        go_on.wait(WAIT_S)

    @app.task
    async def on_loop() -> str:
        return "through"

    try:
        async with bench.working(app, {QUEUE: 5}) as worker:
            handles = await app.send_many(work.s() for _ in range(4))
            await eventually(lambda: worker.stats().threads_busy == 2)
            assert await on_loop.call() == "through"
            assert worker.stats().threads_busy == 2
            go_on.set()
            for handle in handles:
                await handle.result(WAIT_S)
    finally:
        go_on.set()


@behaviour
async def test_a_result_that_is_too_large_fails_its_task(bench: Bench) -> None:
    """With a message that names the limit."""
    app = bench.app(max_result_bytes=100)

    @app.task
    async def work(size: int) -> str:
        return "x" * size

    async with bench.working(app, {QUEUE: 1}):
        assert len(await work.call(98)) == 98
        with pytest.raises(TaskFailed, match="max_result_bytes is 100") as caught:
            await work.call(99)
        assert caught.value.type == "asyncq.errors.ResultTooLarge"


@behaviour
async def test_too_many_abandoned_threads_end_the_worker_with_a_code_of_its_own(bench: Bench) -> None:
    """It drains first; whoever supervises it starts it again."""
    app = bench.app(max_abandoned_threads=2, drain_timeout_s=1)
    go_on = threading.Event()

    @app.task(time_limit=0.05)
    def stuck() -> None:
        go_on.wait(WAIT_S)

    try:
        async with app:
            worker = app.worker({QUEUE: 3})
            running = asyncio.create_task(worker.run())
            handles = await app.send_many(stuck.s() for _ in range(2))
            for handle in handles:
                with pytest.raises(TaskFailed, match="TimeLimitExceeded"):
                    await handle.result(WAIT_S)
            assert await asyncio.wait_for(running, WAIT_S) == 75
            assert worker.threads_abandoned == 2
    finally:
        go_on.set()
