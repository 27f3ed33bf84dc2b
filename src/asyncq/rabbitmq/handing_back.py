"""Deliveries that were brought and shall not be started here: handed back in the background, for as long as it takes.

Invariant: a delivery that nobody starts does not stay in its slot: it is handed back, or its lease is lost.
"""

from __future__ import annotations

import asyncio

from asyncq.errors import AsyncQError
from asyncq.loggers import get_logger
from asyncq.rabbitmq.delivery import RabbitDelivery

__all__ = ["HandingBack"]

log = get_logger("asyncq.rabbitmq")

_RETRY_PAUSE_S = 0.5


class HandingBack:
    """The deliveries of one subscription that are on their way back."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[None]] = set()
        self._last_try = False

    def add(self, delivery: RabbitDelivery) -> None:
        """Hand one back."""
        task = asyncio.get_running_loop().create_task(self._hand_back(delivery))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def finish(self) -> None:
        """Wait for all of them. What cannot be handed back now, the broker takes back with the channel."""
        self._last_try = True
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _hand_back(self, delivery: RabbitDelivery) -> None:
        while not delivery.is_lost:
            try:
                await delivery.release()
            except AsyncQError as error:
                if self._last_try:
                    log.warning("a delivery could not be handed back, the broker does it", cause=str(error))
                    return
                log.debug("a delivery cannot be handed back, trying again", queue=delivery.queue, cause=str(error))
                await asyncio.sleep(_RETRY_PAUSE_S)
            else:
                return
