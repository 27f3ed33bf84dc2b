"""A worker on a real broker: what happens to tasks that fail, hang, lie, or lose their worker."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aio_pika
import pytest

from asyncq.app import AsyncQ
from asyncq.context import TaskContext
from asyncq.errors import TaskFailed, TaskRejected, Unroutable
from asyncq.retry import Fixed, RetryPolicy
from asyncq.signals import Reject, Retry, Snooze
from asyncq.worker.worker import Worker
from support import eventually

QUEUE = "shop"
SOON = RetryPolicy(backoff=Fixed(0.02), jitter=False, max_attempts=3)


@contextlib.asynccontextmanager
async def working(app: AsyncQ, slots: int = 4, *, grace_s: float = 0.1) -> AsyncIterator[Worker]:
    """Open the app and run a worker for its queue."""
    async with app:
        worker = app.worker({QUEUE: slots})
        worker._grace_s = grace_s
        running = asyncio.create_task(worker.run())
        try:
            await eventually(lambda: bool(worker._consumers) and worker._consumers[0]._subscription is not None)
            yield worker
        finally:
            worker.stop()
            await asyncio.wait_for(running, 30)


@contextlib.asynccontextmanager
async def foreign(url: str) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
    """Another program's AMQP client."""
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        yield channel


async def publish(url: str, body: bytes | dict, **properties) -> None:
    """Publish a message as a foreign producer does."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with foreign(url) as channel:
        message = aio_pika.Message(raw, **{"content_type": "application/json", **properties})
        await channel.default_exchange.publish(message, QUEUE)


async def dead_letter(url: str) -> aio_pika.abc.AbstractIncomingMessage:
    """Wait for the dead letter, and take it."""
    async with foreign(url) as channel:
        queue = await channel.get_queue(f"{QUEUE}.dead", ensure=False)

        async def get():
            return await queue.get(no_ack=True, fail=False)

        return await eventually(get, 20)


# --- retries


async def test_a_task_that_fails_twice_comes_back_through_the_ladder_and_succeeds(broker_url, management):
    """With attempts 1, 2 and 3, and nothing left behind."""
    app = AsyncQ("shop", broker=broker_url)
    attempts = []

    @app.task(retry=SOON, pass_context=True)
    async def flaky(ctx: TaskContext, x: int) -> int:
        attempts.append((ctx.attempt, ctx.task_id))
        if ctx.attempt < 3:
            raise ConnectionError("not yet")
        return x * 2

    async with working(app) as worker:
        handle = await flaky.send(4)
        assert await handle.result(10) == 8
        assert attempts == [(1, handle.id), (2, handle.id), (3, handle.id)]
        await eventually(lambda: worker.stats().outcomes == {"RetryLater": 2, "Succeeded": 1})
    assert await management.ready(QUEUE) == 0
    assert await management.ready(f"{QUEUE}.dead") == 0


async def test_a_task_whose_attempts_are_used_up_is_a_dead_letter_with_its_error(broker_url):
    """The headers say what, when, where and how often; the body is the sender's own."""
    app = AsyncQ("shop", broker=broker_url)

    def connect() -> None:
        raise ConnectionError("the host is gone")

    @app.task(retry=SOON)
    async def doomed(x: int) -> None:
        try:
            connect()
        except ConnectionError as error:
            raise Retry from error

    async with working(app):
        handle = await doomed.send(4)
        with pytest.raises(TaskFailed) as caught:
            await handle.result(10)
        letter = await dead_letter(broker_url)
    assert (caught.value.type, caught.value.message) == ("builtins.ConnectionError", "the host is gone")
    assert "the host is gone" in caught.value.traceback
    assert (letter.body, letter.type, letter.correlation_id) == (b'{"x":4}', "shop.doomed", handle.id)
    headers = letter.headers
    assert headers["asyncq-error-type"] == "builtins.ConnectionError"
    assert headers["asyncq-error-message"] == "the host is gone"
    assert headers["asyncq-reason"] == "attempts exhausted"
    assert headers["asyncq-attempts"] == 3
    assert headers["asyncq-queue"] == QUEUE
    assert str(os.getpid()) in headers["asyncq-worker"]
    assert abs(headers["asyncq-failed-at"] - time.time() * 1000) < 60_000


