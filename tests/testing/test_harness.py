"""A user's own app in a test: a worker that runs beside it, a broker in memory, and time that the test moves."""

import asyncio
import contextlib
import gc
import random
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from asyncq import (
    AsyncQ,
    Depends,
    Exponential,
    Fixed,
    Reject,
    ResultTimeout,
    Retry,
    RetryPolicy,
    Snooze,
    TaskFailed,
    TaskRejected,
    TimeLimitExceeded,
)
from asyncq.broker import QueueSpec
from asyncq.context import current_context
from asyncq.errors import (
    AlreadyOpen,
    AsyncQError,
    ConfigurationError,
    InvalidQueueName,
    LifespanFailed,
    NotOpen,
    QueueGone,
    ReplyLost,
    TaskCancelled,
    TopologyMismatch,
)
from asyncq.memory.broker import MemoryBroker
from asyncq.testing.clock import ManualClock
from asyncq.testing.harness import running
from support import eventually

HOUR = timedelta(hours=1)
HOURLY = RetryPolicy(max_attempts=4, backoff=Fixed(3600), jitter=False)
SOON_S = 30.0  # of real time: far less than any delay here, far more than a busy machine needs
END_S = 10.0  # of real time: less than the time limits and the drain timeout that a worker has otherwise


@pytest.fixture
def app():
    return AsyncQ("shop")


@pytest.fixture
def began():
    """When the test began, in real time."""
    return time.monotonic()


def took_s(began):
    return time.monotonic() - began


@contextlib.asynccontextmanager
async def failing(app):
    """As `running`, with a test in it that fails."""
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - what fails is the block of whoever uses this
        async with running(app) as harness:
            yield harness
            raise ZeroDivisionError


# --- results, errors


async def test_a_call_returns_what_the_task_returns(app):
    """Async tasks and threads, with the types that the task declares."""

    @app.task
    async def due(day: datetime, days: int = 1) -> datetime:
        return day + timedelta(days=days)

    @app.task
    def double(number: int) -> int:
        return 2 * number

    async with running(app) as harness:
        assert await due.call(datetime(2030, 1, 1, tzinfo=UTC)) == datetime(2030, 1, 2, tzinfo=UTC)
        assert await double.call(21) == 42
        assert [item.arguments for item in harness.sent] == [
            {"day": datetime(2030, 1, 1, tzinfo=UTC), "days": 1},
            {"number": 21},
        ]
        assert harness.clock.monotonic() == 0


async def test_wrong_arguments_fail_where_they_are_sent(app):
    """Nothing leaves the sender; what another program sends wrongly is a dead letter."""

    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    async with running(app) as harness:
        with pytest.raises(ValidationError, match="valid integer"):
            await add.call(1, "two")
        assert not harness.sent
        with pytest.raises(TypeError):
            await add.send(1)

        other = AsyncQ("other", broker=lambda settings: MemoryBroker(settings, harness.node))
        async with other:
            handle = await other.send("shop.add", {"a": 1, "b": "two"})
            await harness.run_until_idle()
            with pytest.raises(TaskRejected, match="b"):
                await handle.result(timeout=SOON_S)
        assert harness.node.count("shop.dead") == 1
        assert harness.sent.once(add).arguments == {"a": 1, "b": "two"}


async def test_a_task_that_fails_for_good_leaves_a_dead_letter(app):
    """With its error, and the caller gets that too."""

    @app.task
    async def charge(order: int) -> None:
        raise Reject(f"order {order} is paid already")

    async with running(app) as harness:
        with pytest.raises(TaskRejected, match="order 7 is paid already"):
            await charge.call(7)
        await harness.run_until_idle()
        (letter,) = [letter async for letter in app.dead_letters("shop").browse()]
        assert letter.message.type == "shop.charge"
        assert letter.record.failure.message == "order 7 is paid already"


async def test_progress_comes_with_the_result(app):
    """From async tasks and from threads."""

    @app.task
    async def walk(steps: int) -> str:
        for step in range(steps):
            await current_context().progress(step + 1, steps)
        return "there"

    @app.task
    def climb(steps: int) -> str:
        for step in range(steps):
            current_context().sync.progress(step + 1, steps)
        return "up"

    async with running(app):
        for task, end in ((walk, "there"), (climb, "up")):
            handle = await task.send(3)
            assert [update.done async for update in handle.updates()] == [1, 2, 3]
            assert await handle.result(timeout=SOON_S) == end


