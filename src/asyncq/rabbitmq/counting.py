"""How many messages wait in a queue: asked for many at once, on one channel that is kept for a while.

    who wants to know ─▶ the next question, shared by all who want it by then ─▶ answer
                             │ one is under way: its answer may be from before
                             ▼ waits for its end

Invariant: an answer was asked for after its caller has called, so it includes what the caller has put in before.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

import aiormq.exceptions as amqp
from aiormq.abc import AbstractChannel

from asyncq.errors import BrokerError
from asyncq.rabbitmq.failures import operation_error, reraise_if_cancelled
from asyncq.rabbitmq.topology import OpenChannel

__all__ = ["Counted", "Counting"]

_KEPT_S = 5.0


@dataclass(frozen=True, slots=True)
class Counted:
    """What a queue has.

    Attributes:
        ready: Messages that nobody holds.
        consumers: How many there are.
    """

    ready: int
    consumers: int


class Counting:
    """Counts queues.

    Args:
        open_channel: Gives a fresh channel of the administration connection.
    """

    def __init__(self, open_channel: OpenChannel) -> None:
        self._open_channel = open_channel
        self._asking = asyncio.Lock()
        self._next: dict[str, asyncio.Task[Counted | None]] = {}
        self._channel: AbstractChannel | None = None
        self._stack = contextlib.AsyncExitStack()
        self._idle: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[None] | None = None

    async def count(self, queue: str) -> Counted | None:
        """Return what a queue has; None where there is no such queue.

        Raises:
            BrokerError: The broker could not be asked.
        """
        question = self._next.get(queue)
        if question is None:
            question = self._next[queue] = asyncio.create_task(self._ask_next(queue), name=f"asyncq counts {queue}")
            question.add_done_callback(_seen)
        return await asyncio.shield(question)  # for all who share it: who is cancelled must not stop it for others

    async def close(self) -> None:
        """Let go of the channel."""
        async with self._asking:
            self._stop_timer()
            await self._let_go()

    async def _ask_next(self, queue: str) -> Counted | None:
        async with self._asking:
            del self._next[queue]  # who comes from now on wants a later answer
            self._stop_timer()
            try:
                return await self._ask(queue)
            except BaseException:
                await self._let_go()
                raise
            finally:
                self._idle = asyncio.get_running_loop().call_later(_KEPT_S, self._close_soon)

    async def _ask(self, queue: str) -> Counted | None:
        try:
            if self._channel is None or self._channel.is_closed:
                await self._let_go()
                self._channel = await self._stack.enter_async_context(self._open_channel())
            answer = await self._channel.queue_declare(queue, passive=True)
        except amqp.ChannelNotFoundEntity:
            await self._let_go()  # the broker has closed it
            return None
        except BrokerError:
            raise
        except asyncio.CancelledError as error:
            reraise_if_cancelled()
            raise operation_error(ConnectionError(*error.args), f"counting queue {queue!r}") from error
        except (amqp.AMQPError, amqp.ChannelInvalidStateError, OSError) as error:
            raise operation_error(error, f"counting queue {queue!r}") from error
        return Counted(answer.message_count or 0, answer.consumer_count or 0)

    async def _let_go(self) -> None:
        self._channel = None
        stack, self._stack = self._stack, contextlib.AsyncExitStack()
        with contextlib.suppress(Exception):
            await stack.aclose()

    def _stop_timer(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _close_soon(self) -> None:
        self._closing = asyncio.get_running_loop().create_task(self.close())


def _seen(question: asyncio.Task[Counted | None]) -> None:
    if not question.cancelled():
        question.exception()  # all who wait have it; perhaps nobody does any more, and asyncio would complain
