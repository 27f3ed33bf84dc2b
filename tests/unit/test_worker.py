"""A worker from start to drain, on a broker in memory."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

import asyncq.worker.cancelling as cancelling_module
from asyncq.cancellations import Cancellation
from asyncq.errors import AccessRefused, InvalidOption, TopologyMismatch
from asyncq.journal import CaughtUp, Entry, Heard, Interrupted
from asyncq.settings import Settings
from asyncq.worker.worker import RunningTask, Worker
from support import eventually
from worker_kit import App, Kit, make_kit, make_message

_GRACE_S = 0.05


def make_worker(kit: Kit, queues: dict[str, int] | None = None, **settings: Any) -> Worker:
    app = App(kit.tasks, kit.broker, Settings(**{"drain_timeout_s": 5, **settings}))
    no_sender: Any = None
    return Worker(app, no_sender, {"work": 2} if queues is None else queues, kit.clock, grace_s=_GRACE_S)


@contextlib.asynccontextmanager
async def running(worker: Worker) -> AsyncIterator["asyncio.Task[int]"]:
    task = asyncio.create_task(worker.run())
    yield task
    worker.stop()
    with contextlib.suppress(AccessRefused):
        await asyncio.wait_for(task, 10)


async def test_a_worker_declares_its_queues_runs_what_comes_and_stops_when_asked() -> None:
    """Its exit code is 0."""
    kit = await make_kit()
    seen = []

    @kit.task()
    async def work(n: int) -> None:
        seen.append(n)

    worker = make_worker(kit, {"work": 1, "other": 1})
    async with running(worker) as task:
        kit.broker.put("work", make_message("work", {"n": 1}))
        kit.broker.put("other", make_message("work", {"n": 2}))
        await eventually(lambda: sorted(seen) == [1, 2])
        worker.stop()
        assert await asyncio.wait_for(task, 10) == 0
    assert kit.broker.declared == ["work", "other"]
    assert worker.stats().outcomes == {"Succeeded": 2}


async def test_a_worker_tells_what_it_runs() -> None:
    """By task, id, attempt and queue."""
    kit = await make_kit()
    go_on = asyncio.Event()

    @kit.task()
    async def work() -> None:
        await go_on.wait()

    worker = make_worker(kit)
    async with running(worker):
        kit.broker.put("work", make_message("work", task_id="t"))
        await eventually(lambda: len(worker.running()) == 1)
        (shown,) = worker.running()
        assert isinstance(shown, RunningTask)
        assert (shown.task, shown.task_id, shown.attempt, shown.queue) == ("work", "t", 1, "work")
        assert worker.stats().running == 1
        go_on.set()
        await eventually(lambda: worker.running() == [])


async def test_a_drain_timeout_of_zero_takes_nothing_new_and_hands_back_at_once() -> None:
    """The subscription is stopped all the same."""
    kit = await make_kit()
    started = []

    @kit.task()
    async def work(n: int) -> None:
        started.append(n)
        await asyncio.sleep(60)

    worker = make_worker(kit, {"work": 1}, drain_timeout_s=0)
    async with running(worker) as task:
        for n in range(3):
            kit.broker.put("work", make_message("work", {"n": n}, task_id=str(n)))
        await eventually(lambda: started == [0])
        worker.stop()
        await asyncio.wait_for(task, 10)
    assert started == [0]
    assert kit.node.count("work") == 3
    assert worker.stats().outcomes == {"Drained": 1}
    assert worker.threads_abandoned == 0


async def test_an_async_task_that_ignores_the_drain_is_counted_as_abandoned() -> None:
    """Its delivery is handed back; the process must not wait for it."""
    kit = await make_kit()
    release, started = asyncio.Event(), asyncio.Event()

    @kit.task()
    async def stubborn() -> None:
        started.set()
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()

    worker = make_worker(kit, drain_timeout_s=0)
    try:
        async with running(worker) as task:
            kit.broker.put("work", make_message("stubborn"))
            await started.wait()
            worker.stop()
            await eventually(lambda: kit.clock.next_due_s == _GRACE_S, message="it was told to stop")
            await kit.clock.advance(_GRACE_S)
            assert await asyncio.wait_for(task, 10) == 0
        assert worker.threads_abandoned == 1
        assert kit.node.count("work") == 1
    finally:
        release.set()
    await eventually(lambda: worker.threads_abandoned == 0)


async def test_a_stopping_worker_does_not_wait_for_threads_that_were_given_up() -> None:
    """Their deliveries are settled, and nobody can stop them."""
    kit = await make_kit()
    go_on = threading.Event()

    @kit.task(time_limit_s=30)
    def stuck() -> None:
        go_on.wait(30)

    worker = make_worker(kit, drain_timeout_s=60)
    try:
        async with running(worker) as task:
            kit.broker.put("work", make_message("stuck"))
            await eventually(lambda: worker.stats().threads_busy == 1)
            await kit.clock.advance(30 + _GRACE_S)
            await eventually(kit.letters)
            assert worker.stats().overdue == 1
            worker.stop()
            assert await asyncio.wait_for(task, 5) == 0
        assert worker.threads_abandoned == 1
    finally:
        go_on.set()
    await eventually(lambda: worker.threads_abandoned == 0)


async def test_a_worker_that_is_cancelled_cancels_what_it_runs() -> None:
    """Nothing is settled: the broker has it all back with the connection."""
    kit = await make_kit()
    started, ended = asyncio.Event(), []

    @kit.task()
    async def work() -> None:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(1)

    task = asyncio.create_task(make_worker(kit).run())
    kit.broker.put("work", make_message("work"))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: ended == [1])
    assert kit.node.count("work") == 1


async def test_a_deleted_queue_is_declared_and_consumed_again_while_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says what happened."""
    monkeypatch.setattr("asyncq.worker.consuming._FIRST_PAUSE_S", 0.01)
    kit = await make_kit()
    seen = []

    @kit.task()
    async def work(n: int) -> None:
        seen.append(n)

    worker = make_worker(kit, {"work": 1, "other": 1})
    async with running(worker):
        await eventually(lambda: kit.node.is_consumed("work") and kit.node.is_consumed("other"))
        kit.node.delete_queue("work")
        await eventually(lambda: kit.broker.declared == ["work", "other", "work"])
        kit.broker.put("other", make_message("work", {"n": 1}))
        kit.broker.put("work", make_message("work", {"n": 2}))
        await eventually(lambda: sorted(seen) == [1, 2])
    assert "the queue was deleted" in caplog.text


