"""Tasks in processes of their own: what they know and can do, how they end, and what becomes of their processes."""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path

import pytest

from asyncq.broker import DeadLetter
from asyncq.errors import ProcessDied, TaskCancelled, TaskDefinitionError, TaskFailed, TaskRejected
from asyncq.retry import Fixed, RetryPolicy
from asyncq.testing import process_tasks
from asyncq.testing.conformance.bench import QUEUE, WAIT_S, Bench, behaviour, dead_letter, eventually

_SOON = Fixed(0.05)


def _runs(pid: int) -> bool:
    """Tell whether a process runs; one that has ended and was not waited for does not."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat")
        return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def _pids_in(mark: Path) -> list[int]:
    return [int(pid) for pid in mark.read_text().split()]


@behaviour
async def test_a_task_in_a_process_knows_its_context(bench: Bench) -> None:
    """And it is another process, which lives on to run the next task."""
    app = bench.app()
    tell = app.task(run_in="process", pass_context=True, time_limit=30)(process_tasks.tell)
    square = app.task(run_in="process")(process_tasks.square)
    pid = app.task(run_in="process")(process_tasks.pid)
    async with bench.working(app, {QUEUE: 2}):
        handle = await tell.options(headers={"tenant": "a"}).send("hello")
        told = await handle.result(WAIT_S)
        process = told.pop("pid")
        assert told == {
            "task": "shop.tell",
            "task_id": handle.id,
            "attempt": 1,
            "queue": QUEUE,
            "tenant": "a",
            "deadline": True,
            "cancelled": False,
        }
        assert process != os.getpid()
        assert await square.call(7) == 49
        assert {await pid.call() for _ in range(5)} == {process}
    assert not _runs(process)


@behaviour
async def test_a_task_in_a_process_reports_calls_and_sends_by_way_of_its_worker(bench: Bench) -> None:
    """On the worker's own connections."""
    app = bench.app()
    work = app.task(run_in="process", pass_context=True)(process_tasks.ask_and_answer)
    parents = []

    @app.task
    async def double(x: int) -> int:
        from asyncq.context import current_context  # noqa: PLC0415 - beside its only use

        parents.append(current_context().headers.get("asyncq-parent-id"))
        await current_context().progress(x)
        return 2 * x

    async with bench.working(app, {QUEUE: 3}):
        handle = await work.send(4)
        async with asyncio.timeout(WAIT_S):
            updates = [(item.done, item.total, item.label, item.details) async for item in handle.updates()]
        assert updates == [(1, 3, "HALF", {"note": "x"})]
        assert await handle.result(WAIT_S) == [8, 16, 8, 0]
    assert parents == [handle.id] * 2


@behaviour
async def test_a_process_is_replaced_after_so_many_tasks(bench: Bench) -> None:
    """Against memory that leaks."""
    app = bench.app(process_max_tasks=2, task_processes=1)
    pid = app.task(run_in="process")(process_tasks.pid)
    async with bench.working(app, {QUEUE: 1}):
        pids = [await pid.call() for _ in range(6)]
    assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4] == pids[5]
    assert len(set(pids)) == 3


@behaviour
async def test_a_process_that_dies_fails_its_task_and_nothing_else(bench: Bench) -> None:
    """The error says how it died; a policy that names it tries again; the worker goes on with a new process."""
    app = bench.app()
    crash = app.task(run_in="process")(process_tasks.crash)
    policy = RetryPolicy(on=(ProcessDied,), backoff=_SOON)
    crash_once = app.task(run_in="process", retry=policy)(process_tasks.crash_once)
    square = app.task(run_in="process")(process_tasks.square)
    with tempfile.TemporaryDirectory() as folder:
        async with bench.working(app, {QUEUE: 2}):
            ends = {
                "exit": "exit code 7",
                "kill": "SIGKILL",
                "segfault": "SIGSEGV",
                "forked": "SIGKILL",  # what it has forked goes with it
                "daemon": "SIGKILL",  # what it has forked lives on, with a copy of its connection
            }
            for how, said in ends.items():
                with pytest.raises(TaskFailed, match=said) as caught:
                    await crash.call(how)
                assert caught.value.type == "asyncq.errors.ProcessDied"
                assert await square.call(3) == 9
            assert await crash_once.call(str(Path(folder, "mark"))) == "done"


