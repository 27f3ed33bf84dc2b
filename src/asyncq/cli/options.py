"""Options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from asyncq.app import AsyncQ
from asyncq.loading import load_app
from asyncq.observability.logs import LogFormat, LogLevel, configure_logging
from asyncq.settings import load_settings

__all__ = [
    "AppOption",
    "BrokerUrlOption",
    "LogFormatOption",
    "LogLevelOption",
    "Reaching",
    "ServiceLogLevelOption",
    "app_for",
    "override",
]

BrokerUrlOption = Annotated[
    str | None,
    typer.Option(
        "--broker-url",
        metavar="URL",
        help="amqp://user:password@host:5672/vhost. By default the app's own, then ASYNCQ_BROKER_URL.",
    ),
]
AppOption = Annotated[
    str | None,
    typer.Option(
        "--app",
        metavar="MODULE:APP",
        help="An app: its broker, its queues, and its tasks, by which the arguments are checked before they are sent.",
    ),
]
LogLevelOption = Annotated[
    LogLevel,
    typer.Option(
        "--log-level",
        case_sensitive=False,
        help="What is told on the way. The command's own result or error is told in any case.",
    ),
]

ServiceLogLevelOption = Annotated[
    LogLevel, typer.Option("--log-level", case_sensitive=False, envvar="ASYNCQ_LOG_LEVEL", help="What is logged.")
]
LogFormatOption = Annotated[
    LogFormat,
    typer.Option(
        "--log-format",
        case_sensitive=False,
        envvar="ASYNCQ_LOG_FORMAT",
        help="For people, or one JSON object a line for machines.",
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaching:
    """How the app's broker is reached, and what is logged on the way. Its fields are options (see `grouped`)."""

    broker_url: BrokerUrlOption = None
    log_level: LogLevelOption = LogLevel.CRITICAL

    def app(self, target: str) -> AsyncQ:
        """Return the app that MODULE:APP leads to, on its broker. Raises what `app_for` raises."""
        configure_logging(self.log_level)
        return app_for(target, self.broker_url)


def app_for(target: str | None, broker_url: str | None) -> AsyncQ:
    """Return the app that a command uses: the given one, or one that only knows the broker.

    Raises:
        AppNotFound: MODULE:APP does not lead to an app.
        ConfigurationError: A setting cannot be used.
    """
    if target is None:
        return AsyncQ("cli", broker=broker_url)
    app = load_app(target)
    override(app, broker_url=broker_url)
    return app


def override(app: AsyncQ, **settings: Any) -> None:
    """Let the command line have the last word on an app's settings; None leaves one as it is.

    Raises:
        ConfigurationError: A value cannot be used.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    if given:
        app.settings = load_settings(**{**app.settings.model_dump(), **given})
