"""The README's table "Coming from Celery": each row that says "now" is a test here, named after Celery's word."""

from __future__ import annotations

import asyncio
import logging
import re
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path

import aio_pika
import pytest
from prometheus_client import CollectorRegistry
from pydantic import BaseModel, ValidationError

import traced_tasks
from asyncq import (
    AsyncQ,
    AttemptInfo,
    CallNext,
    Cron,
    Every,
    Exponential,
    FailedTask,
    Fixed,
    InvalidWorkflow,
    Outcome,
    Retry,
    RetryPolicy,
    SoftTimeLimit,
    TaskContext,
    TaskExpired,
    TaskFailed,
    chain,
    chord,
    gather_results,
    group,
)
from asyncq.errors import ChordFailed, TaskCancelled
from asyncq.observability.metrics.worker import WorkerMetrics
from asyncq.observability.task_lines import TaskFilter
from asyncq.outcome import Succeeded
from asyncq.settings import load_settings
from asyncq.testing.harness import running
from recorded_spans import RecordedSpans
from support import eventually, working

README = Path(__file__).parents[2] / "README.md"


class Item(BaseModel):
    """Something with a field that JSON has no type for."""

    name: str
    due: datetime


def make_app(url: str | None, **settings) -> AsyncQ:
    app = AsyncQ("shop", broker=url, **settings)

    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    @app.task
    async def stamp() -> float:
        return time.time()

    return app


async def failing(url: str, policy: RetryPolicy | None, error: Exception) -> list[float]:
    """Run a task that always fails; return when its attempts began."""
    app, began = AsyncQ("shop", broker=url), []

    @app.task(retry=policy)
    async def fail() -> None:
        began.append(time.monotonic())
        raise error

    async with working(app):
        with pytest.raises(TaskFailed):
            await fail.call()
    return began


def gaps(moments: list[float]) -> list[float]:
    return [second - first for first, second in pairwise(moments)]


def rows() -> list[tuple[str, str]]:
    """The table's rows: Celery's word, and "now" or a step."""
    table = README.read_text().split("## Coming from Celery")[1].split("Each row")[0]
    found = re.findall(r"^\| `(\w+(?:\.\w+)?)`.*\| (now|step \w+) \|$", table, flags=re.MULTILINE)
    assert len(found) == len([line for line in table.splitlines() if line.startswith("| `")])
    return found


def test_every_row_of_the_table_that_says_now_has_a_test_and_no_word_is_missing():
    """The table promises nothing that is not shown."""
    words = """broker backend task_serializer result_serializer accept_content timezone enable_utc task_track_started
    task_time_limit worker_prefetch_multiplier bind max_retries autoretry_for dont_autoretry_for
    retry_backoff retry_backoff_max retry_jitter self.retry update_state delay apply_async countdown eta AsyncResult
    status get task_always_eager link_error on_failure expires result_backend result_expires ignore_result
    task_store_errors_even_if_ignored ResultSet.join revoke rate_limit crontab beat_schedule task_soft_time_limit
    chain group chord chunks si
    inspect cancel_consumer pool_grow shutdown
    worker_process_init task_prerun get_task_logger worker_send_task_events CeleryInstrumentor"""
    assert {word for word, _ in rows()} == set(words.split())
    tests = vars(sys.modules[__name__])
    for word, when in rows():
        if when == "now":
            assert f"test_{word.replace('.', '_').lower()}" in tests, word


async def test_broker(broker_url, monkeypatch):
    """By argument or by environment."""
    async with make_app(broker_url) as app:
        assert app.broker.status().state == "ready"
    monkeypatch.setenv("ASYNCQ_BROKER_URL", broker_url)
    async with make_app(None) as app:
        assert app.broker.status().state == "ready"


async def test_backend(broker_url):
    """Nothing but RabbitMQ is configured, and results come back."""
    async with working(make_app(broker_url)) as app:
        assert await app.tasks["shop.add"].call(1, 2) == 3


