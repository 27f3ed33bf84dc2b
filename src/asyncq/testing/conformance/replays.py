"""Dead letters that are counted, taken, sent back and purged: each stays, or goes where it was meant to go."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import pytest

from asyncq.app import AsyncQ
from asyncq.broker import Broker, DeadLetter, DeadLetterRecord, Delay, Queue, QueueSpec
from asyncq.context import TaskContext
from asyncq.dead_letters.filters import DeadLetterFilter
from asyncq.dead_letters.queue import DeadLetterQueue
from asyncq.dead_letters.reports import LetterCount
from asyncq.errors import InvalidOption, InvalidQueueName, QueueGone
from asyncq.history import FailedAttempt
from asyncq.message import Message
from asyncq.outcome import Failure
from asyncq.testing.conformance.bench import QUEUE, WAIT_S, Bench, behaviour, eventually, make_message, put, take

UNROUTABLE = "asyncq.unroutable"
HISTORY = (FailedAttempt(1, 1_750_000_000_123, "builtins.ValueError", "no such address", "host 4711"),)
RECORD = DeadLetterRecord(
    failure=Failure("builtins.ValueError", "no such address", "Traceback ..."),
    reason="attempts exhausted",
    failed_at_ms=1_750_000_000_123,
    attempts=4,
    queue=QUEUE,
    worker="host 4711",
    history=HISTORY,
)


@asynccontextmanager
async def _opened(bench: Bench, *queues: QueueSpec) -> AsyncIterator[AsyncQ]:
    app = bench.app()
    async with app:
        await app.broker.ensure(queues or [QueueSpec(QUEUE)])
        yield app


async def _park(broker: Broker, *messages: Message, record: DeadLetterRecord = RECORD) -> None:
    for message in messages:
        await broker.dead_letters(QUEUE).put(message, record, timeout_s=WAIT_S)


async def _park_some(broker: Broker, count: int) -> list[str]:
    messages = [make_message(number) for number in range(count)]
    await _park(broker, *messages)
    return [message.task_id for message in messages]


async def _ids(letters: DeadLetterQueue, where: DeadLetterFilter | None = None) -> list[str]:
    return [letter.message.task_id async for letter in letters.browse(where)]


async def _arrived(broker: Broker, count: int, queue: str = QUEUE) -> list[Message]:
    """Return so many messages of a queue, and take them out of it."""
    async with broker.consume(queue, slots=count) as subscription:
        deliveries = await take(subscription, count)
        for delivery in deliveries:
            await delivery.ack()
    return [delivery.message for delivery in deliveries]


# --- counting, taking


@behaviour
async def test_dead_letters_are_counted(bench: Bench) -> None:
    """Without being read; of a queue that does not exist there is no number."""
    async with _opened(bench) as app:
        letters = app.dead_letters(QUEUE)
        assert await letters.count() == 0
        await _park_some(app.broker, 3)
        assert await letters.count() == 3
        with pytest.raises(QueueGone, match=r"'nowhere\.dead'"):
            await app.dead_letters("nowhere").count()


@behaviour
async def test_of_the_letters_that_are_taken_the_settled_ones_are_gone_and_the_others_stay_in_order(
    bench: Bench,
) -> None:
    """Whether it was said that they are kept, or nothing was said."""
    async with bench.open() as broker:
        ids = await _park_some(broker, 40)
        async with broker.dead_letters(QUEUE).take() as taking:
            assert taking.total == 40
            number = 0
            async for taken in taking:
                assert taken.letter.message.task_id == ids[number]
                if number % 4 == 0:
                    await taking.settle([taken])
                elif number % 2 == 0:
                    taking.keep(taken)
                number += 1
            assert number == 40
        left = [one for place, one in enumerate(ids) if place % 4]
        assert [letter.message.task_id async for letter in broker.dead_letters(QUEUE).browse()] == left


@behaviour
async def test_letters_that_were_taken_are_back_when_their_handling_fails(bench: Bench) -> None:
    """All of them, but for those that were settled before."""
    async with bench.open() as broker:
        ids = await _park_some(broker, 6)

        async def fail() -> None:
            async with broker.dead_letters(QUEUE).take() as taking:
                async for taken in taking:
                    await taking.settle([taken])
                    raise KeyError

        with pytest.raises(KeyError):
            await fail()
        assert [letter.message.task_id async for letter in broker.dead_letters(QUEUE).browse()] == ids[1:]


# --- replaying


@behaviour
async def test_a_replayed_task_is_the_same_task_with_its_attempts_from_the_first(bench: Bench) -> None:
    """Id, body, reply address and the sender's own headers stay; of its death only the history is left."""
    dead = make_message(
        1,
        headers={"mine": "kept", "asyncq-attempt": 4, "asyncq-first-at": 1, "asyncq-expires-at": 2, "asyncq-due-at": 3},
        reply_to="asyncq.reply.somewhere",
        app_id="shop",
    )
    async with _opened(bench) as app:
        await _park(app.broker, dead)
        report = await app.dead_letters(QUEUE).replay()
        assert (report.total, report.examined, report.matched, report.replayed, report.failed) == (1, 1, 1, 1, 0)
        assert await app.dead_letters(QUEUE).count() == 0
        (message,) = await _arrived(app.broker, 1)
    same = [(one.type, one.body, one.task_id, one.reply_to, one.app_id) for one in (message, dead)]
    assert same[0] == same[1]
    assert message.message_id not in {None, dead.message_id}
    headers = {name for name in message.headers if not name.startswith("x-")}
    assert headers == {"mine", "asyncq-history", "asyncq-sent-at", "asyncq-replays"}


