"""Blocking calls: from scripts, threads, forks, and `def` tasks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from asyncq import AsyncQ, TaskContext
from asyncq.errors import AsyncQError, BlockingCall, BrokerUnavailable, PublishError, ResultTimeout
from proxy import proxy_of
from support import eventually, working


def make_app(url: str, **settings) -> AsyncQ:
    app = AsyncQ("shop", broker=url, **settings)

    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    @app.task(pass_context=True)
    def nested(ctx: TaskContext, a: int) -> int:
        ctx.sync.progress(1, 2, label="HALF")
        return ctx.sync.call(add.s(a, 1)) + ctx.sync.send(add.s(a, 2)).result(timeout=10)

    @app.task
    async def blocking(a: int) -> int:
        return app.sync.call(add.s(a, 1))

    return app


async def test_threads_send_call_and_wait_beside_an_entered_app(broker_url):
    """Many threads at once, one client."""
    async with working(make_app(broker_url)) as app:
        add = app.tasks["shop.add"]

        def work(number: int) -> int:
            handle = app.sync.send(add.s(number, 1))
            return app.sync.result(handle, timeout=10) + app.sync.call(add.s(number, 2))

        with ThreadPoolExecutor(20) as pool:
            futures = [asyncio.wrap_future(pool.submit(work, n)) for n in range(100)]
            assert await asyncio.gather(*futures) == [2 * n + 3 for n in range(100)]
        handles = await asyncio.to_thread(app.sync.send_many, [add.s(n, 0) for n in range(50)])
        assert [await asyncio.to_thread(handle.result, 10) for handle in handles] == list(range(50))


async def test_a_thread_asks_how_far_the_task_of_another_process_is(broker_url, tmp_path):
    """By its id alone, with the type of its task or without."""
    results = f"sqlite:///{tmp_path}/results.db"
    async with working(make_app(broker_url, results=results)) as app:
        handle = await app.tasks["shop.add"].send(1, 2)
        other = make_app(broker_url, results=results)

        def ask() -> tuple[int, int, str]:
            with contextlib.closing(other.sync):
                typed = other.sync.handle(handle.id, other.tasks["shop.add"])
                return typed.result(timeout=10), other.sync.handle(handle.id).result(timeout=10), typed.status().state

        assert await asyncio.to_thread(ask) == (3, 3, "succeeded")


async def test_a_def_task_reports_progress_and_calls_others_through_its_context(broker_url):
    """On the worker's own loop and connections."""
    async with working(make_app(broker_url)) as app:
        handle = await app.tasks["shop.nested"].send(10)
        assert [update.label async for update in handle.updates()] == ["HALF"]
        assert await handle.result(timeout=10) == 11 + 12


async def test_on_a_loops_own_thread_a_blocking_call_raises_and_names_the_async_one(broker_url):
    """It would wait for itself for ever."""
    async with working(make_app(broker_url)) as app:
        with pytest.raises(BlockingCall, match=r"await task\.send"):
            app.sync.send(app.tasks["shop.add"].s(1, 2))
        with pytest.raises(BlockingCall):
            app.sync.call(app.tasks["shop.add"].s(1, 2))
        handle = await app.tasks["shop.blocking"].send(1)
        with pytest.raises(Exception, match="BlockingCall"):
            await handle.result(timeout=10)


def test_without_a_loop_errors_are_the_same_as_with_one(broker_url):
    """An absent broker, a result that does not come."""
    absent = make_app("amqp://127.0.0.1:1/", connect_timeout_s=0.5)
    with pytest.raises(BrokerUnavailable):
        absent.sync.send(absent.tasks["shop.add"].s(1, 2))
    app = make_app(broker_url)
    from asyncq.broker import QueueSpec

    async def declare() -> None:
        async with app:
            await app.broker.ensure([QueueSpec("shop")])

    asyncio.run(declare())
    handle = app.sync.send(app.tasks["shop.add"].s(1, 2))
    with pytest.raises(ResultTimeout):
        handle.result(timeout=0.1)
    app.sync.close()


async def test_after_a_fork_the_child_makes_connections_of_its_own(broker_url):
    """Also when the parent had used app.sync before: threads do not survive a fork."""
    async with working(make_app(broker_url)) as app:
        add = app.tasks["shop.add"]
        assert await asyncio.to_thread(app.sync.call, add.s(1, 1)) == 2

        def fork_and_call() -> int:
            pid = os.fork()
            if pid == 0:
                try:
                    os._exit(app.sync.call(add.s(20, 22)))
                except BaseException:  # noqa: BLE001 - a forked child must not run the rest of the tests
                    os._exit(1)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

        answers = [await asyncio.to_thread(fork_and_call) for _ in range(3)]
        assert answers == [42, 42, 42]
        assert await asyncio.to_thread(app.sync.call, add.s(2, 2)) == 4


