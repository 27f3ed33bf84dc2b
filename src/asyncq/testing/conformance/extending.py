"""What an app adds to its worker: middleware around attempts, resources for tasks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

import pytest

from asyncq.app import AsyncQ
from asyncq.context import TaskContext, current_context
from asyncq.dependencies import Depends
from asyncq.errors import TaskFailed
from asyncq.middleware import AttemptInfo, CallNext
from asyncq.outcome import Outcome
from asyncq.retry import Fixed, RetryPolicy
from asyncq.testing.conformance.bench import QUEUE, Bench, behaviour, dead_letter, eventually


@behaviour
async def test_middleware_hears_of_each_attempt_and_how_it_ended(bench: Bench) -> None:
    """Retries have numbers, and what was sent and when is known."""
    app = bench.app()
    heard: list[tuple[int, str, str]] = []
    infos: list[AttemptInfo] = []

    @app.middleware
    async def hearing(info: AttemptInfo, call_next: CallNext) -> Outcome:
        outcome = await call_next()
        heard.append((info.attempt, info.queue, type(outcome).__name__))
        infos.append(info)
        return outcome

    @app.task(pass_context=True, retry=RetryPolicy(backoff=Fixed(0.02), jitter=False, max_attempts=3))
    def work(ctx: TaskContext, word: str) -> str:
        if ctx.attempt < 3:
            raise ConnectionError
        return word

    async with bench.working(app):
        assert await work.call("done") == "done"
    assert heard == [(1, QUEUE, "RetryLater"), (2, QUEUE, "RetryLater"), (3, QUEUE, "Succeeded")]
    assert len({info.task_id for info in infos}) == 1
    assert [info.arguments() for info in infos] == [{"word": "done"}] * 3
    assert all(info.sent_at is not None and info.waited_s is not None for info in infos)


@behaviour
async def test_a_middleware_that_fails_costs_its_attempt_and_not_the_worker(bench: Bench) -> None:
    """The message is among the dead letters with the middleware's error, and the next task runs."""
    app = bench.app()

    async def picky(info: AttemptInfo, call_next: CallNext) -> Outcome:
        if info.arguments()["n"] == 1:
            raise PermissionError("not this one")
        return await call_next()

    @app.task(middleware=[picky])
    async def work(n: int) -> int:
        return n

    async with bench.working(app):
        await work.send(1)
        letter = await dead_letter(app.broker)
        assert await work.call(2) == 2
    assert letter.record is not None
    assert letter.record.failure.message == "not this one"


@behaviour
async def test_resources_are_there_for_every_task_and_closed_when_the_worker_has_ended(bench: Bench) -> None:
    """The lifespan may send tasks itself: the app is open, before it and after it."""
    app = bench.app()
    said: list[str] = []

    @app.lifespan
    async def lifespan(app: AsyncQ) -> AsyncIterator[list[str]]:
        await app.send("shop.work", {"word": "from the lifespan"})
        yield said
        handle = await app.send("shop.work", {"word": "too late for this worker"})
        said.append(f"closed {handle.id != ''}")

    @app.task(pass_context=True)
    async def work(ctx: TaskContext[list[str]], word: str) -> None:
        ctx.resources.append(word)

    async with bench.working(app):
        await work.call("from outside")
        await eventually(lambda: len(said) == 2)
        assert sorted(said) == ["from outside", "from the lifespan"]
    assert said[2:] == ["closed True"]


@behaviour
async def test_dependencies_are_made_for_each_attempt_and_closed_after_it(bench: Bench) -> None:
    """From what the lifespan has opened; also where the attempt fails, and where its time is over."""
    app = bench.app()
    said: list[str] = []

    @app.lifespan
    async def lifespan(_: AsyncQ) -> AsyncIterator[list[str]]:
        yield said

    async def session(how: str) -> AsyncIterator[str]:
        said_by_all: list[str] = current_context().resources
        try:
            yield f"session {current_context().attempt}"
        except Exception as error:
            said_by_all.append(f"{how} saw {type(error).__name__}")
            raise
        finally:
            said_by_all.append(f"{how} closed {current_context().attempt}")

    @app.task(retry=RetryPolicy(on=ConnectionError, backoff=Fixed(0.02), jitter=False))
    def in_thread(how: str, session: str = Depends(session)) -> str:
        if session == "session 1":
            raise ConnectionError
        return session

    @app.task(time_limit=0.2)
    async def overdue(how: str, session: Annotated[str, Depends(session)] = Depends()) -> None:
        await asyncio.get_running_loop().create_future()

    async with bench.working(app):
        assert await in_thread.call("thread") == "session 2"
        with pytest.raises(TaskFailed, match="longer than its time limit"):
            await overdue.call("overdue")
    assert said == [
        "thread saw ConnectionError",
        "thread closed 1",
        "thread closed 2",
        "overdue saw AttemptInterrupted",
        "overdue closed 1",
    ]
