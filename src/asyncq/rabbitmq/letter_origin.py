"""Where a parked message came from: its task queue, when it was parked, and the broker's own reason.

Pure. In `<queue>.dead` it is our record that tells, or RabbitMQ's header `x-death`. In `asyncq.unroutable` it is the
routing key: the queue's name, with the digits of a delay before it where the message came by the delay ladder.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from asyncq.broker import DeadLetter, DeadLetterRecord
from asyncq.message import Headers, Message
from asyncq.queue_names import DEAD_SUFFIX
from asyncq.rabbitmq.topology import DELAY_LEVELS, Names

__all__ = ["BY_THE_BROKER", "letter_from", "parked_in"]

BY_THE_BROKER = "x-death"
"""RabbitMQ's header: an array of tables, the latest death first.
Source: https://www.rabbitmq.com/docs/dlx#effects"""

_FROM_THE_LADDER = re.compile(rf"(?:[0-9a-f]\.){{{DELAY_LEVELS}}}(?P<queue>.+)", re.DOTALL)


def parked_in(names: Names, queue: str) -> str:
    """Return the queue that holds the dead letters of a task queue; the one for unroutable messages is its own."""
    return queue if queue == names.unroutable else names.dead_queue(queue)


def letter_from(
    message: Message, record: DeadLetterRecord | None, *, names: Names, parked: str, exchange: str = "", key: str = ""
) -> DeadLetter:
    """Return a parked message with all that is known about its way.

    Args:
        message: As it is parked.
        record: Why it was parked, where we did it.
        names: The names of what asyncq declares.
        parked: The queue that it is in.
        exchange: Where it came through.
        key: With which routing key.
    """
    death = _latest_death(message.headers)
    if record is not None:
        return DeadLetter(message, record, record.queue, record.failed_at_ms)
    queue = _destination(names, exchange, key) if parked == names.unroutable else parked.removesuffix(DEAD_SUFFIX)
    died_in = death.get("queue")
    if isinstance(died_in, str) and died_in and not names.own(died_in):
        queue = died_in
    reason = death.get("reason")
    return DeadLetter(message, None, queue, _epoch_ms(death.get("time")), reason if isinstance(reason, str) else None)


def _latest_death(headers: Headers) -> dict[str, Any]:
    deaths = headers.get(BY_THE_BROKER)
    death = deaths[0] if isinstance(deaths, list) and deaths else None
    return death if isinstance(death, dict) else {}


def _destination(names: Names, exchange: str, key: str) -> str | None:
    """Return the queue that an unroutable message was for; None where its key tells none."""
    by_ladder = None if exchange == names.dead_exchange else _FROM_THE_LADDER.fullmatch(key)
    queue = key if by_ladder is None else by_ladder["queue"]
    return queue if queue and not names.own(queue) else None


def _epoch_ms(time: Any) -> int | None:
    return round(time.timestamp() * 1000) if isinstance(time, datetime) else None
