"""What the themes about workers that are asked share: a worker that answers, and tasks that wait inside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from asyncq.app import AsyncQ
from asyncq.control_values import QueueState
from asyncq.testing.conformance.bench import Bench, eventually
from asyncq.worker.worker import Worker

__all__ = ["SHORT_S", "Gate", "are_there", "asked", "state_of"]

SHORT_S = 1.0


def state_of(answer: QueueState) -> tuple[int, int, str | None]:
    """Return the slots of a queue, how many tasks run, and by what it is paused."""
    assert answer.queue is not None
    return answer.queue.slots, answer.queue.running, answer.queue.paused


class Gate:
    """Lets tasks wait inside."""

    def __init__(self) -> None:
        self.inside: list[int] = []
        self.open = asyncio.Event()

    async def enter(self, n: int) -> int:
        """Wait inside until it is open."""
        self.inside.append(n)
        await self.open.wait()
        return n


@asynccontextmanager
async def asked(bench: Bench, app: AsyncQ, queues: Mapping[str, int] | None = None) -> AsyncIterator[Worker]:
    """Open the app with a worker, and wait until it consumes, and can be asked."""
    async with app:
        before = len((await app.control.everybody.ping(timeout=SHORT_S)).answers)
        async with bench.working(app, queues) as worker:
            await worker.consuming()
            await eventually(lambda: are_there(app, before + 1))
            yield worker


async def are_there(app: AsyncQ, count: int) -> bool:
    """Tell whether so many workers answer."""
    return len((await app.control.everybody.ping(timeout=SHORT_S)).answers) >= count