async def test_retry_after_is_exact_and_a_snooze_is_no_attempt(broker_url):
    """Neither comes early."""
    app = AsyncQ("shop", broker=broker_url)
    runs = []

    @app.task(pass_context=True)
    async def patient(ctx: TaskContext) -> None:
        runs.append((ctx.attempt, time.monotonic()))
        if len(runs) == 1:
            raise Snooze(0.3)
        if len(runs) == 2:
            raise Retry(after=0.4)

    async with working(app):
        await patient.call()
    assert [attempt for attempt, _ in runs] == [1, 1, 2]
    assert 0.3 <= runs[1][1] - runs[0][1] < 3
    assert 0.4 <= runs[2][1] - runs[1][1] < 3


async def test_a_rejected_message_is_not_tried_again(broker_url):
    """The sender and the dead letter have the reason."""
    app = AsyncQ("shop", broker=broker_url)

    @app.task(retry=SOON)
    async def picky() -> None:
        raise Reject("wrong country")

    async with working(app):
        with pytest.raises(TaskRejected, match="wrong country"):
            await picky.call()
        assert (await dead_letter(broker_url)).headers["asyncq-reason"] == "wrong country"


async def test_a_thread_can_send_call_and_report_by_blocking_calls(broker_url):
    """`ctx.sync` uses the worker's own loop and connections."""
    app = AsyncQ("shop", broker=broker_url)

    @app.task
    async def double(x: int) -> int:
        return 2 * x

    @app.task(pass_context=True)
    def work(ctx: TaskContext, x: int) -> int:
        ctx.sync.progress(1, 2, label="HALF", note="x")
        return ctx.sync.call(double.s(x)) + ctx.sync.send(double.s(1)).result(10)

    async with working(app):
        handle = await work.send(4)
        updates = [(item.done, item.total, item.label, item.details) async for item in handle.updates()]
        assert updates == [(1, 2, "HALF", {"note": "x"})]
        assert await handle.result(10) == 10


# --- tasks that misbehave


@pytest.mark.parametrize("in_thread", [False, True], ids=["async", "thread"])
async def test_no_task_can_end_the_worker(broker_url, in_thread):
    """sys.exit, a CancelledError of the task's own, KeyboardInterrupt: the next task runs as ever."""
    app = AsyncQ("shop", broker=broker_url)
    errors = {"exit": SystemExit(3), "cancel": asyncio.CancelledError(), "interrupt": KeyboardInterrupt()}

    def fail(kind: str) -> str:
        if kind in errors:
            raise errors[kind]
        return kind

    async def fail_async(kind: str) -> str:
        return fail(kind)

    task = app.task(name="shop.fail")(fail if in_thread else fail_async)
    async with working(app, slots=1):
        for kind, error in errors.items():
            with pytest.raises(TaskFailed) as caught:
                await task.call(kind)
            assert caught.value.type.endswith(type(error).__name__)
        assert await task.call("fine") == "fine"


async def test_an_async_task_that_runs_into_its_limit_fails_with_time_limit_exceeded(broker_url):
    """Its `finally` runs to the end."""
    app = AsyncQ("shop", broker=broker_url)
    cleaned = []

    @app.task(time_limit=0.1)
    async def slow() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            cleaned.append(1)

    async with working(app, grace_s=5):
        with pytest.raises(TaskFailed) as caught:
            await slow.call()
    assert caught.value.type == "asyncq.errors.TimeLimitExceeded"
    assert cleaned == [1]


