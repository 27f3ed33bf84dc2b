"""What each `asyncq dead` command begins with: the app, and the queues whose dead letters are meant."""

from __future__ import annotations

from asyncq.app import AsyncQ
from asyncq.cli.dead_options import check_parked
from asyncq.cli.options import app_for
from asyncq.cli.topology import task_queues
from asyncq.errors import BrokerUnavailable
from asyncq.observability.logs import LogLevel, configure_logging

__all__ = ["prepared", "queues_of"]


def prepared(target: str | None, broker_url: str | None, log_level: LogLevel, queue: str | None) -> AsyncQ:
    """Return the app that a command uses, with logging configured and the queue's name checked.

    Raises:
        ConfigurationError: The app, a setting or the name cannot be used.
    """
    configure_logging(log_level)
    app = app_for(target, broker_url)
    if queue is not None:
        check_parked(app, queue)
    return app


async def queues_of(app: AsyncQ, management_url: str | None, *, whole_broker: bool) -> list[str]:
    """Return the names by which dead letters are asked for; the queue for unroutable messages is the last one.

    Args:
        app: The app.
        management_url: Where the management API is; by default where RabbitMQ's defaults put it.
        whole_broker: All that stand on the broker, in place of the app's.

    Raises:
        BrokerUnavailable: The broker, or its management API, cannot be reached.
    """
    unroutable = f"{app.settings.namespace}.unroutable"
    if not whole_broker:
        return [*(spec.name for spec in task_queues(app)), unroutable]
    from asyncq.rabbitmq.diagnosis import found_dead_letters  # noqa: PLC0415 - most commands need no AMQP client
    from asyncq.rabbitmq.inspection import inspecting  # noqa: PLC0415
    from asyncq.rabbitmq.topology import Names  # noqa: PLC0415

    names = Names(app.settings.namespace)
    async with inspecting(app.settings, app.name) as inspector:
        standing = await inspector.look((), management_url)
    if not standing.complete:
        raise BrokerUnavailable(
            f"All dead-letter queues of a broker are found by its management API. {' '.join(standing.unread)} Or name "
            "a QUEUE, or an app: --app MODULE:APP."
        )
    return [*found_dead_letters(names, standing), *([unroutable] if unroutable in standing.queues else [])]
