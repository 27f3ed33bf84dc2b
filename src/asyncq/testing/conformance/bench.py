"""The test bench: a broker under test, and what the behaviours do with it.

A behaviour is an `async def test_...(bench)` with a sentence for a name, made one by `@behaviour`. It knows the
seam `asyncq.broker.Broker`, the app, and the five things of `BrokerUnderTest`; nothing of any one broker.

Invariant: waits are for conditions, with limits that only a fault reaches. Nothing asserts that something was fast.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import pytest

from asyncq.app import AsyncQ
from asyncq.broker import Address, Broker, DeadLetter, Delay, Delivery, Identity, Queue, QueueSpec, Subscription
from asyncq.message import Message, new_id
from asyncq.settings import Settings, load_settings
from asyncq.testing.conformance.differences import DIFFERENCES, Difference
from asyncq.worker.worker import Worker

__all__ = [
    "QUEUE",
    "WAIT_S",
    "Bench",
    "BrokerUnderTest",
    "behaviour",
    "dead_letter",
    "dead_letters",
    "eventually",
    "make_message",
    "nothing_comes",
    "put",
    "take",
]

QUEUE = "shop"
"""The task queue that `Bench.open` declares, and the name of the app of `Bench.app`, and so its tasks' queue."""

WAIT_S = 30.0
"""How long the suite waits for what must happen, in seconds."""

_QUIET_S = 0.15
_POLL_S = 0.02
_LIMIT_S = 120.0


class BrokerUnderTest(Protocol):
    """What the suite must be able to do to a broker, beside the seam.

    Each test gets one that holds nothing: no queues, no messages.
    """

    @property
    def name(self) -> str:
        """Its name, with the version where behaviour depends on that: `RabbitMQ 3.10`."""
        ...

    def make(self, settings: Settings) -> Broker:
        """Return a new client of it, not open yet: what `AsyncQ(broker=...)` calls. All of them reach one broker."""
        ...

    async def delete_queue(self, name: str) -> None:
        """Delete a queue behind the back of those who use it."""
        ...

    async def cut(self, broker: Broker) -> None:
        """Make an open broker that `make` has made lose its connections. It can have new ones at once."""
        ...

    async def count(self, queue: str) -> int:
        """Return how many messages a queue holds. Asked only while nobody consumes it."""
        ...


class Bench:
    """What a behaviour gets.

    Args:
        broker: The broker under test.
        differences: Where brokers differ. An adapter of your own may bring its own table.
    """

    def __init__(self, broker: BrokerUnderTest, differences: Sequence[Difference] = DIFFERENCES) -> None:
        self._broker = broker
        self._differences = differences
        self._behaviour = ""
        self._asked: set[str] = set()
        self.name = broker.name
        self.delete_queue = broker.delete_queue
        self.cut = broker.cut
        self.count = broker.count

    # --- differences

    def differs(self, key: str) -> bool:
        """Tell whether this broker is one of those that differ from the others in this point.

        Raises:
            AssertionError: No such difference is declared for the behaviour that asks.
        """
        found = [item for item in self._differences if (item.key, item.behaviour) == (key, self._behaviour)]
        assert found, f"{self._behaviour} asks for the difference {key!r}, which is not declared for it"
        self._asked.add(key)
        return any(item.holds_for(self.name) for item in found)

    @property
    def declared(self) -> list[Difference]:
        """The differences that are declared for the running behaviour on this broker."""
        return [item for item in self._differences if item.behaviour == self._behaviour and item.holds_for(self.name)]

    def begin(self, behaviour: str) -> None:
        """Note which behaviour runs. For `behaviour`."""
        self._behaviour = behaviour
        self._asked.clear()

    def end(self) -> None:
        """Check that the behaviour has asked for all that is declared for it. For `behaviour`."""
        unused = [item.key for item in self.declared if item.key not in self._asked]
        assert not unused, f"differences that are declared for {self._behaviour}, which does not ask for them: {unused}"

    # --- brokers and apps

    @asynccontextmanager
    async def open(self, *queues: QueueSpec, **settings: Any) -> AsyncIterator[Broker]:
        """Open a broker, with the queues; without any, with `QUEUE`."""
        broker = self._broker.make(load_settings(**settings))
        await broker.open(Identity(QUEUE, "conformance"))
        try:
            await broker.ensure(queues or [QueueSpec(QUEUE)])
            yield broker
        finally:
            await broker.close()

    def app(self, name: str = QUEUE, **settings: Any) -> AsyncQ:
        """Return an app on the broker, without tasks."""
        return AsyncQ(name, broker=self._broker.make, **settings)

    @asynccontextmanager
    async def working(self, app: AsyncQ, queues: Mapping[str, int] | None = None) -> AsyncIterator[Worker]:
        """Open the app, with a worker in this loop; drain it in the end."""
        async with app:
            worker = app.worker(queues)
            running = asyncio.create_task(worker.run())
            try:
                yield worker
            finally:
                worker.stop()
                await asyncio.wait_for(running, 2 * WAIT_S)
                await asyncio.to_thread(app.sync.close)


