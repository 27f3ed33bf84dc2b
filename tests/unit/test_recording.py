"""What a worker writes into the result store, and what a store that is away does to it."""

import asyncio
import logging
from datetime import UTC, datetime

import pytest

from asyncq import TaskContext
from asyncq.clock import SystemClock
from asyncq.ending import Ending
from asyncq.errors import InvalidOption, MalformedMessage, MessageTooLarge, StoreUnavailable
from asyncq.keeping import KEEP, RESULT_TTL, Keeping, keeping_of, keeping_of_options
from asyncq.life import REPLAYS
from asyncq.message import ATTEMPT, ReplyType
from asyncq.outcome import Failed, Failure, Succeeded
from asyncq.program import Place, Workflow
from asyncq.program_json import with_place
from asyncq.recording import Recorder
from asyncq.status import StatusUpdate, TaskState, TaskStatus
from asyncq.stores.memory import MemoryStore, Shelf
from asyncq.worker.execution import Executed
from support import eventually
from worker_kit import Kit, make_kit, make_message


class WatchedStore(MemoryStore):
    """The store in memory; it writes down every update that it gets."""

    def __init__(self) -> None:
        self.shelf = Shelf()
        self.updates: list[StatusUpdate] = []
        super().__init__(self.shelf)

    async def write(self, updates):
        await super().write(updates)
        self.updates += updates

    @property
    def states(self) -> list[str]:
        return [update.state.value for update in self.updates]

    async def status(self) -> TaskStatus:
        (found,) = await self.read(["task-1"])
        assert found is not None
        return found


@pytest.fixture
def store() -> WatchedStore:
    return WatchedStore()


