"""What a worker does with messages that it cannot run, whoever has sent them."""

from __future__ import annotations

import asyncio
import time

from asyncq.app import AsyncQ
from asyncq.broker import Broker, Queue, ReplyTo
from asyncq.context import TaskContext
from asyncq.message import Message, new_id
from asyncq.retry import Fixed, RetryPolicy
from asyncq.testing.conformance.bench import (
    QUEUE,
    WAIT_S,
    Bench,
    behaviour,
    dead_letter,
    dead_letters,
    eventually,
    take,
)

SOON = RetryPolicy(backoff=Fixed(0.02), jitter=False, max_attempts=3)


def _app_that_never_runs(bench: Bench) -> AsyncQ:
    app = bench.app()

    @app.task(retry=SOON)
    async def work(x: int) -> None:
        raise AssertionError("must not run")

    return app


async def _publish(broker: Broker, body: bytes, **fields: object) -> None:
    known: dict[str, object] = {"type": "shop.work", "task_id": new_id(), "message_id": new_id(), **fields}
    await broker.publish(Message(body=body, **known), Queue(QUEUE), timeout_s=WAIT_S)  # type: ignore[arg-type]


@behaviour
async def test_a_message_that_is_no_task_message_is_a_dead_letter_at_once(bench: Bench) -> None:
    """With the reason in words, and the body as it was."""
    app = _app_that_never_runs(bench)
    malformed: list[tuple[bytes, dict[str, object]]] = [
        (b"not json", {}),
        (b"\xff\xfe", {}),
        (b"[1]", {}),
        (b"", {}),
        (b'{"x":1}', {"headers": {"asyncq-attempt": "three"}}),
        (b'{"x":1}', {"content_type": "application/x-pickle"}),
        (b'{"x":1}', {"content_encoding": "gzip"}),
        (b'{"x":1}', {"type": ""}),
    ]
    async with bench.working(app):
        for number, (body, fields) in enumerate(malformed):
            await _publish(app.broker, body, task_id=f"task-{number}", **fields)
        await eventually(lambda: _holds(app.broker, len(malformed)))
        letters = {letter.message.task_id: letter for letter in await dead_letters(app.broker)}
    for number, (body, _) in enumerate(malformed):
        letter = letters[f"task-{number}"]
        assert letter.record is not None
        assert letter.record.reason == "malformed message"
        assert letter.record.failure.message
        assert letter.message.body == body


async def _holds(broker: Broker, count: int) -> bool:
    return len(await dead_letters(broker)) == count


@behaviour
async def test_arguments_that_do_not_validate_are_a_dead_letter_at_once(bench: Bench) -> None:
    """The error names the argument; a retry would change nothing. Who waits for the result hears of it."""
    app = _app_that_never_runs(bench)
    async with bench.working(app), app.broker.mailbox() as mailbox:
        for body in (b'{"x":"one"}', b"{}"):
            await _publish(app.broker, body, task_id="mine", reply_to=mailbox.address)
            async with asyncio.timeout(WAIT_S):
                reply = await anext(aiter(mailbox))
            assert (reply.type, reply.task_id) == ("rejected", "mine")
        letters = await dead_letters(app.broker)
    assert [letter.message.body for letter in letters] == [b'{"x":"one"}', b"{}"]
    for letter in letters:
        assert letter.record is not None
        assert (letter.record.reason, letter.record.attempts) == ("invalid arguments", 1)
        assert "x" in letter.record.failure.message


@behaviour
async def test_a_message_with_nothing_but_type_and_body_is_run(bench: Bench) -> None:
    """What a foreign producer must do is little; keys with a dollar sign are no arguments."""
    app = bench.app()
    seen = []

    @app.task(pass_context=True)
    async def work(ctx: TaskContext, x: int) -> None:
        seen.append((x, ctx.attempt, bool(ctx.task_id)))

    async with bench.working(app):
        bare = Message(
            type="shop.work", body=b'{"x":1,"$then":[]}', task_id="t", message_id=new_id(), content_type=None
        )
        await app.broker.publish(bare, Queue(QUEUE), timeout_s=WAIT_S)
        await eventually(lambda: seen == [(1, 1, True)])