def behaviour(test: Callable[[Bench], Awaitable[None]]) -> Callable[[Bench], Awaitable[None]]:
    """Make a test one of the suite: marked for pytest-asyncio, limited in time, its differences checked."""

    @functools.wraps(test)
    async def run(bench: Bench) -> None:
        __tracebackhide__ = True
        bench.begin(test.__name__)
        async with asyncio.timeout(_LIMIT_S):
            await test(bench)
        bench.end()

    marked: Callable[[Bench], Awaitable[None]] = pytest.mark.asyncio(run)
    return marked


# --- what behaviours share


async def eventually(predicate: Callable[[], object]) -> Any:
    """Wait until `predicate` (plain or async) returns something true, and return that.

    Raises:
        AssertionError: It did not within `WAIT_S`; with the predicate's source.
    """
    deadline = time.monotonic() + WAIT_S
    while True:
        answer = predicate()
        value = await answer if inspect.isawaitable(answer) else answer
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {WAIT_S:g} s: {_source(predicate)}")
        await asyncio.sleep(_POLL_S)


def _source(predicate: Callable[[], object]) -> str:
    try:
        return inspect.getsource(predicate).strip()
    except OSError:
        return repr(predicate)


def make_message(number: int = 0, **fields: Any) -> Message:
    """Return a task message, with a number as its body."""
    known = {"type": "shop.work", "body": b'{"n":%d}' % number, "task_id": f"task-{number}", "message_id": new_id()}
    return Message(**{**known, **fields})


async def put(
    broker: Broker, count: int = 1, *, first: int = 0, to: Address | None = None, delay: Delay | None = None
) -> list[str]:
    """Publish so many messages, one after the other, and return their task ids."""
    messages = [make_message(number) for number in range(first, first + count)]
    for message in messages:
        await broker.publish(message, to or Queue(QUEUE), delay=delay, timeout_s=WAIT_S)
    return [message.task_id for message in messages]


async def take(subscription: Subscription, count: int) -> list[Delivery]:
    """Wait for so many deliveries."""
    deliveries = aiter(subscription)
    async with asyncio.timeout(WAIT_S):
        return [await anext(deliveries) for _ in range(count)]


async def nothing_comes(subscription: Subscription) -> None:
    """Wait a little, and fail if there is a delivery."""
    try:
        async with asyncio.timeout(_QUIET_S):
            delivery = await anext(aiter(subscription))
    except TimeoutError:
        return
    raise AssertionError(f"there is a delivery, and there should be none: {delivery.message}")


async def dead_letters(broker: Broker, queue: str = QUEUE) -> list[DeadLetter]:
    """Return the dead letters of a queue."""
    return [letter async for letter in broker.dead_letters(queue).browse()]


async def dead_letter(broker: Broker, queue: str = QUEUE) -> DeadLetter:
    """Wait for the only dead letter of a queue."""
    letters: list[DeadLetter] = await eventually(lambda: dead_letters(broker, queue))
    assert len(letters) == 1, letters
    return letters[0]
