"""Traces without a broker: when there are any, what spans say, and the provider of asyncq's own programs."""

import asyncio
import contextvars
import subprocess
import sys

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.sdk.trace.sampling import Sampler
from opentelemetry.trace import StatusCode

from asyncq import AsyncQ
from asyncq.broker import Delay, Exchange, Publication, Queue
from asyncq.errors import ConfigurationError
from asyncq.message import Message
from asyncq.outcome import (
    Cancelled,
    Deferred,
    Drained,
    Expired,
    Failed,
    Failure,
    LostLease,
    Outcome,
    Postponed,
    Rejected,
    Repeated,
    RetryLater,
    Snoozed,
    Staged,
    Succeeded,
    Throttled,
)
from asyncq.settings import load_settings
from asyncq.tracing import provider
from asyncq.tracing.attributes import outcome_attributes, send_attributes, server_attributes
from asyncq.tracing.spans import Tracing
from asyncq.tracing.switch import current_carrier, current_ids, enter, tracing_of
from asyncq.worker.attempt import GRACE_S
from recorded_spans import RecordedSpans
from support import eventually, working
from worker_kit import make_kit, make_message

FAILURE = Failure("builtins.ValueError", "wrong", "Traceback ...")


@pytest.fixture
def spans(monkeypatch):
    """A tracer provider for this test, as if the program had set it."""
    recorded = RecordedSpans()
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", recorded.provider)
    yield recorded
    recorded.provider.shutdown()


# --- on and off


def test_tracing_is_on_by_itself_only_where_the_program_has_a_provider(monkeypatch, spans):
    """And as the setting says otherwise."""
    assert tracing_of(load_settings()) is not None
    assert tracing_of(load_settings(tracing=False)) is None
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", None)
    assert tracing_of(load_settings()) is None
    assert tracing_of(load_settings(tracing=True)) is not None


def test_without_opentelemetry_tracing_is_off_and_asking_for_it_is_a_clear_error(monkeypatch):
    """As where it is not installed."""
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert tracing_of(load_settings()) is None
    assert current_ids() == {}
    assert current_carrier() == {}
    with pytest.raises(ConfigurationError, match=r"pip install 'asyncq\[tracing\]'"):
        tracing_of(load_settings(tracing=True))


def test_where_tracing_is_off_opentelemetry_is_not_imported():
    """Not by a worker, and not by what it runs."""
    code = """
import asyncio, sys
from asyncq import AsyncQ
app = AsyncQ("shop", broker="memory://")
@app.task
async def work() -> int: return 1
async def main():
    async with app:
        worker = app.worker()
        running = asyncio.create_task(worker.run())
        print(await work.call())
        worker.stop()
        await running
asyncio.run(main())
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n[]\n"


def test_a_context_goes_to_another_process_and_back(spans):
    """As headers; where there is none, nothing changes."""
    assert current_ids() == {}
    with spans.tracer.start_as_current_span("here") as span:
        carrier = current_carrier()
        ids = current_ids()
    assert ids == {"trace_id": f"{span.context.trace_id:032x}", "span_id": f"{span.context.span_id:016x}"}
    variables = contextvars.Context()
    enter({}, variables)
    assert variables.run(current_ids) == {}
    enter(carrier, variables)
    assert variables.run(current_ids) == ids
    assert variables.run(current_carrier) == carrier


# --- what spans say


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("amqp://guest:guest@rabbit:5673/vhost", {"server.address": "rabbit", "server.port": 5673}),
        ("amqp://rabbit", {"server.address": "rabbit", "server.port": 5672}),
        ("amqps://u:p@[::1]/", {"server.address": "::1", "server.port": 5671}),
        ("amqp://one,amqp://two", {}),
        ("amqp://rabbit:many", {}),
        ("no url at all", {}),
    ],
)
def test_a_span_names_the_broker_where_it_is_known_and_never_its_password(url, expected):
    """Of several in turn nobody knows which one has answered."""
    assert server_attributes(load_settings(broker_url=url)) == {"messaging.system": "rabbitmq", **expected}


def test_a_broker_in_memory_is_no_rabbitmq():
    """So that nobody looks for its spans there."""
    assert server_attributes(load_settings(broker_url="memory://")) == {"messaging.system": "memory"}


def test_the_destination_is_exchange_and_routing_key_or_the_queue():
    """As RabbitMQ's conventions have it."""
    message = Message(type="shop.work", body=b"{}", task_id="1", message_id=None)
    to_tasks = send_attributes(Publication(message, Exchange("asyncq.tasks", "mail"), Delay(1.5)), "send")
    assert to_tasks["messaging.destination.name"] == "asyncq.tasks:mail"
    assert to_tasks["asyncq.delay_s"] == 1.5
    assert "messaging.message.id" not in to_tasks
    assert send_attributes(Publication(message, Queue("mail")), "send")["messaging.destination.name"] == "mail"