async def test_worker_send_task_events(broker_url):
    """What a monitor would have made of the events is there as figures."""
    registry, app = CollectorRegistry(), make_app(broker_url)
    async with app:
        worker = app.worker()
        metrics = WorkerMetrics(worker, app.tasks, registry)
        running = asyncio.create_task(worker.run())
        assert await app.tasks["shop.add"].call(1, 2) == 3
        labels = {"queue": "shop", "task": "shop.add", "outcome": "succeeded"}

        def counted():
            metrics.add_up()
            return registry.get_sample_value("asyncq_deliveries_total", labels) == 1

        await eventually(counted)
        worker.stop()
        await running


async def test_result_backend(broker_url, tmp_path):
    """An app of another process, which has not sent it, reads state and result."""
    store = f"sqlite:///{tmp_path}/results.db"
    async with working(make_app(broker_url, results=store)) as app, make_app(broker_url, results=store) as other:
        task_id = (await app.tasks["shop.add"].options(reply=False).send(1, 2)).id
        assert await other.handle(task_id).result(timeout=20) == 3
        assert (await other.handle(task_id).status()).state == "succeeded"


async def test_result_expires(broker_url, tmp_path):
    """By the setting, by the task, by the send: the nearest wins."""
    async with working(make_app(broker_url, results=f"sqlite:///{tmp_path}/results.db", result_ttl_s=60)) as app:
        add = app.tasks["shop.add"]
        for sent, kept_s in ((add, 60), (add.options(result_ttl=timedelta(hours=1)), 3600)):
            handle = await sent.send(1, 2)
            await handle.result(timeout=20)
            status = await handle.status()
            assert (status.expires_at - status.finished_at).total_seconds() == kept_s


async def kept(url: str, store: str, **options) -> tuple[str, str]:
    """Run one task that succeeds and one that fails; return what the store then says of them."""
    app = AsyncQ("shop", broker=url, results=store)

    @app.task(reply=False, **options)
    async def half(number: int) -> int:
        if number % 2:
            raise ValueError
        return number // 2

    @app.task
    async def last() -> None: ...

    async with working(app, {"shop": 1}):
        good, bad = await half.send(2), await half.send(1)
        await last.call()  # one slot, one queue: the others have ended
        return (await app.handle(good.id).status()).state, (await app.handle(bad.id).status()).state


async def test_ignore_result(broker_url, tmp_path):
    """The store never hears of it."""
    assert await kept(broker_url, f"sqlite:///{tmp_path}/results.db", keep="nothing") == ("unknown", "unknown")


async def test_task_store_errors_even_if_ignored(broker_url, tmp_path):
    """Errors only."""
    assert await kept(broker_url, f"sqlite:///{tmp_path}/results.db", keep="errors") == ("unknown", "failed")


async def test_task_track_started(broker_url, tmp_path):
    """While it runs."""
    app, go = AsyncQ("shop", broker=broker_url, results=f"sqlite:///{tmp_path}/results.db"), asyncio.Event()

    @app.task
    async def wait() -> None:
        await go.wait()

    async with working(app):
        handle = await wait.send()
        states = [status.state async for status in _until_started(handle, go)]
    assert states[-2:] == ["started", "succeeded"]


async def _until_started(handle, go):
    async for status in handle.statuses():
        if status.state == "started":
            go.set()
        yield status


async def test_status(broker_url, tmp_path):
    """Of a task that waits, of one that has ended, and of an id that nobody knows."""
    app = make_app(broker_url, results=f"sqlite:///{tmp_path}/results.db")
    async with app:
        handle = await app.tasks["shop.add"].send(1, 2)
        assert (await handle.status()).state == "queued"
        async with working(app):
            await handle.result(timeout=20)
        assert (await handle.status()).state == "succeeded"
        assert (await app.handle("nobody").status()).state == "unknown"


async def test_resultset_join(broker_url):
    """In order."""
    async with working(make_app(broker_url)) as app:
        handles = await app.send_many(app.tasks["shop.add"].s(number, 1) for number in range(20))
        assert await gather_results(handles, timeout=20) == list(range(1, 21))