SCRIPT = """
import sys
from asyncq import AsyncQ
app = AsyncQ("shop", broker=sys.argv[1])
@app.task
async def add(a: int, b: int) -> int:
    return a + b
print(app.sync.call(add.s(1, 2)))
"""


async def test_a_script_that_used_app_sync_ends_by_itself_and_quietly(broker_url, tmp_path):
    """No hanging thread, no complaint at exit."""
    async with working(make_app(broker_url)):
        script = tmp_path / "script.py"
        script.write_text(SCRIPT)
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(script), broker_url, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        async with asyncio.timeout(30):
            out, err = await process.communicate()
    assert (process.returncode, out, err) == (0, b"3\n", b"")


async def test_close_ends_the_thread_and_the_next_call_connects_again(broker_url):
    """Usable in tests and in servers that reload."""
    async with working(make_app(broker_url)) as app:
        add = app.tasks["shop.add"]
        assert await asyncio.to_thread(app.sync.call, add.s(1, 1)) == 2
        await asyncio.to_thread(app.sync.close)
        assert not [thread for thread in threading.enumerate() if thread.name == "asyncq app.sync"]
        assert await asyncio.to_thread(app.sync.call, add.s(2, 1)) == 3


async def test_close_ends_calls_that_other_threads_wait_in(broker_url):
    """Each with an error of ours, whatever it was at; none waits for ever."""
    app = make_app(broker_url)
    add = app.tasks["shop.add"]

    def wait() -> BaseException | None:
        try:
            app.sync.call(add.s(1, 2))
        except BaseException as error:  # noqa: BLE001 - looked at below
            return error
        return None

    await asyncio.to_thread(app.sync.send, add.s(0, 0))
    with ThreadPoolExecutor(20) as pool:
        waiting = [asyncio.wrap_future(pool.submit(wait)) for _ in range(10)]
        await asyncio.sleep(0.3)
        await asyncio.to_thread(app.sync.close)
        async with asyncio.timeout(10):
            errors = await asyncio.gather(*waiting)
    assert all(isinstance(error, AsyncQError) for error in errors), errors
    assert not [thread for thread in threading.enumerate() if thread.name == "asyncq app.sync"]


async def test_a_call_meets_a_broker_that_goes_away_and_comes_back(broker_url):
    """Not sent while it is away, sent again when it is back, by the same client."""
    async with proxy_of(broker_url) as proxy, working(make_app(broker_url)):
        client = make_app(proxy.url, publish_timeout_s=1)
        add = client.tasks["shop.add"]
        try:
            assert await asyncio.to_thread(client.sync.call, add.s(1, 2)) == 3
            await proxy.refuse()
            with pytest.raises(PublishError):
                await asyncio.to_thread(client.sync.call, add.s(1, 2))
            await proxy.listen()

            async def called() -> bool:
                try:
                    return await asyncio.to_thread(client.sync.call, add.s(3, 4)) == 7
                except PublishError:
                    return False

            assert await eventually(called, timeout=20)
        finally:
            await asyncio.to_thread(client.sync.close)


INTERRUPTED = """
import signal, sys, threading
from asyncq import AsyncQ
app = AsyncQ("shop", broker=sys.argv[1], connect_timeout_s=60)
@app.task
async def add(a: int, b: int) -> int: ...
signal.setitimer(signal.ITIMER_REAL, 1)
signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
try:
    app.sync.call(add.s(1, 2))
except KeyboardInterrupt:
    print("interrupted", [thread.name for thread in threading.enumerate()])
"""


async def test_an_interrupt_while_connecting_leaves_no_thread_and_no_complaint(broker_url, tmp_path):
    """Ctrl-C at a broker that does not answer."""
    async with proxy_of(broker_url) as proxy:
        proxy.freeze()
        script = tmp_path / "script.py"
        script.write_text(INTERRUPTED)
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(script), proxy.url, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        async with asyncio.timeout(30):
            out, err = await process.communicate()
    assert (process.returncode, out, err) == (0, b"interrupted ['MainThread']\n", b"")
