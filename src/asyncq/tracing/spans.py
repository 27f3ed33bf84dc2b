"""Spans of sends and attempts, by OpenTelemetry's API.

    send span (PRODUCER) ──traceparent──▶ process span (CONSUMER), one for each attempt
                                              └── whatever the task does: its own spans, and its sends

A message is given its trace context once, when it is sent. Copies (retries, snoozes, dead letters, replays) keep it:
all attempts of a task are children of its one send, in one trace, whenever and wherever they run. The conventions call
this the creation context, which nobody on the way may change, and allow it as the parent of single messages' process
spans; a link to it, which they ask for in any case, is there as well.

Invariant: nothing here fails a send or a task. A header that is no trace context begins a trace; where a propagator or
a sampler of the program's raises, the log says so, and the trace lacks a span.
"""

from __future__ import annotations

import contextvars
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version

from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode

from asyncq.broker import Publication
from asyncq.errors import PublishError
from asyncq.loggers import get_logger
from asyncq.message import Headers, Message
from asyncq.outcome import Outcome
from asyncq.settings import Settings
from asyncq.tracing.attributes import (
    attempt_attributes,
    batch_attributes,
    failure_of,
    outcome_attributes,
    send_attributes,
    server_attributes,
    short,
)

__all__ = ["AttemptSpan", "Batch", "Tracing", "remote_context"]

log = get_logger("asyncq.tracing")

_MISSED = "a span could not be made, so the trace lacks it"
_SCHEMA = "https://opentelemetry.io/schemas/1.37.0"


@dataclass(slots=True)
class Batch:
    """Many messages that are sent at once.

    Attributes:
        publications: What to publish: the messages, each with its context.
        errors: What has become of them, to be set by the sender; None for each that was confirmed.
    """

    publications: list[Publication]
    errors: Sequence[PublishError | None] = ()


