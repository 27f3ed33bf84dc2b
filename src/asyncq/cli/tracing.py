"""`--tracing`, and the tracer provider of asyncq's own commands."""

from __future__ import annotations

from typing import Annotated

import typer

from asyncq.app import AsyncQ
from asyncq.cli.options import override
from asyncq.tracing.provider import set_up_provider

__all__ = ["TracingOption", "trace"]

TracingOption = Annotated[
    bool,
    typer.Option(
        "--tracing",
        help="Export OpenTelemetry spans of sends and attempts, as the OTEL_* variables say. Needs asyncq[tracing].",
    ),
]


def trace(app: AsyncQ, *, wanted: bool = False) -> None:
    """Let this program export its spans, where tracing is switched on and nobody else has seen to it.

    Args:
        app: Its settings, or its environment, may ask for traces.
        wanted: Whether the command line does.

    Raises:
        ConfigurationError: What that needs is not installed, or cannot be used.
    """
    override(app, tracing=True if wanted else None)
    if app.settings.tracing:
        set_up_provider(app.name)
