"""Dead letters: parked with the reason, and looked at without changing anything."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from asyncq.broker import Broker, DeadLetterRecord, DeadLetters, Queue, QueueSpec
from asyncq.errors import MessageTooLarge, QueueGone
from asyncq.message import Message
from asyncq.outcome import Failure
from asyncq.testing.conformance.bench import (
    QUEUE,
    WAIT_S,
    Bench,
    behaviour,
    dead_letter,
    dead_letters,
    eventually,
    make_message,
    put,
    take,
)

RECORD = DeadLetterRecord(
    failure=Failure("builtins.ValueError", "Grüße: no such address", "Traceback ...\nValueError"),
    reason="attempts exhausted",
    failed_at_ms=1_750_000_000_123,
    attempts=4,
    queue=QUEUE,
    worker="host 4711",
)


async def _park(broker: Broker, count: int, *, first: int = 0) -> list[str]:
    messages = [make_message(number) for number in range(first, first + count)]
    for message in messages:
        await broker.dead_letters(QUEUE).put(message, RECORD, timeout_s=WAIT_S)
    return [message.task_id for message in messages]


async def _look(letters: DeadLetters, limit: int | None = None) -> list[str]:
    return [letter.message.task_id async for letter in letters.browse(limit=limit)]


@behaviour
async def test_a_dead_letter_comes_back_with_its_record_as_it_was_put(bench: Bench) -> None:
    """Body, type, ids and the sender's own headers are the task's; its place in the queue is a new message."""
    message = make_message(1, headers={"mine": "kept", "traceparent": "00-1", "asyncq-attempt": 4}, app_id="shop")
    async with bench.open() as broker:
        await broker.dead_letters(QUEUE).put(message, RECORD, timeout_s=WAIT_S)
        letter = await dead_letter(broker)
    assert letter.record == RECORD
    kept = [(each.type, each.body, each.task_id, each.app_id) for each in (letter.message, message)]
    assert kept[0] == kept[1]
    assert (letter.message.headers["mine"], letter.message.headers["traceparent"]) == ("kept", "00-1")
    assert letter.message.message_id not in {None, message.message_id}


@behaviour
async def test_a_dead_letter_outlives_the_connection_that_put_it(bench: Bench) -> None:
    """It is the broker's to keep."""
    async with bench.open() as broker:
        ids = await _park(broker, 2)
    async with bench.open() as later:
        assert await _look(later.dead_letters(QUEUE)) == ids


@behaviour
async def test_a_long_traceback_and_a_long_message_are_cut_in_their_middle(bench: Bench) -> None:
    """To 8 KB and 4 KB: the beginning and the end are what helps."""
    failure = Failure("a.B", "m" * 100_000, "first line" + "ü" * 100_000 + "last line")
    async with bench.open() as broker:
        record = DeadLetterRecord(failure, "why", 1, 1, QUEUE, "worker")
        await broker.dead_letters(QUEUE).put(make_message(), record, timeout_s=WAIT_S)
        letter = await dead_letter(broker)
    assert letter.record is not None
    traceback = letter.record.failure.traceback
    assert 8_000 < len(traceback.encode()) <= 8 * 1024
    assert (traceback[:10], traceback[-9:]) == ("first line", "last line")
    assert 4_000 < len(letter.record.failure.message.encode()) <= 4 * 1024


@behaviour
async def test_headers_that_would_harm_a_dead_letter_stay_behind(bench: Bench) -> None:
    """Those of the broker, extra copies, the used-up patience for an unknown task, and what fits into no frame."""
    poison = {"CC": ["other"], "BCC": ["other"], "x-death": [], "asyncq-unknown-since": 1, "huge": "m" * 100_000}
    async with bench.open() as broker:
        message = make_message(headers={**poison, "mine": "kept"})
        await broker.dead_letters(QUEUE).put(message, RECORD, timeout_s=WAIT_S)
        letter = await dead_letter(broker)
    assert not poison.keys() & letter.message.headers.keys()
    assert letter.message.headers["mine"] == "kept"
    assert letter.record == RECORD


@behaviour
async def test_a_dead_letter_that_is_too_large_is_not_put(bench: Bench) -> None:
    """As with every publish."""
    async with bench.open(max_message_bytes=10_000) as broker:
        too_large = make_message(body=b"x" * 20_000)
        with pytest.raises(MessageTooLarge):
            await broker.dead_letters(QUEUE).put(too_large, RECORD, timeout_s=WAIT_S)
        assert await dead_letters(broker) == []


async def _all_back(bench: Bench, count: int) -> None:
    """Wait until what was looked at is in its place again: a broker may take a moment for that."""

    async def counted() -> bool:
        return await bench.count(f"{QUEUE}.dead") == count

    await eventually(counted)


async def _look_at_first(letters: DeadLetters, count: int) -> list[str]:
    """Break a look off after so many letters."""
    seen = []
    async with aclosing(letters.browse()) as found:  # type: ignore[type-var]
        async for letter in found:
            seen.append(letter.message.task_id)
            if len(seen) == count:
                break
    return seen


@behaviour
async def test_dead_letters_are_shown_oldest_first_and_no_more_than_asked_for(bench: Bench) -> None:
    """Without a limit all of them."""
    async with bench.open() as broker:
        ids = await _park(broker, 12)
        letters = broker.dead_letters(QUEUE)
        for limit in (0, 5, 5, 100, None):
            assert await _look(letters, limit) == ids[:limit]
            await _all_back(bench, 12)


