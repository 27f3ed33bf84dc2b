"""Spans as tests look at them: by name, as a tree."""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from support import eventually


class RecordedSpans:
    """The spans of this process, from a tracer provider of its own."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = trace.get_tracer("test", tracer_provider=self.provider)

    def all(self) -> list[ReadableSpan]:
        """Those that have ended, in the order of their beginnings."""
        return sorted(self._exporter.get_finished_spans(), key=lambda span: span.start_time)

    def named(self, name: str) -> list[ReadableSpan]:
        """Those of one name."""
        return [span for span in self.all() if span.name == name]

    async def ended(self, name: str, count: int = 1) -> list[ReadableSpan]:
        """Wait until so many spans of one name have ended, and return them."""
        await eventually(lambda: len(self.named(name)) >= count, 30, message=f"{count} x {name!r}: {self.tree()}")
        return self.named(name)

    def tree(self) -> list[str]:
        """Return all as an indented tree: name, attempt, outcome."""
        lines: list[str] = []
        known = {span.context.span_id for span in self.all()}

        def add(parent: int | None, depth: int) -> None:
            for span in self.all():
                above = span.parent.span_id if span.parent is not None else None
                if above == parent or (parent is None and above not in known):
                    words = [span.name, *(str(span.attributes[key]) for key in _SHOWN if key in span.attributes)]
                    lines.append("  " * depth + " ".join(words))
                    add(span.context.span_id, depth + 1)

        add(None, 0)
        return lines


_SHOWN = ("asyncq.attempt", "asyncq.outcome")


def traces_of(spans: list[ReadableSpan]) -> set[int]:
    """Return the ids of their traces."""
    return {span.context.trace_id for span in spans}
