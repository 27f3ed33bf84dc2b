"""Find out whether a stream can be read, which no declaration tells of one that the broker has lost.

Invariant: on a connection of its own, for a lost stream ends it (see `lost_streams`). Nothing is taken or changed.
"""

from __future__ import annotations

import asyncio

import aiormq.exceptions as amqp
from aiormq.abc import DeliveredMessage
from yarl import URL

from asyncq.rabbitmq.connection import ConnectOptions, close_connection, connect, open_channel
from asyncq.rabbitmq.failures import broker_text, reraise_if_cancelled

__all__ = ["stream_trouble"]


async def stream_trouble(stream: str, url: URL, connection_name: str, options: ConnectOptions) -> str | None:
    """Return what the broker says in place of letting somebody read a stream that stands; None where it lets.

    Args:
        stream: Its name.
        url: The broker.
        connection_name: For the management UI.
        options: How to connect, and how long to wait for an answer.

    Raises:
        BrokerError: It cannot be connected to.
    """
    connection = await connect(url, connection_name, options)
    try:
        async with asyncio.timeout(options.timeout_s):
            channel = await open_channel(connection, confirms=False)
            await channel.basic_qos(prefetch_count=1)
            await channel.basic_consume(stream, _ignored, arguments={"x-stream-offset": "next"})
            return None
    except amqp.ChannelAccessRefused:
        return None  # whether others can read it, this user cannot know
    except TimeoutError:
        return f"no answer within {options.timeout_s:g} s"
    except asyncio.CancelledError as error:
        reraise_if_cancelled()
        return broker_text(error)
    except (amqp.AMQPError, amqp.ChannelInvalidStateError, OSError) as error:
        return broker_text(error)
    finally:
        await close_connection(connection)


async def _ignored(_: DeliveredMessage) -> None:
    """Others read it."""
