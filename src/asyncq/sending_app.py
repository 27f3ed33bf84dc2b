"""What an open app can send, cancel and ask about; `AsyncQ` adds how it is opened, and how it works.

Thin: all of it is done by `client.py`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, Unpack, overload

import pydantic_core
from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, to_json

from asyncq.client import Client
from asyncq.controller import Controller
from asyncq.errors import InvalidOption
from asyncq.keeping import KEEP_EVERYTHING
from asyncq.options import Sending, SendOptions, checked_id
from asyncq.pending_reply import PendingReply
from asyncq.program import Program
from asyncq.program import Workflow as Whole
from asyncq.registry import TaskRegistry
from asyncq.results import ResultHandle
from asyncq.signature import Signature
from asyncq.workflow.preparing import Prepared
from asyncq.workflow.serialising import from_json
from asyncq.workflow.workflow import Workflow
from asyncq.workflow_handle import WorkflowHandle
from asyncq.workflow_progress.outcome import Reading

__all__ = ["SendingApp"]

R = TypeVar("R")


class SendingApp(TaskRegistry):
    """The tasks of an app, and its way to the broker."""

    @abstractmethod
    def _open_client(self) -> Client:
        """Return the client of this loop.

        Raises:
            NotOpen: The app was not entered.
            WrongLoop: It is open in another event loop.
        """

    async def send_signature(self, signature: Signature[R]) -> ResultHandle[R]:
        """Publish the signature; what `Task.send` calls. Raises what `Client.send_signature` raises."""
        return await self._open_client().send_signature(signature)

    async def call_signature(self, signature: Signature[R]) -> R:
        """Publish the signature and wait for its result; what `Task.call` calls."""
        return await self._open_client().call_signature(signature)

    async def send_workflow(self, workflow: Workflow[R]) -> WorkflowHandle[R]:
        """Publish what the workflow begins with; what `Workflow.send` calls."""
        return await self._open_client().send_workflow(workflow)

    async def call_workflow(self, workflow: Workflow[R]) -> R:
        """Publish what the workflow begins with and wait for its result; what `Workflow.call` calls."""
        return await self._open_client().call_workflow(workflow)

    async def send_prepared(self, ready: Prepared, reading: Reading) -> WorkflowHandle[Any]:
        """Publish what a prepared workflow begins with. Arguments and errors as for `Client.send_prepared`."""
        return await self._open_client().send_prepared(ready, reading)

    async def send_program(
        self, program: Program, workflow: Whole, *, expect: Sequence[str] = ()
    ) -> dict[str, PendingReply]:
        """Publish what a compiled workflow begins with. Arguments and errors as for `Client.send_program`."""
        return await self._open_client().send_program(program, workflow, expect=expect)

    @overload
    async def send(self, task: Signature[R]) -> ResultHandle[R]: ...
    @overload
    async def send(self, task: Workflow[R]) -> WorkflowHandle[R]: ...
    @overload
    async def send(
        self, task: str, arguments: Mapping[str, Any] | BaseModel | None = None, **options: Unpack[SendOptions]
    ) -> ResultHandle[Any]: ...
    async def send(
        self,
        task: str | Signature[Any] | Workflow[Any],
        arguments: Mapping[str, Any] | BaseModel | None = None,
        **options: Unpack[SendOptions],
    ) -> ResultHandle[Any] | WorkflowHandle[Any]:
        """Send a signature, a workflow, or a task by its name, without its code.

        Args:
            task: A signature, a workflow, or the name on the wire: `shop.send_email`.
            arguments: By name. They are checked here only where this app has the task; otherwise by the worker.
            **options: See `asyncq.options.SendOptions`. Without `queue=` the task's own queue is used, or, where
                this app does not know the task, the part of its name before the last dot.

        Returns:
            The handle, once the broker has confirmed the message.

        Raises:
            PublishError: Its subclasses say what happened.
            InvalidOption: The arguments cannot be written as JSON, or an option cannot be used.
        """
        if isinstance(task, Workflow):
            return await self._open_client().send_workflow(_with_options(task, arguments, options))
        return await self._open_client().send_signature(self.signature(task, arguments, **options))

    @overload
    async def call(self, task: Signature[R] | Workflow[R]) -> R: ...
    @overload
    async def call(
        self, task: str, arguments: Mapping[str, Any] | BaseModel | None = None, **options: Unpack[SendOptions]
    ) -> Any: ...
    async def call(
        self,
        task: str | Signature[Any] | Workflow[Any],
        arguments: Mapping[str, Any] | BaseModel | None = None,
        **options: Unpack[SendOptions],
    ) -> Any:
        """Send, and wait for the result. Arguments and errors as for `send`, and those of `ResultHandle.result`."""
        if isinstance(task, Workflow):
            return await self._open_client().call_workflow(_with_options(task, arguments, options))
        return await self._open_client().call_signature(self.signature(task, arguments, **options))

    async def send_many(self, signatures: Iterable[Signature[R]]) -> list[ResultHandle[R]]:
        """Send many signatures with their confirms pipelined: many times faster than one by one.

        Args:
            signatures: Read as they are needed, 1,000 at a time.

        Returns:
            A handle for each, in order.

        Raises:
            PartlySent: Some were not taken; its `outcomes` tell which.
        """
        return await self._open_client().send_many(signatures)

    async def cancel(self, *ids: str) -> None:
        """Let tasks not run, or stop them where they run, by their ids. Returns when the broker has confirmed it.

        What has ended, and an id that no task has, is no error. A cancelled id stays cancelled for
        `cancellations_kept_s`: a later send, or a replay of a dead letter, with this id ends as cancelled too, unless
        `undo_cancel` came before it.

        Args:
            *ids: Of tasks of any app in this namespace; see `ResultHandle.id`.

        Raises:
            InvalidOption: One cannot be a task's id, or cancelling is switched off, by `cancellations_kept_s=0`.
            PublishError: The broker did not take it, or it is unknown whether it did. Cancelling again is safe.
            BrokerError: It could not be kept: a permission is missing, or the broker has no streams.
        """
        await self._open_client().canceller.cancel(ids)

    async def undo_cancel(self, *ids: str) -> None:
        """Let tasks run again that were cancelled: those that no worker has come to, and later sends of these ids.

        Args:
            *ids: Theirs.

        Raises:
            Exception: What `cancel` raises.
        """
        await self._open_client().canceller.undo(ids)

    @property
    def control(self) -> Controller:
        """What asks workers, and changes them while they run: `await app.control.ping()`.

        Raises:
            NotOpen: The app was not entered.
            WrongLoop: It is open in another event loop.
        """
        return self._open_client().controller

    def handle(self, task_id: str) -> ResultHandle[Any]:
        """Return a handle for a task that any process has sent: its status, progress and result.

        Its result is not checked against a type; `task.handle(id)` returns a typed one. Without a result store only
        what this app itself has sent, with a handle that still lives, can be asked.

        Args:
            task_id: The task's id, as `handle.id` of its sender.

        Raises:
            NotOpen: The app was not entered.
            InvalidOption: That is no id.
        """
        return self.handle_of(task_id, None, pydantic_core.from_json)

    def handle_of(self, task_id: str, task: str | None, decode: Callable[[bytes], R]) -> ResultHandle[R]:
        """Return a handle; what `Task.handle` calls."""
        return self._open_client().handle_of(checked_id(task_id), task, decode)

    @overload
    def workflow(self, workflow_id: str) -> WorkflowHandle[Any]: ...
    @overload
    def workflow(self, workflow_id: str, workflow: Workflow[R]) -> WorkflowHandle[R]: ...
    def workflow(self, workflow_id: str, workflow: Workflow[Any] | None = None) -> WorkflowHandle[Any]:
        """Return a handle for a workflow that any process has sent: its status, progress and result.

        It needs a result store: that has, under the workflow's id, which tasks there are.

        Args:
            workflow_id: Its id, as `handle.id` of its sender.
            workflow: Which workflow it is, for a result that is checked against the types of its last tasks.

        Raises:
            NotOpen: The app was not entered.
            InvalidOption: That is no id.
        """
        return self.workflow_of(workflow_id, workflow)

    def workflow_of(self, workflow_id: str, workflow: Workflow[R] | None) -> WorkflowHandle[R]:
        """Return a handle; what `app.sync` calls."""
        return self._open_client().workflow_of(checked_id(workflow_id), workflow)

    def workflow_from_json(self, text: str | bytes) -> Workflow[Any]:
        """Return the workflow that `workflow.to_json()` has written, in this process or in another one.

        Args:
            text: JSON. Arguments of tasks that this app has are checked, and the parts against each other.

        Raises:
            InvalidWorkflow: It is none; the message says what is wrong, and where.
        """
        return from_json(text, self)

    def signature(
        self,
        task: str | Signature[Any],
        arguments: Mapping[str, Any] | BaseModel | None = None,
        **options: Unpack[SendOptions],
    ) -> Signature[Any]:
        """Return the signature of a task by its name; `app.sync.send(app.signature(...))` sends it.

        Args:
            task: The name on the wire, or a signature, which is returned as it is, with the options if there are any.
            arguments: By name.
            **options: See `asyncq.options.SendOptions`.
        """
        if isinstance(task, Signature):
            if arguments is not None:
                raise InvalidOption("A signature has its arguments already; give them to `.s(...)`.")
            return task.options(**options) if options else task
        if not isinstance(task, str):
            raise InvalidOption(f"A task's name or a signature, such as `task.s(1, 2)`, is wanted here, not {task!r}.")
        known = self.tasks.get(task)
        return Signature(
            name=task,
            body=_body_of(task, arguments) if known is None else known.arguments.encode_named(arguments or {}),
            queue=known.queue if known is not None else (task.rpartition(".")[0] or self.name),
            reply=known.reply if known is not None else True,
            decode=known.results.decode if known is not None else pydantic_core.from_json,
            keeping=known.keeping if known is not None else KEEP_EVERYTHING,
            sending=Sending.of(options),
            task=known,
            sender=self,
        )


def _with_options(workflow: Workflow[R], arguments: object, options: SendOptions) -> Workflow[R]:
    if arguments is not None:
        raise InvalidOption("The tasks of a workflow have their arguments already; give them to `.s(...)`.")
    return workflow.options(**options) if options else workflow


def _body_of(task: str, arguments: Mapping[str, Any] | BaseModel | None) -> bytes:
    if not task or len(task.encode()) > 255:
        raise InvalidOption(f"A task's name has 1 to 255 bytes; {task!r} has not.")
    if isinstance(arguments, BaseModel):
        return arguments.model_dump_json(by_alias=True).encode()
    for name in arguments or {}:
        if not isinstance(name, str) or name.startswith("$"):
            raise InvalidOption(f"An argument's name is a string that does not begin with '$'; {name!r} is not.")
    try:
        return to_json(dict(arguments or {}), bytes_mode="base64", inf_nan_mode="strings")
    except (PydanticSerializationError, ValueError) as error:
        raise InvalidOption(f"The arguments of {task} cannot be written as JSON: {error}") from None
