"""The app's lifespan around a worker: when it is entered and left, and what becomes of one that fails."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest

from asyncq.app import AsyncQ
from asyncq.context import TaskContext
from asyncq.errors import AuthenticationFailed, InvalidOption, LifespanFailed
from asyncq.settings import Settings
from asyncq.worker.lifespan import run_in_lifespan
from asyncq.worker.worker import Worker
from support import eventually
from worker_kit import App, Kit, make_kit, make_message


def make_worker(kit: Kit, lifespan: Callable[[], AsyncIterator[Any]] | None) -> Worker:
    entered = None if lifespan is None else contextlib.asynccontextmanager(lifespan)()
    app = App(kit.tasks, kit.broker, Settings(drain_timeout_s=5), lifespan=entered)
    no_sender: Any = None
    return Worker(app, no_sender, {"work": 2}, kit.clock, grace_s=0.05)


async def test_resources_are_there_before_the_first_task_and_closed_after_the_last() -> None:
    """Also for a task that ends during the drain; in tasks on the loop and in threads."""
    kit = await make_kit()
    said: list[str] = []
    go_on = asyncio.Event()

    async def lifespan() -> AsyncIterator[list[str]]:
        assert kit.broker.declared == []
        said.append("opened")
        async with anyio.create_task_group():  # what is opened by structured concurrency is closed by it
            yield said
        said.append("closed")

    @kit.task(pass_context=True)
    async def slow(ctx: TaskContext[list[str]]) -> None:
        await go_on.wait()
        ctx.resources.append("slow")

    @kit.task(pass_context=True)
    def quick(ctx: TaskContext[list[str]]) -> None:
        ctx.resources.append("quick")

    worker = make_worker(kit, lifespan)
    running = asyncio.create_task(worker.run())
    kit.broker.put("work", make_message("slow"))
    kit.broker.put("work", make_message("quick"))
    await eventually(lambda: said == ["opened", "quick"])
    worker.stop()
    go_on.set()
    assert await asyncio.wait_for(running, 10) == 0
    assert said == ["opened", "quick", "slow", "closed"]


async def test_a_task_of_an_app_without_a_lifespan_is_told_what_to_write() -> None:
    """As the attempt's error."""
    kit = await make_kit()

    @kit.task(pass_context=True)
    async def work(ctx: TaskContext) -> None:
        _ = ctx.resources

    worker = make_worker(kit, None)
    running = asyncio.create_task(worker.run())
    kit.broker.put("work", make_message("work"))
    await eventually(lambda: worker.stats().outcomes == {"Failed": 1})
    (letter,) = await kit.letters()
    assert letter.record is not None
    assert "@app.lifespan" in letter.record.failure.message
    worker.stop()
    await asyncio.wait_for(running, 10)


async def test_a_lifespan_that_cannot_begin_ends_the_worker_before_it_consumes() -> None:
    """The message says what it raised, and a note says where."""
    kit = await make_kit()

    async def lifespan() -> AsyncIterator[None]:
        raise ConnectionError("no database")
        yield

    worker = make_worker(kit, lifespan)
    with pytest.raises(LifespanFailed, match=r"before its `yield`.*ConnectionError: no database") as raised:
        await asyncio.wait_for(worker.run(), 10)
    assert isinstance(raised.value.__cause__, ConnectionError)
    assert 'raise ConnectionError("no database")' in raised.value.__notes__[0]
    assert kit.broker.declared == []


async def test_a_lifespan_that_cannot_end_is_told_after_the_drain() -> None:
    """Nothing of the tasks is lost by it."""
    kit = await make_kit()

    @kit.task()
    async def work() -> None: ...

    async def lifespan() -> AsyncIterator[None]:
        yield
        raise OSError("disk full")

    worker = make_worker(kit, lifespan)
    running = asyncio.create_task(worker.run())
    kit.broker.put("work", make_message("work"))
    await eventually(lambda: worker.stats().outcomes == {"Succeeded": 1})
    worker.stop()
    with pytest.raises(LifespanFailed, match=r"after its `yield`.*OSError: disk full"):
        await asyncio.wait_for(running, 10)


async def test_a_worker_that_shall_stop_while_its_lifespan_begins_stops() -> None:
    """What the lifespan waits for is cancelled, and it can clean up."""
    kit = await make_kit()
    said: list[str] = []

    async def lifespan() -> AsyncIterator[None]:
        said.append("began")
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0)
            said.append("cleaned up")
        yield

    worker = make_worker(kit, lifespan)
    running = asyncio.create_task(worker.run())
    await eventually(lambda: said == ["began"])
    worker.stop()
    assert await asyncio.wait_for(running, 10) == 0
    assert said == ["began", "cleaned up"]
    assert kit.broker.declared == []


async def test_what_was_opened_is_closed_where_the_worker_fails() -> None:
    """Without a `finally` around the yield as well: the worker's error is not raised there."""
    kit = await make_kit()
    said: list[str] = []

    async def lifespan() -> AsyncIterator[None]:
        yield
        said.append("closed")

    worker = make_worker(kit, lifespan)

    async def fail(*_: object) -> None:
        raise RuntimeError("no queues")

    kit.broker.ensure = fail  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="no queues"):
        await asyncio.wait_for(worker.run(), 10)
    assert said == ["closed"]


def test_an_app_takes_a_generator_or_a_context_manager_and_one_of_them() -> None:
    """By argument or by decorator; what cannot be one is refused at once."""

    async def generator(app: AsyncQ) -> AsyncIterator[int]:
        yield 1

    assert AsyncQ("shop", lifespan=generator).open_lifespan() is not None
    assert AsyncQ("shop", lifespan=contextlib.asynccontextmanager(generator)).open_lifespan() is not None
    app = AsyncQ("shop")
    assert app.open_lifespan() is None
    assert app.lifespan(generator) is generator
    with pytest.raises(InvalidOption, match="has a lifespan already"):
        app.lifespan(generator)

    async def no_yield(app: AsyncQ) -> None: ...

    async def no_argument() -> AsyncIterator[int]:
        yield 1

    for wrong, words in ((no_yield, "has no `yield`"), ("text", "no function"), (no_argument, "one argument, the app")):
        with pytest.raises(InvalidOption, match=words):
            AsyncQ("shop", lifespan=wrong)  # type: ignore[arg-type]


async def test_what_ended_the_worker_is_told_and_not_what_its_lifespan_says_then(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whoever supervises it goes by that: a worker that the broker refuses is not to be started again and again."""

    async def lifespan() -> AsyncIterator[None]:
        yield
        raise RuntimeError("the pool is broken as well")

    async def work(_: Callable[[], Any]) -> int:
        raise AuthenticationFailed("wrong password")

    entered = contextlib.asynccontextmanager(lifespan)()
    with pytest.raises(AuthenticationFailed, match="wrong password"):
        await run_in_lifespan(entered, asyncio.Event(), work)
    assert "the pool is broken as well" in caplog.text