@behaviour
async def test_a_task_that_failed_succeeds_when_it_is_replayed_after_the_repair(bench: Bench) -> None:
    """The whole way round, with a worker."""
    app = bench.app()
    repaired: list[bool] = []
    attempts: list[tuple[str, int]] = []

    @app.task(pass_context=True)
    async def greet(ctx: TaskContext, name: str) -> str:
        attempts.append((ctx.task_id, ctx.attempt))
        if not repaired:
            raise ConnectionError(name)
        return f"Hello {name}"

    async with bench.working(app) as worker:
        handle = await greet.send("Ann")
        letters = app.dead_letters(QUEUE)
        await eventually(lambda: _counted(letters, 1))
        repaired.append(True)
        assert (await letters.replay()).replayed == 1
        await eventually(lambda: worker.stats().outcomes.get("Succeeded") == 1)
        assert await letters.count() == 0
    assert attempts == [(handle.id, 1), (handle.id, 1)]


async def _counted(letters: DeadLetterQueue, count: int) -> bool:
    return await letters.count() == count


@behaviour
async def test_letters_that_fail_again_at_once_are_not_replayed_for_ever(bench: Bench) -> None:
    """A replay ends with what was there when it began, though a worker puts all of it back meanwhile."""
    app = bench.app(breaker=None)  # all of them fail, and the slots shall not pause

    @app.task
    async def fail(number: int) -> None:
        raise ValueError(number)

    async with bench.working(app) as worker:
        await app.send_many(fail.options(reply=False).s(number) for number in range(250))
        letters = app.dead_letters(QUEUE)
        await eventually(lambda: _counted(letters, 250))
        report = await letters.replay()
        assert (report.total, report.replayed) == (250, 250)
        await eventually(lambda: worker.stats().outcomes.get("Failed") == 500)
        await eventually(lambda: _counted(letters, 250))


@behaviour
async def test_only_the_letters_that_a_filter_means_are_replayed(bench: Bench) -> None:
    """By task, error, reason, age, id; the others stay, in their order."""
    kinds = [
        (make_message(0, type="shop.mail"), RECORD),
        (make_message(1, type="shop.mail"), replace(RECORD, failure=Failure("a.b.TimeoutError", "late"))),
        (make_message(2, type="shop.bill"), replace(RECORD, reason="no retry policy")),
        (make_message(3, type="bank.pay"), replace(RECORD, failed_at_ms=1)),
    ]
    filters = [
        ("task-0 task-1", DeadLetterFilter(task="shop.mail")),
        ("task-0 task-1 task-2", DeadLetterFilter(task="shop.*")),
        ("task-1", DeadLetterFilter(error="TimeoutError")),
        ("task-0 task-2 task-3", DeadLetterFilter(error="builtins.ValueError")),
        ("", DeadLetterFilter(error="Timeout")),
        ("task-2", DeadLetterFilter(reason="no *")),
        ("task-0 task-1 task-2", DeadLetterFilter(newer_than=timedelta(days=36_500), task="s*")),
        ("task-3", DeadLetterFilter(older_than=1_700_000_000)),
        ("task-1 task-3", DeadLetterFilter(ids=["task-3", "task-1", "task-9"])),
    ]
    async with _opened(bench) as app:
        letters = app.dead_letters(QUEUE)
        for message, record in kinds:
            await _park(app.broker, message, record=record)
        for meant, where in filters:
            assert await _ids(letters, where) == meant.split()
        assert (await letters.replay(DeadLetterFilter(ids=["task-9"]))).missing_ids == ("task-9",)
        report = await letters.replay(DeadLetterFilter(error="TimeoutError"))
        assert (report.examined, report.matched, report.replayed) == (4, 1, 1)
        assert [message.task_id for message in await _arrived(app.broker, 1)] == ["task-1"]
        assert await _ids(letters) == ["task-0", "task-2", "task-3"]