async def test_task_serializer(broker_url, management):
    """Arguments travel as a JSON object, typed by the signature."""
    app = AsyncQ("shop", broker=broker_url)

    @app.task(reply=False)
    async def store(item: Item, tags: list[str]) -> None:
        """Nobody runs it."""

    async with app:
        await store.send(Item(name="x", due=datetime(2026, 1, 1, tzinfo=UTC)), ["a"])
        with pytest.raises(ValidationError):
            await store.send("no item", ["a"])
    async with await aio_pika.connect(broker_url) as connection, connection.channel() as channel:
        message = await (await channel.get_queue("shop", ensure=False)).get(no_ack=True)
    assert message.content_type == "application/json"
    assert message.body == b'{"item":{"name":"x","due":"2026-01-01T00:00:00Z"},"tags":["a"]}'


async def test_result_serializer(broker_url):
    """The return annotation decides, on both sides."""
    app = AsyncQ("shop", broker=broker_url)

    @app.task
    async def make() -> Item:
        return Item(name="x", due=datetime(2026, 1, 1, tzinfo=UTC))

    async with working(app):
        assert await make.call() == Item(name="x", due=datetime(2026, 1, 1, tzinfo=UTC))


async def test_accept_content(broker_url):
    """A pickle is parked, never loaded."""
    async with working(make_app(broker_url)) as app:
        async with await aio_pika.connect(broker_url) as connection, connection.channel() as channel:
            body = aio_pika.Message(b"cos\nsystem\n", type="shop.add", content_type="application/x-python-serialize")
            await channel.default_exchange.publish(body, "shop")

        async def parked():
            return [letter async for letter in app.dead_letters("shop").browse()]

        (letter,) = await eventually(parked)
        assert "application/x-python-serialize" in letter.record.failure.message


async def run_at_eta(url: str, zone) -> None:
    async with working(make_app(url)) as app:
        eta = datetime.now(zone) + timedelta(seconds=0.4)
        ran_at = await app.tasks["shop.stamp"].options(eta=eta).call()
    assert 0 <= ran_at - eta.timestamp() < 5


async def test_timezone(broker_url):
    """An aware datetime of any zone is one moment."""
    await run_at_eta(broker_url, timezone(timedelta(hours=9)))


def test_crontab():
    """By the clock on the wall of a place; as a text, or by names."""
    morning = datetime(2026, 7, 1, 5, 59, tzinfo=UTC)
    for cron in (Cron("0 8 * * *", tz="Europe/Berlin"), Cron(hour=8, minute=0, tz="Europe/Berlin")):
        assert cron.next_after(morning) == datetime(2026, 7, 1, 6, tzinfo=UTC)


async def test_beat_schedule(broker_url):
    """A scheduler sends what is due, and a worker runs it."""
    app, ran = AsyncQ("shop", broker=broker_url), []

    @app.task
    async def report() -> None:
        ran.append(time.monotonic())

    app.schedule("often", report.s(), Every(0.2))
    async with working(app):
        scheduler = app.scheduler()
        running = asyncio.create_task(scheduler.run())
        await eventually(lambda: len(ran) >= 3, 30)
        scheduler.stop()
        await asyncio.wait_for(running, 30)


async def test_task_soft_time_limit(broker_url):
    """The task can clean up, or return what it has."""
    app = AsyncQ("shop", broker=broker_url)

    @app.task(soft_time_limit=0.1, time_limit=30)
    async def slow() -> str:
        try:
            await asyncio.sleep(20)
        except SoftTimeLimit:
            return "a part"
        return "all"

    async with working(app):
        assert await slow.call() == "a part"


async def test_enable_utc(broker_url):
    """A naive datetime is refused: there is no local time on the wire."""
    async with make_app(broker_url) as app:
        with pytest.raises(Exception, match=r"datetime\.now\(UTC\)"):
            app.tasks["shop.stamp"].options(eta=datetime(2030, 1, 1))  # noqa: DTZ001 - that is the point


async def test_task_time_limit(broker_url):
    """For a task, and as the app's default."""
    for settings, options in (({}, {"time_limit": 0.2}), ({"time_limit_s": 0.2}, {})):
        app = AsyncQ("shop", broker=broker_url, **settings)

        @app.task(**options)
        async def slow() -> None:
            await asyncio.sleep(60)

        async with working(app):
            with pytest.raises(TaskFailed, match="TimeLimitExceeded"):
                await slow.call()


