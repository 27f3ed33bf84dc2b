"""What an error callback is told of the task that has finally failed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

__all__ = ["EXAMPLE", "FailedTask"]


class FailedTask(BaseModel):
    """A task that has finally failed, as its `on_failure` callback sees it.

    Attributes:
        task: Its name on the wire.
        task_id: Its id.
        queue: The queue that it came out of, and whose dead letters it is among.
        reason: Why no other attempt follows; as in the dead letter.
        attempts: How often it ran.
        error_type: The exception's class, with its module.
        error_message: The exception's text.
        traceback: The traceback as text, cut to 8 KB.
        failed_at: When it failed; in UTC.
        worker: Host and process id.
        arguments: What it was sent with, as JSON; None where that cannot be read, or is too large to be sent on.
    """

    # A newer worker may tell more: an older one shall not refuse it.
    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings")

    task: str
    task_id: str
    queue: str
    reason: str
    attempts: int
    error_type: str
    error_message: str
    traceback: str = ""
    failed_at: datetime
    worker: str = ""
    arguments: dict[str, Any] | None = None


EXAMPLE: Mapping[str, Any] = FailedTask(
    task="shop.charge",
    task_id="0199f3a0-0000-7000-8000-000000000000",
    queue="shop",
    reason="attempts exhausted",
    attempts=4,
    error_type="builtins.ConnectionError",
    error_message="refused",
    failed_at=datetime(2026, 1, 1, tzinfo=UTC),
    arguments={},
).model_dump(mode="json")
"""To see whether a task can take one."""
