"""Workers that are asked, resized and drained: the same through every broker."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asyncq.app import AsyncQ
from asyncq.control import Control, WorkerName
from asyncq.control_values import WorkerPing
from asyncq.errors import AnswersLost, InvalidOption, UnknownWorker
from asyncq.testing.conformance.bench import QUEUE, WAIT_S, Bench, behaviour, eventually
from asyncq.testing.conformance.controlled import SHORT_S, Gate, are_there, asked, state_of

# --- asking


@behaviour
async def test_workers_say_that_they_are_there_to_their_own_app_and_to_everybody(bench: Bench) -> None:
    """Each app asks its own; who is nobody's asks all."""
    app, other = bench.app(), bench.app("other")
    for declaring in (app, other):

        @declaring.task
        async def work() -> None: ...

    async with asked(bench, app, {QUEUE: 2}), asked(bench, other):
        (mine,) = (await app.control.ping(timeout=WAIT_S)).answers
        assert (mine.app, mine.state, mine.queues) == (QUEUE, "consuming", (QUEUE,))
        assert mine.name == f"{mine.host}:{mine.pid}"
        assert mine.uptime_s >= 0
        everybody = await app.control.everybody.ping(timeout=WAIT_S)
        assert {answer.app for answer in everybody.answers} == {QUEUE, "other"}
        assert (everybody.complete, everybody.silent, everybody.failed) == (True, (), {})


@behaviour
async def test_where_no_worker_is_nobody_answers_and_nothing_is_awaited(bench: Bench) -> None:
    """Not even for the time that was given."""
    async with bench.app() as app:
        nobody = await app.control.ping(timeout=1000 * WAIT_S)
        assert (nobody.answers, nobody.silent, nobody.complete) == ((), (), False)


@behaviour
async def test_a_worker_that_is_known_and_does_not_answer_is_told_by_its_name(bench: Bench) -> None:
    """The broker knows it, whatever it does; when it leaves, it is forgotten."""
    app = bench.app()

    @app.task
    async def work() -> None: ...

    async with asked(bench, app), bench.open() as silent:
        assert isinstance(silent, Control)
        async with silent.listen(WorkerName(QUEUE, "frozen-host", 17, "abc")):
            await eventually(lambda: _silent(app, ("frozen-host:17",)))
            (answer,) = await eventually(lambda: _answers(app))
            on_it = await app.control.ping(host="frozen-host", timeout=SHORT_S)
            assert (on_it.answers, on_it.silent, on_it.complete) == ((), ("frozen-host:17",), False)
            beside = await app.control.ping(worker=answer.name, timeout=1000 * WAIT_S)
            assert [item.name for item in beside.answers] == [answer.name]
        await eventually(lambda: _silent(app, ()))


async def _answers(app: AsyncQ) -> tuple[WorkerPing, ...]:
    return (await app.control.ping(timeout=SHORT_S)).answers


async def _silent(app: AsyncQ, names: tuple[str, ...]) -> bool:
    return (await app.control.ping(timeout=SHORT_S)).silent == names


@behaviour
async def test_a_name_or_a_host_that_nobody_has_is_an_error_that_tells_who_is_there(bench: Bench) -> None:
    """For every question."""
    app = bench.app()

    @app.task
    async def work() -> None: ...

    async with asked(bench, app):
        (there,) = (await app.control.ping(timeout=WAIT_S)).answers
        control = app.control
        for ask in (control.ping, control.active, control.stats, control.drain):
            with pytest.raises(UnknownWorker, match=rf"no worker 'nobody:1'.*{there.name}"):
                await ask(worker="nobody:1")
        with pytest.raises(UnknownWorker, match=rf"no worker on host 'nowhere'.*{there.host}"):
            await control.pause(QUEUE, host="nowhere")
        assert (await control.ping(worker=there.name, host=there.host)).complete


