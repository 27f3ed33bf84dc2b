"""Workers that are asked, paused, resized and drained: the same through every broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from asyncq.app import AsyncQ
from asyncq.control import Control, WorkerName
from asyncq.control_values import QueueState, WorkerPing
from asyncq.errors import AnswersLost, InvalidOption, InvalidQueueName, UnknownQueue, UnknownWorker
from asyncq.journal import Entry
from asyncq.pauses import PauseNote
from asyncq.testing.conformance.bench import QUEUE, WAIT_S, Bench, behaviour, eventually
from asyncq.worker.worker import Worker

SHORT_S = 1.0


def _state(answer: QueueState) -> tuple[int, int, str | None]:
    assert answer.queue is not None
    return answer.queue.slots, answer.queue.running, answer.queue.paused


class Gate:
    """Lets tasks wait inside."""

    def __init__(self) -> None:
        self.inside: list[int] = []
        self.open = asyncio.Event()

    async def enter(self, n: int) -> int:
        """Wait inside until it is open."""
        self.inside.append(n)
        await self.open.wait()
        return n


@asynccontextmanager
async def _working(bench: Bench, app: AsyncQ, queues: Mapping[str, int] | None = None) -> AsyncIterator[Worker]:
    """Open the app with a worker, and wait until it consumes, and can be asked."""
    async with app:
        before = len((await app.control.everybody.ping(timeout=SHORT_S)).answers)
        async with bench.working(app, queues) as worker:
            await worker.consuming()
            await eventually(lambda: _are_there(app, before + 1))
            yield worker


async def _are_there(app: AsyncQ, count: int) -> bool:
    return len((await app.control.everybody.ping(timeout=SHORT_S)).answers) >= count


# --- asking


@behaviour
async def test_workers_say_that_they_are_there_to_their_own_app_and_to_everybody(bench: Bench) -> None:
    """Each app asks its own; who is nobody's asks all."""
    app, other = bench.app(), bench.app("other")
    for declaring in (app, other):

        @declaring.task
        async def work() -> None: ...

    async with _working(bench, app, {QUEUE: 2}), _working(bench, other):
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

    async with _working(bench, app), bench.open() as silent:
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

    async with _working(bench, app):
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

    async with _working(bench, app, {QUEUE: 3}):
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

    async with _working(bench, app, {QUEUE: 3}) as worker:
        handles = [await work.send(n) for n in (1, 2, 0)]
        await eventually(lambda: sum(worker.stats().outcomes.values()) == len(handles))
        (stats,) = (await app.control.stats(timeout=WAIT_S)).answers
        assert stats.outcomes == {"Succeeded": 2, "Failed": 1}
        assert (stats.started, stats.retries, stats.in_flight, stats.connection) == (3, 0, 0, "ready")
        assert stats.memory_bytes is None or stats.memory_bytes > 1_000_000
        assert stats.loop_lag_s >= 0
        assert stats.process_pool.processes == 0


# --- pausing


@behaviour
async def test_a_paused_queue_gives_nothing_to_any_worker_until_it_is_resumed(bench: Bench) -> None:
    """What runs finishes; workers of any app, and those that start later, keep to it."""
    app, later, gate = bench.app(), bench.app(), Gate()
    for declaring in (app, later):
        declaring.task(name="work")(gate.enter)

    async with _working(bench, app, {QUEUE: 2}) as first:
        running = await app.send("work", {"n": 1}, queue=QUEUE)
        await eventually(lambda: gate.inside == [1])
        paused = await app.control.pause(QUEUE, timeout=WAIT_S)
        assert [_state(answer) for answer in paused.answers] == [(2, 1, "everywhere")]
        waiting = await app.send("work", {"n": 2}, queue=QUEUE)
        gate.open.set()
        assert await running.result(WAIT_S) == 1
        async with _working(bench, later, {QUEUE: 2}):
            both = await app.control.everybody.ping(timeout=WAIT_S)
            assert len(both.answers) == 2
            await asyncio.sleep(0.3)  # nothing happens, and nothing tells that it does not
            assert gate.inside == [1]
            assert list(await later.control.paused()) == [QUEUE]
            resumed = await later.control.resume(QUEUE, timeout=WAIT_S)
            assert [_state(answer)[2] for answer in resumed.answers] == [None, None]
            assert await waiting.result(WAIT_S) == 2
            assert await app.control.paused() == {}
        assert first.stats().outcomes["Succeeded"] >= 1


@behaviour
async def test_a_pause_outlives_all_workers_and_apps(bench: Bench) -> None:
    """It is kept by the broker; the resume as well."""
    app, other, gate = bench.app(), bench.app("other"), Gate()
    app.task(name="work")(gate.enter)
    gate.open.set()
    async with app:  # which declares the queue
        await app.control.pause(QUEUE, timeout=SHORT_S)
        handle = await app.send("work", {"n": 1}, queue=QUEUE)
        async with _working(bench, app):
            (queue,) = (await app.control.active(timeout=WAIT_S)).answers[0].queues
            assert queue.paused == "everywhere"
        async with other:
            await other.control.resume(QUEUE, timeout=SHORT_S)
        async with _working(bench, app):
            assert await handle.result(WAIT_S) == 1