class AttemptSpan:
    """The span of one attempt: it lasts as long as the code, and tells the outcome that was settled after it.

    Args:
        span: Begun.
        context: Its parent's.
    """

    __slots__ = ("_context", "_end_ns", "_has_ended", "_span")

    def __init__(self, span: Span, context: Context) -> None:
        self._span = span
        self._context = trace.set_span_in_context(span, context)
        self._end_ns: int | None = None
        self._has_ended = False

    def stop(self) -> None:
        """Note that the code has come to its end: what is done to settle it takes time of its own."""
        self._end_ns = time.time_ns()

    def enter(self, variables: contextvars.Context) -> None:
        """Make the span the current one for all that runs with these context variables."""
        variables.run(otel_context.attach, self._context)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the span the current one in the block; also when it has ended."""
        token = otel_context.attach(self._context)
        try:
            yield
        finally:
            otel_context.detach(token)

    def end(self, outcome: Outcome) -> None:
        """Say how it ended. Only the first time counts: given up code may end later."""
        if self._has_ended:
            return
        self._has_ended = True
        span = self._span
        if span.is_recording():
            span.set_attributes(outcome_attributes(outcome))
            failure = failure_of(outcome)
            if failure is not None:
                kind = short(failure.type)
                span.set_attribute("error.type", kind)
                # An error that quotes the task's arguments is told by its type alone.
                told = {} if failure.quotes_arguments else {"exception.message": failure.message}
                if failure.traceback and not failure.quotes_arguments:
                    told["exception.stacktrace"] = failure.traceback
                span.add_event("exception", {"exception.type": kind, **told})
                span.set_status(Status(StatusCode.ERROR, told.get("exception.message", kind)))
        span.end(self._end_ns)


class Tracing:
    """Makes the spans of one app.

    Args:
        settings: The broker's address is said in each span.
    """

    def __init__(self, settings: Settings) -> None:
        # A provider that the program sets later is taken as well: until then the API hands out a stand-in.
        self._tracer = trace.get_tracer("asyncq", version("asyncq"), schema_url=_SCHEMA)
        self._server = server_attributes(settings)

    # --- sending

    @contextmanager
    def sending(self, publication: Publication, *, renew: bool = False) -> Iterator[Publication]:
        """Make a span around the publish of one message.

        Args:
            publication: What is to be sent. A trace context that the sender has put into its headers stays.
            renew: Whether it does not, because it is no sender's but was handed on.

        Yields:
            What to publish: the message with the span's context in its headers.
        """
        begun = self._begin_send(publication, renew=renew)
        if begun is None:
            yield publication
            return
        span, traced = begun
        with _current(span):
            yield traced

    @contextmanager
    def sending_many(self, publications: Sequence[Publication], *, renew: bool = False) -> Iterator[Batch]:
        """Make a span for each message, and one around the publish of them all.

        Args:
            publications: What is to be sent.
            renew: As of `sending`.

        Yields:
            What to publish, and where to put what became of it.
        """
        batch = Batch(list(publications))
        sending = self._begin_batch(batch, renew=renew)
        if sending is None:
            yield batch
            return
        with _current(sending):
            yield batch
            errors = [error for error in batch.errors if error is not None]
            if errors:
                sending.set_attribute("error.type", _name_of(errors[0]))
                count, text = len(batch.publications), str(errors[0])
                if count > 1:
                    text = f"{len(errors)} of {count} were not, or perhaps not, sent. The first error: {text}"
                sending.set_status(Status(StatusCode.ERROR, text))

    def _begin_send(self, publication: Publication, *, renew: bool) -> tuple[Span, Publication] | None:
        try:
            own = None if renew else _own_context(publication.message)
            span = self._tracer.start_span(
                f"send {publication.message.type}",
                kind=SpanKind.PRODUCER if own is None else SpanKind.CLIENT,
                attributes={**self._server, **send_attributes(publication, "send")},
                links=() if own is None else (own,),
            )
            return span, publication if own is not None else _with_context_of(span, publication)
        except Exception:
            log.exception(_MISSED, task=publication.message.type, task_id=publication.message.task_id)
            return None

    def _begin_batch(self, batch: Batch, *, renew: bool) -> Span | None:
        """Begin the span of a batch, and give each of its messages a context. One message needs no second span."""
        if len(batch.publications) == 1:
            begun = self._begin_send(batch.publications[0], renew=renew)
            if begun is None:
                return None
            span, batch.publications[0] = begun
            return span
        try:
            links = [self._create(batch, position, renew=renew) for position in range(len(batch.publications))]
            attributes = {**self._server, **batch_attributes(len(links))}
            return self._tracer.start_span("send", kind=SpanKind.CLIENT, attributes=attributes, links=links)
        except Exception:
            log.exception(_MISSED, messages=len(batch.publications))
            return None

    def _create(self, batch: Batch, position: int, *, renew: bool) -> Link:
        publication = batch.publications[position]
        own = None if renew else _own_context(publication.message)
        if own is not None:
            return own
        span = self._tracer.start_span(
            f"create {publication.message.type}",
            kind=SpanKind.PRODUCER,
            attributes={**self._server, **send_attributes(publication, "create")},
        )
        batch.publications[position] = _with_context_of(span, publication)
        span.end()
        return Link(span.get_span_context())

    # --- processing

    def attempt(self, message: Message, queue: str, number: int) -> AttemptSpan | None:
        """Begin the span of an attempt. Its parent is the span that has sent the task.

        Args:
            message: What was delivered.
            queue: Where it came from.
            number: The attempt's.

        Returns:
            The span; None where it could not be made.
        """
        try:
            return self._begin_attempt(message, queue, number)
        except Exception:
            log.exception(_MISSED, task=message.type, task_id=message.task_id)
            return None

    def _begin_attempt(self, message: Message, queue: str, number: int) -> AttemptSpan:
        parent = remote_context(message.headers)
        sent = trace.get_current_span(parent).get_span_context()
        span = self._tracer.start_span(
            f"process {message.type}",
            context=parent,
            kind=SpanKind.CONSUMER,
            attributes={**self._server, **attempt_attributes(message, queue, number)},
            links=(Link(sent),) if sent.is_valid else (),
        )
        return AttemptSpan(span, parent)


def remote_context(headers: Headers | Mapping[str, str]) -> Context:
    """Return the trace context, and the baggage, of a message; an empty one where it has none.

    What runs here at the moment has no part in it.
    """
    fields = propagate.get_global_textmap().fields
    # A foreign producer's header may be anything: what is no text is no trace context.
    carrier = {name: value for name in fields if isinstance(value := headers.get(name), str)}
    return propagate.extract(carrier, Context()) if carrier else Context()


def _own_context(message: Message) -> Link | None:
    """Return a link to the trace context that the sender has given the message itself; None where there is none."""
    context = trace.get_current_span(remote_context(message.headers)).get_span_context()
    return Link(context) if context.is_valid else None


def _with_context_of(span: Span, publication: Publication) -> Publication:
    headers = dict(publication.message.headers)
    propagate.inject(headers, trace.set_span_in_context(span))
    return replace(publication, message=replace(publication.message, headers=headers))


@contextmanager
def _current(span: Span) -> Iterator[None]:
    """Make the span the current one in the block, and end it with the block's error."""
    with trace.use_span(span, end_on_exit=True):
        try:
            yield
        except Exception as error:
            span.set_attribute("error.type", _name_of(error))
            raise


def _name_of(error: BaseException) -> str:
    kind = type(error)
    return short(f"{kind.__module__}.{kind.__qualname__}")