async def test_a_thread_that_overruns_is_settled_and_keeps_its_slot(broker_url, management):
    """Its consumer is gone until it returns, so nothing waits behind it; then the slot is open again."""
    app = AsyncQ("shop", broker=broker_url)
    go_on = threading.Event()

    @app.task(time_limit=0.1)
    def stuck() -> None:
        go_on.wait(30)

    @app.task
    async def quick(n: int) -> int:
        return n

    try:
        async with working(app, slots=2) as worker:
            with pytest.raises(TaskFailed, match="TimeLimitExceeded"):
                await stuck.call()

            async def consumers() -> int:
                return len(await management.consumers(QUEUE))

            async def one_consumer_is_left() -> bool:
                return await consumers() == 1

            await eventually(one_consumer_is_left, 20)
            assert worker.stats().threads_busy == 1
            assert [await quick.call(n) for n in range(5)] == list(range(5))
            go_on.set()

            async def both_consume() -> bool:
                return await consumers() == 2

            await eventually(both_consume, 20)
            assert worker.stats().threads_busy == 0
            assert await quick.call(7) == 7
    finally:
        go_on.set()


async def test_a_result_that_cannot_be_written_is_a_failure_and_no_retry(broker_url):
    """The work was done."""
    app = AsyncQ("shop", broker=broker_url)
    runs = []

    @app.task(retry=SOON)
    async def odd() -> int:
        runs.append(1)
        return object()  # type: ignore[return-value]

    async with working(app):
        with pytest.raises(TaskFailed) as caught:
            await odd.call()
        assert (await dead_letter(broker_url)).headers["asyncq-reason"] == "result not serialisable"
    assert caught.value.type == "asyncq.errors.ResultNotSerialisable"
    assert runs == [1]


async def test_a_result_that_is_too_large_is_a_failure_that_says_so(broker_url):
    """In place of a caller that waits for ever."""
    app = AsyncQ("shop", broker=broker_url, max_message_bytes=100_000)

    @app.task
    async def big() -> str:
        return "x" * 200_000

    async with working(app):
        with pytest.raises(TaskFailed) as caught:
            await big.call()
    assert caught.value.type == "asyncq.errors.ResultTooLarge"


# --- messages that misbehave


@pytest.mark.parametrize(
    ("body", "properties", "reason"),
    [
        (b"not json", {}, "malformed message"),
        (b"[1]", {}, "malformed message"),
        (b"", {}, "malformed message"),
        ({"x": "one"}, {}, "invalid arguments"),
        ({}, {}, "invalid arguments"),
        ({"x": 1}, {"headers": {"asyncq-attempt": "three"}}, "malformed message"),
        ({"x": 1}, {"content_type": "application/x-pickle"}, "malformed message"),
        ({"x": 1}, {"content_encoding": "gzip"}, "malformed message"),
        ({"x": 1}, {"type": None}, "malformed message"),
    ],
)
async def test_a_message_that_cannot_be_run_is_a_dead_letter_at_once(broker_url, body, properties, reason):
    """With the reason, and its body as it was."""
    app = AsyncQ("shop", broker=broker_url)

    @app.task(retry=SOON)
    async def work(x: int) -> None:
        raise AssertionError("must not run")

    async with working(app):
        await publish(broker_url, body, **{"type": "shop.work", **properties})
        letter = await dead_letter(broker_url)
    assert letter.headers["asyncq-reason"] == reason
    assert letter.headers["asyncq-error-message"]
    assert letter.body == (body if isinstance(body, bytes) else json.dumps(body).encode())


async def test_a_message_with_nothing_but_type_and_body_is_run(broker_url):
    """What a foreign producer must do is little: no ids, no content type."""
    app = AsyncQ("shop", broker=broker_url)
    seen = []

    @app.task(pass_context=True)
    async def work(ctx: TaskContext, x: int) -> None:
        seen.append((x, ctx.attempt, bool(ctx.task_id)))

    async with working(app):
        await publish(broker_url, {"x": 1}, type="shop.work", content_type=None)
        await eventually(lambda: seen == [(1, 1, True)])


