"""One run of the benchmark: its broker, its queues, its sizes, and the processes of both sides.

Both sides use queues with the same arguments, behind the same exchange: asyncq declares them for both.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Self, TypeVar

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractQueue

from asyncq import AsyncQ
from asyncq.broker import QueueSpec
from asyncq_app import QUEUE
from meter import metered
from processes import Child, ChildFailed

__all__ = ["QUEUES", "SIDES", "SLOTS", "Bench", "Side", "Sizes", "alternate", "producer_command", "worker_command"]

T = TypeVar("T")
Side = Literal["raw", "asyncq"]
SIDES: tuple[Side, Side] = ("raw", "asyncq")
QUEUES: dict[Side, str] = {"raw": "bench-raw", "asyncq": QUEUE}
EXCHANGE = "asyncq.tasks"
SLOTS = 100
"""Slots of asyncq's worker, and prefetch count of the raw one."""
_LOOK_EVERY_S = 0.02
_START_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured.

    Attributes:
        rounds: How often a ratio is taken, of publishing and calling.
        slices: How often both sides take turns within a round of publishing or calling.
        publishes: Messages of one slice.
        drain_rounds: How often a ratio of drains is taken, which cannot take turns in slices.
        drained: Messages of one round, those of the warm-up included.
        warm_up: Messages of a drain that are not timed.
        calls: Calls one after another, of one slice.
        calls_at_once: Calls of one slice that are made 50 at a time.
        memory_rounds: How often the memory of a fresh worker is looked at.
        import_rounds: Fresh processes of each side.
        kept_rounds: How often each way of keeping results is drained.
        kept: Messages of one such round, those of the warm-up included.
        kept_warm_up: Messages of it that are not timed.
        celery_pools: How many of Celery's pools are tried.
        workflow_rounds: How often each workflow is run on either side.
        workflow_members: How many tasks the large ones have.
        workflows_in_a_row: How many small ones make one measurement.
        operated_ways: How many of them, from the first one.
        operated_rounds: How often each way of observing a worker is drained.
        operated: Messages of one such round, those of the warm-up included.
        operated_warm_up: Messages of it that are not timed.
        switched: Messages of the worker in which counting is switched on and off.
        switched_block: After how many of them.
    """

    rounds: int = 7
    slices: int = 5
    publishes: int = 500
    drain_rounds: int = 9
    drained: int = 4500
    warm_up: int = 1500
    calls: int = 30
    calls_at_once: int = 200
    memory_rounds: int = 3
    import_rounds: int = 15
    kept_rounds: int = 7
    kept: int = 4000
    kept_warm_up: int = 1000
    celery_pools: int = 5
    workflow_rounds: int = 7
    workflow_members: int = 1000
    workflows_in_a_row: int = 20
    operated_ways: int = 99
    operated_rounds: int = 9
    operated: int = 6500
    operated_warm_up: int = 1500
    switched: int = 80_000
    switched_block: int = 250

    @staticmethod
    def quick() -> Sizes:
        """Return sizes that show that everything runs, and say nothing about speed."""
        return Sizes(
            rounds=1,
            slices=1,
            publishes=200,
            drain_rounds=1,
            drained=600,
            warm_up=200,
            calls=20,
            calls_at_once=100,
            memory_rounds=1,
            import_rounds=1,
            kept_rounds=1,
            kept=400,
            kept_warm_up=100,
            celery_pools=1,
            workflow_rounds=1,
            workflow_members=50,
            workflows_in_a_row=1,
            operated_ways=2,
            operated_rounds=1,
            operated=400,
            operated_warm_up=100,
            switched=400,
            switched_block=20,
        )


def producer_command(side: Side) -> Sequence[str]:
    """Return the arguments of a side's producer."""
    return ("producers.py", side, QUEUES[side], EXCHANGE)


def asyncq_worker(queue: str, loop: str) -> Sequence[str]:
    """Return the arguments of `asyncq worker`, on one of the event loops that `--loop` takes."""
    options = (f"--queue={queue}:{SLOTS}", "--log-level=warning", f"--loop={loop}")
    return ("-m", "asyncq", "worker", "asyncq_app:app", *options)


def worker_command(side: Side) -> Sequence[str]:
    """Return the arguments of a side's worker: the raw one, or what `asyncq worker` is."""
    queue = QUEUES[side]
    if side == "raw":
        return ("raw_worker.py", queue, str(SLOTS))
    return asyncq_worker(queue, "asyncio")  # the other side's loop


def alternate(number: int, sides: Sequence[T] = SIDES) -> Sequence[T]:
    """Return the order of the sides in a round: whoever is first in one is last in the next."""
    return sides if number % 2 == 0 else sides[::-1]


@dataclass
class Bench:
    """What every measurement uses. Use it as an async context manager.

    Args:
        url: The broker's URL, of a virtual host of the benchmark's own.
        sizes: How much is measured.

    Attributes:
        told: What is to be printed beside the figures.
    """

    url: str
    sizes: Sizes
    told: list[str] = field(default_factory=list)
    _stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    async def __aenter__(self) -> Self:
        self._bytecode = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="asyncq-bench-bytecode-"))
        async with AsyncQ("bench", broker=self.url) as app:
            await app.broker.ensure([QueueSpec(name) for name in QUEUES.values()])
        connection = await self._stack.enter_async_context(await aio_pika.connect(self.url))
        self._channel: AbstractChannel = await connection.channel()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of both sides' processes.

        Bytecode is kept in a folder of the run: whether there is any elsewhere depends on who has run what before,
        and on PYTHONDONTWRITEBYTECODE; and without it one side would compile its source each time.
        """
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ASYNCQ_", "PYTHONDONT"))}
        return {**kept, "ASYNCQ_BROKER_URL": self.url, "PYTHONPYCACHEPREFIX": self._bytecode}

    # --- the broker

    async def _queue(self, side: Side) -> AbstractQueue:
        return await self._channel.declare_queue(QUEUES[side], passive=True)

    async def purge(self) -> None:
        """Empty the queues of both sides."""
        for side in SIDES:
            await (await self._queue(side)).purge()

    async def ready(self, side: Side) -> int:
        """Return how many messages wait in a side's queue."""
        return (await self._queue(side)).declaration_result.message_count or 0

    async def consuming(self, side: Side, worker: Child, consumers: int) -> None:
        """Wait until a worker has all its consumers.

        Raises:
            ChildFailed: It ended, or did not get so far.
        """
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                while ((await self._queue(side)).declaration_result.consumer_count or 0) < consumers:
                    if not worker.alive:
                        raise ChildFailed(f"the {side} worker ended.\n{worker.errors()}")
                    await asyncio.sleep(_LOOK_EVERY_S)
        except TimeoutError:
            raise ChildFailed(f"the {side} worker does not consume.\n{worker.errors()}") from None

    # --- processes

    @contextlib.asynccontextmanager
    async def producer(self, side: Side) -> AsyncIterator[Child]:
        """Yield a side's producer, connected."""
        async with Child(producer_command(side), self.environment) as child:
            await child.answer()
            yield child

    @contextlib.asynccontextmanager
    async def worker(self, side: Side, *, count: int = 0, warm_up: int = 0) -> AsyncIterator[Child]:
        """Yield a side's worker: the raw one, or what `asyncq worker` is.

        Args:
            side: Whose.
            count: After so many messages it prints how long they took.
            warm_up: So many of them are not timed.
        """
        async with Child(worker_command(side), {**self.environment, **metered(count, warm_up)}) as child:
            yield child

    def consumers(self, side: Side) -> int:
        """Return how many consumers a side's worker has."""
        return SLOTS if side == "asyncq" else 1
