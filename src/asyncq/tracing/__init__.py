"""Traces by OpenTelemetry: spans for sends and attempts, and their context in the messages' headers.

Only this package imports `opentelemetry`, and only where tracing is on. asyncq uses OpenTelemetry's API; which spans
are kept, and where they go, says the program's own provider.
"""