@behaviour
async def test_what_runs_is_told_with_its_attempt_its_times_and_its_progress(bench: Bench) -> None:
    """No arguments: they may be secret."""
    app, gate = bench.app(), Gate()

    @app.task(pass_context=True, time_limit=500)
    async def work(ctx: Any, n: int) -> int:
        await ctx.progress(n, 10, "steps")
        return await gate.enter(n)

    async with asked(bench, app, {QUEUE: 3}):
        handle = await work.options(task_id="first").send(3)
        await eventually(lambda: gate.inside)
        (worker,) = (await app.control.active(timeout=WAIT_S)).answers
        (running,) = worker.running
        assert (running.task, running.task_id, running.attempt, running.queue) == (work.name, "first", 1, QUEUE)
        assert running.progress == {"done": 3, "total": 10, "label": "steps", "details": {}}
        assert running.deadline_ms is not None
        assert 499_000 < running.deadline_ms - running.since_ms <= 501_000
        assert [(queue.name, queue.slots, queue.running) for queue in worker.queues] == [(QUEUE, 3, 1)]
        gate.open.set()
        assert await handle.result(WAIT_S) == 3
        (worker,) = (await app.control.active(timeout=WAIT_S)).answers
        assert worker.running == ()


@behaviour
async def test_figures_count_what_was_done_since_the_start(bench: Bench) -> None:
    """By outcome; and they tell how the worker is."""
    app = bench.app()

    @app.task
    async def work(n: int) -> int:
        return 1 // n

    async with asked(bench, app, {QUEUE: 3}) as worker:
        handles = [await work.send(n) for n in (1, 2, 0)]
        await eventually(lambda: sum(worker.stats().outcomes.values()) == len(handles))
        (stats,) = (await app.control.stats(timeout=WAIT_S)).answers
        assert stats.outcomes == {"Succeeded": 2, "Failed": 1}
        assert (stats.started, stats.retries, stats.in_flight, stats.connection) == (3, 0, 0, "ready")
        assert stats.memory_bytes is None or stats.memory_bytes > 1_000_000
        assert stats.loop_lag_s >= 0
        assert stats.process_pool.processes == 0


# --- scaling and draining


@behaviour
async def test_slots_change_while_the_worker_runs(bench: Bench) -> None:
    """Up at once; down as soon as what runs has finished."""
    app, gate = bench.app(), Gate()
    app.task(name="work")(gate.enter)
    async with asked(bench, app, {QUEUE: 1}) as worker:
        handles = [await app.send("work", {"n": n}, queue=QUEUE) for n in range(6)]
        await eventually(lambda: len(gate.inside) == 1)
        (answer,) = (await app.control.scale(QUEUE, 3, timeout=WAIT_S)).answers
        assert state_of(answer)[0] == 3
        await eventually(lambda: len(gate.inside) == 3)
        (answer,) = (await app.control.scale(QUEUE, 1, timeout=WAIT_S)).answers
        assert state_of(answer)[:2] == (1, 3)
        assert worker.queues == {QUEUE: 1}
        gate.open.set()
        assert [await handle.result(WAIT_S) for handle in handles] == list(range(6))
        for wrong in (0, -1, 2001, True, "3"):
            with pytest.raises(InvalidOption, match="1 to 2000 slots"):
                await app.control.scale(QUEUE, wrong)  # type: ignore[arg-type]


@behaviour
async def test_more_slots_run_more_blocking_tasks_at_once(bench: Bench) -> None:
    """There are as many threads as slots, where nobody has said another number."""
    app = bench.app()
    barrier = asyncio.Barrier(3)
    loop = asyncio.get_running_loop()

    @app.task
    def work() -> str:
        asyncio.run_coroutine_threadsafe(barrier.wait(), loop).result(WAIT_S)
        return "all three"

    async with asked(bench, app, {QUEUE: 1}):
        handles = [await work.send() for _ in range(3)]
        await app.control.scale(QUEUE, 3, timeout=WAIT_S)
        assert [await handle.result(WAIT_S) for handle in handles] == ["all three"] * 3


@behaviour
async def test_a_worker_that_is_asked_to_drain_finishes_what_runs_and_ends(bench: Bench) -> None:
    """With its normal exit code; what waits stays for others."""
    app, gate = bench.app(), Gate()
    app.task(name="work")(gate.enter)
    async with app:
        worker = app.worker({QUEUE: 1})
        retired: list[bool] = []
        worker.on_retire = lambda: retired.append(True)
        run = asyncio.create_task(worker.run())
        await worker.consuming()
        running, waiting = [await app.send("work", {"n": n}, queue=QUEUE) for n in range(2)]
        await eventually(lambda: gate.inside)
        await eventually(lambda: are_there(app, 1))
        (answer,) = (await app.control.drain(timeout=WAIT_S)).answers
        assert (answer.running, answer.already) == (1, False)
        (still,) = (await app.control.ping(timeout=WAIT_S)).answers
        assert still.state == "stopping"
        (again,) = (await app.control.drain(timeout=WAIT_S)).answers
        assert again.already
        gate.open.set()
        assert await asyncio.wait_for(run, WAIT_S) == 0
        assert await running.result(WAIT_S) == 0
        assert gate.inside == [0]
        assert retired
        assert (await app.control.ping(timeout=SHORT_S)).answers == ()
        async with asked(bench, app, {QUEUE: 1}):
            assert await waiting.result(WAIT_S) == 1


