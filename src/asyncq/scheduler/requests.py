"""What schedulers are asked, as messages to whoever leads: pause, resume, report.

A request waits in the leader's queue until one leads. An answer goes to the address that the request names.
"""

from __future__ import annotations

import json
from typing import Any

from asyncq.message import Message, new_id

__all__ = ["ANSWER", "PAUSE", "REPORT", "RESUME", "answer_to", "leadership_name", "name_of", "request"]

PAUSE, RESUME, REPORT = "asyncq.schedule.pause", "asyncq.schedule.resume", "asyncq.schedule.report"
ANSWER = "asyncq.schedule.answer"


def leadership_name(app: str) -> str:
    """Return what the schedulers of an app stand for."""
    return f"scheduler.{app}"


def request(kind: str, name: str | None, reply_to: str | None) -> Message:
    """Return a request.

    Args:
        kind: `PAUSE`, `RESUME` or `REPORT`.
        name: The schedule that it is about.
        reply_to: Where the answer goes.
    """
    unique = new_id()
    body = json.dumps({} if name is None else {"name": name}).encode()
    return Message(type=kind, body=body, task_id=unique, message_id=unique, reply_to=reply_to)


def name_of(message: Message) -> str | None:
    """Return the schedule that a request is about; None where it names none."""
    try:
        name = json.loads(message.body).get("name")
    except (ValueError, AttributeError):
        return None
    return name if isinstance(name, str) else None


def answer_to(message: Message, answer: dict[str, Any]) -> Message:
    """Return the answer to a request."""
    return Message(type=ANSWER, body=json.dumps(answer).encode(), task_id=message.task_id, message_id=new_id())
