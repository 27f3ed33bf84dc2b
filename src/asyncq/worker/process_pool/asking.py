"""What a task in a process of its own can do: the same `ctx.sync` as in a thread, by way of its worker.

Invariant: a call blocks until the worker has answered; so who reports progress faster than the broker takes it is
slowed down, and nothing piles up.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future
from datetime import timedelta
from typing import Any, TypeVar, cast

from pydantic_core import from_json

from asyncq.clock import SystemClock
from asyncq.context import ContextServices, TaskContext
from asyncq.errors import InvalidResult, NoResources
from asyncq.message import Message
from asyncq.results import Progress, ResultHandle
from asyncq.signals import seconds_of
from asyncq.signature import Signature
from asyncq.status import TaskStatus
from asyncq.sync import LoopBridge, TaskSync
from asyncq.tracing.switch import current_carrier
from asyncq.worker.process_pool.frames import (
    Answer,
    Ask,
    AskCancel,
    AskedFor,
    AskHandle,
    AskNext,
    AskProgress,
    AskResult,
    AskSend,
    AskSendWorkflow,
    AskStatus,
    AskWorkflow,
)
from asyncq.workflow.preparing import Prepared, prepared
from asyncq.workflow.reading import reading_of
from asyncq.workflow.workflow import Workflow
from asyncq.workflow_handle import WorkflowHandle, WorkflowStatus
from asyncq.workflow_progress.outcome import Reading, read_values

__all__ = ["Asking"]

T = TypeVar("T")
R = TypeVar("R")

_CLOCK = SystemClock()


class Asking:
    """Asks the worker. Safe with threads.

    Args:
        send: Sends a frame.
    """

    def __init__(self, send: Callable[[Ask], None]) -> None:
        self._send = send
        self._numbers = itertools.count()
        self._open: dict[int, Future[Any]] = {}

    def ask(self, what: AskedFor) -> Any:
        """Return the worker's answer, or raise its error."""
        number, answer = next(self._numbers), Future[Any]()
        self._open[number] = answer
        try:
            self._send(Ask(number, what, current_carrier()))
            return answer.result()
        finally:
            self._open.pop(number, None)

    def answered(self, answer: Answer) -> None:
        """Take an answer. Nobody may wait for it any more."""
        waiting = self._open.pop(answer.number, None)
        if waiting is None:
            return
        if answer.error is not None:
            waiting.set_exception(answer.error.exception())
        else:
            waiting.set_result(answer.value)

    def services(self) -> ContextServices:
        """Return what the context of a task lends out here."""

        async def publish_progress(_: Message, update: Progress) -> None:
            self.ask(AskProgress(update))

        def sync_of(context: TaskContext) -> TaskSync:
            return TaskSync(_Bridge(), _Sender(self), context.progress)

        return ContextServices(publish_progress, sync_of, _no_resources)


def _no_resources() -> Any:
    raise NoResources(
        "A task in a process of its own has no resources: what the app's lifespan yields lives in the worker's "
        "process. Open what it needs in its own code; or let an `async def` task fetch it and pass it on."
    )


class _Bridge(LoopBridge):
    """Runs what waits for nothing but the worker's answers, which block."""

    __slots__ = ()

    def __init__(self) -> None: ...

    def check(self, instead: str) -> None:
        self.refuse_in_loop(instead)

    def run(self, start: Callable[[], Coroutine[Any, Any, T]], instead: str) -> T:
        self.check(instead)
        try:
            start().send(None)
        except StopIteration as end:
            result: T = end.value
            return result
        raise RuntimeError("a blocking call of a task's process waited for an event loop, which it does not have")


