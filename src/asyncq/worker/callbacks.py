"""What is sent when a task has finally failed: the send's own error callback, else the task's.

Invariant: for one task it has always the same id, so that a failure which is settled twice, after a crash, makes no
second callback for those who look at ids. A callback that cannot be read, or not be sent, keeps no task from its end:
its dead letter is there, and the log says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from asyncq.body import FAILED, ON_FAILURE, arguments_in, object_of, with_key
from asyncq.broker import DeadLetterRecord, Delay, Delivery, Exchange, Publication
from asyncq.callback import DEEPEST, Callback, callback_in
from asyncq.clock import Clock
from asyncq.errors import InvalidOption, LeaseLost, MalformedMessage, MessageTooLarge
from asyncq.loggers import get_logger
from asyncq.message import (
    CALLBACK_DEPTH,
    DUE_AT,
    MAX_HEADERS_BYTES,
    PARENT_ID,
    ROOT_ID,
    HeaderValue,
    Message,
    derived_id,
    headers_size,
    new_id,
    root_id_of,
)
from asyncq.outcome import Failure
from asyncq.program import Workflow
from asyncq.stages import first_leg
from asyncq.worker.attempt import AnyTask
from asyncq.worker.publishing import Publishing

__all__ = ["Callbacks"]

log = get_logger("asyncq.worker")


class Callbacks:
    """Sends the error callbacks of a worker's tasks.

    Args:
        tasks: The tasks of this worker by name.
        publishing: Publishes them.
        clock: For timestamps and delays.
        exchange: Where tasks are sent to.
    """

    def __init__(self, tasks: Mapping[str, AnyTask], publishing: Publishing, clock: Clock, *, exchange: str) -> None:
        self._tasks = tasks
        self._publishing = publishing
        self._clock = clock
        self._exchange = exchange

    async def call(self, delivery: Delivery, record: DeadLetterRecord) -> None:
        """Send the callback of a task that has finally failed, if it has one.

        Args:
            delivery: The failed task's.
            record: What its dead letter says.

        Raises:
            LeaseLost: The delivery is no longer ours: whoever gets it sends the callback, with the same id.
        """
        message = delivery.message
        callback = self._callback_of(message)
        if callback is None:
            return
        try:
            await self._send_either(delivery, callback, record)
        except LeaseLost:
            raise
        except Exception as error:  # noqa: BLE001 - the task has its end: what fails here must not give it another
            self._tell(message, callback, error)

    async def call_for_workflow(
        self, delivery: Delivery, workflow: Workflow, failure: Failure, failed_at: datetime
    ) -> None:
        """Send the callback of a workflow that has finally failed.

        Args:
            delivery: Of the task that it ended with.
            workflow: The workflow, which has a callback.
            failure: What went wrong.
            failed_at: When that was.

        Raises:
            LeaseLost: As `call`.
        """
        callback, depth = workflow.on_failure, _depth_of(delivery.message)
        assert callback is not None  # noqa: S101 - for the type checker: the caller has looked
        try:
            failed = _failed_workflow(workflow, delivery.queue, failure, failed_at)
            await self._send(delivery, callback, failed, depth, of=workflow.id)
        except LeaseLost:
            raise
        except Exception as error:  # noqa: BLE001 - the workflow has its end
            self._tell(delivery.message, callback, error)

    def _callback_of(self, message: Message) -> Callback | None:
        try:
            is_said, callback = callback_in(message.body)
            if is_said:
                return callback
        except MalformedMessage as error:
            self._tell(message, None, error)
        try:
            task = self._tasks.get(message.type)
            declared = None if task is None else task.run.on_failure
            return None if declared is None else declared.as_callback()
        except Exception as error:  # noqa: BLE001 - a user's own object may raise anything
            self._tell(message, None, error)
            return None

    async def _send_either(self, delivery: Delivery, callback: Callback, record: DeadLetterRecord) -> None:
        """Send the callback with the failed task's arguments; without them where it cannot be with them."""
        depth = _depth_of(delivery.message)
        if depth >= DEEPEST:
            raise InvalidOption(
                f"Callbacks of callbacks go {DEEPEST} deep. Perhaps two tasks are each other's on_failure, or one is "
                "its own."
            )
        try:
            await self._send(delivery, callback, _failed_task(delivery.message, record), depth)
        except (MessageTooLarge, MalformedMessage):
            await self._send(delivery, callback, _failed_task(delivery.message, record, with_arguments=False), depth)

    async def _send(
        self, delivery: Delivery, callback: Callback, failed: bytes, depth: int, *, of: str | None = None
    ) -> None:
        """Send a callback.

        Args:
            delivery: On whose behalf.
            callback: What is sent.
            failed: The `FailedTask`, as JSON.
            depth: How many callbacks came before it.
            of: Whose callback it is, where that is a workflow's.
        """
        message = delivery.message
        body = failed if callback.arguments is None else with_key(callback.arguments, FAILED, failed)
        if callback.on_failure is not None:
            body = with_key(body, ON_FAILURE, callback.on_failure.to_json())
        object_of(body)  # one level deeper than the failed task's, which may be one too many to be read
        now_ms = self._clock.now_ms()
        headers: dict[str, HeaderValue] = {
            **callback.headers,
            CALLBACK_DEPTH: depth + 1,
            PARENT_ID: message.task_id,
            ROOT_ID: root_id_of(message),
        }
        if headers_size(headers) > MAX_HEADERS_BYTES:
            raise MalformedMessage(f"Its headers take more than {MAX_HEADERS_BYTES} bytes, and one frame carries them.")
        delay = None
        if callback.delay_s > 0:
            due_ms = headers[DUE_AT] = now_ms + math.ceil(callback.delay_s * 1000)
            leg_s, staged = first_leg(callback.delay_s, due_ms)
            headers.update(staged)
            delay = Delay(leg_s)
        call = Message(
            type=callback.task,
            body=body,
            task_id=derived_id(of or message.task_id, ON_FAILURE),
            message_id=new_id(),
            headers=headers,
            timestamp_ms=now_ms,
            app_id=message.app_id,
        )
        await self._publishing.follower(delivery, Publication(call, Exchange(self._exchange, callback.queue), delay))

    @staticmethod
    def _tell(message: Message, callback: Callback | None, error: Exception) -> None:
        log.error(
            "the error callback of a failed task was not sent",
            task=message.type,
            task_id=message.task_id,
            **({} if callback is None else {"callback": callback.task, "queue": callback.queue}),
            cause=str(error),
        )


