"""Between the AMQP client's errors and ours.

Invariant: no error of aio_pika, aiormq or asyncio's transports reaches a user. Each mapping says what is wrong,
where, and what to do.
"""

from __future__ import annotations

import asyncio
import re
import ssl

import aiormq.exceptions as amqp
from pamqp import commands
from yarl import URL

from asyncq.errors import (
    AccessRefused,
    AuthenticationFailed,
    BrokerError,
    BrokerUnavailable,
    Refused,
    TopologyMismatch,
    VirtualHostNotFound,
)

__all__ = ["broker_text", "connect_error", "operation_error", "reraise_if_cancelled", "safe_url"]


def safe_url(url: str | URL) -> str:
    """Return the URL without its password and its query."""
    try:
        parsed = URL(url)
        return str(parsed.with_password("***").with_query(None) if parsed.password else parsed.with_query(None))
    except ValueError:
        return "<a URL that cannot be read>"


def broker_text(error: BaseException) -> str:
    """Return what the broker, or the network, said."""
    text = " ".join(str(part) for part in error.args if part not in (None, "")) or type(error).__name__
    return re.sub(r"\s+", " ", text)


def reraise_if_cancelled() -> None:
    """Raise `CancelledError` if somebody has cancelled the current task.

    aiormq ends waiting calls with `CancelledError` when a stuck connection is closed, although nobody has
    cancelled the caller. Swallowing a real cancellation would be as wrong as passing on that one.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def connect_error(error: BaseException, url: str | URL) -> BrokerError:
    """Return our error for a connection that could not be opened."""
    where, said = safe_url(url), _said_while_opening(error)
    parsed = URL(url)
    if isinstance(error, (amqp.ProbableAuthenticationError, amqp.AuthenticationError)):
        return AuthenticationFailed(
            f"The broker at {where} does not accept user {parsed.user or 'guest'!r} with this password. "
            "Check the user and the password in ASYNCQ_BROKER_URL (special characters must be percent-encoded); "
            "note that 'guest' may connect from the broker's own machine only. "
            f"The broker said: {said}"
        )
    if "not found" in said and "vhost" in said:
        return VirtualHostNotFound(
            f"The broker at {where} has no virtual host {_vhost(parsed)!r}. "
            f"Make it with `rabbitmqctl add_vhost {_vhost(parsed)}`, or correct the path of ASYNCQ_BROKER_URL. "
            f"The broker said: {said}"
        )
    if "refused for user" in said:
        return AccessRefused(
            f"User {parsed.user or 'guest'!r} may not use virtual host {_vhost(parsed)!r} of the broker at {where}. "
            f"Grant it with `rabbitmqctl set_permissions -p {_vhost(parsed)} {parsed.user or 'guest'} '.*' '.*' '.*'`. "
            f"The broker said: {said}"
        )
    # aiormq wraps what the socket raises.
    if isinstance(error, ssl.SSLError) or isinstance(error.__cause__, ssl.SSLError):
        return BrokerUnavailable(f"TLS with the broker at {where} failed: {said}. Check certificates, and the port.")
    if isinstance(error, TimeoutError):
        said = "no answer in time"
    return BrokerUnavailable(
        f"No RabbitMQ can be reached at {where}: {said}. "
        "Is it running, and is ASYNCQ_BROKER_URL right? `rabbitmq/broker start` of the asyncq repository starts one."
    )


def _said_while_opening(error: BaseException) -> str:
    """Return the broker's words for a connection that it closed while it was being opened.

    aiormq reports the broker's `connection.close` at this point as an unexpected frame, and drops its text. The frame
    is still a local variable of the function that raised.
    """
    if isinstance(error, amqp.InvalidFrameError):
        trace = error.__traceback__
        while trace is not None:
            frame = trace.tb_frame.f_locals.get("frame")
            if isinstance(frame, commands.Connection.Close):
                return f"{frame.reply_code} {frame.reply_text}"
            trace = trace.tb_next
    return broker_text(error)


def _vhost(url: URL) -> str:
    return url.path[1:] or "/"


def operation_error(error: BaseException, doing: str) -> BrokerError:
    """Return our error for an operation on an open connection.

    Args:
        error: What the AMQP client raised.
        doing: What was tried, in words that can follow "while".
    """
    said = broker_text(error)
    if isinstance(error, BrokerError):
        return error
    if isinstance(error, amqp.ChannelAccessRefused):
        return AccessRefused(
            f"The broker refused while {doing}: {said}. Grant the user the permission that is named, "
            "or let an administrator declare the queues."
        )
    if isinstance(error, amqp.ChannelPreconditionFailed):
        return TopologyMismatch(f"The broker refused while {doing}: {said}")
    if isinstance(error, amqp.AMQPChannelError):
        return Refused(f"The broker refused while {doing}: {said}")
    if isinstance(error, TimeoutError):
        return BrokerUnavailable(f"No answer from the broker in time while {doing}.")
    return BrokerUnavailable(f"The connection to the broker was lost while {doing}: {said}")