@behaviour
async def test_a_dry_run_counts_and_changes_nothing_and_a_limit_means_the_oldest(bench: Bench) -> None:
    """For replays and purges alike."""
    async with _opened(bench) as app:
        letters = app.dead_letters(QUEUE)
        ids = await _park_some(app.broker, 6)
        assert (await letters.replay(dry_run=True)).replayed == 6
        assert (await letters.purge(dry_run=True, limit=4)).purged == 4
        assert await bench.count(QUEUE) == 0
        assert await _ids(letters) == ids
        assert (await letters.replay(limit=0)).replayed == 0
        assert (await letters.replay(limit=2)).replayed == 2
        assert [message.task_id for message in await _arrived(app.broker, 2)] == ids[:2]
        assert (await letters.purge(limit=1)).purged == 1
        assert await _ids(letters) == ids[3:]


@behaviour
async def test_letters_are_replayed_to_another_queue_with_other_arguments(bench: Bench) -> None:
    """What is not named keeps its very text, and what belongs to workflows stays."""
    body = b'{"n": 1.50, "$then": {"task": "shop.next"}, "to": "old"}'
    async with _opened(bench, QueueSpec(QUEUE), QueueSpec("other")) as app:
        await _park(app.broker, make_message(1, body=body))
        report = await app.dead_letters(QUEUE).replay(to="other", arguments={"to": "new", "more": [1]})
        assert report.replayed == 1
        (message,) = await _arrived(app.broker, 1, "other")
    assert json.loads(message.body) == {"n": 1.5, "$then": {"task": "shop.next"}, "to": "new", "more": [1]}
    assert b'"n":1.50' in message.body


@behaviour
async def test_arguments_that_the_task_would_refuse_are_not_sent(bench: Bench) -> None:
    """The app knows the task, so the letter stays, with what pydantic says; letters of unknown tasks go on."""
    app = bench.app()

    @app.task
    async def pay(amount: int) -> None: ...

    async with app:
        await app.broker.ensure([QueueSpec(QUEUE)])
        await _park(app.broker, make_message(1, type="shop.pay", body=b'{"amount":1}'), make_message(2))
        await _park(app.broker, make_message(3, body=b"no JSON"))
        letters = app.dead_letters(QUEUE)
        report = await letters.replay(arguments={"amount": "much"})
        assert (report.replayed, report.failed, report.failed_ids) == (1, 2, ("task-1", "task-3"))
        assert any("amount: Input should be a valid integer" in reason for reason in report.failures)
        assert any("no JSON object" in reason for reason in report.failures)
        assert await _ids(letters) == ["task-1", "task-3"]
        with pytest.raises(InvalidOption, match=r"'\$then' is not"):
            await letters.replay(arguments={"$then": 1})


@behaviour
async def test_a_letter_that_no_queue_takes_stays_and_the_others_go_on(bench: Bench) -> None:
    """It is counted, with the reason and its id."""
    async with _opened(bench) as app:
        await _park(app.broker, make_message(1), record=replace(RECORD, queue="nowhere"))
        await _park(app.broker, make_message(2))
        letters = app.dead_letters(QUEUE)
        report = await letters.replay()
        assert (report.matched, report.replayed, report.failed, report.failed_ids) == (2, 1, 1, ("task-1",))
        (reason,) = report.failures
        assert "There is no queue 'nowhere'" in reason
        assert await _ids(letters) == ["task-1"]
        assert [message.task_id for message in await _arrived(app.broker, 1)] == ["task-2"]
        with pytest.raises(InvalidQueueName):
            await letters.replay(to=f"{QUEUE}.dead")