async def test_tasks_send_tasks(app):
    """From the loop and from a thread; what they send is known with its parent."""
    mails = []

    @app.task(queue="mail")
    async def send_mail(to: str) -> None:
        mails.append(to)

    @app.task
    async def order(to: str) -> None:
        await send_mail.send(to)

    @app.task
    def remind(to: str) -> str:
        current_context().sync.send(send_mail.s(to))
        return "reminded"

    async with running(app) as harness:
        parent = await order.send("ann")
        await harness.run_until_idle()
        assert harness.sent.once(send_mail, arguments={"to": "ann"}, queue="mail").parent_id == parent.id
        assert await remind.call("bob") == "reminded"
        await harness.run_until_idle()
        assert mails == ["ann", "bob"]
        assert [item.task for item in harness.sent] == [
            "shop.order",
            "shop.send_mail",
            "shop.remind",
            "shop.send_mail",
        ]


async def test_many_are_sent_at_once(app, began):
    """`send_many`, in one go through the same worker."""

    @app.task
    async def double(number: int) -> int:
        return 2 * number

    async with running(app, queues={"shop": 20}) as harness:
        handles = await app.send_many(double.s(number) for number in range(300))
        await harness.run_until_idle()
        assert [await handle.result(timeout=SOON_S) for handle in handles] == [2 * number for number in range(300)]
        assert len(harness.sent.of(double)) == 300
        assert harness.node.count("shop") == 0


async def test_only_the_queues_that_are_asked_for_are_worked_on(app):
    """The rest waits, and does not keep anybody from being idle."""

    @app.task(queue="mail")
    async def send_mail() -> None: ...

    @app.task(queue="reports")
    async def report() -> None: ...

    async with running(app, queues={"mail": 2}) as harness:
        await send_mail.send()
        await report.send()
        await report.send()
        await harness.run_until_idle()
        assert (harness.node.count("mail"), harness.node.count("reports")) == (0, 2)
        assert {"mail", "mail.dead", "reports", "reports.dead"} <= set(harness.node.queues)


# --- time


async def test_a_backoff_of_hours_passes_at_once(app, began):
    """Three failures, three hours of the app's time, no time of ours."""
    at = []

    @app.task(retry=HOURLY)
    async def charge(order: int) -> str:
        at.append((current_context().attempt, harness.clock.now()))
        if len(at) < 4:
            raise ConnectionError("the bank is away")
        return f"{order} is paid"

    async with running(app) as harness:
        start = harness.clock.now()
        handle = await charge.send(7)
        await harness.run_until_idle()
        assert await handle.result(timeout=SOON_S) == "7 is paid"
        assert at == [(1, start), (2, start + HOUR), (3, start + 2 * HOUR), (4, start + 3 * HOUR)]
        assert len(harness.sent) == 1
    assert took_s(began) < SOON_S


async def test_an_exponential_backoff_in_a_thread_passes_at_once(app, began):
    """`def` tasks are no different."""
    at = []

    @app.task(retry=RetryPolicy(max_attempts=3, backoff=Exponential(first=600, factor=6, max=7200), jitter=False))
    def charge() -> None:
        at.append(harness.clock.monotonic())
        raise ConnectionError("the bank is away")

    async with running(app) as harness:
        handle = await charge.send()
        await harness.run_until_idle()
        with pytest.raises(TaskFailed, match="the bank is away"):
            await handle.result(timeout=SOON_S)
    first, second, third = at
    assert (first, second) == (0, pytest.approx(600, rel=0.01))
    assert third - second == pytest.approx(3600, rel=0.01)
    assert took_s(began) < SOON_S


async def test_a_delay_and_an_eta_wait_for_the_clock(app):
    """Not a moment early: a second before, nothing has happened."""
    ran = []

    @app.task
    async def remind(what: str) -> None:
        ran.append(what)

    async with running(app) as harness:
        await remind.options(eta=harness.clock.now() + 2 * HOUR).send("eta")
        await remind.options(delay=HOUR).send("delay")
        assert harness.node.delayed == 2
        harness.sent.once(remind, arguments={"what": "eta"}, delay=2 * HOUR)
        harness.sent.once(remind, arguments={"what": "delay"}, delay=3600)

        await harness.clock.advance(HOUR - timedelta(seconds=1))
        assert ran == []
        await harness.clock.advance(1)
        assert ran == ["delay"]
        await harness.clock.advance(HOUR)
        assert ran == ["delay", "eta"]


async def test_advancing_runs_what_is_due_in_between_in_order_and_at_its_own_time(app):
    """Also what the first one has sent meanwhile."""
    ran = []

    @app.task
    async def tick(name: str, again_in: int = 0) -> None:
        ran.append((name, harness.clock.monotonic()))
        if again_in:
            await tick.options(delay=again_in).send(f"{name}'")

    async with running(app) as harness:
        await tick.options(delay=30).send("c")
        await tick.options(delay=10).send("a", 5)
        await tick.options(delay=20).send("b", 60)
        await harness.clock.advance(60)
        assert ran == [("a", 10), ("a'", 15), ("b", 20), ("c", 30)]
        assert harness.clock.monotonic() == 60
        assert harness.node.delayed == 1
        await harness.run_until_idle()
        assert ran[-1] == ("b'", 80)