async def test_worker_prefetch_multiplier(broker_url, management):
    """One slot takes one task, however many wait."""
    app, gate, running = AsyncQ("shop", broker=broker_url, slots=1), asyncio.Event(), []

    @app.task
    async def wait(number: int) -> None:
        running.append(number)
        await gate.wait()

    async with working(app):
        handles = [await wait.send(number) for number in range(3)]
        await eventually(lambda: len(running) == 1)
        assert await management.ready("shop") == 2
        gate.set()
        for handle in handles:
            await handle.result(timeout=10)


async def test_bind(broker_url):
    """The context is the first parameter, and no part of the message."""
    app = AsyncQ("shop", broker=broker_url)

    @app.task(pass_context=True)
    async def who(ctx: TaskContext, greeting: str) -> str:
        return f"{greeting} {ctx.task_id} {ctx.attempt}"

    async with working(app):
        assert await who.options(task_id="me").call("hi") == "hi me 1"


async def test_max_retries(broker_url):
    """Three retries are four attempts, which is the default."""
    assert len(await failing(broker_url, RetryPolicy(backoff=Fixed(0.05)), ValueError())) == 4


async def test_autoretry_for(broker_url):
    """Only what the policy names is tried again."""
    policy = RetryPolicy(on=(ConnectionError,), max_attempts=2, backoff=Fixed(0.05))
    assert len(await failing(broker_url, policy, ConnectionResetError())) == 2
    assert len(await failing(broker_url, policy, ValueError())) == 1
    assert len(await failing(broker_url, None, ValueError())) == 1


async def test_dont_autoretry_for(broker_url):
    """Also where `on` names a base class of it."""
    policy = RetryPolicy(on=OSError, never=(PermissionError,), max_attempts=3, backoff=Fixed(0.1))
    assert len(await failing(broker_url, policy, PermissionError("no"))) == 1
    assert len(await failing(broker_url, policy, ConnectionError("away"))) == 3


async def test_retry_backoff(broker_url):
    """Each delay is the double of the one before; never shorter."""
    policy = RetryPolicy(max_attempts=4, backoff=Exponential(first=0.1, factor=2), jitter=False)
    first, second, third = gaps(await failing(broker_url, policy, ValueError()))
    assert first >= 0.1
    assert second >= 0.2
    assert third >= 0.4


async def test_retry_backoff_max(broker_url):
    """The cap holds: without it the second delay would be 10 s."""
    policy = RetryPolicy(max_attempts=3, backoff=Exponential(first=0.1, factor=100, max=0.2), jitter=False)
    _, second = gaps(await failing(broker_url, policy, ValueError()))
    assert 0.2 <= second < 5


async def test_retry_jitter(broker_url):
    """Between half of the backoff and all of it."""
    policy = RetryPolicy(max_attempts=2, backoff=Fixed(0.2), jitter=True)
    (gap,) = gaps(await failing(broker_url, policy, ValueError()))
    assert gap >= 0.1


async def test_self_retry(broker_url):
    """`raise Retry(after=...) from exc` is exact, and `exc` is what is recorded in the end."""
    app, began = AsyncQ("shop", broker=broker_url), []

    @app.task(retry=RetryPolicy(max_attempts=2))
    async def fetch() -> None:
        began.append(time.monotonic())
        try:
            {}["missing"]
        except KeyError as error:
            raise Retry(after=0.3) from error

    async with working(app):
        with pytest.raises(TaskFailed, match="KeyError"):
            await fetch.call()
    (gap,) = gaps(began)
    assert gap >= 0.3


async def test_update_state(broker_url):
    """Progress with a label reaches the sender while the task runs."""
    app = AsyncQ("shop", broker=broker_url)

    @app.task(pass_context=True)
    async def work(ctx: TaskContext) -> None:
        await ctx.progress(25, 100, label="PROCESSING")

    async with working(app):
        handle = await work.send()
        (update,) = [update async for update in handle.updates()]
    assert (update.done, update.total, update.label) == (25, 100, "PROCESSING")


