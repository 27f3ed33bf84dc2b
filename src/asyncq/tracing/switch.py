"""Whether there are traces, and what asks for the current one when there may be none.

Invariant: where tracing is off, nothing here imports `opentelemetry`, and what asks costs a look-up.
"""

from __future__ import annotations

import contextvars
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from asyncq.broker import Publication
from asyncq.errors import ConfigurationError
from asyncq.settings import Settings

if TYPE_CHECKING:
    from asyncq.tracing.spans import Tracing

__all__ = ["current_carrier", "current_ids", "enter", "sending", "tracing_of"]

_API = "opentelemetry.trace"


def tracing_of(settings: Settings) -> Tracing | None:
    """Return what makes the spans of an app; None where tracing is off.

    Args:
        settings: `tracing` decides. None means: on where this program has set a tracer provider.

    Raises:
        ConfigurationError: Tracing is asked for, and OpenTelemetry is not installed.
    """
    if settings.tracing is False or (settings.tracing is None and not _has_provider()):
        return None
    if importlib.util.find_spec("opentelemetry") is None:
        raise ConfigurationError(
            "Tracing is switched on (tracing=True, ASYNCQ_TRACING or --tracing), and OpenTelemetry is not installed. "
            "Install it: pip install 'asyncq[tracing]'."
        )
    from asyncq.tracing.spans import Tracing  # noqa: PLC0415 - its import takes time and memory

    return Tracing(settings)


def _has_provider() -> bool:
    """Tell whether this program has set a tracer provider. Who has not imported OpenTelemetry has not."""
    api = sys.modules.get(_API)
    return api is not None and not isinstance(api.get_tracer_provider(), api.ProxyTracerProvider)


@contextmanager
def sending(
    tracing: Tracing | None, publications: Sequence[Publication], *, renew: bool = False
) -> Iterator[Sequence[Publication]]:
    """Make spans, where there are any, around the publish of one or many messages.

    Args:
        tracing: Makes them.
        publications: What is to be sent.
        renew: Whether a trace context that is in a message already was handed on, and does not stay.

    Yields:
        What to publish.
    """
    if tracing is None:
        yield publications
    elif len(publications) == 1:
        with tracing.sending(publications[0], renew=renew) as one:
            yield [one]
    else:
        with tracing.sending_many(publications, renew=renew) as batch:
            yield batch.publications


def current_carrier() -> dict[str, str]:
    """Return the trace context that is current here as headers, for another process; empty where there is none."""
    if _API not in sys.modules:
        return {}
    from opentelemetry import propagate  # noqa: PLC0415 - it is imported already

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier


def enter(carrier: Mapping[str, str], variables: contextvars.Context) -> None:
    """Make a trace context of another process the current one for all that runs with these context variables.

    Args:
        carrier: What `current_carrier` has returned there. An empty one changes nothing.
        variables: The context variables.
    """
    if carrier:
        from opentelemetry.context import attach  # noqa: PLC0415 - for who has traces only

        from asyncq.tracing.spans import remote_context  # noqa: PLC0415

        variables.run(attach, remote_context(carrier))


def current_ids() -> dict[str, str]:
    """Return `trace_id` and `span_id` of the span that is current here, as hexadecimal digits; empty for none."""
    api = sys.modules.get(_API)
    if api is None:
        return {}
    context = api.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