async def test_a_call_through_a_backoff_needs_a_clock_that_jumps(app, began):
    """Without it, the error says so; this one is quick, the default waits 10 s."""

    @app.task(retry=HOURLY)
    async def charge() -> str:
        if current_context().attempt < 4:
            raise ConnectionError("the bank is away")
        return "paid"

    with pytest.raises(ResultTimeout) as caught:
        async with running(app):
            await charge.options(timeout=0.3).call()
    assert "clock of this test stands still" in caught.value.__notes__[0]
    assert "due in 3600 s (1 messages are delayed)" in caught.value.__notes__[0]
    assert "clock.jumping()" in caught.value.__notes__[0]

    async with running(app) as harness:
        with harness.clock.jumping():
            assert await charge.call() == "paid"
        assert harness.clock.monotonic() == 3 * 3600

        await charge.send()  # outside of the block, time stands still again
        await harness.settle()
        assert (harness.clock.monotonic(), harness.node.delayed) == (3 * 3600, 1)
    assert took_s(began) < SOON_S


async def test_jumping_begins_also_where_all_are_idle_already(app):
    """What was sent before the block is on its way in it."""
    ran = asyncio.Event()

    @app.task
    async def remind() -> None:
        ran.set()

    async with running(app) as harness:
        await remind.options(delay=HOUR).send()
        await harness.settle()
        with harness.clock.jumping():
            await asyncio.wait_for(ran.wait(), SOON_S)
        assert harness.clock.monotonic() == 3600


async def test_a_clock_can_start_on_a_certain_day(app):
    """Tasks see it in their deadline."""

    @app.task(time_limit=60)
    async def deadline() -> datetime:
        return current_context().deadline

    start = datetime(2028, 2, 29, tzinfo=UTC)
    async with running(app, clock=ManualClock(start)):
        assert await deadline.call() == start + timedelta(minutes=1)


async def test_an_unknown_task_is_given_up_in_the_end(app, began):
    """A worker waits for minutes whether a rolling deploy brings it; here that is no time."""

    @app.task
    async def known() -> None: ...

    async with running(app) as harness:
        handle = await app.send("shop.unknown")
        await harness.run_until_idle()
        with pytest.raises(TaskRejected, match="unknown"):
            await handle.result(timeout=SOON_S)
        assert harness.clock.monotonic() >= 300
    assert took_s(began) < SOON_S


# --- tasks that wait for tasks


@pytest.fixture
def chain(app):
    """A task that waits for one that waits for one that succeeds after two hours of backoff."""

    @app.task(retry=HOURLY)
    async def inner() -> int:
        if current_context().attempt < 3:
            raise ConnectionError("away")
        return 1

    @app.task(time_limit=24 * 3600)
    def middle() -> int:
        return 1 + current_context().sync.call(inner.s())

    @app.task(time_limit=24 * 3600)
    async def outer() -> int:
        values = await asyncio.gather(middle.call(), inner.call())
        return 1 + sum(values)

    return outer


async def test_idle_are_tasks_that_wait_for_a_task_in_its_backoff(app, chain, began):
    """All three are running, and only the clock can move them; also where one waits in a thread."""
    async with running(app) as harness:
        handle = await chain.send()
        await harness.settle()
        assert harness.node.busy == 2
        assert harness.node.delayed == 2
        await harness.run_until_idle()
        assert await handle.result(timeout=SOON_S) == 4
        assert harness.clock.monotonic() == 2 * 3600
    assert took_s(began) < SOON_S


async def test_a_call_of_such_tasks_jumps_as_well(app, chain, began):
    """The same within `jumping()`."""
    async with running(app) as harness:
        with harness.clock.jumping():
            assert await chain.call() == 4
    assert took_s(began) < SOON_S


async def test_a_task_that_follows_the_progress_of_a_delayed_one_is_idle(app):
    """`updates()` is a wait for replies, too."""

    @app.task
    async def slow() -> None:
        await current_context().progress(1)

    @app.task(time_limit=24 * 3600)
    async def follower() -> list[float]:
        handle = await slow.options(delay=HOUR).send()
        return [update.done async for update in handle.updates()]

    async with running(app) as harness:
        handle = await follower.send()
        await harness.run_until_idle()
        assert await handle.result(timeout=SOON_S) == [1]


async def test_a_task_that_waits_for_what_nobody_works_on_ends_at_its_time_limit(app, began):
    """As it would in production."""

    @app.task(queue="elsewhere")
    async def elsewhere() -> None: ...

    @app.task(time_limit=60)
    async def asks() -> None:
        await elsewhere.call()

    async with running(app, queues={"shop": 1}) as harness:
        handle = await asks.send()
        await harness.run_until_idle()
        with pytest.raises(TaskFailed, match="TimeLimitExceeded"):
            await handle.result(timeout=SOON_S)
        assert harness.clock.monotonic() == 60
    assert took_s(began) < SOON_S


