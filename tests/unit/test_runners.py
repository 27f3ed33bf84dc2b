"""Threads for `def` tasks: how many, for whom, and what becomes of them."""

import asyncio
import sys
import threading
from typing import Any

import pytest

from asyncq.outcome import Drained, Failed, Succeeded
from asyncq.worker.attempt import GRACE_S
from support import eventually
from worker_kit import Kit, make_kit


def gate(kit: Kit) -> tuple[threading.Event, list[int], Any]:
    """Declare a task whose threads wait for an event."""
    go_on, started = threading.Event(), []

    @kit.task()
    def wait(n: int) -> int:
        started.append(n)
        go_on.wait(10)
        return threading.get_ident()

    return go_on, started, wait


async def test_as_many_threads_run_as_there_are_places() -> None:
    """Who comes later waits, and its time limit has not begun."""
    kit = await make_kit(places=2, time_limit_s=5)
    go_on, started, _ = gate(kit)
    running = [asyncio.create_task(kit.execution.execute(kit.delivery("wait", {"n": n}))) for n in range(3)]
    await eventually(lambda: len(started) == 2)
    assert (kit.threads.busy, len(kit.attempts)) == (2, 2)
    go_on.set()
    executed = await asyncio.gather(*running)
    assert all(isinstance(item.outcome, Succeeded) for item in executed)
    assert sorted(started) == [0, 1, 2]
    assert kit.threads.busy == 0


async def test_threads_are_used_again() -> None:
    """One after the other needs one thread only."""
    kit = await make_kit(places=4)
    go_on, _, _ = gate(kit)
    go_on.set()
    seen = {(await kit.execution.execute(kit.delivery("wait", {"n": n}))).outcome for n in range(10)}
    assert len(seen) == 1


async def test_idle_threads_end_with_the_pool_and_are_daemons() -> None:
    """An abandoned one must not hold up the end of the process."""
    kit = await make_kit()
    before = set(threading.enumerate())
    go_on, _, _ = gate(kit)
    go_on.set()
    await kit.execution.execute(kit.delivery("wait", {"n": 1}))
    (thread,) = set(threading.enumerate()) - before
    assert thread.daemon
    assert thread.name.startswith("asyncq-task-")
    kit.threads.close()
    await eventually(lambda: not thread.is_alive())


async def test_who_waits_for_a_place_when_the_worker_stops_is_handed_back() -> None:
    """It was never started."""
    kit = await make_kit(places=1)
    go_on, started, _ = gate(kit)
    first = asyncio.create_task(kit.execution.execute(kit.delivery("wait", {"n": 1})))
    await eventually(lambda: started == [1])
    second = asyncio.create_task(kit.execution.execute(kit.delivery("wait", {"n": 2})))
    await asyncio.sleep(0.01)
    kit.threads.refuse()
    assert (await second).outcome == Drained()
    go_on.set()
    assert isinstance((await first).outcome, Succeeded)
    assert started == [1]


async def test_a_system_without_more_threads_is_a_failure_of_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its place is free again, and its retry policy decides."""
    kit = await make_kit(places=1)
    go_on, _, _ = gate(kit)
    go_on.set()

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        outcome = (await kit.execution.execute(kit.delivery("wait", {"n": 1}))).outcome
    assert isinstance(outcome, Failed)
    assert outcome.failure.message == "can't start new thread"
    assert isinstance((await kit.execution.execute(kit.delivery("wait", {"n": 1}))).outcome, Succeeded)


async def test_a_place_is_not_lost_when_the_one_who_waited_for_it_is_cancelled() -> None:
    """The next in the row gets it."""
    kit = await make_kit(places=1)
    assert await kit.threads.place() == "taken"
    waiting = [asyncio.create_task(kit.threads.place()) for _ in range(2)]
    await asyncio.sleep(0)
    kit.threads.give_back()
    waiting[0].cancel()
    assert await asyncio.wait_for(waiting[1], 5) == "taken"
    assert waiting[0].cancelled()


async def test_a_thread_that_outlives_the_loop_ends_quietly() -> None:
    """Nobody is there to hear its result; an exception in it would fail this test."""
    go_on, threads, pools = threading.Event(), [], []

    async def overrun() -> None:
        kit = await make_kit(time_limit_s=30)
        pools.append(kit.threads)

        @kit.task()
        def long() -> None:
            threads.append(threading.current_thread())
            go_on.wait(10)

        running = asyncio.create_task(kit.execution.execute(kit.delivery("long")))
        await eventually(lambda: threads)
        await kit.clock.advance(30 + GRACE_S)
        await running

    await asyncio.to_thread(asyncio.run, overrun())
    pools[0].close()
    go_on.set()
    await asyncio.to_thread(threads[0].join, 5)
    assert not threads[0].is_alive()


async def test_many_busy_threads_take_shorter_turns_and_the_interval_comes_back() -> None:
    """So that the event loop gets its own turns; a few change nothing."""
    usual_s = sys.getswitchinterval()
    kit = await make_kit(places=50)
    go_on, started, _ = gate(kit)
    few = [asyncio.create_task(kit.execution.execute(kit.delivery("wait", {"n": n}))) for n in range(5)]
    await eventually(lambda: len(started) == 5)
    assert sys.getswitchinterval() == usual_s
    many = [asyncio.create_task(kit.execution.execute(kit.delivery("wait", {"n": n}))) for n in range(45)]
    await eventually(lambda: len(started) == 50)
    assert sys.getswitchinterval() == pytest.approx(usual_s / 5)
    go_on.set()
    await asyncio.gather(*few, *many)
    assert sys.getswitchinterval() == usual_s
