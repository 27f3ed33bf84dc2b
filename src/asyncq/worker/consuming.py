"""The slots of one queue: subscribe, run the loops, and subscribe again where the queue was deleted.

Invariant: `run` ends only by `stop()`, or because the broker will not have us: a deleted queue is declared again,
and a failure of one queue is nothing to the others.
"""

from __future__ import annotations

import asyncio

import anyio
from anyio.abc import TaskGroup

from asyncq.broker import Broker, QueueSpec, Subscription
from asyncq.errors import BrokerError, BrokerRefused, QueueGone, TopologyMismatch, UsageError
from asyncq.loggers import get_logger
from asyncq.worker.pausing import QueueBreaker
from asyncq.worker.slot import Slot

__all__ = ["QueueConsumer"]

log = get_logger("asyncq.worker")

_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 10.0
_FATAL = (BrokerRefused, TopologyMismatch, UsageError)


class QueueConsumer:
    """One queue of a worker.

    Args:
        broker: Where the queue is.
        spec: The queue, as it is declared again after a deletion.
        slots: How many deliveries are worked on at once; `set_slots` changes it.
        slot: What is done with each.
        breaker: Pauses the slots; None where nothing does.

    Attributes:
        consuming: Set when it has consumed for the first time, or will not.
        ended: Set when nothing of this queue runs here any more, and nothing will: `run` has ended, or `stop` came
            while there was no subscription.
    """

    def __init__(
        self, broker: Broker, spec: QueueSpec, slots: int, slot: Slot, breaker: QueueBreaker | None = None
    ) -> None:
        self._broker = broker
        self._spec = spec
        self._slots = slots
        self._slot = slot
        self._breaker = breaker
        self._subscription: Subscription | None = None
        self._resized = asyncio.Event()
        self._stopping = asyncio.Event()
        self.consuming = asyncio.Event()
        self.ended = asyncio.Event()

    async def run(self) -> None:
        """Consume until `stop()`. While the broker is away it may go on after that: cancel it, once all have ended.

        Raises:
            BrokerRefused: The broker will not have us any more.
            TopologyMismatch: The queue was deleted, and came back with other arguments.
            NotOpen: The app was closed under the worker.
        """
        try:
            await self._keep_consuming()
        finally:
            if self._breaker is not None:
                self._breaker.close()
            self.consuming.set()
            self.ended.set()

    async def _keep_consuming(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._stopping.is_set():
            began = anyio.current_time()
            try:
                await self._consume()
                if self._stopping.is_set():
                    return
            except _FATAL:
                raise
            except QueueGone as error:
                log.error(  # noqa: TRY400 - the traceback of our own reader says nothing more
                    "the queue was deleted while this worker consumed it: what was in it is gone, it is declared again",
                    queue=self._spec.name,
                    cause=str(error),
                )
            except BrokerError as error:
                log.warning("cannot consume, trying again", queue=self._spec.name, pause_s=pause_s, cause=str(error))
            except Exception:
                log.exception("consuming failed, trying again", queue=self._spec.name, pause_s=pause_s)
            if anyio.current_time() - began > _LONGEST_PAUSE_S:
                pause_s = _FIRST_PAUSE_S  # it had worked meanwhile
            with anyio.move_on_after(pause_s):
                await self._stopping.wait()
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
            await self._declare_again()

    def set_slots(self, slots: int) -> None:
        """Work on so many deliveries at once from now on; 0 takes nothing. What runs may finish."""
        self._slots = slots
        self._resized.set()

    async def stop(self) -> None:
        """Take nothing new, and hand back what was not started. `ended` is set when the slots have finished."""
        self._stopping.set()
        if self._breaker is not None:
            self._breaker.close()
        if self._subscription is None:
            self.ended.set()
        else:
            await self._subscription.stop()

    async def _consume(self) -> None:
        """Run the slots' loops until the subscription ends.

        Raises:
            BrokerError: What it ended by.
        """
        errors: list[Exception] = []
        async with self._broker.consume(self._spec.name, slots=self._slots) as subscription:
            self._subscription = subscription
            self.consuming.set()
            try:
                if self._breaker is not None:
                    await self._breaker.attach(subscription)
                if self._stopping.is_set():
                    await subscription.stop()
                async with anyio.create_task_group() as resizing:
                    async with anyio.create_task_group() as loops:
                        # One also where there are no slots: it waits, and hears of the end of the subscription.
                        loops.start_soon(self._loop, subscription, errors)
                        self._resized.set()
                        resizing.start_soon(self._keep_size, subscription, loops, errors)
                    resizing.cancel_scope.cancel()
            finally:
                self._subscription = None
                if self._breaker is not None:
                    self._breaker.detach()
        if errors:
            raise errors[0]

    async def _keep_size(self, subscription: Subscription, loops: TaskGroup, errors: list[Exception]) -> None:
        """Let the subscription have the slots that are wanted, with a loop for each. Loops that are too many wait."""
        count = 1
        while True:
            await self._resized.wait()
            self._resized.clear()
            while count < self._slots:
                loops.start_soon(self._loop, subscription, errors)
                count += 1
            try:
                await subscription.resize(self._slots)
            except Exception:
                log.exception("the slots could not be changed", queue=self._spec.name)

    async def _loop(self, subscription: Subscription, errors: list[Exception]) -> None:
        """One slot's loop. Its error is noted, not raised: it must not cancel what the other slots run."""
        try:
            await self._slot.loop(subscription, self._breaker)
        except Exception as error:  # noqa: BLE001 - raised by `_consume`, once the other slots have ended
            errors.append(error)
            await subscription.stop()

    async def _declare_again(self) -> None:
        try:
            await self._broker.ensure([self._spec])
        except _FATAL:
            raise
        except BrokerError as error:
            log.warning("the queue could not be declared again", queue=self._spec.name, cause=str(error))
