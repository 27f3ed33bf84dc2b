"""The tracer provider of asyncq's own programs, as OpenTelemetry's environment variables say it.

For `asyncq worker --tracing` and its like: a program of a user's own sets its own provider, and so does
`opentelemetry-instrument`; then nothing here does anything. `OTEL_TRACES_EXPORTER` and `OTEL_EXPORTER_OTLP_PROTOCOL`
are read here; all the rest (`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`,
`OTEL_TRACES_SAMPLER`, `OTEL_BSP_*`, `OTEL_PROPAGATORS` ...) is read by OpenTelemetry itself.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from asyncq.errors import ConfigurationError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

__all__ = ["flush", "service_of_program", "set_up_provider"]

_EXPORTERS = "opentelemetry_traces_exporter"
_INSTALL = "pip install 'asyncq[tracing]'"
_FLUSH_TIMEOUT_MS = 5000
_OTLP = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}

_service: str | None = None


def service_of_program() -> str | None:
    """Return the service name that `set_up_provider` was given; None where this program's provider is not ours."""
    return _service


def set_up_provider(service: str) -> None:
    """Give this program a tracer provider, unless it has one.

    Args:
        service: The service's name, where neither `OTEL_SERVICE_NAME` nor `OTEL_RESOURCE_ATTRIBUTES` says one.

    Raises:
        ConfigurationError: OpenTelemetry's SDK or the exporter is not installed, or an exporter cannot be used.
    """
    global _service  # noqa: PLW0603 - as the provider itself, there is one for the program
    try:
        from opentelemetry import trace  # noqa: PLC0415 - for who wants traces only
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise ConfigurationError(
            f"Tracing is switched on, and OpenTelemetry's SDK is not installed. Install it: {_INSTALL}."
        ) from error
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return
    resource = Resource.create()
    if str(resource.attributes.get(SERVICE_NAME, "unknown_service")).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: service}))
    provider = TracerProvider(resource=resource)
    for exporter in _exporters():
        provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    _service = service


def flush() -> None:
    """Hand over the spans that wait to be exported: for the end of a process that does not run its exit handlers."""
    api = sys.modules.get("opentelemetry.trace")
    if api is not None:
        force = getattr(api.get_tracer_provider(), "force_flush", None)  # the SDK's providers have it
        if force is not None:
            force(_FLUSH_TIMEOUT_MS)


def _exporters() -> list[SpanExporter]:
    names = os.environ.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    return [_exporter(name.strip()) for name in names.split(",") if name.strip() not in {"", "none"}]


def _exporter(name: str) -> SpanExporter:
    wanted = _otlp() if name == "otlp" else name
    found = next(iter(entry_points(group=_EXPORTERS, name=wanted)), None)
    if found is None:
        known = ", ".join(sorted({"none"} | {item.name for item in entry_points(group=_EXPORTERS)}))
        package = f"opentelemetry-exporter-{wanted.replace('_', '-')}"
        raise ConfigurationError(
            f"Traces are to be exported by {wanted!r} (OTEL_TRACES_EXPORTER, OTEL_EXPORTER_OTLP_PROTOCOL), and no such "
            f"exporter is installed. Perhaps it is in the package {package}. Installed: {known}."
        )
    try:
        exporter: SpanExporter = found.load()()
    except Exception as error:
        raise ConfigurationError(f"The trace exporter {wanted!r} cannot be used: {error}") from error
    return exporter


def _otlp() -> str:
    """Return the name of the exporter that speaks the protocol which is asked for."""
    by_name = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"
    protocol = next((os.environ[name].strip() for name in by_name if os.environ.get(name, "").strip()), "http/protobuf")
    if protocol not in _OTLP:
        raise ConfigurationError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL asks for {protocol!r}. Protocols: {', '.join(sorted(_OTLP))}."
        )
    return _OTLP[protocol]