async def test_delay(broker_url):
    """`send`, and its blocking form."""
    async with working(make_app(broker_url)) as app:
        add = app.tasks["shop.add"]
        assert await (await add.send(1, 2)).result(timeout=10) == 3
        handle = await asyncio.to_thread(app.sync.send, add.s(3, 4))
        assert await asyncio.to_thread(handle.result, 10) == 7
        await asyncio.to_thread(app.sync.close)


async def test_apply_async(broker_url):
    """Queue, id and headers of one send."""
    async with make_app(broker_url) as app:
        other = AsyncQ("other", broker=broker_url)

        @other.task
        async def nothing() -> None:
            """It brings its queue."""

        async with other:
            options = {"queue": "other", "task_id": "id-1", "headers": {"tenant": "a"}, "reply": False}
            handle = await app.tasks["shop.add"].options(**options).send(1, 2)
    assert handle.id == "id-1"
    async with await aio_pika.connect(broker_url) as connection, connection.channel() as channel:
        message = await (await channel.get_queue("other", ensure=False)).get(no_ack=True)
    assert (message.correlation_id, message.headers["tenant"]) == ("id-1", "a")


async def test_link_error(broker_url):
    """The sender's own callback, with arguments of its own."""
    await run_callback(broker_url, "sent")


async def test_on_failure(broker_url):
    """The task's."""
    await run_callback(broker_url, "declared")


async def run_callback(broker_url: str, whose: str) -> None:
    app, told = AsyncQ("shop", broker=broker_url), []

    @app.task(pass_context=True)
    async def page(ctx: TaskContext, who: str) -> None:
        told.append((who, ctx.failed.error_message))

    def tell(failed: FailedTask) -> None:
        told.append(("declared", failed.error_message))

    @app.task(on_failure=tell)
    async def charge() -> None:
        raise ValueError("no money")

    async with working(app):
        sending = charge.options(on_failure=page.s("sent")) if whose == "sent" else charge
        await sending.send()
        await eventually(lambda: told)
    assert told == [(whose, "no money")]


async def test_expires(broker_url):
    """Not run any more, and said so."""
    async with working(make_app(broker_url)) as app:
        late = app.tasks["shop.add"].options(expires=datetime.now(UTC) - timedelta(seconds=1))
        with pytest.raises(TaskExpired):
            await late.call(1, 2)


async def test_revoke(broker_url):
    """One that runs is stopped, one that waits never runs, though its worker starts later."""
    app, ran, begun = AsyncQ("shop", broker=broker_url), [], asyncio.Event()

    @app.task
    async def work(key: str) -> None:
        ran.append(key)
        begun.set()
        await asyncio.sleep(60)

    async with app:
        waiting = await work.send("waits")
        await app.cancel(waiting.id)
        async with working(app):
            running = await work.send("runs")
            await asyncio.wait_for(begun.wait(), 20)
            await running.cancel()
            for handle in (waiting, running):
                with pytest.raises(TaskCancelled):
                    await handle.result(timeout=20)
    assert ran == ["runs"]


async def test_inspect(broker_url):
    """Who is there, what runs, and what was done."""
    app, going_on = make_app(broker_url), asyncio.Event()

    @app.task
    async def wait() -> None:
        await going_on.wait()

    async with working(app):
        await app.tasks["shop.add"].call(1, 2)
        handle = await wait.send()
        await eventually(lambda: _answers(app.control.ping))
        (worker,) = await eventually(lambda: _answers(app.control.active))
        assert [item.task_id for item in worker.running] == [handle.id]
        (worker,) = await _answers(app.control.stats)
        assert (worker.outcomes, worker.in_flight) == ({"Succeeded": 1}, 1)
        going_on.set()
        await handle.result(timeout=20)


async def _answers(ask):
    return (await ask(timeout=5)).answers


async def test_cancel_consumer(broker_url):
    """The worker starts when the queue is paused already."""
    app = make_app(broker_url)
    async with app:
        await app.control.pause("shop", timeout=1)
        handle = await app.tasks["shop.add"].send(1, 2)
        async with working(app):

            async def is_paused() -> bool:
                workers = await _answers(app.control.active)  # they answer also while they still read what is paused
                return [queue.paused for worker in workers for queue in worker.queues] == ["everywhere"]

            await eventually(is_paused)
            await app.control.resume("shop", timeout=5)
            assert await handle.result(timeout=20) == 3


