"""Asking workers in memory; see `asyncq.control`.

Invariant: a question is put before all who listen in one moment, under the node's lock, so that the roll is whole.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from asyncq.control import Roll, WorkerName
from asyncq.memory.node import MemoryNode, Reply
from asyncq.rabbitmq.common_errors import answers_lost

__all__ = ["MemoryAsking", "MemoryListener", "MemoryQuestion"]


class MemoryQuestion:
    """One question; see `asyncq.control.Question`."""

    __slots__ = ("_name", "_reply", "body")

    def __init__(self, body: bytes, name: WorkerName, reply: Reply) -> None:
        self.body = body
        self._name = name
        self._reply = reply

    async def answer(self, body: bytes) -> None:
        """See `asyncq.control.Question.answer`."""
        self._reply(self._name, body)
        await asyncio.sleep(0)  # as any publish does, it lets others run


class MemoryListener:
    """Who hears questions, in one loop.

    Args:
        node: Where they are asked.
        name: Who it is.
    """

    def __init__(self, node: MemoryNode, name: WorkerName) -> None:
        self.name = name
        self._node = node
        self._loop = asyncio.get_running_loop()
        self._heard: asyncio.Queue[MemoryQuestion | None] = asyncio.Queue()

    def __aiter__(self) -> AsyncIterator[MemoryQuestion]:
        return self

    async def __anext__(self) -> MemoryQuestion:
        question = await self._heard.get()
        if question is None:
            raise StopAsyncIteration
        return question

    def hear(self, body: bytes, reply: Reply) -> None:
        """See `asyncq.memory.node.Listener.hear`."""
        self._node.call(self._loop, self._heard.put_nowait, MemoryQuestion(body, self.name, reply))

    def close(self) -> None:
        """End the iteration."""
        self._heard.put_nowait(None)


class MemoryAsking:
    """One question to all who listen on a node, in one loop.

    Args:
        node: Where they listen.
    """

    def __init__(self, node: MemoryNode) -> None:
        self._node = node
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Queue[tuple[WorkerName, bytes] | None] = asyncio.Queue()

    async def ask(self, body: bytes, wanted: Callable[[WorkerName], bool], timeout_s: float) -> Roll:
        """See `asyncq.control.Control.ask`."""
        known = self._node.ask(body, self._take)
        awaited = set(filter(wanted, known))
        answers: list[tuple[WorkerName, bytes]] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while awaited:
                    if (answer := await self._arrived.get()) is None:
                        raise answers_lost()
                    answers.append(answer)
                    awaited.discard(answer[0])
        return Roll(tuple(sorted(known, key=str)), tuple(answers))

    def lose(self) -> None:
        """Do what a lost connection does: no more answers come."""
        self._arrived.put_nowait(None)

    def _take(self, name: WorkerName, answer: bytes) -> None:
        self._node.call(self._loop, self._arrived.put_nowait, (name, answer))
