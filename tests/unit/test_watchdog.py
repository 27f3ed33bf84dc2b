"""A worker's watchdog says which task blocks the event loop, and what runs."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator

import pytest

from asyncq.dependencies import Depends
from asyncq.worker.watchdog import Watchdog
from support import eventually
from worker_kit import Kit, make_kit

BLOCKED = "the event loop is blocked"


@contextlib.asynccontextmanager
async def watching(kit: Kit, blocked_after_s: float) -> AsyncIterator[Watchdog]:
    watchdog = Watchdog(kit.attempts, kit.threads, blocked_after_s)
    watchdog.start()
    try:
        yield watchdog
    finally:
        watchdog.stop()
        await eventually(lambda: not any(thread.name == "asyncq-watchdog" for thread in threading.enumerate()))


def said(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if text in record.getMessage()]


async def test_a_task_that_blocks_the_loop_is_named_while_it_does_and_when_it_ends(caplog):
    """With its id, its attempt, its queue, how long it takes, and its stack."""
    kit = await make_kit()
    seen_meanwhile = []

    def block() -> None:
        deadline = time.monotonic() + 10
        while not said(caplog, BLOCKED) and time.monotonic() < deadline:
            time.sleep(0.01)
        seen_meanwhile.extend(said(caplog, BLOCKED))

    @kit.task()
    async def work() -> None:
        block()

    async with watching(kit, 0.1):
        await kit.slot.handle(kit.delivery("work"))
        await eventually(lambda: said(caplog, "the event loop goes on"))
    assert "task='work' task_id='task-1' attempt=1 queue='work'" in seen_meanwhile[0]
    assert "in block" in seen_meanwhile[0]
    assert "runners.py" not in seen_meanwhile[0]


async def test_a_middleware_that_blocks_the_loop_is_named_with_the_attempt_that_it_is_around(caplog):
    """And a dependency; what asyncq runs them by is not in the stack."""

    def block(where: str) -> None:
        began, deadline = len(said(caplog, BLOCKED)), time.monotonic() + 10
        while len(said(caplog, BLOCKED)) == began and time.monotonic() < deadline:
            time.sleep(0.01)
        stacks[where] = said(caplog, BLOCKED)[-1]

    async def middleware(info, call_next):
        block("middleware")
        return await call_next()

    async def dependency() -> None:
        block("dependency")

    stacks: dict[str, str] = {}
    kit = await make_kit(middleware=[middleware])

    @kit.task()
    async def work(_: None = Depends(dependency)) -> None: ...

    async with watching(kit, 0.1):
        await kit.slot.handle(kit.delivery("work"))
    for where, stack in stacks.items():
        assert "task='work' task_id='task-1' attempt=1 queue='work'" in stack
        assert f"in {where}" in stack
        assert "around.py" not in stack
    assert set(stacks) == {"middleware", "dependency"}


async def test_code_that_is_no_attempt_is_told_by_the_name_of_its_asyncio_task(caplog):
    """What a task has started, for example."""
    kit = await make_kit()

    async def block() -> None:
        deadline = time.monotonic() + 10
        while not said(caplog, BLOCKED) and time.monotonic() < deadline:
            time.sleep(0.01)  # noqa: ASYNC251 - it is blocked on purpose

    async with watching(kit, 0.1):
        await asyncio.create_task(block(), name="somebody's")
    assert "somebody's" in said(caplog, BLOCKED)[0]


@pytest.mark.parametrize("blocked_after_s", [0.5, 0])
async def test_a_loop_that_answers_is_left_alone(caplog, blocked_after_s):
    """However busy its threads are; and 0 watches nothing."""
    kit = await make_kit()
    async with watching(kit, blocked_after_s):
        if blocked_after_s == 0:
            time.sleep(0.3)  # noqa: ASYNC251 - it is blocked on purpose
        await asyncio.gather(*(asyncio.to_thread(time.sleep, 0.3) for _ in range(4)))
    assert said(caplog, BLOCKED) == []


async def test_a_loop_that_is_closed_ends_the_watch():
    """Nobody needs to stop it then."""
    kit = await make_kit()

    def run() -> None:
        async def start() -> None:
            Watchdog(kit.attempts, kit.threads, 0.05).start()

        asyncio.run(start())

    await asyncio.to_thread(run)
    await eventually(lambda: not any(thread.name == "asyncq-watchdog" for thread in threading.enumerate()))


async def test_a_dump_tells_what_runs_on_the_loop_and_in_threads(caplog):
    """Each with the stack of its own code, to the innermost line."""
    kit = await make_kit()
    go_on, in_thread = asyncio.Event(), threading.Event()

    async def inner() -> None:
        await go_on.wait()

    @kit.task()
    async def waits() -> None:
        await inner()

    @kit.task()
    def holds() -> None:
        in_thread.wait(20)

    handling = [asyncio.create_task(kit.slot.handle(kit.delivery(name))) for name in ("waits", "holds")]
    await eventually(lambda: len(kit.attempts) == 2)
    async with watching(kit, 0) as watchdog:
        watchdog.dump()
        shown = await eventually(lambda: len(said(caplog, "running task task=")) == 2 and caplog.records)
        assert shown is not None
    go_on.set()
    in_thread.set()
    await asyncio.gather(*handling)
    by_task = {line.split("task='")[1].split("'")[0]: line for line in said(caplog, "running task task=")}
    assert "await inner()" in by_task["waits"]
    assert "await go_on.wait()" in by_task["waits"]
    assert "waits for <Future pending" in by_task["waits"]
    assert "in_thread.wait(20)" in by_task["holds"]
    assert "asyncio" not in by_task["holds"]


@pytest.fixture(autouse=True)
def _all_levels(caplog):
    caplog.set_level(logging.INFO)
