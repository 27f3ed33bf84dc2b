"""Blocking calls for code without a loop: scripts, Flask, Django, `def` routes and `def` tasks.

A blocking call hands a coroutine to an event loop that runs in another thread, and waits for it. On that loop's
own thread it would wait for itself for ever, so there it raises and names the call to await instead.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from datetime import timedelta
from typing import Any, Generic, Protocol, TypeVar, overload

from pydantic_core import from_json

from asyncq.errors import BlockingCall, NotOpen
from asyncq.options import checked_id
from asyncq.results import Progress, ResultHandle
from asyncq.signature import Sender, Signature
from asyncq.status import TaskStatus
from asyncq.workflow.workflow import Workflow
from asyncq.workflow_handle import WorkflowHandle, WorkflowStatus

__all__ = ["LoopBridge", "SyncHandle", "SyncSender", "SyncWorkflowHandle", "TaskSync"]

T = TypeVar("T")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")
S_co = TypeVar("S_co", covariant=True)

_ENDED = "The event loop of this app has ended, so nothing can be sent by it any more."


class LoopBridge:
    """The way from any thread into one running event loop.

    Args:
        loop: The loop that runs in another thread.
    """

    __slots__ = ("_loop",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    @staticmethod
    def refuse_in_loop(instead: str) -> None:
        """Raise `BlockingCall` on a thread that runs an event loop: its own, or anybody's."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return
        raise BlockingCall(
            "This is a blocking call on a thread that runs an event loop: it would stop the loop. "
            f"Use `{instead}` here."
        )

    def check(self, instead: str) -> None:
        """Refuse to block an event loop.

        Args:
            instead: The call to await there, for the message.

        Raises:
            BlockingCall: This thread runs an event loop, which the call would stop.
            NotOpen: The loop has ended.
        """
        self.refuse_in_loop(instead)
        if self._loop.is_closed():
            raise NotOpen(_ENDED)

    def run(self, start: Callable[[], Coroutine[Any, Any, T]], instead: str) -> T:
        """Run a coroutine in the loop and return its value.

        Args:
            start: Makes the coroutine. It is called only once the call is known to be allowed.
            instead: The call to await on the loop itself, for the error's message.

        Raises:
            BlockingCall: On the loop's own thread.
            NotOpen: The loop has ended, or ended meanwhile.
        """
        self.check(instead)
        work = start()
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError as error:  # it has ended in this very moment
            work.close()
            raise NotOpen(_ENDED) from error
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise NotOpen("The app was closed while a blocking call waited for it.") from None
        except BaseException:
            future.cancel()  # Ctrl-C in the waiting thread ends the work in the loop as well
            raise


class _Handle(Protocol[R_co, S_co]):
    """What handles of tasks and of workflows have in common."""

    @property
    def id(self) -> str: ...
    async def result(self, timeout: float | timedelta | None = None) -> R_co: ...
    async def cancel(self) -> bool: ...
    async def status(self) -> S_co: ...
    def updates(self) -> AsyncIterator[Progress]: ...


class _Blocking(Generic[R, S]):
    """The blocking form of a handle.

    Args:
        bridge: The way into its loop.
        handle: The handle.
    """

    __slots__ = ("_bridge", "_handle", "id")

    def __init__(self, bridge: LoopBridge, handle: _Handle[R, S]) -> None:
        self._bridge = bridge
        self._handle = handle
        self.id = handle.id

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id!r})"

    def result(self, timeout: float | timedelta | None = None) -> R:
        """Wait for the end and return the result; raises what `result` of the awaitable handle raises.

        Args:
            timeout: How long to wait, in seconds or as a `timedelta`. None waits for ever.
        """
        return self._bridge.run(lambda: self._handle.result(timeout), "await handle.result(...)")

    def cancel(self) -> bool:
        """Let it not run, or stop what runs of it; see `ResultHandle.cancel`, or `WorkflowHandle.cancel`."""
        return self._bridge.run(self._handle.cancel, "await handle.cancel()")

    def status(self) -> S:
        """Return what is known of it at this moment; raises what `status` of the awaitable handle raises."""
        return self._bridge.run(self._handle.status, "await handle.status()")

    def updates(self) -> Iterator[Progress]:
        """Iterate how far it is, until it ends; see `ResultHandle.updates`, or `WorkflowHandle.updates`."""
        return self._iterate(self._handle.updates(), "async for update in handle.updates()")

    def _iterate(self, items: AsyncIterator[T], instead: str) -> Iterator[T]:
        async def following() -> T | None:
            return await anext(items, None)

        while (item := self._bridge.run(following, instead)) is not None:
            yield item


class SyncHandle(_Blocking[R, TaskStatus]):
    """The blocking form of `ResultHandle`.

    Attributes:
        id: The task's id.
    """

    __slots__ = ()

    _handle: ResultHandle[R]

    def statuses(self) -> Iterator[TaskStatus]:
        """Iterate the task's statuses as they change, up to its end; see `ResultHandle.statuses`."""
        return self._iterate(self._handle.statuses(), "async for status in handle.statuses()")


