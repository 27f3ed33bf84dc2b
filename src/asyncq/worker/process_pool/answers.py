"""What a task in another process can ask of its worker: progress, sending, results. The worker's end.

Invariant: what is asked runs as if the task had asked it here: what it sends has it for a parent.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from asyncq.context import TaskContext
from asyncq.results import ResultHandle
from asyncq.signature import Sender, Signature
from asyncq.worker.process_pool.frames import (
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
from asyncq.workflow_handle import WorkflowHandle

__all__ = ["Answers"]


class Answers:
    """Answers the questions of one attempt.

    Args:
        context: The attempt's.
        sender: The worker's own client.
    """

    def __init__(self, context: TaskContext, sender: Sender) -> None:
        self._context = context
        self._sender = sender
        self._handles: list[ResultHandle[bytes] | WorkflowHandle[Any]] = []
        self._items: dict[tuple[int, str], AsyncIterator[Any]] = {}

    async def to(self, what: AskedFor) -> Any:  # noqa: PLR0911 - one for each question
        """Do what is asked, and return what came of it; raises what went wrong."""
        match what:
            case AskProgress(update):
                await self._context.progress(update.done, update.total, update.label, **update.details)
                return None
            case AskSend():
                return await self._send(what)
            case AskResult(handle, timeout_s):
                return await self._handles[handle].result(timeout_s)
            case AskSendWorkflow(ready):
                return self._number_of(await self._sender.send_prepared(ready, bytes))
            case AskWorkflow(workflow_id):
                return self._number_of(self._sender.workflow_of(workflow_id, None).read_as(bytes))
            case AskHandle(task_id, task):
                return self._number_of(self._sender.handle_of(task_id, task, bytes))
            case AskStatus(handle):
                return await self._handles[handle].status()
            case AskCancel(handle):
                return await self._handles[handle].cancel()
            case AskNext(handle, of):
                return await anext(self._items_of(handle, of), None)

    def _items_of(self, number: int, of: str) -> AsyncIterator[Any]:
        items = self._items.get((number, of))
        if items is None:
            handle = self._handles[number]
            of_task = of == "statuses" and isinstance(handle, ResultHandle)
            items = self._items[number, of] = handle.statuses() if of_task else handle.updates()  # type: ignore[union-attr]
        return items

    async def _send(self, what: AskSend) -> bytes | tuple[int, str]:
        # The result stays JSON: the other end has the task's types.
        signature = Signature(what.name, what.body, what.queue, what.reply, bytes, what.sending)
        if what.call:
            return await self._sender.call_signature(signature)
        handle = await self._sender.send_signature(signature)
        return self._number_of(handle), handle.id

    def _number_of(self, handle: ResultHandle[bytes] | WorkflowHandle[Any]) -> int:
        self._handles.append(handle)
        return len(self._handles) - 1
