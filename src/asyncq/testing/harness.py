"""A user's own app in a test: on a broker in memory, with a worker, and with time that the test moves.

    async with running(app) as harness:
        handle = await send_email.send("ann@example.org")
        await harness.run_until_idle()
        assert await handle.result(timeout=1) == ...

The pytest plugin makes fixtures of the same parts.

Idle means: no message is worked on, and none waits for a worker that would take it. Five things do not count,
because only the clock can move them: what waits for its time, what hangs by `faults.hang`, a task that waits for the
result of another one, what waits for a slot that one of those occupies, and what waits for slots that a circuit
breaker pauses. A task that waits for another one and does real work beside that, as by `gather`, counts as waiting:
time can jump while it works.

The clock moves delays, backoffs and time limits. How long a test waits for a result, as by `call` and
`result(timeout=...)`, is real time.

Invariant: each harness has a node and a clock of its own, so no test sees what another has sent; and when it ends,
the app is as it was before.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from asyncq.app import AsyncQ
from asyncq.errors import ResultTimeout
from asyncq.memory.broker import MemoryBroker
from asyncq.memory.node import MemoryNode
from asyncq.message import new_id
from asyncq.pending_reply import on_wait
from asyncq.signals import seconds_of
from asyncq.testing.clock import ManualClock
from asyncq.testing.faults import Faults
from asyncq.testing.sent import Sent
from asyncq.testing.waits import Waits
from asyncq.worker.worker import RunningTask, Worker

__all__ = ["Harness", "running"]

_TURNS = 10  # of the event loop, until who waits for a reply has heard it and has sent what it sends next
_SETTLE_TIMEOUT_S = 10.0
_CALL_TIMEOUT_S = 10.0
_DRAIN_TIMEOUT_S = 0.05
_POLITE_END_S = 0.3  # of real time, in which cancelled code may clean up; after that its grace passes on our clock
_END_LOOK_S = 0.02


class Harness:
    """An app under test; `running` starts it.

    Args:
        app: The user's own app.
        clock: Its time.
        resources: What `ctx.resources` is, in place of what the app's lifespan yields; None for that.

    Attributes:
        app: The app.
        clock: What delays, backoffs and time limits go by.
        node: The broker in memory: `node.count("mail.dead")`, `node.queues`, `node.delayed`.
        sent: What was sent.
        faults: Failure injection.
    """

    def __init__(self, app: AsyncQ, clock: ManualClock | None = None, *, resources: Any = None) -> None:
        self.app = app
        self._resources = resources
        self.clock = clock or ManualClock()
        self.node = MemoryNode(self.clock, app.name)
        self.node.announced = True  # a test knows that it is one
        self.sent = Sent(app.tasks)
        # The same kind of app, with a store or without: but no test writes where the real one does.
        self._results = "none" if app.settings.results == "none" else f"memory://{new_id()}"
        self.faults = Faults(app.tasks, self._change)
        self._waits = Waits(self._change)
        self._worker: Worker | None = None
        self._working: asyncio.Task[int] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._jump_error: Exception | None = None
        self._changed = asyncio.Event()

    @property
    def is_idle(self) -> bool:
        """Whether nothing happens by itself any more at this moment of the clock."""
        busy = self.node.busy
        return (busy == 0 or busy <= self._stuck()) and not self._is_resubscribing()

    async def run_until_idle(self, timeout: float | timedelta = _SETTLE_TIMEOUT_S) -> None:
        """Let the worker do all there is, and move the clock to whatever waits for its time, until nothing is left.

        Delays, backoffs and the time limits of hanging tasks pass at once.

        Args:
            timeout: In real seconds. It ends a test whose tasks wait for something outside, or come back for ever.

        Raises:
            AssertionError: It was not idle in time; the message says what still ran, and what to do.
        """
        __tracebackhide__ = True
        await self._in_time(seconds_of(timeout, "timeout="), self._until_idle())

    async def settle(self, timeout: float | timedelta = _SETTLE_TIMEOUT_S) -> None:
        """Wait until the app is idle, without moving the clock. Arguments and errors as for `run_until_idle`."""
        __tracebackhide__ = True
        await self._in_time(seconds_of(timeout, "timeout="), self._settle())

    # --- life

    @asynccontextmanager
    async def working(self, queues: Mapping[str, int] | None = None) -> AsyncIterator[None]:
        """Open the app, and work until the block ends. What then runs is cancelled, and nothing is waited for.

        Args:
            queues: Slots for each queue; by default all queues of the app's tasks.

        Raises:
            AlreadyOpen: The app is open.
            ConfigurationError: An included module cannot be imported.
            BrokerError: The worker cannot consume, or could not go on.
        """
        self._loop = asyncio.get_running_loop()
        using = self.app.using(
            lambda settings: MemoryBroker(settings, self.node),
            self.clock,
            resources=self._resources,
            drain_timeout_s=_DRAIN_TIMEOUT_S,
            call_timeout_s=_CALL_TIMEOUT_S,
            results=self._results,
        )
        stops = [
            self.node.listen(self._change),
            self.node.on_publish(self.sent.add),
            self.clock.on_jumping(self._change),
        ]
        try:
            with using, self.faults.injected():
                async with self.app.open(role="test"), self._worker_running(queues):
                    yield
        finally:
            for stop in stops:
                stop()

    @asynccontextmanager
    async def _worker_running(self, queues: Mapping[str, int] | None) -> AsyncIterator[None]:
        self._worker = self.app.worker(queues)
        context = contextvars.copy_context()
        context.run(on_wait.set, self._waits.add)
        self._working = asyncio.create_task(self._worker.run(), name="asyncq worker under test", context=context)
        self._working.add_done_callback(lambda _: self._change())
        jumper = asyncio.create_task(self._jump_while_wanted(), name="asyncq jumping clock")
        try:
            await self._consuming(self._worker)
            self.clock.settle = self.settle
            yield
        except BaseException as error:
            self._explain(error)
            await self._end(jumper)
            raise
        await self._end(jumper)
        self._working.result()
        if self._jump_error is not None:
            raise self._jump_error

    async def _consuming(self, worker: Worker) -> None:
        while not all(self.node.is_consumed(queue) for queue in worker.queues):
            self._raise_if_worker_ended()
            await self._next_change()

    async def _end(self, jumper: asyncio.Task[None]) -> None:
        """End the worker, however it ends, and all that it runs."""
        self.clock.settle = None
        worker, working = self._worker, self._working
        assert worker is not None  # noqa: S101 - for the type checker
        assert working is not None  # noqa: S101
        worker.stop()
        jumper.cancel()
        await asyncio.gather(jumper, return_exceptions=True)
        await asyncio.wait({working}, timeout=_POLITE_END_S)
        while not working.done():
            self.clock.move(1.0)
            await asyncio.wait({working}, timeout=_END_LOOK_S)
        if not working.cancelled():
            working.exception()  # seen: where the test has failed, its own error is told
        self._worker = None

    def _raise_if_worker_ended(self) -> None:
        if self._working is not None and self._working.done():
            self._working.result()

    def _explain(self, error: BaseException) -> None:
        """Tell what the test's own error does not know."""
        working = self._working
        if working is not None and working.done() and not working.cancelled():
            cause = working.exception()
            if cause is not None and cause is not error:
                error.add_note(f"The worker under test had ended before: {type(cause).__name__}: {cause}")
        if self._jump_error is not None:
            error.add_note(f"The clock had stopped jumping, because a callback of it raised {self._jump_error!r}.")
        elif isinstance(error, ResultTimeout) and self.is_idle and self.clock.next_due_s is not None:
            error.add_note(
                f"The clock of this test stands still, and the next thing is due in {self.clock.next_due_s:g} s "
                f"({self.node.delayed} messages are delayed). Let time pass: `await run_until_idle()` between send() "
                "and result(), or `with clock.jumping():` around call()."
            )

    # --- waiting

    def _stuck(self) -> int:
        """Return how many attempts only the clock can move."""
        stuck = {*self.faults.hanging, *self._waits.waiting}
        return sum(item.context in stuck for item in self._running()) if stuck else 0

    def _is_resubscribing(self) -> bool:
        """Tell whether messages wait for a consumer that will be back: its queue was deleted, and stands again."""
        queues = () if self._worker is None else self._worker.queues
        return any(self.node.is_waiting(queue) for queue in queues)

    def _running(self) -> list[RunningTask]:
        return [] if self._worker is None else self._worker.running()

    async def _settle(self) -> None:
        turns = 0
        while turns < _TURNS:
            await asyncio.sleep(0)
            self._raise_if_worker_ended()
            if self.is_idle:
                turns += 1
                continue
            turns = 0
            await self._next_change()

    def _change(self) -> None:
        """Wake who waits for a change; from any thread. Nothing is missed: on the loop, looking is one with clearing.

        What another thread changes after the look sets the event later, by the loop.
        """
        if self._loop is not None:
            self.node.call(self._loop, self._changed.set)

    async def _next_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def _jump_while_wanted(self) -> None:
        while True:
            await self._settle()
            if not (self.clock.is_jumping and self._jump()):
                await self._next_change()

    def _jump(self) -> bool:
        try:
            return self.clock.jump()
        except Exception as error:  # of a callback; the test's end tells it
            self._jump_error = error
            raise

    async def _until_idle(self) -> None:
        await self._settle()
        while self.clock.jump():
            await self._settle()

    async def _in_time(self, timeout: float, work: Coroutine[Any, Any, None]) -> None:
        __tracebackhide__ = True
        began = self.clock.now()
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                await work
        except TimeoutError:
            if not limit.expired():
                raise
            moved_s = (self.clock.now() - began).total_seconds()
            raise AssertionError(self._not_idle(timeout, moved_s)) from None

    def _not_idle(self, timeout: float, moved_s: float) -> str:
        runs = [f"{item.task} (attempt {item.attempt}, id {item.task_id})" for item in self._running()]
        hints = []
        if runs:
            hints.append(
                "A task that waits for something real: replace that in the test, or give it longer, as by "
                "`run_until_idle(timeout=60)`. To see a task reach its time limit, use `faults.hang`."
            )
        if moved_s > 0 or not runs:
            hints.append(
                "Tasks that come back for ever, as by `Snooze`: let a certain time pass, as by "
                "`await clock.advance(3600)`."
            )
        return "\n".join(
            [
                f"not idle within {timeout:g} real seconds, in which the clock was moved by {moved_s:g} s",
                f"  running: {', '.join(runs) or 'no task'}",
                f"  messages being worked on: {self.node.busy}; waiting for their time: {self.node.delayed}",
                *(f"  {hint}" for hint in hints),
            ]
        )


@asynccontextmanager
async def running(
    app: AsyncQ,
    *,
    clock: ManualClock | None = None,
    queues: Mapping[str, int] | None = None,
    resources: Any = None,
) -> AsyncIterator[Harness]:
    """Open the app on a broker in memory, with a worker for its tasks in this loop.

    Args:
        app: The user's own app; it must not be open.
        clock: Its time; by default a `ManualClock`, which stands still until the test moves it.
        queues: Slots for each queue; by default all queues of the app's tasks.
        resources: What `ctx.resources` is, in place of what the app's lifespan yields; None for that.

    Raises:
        AlreadyOpen: The app is open.
        ConfigurationError: An included module cannot be imported.
        BrokerError: The worker cannot consume, or could not go on.
        LifespanFailed: The app's lifespan raised something.
    """
    harness = Harness(app, clock, resources=resources)
    async with harness.working(queues):
        yield harness
