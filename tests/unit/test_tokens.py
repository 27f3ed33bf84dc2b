"""What a leader keeps in its queue: the newest states, whatever it saves and renews at once."""

from __future__ import annotations

import asyncio

from asyncq.message import Message
from asyncq.rabbitmq.tokens import Tokens


class Queue:
    """The leader's queue: what is put is delivered at once, and stays until it is acked."""

    def __init__(self) -> None:
        self.messages: dict[str, Message] = {}
        self.put_slowly = asyncio.Event()
        self.put_slowly.set()
        self.tokens = Tokens(self.put, asyncio.Event().wait)

    async def put(self, message: Message) -> None:
        await self.put_slowly.wait()
        key = message.message_id or ""
        self.messages[key] = message

        async def ack() -> None:
            del self.messages[key]

        await self.tokens.arrived(message, ack)

    def kept(self, name: str) -> list[bytes]:
        return [message.body for message in self.messages.values() if message.headers.get("asyncq-state") == name]


async def test_what_is_saved_while_all_is_renewed_is_not_overtaken_by_what_was_before():
    """A pause that was asked for at that moment would be forgotten by the next leader."""
    queue = Queue()
    await queue.tokens.save("watermark", b"1")
    await queue.tokens.save("definitions", b"running")
    queue.put_slowly.clear()
    renewing = asyncio.create_task(queue.tokens.renew())
    await asyncio.sleep(0)
    saving = [
        asyncio.create_task(queue.tokens.save(*state)) for state in (("definitions", b"paused"), ("watermark", b"2"))
    ]
    await asyncio.sleep(0)
    queue.put_slowly.set()
    await asyncio.gather(renewing, *saving)
    assert queue.kept("definitions") == [b"paused"]
    assert queue.kept("watermark") == [b"2"]
    assert dict(queue.tokens.states) == {"definitions": b"paused", "watermark": b"2"}