@pytest.mark.parametrize("error", [ConnectionError("odd"), TypeError("a bug")])
async def test_an_error_of_the_adapter_is_logged_and_the_queue_consumed_again(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug there must not end the worker."""
    monkeypatch.setattr("asyncq.worker.consuming._FIRST_PAUSE_S", 0.01)
    kit = await make_kit()
    seen = []

    @kit.task()
    async def work() -> None:
        seen.append(1)

    worker = make_worker(kit)
    async with running(worker):
        await eventually(lambda: kit.node.is_consumed("work"))
        first = kit.broker.subscriptions["work"]
        kit.broker.end("work", error)
        await eventually(lambda: kit.broker.subscriptions["work"] is not first)
        kit.broker.put("work", make_message("work"))
        await eventually(lambda: seen == [1])
    assert "consuming failed" in caplog.text


async def test_a_broker_that_refuses_us_ends_the_worker_with_its_error() -> None:
    """Trying again would not help; what runs on other queues may finish."""
    kit = await make_kit()
    worker = make_worker(kit, {"work": 1, "other": 1})
    async with running(worker) as task:
        await eventually(lambda: kit.node.is_consumed("work") and kit.node.is_consumed("other"))
        kit.broker.end("work", AccessRefused("no permission to read"))
        with pytest.raises(AccessRefused, match="no permission"):
            await asyncio.wait_for(task, 10)


async def test_a_queue_with_other_arguments_ends_the_worker_before_it_begins() -> None:
    """The error is the adapter's."""
    kit = await make_kit()

    async def ensure(queues: object) -> None:
        raise TopologyMismatch("x-max-length differs")

    kit.broker.ensure = ensure  # type: ignore[method-assign,assignment]
    with pytest.raises(TopologyMismatch):
        await make_worker(kit).run()


@pytest.mark.parametrize("queues", [{}, {"work": 0}])
async def test_a_worker_without_queues_or_slots_is_refused(queues: dict[str, int]) -> None:
    """It would do nothing for ever."""
    with pytest.raises(InvalidOption):
        make_worker(await make_kit(), queues)


async def test_a_worker_that_waits_for_the_broker_stops_at_once() -> None:
    """It has nothing that a drain timeout could be for."""
    kit = await make_kit()
    connecting = asyncio.Event()

    @contextlib.asynccontextmanager
    async def away(queue: str, *, slots: int) -> AsyncIterator[Any]:
        connecting.set()
        await asyncio.Event().wait()
        yield

    kit.broker.consume = away  # type: ignore[method-assign,assignment]
    worker = make_worker(kit, drain_timeout_s=60)
    async with running(worker) as task:
        await connecting.wait()
        worker.stop()
        assert await asyncio.wait_for(task, 2) == 0


async def test_a_queue_that_waits_for_the_broker_does_not_cut_short_what_another_one_runs() -> None:
    """The worker ends with the running task."""
    kit = await make_kit()
    go_on, done = asyncio.Event(), []

    @kit.task()
    async def work() -> None:
        await go_on.wait()
        done.append(1)

    consume = kit.broker.consume

    @contextlib.asynccontextmanager
    async def partly_away(queue: str, *, slots: int) -> AsyncIterator[Any]:
        if queue == "away":
            await asyncio.Event().wait()
        async with consume(queue, slots=slots) as subscription:
            yield subscription

    kit.broker.consume = partly_away  # type: ignore[method-assign,assignment]
    worker = make_worker(kit, {"away": 1, "work": 1}, drain_timeout_s=60)
    async with running(worker) as task:
        kit.broker.put("work", make_message("work"))
        await eventually(lambda: len(worker.running()) == 1)
        worker.stop()
        worker.stop()
        await asyncio.sleep(0.05)
        assert not task.done()
        go_on.set()
        assert await asyncio.wait_for(task, 2) == 0
    assert done == [1]
    assert worker.stats().outcomes == {"Succeeded": 1}


async def test_a_worker_that_is_stopped_before_it_runs_takes_nothing() -> None:
    """Its queues are declared, and that is all."""
    kit = await make_kit()

    @kit.task()
    async def work() -> None: ...

    kit.broker.put("work", make_message("work"))
    worker = make_worker(kit)
    worker.stop()
    assert await asyncio.wait_for(worker.run(), 2) == 0
    assert kit.node.count("work") == 1
    assert worker.stats().outcomes == {}


# --- cancellations


class SlowJournal:
    """A journal whose follower hears only what it is told, then the error, if there is one."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.heard: asyncio.Queue[Heard] = asyncio.Queue()

    @contextlib.asynccontextmanager
    async def follow(self) -> AsyncIterator[Any]:
        if self.errors:
            raise self.errors.pop(0)

        async def hear() -> AsyncIterator[Heard]:
            while True:
                yield await self.heard.get()

        yield hear()


def use(kit: Kit, journal: SlowJournal) -> None:
    def of(name: str, *, keep_s: float) -> Any:
        assert (name, keep_s) == ("cancellations", Settings().cancellations_kept_s)
        return journal

    kit.broker.journal = of  # type: ignore[method-assign]


async def test_a_worker_takes_nothing_before_it_knows_what_is_cancelled() -> None:
    """What it hears until then holds for what waits; later on for what runs."""
    kit = await make_kit()
    use(kit, journal := SlowJournal())
    seen = []

    @kit.task()
    async def work(n: int) -> None:
        seen.append(n)
        await asyncio.sleep(60)

    worker = make_worker(kit)
    for number in range(2):
        kit.broker.put("work", make_message("work", {"n": number}, task_id=f"task-{number}"))
    async with running(worker):
        journal.heard.put_nowait(Entry(Cancellation(("task-0",), kit.clock.now_ms()).to_json()))
        for _ in range(20):
            await asyncio.sleep(0)
        assert (seen, worker.stats().outcomes) == ([], {})
        journal.heard.put_nowait(CaughtUp())
        await eventually(lambda: seen == [1])
        assert worker.stats().outcomes == {"Cancelled": 1}
        journal.heard.put_nowait(Entry(Cancellation(("task-1",), kit.clock.now_ms()).to_json()))
        await eventually(lambda: worker.stats().outcomes == {"Cancelled": 2})


async def test_what_was_cancelled_and_taken_back_while_the_worker_was_cut_off_goes_on() -> None:
    """The last word counts, once all is known; not what is read again on the way to it."""
    kit = await make_kit()
    use(kit, journal := SlowJournal())
    seen = []

    @kit.task()
    async def work(n: int) -> None:
        seen.append(n)
        await asyncio.sleep(60)

    worker = make_worker(kit)
    now_ms = kit.clock.now_ms()
    async with running(worker):
        journal.heard.put_nowait(CaughtUp())
        for number in range(2):
            kit.broker.put("work", make_message("work", {"n": number}, task_id=f"task-{number}"))
        await eventually(lambda: len(seen) == 2)
        for heard in (
            Interrupted(),
            Entry(Cancellation(("task-0", "task-1"), now_ms).to_json()),
            Entry(Cancellation(("task-1",), now_ms, undone=True).to_json()),
            CaughtUp(),
        ):
            journal.heard.put_nowait(heard)
        await eventually(lambda: worker.stats().outcomes == {"Cancelled": 1})
        assert [item.task_id for item in worker.running()] == ["task-1"]


async def test_a_worker_that_is_stopped_before_it_knows_what_is_cancelled_ends() -> None:
    """It has taken nothing."""
    kit = await make_kit()
    use(kit, SlowJournal())
    worker = make_worker(kit)
    kit.broker.put("work", make_message("work"))
    async with running(worker) as task:
        await asyncio.sleep(0)
        worker.stop()
        assert await asyncio.wait_for(task, 5) == 0
    assert kit.broker.node.count("work") == 1


async def test_a_worker_that_may_not_read_what_is_cancelled_ends_with_that_error() -> None:
    """It would run what somebody has cancelled."""
    kit = await make_kit()
    use(kit, SlowJournal(AccessRefused("no permission")))
    with pytest.raises(AccessRefused, match="no permission"):
        await asyncio.wait_for(make_worker(kit).run(), 5)


async def test_a_bug_on_the_way_to_the_cancellations_is_logged_and_tried_again(caplog: Any, monkeypatch: Any) -> None:
    """The worker lives."""
    monkeypatch.setattr(cancelling_module, "_PAUSE_AFTER_BUG_S", 0.01)
    kit = await make_kit()
    use(kit, journal := SlowJournal(RuntimeError("a bug"), RuntimeError("a bug")))
    journal.heard.put_nowait(CaughtUp())

    @kit.task()
    async def work() -> None: ...

    worker = make_worker(kit)
    kit.broker.put("work", make_message("work"))
    async with running(worker):
        await eventually(lambda: worker.stats().outcomes == {"Succeeded": 1})
    assert caplog.text.count("cancellations cannot be read, trying again") == 2