async def test_pool_grow(broker_url):
    """From one slot to two: only together can these two end."""
    app, both = AsyncQ("shop", broker=broker_url, slots=1), asyncio.Barrier(2)

    @app.task
    async def meet() -> None:
        await both.wait()

    async with working(app):
        handles = [await meet.send() for _ in range(2)]
        await eventually(lambda: _answers(app.control.ping))
        (worker,) = (await app.control.scale("shop", 2, timeout=5)).answers
        assert worker.queue.slots == 2
        for handle in handles:
            await handle.result(timeout=20)


async def test_shutdown(broker_url):
    """What runs is finished, and the worker ends with its normal exit code."""
    app, begun = AsyncQ("shop", broker=broker_url), asyncio.Event()

    @app.task
    async def work() -> str:
        begun.set()
        await asyncio.sleep(0.2)
        return "done"

    async with app:
        running = asyncio.create_task(app.worker().run())
        handle = await work.send()
        await begun.wait()
        await eventually(lambda: _answers(app.control.drain))
        assert await asyncio.wait_for(running, 30) == 0
        assert await handle.result(timeout=20) == "done"


async def test_rate_limit(broker_url):
    """Twenty at ten a second take nearly two seconds."""
    app, began = AsyncQ("shop", broker=broker_url), []

    @app.task(rate="10/s")
    async def work() -> None:
        began.append(time.monotonic())

    async with working(app):
        for handle in await app.send_many(work.s() for _ in range(20)):
            await handle.result(timeout=20)
    assert max(began) - min(began) >= 1.85


async def test_countdown(broker_url):
    """A fraction of a second, never early; and a later one is not in its way."""
    async with working(make_app(broker_url)) as app:
        stamp = app.tasks["shop.stamp"]
        await stamp.options(delay=timedelta(hours=1), reply=False).send()
        sent_at = time.time()
        assert await stamp.options(delay=0.5).call() - sent_at >= 0.5


async def test_eta(broker_url):
    """In UTC."""
    await run_at_eta(broker_url, UTC)


async def test_asyncresult(broker_url):
    """The handle has the id, and waits as often as it is asked."""
    async with working(make_app(broker_url)) as app:
        handle = await app.tasks["shop.add"].send(1, 2)
        assert len(handle.id) == 36
        assert [await handle.result(timeout=10) for _ in range(2)] == [3, 3]


async def test_get(broker_url):
    """With a timeout; the default of `call` is a setting."""
    async with working(make_app(broker_url)) as app:
        handle = await app.tasks["shop.add"].send(1, 2)
        assert await handle.result(timeout=10) == 3
    assert load_settings().call_timeout_s == 60


def make_canvas(url: str) -> AsyncQ:
    app = make_app(url)

    @app.task
    async def total(numbers: list[int]) -> int:
        return sum(numbers)

    return app


async def test_chain(broker_url):
    """Each task takes what the one before it has returned, and that is checked when the chain is built."""
    async with working(make_canvas(broker_url)) as app:
        add, total = app.tasks["shop.add"], app.tasks["shop.total"]
        assert await chain(add.s(1, 2), add.partial(b=10), add.partial(b=100)).call() == 113
        assert await (add.s(1, 2) | add.partial(b=10)).call() == 13
        with pytest.raises(InvalidWorkflow, match="a list is wanted"):
            chain(add.s(1, 2), total)


async def test_si(broker_url):
    """It takes nothing of what came before."""
    async with working(make_canvas(broker_url)) as app:
        add = app.tasks["shop.add"]
        assert await (add.s(1, 2) | add.si(5, 5) | add.partial(b=1)).call() == 11


async def test_group(broker_url):
    """The list is in the order of the members."""
    async with working(make_canvas(broker_url)) as app:
        add = app.tasks["shop.add"]
        assert await group(add.s(i, i) for i in range(5)).call() == [0, 2, 4, 6, 8]