async def test_a_foreign_message_full_of_poison_ends_as_a_dead_letter_and_harms_nobody(broker_url):
    """user_id, expiration, CC and 100 KB of headers: copies are made from a whitelist."""
    app = AsyncQ("shop", broker=broker_url)

    @app.task(retry=SOON)
    async def work(x: int) -> None:
        raise ValueError("no")

    user = broker_url.split("//")[1].split(":")[0]
    async with working(app):
        headers = {"CC": ["shop.other"], **{f"foreign-{n}": "x" * 10_000 for n in range(10)}}
        await publish(broker_url, {"x": 1}, type="shop.work", user_id=user, expiration=60, headers=headers)
        letter = await dead_letter(broker_url)
    assert letter.headers["asyncq-attempts"] == 3
    assert letter.expiration is None
    assert letter.user_id is None
    assert "CC" not in letter.headers


async def test_an_unknown_task_waits_on_the_ladder_and_is_then_a_dead_letter(broker_url):
    """One wait, however often it comes back."""
    app = AsyncQ("shop", broker=broker_url, unknown_task_patience_s=0.5)

    @app.task
    async def work() -> None: ...

    async with working(app) as worker:
        await publish(broker_url, {}, type="shop.new")
        began = time.monotonic()
        letter = await dead_letter(broker_url)
        assert time.monotonic() - began >= 0.4
        assert worker.stats().outcomes["Deferred"] >= 1
    assert letter.headers["asyncq-reason"] == "unknown task"
    assert "'shop.new'" in letter.headers["asyncq-error-message"]
    assert "asyncq-unknown-since" not in letter.headers


async def test_an_unknown_task_is_run_once_a_worker_knows_it(broker_url):
    """A rolling deploy."""
    old, new = (AsyncQ("shop", broker=broker_url, unknown_task_patience_s=1.5) for _ in range(2))

    @old.task(name="shop.old")
    async def known() -> None: ...

    @new.task
    async def fresh(x: int) -> int:
        return x + 1

    async with working(old) as worker, new:
        handle = await new.send("shop.fresh", {"x": 1}, queue=QUEUE)
        await eventually(lambda: worker.stats().outcomes.get("Deferred"))
        worker.stop()
        async with working(new):
            assert await handle.result(10) == 2


async def test_a_body_that_is_too_large_to_publish_again_is_dead_lettered_by_the_broker(broker_url):
    """A foreign producer may send more than this worker may."""
    app = AsyncQ("shop", broker=broker_url, max_message_bytes=100_000)

    @app.task
    async def work(text: str) -> None:
        raise ValueError("no")

    async with working(app):
        await publish(broker_url, {"text": "x" * 1_000_000}, type="shop.work")
        letter = await dead_letter(broker_url)
    assert len(letter.body) > 1_000_000
    assert letter.headers["x-death"][0]["reason"] == "rejected"


async def test_a_reply_to_a_producer_that_is_gone_is_no_fault(broker_url, management):
    """The task is acked."""
    app = AsyncQ("shop", broker=broker_url)
    done = []

    @app.task
    async def work() -> None:
        done.append(1)

    async with working(app) as worker:
        await publish(broker_url, {}, type="shop.work", reply_to="nobody.is.here")
        await publish(broker_url, {"bad": 1}, type="shop.work", reply_to="nobody.is.here")
        await eventually(lambda: worker.stats().outcomes == {"Succeeded": 1, "Rejected": 1})
    assert await management.ready(QUEUE) == 0


# --- lost workers, queues and connections

KILLED = """
import asyncio, os, sys
from asyncq.app import AsyncQ

app = AsyncQ("shop", broker=sys.argv[1])

@app.task
async def work(path: str) -> str:
    with open(path, "a") as file:
        file.write("killed\\n")
    await asyncio.sleep(600)
    return "never"

async def main():
    async with app:
        await app.worker({"shop": 2}).run()

asyncio.run(main())
"""


