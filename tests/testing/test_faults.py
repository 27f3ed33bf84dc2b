"""Failure injection: tasks that fail or hang when a worker runs them."""

import asyncio
import inspect
import os
import threading

import pytest

from asyncq import (
    AsyncQ,
    Fixed,
    Reject,
    Retry,
    RetryPolicy,
    Snooze,
    TaskContext,
    TaskFailed,
    TaskRejected,
    current_context,
)
from asyncq.errors import NoContext, UnknownTask
from asyncq.testing import process_tasks
from asyncq.testing.harness import running

AGAIN = RetryPolicy(max_attempts=5, backoff=Fixed(60), jitter=False)
SOON_S = 30.0


@pytest.fixture
def app():
    return AsyncQ("shop")


@pytest.fixture(params=["async", "thread"])
def charge(app, request):
    """A task that returns the number of its attempt."""
    if request.param == "async":

        @app.task(retry=AGAIN)
        async def charge(order: int) -> int:
            """Take the money."""
            return current_context().attempt
    else:

        @app.task(retry=AGAIN)
        def charge(order: int) -> int:
            """Take the money."""
            return current_context().attempt

    return charge


async def test_a_task_fails_as_often_as_it_is_told(app, charge):
    """And then its own code runs."""
    async with running(app) as harness:
        harness.faults.fail(charge, times=2, error=ConnectionError("the bank is away"))
        handle = await charge.send(7)
        await harness.run_until_idle()
        assert await handle.result(timeout=SOON_S) == 3
        assert await charge.call(8) == 1


async def test_faults_come_in_the_order_in_which_they_were_asked_for(app, charge):
    """Several kinds after one another; signals are obeyed as if the task had raised them."""
    async with running(app) as harness:
        harness.faults.fail(charge, error=ConnectionError)
        harness.faults.fail("shop.charge", error=Snooze(3600))
        harness.faults.fail(charge, error=Retry())
        harness.faults.hang(charge)
        harness.faults.fail(charge, error=Reject("enough"))
        handle = await charge.send(7)
        await harness.run_until_idle()
        with pytest.raises(TaskFailed, match="TimeLimitExceeded"):
            await handle.result(timeout=SOON_S)
        assert harness.clock.monotonic() == pytest.approx(60 + 3600 + 60 + 25 * 60, rel=0.01)
        with pytest.raises(TaskRejected, match="enough"):
            await charge.call(8)


async def test_an_error_says_that_it_was_injected(app):
    """Where no other is given."""

    @app.task
    async def task() -> None: ...

    async with running(app) as harness:
        harness.faults.fail(task)
        with pytest.raises(TaskFailed, match=r"builtins\.RuntimeError: injected failure of shop\.task"):
            await task.call()


async def test_one_error_for_several_attempts_has_the_traceback_of_its_own_attempt(app, charge):
    """Not all of them, one behind the other."""
    async with running(app) as harness:
        error = ConnectionError("away")
        harness.faults.fail(charge, times=5, error=error)
        handle = await charge.send(7)
        await harness.run_until_idle()
        with pytest.raises(TaskFailed) as caught:
            await handle.result(timeout=SOON_S)
        assert caught.value.traceback.count("raise fault") == 1


async def test_only_what_a_worker_runs_has_faults(app, charge):
    """A test, or another task, calls the function as it is."""

    async def here() -> int:
        value = charge(1)
        return await value if inspect.isawaitable(value) else value

    outer = app.task(here, name="outer")

    async with running(app) as harness:
        harness.faults.fail(charge)
        assert await outer.call() == 1
        with pytest.raises(NoContext):  # its own code, which asks for a context, has run
            await here()
        handle = await charge.send(1)
        await harness.run_until_idle()
        assert await handle.result(timeout=SOON_S) == 2


async def test_a_task_with_faults_looks_as_before(app, charge):
    """Name, documentation, parameters, kind; and after the test it is the very same function."""
    function = charge.function
    async with running(app) as harness:
        harness.faults.fail(charge)
        harness.faults.hang(charge)
        assert charge.function is not function
        assert charge.function.__doc__ == "Take the money."
        assert charge.function.__name__ == "charge"
        assert inspect.signature(charge.function) == inspect.signature(function)
        assert inspect.iscoroutinefunction(charge.function) == inspect.iscoroutinefunction(function)
    assert charge.function is function


async def test_tasks_that_take_the_context_get_it(app):
    """Before the other arguments."""

    @app.task(pass_context=True, retry=AGAIN)
    async def charge(ctx: TaskContext, order: int) -> int:
        return ctx.attempt * order

    async with running(app) as harness:
        harness.faults.fail(charge)
        handle = await charge.send(7)
        await harness.run_until_idle()
        assert await handle.result(timeout=SOON_S) == 14


async def test_many_threads_take_one_fault_each(app):
    """No fault is taken twice, and none is lost."""
    threads = set()

    @app.task
    def task() -> None:
        threads.add(threading.get_ident())

    async with running(app, queues={"shop": 20}) as harness:
        harness.faults.fail(task, times=100)
        handles = await app.send_many(task.s() for _ in range(300))
        await harness.run_until_idle()
        results = await asyncio.gather(*(handle.result(timeout=SOON_S) for handle in handles), return_exceptions=True)
        assert sum(isinstance(result, TaskFailed) for result in results) == 100
        assert len(threads) > 1


async def test_who_hangs_is_known(app, charge):
    """With its context, while it hangs."""
    async with running(app) as harness:
        harness.faults.hang(charge, times=2)
        handles = [await charge.send(1), await charge.send(2)]
        await harness.settle()
        assert {context.task_id for context in harness.faults.hanging} == {handle.id for handle in handles}
        await harness.run_until_idle()
        assert harness.faults.hanging == []


async def test_a_task_that_is_not_there_is_named(app, charge):
    """With those that are."""
    async with running(app) as harness:
        for inject in (harness.faults.fail, harness.faults.hang):
            with pytest.raises(UnknownTask, match=r"no task 'shop\.chrage'\. Its tasks: shop\.charge\."):
                inject("shop.chrage")
            with pytest.raises(ValueError, match="a fault befalls 1 attempt or more"):
                inject(charge, times=0)


async def test_what_cannot_be_raised_is_refused_at_once(app, charge):
    """It would inject nothing, and the test would prove nothing."""
    async with running(app) as harness:
        for error in ("away", int, 7):
            with pytest.raises(TypeError, match="takes an exception"):
                harness.faults.fail(charge, error=error)


async def test_a_task_with_a_process_of_its_own_can_be_made_to_fail_and_to_hang():
    """Its faults are the test's; what runs without one runs in its process."""
    app = AsyncQ("shop")
    policy = RetryPolicy(backoff=Fixed(5), jitter=False)
    pid = app.task(run_in="process", retry=policy, time_limit=60)(process_tasks.pid)
    async with running(app) as harness:
        own = await pid.send()
        await harness.run_until_idle()
        assert await own.result(1) != os.getpid()
        harness.faults.fail(pid, error=ConnectionError("away"))
        harness.faults.hang(pid)
        handle = await pid.send()
        await harness.run_until_idle()
        with pytest.raises(TaskFailed, match="TimeLimitExceeded"):
            await handle.result(1)
    assert pid.runs_in == "process"