class _Sender:
    def __init__(self, asking: Asking) -> None:
        self._asking = asking

    async def send_signature(self, signature: Signature[R]) -> ResultHandle[R]:
        number, task_id = self._asking.ask(_ask_send(signature, call=False))
        return _Handle(task_id, number, signature.decode, self._asking)

    async def call_signature(self, signature: Signature[R]) -> R:
        return _read(signature.name, signature.decode, self._asking.ask(_ask_send(signature, call=True)))

    def handle_of(self, task_id: str, task: str | None, decode: Callable[[bytes], R]) -> ResultHandle[R]:
        return _Handle(task_id, self._asking.ask(AskHandle(task_id, task)), decode, self._asking)

    async def send_workflow(self, workflow: Workflow[R]) -> WorkflowHandle[R]:
        return await self.send_prepared(prepared(workflow, _CLOCK.now_ms()), reading_of(workflow))

    async def send_prepared(self, ready: Prepared, reading: Reading) -> WorkflowHandle[Any]:
        return _WorkflowHandle(ready.whole.id, self._asking.ask(AskSendWorkflow(ready)), reading, self._asking)

    async def call_workflow(self, workflow: Workflow[R]) -> R:
        return await (await self.send_workflow(workflow)).result(workflow.sending.timeout_s)

    def workflow_of(self, workflow_id: str, workflow: Workflow[R] | None) -> WorkflowHandle[R]:
        reading = from_json if workflow is None else reading_of(workflow)
        return _WorkflowHandle(workflow_id, self._asking.ask(AskWorkflow(workflow_id)), reading, self._asking)


class _WorkflowHandle(WorkflowHandle[R]):
    __slots__ = ("_asking", "_number", "_read_as")

    def __init__(self, workflow_id: str, number: int, reading: Reading, asking: Asking) -> None:
        super().__init__(workflow_id, reading)
        self._number = number
        self._read_as = reading
        self._asking = asking

    async def result(self, timeout: float | timedelta | None = None) -> R:
        timeout_s = None if timeout is None else seconds_of(timeout, "result(timeout=...)")
        values = self._asking.ask(AskResult(self._number, timeout_s))
        try:
            return cast("R", read_values(values, self._read_as))
        except ValueError as error:
            raise InvalidResult(
                f"A result of workflow {self.id} does not fit the return type that its task declares here: {error}"
            ) from error

    async def updates(self) -> AsyncIterator[Progress]:
        while (update := self._asking.ask(AskNext(self._number, "updates"))) is not None:
            yield update

    async def status(self) -> WorkflowStatus:
        status: WorkflowStatus = self._asking.ask(AskStatus(self._number))
        return status

    async def cancel(self) -> bool:
        return bool(self._asking.ask(AskCancel(self._number)))


class _Handle(ResultHandle[R]):
    __slots__ = ("_asking", "_number", "_read_as")

    def __init__(self, task_id: str, number: int, decode: Callable[[bytes], R], asking: Asking) -> None:
        super().__init__(task_id, None, decode)
        self._number = number
        self._read_as = decode
        self._asking = asking

    async def result(self, timeout: float | timedelta | None = None) -> R:
        timeout_s = None if timeout is None else seconds_of(timeout, "result(timeout=...)")
        return _read(self.id, self._read_as, self._asking.ask(AskResult(self._number, timeout_s)))

    async def updates(self) -> AsyncIterator[Progress]:
        while (update := self._asking.ask(AskNext(self._number, "updates"))) is not None:
            yield update

    async def status(self) -> TaskStatus:
        status: TaskStatus = self._asking.ask(AskStatus(self._number))
        return status

    async def statuses(self) -> AsyncIterator[TaskStatus]:
        while (status := self._asking.ask(AskNext(self._number, "statuses"))) is not None:
            yield status

    async def cancel(self) -> bool:
        return bool(self._asking.ask(AskCancel(self._number)))


def _ask_send(signature: Signature[Any], *, call: bool) -> AskSend:
    return AskSend(signature.name, signature.body, signature.queue, signature.reply, signature.sending, call)


def _read(task: str, decode: Callable[[bytes], R], body: bytes) -> R:
    try:
        return decode(body)
    except ValueError as error:
        raise InvalidResult(
            f"The result of task {task} does not fit the return type that its task declares here: {error}"
        ) from error
