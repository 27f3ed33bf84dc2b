"""Raw aio-pika's side of a worker: one consumer with a prefetch count; each message is decoded and acked.

A message with `reply_to` is answered, with the same guarantees as asyncq's replies: persistent, mandatory and
confirmed before the ack.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

from meter import Meter

__all__: list[str] = []


async def work(queue_name: str, prefetch: int) -> None:
    """Consume until the process is ended."""
    meter = Meter()
    connection = await aio_pika.connect(os.environ["ASYNCQ_BROKER_URL"])
    channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
    await channel.set_qos(prefetch_count=prefetch)

    async def on_message(message: AbstractIncomingMessage) -> None:
        order = json.loads(message.body)
        meter.tick()
        if message.reply_to is not None:
            answer = aio_pika.Message(
                json.dumps(order["number"]).encode(),
                content_type="application/json",
                correlation_id=message.correlation_id,
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            )
            await channel.default_exchange.publish(answer, message.reply_to, mandatory=True)
        await message.ack()

    queue = await channel.get_queue(queue_name, ensure=False)
    await queue.consume(on_message)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], int(sys.argv[2])))
