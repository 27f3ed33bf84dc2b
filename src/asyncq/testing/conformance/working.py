"""A worker's life on the broker: threads, several apps, lost queues and connections, and the drain."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from asyncq.context import TaskContext
from asyncq.errors import PublishUncertain, TaskFailed, Unroutable
from asyncq.results import ResultHandle
from asyncq.testing.conformance.bench import QUEUE, WAIT_S, Bench, behaviour, eventually


@behaviour
async def test_a_plain_function_runs_in_a_thread_and_can_send_call_and_report(bench: Bench) -> None:
    """By blocking calls of its context, on the worker's own connections."""
    app = bench.app()
    threads = []

    @app.task
    async def double(x: int) -> int:
        return 2 * x

    @app.task(pass_context=True)
    def work(ctx: TaskContext, x: int) -> int:
        threads.append(threading.current_thread())
        ctx.sync.progress(1, 2, label="HALF", note="x")
        return ctx.sync.call(double.s(x)) + ctx.sync.send(double.s(1)).result(WAIT_S)

    async with bench.working(app):
        handle = await work.send(4)
        async with asyncio.timeout(WAIT_S):
            updates = [(item.done, item.total, item.label, item.details) async for item in handle.updates()]
        assert updates == [(1, 2, "HALF", {"note": "x"})]
        assert await handle.result(WAIT_S) == 10
    assert threads[0] is not threading.main_thread()


@behaviour
async def test_no_task_can_end_the_worker(bench: Bench) -> None:
    """sys.exit, a cancellation of the task's own, Ctrl-C: the next task runs as ever."""
    app = bench.app()
    errors: dict[str, BaseException] = {
        "exit": SystemExit(3),
        "cancel": asyncio.CancelledError(),
        "interrupt": KeyboardInterrupt(),
    }

    @app.task
    async def on_loop(kind: str) -> str:
        if kind in errors:
            raise errors[kind]
        return kind

    @app.task
    def in_thread(kind: str) -> str:
        if kind in errors:
            raise errors[kind]
        return kind

    async with bench.working(app, {QUEUE: 1}):
        for task in (on_loop, in_thread):
            for kind, error in errors.items():
                with pytest.raises(TaskFailed) as caught:
                    await task.call(kind)
                assert caught.value.type.endswith(type(error).__name__)
            assert await task.call("fine") == "fine"


@behaviour
async def test_a_worker_runs_as_many_tasks_at_once_as_it_has_slots(bench: Bench) -> None:
    """For each queue."""
    app = bench.app()
    running = {QUEUE: 0, "other": 0}
    go_on = asyncio.Event()

    @app.task
    async def here() -> None:
        running[QUEUE] += 1
        await go_on.wait()

    @app.task(queue="other")
    async def there() -> None:
        running["other"] += 1
        await go_on.wait()

    async with bench.working(app, {QUEUE: 2, "other": 1}):
        handles = await app.send_many([*(here.s() for _ in range(4)), *(there.s() for _ in range(3))])
        await eventually(lambda: running == {QUEUE: 2, "other": 1})
        await asyncio.sleep(0.1)
        assert running == {QUEUE: 2, "other": 1}
        go_on.set()
        for handle in handles:
            await handle.result(WAIT_S)


@behaviour
async def test_a_thread_that_overruns_its_limit_keeps_its_slot_until_it_returns(bench: Bench) -> None:
    """The sender hears of the failure at once; the other slots go on."""
    app = bench.app()
    go_on = threading.Event()

    @app.task(time_limit=0.1)
    def stuck() -> None:
        go_on.wait(WAIT_S)

    @app.task
    async def quick(n: int) -> int:
        return n

    try:
        async with bench.working(app, {QUEUE: 2}) as worker:
            with pytest.raises(TaskFailed, match="TimeLimitExceeded"):
                await stuck.call()
            assert worker.stats().threads_busy == 1
            assert [await quick.call(n) for n in range(4)] == list(range(4))
            go_on.set()
            await eventually(lambda: worker.stats().threads_busy == 0)
            assert await asyncio.gather(*(quick.call(n) for n in range(4))) == list(range(4))
    finally:
        go_on.set()


@behaviour
async def test_two_apps_on_one_broker_have_their_own_queues_and_replies(bench: Bench) -> None:
    """And can send to each other by name."""
    shop, bank = bench.app("shop"), bench.app("bank")

    @shop.task(name="shop.who")
    async def who_shop() -> str:
        return "shop"

    @bank.task(name="bank.who")
    async def who_bank() -> str:
        return "bank"

    async with bench.working(shop), bench.working(bank):
        for app in (shop, bank):
            assert [await app.call("shop.who"), await app.call("bank.who")] == ["shop", "bank"]