class SyncWorkflowHandle(_Blocking[R, WorkflowStatus]):
    """The blocking form of `WorkflowHandle`.

    Attributes:
        id: The workflow's id.
    """

    __slots__ = ()


class _Decodes(Protocol[R_co]):
    def decode(self, body: bytes) -> R_co: ...


class _Named(Protocol[R_co]):
    """A task, as far as a handle of one needs it."""

    @property
    def name(self) -> str: ...
    @property
    def results(self) -> _Decodes[R_co]: ...


class SyncSender:
    """The blocking form of sending, safe with threads."""

    def __init__(self, bridge: Callable[[], LoopBridge], sender: Callable[[], Sender]) -> None:
        self._bridge = bridge
        self._sender = sender

    @overload
    def send(self, what: Signature[R]) -> SyncHandle[R]: ...
    @overload
    def send(self, what: Workflow[R]) -> SyncWorkflowHandle[R]: ...
    def send(self, what: Signature[R] | Workflow[R]) -> SyncHandle[R] | SyncWorkflowHandle[R]:
        """Publish a signature or a workflow and return once the broker has confirmed it.

        Raises:
            Exception: What `Task.send` or `Workflow.send` raises.
        """
        bridge = self._bridge()
        if isinstance(what, Workflow):
            sent = bridge.run(lambda: self._sender().send_workflow(what), "await workflow.send()")
            return SyncWorkflowHandle(bridge, sent)
        handle = bridge.run(lambda: self._sender().send_signature(what), "await task.send(...)")
        return SyncHandle(bridge, handle)

    def call(self, what: Signature[R] | Workflow[R]) -> R:
        """Publish a signature or a workflow and wait for its result.

        Raises:
            Exception: What `Task.call` or `Workflow.call` raises.
        """
        LoopBridge.refuse_in_loop("await task.call(...)")
        if isinstance(what, Workflow):
            return self._bridge().run(lambda: self._sender().call_workflow(what), "await workflow.call()")
        return self._bridge().run(lambda: self._sender().call_signature(what), "await task.call(...)")

    @overload
    def handle(self, task_id: str) -> SyncHandle[Any]: ...
    @overload
    def handle(self, task_id: str, task: _Named[R]) -> SyncHandle[R]: ...
    def handle(self, task_id: str, task: _Named[Any] | None = None) -> SyncHandle[Any]:
        """Return a handle for a task that any process has sent; see `AsyncQ.handle`.

        Args:
            task_id: The task's id.
            task: Which task it is, for a result of its type.
        """
        bridge, sender, known_id = self._bridge(), self._sender(), checked_id(task_id)

        async def made() -> ResultHandle[Any]:
            if task is None:
                return sender.handle_of(known_id, None, from_json)
            return sender.handle_of(known_id, task.name, task.results.decode)

        return SyncHandle(bridge, bridge.run(made, "app.handle(id)"))

    @overload
    def workflow(self, workflow_id: str) -> SyncWorkflowHandle[Any]: ...
    @overload
    def workflow(self, workflow_id: str, workflow: Workflow[R]) -> SyncWorkflowHandle[R]: ...
    def workflow(self, workflow_id: str, workflow: Workflow[Any] | None = None) -> SyncWorkflowHandle[Any]:
        """Return a handle for a workflow that any process has sent; see `AsyncQ.workflow`.

        Args:
            workflow_id: The workflow's id.
            workflow: Which workflow it is, for a result of its type.
        """
        bridge, sender, known_id = self._bridge(), self._sender(), checked_id(workflow_id)

        async def made() -> WorkflowHandle[Any]:
            return sender.workflow_of(known_id, workflow)

        return SyncWorkflowHandle(bridge, bridge.run(made, "app.workflow(id)"))

    def result(self, handle: ResultHandle[R] | SyncHandle[R], timeout: float | timedelta | None = None) -> R:
        """Wait for the result of a handle that this app has made.

        Args:
            handle: What a `send` has returned.
            timeout: How long to wait, in seconds or as a `timedelta`. None waits for ever.
        """
        if isinstance(handle, SyncHandle):
            return handle.result(timeout)
        return self._bridge().run(lambda: handle.result(timeout), "await handle.result(...)")


class TaskSync(SyncSender):
    """`ctx.sync`: what a `def` task can do, on the worker's own loop and connections.

    Args:
        bridge: The way into the worker's loop.
        sender: The worker's own client.
        report: Publishes a progress update of this task.
    """

    def __init__(self, bridge: LoopBridge, sender: Sender, report: Callable[..., Awaitable[None]]) -> None:
        super().__init__(lambda: bridge, lambda: sender)
        self._loop_bridge = bridge
        self._report = report

    def progress(self, done: float, total: float | None = None, label: str | None = None, **details: Any) -> None:
        """Tell the sender how far this task is.

        Args:
            done: How much is done.
            total: Of how much.
            label: What the task is at, for people.
            **details: Whatever else is worth saying; JSON values.
        """

        async def report() -> None:
            await self._report(done, total, label, **details)

        self._loop_bridge.run(report, "await ctx.progress(...)")