def test_every_outcome_has_a_word():
    """A span that ends says how."""
    outcomes: list[Outcome] = [
        Succeeded(b"1"),
        RetryLater(FAILURE, 1.0, None),
        Failed(FAILURE, "why"),
        Rejected(FAILURE, "why"),
        Snoozed(1.0),
        Postponed(1.0),
        Deferred(1, 1.0),
        Staged(1, 1.0),
        Throttled(1, 1.0),
        Cancelled(),
        Expired(1, 2),
        Drained(),
        LostLease(),
        Repeated(),
    ]
    assert {type(outcome) for outcome in outcomes} == set(Outcome.__args__)
    words = [outcome_attributes(outcome)["asyncq.outcome"] for outcome in outcomes]
    assert len(set(words)) == len(words)


def test_an_error_that_quotes_arguments_is_told_by_its_type_alone(spans):
    """Its text stays in the dead letter."""
    tracing = Tracing(load_settings())
    message = Message(type="shop.work", body=b"{}", task_id="1", message_id="m")
    quoting = Failure("pydantic_core._pydantic_core.ValidationError", "input 'hush-hush'", "... 'hush-hush'")
    tracing.attempt(message, "shop", 1).end(Rejected(quoting, "invalid arguments"))
    (span,) = spans.all()
    assert span.status.description == "pydantic_core._pydantic_core.ValidationError"
    assert "hush-hush" not in span.to_json()


def test_the_end_of_a_span_is_the_end_of_the_code_and_counts_once(spans):
    """What is done to settle the delivery is not the code's time."""
    attempt = Tracing(load_settings()).attempt(make_message("work"), "work", 1)
    attempt.stop()
    with spans.tracer.start_as_current_span("settling") as later:
        pass
    attempt.end(Succeeded(b"1"))
    attempt.end(LostLease())
    (span,) = spans.named("process work")
    assert span.end_time <= later.start_time
    assert span.attributes["asyncq.outcome"] == "succeeded"
    assert span.status.status_code is StatusCode.UNSET


# --- in a worker


async def test_code_that_is_given_up_has_ended_for_its_trace(spans):
    """At its limit, as the dead letter says; that it goes on, and ends later, changes nothing."""
    kit = await make_kit(time_limit_s=10, tracing=Tracing(load_settings()))
    go_on = asyncio.Event()

    @kit.task()
    async def work() -> None:
        while not go_on.is_set():
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                continue

    kit.broker.put("work", make_message("work"))
    async with kit.broker.consume("work", slots=1) as subscription:
        loop = asyncio.create_task(kit.slot.loop(subscription))
        await eventually(lambda: len(kit.attempts) == 1)
        await kit.clock.advance(10 + GRACE_S)
        (span,) = await spans.ended("process work")
        assert span.attributes["asyncq.outcome"] == "failed"
        assert span.attributes["error.type"] == "asyncq.errors.TimeLimitExceeded"
        go_on.set()
        await eventually(lambda: kit.attempts.overdue == 0)
        await subscription.stop()
        await asyncio.wait_for(loop, 5)
    assert len(spans.named("process work")) == 1


