"""Asking whoever leads: what a command line, or a program, has to say to an app's schedulers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

from asyncq.broker import Broker
from asyncq.errors import InvalidOption, ReplyLost, Unroutable
from asyncq.leadership import Leadership
from asyncq.scheduler.requests import leadership_name, request

__all__ = ["ask"]


async def ask(broker: Broker, app: str, kind: str, name: str | None = None, *, timeout_s: float) -> Any:
    """Send a request to the scheduler that leads, and wait for its answer.

    Args:
        broker: An open broker.
        app: The app's name.
        kind: See `asyncq.scheduler.requests`.
        name: The schedule that it is about.
        timeout_s: How long the answer is waited for, in seconds.

    Returns:
        The answer; None where none came: nobody leads. The request then waits for the next leader.

    Raises:
        Unroutable: No scheduler of this app ever ran here, so that the request was not kept.
        InvalidOption: The leader refused the request.
    """
    if not isinstance(broker, Leadership):
        raise InvalidOption(f"{type(broker).__name__} has no leadership, so no scheduler can run on it.")
    async with broker.mailbox() as mailbox:
        message = request(kind, name, mailbox.address)
        try:
            await broker.tell_leader(leadership_name(app), message, timeout_s=timeout_s)
        except Unroutable:
            raise Unroutable(
                f"No scheduler of app {app!r} has ever run on this broker, so nothing can be asked of it. Start one: "
                "asyncq scheduler MODULE:APP, or asyncq worker MODULE:APP --scheduler."
            ) from None
        with contextlib.suppress(TimeoutError, ReplyLost):
            async with asyncio.timeout(timeout_s):
                async for reply in mailbox:
                    if reply.task_id == message.task_id:
                        answer = json.loads(reply.body)
                        if "error" in answer:
                            raise InvalidOption(str(answer["error"]))
                        return answer
    return None