async def test_tasks_that_wait_for_one_another_in_too_few_slots_show_their_deadlock(app, began):
    """The one slot waits for a task that waits for a slot: in production until the time limit, here at once."""

    @app.task
    async def inner() -> int:
        return 1

    @app.task(time_limit=60)
    async def outer() -> int:
        return await inner.call()

    async with running(app, queues={"shop": 1}) as harness:
        handle = await outer.send()
        await harness.run_until_idle()
        with pytest.raises(TaskFailed, match="TimeLimitExceeded"):
            await handle.result(timeout=SOON_S)
        assert harness.clock.monotonic() == 60
        assert harness.node.count("shop") == 0
    assert took_s(began) < SOON_S


async def test_more_tasks_hang_than_there_are_slots(app, began):
    """The rest hangs one after the other."""

    @app.task(time_limit=60)
    async def report() -> None: ...

    async with running(app, queues={"shop": 2}) as harness:
        harness.faults.hang(report, times=5)
        await app.send_many(report.s() for _ in range(6))
        await harness.settle()
        assert len(harness.faults.hanging) == 2
        await harness.run_until_idle()
        assert harness.clock.monotonic() == 180
        assert harness.node.count("shop.dead") == 5
    assert took_s(began) < SOON_S


async def test_a_task_that_only_holds_a_handle_is_at_work(app):
    """It waits for something real, so no time passes meanwhile, although what it has sent waits for its time."""
    go_on = asyncio.Event()
    seen = []

    @app.task
    async def later() -> None: ...

    @app.task
    async def works() -> None:
        handle = await later.options(delay=HOUR).send()
        await go_on.wait()
        seen.append((harness.clock.monotonic(), handle.id))

    async with running(app) as harness:
        await works.send()
        idle = asyncio.create_task(harness.run_until_idle())
        done, _ = await asyncio.wait({idle}, timeout=0.1)
        assert not done
        go_on.set()
        await idle
        assert [at for at, _ in seen] == [0]
        assert harness.clock.monotonic() == 3600


@pytest.mark.parametrize("run", range(3))
async def test_any_tree_of_calls_comes_to_its_end(app, run):
    """Async tasks and threads that call one another, by all ways there are, with delays and failures on the way."""
    seed = time.time_ns()
    print(f"seed {seed}")
    chance = random.Random(seed)
    retry = RetryPolicy(max_attempts=3, backoff=Fixed(600), jitter=False)

    def grown(depth):
        """A node: by which task, how often it fails, in how many seconds it runs, and what it calls."""
        children = [grown(depth - 1) for _ in range(chance.choice([0, 1, 1, 2]))] if depth else []
        return [chance.choice(["on_loop", "in_thread"]), chance.randrange(3), chance.choice([0, 0, 900]), children]

    def sending(node):
        return tasks[node[0]].options(delay=node[2], timeout=20).s(node)

    def may_fail(node):
        if current_context().attempt <= node[1]:
            raise ConnectionError("away")

    @app.task(retry=retry, time_limit=10**6)
    async def on_loop(node: list[Any]) -> int:
        may_fail(node)
        return 1 + sum(await asyncio.gather(*(app.call(sending(child)) for child in node[3])))

    @app.task(retry=retry, time_limit=10**6)
    def in_thread(node: list[Any]) -> int:
        may_fail(node)
        ways = [app.sync.call, current_context().sync.call]
        return 1 + sum(ways[index % 2](sending(child)) for index, child in enumerate(node[3]))

    def size(node):
        return 1 + sum(map(size, node[3]))

    tasks = {"on_loop": on_loop, "in_thread": in_thread}
    async with running(app, queues={"shop": 200}) as harness:
        for _ in range(5):
            tree = grown(4)
            handle = await app.send(sending(tree))
            await harness.run_until_idle(timeout=20)
            assert await handle.result(timeout=0) == size(tree)
            assert harness.node.busy == harness.node.delayed == 0


# --- from other threads


async def test_app_sync_in_a_thread_reaches_the_same_worker(app):
    """With a loop and a client of its own, on the same broker in memory."""

    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    async with running(app) as harness:
        assert await asyncio.to_thread(app.sync.call, add.s(1, 2)) == 3
        handle = await asyncio.to_thread(app.sync.send, add.options(delay=HOUR).s(3, 4))
        await harness.run_until_idle()
        assert await asyncio.to_thread(handle.result, SOON_S) == 7
        assert len(harness.sent.of(add)) == 2
    assert not app.sync.is_open