@behaviour
async def test_an_error_in_a_process_is_the_same_error_here(bench: Bench) -> None:
    """With its traceback; a policy tells it by its class, also where it cannot be pickled."""
    app = bench.app()
    seen: list[BaseException] = []

    def when(error: BaseException) -> bool:
        seen.append(error)
        return True

    policy = RetryPolicy(on=(ConnectionError,), when=when, max_attempts=2, backoff=_SOON)
    fail = app.task(run_in="process", retry=policy)(process_tasks.fail)
    async with bench.working(app, {QUEUE: 1}):
        for kind, type_, text in (
            ("value", "builtins.ValueError", "value is wrong"),
            ("connection", "builtins.ConnectionError", "connection is wrong"),
            ("awkward", f"{process_tasks.__name__}.AwkwardError", "503 away"),
            ("exit", "builtins.SystemExit", "3"),
        ):
            with pytest.raises(TaskFailed) as caught:
                await fail.call(kind)
            assert (caught.value.type, caught.value.message) == (type_, text)
            assert "process_tasks.py" in caught.value.traceback
    assert [type(error).__name__ for error in seen] == ["ConnectionError"] * 2 + ["AwkwardError"] * 2
    assert isinstance(seen[-1], process_tasks.AwkwardError)


@behaviour
async def test_retry_snooze_and_reject_work_from_a_process(bench: Bench) -> None:
    """With what they carry."""
    app = bench.app()
    signalled = app.task(run_in="process")(process_tasks.signalled)
    with tempfile.TemporaryDirectory() as folder:
        async with bench.working(app, {QUEUE: 1}):
            assert await signalled.call("retry", str(Path(folder, "retry"))) == "retry, attempt 2"
            assert await signalled.call("snooze", str(Path(folder, "snooze"))) == "snooze, attempt 1"
            with pytest.raises(TaskRejected, match="not for us"):
                await signalled.call("reject", str(Path(folder, "reject")))


@behaviour
async def test_arguments_and_results_of_a_process_are_checked_there(bench: Bench) -> None:
    """And end as they do in a thread: wrong arguments are rejected, a wrong result is no reason to run again."""
    app = bench.app()
    retry = RetryPolicy(on=(Exception,), backoff=_SOON)
    app.task(run_in="process", retry=retry)(process_tasks.square)
    wrong = app.task(run_in="process", retry=retry)(process_tasks.returns_something_else)
    producer = bench.app("other")  # it has no task code
    async with bench.working(app, {QUEUE: 1}), producer:
        with pytest.raises(TaskRejected, match="ValidationError"):
            await producer.call("shop.square", {"x": "no number"})
        with pytest.raises(TaskFailed, match="ResultNotSerialisable"):
            await wrong.call()
        letters = [letter async for letter in app.dead_letters(QUEUE).browse()]
        assert [letter.record.reason for letter in letters if letter.record is not None] == [
            "invalid arguments",
            "result not serialisable",
        ]


@behaviour
async def test_the_hard_limit_kills_a_process_and_what_it_has_started(bench: Bench) -> None:
    """The sender hears of it, and the slot is free."""
    app = bench.app()
    sleep_on = app.task(run_in="process", time_limit=1)(process_tasks.sleep_on)
    square = app.task(run_in="process")(process_tasks.square)
    with tempfile.TemporaryDirectory() as folder:
        mark = Path(folder, "mark")
        async with bench.working(app, {QUEUE: 1}):
            handle = await sleep_on.send(str(mark))
            await eventually(mark.exists)
            pids = _pids_in(mark)
            assert all(_runs(pid) for pid in pids)
            with pytest.raises(TaskFailed, match="longer than its time limit of 1 s") as caught:
                await handle.result(WAIT_S)
            assert caught.value.type == "asyncq.errors.TimeLimitExceeded"
            await eventually(lambda: not any(_runs(pid) for pid in pids))
            assert await square.call(2) == 4


@behaviour
async def test_a_process_that_shall_stop_can_see_it(bench: Bench) -> None:
    """By `ctx.cancelled`, for half a second; what it returns then counts, because the work was done."""
    app = bench.app()
    work = app.task(run_in="process", time_limit=0.3)(process_tasks.until_cancelled)
    async with bench.working(app, {QUEUE: 1}):
        assert await work.call() == "saw it"