@behaviour
async def test_looking_at_dead_letters_changes_nothing(bench: Bench) -> None:
    """Not after thirty looks: all are there, in their order, with their records."""
    async with bench.open() as broker:
        ids = await _park(broker, 8)
        for _ in range(30):
            assert await _look(broker.dead_letters(QUEUE)) == ids
            await _all_back(bench, 8)
        assert [letter.record for letter in await dead_letters(broker)] == [RECORD] * 8


@behaviour
async def test_a_look_that_is_broken_off_gives_everything_back(bench: Bench) -> None:
    """The caller has found what it wanted."""
    async with bench.open() as broker:
        ids = await _park(broker, 8)
        letters = broker.dead_letters(QUEUE)
        for _ in range(3):
            assert await _look_at_first(letters, 5) == ids[:5]
            await _all_back(bench, 8)
        assert await _look(letters) == ids


@behaviour
async def test_a_look_at_some_of_the_letters_that_were_all_looked_at_before_keeps_their_order(bench: Bench) -> None:
    """The next look begins with the oldest again; where it does not, no letter is lost by that."""
    async with bench.open() as broker:
        ids = await _park(broker, 8)
        letters = broker.dead_letters(QUEUE)
        assert await _look(letters) == ids
        await _all_back(bench, 8)
        assert await _look(letters, 3) == ids[:3]
        await _all_back(bench, 8)
        behind = bench.differs("letters that were looked at go to the end")
        assert await _look(letters) == (ids[3:] + ids[:3] if behind else ids)


@behaviour
async def test_a_look_ends_though_letters_keep_coming(bench: Bench) -> None:
    """It shows what was there when it began."""
    async with bench.open() as broker:
        await _park(broker, 4)
        seen = 0
        async for _ in broker.dead_letters(QUEUE).browse():
            seen += 1
            await _park(broker, 2, first=seen * 10)
        assert seen == 4


@behaviour
async def test_two_looks_at_once_lose_nothing(bench: Bench) -> None:
    """Each letter is seen by one of them or by both, and all are there afterwards."""
    async with bench.open() as broker, bench.open() as other:
        ids = await _park(broker, 20)
        one, two = await asyncio.gather(_look(broker.dead_letters(QUEUE)), _look(other.dead_letters(QUEUE)))
        assert {*one, *two} == set(ids)
        await eventually(lambda: _all_there(broker, ids))


async def _all_there(broker: Broker, ids: list[str]) -> bool:
    return sorted(await _look(broker.dead_letters(QUEUE))) == sorted(ids)


@behaviour
async def test_dead_letters_of_a_queue_that_does_not_exist_are_an_error(bench: Bench) -> None:
    """A mistyped name must not look like "nothing has failed"."""
    async with bench.open() as broker:
        with pytest.raises(QueueGone, match=r"'nowhere\.dead'"):
            await dead_letters(broker, "nowhere")


@behaviour
async def test_a_deleted_dead_letter_queue_is_declared_again_by_the_next_letter(bench: Bench) -> None:
    """The letter is kept; a task queue that was deleted on purpose does not come back by this."""
    async with bench.open() as broker:
        await bench.delete_queue(f"{QUEUE}.dead")
        await bench.delete_queue(QUEUE)
        with pytest.raises(QueueGone):
            await dead_letters(broker)
        ids = await _park(broker, 1)
        assert await _look(broker.dead_letters(QUEUE)) == ids
        with pytest.raises(QueueGone):
            async with broker.consume(QUEUE, slots=1):
                pass


@behaviour
async def test_dead_letters_of_two_queues_do_not_mix(bench: Bench) -> None:
    """Those that are put, and those that the broker puts there."""
    async with bench.open(QueueSpec(QUEUE), QueueSpec("other")) as broker:
        await _park(broker, 1)
        await put(broker, 1, first=7, to=Queue("other"))
        async with broker.consume("other", slots=1) as subscription:
            (delivery,) = await take(subscription, 1)
            await delivery.reject()
        letter = await dead_letter(broker, "other")
        assert (letter.message.task_id, letter.record) == ("task-7", None)
        assert (await dead_letter(broker)).message.task_id == "task-0"


@behaviour
async def test_a_foreign_message_among_the_dead_letters_is_shown_as_it_is(bench: Bench) -> None:
    """A body that is no JSON, no type, and headers that are a record of nothing."""
    headers = {"asyncq-error-type": 7, "asyncq-failed-at": "soon", "asyncq-reason": None}
    garbage = Message(type="", body=b"\xff\xfe", task_id="t", message_id="m", content_type=None, headers=headers)
    async with bench.open() as broker:
        await broker.publish(garbage, Queue(f"{QUEUE}.dead"), timeout_s=WAIT_S)
        letter = await dead_letter(broker)
    assert letter.record is None
    assert (letter.message.body, letter.message.type, letter.message.task_id) == (b"\xff\xfe", "", "t")


@behaviour
async def test_a_second_death_by_the_broker_does_not_show_the_record_of_the_first(bench: Bench) -> None:
    """Somebody has moved the letter back to its queue with all its headers; then a worker rejected it."""
    async with bench.open() as broker:
        await _park(broker, 1)
        moved = (await dead_letter(broker)).message
        await bench.delete_queue(f"{QUEUE}.dead")
        await broker.ensure([QueueSpec(QUEUE)])
        await broker.publish(moved, Queue(QUEUE), timeout_s=WAIT_S)
        async with broker.consume(QUEUE, slots=1) as subscription:
            (delivery,) = await take(subscription, 1)
            await delivery.reject()
        assert (await dead_letter(broker)).record is None