@pytest.fixture
async def parts(store, monkeypatch) -> Kit:
    """A worker's parts, with a result store and short pauses."""
    monkeypatch.setattr("asyncq.worker.recording._FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr("asyncq.worker.recording._LONGEST_PAUSE_S", 0.002)
    recorder = Recorder(store, SystemClock())
    kit = await make_kit(recorder=recorder)
    await recorder.open()
    return kit


async def test_a_task_that_ends_at_once_is_written_once(parts, store):
    """Its end tells when it began."""

    @parts.task()
    async def work() -> int:
        return 3

    await parts.slot.handle(parts.delivery("work"))
    assert store.states == ["succeeded"]
    status = await store.status()
    assert (status.state, status.result, status.attempt, status.worker) == (TaskState.SUCCEEDED, b"3", 1, "host:1")
    assert status.started_at is not None


async def test_a_task_that_runs_for_a_while_is_started_first(parts, store):
    """In the background: it waits for nobody."""
    go = asyncio.Event()

    @parts.task()
    async def work() -> None:
        await go.wait()

    running = asyncio.create_task(parts.slot.handle(parts.delivery("work")))
    await eventually(lambda: store.states == ["started"])
    go.set()
    await running
    assert store.states == ["started", "succeeded"]


async def test_the_end_is_kept_before_the_sender_hears_of_it_and_before_the_ack(parts, store):
    """Whoever has the result finds the end in the store."""
    order = parts.broker.log
    write = store._write_batch

    async def slowly(updates):
        await asyncio.sleep(0.02)
        await write(updates)
        order.append("store")

    store._gathering._write = slowly
    delivery = parts.delivery("work", reply_to="caller")
    await parts.settlement.settle(Executed(delivery, 1, Succeeded(b"1")))
    assert order == ["store", "reply succeeded", "ack"]


async def test_a_sender_does_not_wait_for_a_store_that_is_away(parts, store, monkeypatch):
    """It gets its result; the ack waits."""
    monkeypatch.setattr("asyncq.worker.recording._REPLY_AFTER_S", 0.01)
    store.shelf.away = True
    delivery = parts.delivery("work", reply_to="caller")
    settling = asyncio.create_task(parts.settlement.settle(Executed(delivery, 1, Succeeded(b"1"))))
    await eventually(lambda: parts.broker.log == ["reply succeeded"])
    assert delivery.settled is None
    store.shelf.away = False
    await settling
    assert delivery.settled == "acked"
    assert (await store.status()).state is TaskState.SUCCEEDED


async def test_a_store_that_stays_away_sends_the_task_back_without_a_failure(parts, store, monkeypatch, caplog):
    """As a copy of the same attempt: it runs again, and nothing counts against it."""
    monkeypatch.setattr("asyncq.worker.recording._LEAST_PATIENCE_S", 0.05)
    parts.recording._lease_s = 0
    store.shelf.away = True
    delivery = parts.delivery("work", headers={ATTEMPT: 2})
    outcome = await parts.settlement.settle(Executed(delivery, 2, Succeeded(b"1")))
    assert type(outcome).__name__ == "Drained"
    (copy,) = parts.broker.copies()
    assert copy.message.headers[ATTEMPT] == 2
    assert parts.broker.log == ["publish", "ack"]
    assert "could not be kept, so its message goes back" in caplog.text


@pytest.mark.parametrize("gives_up", [False, True])
async def test_the_sender_of_a_workflow_does_not_wait_for_a_store_that_is_away(parts, store, monkeypatch, gives_up):
    """It hears of the end that no task's own reply tells; also where the worker stops before the store is back."""
    monkeypatch.setattr("asyncq.worker.recording._REPLY_AFTER_S", 60.0 if gives_up else 0.01)
    store.shelf.away = True
    body = with_place(b"{}", Place(Workflow("flow", "caller")))
    delivery = parts.delivery("work", body=body)
    following = parts.continuing.following(delivery)
    assert following is not None
    if gives_up:
        parts.recording.give_up()
    ending = asyncio.create_task(following.end(Workflow("flow", "caller"), Ending(ReplyType.SUCCEEDED, b"1")))
    await eventually(lambda: [reply.task_id for reply in parts.broker.replies()] == ["flow"])
    assert ending.done() == gives_up
    store.shelf.away = False
    await ending


async def test_a_lease_that_is_lost_meanwhile_leaves_nothing_to_settle(parts, store):
    """The broker gives the message out again."""
    store.shelf.away = True
    delivery = parts.delivery("work")
    settling = asyncio.create_task(parts.settlement.settle(Executed(delivery, 1, Succeeded(b"1"))))
    await asyncio.sleep(0)
    delivery.lose()
    assert type(await settling).__name__ == "LostLease"
    assert parts.broker.log == []


async def test_nothing_is_noted_of_an_attempt_whose_lease_is_lost_until_it_has_another(parts, store):
    """What another worker writes must not be mixed with it."""
    parts.recording._interval_s = 0
    step = asyncio.Queue()

    @parts.task(pass_context=True)
    async def work(ctx: TaskContext) -> None:
        while (done := await step.get()) is not None:
            await ctx.progress(done)

    message = make_message("work")
    first = parts.delivery("work", message_id=message.message_id)
    first.message = message
    second = parts.delivery("work")
    second.message = message

    async def reaches(done):
        step.put_nowait(done)
        await eventually(lambda: [update.progress.done for update in store.updates if update.progress][-1:] == [done])

    running = asyncio.create_task(parts.slot.handle(first))
    await reaches(1)
    (attempt,) = parts.attempts
    attempt.watch_lease()
    first.lose()
    await running
    step.put_nowait(2)
    await eventually(step.empty)
    assert attempt.record.latest.done == 2
    adopted = asyncio.create_task(parts.slot.handle(second))
    await reaches(3)
    step.put_nowait(None)
    await adopted
    assert [update.progress.done for update in store.updates if update.progress] == [1, 3, 3]
    assert second.settled == "acked"


async def test_a_result_that_is_too_large_for_its_reply_is_a_failure_in_the_store_as_well(parts, store):
    """Not a success that nobody could be told."""
    parts.broker.fail("reply", MessageTooLarge("too large"))
    delivery = parts.delivery("work", reply_to="caller")
    outcome = await parts.settlement.settle(Executed(delivery, 1, Succeeded(b"1" * 70_000)))
    assert isinstance(outcome, Failed)
    status = await store.status()
    assert status.state is TaskState.FAILED
    assert status.error is not None
    assert status.error.type == "asyncq.errors.ResultTooLarge"


async def test_a_rejected_message_with_broken_headers_is_kept_as_failed(parts, store):
    """Whatever it says about keeping cannot be read."""
    delivery = parts.delivery("work", headers={KEEP: 7, "asyncq-due-at": "x", "asyncq-expires-at": -1})
    await parts.slot.handle(delivery)
    status = await store.status()
    assert (status.state, status.rejected, status.reason) == (TaskState.FAILED, True, "malformed message")
    assert (status.due_at, status.not_after) == (None, None)


async def test_a_message_that_says_nonsense_about_keeping_is_malformed(parts, store):
    """As with any other asyncq header."""

    @parts.task()
    async def work() -> None: ...

    await parts.slot.handle(parts.delivery("work", headers={KEEP: "all"}))
    assert (await store.status()).reason == "malformed message"


async def test_of_errors_only_a_success_corrects_what_a_failure_has_left(parts, store):
    """A dead letter that was replayed must not stay failed."""
    failure = Failure("builtins.ValueError", "no")
    await parts.settlement.settle(Executed(parts.delivery("work", headers={KEEP: "errors"}), 1, Succeeded(b"1")))
    assert store.updates == []
    await parts.settlement.settle(
        Executed(parts.delivery("work", headers={KEEP: "errors"}), 1, Failed(failure, "no retry policy"))
    )
    assert store.states == ["failed"]
    replayed = parts.delivery("work", headers={KEEP: "errors", REPLAYS: 1})
    await parts.settlement.settle(Executed(replayed, 1, Succeeded(b"1")))
    assert store.states == ["failed", "succeeded"]
    assert (await store.status()).result is None


async def test_an_app_writes_no_notes_while_its_store_is_away_and_says_so_once(store, caplog):
    """Sends are not held up, and the log is not filled."""
    caplog.set_level(logging.INFO)
    recorder = Recorder(store, SystemClock())
    await recorder.open()
    store.shelf.away = True
    update = StatusUpdate("task-1", TaskState.QUEUED, datetime.now(UTC))
    for _ in range(20):
        await recorder.note([update])
    assert caplog.text.count("the result store cannot be used") == 1
    with pytest.raises(StoreUnavailable):
        await recorder.write([update])
    store.shelf.away = False
    await recorder.write([update])
    assert "the result store is used again" in caplog.text
    assert "states_missed=20" in caplog.text
    await recorder.note([update])
    assert len(store.updates) == 2
    await recorder.close()


@pytest.mark.parametrize(
    ("headers", "keeping"),
    [
        ({}, Keeping()),
        ({KEEP: "errors"}, Keeping("errors")),
        ({RESULT_TTL: 1500}, Keeping(None, 1.5)),
        ({KEEP: "nothing", RESULT_TTL: 1}, Keeping("nothing", 0.001)),
    ],
)
def test_what_is_kept_travels_in_headers(headers, keeping):
    """There and back."""
    assert keeping.headers() == headers
    assert keeping_of(make_message("work", headers=headers)) == keeping


@pytest.mark.parametrize("headers", [{KEEP: "all"}, {KEEP: 1}, {RESULT_TTL: 0}, {RESULT_TTL: "60"}, {RESULT_TTL: True}])
def test_headers_that_say_something_else_make_a_malformed_message(headers):
    """As other malformed asyncq headers do."""
    with pytest.raises(MalformedMessage, match="task-1 must be"):
        keeping_of(make_message("work", headers=headers))


@pytest.mark.parametrize(
    ("keep", "result_ttl", "says"),
    [
        ("all", None, r"@task\(keep=\.\.\.\) takes one of 'result', 'errors', 'nothing', not 'all'"),
        (True, None, "keep="),
        (None, 0, "from a millisecond to"),
        (None, -1, "result_ttl"),
        (None, "60", "result_ttl"),
        (None, 1e12, "100 years"),
    ],
)
def test_options_that_cannot_be_used_say_what_is_wanted(keep, result_ttl, says):
    """At the declaration, or at the send."""
    with pytest.raises(InvalidOption, match=says):
        keeping_of_options(keep, result_ttl, "@task")