@behaviour
async def test_two_workers_share_a_queue_and_each_task_runs_once(bench: Bench) -> None:
    """One of them drains in the middle; the other does the rest."""
    ran: list[tuple[str, int]] = []
    apps = {name: bench.app() for name in ("one", "two")}
    for name, app in apps.items():

        @app.task(name="shop.work")
        async def work(n: int, name: str = name) -> int:
            ran.append((name, n))
            await asyncio.sleep(0.001)
            return n

    async with bench.working(apps["one"], {QUEUE: 2}):
        async with bench.working(apps["two"], {QUEUE: 2}):
            handles: list[ResultHandle[Any]] = []

            async def both_have_run_some() -> bool:
                for _ in range(5):
                    handles.append(await apps["one"].send("shop.work", {"n": len(handles)}))
                return {name for name, _ in ran} == {"one", "two"}

            await eventually(both_have_run_some)
        assert [await handle.result(WAIT_S) for handle in handles] == list(range(len(handles)))
    assert sorted(n for _, n in ran) == list(range(len(handles)))


@behaviour
async def test_a_worker_declares_a_queue_again_that_was_deleted_under_it(bench: Bench) -> None:
    """The task that ran goes on, the other queue never stops, and new tasks are run."""
    app = bench.app()
    started, go_on, done = asyncio.Event(), asyncio.Event(), []

    @app.task
    async def long() -> None:
        started.set()
        await go_on.wait()
        done.append("long")

    @app.task
    async def quick(n: int) -> int:
        return n

    @app.task(queue="other")
    async def elsewhere(n: int) -> int:
        return n

    async with bench.working(app, {QUEUE: 2, "other": 1}):
        await long.send()
        await started.wait()
        await bench.delete_queue(QUEUE)
        assert await elsewhere.call(1) == 1

        async def answered() -> bool:
            try:
                return await quick.options(timeout=1).call(2) == 2
            except (Unroutable, TimeoutError):
                return False

        await eventually(answered)
        go_on.set()
        await eventually(lambda: done == ["long"])
        assert await quick.call(3) == 3


@behaviour
async def test_a_task_that_runs_while_the_connection_is_lost_runs_once(bench: Bench) -> None:
    """The delivery that comes again becomes the new lease of the attempt that still runs; its result is sent."""
    app = bench.app()
    runs, go_on = [], asyncio.Event()

    @app.task
    async def long(n: int) -> int:
        runs.append(n)
        await go_on.wait()
        return n

    @app.task
    async def quick() -> bool:
        return True

    async def consuming_again() -> bool:
        try:
            return await quick.options(timeout=5).call()
        except (PublishUncertain, TimeoutError):
            return False

    async with bench.working(app, {QUEUE: 4}) as worker:
        handles = [await long.send(n) for n in range(3)]
        await eventually(lambda: len(runs) == 3)
        await asyncio.sleep(1.2)  # attempts are watched from their first second on
        await bench.cut(app.broker)
        await eventually(consuming_again)  # what came back is handed out before what is new
        await asyncio.sleep(0.5)
        go_on.set()
        assert [await handle.result(WAIT_S) for handle in handles] == [0, 1, 2]
        await eventually(lambda: worker.stats().outcomes.get("Succeeded", 0) >= 4)
    assert sorted(runs) == [0, 1, 2]
    assert await bench.count(QUEUE) == 0


@behaviour
async def test_a_worker_that_stops_lets_running_tasks_finish_and_begins_no_new_ones(bench: Bench) -> None:
    """What was not started stays in the queue, for the next worker."""
    app = bench.app()
    started, go_on = [], asyncio.Event()

    @app.task
    async def long(n: int) -> int:
        started.append(n)
        await go_on.wait()
        return n

    async with app:
        async with bench.working(app, {QUEUE: 2}) as worker:
            handles = [await long.send(n) for n in range(5)]
            await eventually(lambda: len(started) == 2)
            worker.stop()
            await asyncio.sleep(0.1)
            go_on.set()
        assert len(started) == 2
        assert await bench.count(QUEUE) == 3
        async with bench.working(app, {QUEUE: 2}):
            assert [await handle.result(WAIT_S) for handle in handles] == list(range(5))


@behaviour
async def test_what_does_not_finish_within_the_drain_is_handed_back_and_not_counted(bench: Bench) -> None:
    """The same attempt runs elsewhere; neither our count nor the broker's has grown."""
    app = bench.app(drain_timeout_s=0.2)
    runs = []

    @app.task(pass_context=True)
    async def long(ctx: TaskContext) -> str:
        runs.append((ctx.attempt, ctx.message.headers.get("x-delivery-count", 0)))
        if len(runs) == 1:
            await asyncio.sleep(3600)
        return "done"

    async with app:
        async with bench.working(app, {QUEUE: 1}) as worker:
            handle = await long.send()
            await eventually(lambda: len(runs) == 1)
        assert worker.stats().outcomes == {"Drained": 1}
        async with bench.working(app, {QUEUE: 1}):
            assert await handle.result(WAIT_S) == "done"
    assert runs == [(1, 0), (1, 0)]
    assert await bench.count(QUEUE) == 0