@behaviour
async def test_who_waits_for_a_drain_is_told_who_has_ended_and_who_has_not(bench: Bench) -> None:
    """Nobody is told as ended who still runs a task."""
    app, gate = bench.app(), Gate()
    app.task(name="work")(gate.enter)
    async with app:
        nobody = await app.control.drain(timeout=WAIT_S, wait=1000 * WAIT_S)
        assert (nobody.ended, nobody.remaining, nobody.complete) == ((), (), False)
        worker = app.worker({QUEUE: 1})
        run = asyncio.create_task(worker.run())
        await worker.consuming()
        running = await app.send("work", {"n": 1}, queue=QUEUE)
        await eventually(lambda: gate.inside)
        await eventually(lambda: are_there(app, 1))
        waited = await app.control.drain(timeout=WAIT_S, wait=SHORT_S)
        (there,) = waited.answers
        assert (waited.ended, waited.remaining, waited.complete) == ((), (there.name,), False)
        worker.on_retire = gate.open.set  # so it ends only when it has heard the next question
        waited = await app.control.drain(worker=there.name, timeout=WAIT_S, wait=2 * WAIT_S)
        assert (waited.ended, waited.remaining, waited.complete) == ((there.name,), (), True)
        assert await asyncio.wait_for(run, WAIT_S) == 0
        assert await running.result(WAIT_S) == 1
        for wrong in (-1, float("nan"), float("inf")):
            with pytest.raises(InvalidOption, match="wait="):
                await app.control.drain(wait=wrong)


# --- what goes wrong


@behaviour
async def test_workers_can_be_asked_again_after_a_lost_connection(bench: Bench) -> None:
    """Each is told once, though the broker may still hold its old connection."""
    app = bench.app()

    @app.task
    async def work() -> None: ...

    async with asked(bench, app), bench.app() as asking:
        await bench.cut(app.broker)

        async def is_back() -> bool:
            try:
                found = await asking.control.ping(timeout=SHORT_S)
            except Exception:  # noqa: BLE001 - its own connection may have been cut as well
                return False
            return len(found.answers) == 1 and not found.silent

        await eventually(is_back)


@behaviour
async def test_a_connection_that_is_lost_while_workers_are_asked_is_an_error_and_no_partial_answer(
    bench: Bench,
) -> None:
    """It is not known who is there; and it is not waited for."""
    name = WorkerName(QUEUE, "frozen-host", 17, "abc")
    async with bench.open() as silent, bench.app() as app:
        assert isinstance(silent, Control)
        async with silent.listen(name) as questions:
            await eventually(lambda: _silent(app, (name.name,)))
            asking = asyncio.create_task(app.control.ping(host=name.host, timeout=1000 * WAIT_S))
            async for question in questions:
                if name.host.encode() in question.body:  # those before it were for everybody
                    break
            await app.send("work", queue=QUEUE, reply=False)  # confirmed, and so the question is as well
            await bench.cut(app.broker)
            with pytest.raises(AnswersLost, match="Ask again"):
                await asyncio.wait_for(asking, WAIT_S)


@behaviour
async def test_a_question_that_a_worker_does_not_understand_is_answered_with_a_reason(bench: Bench) -> None:
    """From an asker of another version; the worker works on."""
    app = bench.app()

    @app.task
    async def work() -> int:
        return 1

    questions = [b"", b"[]", b'{"do": "dance"}', b'{"do": "scale", "queue": "q"}', b'{"do": "pause"}']
    async with asked(bench, app):
        broker = app.broker
        assert isinstance(broker, Control)
        for body in questions:
            roll = await broker.ask(body, wanted=lambda _: True, timeout_s=WAIT_S)
            ((_, answer),) = roll.answers
            assert b'"error"' in answer, body
        assert await work.call() == 1
