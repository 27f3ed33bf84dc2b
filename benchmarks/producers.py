"""The two producers, each in a process of its own: `python producers.py raw|asyncq QUEUE EXCHANGE`.

One command a line comes in as JSON (`{"do": "publish", ...}`), one answer a line goes out. Both sides publish
persistent, mandatory and confirmed messages to the same exchange, and wait for replies on a durable queue that
they ack by hand.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Protocol

from payload import FIELDS, Order

__all__: list[str] = []

RESULT = json.dumps(FIELDS["number"]).encode()
_PAUSE_S = 0.05
_RESULT_TIMEOUT_S = 100.0
BATCH = 100
"""How many publishes are under way at once."""


class Producer(Protocol):
    """What a side can do."""

    async def open(self) -> None:
        """Connect."""
        ...

    async def publish(self) -> None:
        """Publish one message without a reply."""
        ...

    async def publish_batch(self) -> None:
        """Publish `BATCH` messages by the call that is made for many."""
        ...

    async def call(self) -> None:
        """Publish one message and wait for its result."""
        ...


class Raw:
    """Plain aio-pika.

    Args:
        queue: The queue's name, which is the routing key.
        exchange: The exchange to publish to.
    """

    def __init__(self, queue: str, exchange: str) -> None:
        self._queue = queue
        self._exchange_name = exchange
        self._waiting: dict[str, asyncio.Future[Any]] = {}

    async def open(self) -> None:
        """See `Producer`."""
        import aio_pika  # noqa: PLC0415 - the other side's process must not pay for it

        self._aio_pika = aio_pika
        connection = await aio_pika.connect(os.environ["ASYNCQ_BROKER_URL"])
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        self._exchange = await channel.get_exchange(self._exchange_name, ensure=False)
        replies = await connection.channel()
        await replies.set_qos(prefetch_count=200)
        self._replies = await replies.declare_queue(
            f"bench-replies-{uuid.uuid4().hex}",
            durable=True,
            arguments={"x-queue-type": "classic", "x-expires": 600_000},
        )
        await self._replies.consume(self._on_reply)

    async def _on_reply(self, message: Any) -> None:
        waiting = self._waiting.pop(message.correlation_id, None)
        if waiting is not None:
            waiting.set_result(json.loads(message.body))
        await message.ack()

    def _message(self, **more: Any) -> Any:
        return self._aio_pika.Message(
            json.dumps(FIELDS).encode(),
            content_type="application/json",
            delivery_mode=self._aio_pika.DeliveryMode.PERSISTENT,
            message_id=uuid.uuid4().hex,
            **more,
        )

    async def publish(self) -> None:
        """See `Producer`."""
        await self._exchange.publish(self._message(), self._queue, mandatory=True)

    async def publish_batch(self) -> None:
        """See `Producer`. aio-pika has no such call."""
        await asyncio.gather(*(self.publish() for _ in range(BATCH)))

    async def call(self) -> None:
        """See `Producer`."""
        task_id = uuid.uuid4().hex
        self._waiting[task_id] = waiting = asyncio.get_running_loop().create_future()
        message = self._message(correlation_id=task_id, reply_to=self._replies.name)
        await self._exchange.publish(message, self._queue, mandatory=True)
        if await waiting != FIELDS["number"]:
            raise AssertionError("a wrong answer")


class Asyncq:
    """asyncq."""

    async def open(self) -> None:
        """See `Producer`."""
        import asyncq_app  # noqa: PLC0415 - the other side's process must not pay for it

        self._sent: list[Any] = []
        self._app = asyncq_app.app
        self._handle = asyncq_app.handle
        self._number_of = asyncq_app.number_of
        await self._app.__aenter__()

    async def publish(self) -> None:
        """See `Producer`."""
        await self._handle.send(Order(**FIELDS))

    async def publish_batch(self) -> None:
        """See `Producer`."""
        await self._app.send_many([self._handle.s(Order(**FIELDS)) for _ in range(BATCH)])

    async def call(self) -> None:
        """See `Producer`."""
        handle = await self._number_of.send(Order(**FIELDS))
        if await handle.result(timeout=30) != FIELDS["number"]:
            raise AssertionError("a wrong answer")

    async def fill(self, queue: str, count: int) -> None:
        """Fill a queue with messages for a worker of either side."""
        for start in range(0, count, 1000):
            signature = self._handle.options(queue=queue).s(Order(**FIELDS))
            await self._app.send_many([signature] * min(1000, count - start))

    async def fill_kept(self, count: int) -> None:
        """Send tasks whose results are kept, or replied."""
        reply = os.environ["BENCH_REPLY"] == "True"
        signature = self._number_of.options(reply=reply).s(Order(**FIELDS))
        self._sent = await self._app.send_many([signature] * count)

    async def count_kept(self, timeout_s: float) -> int:
        """Wait until all results are there, forget them, and return how many there were."""
        if self._app.settings.results == "none" and os.environ["BENCH_REPLY"] != "True":
            return len(self._sent)  # nothing is known of them
        if self._app.settings.results == "none":
            from asyncq import gather_results  # noqa: PLC0415 - as above

            return sum(result == FIELDS["number"] for result in await gather_results(self._sent, timeout=timeout_s))
        ids, loop = [handle.id for handle in self._sent], asyncio.get_running_loop()
        until_s = loop.time() + timeout_s
        while True:
            found = await self._app.results.read(ids)
            right = sum(status.state == "succeeded" and status.result == RESULT for status in found)
            if right == len(ids) or loop.time() > until_s:
                await self._app.results.clean(older_than=datetime.now(UTC))
                return right
            await asyncio.sleep(_PAUSE_S)

    async def workflow(self, kind: str, size: int) -> float:
        """Send a workflow, wait for its result, and return how long that took, in seconds."""
        from asyncq import chain, chord, group  # noqa: PLC0415 - as above
        from asyncq_app import add_one, total  # noqa: PLC0415 - as above

        started = time.perf_counter()
        workflow: Any
        match kind:
            case "chain":
                workflow, wanted = chain(add_one.s(0), *[add_one] * (size - 1)), size
            case "group":
                workflow, wanted = group(add_one.s(number) for number in range(size)), list(range(1, size + 1))
            case _:
                workflow = chord(group(add_one.s(number) for number in range(size)), total)
                wanted = size * (size + 1) // 2
        handle = await workflow.send()
        if (found := await handle.result(timeout=_RESULT_TIMEOUT_S)) != wanted:
            raise AssertionError(f"a wrong result: {found}")
        return time.perf_counter() - started

    async def imported(self) -> list[str]:
        """Return the modules that the worker has imported."""
        import asyncq_app  # noqa: PLC0415 - as above

        return await asyncq_app.imported.call()


class Commands:
    """Does what the benchmark's main process asks for.

    Args:
        producer: The side.
    """

    def __init__(self, producer: Producer) -> None:
        self._producer = producer

    async def publish(self, count: int, *, batched: bool) -> dict[str, Any]:
        """Publish `count` messages, `BATCH` at a time."""

        async def one_batch() -> None:
            if batched:
                await self._producer.publish_batch()
            else:
                await asyncio.gather(*(self._producer.publish() for _ in range(BATCH)))

        return await _timed(one_batch, count // BATCH)

    async def call(self, count: int) -> dict[str, Any]:
        """Make `count` calls, one after another, and return how long each took, in seconds."""
        seconds = []
        for _ in range(count):
            started = time.perf_counter()
            await self._producer.call()
            seconds.append(time.perf_counter() - started)
        return {"each_s": seconds}

    async def call_many(self, count: int, at_once: int) -> dict[str, Any]:
        """Make `count` calls, so many at a time."""
        left = iter(range(count))

        async def caller() -> None:
            for _ in left:
                await self._producer.call()

        async def all_calls() -> None:
            await asyncio.gather(*(caller() for _ in range(at_once)))

        return await _timed(all_calls, 1)

    async def fill(self, queue: str, count: int) -> dict[str, Any]:
        """Fill a queue; asyncq's side does it for both, so that both drain the same messages."""
        assert isinstance(self._producer, Asyncq)
        await self._producer.fill(queue, count)
        return {}

    async def fill_kept(self, count: int) -> dict[str, Any]:
        """Fill asyncq's queue with tasks whose results are kept."""
        assert isinstance(self._producer, Asyncq)
        await self._producer.fill_kept(count)
        return {}

    async def count_kept(self, timeout_s: float) -> dict[str, Any]:
        """Wait until their results are there, forget them, and return how many there were."""
        assert isinstance(self._producer, Asyncq)
        return {"count": await self._producer.count_kept(timeout_s)}

    async def workflow(self, kind: str, size: int) -> dict[str, Any]:
        """Send a workflow, wait for its result, and return how long that took."""
        assert isinstance(self._producer, Asyncq)
        return {"seconds": await self._producer.workflow(kind, size)}

    async def imported(self) -> dict[str, Any]:
        """Return the names of the modules that asyncq's worker has imported."""
        assert isinstance(self._producer, Asyncq)
        return {"modules": await self._producer.imported()}


async def _timed(work: Callable[[], Awaitable[None]], times: int) -> dict[str, Any]:
    started, cpu = time.perf_counter(), time.process_time()
    for _ in range(times):
        await work()
    return {"seconds": time.perf_counter() - started, "cpu_s": time.process_time() - cpu}


async def serve(producer: Producer) -> None:
    """Answer commands until standard input ends."""
    loop = asyncio.get_running_loop()
    await producer.open()
    print(json.dumps({"ready": True}), flush=True)
    commands = Commands(producer)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        answer = await getattr(commands, command.pop("do"))(**command)
        print(json.dumps(answer), flush=True)
    os._exit(0)  # nothing is left to close properly: the virtual host goes with the run


if __name__ == "__main__":
    side, queue_name, exchange_name = sys.argv[1:]
    asyncio.run(serve(Asyncq() if side == "asyncq" else Raw(queue_name, exchange_name)))