@behaviour
async def test_the_soft_limit_is_raised_in_a_process(bench: Bench) -> None:
    """It can return what it has; or the attempt fails by it."""
    app = bench.app()
    softly = app.task(run_in="process", soft_time_limit=0.2, time_limit=20)(process_tasks.softly)
    square = app.task(run_in="process")(process_tasks.square)
    async with bench.working(app, {QUEUE: 1}):
        assert await softly.call(catch=True) == "what there was"
        with pytest.raises(TaskFailed, match=r"soft time limit of 0.2 s") as caught:
            await softly.call(catch=False)
        assert caught.value.type == "asyncq.errors.SoftTimeLimit"
        assert await square.call(2) == 4


@behaviour
async def test_a_worker_that_stops_hands_back_what_its_processes_run(bench: Bench) -> None:
    """It kills them, and the message is in the queue again, as it was."""
    app = bench.app(drain_timeout_s=0)
    sleep_on = app.task(run_in="process")(process_tasks.sleep_on)
    with tempfile.TemporaryDirectory() as folder:
        mark = Path(folder, "mark")
        async with bench.working(app, {QUEUE: 1}):
            await sleep_on.options(reply=False).send(str(mark))
            await eventually(mark.exists)
            pids = _pids_in(mark)
        assert not _runs(pids[0])
        await eventually(lambda: not _runs(pids[1]))
        assert await bench.count(QUEUE) == 1


@behaviour
async def test_no_more_tasks_run_in_processes_than_there_are_places(bench: Bench) -> None:
    """Who comes later waits for one."""
    app = bench.app(task_processes=2)
    work = app.task(run_in="process", time_limit=1)(process_tasks.until_cancelled)
    async with bench.working(app, {QUEUE: 5}) as worker:
        handles = await app.send_many(work.s() for _ in range(5))
        await eventually(lambda: worker.stats().processes_busy == 2)
        assert [await handle.result(WAIT_S) for handle in handles] == ["saw it"] * 5


@behaviour
async def test_a_task_that_no_process_can_import_ends_the_worker_at_its_start(bench: Bench) -> None:
    """With a message that says which one."""
    app = bench.app()
    app.task(name="shop.lost", run_in="process")(process_tasks.square)
    task = app.get("shop.lost")
    original = task.function.__qualname__
    try:
        task.function.__qualname__ = "gone"
        async with app:
            with pytest.raises(TaskDefinitionError, match=r"shop\.lost.*gone is something else"):
                await app.worker().run()
    finally:
        task.function.__qualname__ = original


@behaviour
async def test_the_dead_letter_of_a_crash_has_its_error(bench: Bench) -> None:
    """Who is called at night reads how the process died."""
    app = bench.app()
    crash = app.task(run_in="process")(process_tasks.crash)
    async with bench.working(app, {QUEUE: 1}):
        await crash.options(reply=False).send("exit")
        letter: DeadLetter = await eventually(lambda: dead_letter(app.broker))
    record = letter.record
    assert record is not None
    assert (record.reason, record.failure.type) == ("no retry policy", "asyncq.errors.ProcessDied")
    assert "exit code 7" in record.failure.message


@behaviour
async def test_a_cancelled_task_in_a_process_is_killed_within_a_second(bench: Bench) -> None:
    """With what it has started; its sender hears of it."""
    app = bench.app()
    sleep_on = app.task(run_in="process")(process_tasks.sleep_on)
    square = app.task(run_in="process")(process_tasks.square)
    with tempfile.TemporaryDirectory() as folder:
        mark = Path(folder, "mark")
        async with bench.working(app, {QUEUE: 1}):
            handle = await sleep_on.send(str(mark))
            await eventually(mark.exists)
            pids = _pids_in(mark)
            await handle.cancel()
            with pytest.raises(TaskCancelled):
                await handle.result(WAIT_S)
            await eventually(lambda: not any(_runs(pid) for pid in pids))
            assert await square.call(2) == 4


@behaviour
async def test_a_task_that_is_cancelled_while_it_waits_for_a_place_never_runs(bench: Bench) -> None:
    """Neither for a process, nor for its concurrency limit."""
    app = bench.app(task_processes=1)
    first = app.task(run_in="process", time_limit=2)(process_tasks.until_cancelled)
    with tempfile.TemporaryDirectory() as folder:
        mark = Path(folder, "mark")
        second = app.task(run_in="process")(process_tasks.sleep_on)
        async with bench.working(app, {QUEUE: 2}) as worker:
            running = await first.send()
            await eventually(lambda: worker.stats().processes_busy == 1)
            waiting = await second.send(str(mark))
            await waiting.cancel()
            with pytest.raises(TaskCancelled):
                await waiting.result(WAIT_S)
            assert await running.result(WAIT_S) == "saw it"
            assert not list(os.scandir(folder))