async def test_a_task_whose_worker_is_killed_is_run_by_another_one(broker_url, tmp_path):
    """SIGKILL in the middle of the task: the broker gives it out again."""
    app = AsyncQ("shop", broker=broker_url)

    @app.task
    async def work(path: str) -> str:
        with Path(path).open("a") as file:  # noqa: ASYNC230 - one line
            file.write("done\n")
        return "done"

    ledger, program = tmp_path / "ledger", tmp_path / "victim.py"
    program.write_text(KILLED)
    victim = await asyncio.create_subprocess_exec(sys.executable, str(program), broker_url)
    try:
        async with app:
            await eventually(lambda: _declared(broker_url), 20)
            handle = await work.send(str(ledger))
            await eventually(lambda: ledger.exists() and ledger.read_text() == "killed\n", 20)
            victim.send_signal(signal.SIGKILL)
            await victim.wait()
            async with working(app):
                assert await handle.result(30) == "done"
    finally:
        if victim.returncode is None:
            victim.kill()
            await victim.wait()
    assert ledger.read_text() == "killed\ndone\n"


async def _declared(url: str) -> bool:
    async with foreign(url) as channel:
        try:
            await channel.declare_queue(QUEUE, passive=True)
        except aio_pika.exceptions.ChannelNotFoundEntity:
            return False
        return True


async def test_a_message_that_has_killed_too_many_workers_is_not_run_again(broker_url):
    """It ends as a failed task with a record, before the broker's own limit takes it without one."""
    app = AsyncQ("shop", broker=broker_url, delivery_limit=2)

    @app.task
    async def work() -> None:
        raise AssertionError("must not run")

    async with working(app) as worker:
        worker.stop()
    await publish(broker_url, {}, type="shop.work")
    for _ in range(2):
        async with foreign(broker_url) as channel:  # takes it, and is gone without an ack
            queue = await channel.get_queue(QUEUE, ensure=False)
            await eventually(lambda queue=queue: queue.get(fail=False))
    async with working(app):
        letter = await dead_letter(broker_url)
    assert letter.headers["asyncq-reason"] == "delivered too often"


async def test_a_queue_that_is_deleted_under_a_worker_is_declared_and_consumed_again(broker_url, caplog):
    """The log says what happened; the task that ran goes on without a lease; the other queue never stopped."""
    app = AsyncQ("shop", broker=broker_url)
    started, go_on, done = asyncio.Event(), asyncio.Event(), []

    @app.task
    async def long() -> None:
        started.set()
        await go_on.wait()
        done.append("long")

    @app.task
    async def quick(n: int) -> int:
        return n

    @app.task(queue="other")
    async def elsewhere(n: int) -> int:
        return n

    async with app:
        worker = app.worker({QUEUE: 2, "other": 1})
        running = asyncio.create_task(worker.run())
        await eventually(lambda: _declared(broker_url), 20)
        await long.send()
        await started.wait()
        async with foreign(broker_url) as channel:
            await channel.queue_delete(QUEUE)
        await eventually(lambda: "the queue was deleted" in caplog.text, 20)
        assert await elsewhere.call(1) == 1

        async def answered() -> bool:
            try:
                return await quick.call(2) == 2
            except Unroutable:
                return False  # the queue stands again, and its binding not yet

        await eventually(answered, 20)
        go_on.set()
        await eventually(lambda: done == ["long"])
        assert await quick.call(3) == 3
        worker.stop()
        assert await asyncio.wait_for(running, 30) == 0


