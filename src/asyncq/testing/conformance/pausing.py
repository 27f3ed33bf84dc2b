"""Queues whose consumption is paused, for all workers or for one: the same through every broker."""

from __future__ import annotations

import asyncio

import pytest

from asyncq.errors import InvalidOption, InvalidQueueName, UnknownQueue
from asyncq.journal import Entry
from asyncq.pauses import PauseNote
from asyncq.testing.conformance.bench import QUEUE, WAIT_S, Bench, behaviour, eventually
from asyncq.testing.conformance.controlled import SHORT_S, Gate, asked, state_of


@behaviour
async def test_a_paused_queue_gives_nothing_to_any_worker_until_it_is_resumed(bench: Bench) -> None:
    """What runs finishes; workers of any app, and those that start later, keep to it."""
    app, later, gate = bench.app(), bench.app(), Gate()
    for declaring in (app, later):
        declaring.task(name="work")(gate.enter)

    async with asked(bench, app, {QUEUE: 2}) as first:
        running = await app.send("work", {"n": 1}, queue=QUEUE)
        await eventually(lambda: gate.inside == [1])
        paused = await app.control.pause(QUEUE, timeout=WAIT_S)
        assert [state_of(answer) for answer in paused.answers] == [(2, 1, "everywhere")]
        waiting = await app.send("work", {"n": 2}, queue=QUEUE)
        gate.open.set()
        assert await running.result(WAIT_S) == 1
        async with asked(bench, later, {QUEUE: 2}):
            both = await app.control.everybody.ping(timeout=WAIT_S)
            assert len(both.answers) == 2
            await asyncio.sleep(0.3)  # nothing happens, and nothing tells that it does not
            assert gate.inside == [1]
            assert list(await later.control.paused()) == [QUEUE]
            resumed = await later.control.resume(QUEUE, timeout=WAIT_S)
            assert [state_of(answer)[2] for answer in resumed.answers] == [None, None]
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
        async with asked(bench, app):
            (queue,) = (await app.control.active(timeout=WAIT_S)).answers[0].queues
            assert queue.paused == "everywhere"
        async with other:
            await other.control.resume(QUEUE, timeout=SHORT_S)
        async with asked(bench, app):
            assert await handle.result(WAIT_S) == 1


@behaviour
async def test_one_worker_alone_is_paused_and_the_others_work_on(bench: Bench) -> None:
    """A pause of all goes over it, and does not end by what one is told."""
    app, gate = bench.app(), Gate()
    app.task(name="work")(gate.enter)
    gate.open.set()
    async with asked(bench, app):
        (there,) = (await app.control.ping(timeout=WAIT_S)).answers
        (answer,) = (await app.control.pause(QUEUE, worker=there.name, timeout=WAIT_S)).answers
        assert state_of(answer)[2] == "here"
        assert await app.control.paused() == {}
        handle = await app.send("work", {"n": 1}, queue=QUEUE)
        await app.control.pause(QUEUE, timeout=WAIT_S)
        (answer,) = (await app.control.resume(QUEUE, worker=there.name, timeout=WAIT_S)).answers
        assert state_of(answer)[2] == "everywhere"
        await app.control.pause(QUEUE, host=there.host, timeout=WAIT_S)
        assert gate.inside == []
        (answer,) = (await app.control.resume(QUEUE, timeout=WAIT_S)).answers
        assert state_of(answer)[2] is None
        assert await handle.result(WAIT_S) == 1


@behaviour
async def test_a_queue_that_is_not_there_cannot_be_paused(bench: Bench) -> None:
    """Nor one that no queue can be called, nor by an app that keeps no pauses."""
    app = bench.app()

    @app.task
    async def work() -> None: ...

    async with asked(bench, app):
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
    async with asked(bench, app):
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

    async with asked(bench, app):
        await app.control.pause(QUEUE, timeout=WAIT_S)
        found: list[PauseNote | None] = []

        async def is_repeated() -> bool:
            found[:] = await notes()
            return len(found) > 1

        await eventually(is_repeated)
        assert len({(note.id, note.at_ms) for note in found if note is not None}) == 1