def _depth_of(message: Message) -> int:
    depth = message.headers.get(CALLBACK_DEPTH)
    return depth if type(depth) is int and depth > 0 else 0


def _failed_task(message: Message, record: DeadLetterRecord, *, with_arguments: bool = True) -> bytes:
    # Its model is made when it is first needed: most workers' tasks have no callback.
    from asyncq.failed_task import FailedTask  # noqa: PLC0415

    failed = FailedTask(
        task=message.type,
        task_id=message.task_id,
        queue=record.queue,
        reason=record.reason,
        attempts=record.attempts,
        error_type=record.failure.type,
        error_message=record.failure.message,
        traceback=record.failure.traceback,
        failed_at=datetime.fromtimestamp(record.failed_at_ms / 1000, UTC),
        worker=record.worker,
        arguments=_arguments_of(message.body) if with_arguments else None,
    )
    return failed.model_dump_json().encode()


def _failed_workflow(workflow: Workflow, queue: str, failure: Failure, failed_at: datetime) -> bytes:
    from asyncq.failed_task import FailedTask  # noqa: PLC0415

    failed = FailedTask(
        task=workflow.name,
        task_id=workflow.id,
        queue=queue,
        reason="a step of the workflow has failed",
        attempts=1,
        error_type=failure.type,
        error_message=failure.message,
        traceback=failure.traceback,
        failed_at=failed_at,
    )
    return failed.model_dump_json().encode()


def _arguments_of(body: bytes) -> dict[str, Any] | None:
    try:
        return arguments_in(object_of(body))
    except MalformedMessage:
        return None