@behaviour
async def test_a_purge_removes_what_is_meant_for_good(bench: Bench) -> None:
    """And nothing else."""
    async with _opened(bench) as app:
        letters = app.dead_letters(QUEUE)
        ids = await _park_some(app.broker, 5)
        assert (await letters.purge(DeadLetterFilter(ids=ids[1:3]))).purged == 2
        assert await _ids(letters) == [ids[0], *ids[3:]]
        assert (await letters.purge()).purged == 3
        assert await letters.count() == 0
        assert await bench.count(QUEUE) == 0


@behaviour
async def test_a_summary_counts_by_queue_task_error_and_reason(bench: Bench) -> None:
    """With the oldest and the newest of each kind; one letter is found by its id."""
    later = replace(RECORD, failed_at_ms=RECORD.failed_at_ms + 5)
    async with _opened(bench) as app:
        letters = app.dead_letters(QUEUE)
        await _park(app.broker, make_message(1), make_message(2))
        await _park(app.broker, make_message(3), record=later)
        await _park(app.broker, make_message(4, type="shop.other"))
        begin, end = RECORD.failed_at_ms, later.failed_at_ms
        assert await letters.summary() == [
            LetterCount(QUEUE, "shop.work", "builtins.ValueError", "attempts exhausted", 3, begin, end),
            LetterCount(QUEUE, "shop.other", "builtins.ValueError", "attempts exhausted", 1, begin, begin),
        ]
        found = await letters.get("task-3")
        assert found is not None
        assert (found.message.task_id, found.record, found.queue) == ("task-3", later, QUEUE)
        assert await letters.get("task-9") is None


# --- what the broker itself has parked


@behaviour
async def test_what_a_worker_rejected_is_replayed_to_its_queue(bench: Bench) -> None:
    """There is no record of ours: the broker's own says where it died, and when."""
    async with _opened(bench) as app:
        await put(app.broker, 1, first=7)
        await _reject(app.broker, QUEUE)
        letters = app.dead_letters(QUEUE)
        await eventually(lambda: _counted(letters, 1))
        letter = await _only(letters)
        assert (letter.record, letter.queue, letter.broker_reason) == (None, QUEUE, "rejected")
        assert letter.failed_at_ms is not None
        assert await _ids(letters, DeadLetterFilter(reason="rejected", newer_than=3_600)) == ["task-7"]
        assert (await letters.replay()).replayed == 1
        (message,) = await _arrived(app.broker, 1)
        assert message.task_id == "task-7"
        assert "x-death" not in message.headers


async def _reject(broker: Broker, queue: str) -> None:
    async with broker.consume(queue, slots=1) as subscription:
        (delivery,) = await take(subscription, 1)
        await delivery.reject()


async def _only(letters: DeadLetterQueue) -> DeadLetter:
    (letter,) = [letter async for letter in letters.browse()]
    return letter


@behaviour
async def test_a_delayed_task_whose_queue_was_deleted_is_replayed_when_its_queue_stands_again(bench: Bench) -> None:
    """It is in the queue for unroutable messages, which the same tools read, and knows where it was going."""
    async with _opened(bench, QueueSpec(QUEUE), QueueSpec("a.mail")) as app:
        await put(app.broker, 1, to=Queue("a.mail"), delay=Delay(0.2))
        await bench.delete_queue("a.mail")
        letters = app.dead_letters(UNROUTABLE)
        await eventually(lambda: _counted(letters, 1))
        letter = await _only(letters)
        assert (letter.queue, letter.record, letter.broker_reason) == ("a.mail", None, "expired")
        report = await letters.replay()
        assert (report.replayed, report.failed_ids) == (0, ("task-0",))
        await app.broker.ensure([QueueSpec("a.mail")])
        assert (await letters.replay()).replayed == 1
        (message,) = await _arrived(app.broker, 1, "a.mail")
        assert message.task_id == "task-0"
        assert await letters.count() == 0


@behaviour
async def test_what_was_rejected_while_its_dead_letter_queue_was_gone_is_replayed_to_its_task_queue(
    bench: Bench,
) -> None:
    """That is unroutable, too."""
    async with _opened(bench) as app:
        await bench.delete_queue(f"{QUEUE}.dead")
        await put(app.broker, 1)
        await _reject(app.broker, QUEUE)
        letters = app.dead_letters(UNROUTABLE)
        await eventually(lambda: _counted(letters, 1))
        assert (await _only(letters)).queue == QUEUE
        assert (await letters.replay()).replayed == 1
        assert [message.task_id for message in await _arrived(app.broker, 1)] == ["task-0"]
