"""Traces: which spans there are, what they say, and what belongs to which, on a real broker."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys

import aio_pika
import pytest
import structlog
from opentelemetry import baggage, context
from opentelemetry.trace import SpanKind, StatusCode

import traced_tasks
from asyncq import AsyncQ, Every, Fixed, RetryPolicy, Snooze, TaskContext, TaskFailed, group
from asyncq.errors import PartlySent, TaskRejected, Unroutable
from asyncq.observability.logs import configure_logging
from recorded_spans import RecordedSpans, traces_of
from support import working

SOON = RetryPolicy(max_attempts=3, backoff=Fixed(0.01), jitter=False)


@pytest.fixture
def spans(monkeypatch):
    """A tracer provider for this test, as if the program had set it."""
    recorded = RecordedSpans()
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", recorded.provider)
    yield recorded
    recorded.provider.shutdown()


def make_app(url: str, **settings) -> AsyncQ:
    return AsyncQ("shop", broker=url, **settings)


async def test_a_request_its_retried_task_and_what_that_sends_are_one_trace(broker_url, spans):
    """Each attempt is below the one send, and what it sends is below the attempt."""
    app = make_app(broker_url)

    @app.task
    async def receipt(order: int) -> None: ...

    @app.task(retry=SOON, pass_context=True)
    async def pay(ctx: TaskContext, order: int) -> None:
        if ctx.attempt < 3:
            raise ConnectionError("the bank does not answer")
        await receipt.send(order)

    async with working(app):
        with spans.tracer.start_as_current_span("POST /orders"):
            handle = await pay.send(7)
        await handle.result(timeout=30)
        await spans.ended("process shop.receipt")
        await spans.ended("process shop.pay", 3)
    assert spans.tree() == [
        "POST /orders",
        "  send shop.pay",
        "    process shop.pay 1 retry",
        "    process shop.pay 2 retry",
        "    process shop.pay 3 succeeded",
        "      send shop.receipt",
        "        process shop.receipt 1 succeeded",
    ]
    assert len(traces_of(spans.all())) == 1


async def test_spans_say_what_the_conventions_of_messaging_ask_for(broker_url, spans):
    """And no argument."""
    app = make_app(broker_url)

    @app.task(queue="mail")
    async def fail(secret: str) -> None:
        raise ValueError("wrong")

    async with working(app):
        handle = await fail.options(delay=0.05).send("hush-hush")
        with pytest.raises(TaskFailed):
            await handle.result(timeout=30)
        (process,) = await spans.ended("process shop.fail")
    (send,) = spans.named("send shop.fail")
    address = aio_pika.connection.URL(broker_url)
    common = {
        "messaging.system": "rabbitmq",
        "messaging.message.conversation_id": handle.id,
        "server.address": address.host,
        "server.port": address.port,
        "asyncq.task": "shop.fail",
    }
    ids = {send.attributes["messaging.message.id"], process.attributes["messaging.message.id"]}
    assert len(ids) == 1
    common["messaging.message.id"] = ids.pop()
    assert send.kind is SpanKind.PRODUCER
    assert dict(send.attributes) == {
        **common,
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "asyncq.tasks:mail",
        "messaging.rabbitmq.destination.routing_key": "mail",
        "asyncq.delay_s": 0.05,
    }
    assert process.kind is SpanKind.CONSUMER
    assert dict(process.attributes) == {
        **common,
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "mail",
        "asyncq.attempt": 1,
        "asyncq.outcome": "failed",
        "asyncq.reason": "no retry policy",
        "error.type": "ValueError",
    }
    assert (process.status.status_code, process.status.description) == (StatusCode.ERROR, "wrong")
    assert [link.context.span_id for link in process.links] == [send.context.span_id]
    (event,) = process.events
    assert event.name == "exception"
    assert event.attributes["exception.type"] == "ValueError"
    assert event.attributes["exception.message"] == "wrong"
    assert "in fail" in event.attributes["exception.stacktrace"]
    assert "hush-hush" not in "".join(span.to_json() for span in spans.all())


async def test_a_snooze_a_callback_and_a_replay_stay_in_the_trace_of_the_send(broker_url, spans):
    """A message keeps the context that it was created with, however often it is copied."""
    app = make_app(broker_url)
    is_broken = True

    @app.task
    async def tell(text: str) -> None: ...

    @app.task(pass_context=True, on_failure=tell.s("it has failed"))
    async def work(ctx: TaskContext) -> None:
        if len(spans.named("process shop.work")) == 0:
            raise Snooze(0.01)
        if is_broken:
            raise ValueError("broken")

    async with working(app):
        handle = await work.send()
        with pytest.raises(TaskFailed):
            await handle.result(timeout=30)
        await spans.ended("process shop.tell")
        is_broken = False
        await app.dead_letters("shop").replay()
        await spans.ended("process shop.work", 3)
    assert spans.tree() == [
        "send shop.work",
        "  process shop.work 1 snoozed",
        "  process shop.work 1 failed",
        "    send shop.tell",
        "      process shop.tell 1 succeeded",
        "  process shop.work 1 succeeded",
    ]
    snoozed = spans.named("process shop.work")[0]
    assert snoozed.status.status_code is StatusCode.UNSET
    assert snoozed.attributes["asyncq.delay_s"] == 0.01


async def test_the_attempts_span_is_current_in_the_code_wherever_it_runs(broker_url, spans):
    """On the loop, in a thread, in a process; and in a middleware around it."""
    app = make_app(broker_url)
    in_middleware = []

    @app.middleware
    async def look(info, call_next):
        in_middleware.append(traced_tasks.current_span())
        return await call_next()

    tasks = [
        app.task(traced_tasks.on_the_loop),
        app.task(traced_tasks.in_a_thread),
        app.task(run_in="process")(traced_tasks.in_a_process),
    ]
    async with working(app):
        told = [await task.call() for task in tasks]
        for task in tasks:
            await spans.ended(f"process {task.name}")
    expected = [_ids(spans.named(f"process {task.name}")[0]) for task in tasks]
    assert told == expected
    assert in_middleware == expected


async def test_what_a_task_in_a_process_sends_is_below_its_attempt(broker_url, spans):
    """Its context goes there and back."""
    app = make_app(broker_url)
    passing = app.task(run_in="process", pass_context=True)(traced_tasks.pass_on_in_a_process)
    app.task(traced_tasks.on_the_loop)
    async with working(app):
        await passing.call("shop.on_the_loop")
        await spans.ended("process shop.on_the_loop")
        await spans.ended("process shop.pass_on_in_a_process")
    assert spans.tree() == [
        "send shop.pass_on_in_a_process",
        "  process shop.pass_on_in_a_process 1 succeeded",
        "    send shop.on_the_loop",
        "      process shop.on_the_loop 1 succeeded",
    ]


async def test_a_thread_sends_below_its_own_span(broker_url, spans):
    """By `ctx.sync` in a task, and by `app.sync` anywhere."""
    app = make_app(broker_url)
    inner = app.task(traced_tasks.on_the_loop)

    @app.task(pass_context=True)
    def outer(ctx: TaskContext) -> None:
        with spans.tracer.start_as_current_span("my own work"):
            ctx.sync.send(inner.s())

    def script() -> None:
        with spans.tracer.start_as_current_span("script"):
            app.sync.send(outer.s()).result(timeout=30)

    async with working(app):
        await asyncio.to_thread(script)
        await spans.ended("process shop.on_the_loop")
        await spans.ended("process shop.outer")
    assert spans.tree() == [
        "script",
        "  send shop.outer",
        "    process shop.outer 1 succeeded",
        "      my own work",
        "        send shop.on_the_loop",
        "          process shop.on_the_loop 1 succeeded",
    ]


async def test_many_that_are_sent_at_once_have_a_context_each(broker_url, spans):
    """Which the one span of their sending links to."""
    app = make_app(broker_url)
    work = app.task(traced_tasks.on_the_loop)
    async with working(app):
        with spans.tracer.start_as_current_span("import of a file"):
            await app.send_many(work.s() for _ in range(3))
        await spans.ended("process shop.on_the_loop", 3)
        with pytest.raises(PartlySent):
            await app.send_many([work.s(), work.options(queue="nowhere").s()])
        await spans.ended("process shop.on_the_loop", 4)
        with pytest.raises(PartlySent):
            await app.send_many([work.options(queue="nowhere").s()])
    (alone,) = spans.named("send shop.on_the_loop")
    assert (alone.kind, alone.status.status_code) == (SpanKind.PRODUCER, StatusCode.ERROR)
    creations = spans.named("create shop.on_the_loop")
    sent, failed = spans.named("send")
    assert sorted(span.parent.span_id for span in spans.named("process shop.on_the_loop")[:3]) == sorted(
        span.context.span_id for span in creations[:3]
    )
    assert {span.kind for span in creations} == {SpanKind.PRODUCER}
    assert sent.kind is SpanKind.CLIENT
    assert [link.context.span_id for link in sent.links] == [span.context.span_id for span in creations[:3]]
    assert sent.attributes["messaging.batch.message_count"] == 3
    assert sent.status.status_code is StatusCode.UNSET
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.attributes["error.type"] == "asyncq.errors.Unroutable"
    assert failed.status.description.startswith("1 of 2 were not")


async def test_a_send_that_fails_says_so(broker_url, spans):
    """With the error."""
    async with make_app(broker_url) as app:
        with pytest.raises(Unroutable):
            await app.send("shop.work", queue="nowhere")
    (send,) = spans.named("send shop.work")
    assert send.status.status_code is StatusCode.ERROR
    assert send.attributes["error.type"] == "asyncq.errors.Unroutable"
    assert [event.name for event in send.events] == ["exception"]


async def test_each_tick_of_a_schedule_begins_a_trace(broker_url, spans):
    """There is nobody who asked for it."""
    app = make_app(broker_url)
    work = app.task(traced_tasks.on_the_loop)
    app.schedule("often", work.s(), Every(0.1))
    async with working(app):
        scheduler = app.scheduler()
        running = asyncio.create_task(scheduler.run())
        await spans.ended("process shop.on_the_loop", 2)
        scheduler.stop()
        await asyncio.wait_for(running, 30)
    assert spans.tree()[:4] == ["send shop.on_the_loop", "  process shop.on_the_loop 1 succeeded"] * 2
    assert len(traces_of(spans.named("send shop.on_the_loop"))) == len(spans.named("send shop.on_the_loop"))


async def test_a_workflow_is_one_trace(broker_url, spans):
    """Each step of a chain is below the one before it; the body of a chord is below the member that came last."""
    app = make_app(broker_url)

    @app.task
    async def one(n: int) -> int:
        return n + 1

    @app.task
    async def total(numbers: list[int]) -> int:
        return sum(numbers)

    async with working(app):
        with spans.tracer.start_as_current_span("request"):
            assert await (one.s(1) | one).call() == 3
        await spans.ended("process shop.one", 2)
        chain = spans.tree()
        with spans.tracer.start_as_current_span("request"):
            assert await (group(one.s(1), one.s(2)) | total).call() == 5
        await spans.ended("process shop.one", 4)
        (end,) = await spans.ended("process shop.total")
    assert chain == [
        "request",
        "  send shop.one",
        "    process shop.one 1 succeeded",
        "      send shop.one",
        "        process shop.one 1 succeeded",
    ]
    *_, first, second = spans.named("process shop.one")
    (sent,) = spans.named("send shop.total")
    assert len(traces_of([first, second, sent, end])) == 1
    assert end.parent.span_id == sent.context.span_id
    assert sent.parent.span_id in {first.context.span_id, second.context.span_id}


async def test_a_context_that_the_sender_gives_itself_stays(broker_url, spans):
    """As the conventions ask; the span of the send links to it."""
    app = make_app(broker_url)
    work = app.task(traced_tasks.on_the_loop)
    given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with working(app):
        told = await work.options(headers={"traceparent": given}).call()
        await spans.ended("process shop.on_the_loop")
    assert told.startswith("0af7651916cd43dd8448eb211c80319c ")
    (process,) = spans.named("process shop.on_the_loop")
    assert f"{process.parent.span_id:016x}" == "b7ad6b7169203331"
    (send,) = spans.named("send shop.on_the_loop")
    assert send.kind is SpanKind.CLIENT
    assert f"{send.links[0].context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize("header", ["garbage", f"00-{'0' * 32}-{'0' * 16}-01", bytearray(b"\xff\xfe"), 17, ["a"]])
async def test_a_foreign_header_that_is_no_context_begins_a_trace(broker_url, spans, header):
    """It is no error: the task runs."""
    app = make_app(broker_url)
    app.task(traced_tasks.on_the_loop)
    async with working(app):
        connection = await aio_pika.connect(broker_url)
        async with connection, connection.channel() as channel:
            message = aio_pika.Message(b"{}", type="shop.on_the_loop", headers={"traceparent": header, "tracestate": 3})
            await channel.default_exchange.publish(message, "shop")
        (process,) = await spans.ended("process shop.on_the_loop")
    assert process.parent is None
    assert process.attributes["asyncq.outcome"] == "succeeded"


async def test_what_never_began_has_a_span_that_says_why(broker_url, spans):
    """Without the arguments that were refused."""
    app = make_app(broker_url)

    @app.task
    async def work(n: int) -> None: ...

    producer = AsyncQ("shop", broker=broker_url)
    async with producer, working(app):
        refused = await producer.send("shop.work", {"n": "hush-hush"})
        with pytest.raises(TaskRejected):
            await refused.result(timeout=30)
        (process,) = await spans.ended("process shop.work")
    assert process.attributes["asyncq.outcome"] == "rejected"
    assert process.attributes["asyncq.reason"] == "invalid arguments"
    assert process.status.status_code is StatusCode.ERROR
    assert "hush-hush" not in process.to_json()
    assert process.parent.span_id == spans.named("send shop.work")[0].context.span_id


async def test_a_span_tells_the_outcome_that_was_settled(broker_url, spans):
    """A result that is too large to be told makes a failure of a success."""
    app = make_app(broker_url, max_result_bytes=100)

    @app.task
    async def work() -> str:
        return "x" * 1000

    async with working(app):
        with pytest.raises(TaskFailed):
            await work.call()
        (process,) = await spans.ended("process shop.work")
    assert process.attributes["asyncq.outcome"] == "failed"
    assert process.attributes["asyncq.reason"] == "result too large"


async def test_baggage_reaches_the_task(broker_url, spans):
    """What `OTEL_PROPAGATORS` names, travels."""
    app = make_app(broker_url)

    @app.task
    async def tenant() -> str:
        return str(baggage.get_baggage("tenant"))

    async with working(app):
        token = context.attach(baggage.set_baggage("tenant", "a"))
        try:
            assert await tenant.call() == "a"
        finally:
            context.detach(token)
        await spans.ended("process shop.tenant")


async def test_log_lines_say_their_trace_and_span(broker_url, spans, monkeypatch, capsys):
    """Those of the task, of the standard library, and asyncq's own about the attempt."""
    app = make_app(broker_url)

    @app.task(pass_context=True)
    async def work(ctx: TaskContext) -> str:
        ctx.log.warning("by the context")
        logging.getLogger("mine").warning("by the standard library")
        return traced_tasks.current_span()

    apart = app.task(run_in="process", pass_context=True)(traced_tasks.log_in_a_process)
    before = logging.getLogger().handlers[:]
    with _logging_restored(monkeypatch):
        configure_logging("info", "json")
        async with working(app):
            told = await work.call()
            told_apart = await apart.call()
            await spans.ended("process shop.work")
            await spans.ended("process shop.log_in_a_process")
    assert logging.getLogger().handlers == before
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    own = [line for line in lines if line.get("task") == "shop.work" or line["logger"] == "mine"]
    assert [line["event"] for line in own] == ["by the context", "by the standard library", "task succeeded"]
    assert {f"{line['trace_id']} {line['span_id']}" for line in own} == {told}
    (line,) = [line for line in lines if line["event"] == "in a process"]
    assert f"{line['trace_id']} {line['span_id']}" == told_apart
    (line,) = [line for line in lines if line["event"] == "worker consumes"]
    assert "trace_id" not in line


@contextlib.contextmanager
def _logging_restored(monkeypatch):
    root, before = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers[:], root.level
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.captureWarnings(capture=False)
        structlog.configure(**before)
        structlog.reset_defaults()


async def test_tracing_that_is_switched_off_makes_no_span_and_no_header(broker_url, spans):
    """Also where the program has a provider."""
    app = make_app(broker_url, tracing=False)

    @app.task(pass_context=True)
    async def headers(ctx: TaskContext) -> list[str]:
        return sorted(ctx.headers)

    async with working(app):
        assert "traceparent" not in await headers.call()
    assert spans.all() == []


def _ids(span) -> str:
    return f"{span.context.trace_id:032x} {span.context.span_id:016x}"