async def test_chord(broker_url):
    """Without a result backend; a member that fails is named."""
    async with working(make_canvas(broker_url)) as app:
        add, total = app.tasks["shop.add"], app.tasks["shop.total"]
        assert await chord([add.s(1, 2), add.s(3, 4)], total).call() == 10
        assert await (group(add.s(1, 2), add.s(3, 4)) | total).call() == 10

        @app.task
        async def fail() -> int:
            raise ValueError("no")

        with pytest.raises(ChordFailed) as raised:
            await chord([add.s(1, 2), fail.s()], total).call()
    assert [(member.index, member.error_type) for member in raised.value.members] == [(1, "builtins.ValueError")]


async def test_chunks(broker_url):
    """One message for many calls; map and starmap send one for each."""
    async with working(make_canvas(broker_url)) as app:
        add, total = app.tasks["shop.add"], app.tasks["shop.total"]
        pairs = [(1, 2), (3, 4), (5, 6)]
        assert await add.chunks(pairs, 2, star=True).call() == [[3, 7], [11]]
        assert await (add.starmap(pairs) | total).call() == 21
        assert await total.map([[1, 2], [3]]).call() == [3, 3]


async def test_celeryinstrumentor(broker_url, monkeypatch):
    """A task belongs to the trace of whoever has sent it, as soon as the program has a tracer provider."""
    spans = RecordedSpans()
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", spans.provider)
    app = AsyncQ("shop", broker=broker_url)
    where = app.task(traced_tasks.on_the_loop)
    async with working(app):
        with spans.tracer.start_as_current_span("GET /") as request:
            trace, _ = (await where.call()).split()
    assert trace == f"{request.get_span_context().trace_id:032x}"
    spans.provider.shutdown()


async def test_worker_process_init(broker_url):
    """Before the first task; and after the last one, `worker_process_shutdown`."""
    app, did = AsyncQ("shop", broker=broker_url), []

    @app.lifespan
    async def lifespan(app: AsyncQ) -> AsyncIterator[str]:
        did.append("init")
        yield "pool"
        did.append("shutdown")

    @app.task(pass_context=True)
    async def use(ctx: TaskContext[str]) -> None:
        did.append(ctx.resources)

    async with working(app):
        await use.call()
    assert did == ["init", "pool", "shutdown"]


async def test_task_prerun(broker_url):
    """And `task_postrun`, with how it ended."""
    app, did = make_app(broker_url), []

    @app.middleware
    async def around(info: AttemptInfo, call_next: CallNext) -> Outcome:
        did.append(f"prerun {info.task_name}")
        outcome = await call_next()
        did.append(f"postrun {outcome}")
        return outcome

    async with working(app):
        assert await app.tasks["shop.add"].call(1, 2) == 3
    assert did == ["prerun shop.add", f"postrun {Succeeded(b'3')}"]


async def test_get_task_logger(broker_url):
    """A handler of the program's own, with the task in its format."""
    app, lines = AsyncQ("shop", broker=broker_url), []
    handler = logging.Handler()
    handler.setFormatter(logging.Formatter("%(task)s[%(task_id)s]: %(message)s"))
    handler.addFilter(TaskFilter())
    handler.emit = lambda record: lines.append(handler.format(record))
    logger = logging.getLogger("shop")
    logger.addHandler(handler)

    @app.task
    def work() -> None:
        logger.warning("adding")

    try:
        async with working(app):
            handle = await work.send()
            await handle.result(timeout=10)
    finally:
        logger.removeHandler(handler)
    assert lines == [f"shop.work[{handle.id}]: adding"]


async def test_task_always_eager():
    """No broker: yet a task fails, is tried again an hour later, and its sender waits for none of that."""
    app = AsyncQ("shop")

    @app.task(retry=RetryPolicy(backoff=Fixed(3600), jitter=False), pass_context=True)
    async def fetch(ctx: TaskContext, number: int) -> int:
        if ctx.attempt == 1:
            raise ConnectionError
        return number

    async with running(app) as harness:
        with pytest.raises(ValidationError):
            await fetch.send("no number")
        handle, began = await fetch.send(1), harness.clock.now()
        await harness.run_until_idle()
        assert await handle.result(timeout=1) == 1
        assert harness.clock.now() - began == timedelta(hours=1)
