"""A receiver of OTLP over HTTP, as a collector has one: it takes spans of other processes, and keeps them."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

SHOWN = ("asyncq.attempt", "asyncq.outcome")


@dataclass(frozen=True)
class Span:
    """One span, as it was exported.

    Attributes:
        resource: What its process says of itself.
    """

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    attributes: dict[str, Any]
    resource: dict[str, Any]

    @property
    def service(self) -> str:
        """The service's name."""
        return self.resource["service.name"]

    def __str__(self) -> str:
        words = [str(self.attributes[key]) for key in SHOWN if key in self.attributes]
        return " ".join([self.name, *words, f"({self.service})"])


class Receiver:
    """What has come.

    Attributes:
        url: For `OTEL_EXPORTER_OTLP_ENDPOINT`.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._lock = threading.Lock()
        self._spans: list[Span] = []

    def take(self, request: ExportTraceServiceRequest) -> None:
        """Keep the spans of one export."""
        for of_resource in request.resource_spans:
            resource = _values(of_resource.resource.attributes)
            for of_scope in of_resource.scope_spans:
                for span in of_scope.spans:
                    found = Span(
                        name=span.name,
                        trace_id=span.trace_id.hex(),
                        span_id=span.span_id.hex(),
                        parent_id=span.parent_span_id.hex(),
                        start_ns=span.start_time_unix_nano,
                        attributes=_values(span.attributes),
                        resource=resource,
                    )
                    with self._lock:
                        self._spans.append(found)

    def spans(self, trace_id: str | None = None) -> list[Span]:
        """Return what has come so far, in the order of the beginnings; of one trace, or all."""
        with self._lock:
            found = [span for span in self._spans if trace_id in {None, span.trace_id}]
        return sorted(found, key=lambda span: span.start_ns)

    def tree(self, trace_id: str, parent_id: str) -> list[str]:
        """Return what is below a span, as an indented tree."""
        lines = []
        for span in self.spans(trace_id):
            if span.parent_id == parent_id:
                lines.append(str(span))
                lines += [f"  {line}" for line in self.tree(trace_id, span.span_id)]
        return lines


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Receive on a free port of loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            if self.path == "/v1/traces":
                receiver.take(ExportTraceServiceRequest.FromString(body))
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver = Receiver(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()


def _values(attributes: Any) -> dict[str, Any]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in attributes}