@behaviour
async def test_one_worker_alone_is_paused_and_the_others_work_on(bench: Bench) -> None:
    """A pause of all goes over it, and does not end by what one is told."""
    app, gate = bench.app(), Gate()
    app.task(name="work")(gate.enter)
    gate.open.set()
    async with _working(bench, app):
        (there,) = (await app.control.ping(timeout=WAIT_S)).answers
        (answer,) = (await app.control.pause(QUEUE, worker=there.name, timeout=WAIT_S)).answers
        assert _state(answer)[2] == "here"
        assert await app.control.paused() == {}
        handle = await app.send("work", {"n": 1}, queue=QUEUE)
        await app.control.pause(QUEUE, timeout=WAIT_S)
        (answer,) = (await app.control.resume(QUEUE, worker=there.name, timeout=WAIT_S)).answers
        assert _state(answer)[2] == "everywhere"
        await app.control.pause(QUEUE, host=there.host, timeout=WAIT_S)
        assert gate.inside == []
        (answer,) = (await app.control.resume(QUEUE, timeout=WAIT_S)).answers
        assert _state(answer)[2] is None
        assert await handle.result(WAIT_S) == 1


@behaviour
async def test_a_queue_that_is_not_there_cannot_be_paused(bench: Bench) -> None:
    """Nor one that no queue can be called, nor by an app that keeps no pauses."""
    app = bench.app()

    @app.task
    async def work() -> None: ...

    async with _working(bench, app):
        with pytest.raises(UnknownQueue, match="'nowhere'"):
            await app.control.pause("nowhere")
        with pytest.raises(UnknownQueue, match=r"None of the 1 workers.*'nowhere'"):
            await app.control.scale("nowhere", 3, timeout=WAIT_S)
        for name in ("", "a b", "mail.dead"):
            with pytest.raises(InvalidQueueName):
                await app.control.pause(name)
            with pytest.raises(InvalidQueueName):
                await app.control.resume(name)
        assert await app.control.paused() == {}
    without = bench.app(cancellations_kept_s=0)
    async with without:
        with pytest.raises(InvalidOption, match="cancellations_kept_s"):
            await without.control.pause(QUEUE)
        with pytest.raises(InvalidOption, match="cancellations_kept_s"):
            await without.control.paused()


@behaviour
async def test_the_repetition_of_a_pause_that_has_ended_pauses_nothing(bench: Bench) -> None:
    """Workers repeat pauses, so that the journal does not forget them; one of them may be late."""
    app, gate = bench.app(), Gate()
    app.task(name="work")(gate.enter)
    gate.open.set()
    async with _working(bench, app):
        await app.control.pause(QUEUE, timeout=WAIT_S)
        note = (await app.control.paused())[QUEUE]
        await app.control.resume(QUEUE, timeout=WAIT_S)
        journal = app.broker.journal("cancellations", keep_s=app.settings.cancellations_kept_s)
        await journal.append(note.to_json(), timeout_s=WAIT_S)
        assert await app.control.paused() == {}
        assert await (await app.send("work", {"n": 1}, queue=QUEUE)).result(WAIT_S) == 1


@behaviour
async def test_a_pause_that_goes_on_is_noted_again_before_the_journal_forgets_it(bench: Bench) -> None:
    """By any worker: here one that keeps things for some seconds only."""
    app = bench.app(cancellations_kept_s=4)

    @app.task
    async def work() -> None: ...

    async def notes() -> list[PauseNote | None]:
        found: list[PauseNote | None] = []
        journal = app.broker.journal("cancellations", keep_s=4)
        async with journal.follow() as following:
            async for heard in following:
                if not isinstance(heard, Entry):
                    break
                found.append(PauseNote.read(heard.body))
        return found

    async with _working(bench, app):
        await app.control.pause(QUEUE, timeout=WAIT_S)
        found: list[PauseNote | None] = []

        async def is_repeated() -> bool:
            found[:] = await notes()
            return len(found) > 1

        await eventually(is_repeated)
        assert len({(note.id, note.at_ms) for note in found if note is not None}) == 1


# --- scaling and draining


@behaviour
async def test_slots_change_while_the_worker_runs(bench: Bench) -> None:
    """Up at once; down as soon as what runs has finished."""
    app, gate = bench.app(), Gate()
    app.task(name="work")(gate.enter)
    async with _working(bench, app, {QUEUE: 1}) as worker:
        handles = [await app.send("work", {"n": n}, queue=QUEUE) for n in range(6)]
        await eventually(lambda: len(gate.inside) == 1)
        (answer,) = (await app.control.scale(QUEUE, 3, timeout=WAIT_S)).answers
        assert _state(answer)[0] == 3
        await eventually(lambda: len(gate.inside) == 3)
        (answer,) = (await app.control.scale(QUEUE, 1, timeout=WAIT_S)).answers
        assert _state(answer)[:2] == (1, 3)
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

    async with _working(bench, app, {QUEUE: 1}):
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
        await eventually(lambda: _are_there(app, 1))
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
        async with _working(bench, app, {QUEUE: 1}):
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
        await eventually(lambda: _are_there(app, 1))
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

    async with _working(bench, app), bench.app() as asking:
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
    async with _working(bench, app):
        broker = app.broker
        assert isinstance(broker, Control)
        for body in questions:
            roll = await broker.ask(body, wanted=lambda _: True, timeout_s=WAIT_S)
            ((_, answer),) = roll.answers
            assert b'"error"' in answer, body
        assert await work.call() == 1
