"""What a worker lends to running code: progress, and blocking calls from threads.

Invariant: progress is a courtesy. Nobody waiting for it is no fault.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

from asyncq.broker import Broker, ReplyTo
from asyncq.clock import Clock
from asyncq.context import ContextServices, TaskContext, no_lifespan
from asyncq.errors import Unroutable
from asyncq.message import Message, ReplyType, new_id
from asyncq.results import Progress
from asyncq.signature import Sender
from asyncq.sync import LoopBridge, TaskSync

__all__ = ["make_services"]


def make_services(
    broker: Broker,
    sender: Sender,
    bridge: LoopBridge,
    clock: Clock,
    *,
    timeout_s: float,
    resources: Callable[[], Any] = no_lifespan,
) -> ContextServices:
    """Return the services of one worker.

    Args:
        broker: Where progress is published.
        sender: What `ctx.sync` sends by.
        bridge: The way from a thread into the worker's loop.
        clock: For timestamps.
        timeout_s: How long a progress update waits for its confirm.
        resources: Returns what the app's lifespan has yielded.
    """

    async def publish_progress(message: Message, progress: Progress) -> None:
        if message.reply_to is None:
            return
        update = Message(
            type=ReplyType.PROGRESS,
            body=_progress_body(progress),
            task_id=message.task_id,
            message_id=new_id(),
            timestamp_ms=clock.now_ms(),
            app_id=message.app_id,
        )
        with contextlib.suppress(Unroutable):  # nobody listens any more
            await broker.publish(update, ReplyTo(message.reply_to), timeout_s=timeout_s)

    def sync_of(context: TaskContext) -> TaskSync:
        return TaskSync(bridge, sender, context.progress)

    return ContextServices(publish_progress, sync_of, resources)


def _progress_body(progress: Progress) -> bytes:
    value = {
        "done": progress.done,
        "total": progress.total,
        "label": progress.label,
        "details": progress.details,
    }
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