class Broken(Sampler):
    """A sampler of a user's that has a bug."""

    def should_sample(self, *_, **__):
        raise RuntimeError("no idea")

    def get_description(self):
        return "broken"


@pytest.mark.parametrize("sending", ["one", "many"])
async def test_a_span_that_cannot_be_made_costs_no_send_and_no_task(monkeypatch, caplog, sending):
    """The log says it; the trace lacks it."""
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", TracerProvider(Broken(), shutdown_on_exit=False))
    app = AsyncQ("shop", broker=f"memory://broken-{sending}")

    @app.task
    async def work() -> int:
        return 1

    async with working(app):
        handles = [await work.send()] if sending == "one" else await app.send_many([work.s(), work.s()])
        for handle in handles:
            assert await handle.result(timeout=30) == 1
    assert caplog.text.count("a span could not be made") == 1 + len(handles)


# --- the provider of asyncq's own programs


@pytest.fixture
def no_provider(monkeypatch):
    """A program without a provider; the one that is set is taken back after the test."""
    for name in (
        "OTEL_TRACES_EXPORTER",
        "OTEL_EXPORTER_OTLP_PROTOCOL",
        "OTEL_SERVICE_NAME",
        "OTEL_RESOURCE_ATTRIBUTES",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", None)
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER_SET_ONCE._done", False)
    monkeypatch.setattr(provider, "_service", None)
    yield
    current = trace.get_tracer_provider()
    if isinstance(current, TracerProvider):
        current.shutdown()


@pytest.mark.usefixtures("no_provider")
@pytest.mark.parametrize(
    ("environment", "service"),
    [
        ({}, "shop"),
        ({"OTEL_SERVICE_NAME": "mine"}, "mine"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=ours"}, "ours"),
    ],
)
def test_a_program_of_ours_gets_a_provider_with_the_apps_name(monkeypatch, environment, service):
    """Unless the environment says another."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    provider.set_up_provider("shop")
    current = trace.get_tracer_provider()
    assert isinstance(current, TracerProvider)
    assert current.resource.attributes["service.name"] == service
    assert provider.service_of_program() == "shop"
    provider.flush()


def test_a_provider_that_the_program_has_set_stays(monkeypatch, spans):
    """It knows better."""
    monkeypatch.setattr(provider, "_service", None)
    provider.set_up_provider("shop")
    assert trace.get_tracer_provider() is spans.provider
    assert provider.service_of_program() is None


@pytest.mark.usefixtures("no_provider")
@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"OTEL_TRACES_EXPORTER": "nosuch"}, "by 'nosuch'.*package opentelemetry-exporter-nosuch"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "smoke"}, "asks for 'smoke'. Protocols: grpc, http/protobuf"),
        ({"OTEL_TRACES_EXPORTER": "broken"}, "'broken' cannot be used: no such file"),
    ],
)
def test_an_exporter_that_cannot_be_had_is_a_clear_error(monkeypatch, environment, message):
    """With what to install."""

    class Broken(SpanExporter):
        def __init__(self):
            raise OSError("no such file")

    class EntryPoint:
        name = "broken"
        load = staticmethod(lambda: Broken)

    real = provider.entry_points
    monkeypatch.setattr(
        provider, "entry_points", lambda **what: [EntryPoint] if what.get("name") == "broken" else real(**what)
    )
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=message):
        provider.set_up_provider("shop")


def test_without_the_sdk_a_program_of_ours_says_what_to_install(monkeypatch):
    """As where only the API is there."""
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigurationError, match=r"SDK is not installed. Install it: pip install 'asyncq\[tracing\]'"):
        provider.set_up_provider("shop")
