"""A user's own app in a test: on a broker in memory, with a worker, and with time that the test moves.

    async with running(app) as harness:
        handle = await send_email.send("ann@example.org")
        await harness.run_until_idle()
        assert await handle.result(timeout=1) == ...

The pytest plugin makes fixtures of the same parts.

Idle means: no message is worked on, and none waits for a worker that would take it. What hangs by `faults.hang`, and
what waits for its time, does not count: only the clock can move those.

Invariant: each harness has a node and a clock of its own, so no test sees what another has sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from asyncq.app import AsyncQ
from asyncq.memory.broker import MemoryBroker
from asyncq.memory.node import MemoryNode
from asyncq.testing.clock import ManualClock
from asyncq.testing.faults import Faults
from asyncq.testing.sent import Sent
from asyncq.worker.worker import Worker

__all__ = ["Harness", "running"]

_TURNS = 5  # of the event loop, until who waits for a reply has heard it and has sent what it sends next
_END_LOOK_S = 0.02
_CALL_TIMEOUT_S = 10.0


class Harness:
    """An app under test; `running` starts it.

    Args:
        app: The user's own app.
        clock: Its time.

    Attributes:
        app: The app.
        clock: What delays, backoffs and time limits go by.
        node: The broker in memory: `node.count("mail.dead")`, `node.queues`, `node.delayed`.
        sent: What was sent.
        faults: Failure injection.
    """

    def __init__(self, app: AsyncQ, clock: ManualClock | None = None) -> None:
        self.app = app
        self.clock = clock or ManualClock()
        self.node = MemoryNode(self.clock, app.name)
        self.node.announced = True  # a test knows that it is one
        self.sent = Sent(app.tasks)
        self.faults = Faults(app.tasks, self._change)
        self._worker: Worker | None = None
        self._working: asyncio.Task[int] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = asyncio.Event()

    @property
    def is_idle(self) -> bool:
        """Whether nothing happens by itself any more at this moment of the clock."""
        hanging = 0
        if self._worker is not None:
            hanging = sum(attempt.task_id in self.faults.hanging for attempt in self._worker.running())
        return self.node.busy <= hanging

    async def run_until_idle(self, timeout: float = 10.0) -> None:
        """Let the worker do all there is, and move the clock to whatever waits for its time, until nothing is left.

        Delays, backoffs and the time limits of hanging tasks pass at once.

        Args:
            timeout: In real seconds. It ends a test whose tasks wait for something outside, or come back for ever.

        Raises:
            AssertionError: It was not idle in time; the message says what still ran.
        """
        try:
            async with asyncio.timeout(timeout):
                while True:
                    await self.settle()
                    if not self.clock.jump():
                        return
        except TimeoutError:
            raise AssertionError(f"not idle within {timeout:g} real seconds: {self._what_runs()}") from None

    async def settle(self) -> None:
        """Wait until the app is idle, without moving the clock."""
        turns = 0
        while turns < _TURNS:
            await asyncio.sleep(0)
            self._raise_if_worker_ended()
            if self.is_idle:
                turns += 1
                continue
            turns = 0
            await self._next_change()

    # --- life

    @asynccontextmanager
    async def working(self, queues: Mapping[str, int] | None = None) -> AsyncIterator[None]:
        """Open the app, and work until the block ends. What then runs is cancelled, and nothing is waited for."""
        self._loop = asyncio.get_running_loop()
        stops = [self.node.listen(self._change), self.node.on_publish(self.sent.add)]
        using = self.app.using(
            lambda settings: MemoryBroker(settings, self.node),
            self.clock,
            drain_timeout_s=0.0,
            call_timeout_s=_CALL_TIMEOUT_S,
        )
        try:
            with using, self.faults.injected():
                async with self.app.open(role="test"):
                    await self._start(queues)
                    jumper = asyncio.create_task(self._jump_while_wanted(), name="asyncq jumping clock")
                    try:
                        yield
                    finally:
                        jumper.cancel()
                        await asyncio.gather(jumper, return_exceptions=True)
                        await self._stop()
        finally:
            for stop in stops:
                stop()

    async def _start(self, queues: Mapping[str, int] | None) -> None:
        self._worker = self.app.worker(queues)
        self._working = asyncio.create_task(self._worker.run(), name="asyncq worker under test")
        self._working.add_done_callback(lambda _: self._change())
        self.clock.settle = self.settle
        while not all(self.node.is_consumed(queue) for queue in self._worker.queues):
            self._raise_if_worker_ended()
            await self._next_change()

    async def _stop(self) -> None:
        self.clock.settle = None
        worker, working = self._worker, self._working
        if worker is None or working is None:
            return
        worker.stop()
        while not working.done():
            await asyncio.wait({working}, timeout=_END_LOOK_S)
            self.clock.move(1.0)  # the grace of code that ignores its cancellation
        self._worker = None
        working.result()

    def _raise_if_worker_ended(self) -> None:
        if self._working is not None and self._working.done():
            self._working.result()

    # --- waiting

    def _change(self) -> None:
        if self._loop is not None:
            self.node.call(self._loop, self._changed.set)

    async def _next_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def _jump_while_wanted(self) -> None:
        self.clock.on_jumping(self._changed.set)
        while True:
            await self.settle()
            if not (self.clock.is_jumping and self.clock.jump()):
                await self._next_change()

    def _what_runs(self) -> str:
        attempts = [] if self._worker is None else self._worker.running()
        runs = [f"{item.task} (attempt {item.attempt}, id {item.task_id})" for item in attempts]
        return (
            f"{', '.join(runs) or 'no task'} running, {self.node.busy} messages in work, {self.node.delayed} delayed. "
            "Tasks that wait for something real need a longer timeout; for tasks that come back for ever, move the "
            "clock by a time: `await clock.advance(60)`."
        )


@asynccontextmanager
async def running(
    app: AsyncQ, *, clock: ManualClock | None = None, queues: Mapping[str, int] | None = None
) -> AsyncIterator[Harness]:
    """Open the app on a broker in memory, with a worker for its tasks in this loop.

    Args:
        app: The user's own app; it must not be open.
        clock: Its time; by default a `ManualClock`, which stands still until the test moves it.
        queues: Slots for each queue; by default all queues of the app's tasks.

    Raises:
        AlreadyOpen: The app is open.
    """
    harness = Harness(app, clock)
    async with harness.working(queues):
        yield harness