async def test_a_task_that_calls_by_app_sync_is_idle_while_the_other_one_is_delayed(app, began):
    """Its wait is in a loop of another thread."""

    @app.task(retry=HOURLY)
    async def inner() -> int:
        if current_context().attempt < 3:
            raise ConnectionError("away")
        return 1

    @app.task(time_limit=24 * 3600)
    def outer() -> int:
        return app.sync.call(inner.s()) + app.sync.call(inner.s())

    async with running(app) as harness:
        for _ in range(5):
            before = harness.clock.monotonic()
            handle = await outer.send()
            await harness.run_until_idle()
            assert await handle.result(timeout=SOON_S) == 2
            assert harness.clock.monotonic() - before == 4 * 3600
    assert took_s(began) < SOON_S


async def test_a_thread_that_waits_when_the_test_ends_is_told(app):
    """`app.sync` is closed with the app."""
    ended = []

    @app.task
    async def later() -> None: ...

    def ask():
        with pytest.raises((NotOpen, ReplyLost), match="closed"):
            app.sync.call(later.options(delay=HOUR).s())
        ended.append("told")

    async with running(app) as harness:
        thread = threading.Thread(target=ask)
        thread.start()
        await eventually(lambda: harness.node.delayed == 1)
    await asyncio.to_thread(thread.join, SOON_S)
    assert ended == ["told"]


# --- hanging, time limits, what is never idle


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "thread"])
async def test_a_hanging_task_ends_at_its_time_limit(app, began, is_async):
    """Not before: a second earlier it hangs."""

    async def on_loop() -> None: ...

    def in_thread() -> None: ...

    report = app.task(time_limit=600, name="report")(on_loop if is_async else in_thread)

    async with running(app) as harness:
        harness.faults.hang(report)
        handle = await report.send()
        await harness.clock.advance(599)
        assert len(harness.faults.hanging) == 1
        assert harness.node.busy == 1
        await harness.clock.advance(1)
        assert harness.faults.hanging == []
        with pytest.raises(TaskFailed, match="ran longer than its time limit of 600 s"):
            await handle.result(timeout=SOON_S)
        assert harness.clock.monotonic() == 600  # and no grace was needed
        await report.call()
    assert took_s(began) < SOON_S


async def test_a_hanging_task_is_tried_again_after_its_limit(app):
    """Where its policy says so."""

    @app.task(time_limit=600, retry=RetryPolicy(on=(TimeLimitExceeded,), backoff=Fixed(60), jitter=False))
    async def report() -> int:
        return current_context().attempt

    async with running(app) as harness:
        harness.faults.hang(report, times=2)
        handle = await report.send()
        await harness.run_until_idle()
        assert await handle.result(timeout=SOON_S) == 3
        assert harness.clock.monotonic() == 2 * 660


@pytest.mark.parametrize("is_async", [True, False], ids=["async", "thread"])
@pytest.mark.parametrize("fails", [False, True], ids=["passes", "fails"])
async def test_a_hanging_task_does_not_hold_up_the_end_of_a_test(app, is_async, fails):
    """Whether the test passes or fails."""

    async def on_loop() -> None: ...

    def in_thread() -> None: ...

    report = app.task(name="report")(on_loop if is_async else in_thread)
    error = RuntimeError("the test's own")
    with pytest.raises(RuntimeError) if fails else contextlib.nullcontext() as caught:
        async with running(app) as harness:
            harness.faults.hang(report, times=3)
            await app.send_many(report.s() for _ in range(3))
            await eventually(lambda: len(harness.faults.hanging) == 3)
            began = time.monotonic()
            if fails:
                raise error
    assert took_s(began) < END_S
    assert not fails or caught.value is error
    await eventually(lambda: not harness.faults._hanging)


async def test_code_that_waits_for_something_real_is_cancelled_at_the_end(app):
    """And may clean up: its `finally` block is waited for, for a moment."""
    cleaned = []

    @app.task
    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)
            cleaned.append("up")

    async with running(app) as harness:
        await waits.send()
        await eventually(lambda: harness.node.busy == 1 and harness._running())
    assert cleaned == ["up"]


async def test_code_that_ignores_its_cancellation_does_not_hold_up_the_end(app):
    """Its grace passes on our clock."""
    release = asyncio.Event()
    ended = asyncio.Event()

    @app.task
    async def stubborn() -> None:
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()
        ended.set()

    async with running(app) as harness:
        await stubborn.send()
        await eventually(harness._running)
        began = time.monotonic()
    assert took_s(began) < END_S
    release.set()
    await asyncio.wait_for(ended.wait(), SOON_S)


async def test_a_thread_that_does_not_look_whether_it_is_cancelled_does_not_hold_up_the_end(app):
    """It goes on, and nobody hears of it."""
    release = threading.Event()
    started = threading.Event()
    ended = threading.Event()

    @app.task
    def stubborn() -> None:
        started.set()
        release.wait(30)
        ended.set()

    async with running(app):
        await stubborn.send()
        await eventually(started.is_set)
        began = time.monotonic()
    assert took_s(began) < END_S
    release.set()
    await eventually(ended.is_set)


