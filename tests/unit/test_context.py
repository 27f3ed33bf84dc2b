"""What a running task sees and can do, and where it can be found."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import threading
from datetime import UTC, datetime
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from asyncq.context import ContextServices, TaskContext, current_context, running
from asyncq.errors import BrokerUnavailable, NoContext, NotSent
from asyncq.message import Message
from asyncq.results import Progress
from asyncq.sync import TaskSync


class Published(list[tuple[Message, Progress]]):
    """Takes progress updates, or fails as it was told."""

    error: Exception | None = None

    async def publish(self, message: Message, update: Progress) -> None:
        if self.error is not None:
            raise self.error
        self.append((message, update))


def no_sync(context: TaskContext) -> TaskSync:
    pytest.fail("nobody asked for ctx.sync")


MESSAGE = Message(type="shop.mail", body=b"{}", task_id="id-1", message_id="m-1", headers={"shop-x": 1}, reply_to="me")


def make_context(published: Published | None = None, **more: Any) -> TaskContext:
    publish = (published if published is not None else Published()).publish
    return TaskContext(MESSAGE, "mail", 2, ContextServices(publish, more.pop("sync_of", no_sync)), **more)


def test_a_context_tells_what_runs():
    """Id, name, queue, attempt and headers are those of the message."""
    context = make_context()
    assert (context.task_id, context.task_name, context.queue, context.attempt) == ("id-1", "shop.mail", "mail", 2)
    assert context.headers == {"shop-x": 1}
    assert repr(context) == "TaskContext('shop.mail', task_id='id-1', attempt=2)"


def test_headers_are_read_only():
    """A task that changed them would change what its retry carries."""
    context = make_context()
    with pytest.raises(TypeError):
        context.headers["shop-x"] = 2  # type: ignore[index]
    assert MESSAGE.headers == {"shop-x": 1}


def test_the_deadline_is_an_aware_datetime():
    """Or None where there is no limit."""
    assert make_context().deadline is None
    assert make_context(deadline_ms=1_772_366_400_250).deadline == datetime(2026, 3, 1, 12, 0, 0, 250_000, UTC)


def test_cancelled_turns_true_when_the_worker_says_so():
    """A thread asks it now and then."""
    context = make_context()
    assert not context.cancelled
    context.mark_cancelled()
    assert context.cancelled


async def test_progress_goes_to_the_sender_of_the_message():
    """With label and details, as they were given."""
    published = Published()
    await make_context(published).progress(25, 100, "PROCESSING", file="a.png", sizes=[1, 2])
    assert published == [(MESSAGE, Progress(25, 100, "PROCESSING", {"file": "a.png", "sizes": [1, 2]}))]


@pytest.mark.parametrize("error", [BrokerUnavailable("away"), NotSent("never left")])
async def test_progress_never_fails_the_task_because_of_the_broker(error: Exception):
    """It is logged, and the task goes on."""
    published = Published()
    published.error = error
    with capture_logs() as logs:
        await make_context(published).progress(1)
    (entry,) = logs
    assert (entry["log_level"], entry["error"], entry["task_id"]) == ("warning", str(error), "id-1")


@pytest.mark.parametrize(
    ("args", "details"),
    [
        (("half",), {}),
        ((None,), {}),
        ((True,), {}),
        ((math.nan,), {}),
        ((1, math.inf), {}),
        ((1, "100"), {}),
        ((10**400,), {}),
        ((1, 2, 3), {}),
        ((1,), {"file": object()}),
        ((1,), {"ratio": math.nan}),
        ((1,), {"content": b"x"}),
    ],
)
async def test_progress_that_is_no_json_is_the_tasks_own_mistake(args: Any, details: Any):
    """A TypeError says which value it is, and nothing is published."""
    published = Published()
    with pytest.raises(TypeError, match="progress"):
        await make_context(published).progress(*args, **details)
    assert published == []


def test_the_log_carries_the_task():
    """Every line has the id, the name and the attempt."""
    with capture_logs() as logs:
        make_context().log.info("sent", to="x")
    assert logs == [
        {"event": "sent", "to": "x", "task_id": "id-1", "task": "shop.mail", "attempt": 2, "log_level": "info"}
    ]


def test_the_log_works_where_structlog_was_never_set_up(caplog: pytest.LogCaptureFixture):
    """Then the lines go to the standard library's logging, with the task's values in the text."""
    structlog.reset_defaults()
    with caplog.at_level(logging.INFO, logger="asyncq.task"):
        make_context().log.info("sent", to="x")
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("asyncq.task", "INFO")
    assert record.getMessage() == "sent task_id='id-1' task='shop.mail' attempt=2 to='x'"


def test_the_log_is_made_once_and_only_when_it_is_wanted():
    """Most tasks log nothing."""
    context = make_context()
    assert context._log is None
    assert context.log is context.log


def test_blocking_calls_are_made_once_and_only_when_they_are_wanted():
    """`ctx.sync` is asked of the worker at its first use."""
    made: list[TaskContext] = []

    def sync_of(context: TaskContext) -> Any:
        made.append(context)
        return object()

    context = make_context(sync_of=sync_of)
    assert made == []
    assert context.sync is context.sync
    assert made == [context]


def test_outside_a_task_there_is_no_current_context():
    """The error says where there is one."""
    with pytest.raises(NoContext, match="No task is running here"):
        current_context()


async def test_helpers_find_the_context_of_the_task_that_called_them():
    """Also in asyncio tasks and threads that the task has started by asyncio."""
    context = make_context()

    async def helper() -> TaskContext:
        return current_context()

    with running(context) as entered:
        assert entered is current_context() is context
        assert await asyncio.create_task(helper()) is context
        assert await asyncio.to_thread(current_context) is context
    with pytest.raises(NoContext):
        current_context()


async def test_two_tasks_at_once_see_their_own_contexts():
    """A worker runs many tasks on one loop."""
    both_run = asyncio.Barrier(2)

    async def task(context: TaskContext) -> bool:
        with running(context):
            await both_run.wait()
            return current_context() is context

    assert await asyncio.gather(task(make_context()), task(make_context())) == [True, True]


def test_a_worker_can_set_the_context_in_the_variables_of_the_code_that_it_starts():
    """What it sets there is not seen anywhere else."""
    variables, context = contextvars.copy_context(), make_context()
    variables.run(running(context).__enter__)
    seen: list[TaskContext] = []
    thread = threading.Thread(target=lambda: seen.append(variables.run(current_context)))
    thread.start()
    thread.join()
    assert seen == [context]
    with pytest.raises(NoContext):
        current_context()