@behaviour
async def test_a_task_that_nobody_knows_waits_and_is_then_a_dead_letter(bench: Bench) -> None:
    """One wait, however often the message comes back; the reason names the task."""
    app = bench.app(unknown_task_patience_s=0.5)

    @app.task
    async def known() -> None: ...

    async with bench.working(app) as worker:
        began = time.monotonic()
        await _publish(app.broker, b"{}", type="shop.new")
        letter = await dead_letter(app.broker)
        assert time.monotonic() - began >= 0.4
        assert worker.stats().outcomes["Deferred"] >= 1
    assert letter.record is not None
    assert letter.record.reason == "unknown task"
    assert "'shop.new'" in letter.record.failure.message
    assert "asyncq-unknown-since" not in letter.message.headers


@behaviour
async def test_a_task_that_is_unknown_at_first_is_run_by_a_worker_that_knows_it(bench: Bench) -> None:
    """A rolling deploy: new names reach old workers."""
    old, new = (bench.app(unknown_task_patience_s=2) for _ in range(2))

    @old.task
    async def known() -> None: ...

    @new.task
    async def fresh(x: int) -> int:
        return x + 1

    async with new:
        async with bench.working(old) as worker:
            handle = await new.send("shop.fresh", {"x": 1}, queue=QUEUE)
            await eventually(lambda: worker.stats().outcomes.get("Deferred"))
        async with bench.working(new):
            assert await handle.result(WAIT_S) == 2


@behaviour
async def test_a_message_that_came_back_too_often_is_not_run_again(bench: Bench) -> None:
    """It may be what ends the workers: it fails with a record, before the broker takes it without one."""
    app = bench.app(poison_after=2)

    @app.task
    async def work() -> None:
        raise AssertionError("must not run")

    async with app:
        await work.send()
        for _ in range(2):
            async with app.broker.consume(QUEUE, slots=1) as subscription:
                await take(subscription, 1)
    async with bench.working(app):
        letter = await dead_letter(app.broker)
    assert letter.record is not None
    assert letter.record.reason == "delivered too often"


@behaviour
async def test_a_message_with_headers_that_would_harm_its_copies_is_retried_and_parked(bench: Bench) -> None:
    """100 KB of headers, and those that make extra copies: a copy takes what is safe."""
    app = bench.app()

    @app.task(retry=SOON)
    async def work(x: int) -> None:
        raise ValueError("no")

    async with bench.working(app):
        headers = {"CC": ["shop.other"], "kept": "a", **{f"foreign-{n}": "x" * 10_000 for n in range(10)}}
        await _publish(app.broker, b'{"x":1}', headers=headers)
        letter = await dead_letter(app.broker)
    assert letter.record is not None
    assert letter.record.attempts == 3
    assert letter.message.headers["kept"] == "a"
    assert "CC" not in letter.message.headers


@behaviour
async def test_a_body_that_is_too_large_for_a_copy_is_dead_lettered_by_the_broker(bench: Bench) -> None:
    """A producer may be allowed to send more than this worker is."""
    app = bench.app(max_message_bytes=10_000)

    @app.task
    async def work(text: str) -> None:
        raise ValueError("no")

    async with bench.working(app), bench.open() as broker:
        await _publish(broker, b'{"text":"%s"}' % (b"x" * 50_000))
        letter = await dead_letter(broker)
    assert letter.record is None
    assert len(letter.message.body) > 50_000


@behaviour
async def test_a_reply_to_somebody_who_is_gone_is_no_fault(bench: Bench) -> None:
    """The task has done its work, and its message is gone."""
    app = bench.app()

    @app.task
    async def work() -> int:
        return 1

    async with bench.working(app) as worker:
        await _publish(app.broker, b"{}", reply_to=ReplyTo("nobody.is.here").name)
        await _publish(app.broker, b'{"bad":1}', reply_to="nobody.is.here")
        await eventually(lambda: worker.stats().outcomes == {"Succeeded": 1, "Rejected": 1})
    assert await bench.count(QUEUE) == 0