async def test_code_that_ignores_its_time_limit_is_given_up_when_the_clock_is_moved(app):
    """By `move`, which waits for nobody: to `advance` the app is not idle."""
    release = asyncio.Event()

    @app.task(time_limit=60)
    async def stubborn() -> None:
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()

    async with running(app) as harness:
        handle = await stubborn.send()
        await eventually(harness._running)
        harness.clock.move(60)
        harness.clock.move(60)
        with pytest.raises(TaskFailed, match="TimeLimitExceeded"):
            await handle.result(timeout=SOON_S)
        release.set()


async def test_waiting_for_something_real_ends_by_an_error_that_says_what_runs(app):
    """And what to do about it."""

    @app.task
    async def fetch(url: str) -> None:
        await asyncio.Event().wait()

    async with running(app) as harness:
        handle = await fetch.send("https://example.org")
        with pytest.raises(AssertionError) as caught:
            await harness.run_until_idle(timeout=0.3)
        assert str(caught.value) == (
            "not idle within 0.3 real seconds, in which the clock was moved by 0 s\n"
            f"  running: shop.fetch (attempt 1, id {handle.id})\n"
            "  messages being worked on: 1; waiting for their time: 0\n"
            "  A task that waits for something real: replace that in the test, or give it longer, as by "
            "`run_until_idle(timeout=60)`. To see a task reach its time limit, use `faults.hang`."
        )
        harness.clock.settle = lambda: harness.settle(0.3)
        with pytest.raises(AssertionError, match=r"not idle within 0\.3 real seconds"):
            await harness.clock.advance(60)


async def test_coming_back_for_ever_ends_by_an_error_that_says_what_to_do(app):
    """Such an app is never idle, but it can be let run for a certain time."""
    ran = []

    @app.task
    async def poll() -> None:
        ran.append(harness.clock.monotonic())
        raise Snooze(60)

    async with running(app) as harness:
        await poll.send()
        await harness.clock.advance(150)
        assert ran == [0, 60, 120]
        with pytest.raises(AssertionError) as caught:
            await harness.run_until_idle(timeout=0.3)
        assert "Tasks that come back for ever, as by `Snooze`" in str(caught.value)
        assert "await clock.advance(3600)" in str(caught.value)


async def test_the_applications_own_timeout_error_is_not_taken_for_ours(app):
    """Only our own limit makes the error that speaks of being idle."""

    @app.task
    async def nothing() -> None: ...

    async with running(app) as harness:
        error = TimeoutError("from inside")

        def raising():
            raise error

        harness._raise_if_worker_ended = raising
        with pytest.raises(TimeoutError) as caught:
            await harness.run_until_idle()
        assert caught.value is error
        del harness._raise_if_worker_ended


# --- the app before and after


async def test_after_it_the_app_is_as_before(app):
    """Broker, clock, settings and functions; also where the test fails."""

    @app.task
    async def add(a: int) -> int:
        return a

    before = (app._broker_factory, app._clock, app.settings, add.function)
    async with failing(app) as harness:
        harness.faults.fail(add)
        assert app.settings != before[2]
        assert add.function is not before[3]
    assert (app._broker_factory, app._clock, app.settings, add.function) == before
    assert harness.clock.settle is None
    assert harness.node._listeners == harness.node._publish_listeners == harness.clock._jump_listeners == []
    with pytest.raises(NotOpen):
        await add.send(1)


async def test_each_has_its_own_messages_faults_and_time(app):
    """One after the other, on one app."""
    ran = []

    @app.task
    async def remind() -> None:
        ran.append(1)

    async with running(app) as first:
        first.faults.fail(remind, times=5)
        await remind.options(delay=HOUR).send()
        await remind.send()
        await first.clock.advance(60)
    async with running(app) as second:
        assert not second.sent
        assert second.node.delayed == 0
        assert second.clock.monotonic() == 0
        await remind.send()
        await second.run_until_idle()
    assert ran == [1]


async def test_a_clock_can_be_shared(app):
    """Time goes on from one to the next."""
    clock = ManualClock()

    @app.task
    async def nothing() -> None: ...

    for hours in (1, 2):
        async with running(app, clock=clock) as harness:
            await nothing.options(delay=HOUR).send()
            await harness.run_until_idle()
            assert clock.monotonic() == hours * 3600


async def test_an_app_that_is_open_is_refused(app):
    """It would go on with the other broker."""

    @app.task
    async def nothing() -> None: ...

    async with running(app):
        with pytest.raises(AlreadyOpen, match="its broker cannot be changed"):
            async with running(app):
                pytest.fail("unreachable")
        await nothing.call()