async def test_a_task_that_runs_while_the_connection_is_lost_runs_once(broker_url, management, caplog):
    """The redelivery becomes the new lease of the attempt that still runs, and its result is sent."""
    caplog.set_level("INFO", logger="asyncq.worker")
    app = AsyncQ("shop", broker=broker_url)
    runs, go_on = [], asyncio.Event()

    @app.task
    async def long(n: int) -> int:
        runs.append(n)
        await go_on.wait()
        return n

    async with working(app, slots=3):
        handles = [await long.send(n) for n in range(3)]
        await eventually(lambda: len(runs) == 3)

        async def all_connections_are_seen() -> bool:
            return len(await management.connections()) >= 2

        await eventually(all_connections_are_seen, 20)
        await asyncio.sleep(1.2)  # the attempts are watched from their first second on
        await management.close_connections()
        await eventually(lambda: caplog.text.count("got its lease back") == 3, 30)
        go_on.set()
        assert [await handle.result(30) for handle in handles] == [0, 1, 2]
    assert sorted(runs) == [0, 1, 2]


# --- drain


async def test_a_stopping_worker_lets_tasks_finish(broker_url, management):
    """What was not started stays in the queue."""
    app = AsyncQ("shop", broker=broker_url)
    started, go_on = [], asyncio.Event()

    @app.task
    async def long(n: int) -> int:
        started.append(n)
        await go_on.wait()
        return n

    async with app:
        async with working(app, slots=2) as worker:
            handles = [await long.send(n) for n in range(5)]
            await eventually(lambda: len(started) == 2)
            worker.stop()
            await asyncio.sleep(0.1)
            go_on.set()
        assert worker.threads_abandoned == 0
        assert len(started) == 2
        assert await management.ready(QUEUE) == 3
        assert sorted([await handle.result(5) for handle in handles[:2]]) == [0, 1]


@pytest.mark.parametrize("in_thread", [False, True], ids=["async", "thread"])
async def test_what_does_not_finish_in_time_is_handed_back_and_nothing_is_counted(broker_url, management, in_thread):
    """The same attempt runs elsewhere; neither our count nor the broker's has grown."""
    app = AsyncQ("shop", broker=broker_url, drain_timeout_s=0.2)
    attempts, go_on, deliveries = [], threading.Event(), []

    async def long(ctx: TaskContext) -> str:
        attempts.append(ctx.attempt)
        deliveries.append(ctx.message.headers.get("x-delivery-count", 0))
        if len(attempts) == 1:
            await asyncio.sleep(60)
        return "done"

    def long_in_thread(ctx: TaskContext) -> str:
        attempts.append(ctx.attempt)
        deliveries.append(ctx.message.headers.get("x-delivery-count", 0))
        if len(attempts) == 1:
            go_on.wait(30)
        return "done"

    task = app.task(name="shop.long", pass_context=True)(long_in_thread if in_thread else long)
    try:
        async with app:
            async with working(app, slots=1) as worker:
                handle = await task.send()
                await eventually(lambda: attempts == [1])
            assert worker.stats().outcomes == {"Drained": 1}
            assert worker.threads_abandoned == int(in_thread)
            async with working(app, slots=1):
                assert await handle.result(10) == "done"
    finally:
        go_on.set()
    assert attempts == [1, 1]
    assert deliveries == [0, 0]
    assert await management.ready(QUEUE) == 0


@pytest.mark.parametrize("address", ["nobody", "amq.rabbitmq.reply-to.g1h2AA", "amq.rabbitmq.reply-to.bogus.bogus=="])
async def test_a_reply_address_that_the_broker_cannot_bear_does_not_keep_a_task_from_its_end(broker_url, address):
    """RabbitMQ 3.10 ends the connection for a malformed address of its direct reply-to; the slot is free again."""
    app = AsyncQ("shop", broker=broker_url)

    @app.task
    async def double(x: int) -> int:
        return x * 2

    async with working(app, slots=1) as worker:
        await publish(broker_url, {"x": 1}, type="shop.double", reply_to=address)
        await eventually(lambda: worker.stats().outcomes == {"Succeeded": 1}, 30)
        assert await (await double.send(4)).result(10) == 8