async def test_included_modules_are_imported(tmp_path, monkeypatch):
    """As a worker does it."""
    (tmp_path / "harness_included.py").write_text(
        "import harness_app\n\n@harness_app.app.task\nasync def included() -> str:\n    return 'here'\n"
    )
    (tmp_path / "harness_app.py").write_text(
        "from asyncq import AsyncQ\napp = AsyncQ('shop', include=['harness_included'])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import harness_app

    try:
        async with running(harness_app.app) as harness:
            harness.faults.fail("shop.included")
            with pytest.raises(TaskFailed, match=r"injected failure of shop\.included"):
                await harness_app.app.call("shop.included")
            assert await harness_app.app.call("shop.included") == "here"
    finally:
        for name in ("harness_app", "harness_included"):
            sys.modules.pop(name, None)


async def test_a_worker_that_cannot_start_says_why(app):
    """The error of the worker, and nothing stays open."""
    broken = AsyncQ("shop", include=["no_such_module_anywhere"])
    with pytest.raises(ConfigurationError, match="no_such_module_anywhere"):
        async with running(broken):
            pytest.fail("unreachable")
    with pytest.raises(InvalidQueueName):
        async with running(app, queues={"a\nb": 1}):
            pytest.fail("unreachable")

    @app.task
    async def nothing() -> None: ...

    async with running(app):
        await nothing.call()
    assert [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("asyncq")] == []


async def test_a_worker_that_ends_early_fails_the_test_with_its_error(app):
    """The harness is not idle then, it is broken."""

    @app.task
    async def nothing() -> None: ...

    async def use(then):
        async with running(app) as harness:
            harness._worker._fatal = TopologyMismatch("the broker will not have us")
            harness._worker.stop()
            await then(harness)

    async def fail(harness):
        await eventually(harness._working.done)
        raise ZeroDivisionError

    with pytest.raises(TopologyMismatch):
        await use(lambda harness: harness.run_until_idle())
    with pytest.raises(TopologyMismatch):
        await use(lambda harness: eventually(harness._working.done))
    with pytest.raises(ZeroDivisionError) as caught:
        await use(fail)
    assert caught.value.__notes__ == [
        "The worker under test had ended before: TopologyMismatch: the broker will not have us"
    ]


async def test_a_lost_connection_while_a_task_hangs_is_survived(app):
    """The attempt gets its lease back; it counts once."""

    @app.task(time_limit=600)
    async def report() -> str:
        return "done"

    async with running(app) as harness:
        harness.faults.hang(report)
        handle = await report.send()
        await harness.clock.advance(10)
        app.broker.lose_connection()
        await harness.run_until_idle()
        with pytest.raises(TaskFailed, match="TimeLimitExceeded"):
            await handle.result(timeout=SOON_S)
        assert harness.clock.monotonic() == 600


async def test_nothing_is_left_behind(app):
    """No asyncio task, no thread of ours, no timer, after a test with all kinds of things going on."""

    @app.task(retry=HOURLY)
    async def fails() -> None:
        raise Retry

    @app.task
    def thread() -> None: ...

    threads = set(threading.enumerate())
    async with running(app) as harness:
        harness.faults.hang(thread, times=2)
        for task in (thread, thread, fails):
            await task.send()
        await asyncio.to_thread(app.sync.send, thread.s())
        await eventually(lambda: len(harness.faults.hanging) == 2)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    await eventually(
        lambda: not [item for item in set(threading.enumerate()) - threads if item.name.startswith("asyncq")]
    )
    gc.collect()


async def test_a_thousand_tasks_take_a_moment(app, began):
    """In memory, with a harness that watches."""

    @app.task
    async def double(number: int) -> int:
        return 2 * number

    async with running(app) as harness:
        await app.send_many(double.options(reply=False).s(number) for number in range(1000))
        await harness.run_until_idle()
        print(f"1,000 tasks in {took_s(began):.2f} s")
    assert took_s(began) < 2 * SOON_S


async def test_of_two_runs_of_one_task_id_only_the_one_that_hangs_is_not_waited_for(app):
    """Whoever tests that a task may come twice sends it twice."""
    done = []

    @app.task
    async def work(number: int) -> None:
        await asyncio.sleep(0.05)
        done.append(number)

    async with running(app) as harness:
        harness.faults.hang(work)
        await work.options(task_id="twice").send(1)
        await work.options(task_id="twice").send(2)
        await harness.settle()
        assert done == [2]


async def test_a_message_whose_consumer_comes_back_is_waited_for(app):
    """Its queue was deleted, and stands again before the worker has noticed."""

    @app.task
    async def work() -> None: ...

    async with running(app) as harness:
        harness.node.delete_queue("shop")
        await app.broker.ensure([QueueSpec("shop", app.settings.delivery_limit)])
        await work.send()
        await harness.run_until_idle()
        assert harness.node.count("shop") == 0


async def test_a_callback_of_the_clock_that_raises_is_told_with_the_tests_own_error(app):
    """Else a test that jumps would only see that nothing comes."""

    @app.task
    async def work() -> None: ...

    def broken() -> None:
        raise ZeroDivisionError

    with pytest.raises(ResultTimeout) as caught:  # noqa: PT012 - it is what the block is left with
        async with running(app) as harness:
            harness.clock.call_later(5, broken)
            with harness.clock.jumping():
                await work.options(delay=10, timeout=0.1).call()
    assert "ZeroDivisionError" in "".join(caught.value.__notes__)


async def test_a_queue_that_does_not_exist_has_no_count(app):
    """A misspelt name would make a check hold always."""
    async with running(app) as harness:
        with pytest.raises(QueueGone, match=r"mial\.dead.*shop"):
            harness.node.count("mial.dead")


async def test_timeouts_are_seconds_or_a_timedelta(app):
    """As everywhere."""
    async with running(app) as harness:
        await harness.run_until_idle(timeout=timedelta(seconds=5))
        with pytest.raises(AsyncQError, match="timeout="):
            await harness.settle(timeout=-1)


# --- cancelling and rates


async def test_a_delayed_task_and_a_hanging_one_are_cancelled(app):
    """By the same calls as with RabbitMQ; the delayed one ends when its time has come."""
    ran = []

    @app.task
    async def work(key: str) -> None:
        ran.append(key)

    @app.task
    async def stuck() -> None: ...

    async with running(app) as harness:
        harness.faults.hang(stuck)
        delayed, hanging = await work.options(delay=HOUR).send("never"), await stuck.send()
        await harness.settle()
        await delayed.cancel()
        await hanging.cancel()
        await harness.settle()
        with pytest.raises(TaskCancelled):
            await hanging.result(timeout=SOON_S)
        await harness.run_until_idle()
        with pytest.raises(TaskCancelled):
            await delayed.result(timeout=SOON_S)
        await app.undo_cancel(delayed.id)
        await work.options(task_id=delayed.id, delay=HOUR).send("again")
        await harness.run_until_idle()
    assert ran == ["again"]


async def test_a_rate_goes_by_the_clock_of_the_test(app, began):
    """A hundred a minute take their time, of which none passes."""
    moments = []

    @app.task(rate="100/m")
    async def work() -> None:
        moments.append(harness.clock.monotonic())

    async with running(app) as harness:
        await app.send_many(work.s() for _ in range(100))
        await harness.run_until_idle()
    assert max(moments) - min(moments) == pytest.approx(0.6 * 99, abs=0.02)
    assert time.monotonic() - began < SOON_S


async def test_a_test_gives_resources_of_its_own_or_has_those_of_the_app(app):
    """And lets something else stand in for a dependency; afterwards the app is as it was."""
    opened = []

    @app.lifespan
    async def lifespan(_):
        opened.append("real")
        yield "real"
        opened.append("closed")

    async def session():
        yield f"session of {current_context().resources}"

    @app.task
    async def work(session: str = Depends(session)) -> str:
        return session

    async with running(app):
        assert await work.call() == "session of real"
    assert opened == ["real", "closed"]
    async with running(app, resources="fake"):
        assert await work.call() == "session of fake"
        app.dependency_overrides[session] = lambda: "no session"
        assert await work.call() == "no session"
        app.dependency_overrides.clear()
    async with running(app):
        assert await work.call() == "session of real"
    assert opened == ["real", "closed"] * 2


async def test_a_lifespan_that_fails_is_told_by_the_test(app):
    """Where its tasks would have run."""

    @app.lifespan
    async def lifespan(_):
        raise ConnectionError("no database")
        yield

    @app.task
    async def work() -> None: ...

    with pytest.raises(LifespanFailed, match="no database"):
        async with running(app):
            raise AssertionError("must not begin")


async def test_injected_faults_befall_the_code_inside_of_middleware_and_dependencies(app, began):
    """So these see them, and are closed, at the time limit too."""
    said = []

    @app.middleware
    async def told(info, call_next):
        outcome = await call_next()
        said.append(type(outcome).__name__)
        return outcome

    async def session():
        try:
            yield "session"
        finally:
            said.append("closed")

    @app.task(time_limit=HOUR, retry=RetryPolicy(on=ConnectionError, backoff=Fixed(3600), jitter=False))
    async def work(session: str = Depends(session)) -> str:
        return session

    async with running(app) as harness:
        harness.faults.fail(work, error=ConnectionError())
        handle = await work.send()
        await harness.run_until_idle()
        assert await handle.result(timeout=SOON_S) == "session"
        harness.faults.hang(work)
        handle = await work.send()
        await harness.run_until_idle()
        with pytest.raises(TaskFailed, match="time limit"):
            await handle.result(timeout=SOON_S)
    assert said == ["closed", "RetryLater", "closed", "Succeeded", "closed", "Failed"]
    assert time.monotonic() - began < SOON_S
