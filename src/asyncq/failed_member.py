"""What stands in the place of a value in the list of a chord with `errors="collect"`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

__all__ = ["FailedMember"]


class FailedMember(BaseModel):
    """A member of a chord that has brought no value.

    Attributes:
        failed: How it ended: `failed`, `rejected`, `cancelled` or `expired`.
        index: Its place in the list.
        task_id: The task that ended so.
        task: Its name on the wire.
        error_type: The exception's class, with its module; empty where there was none.
        error_message: The exception's text.
    """

    # A newer worker may tell more: an older one shall not refuse it.
    model_config = ConfigDict(frozen=True, extra="ignore")

    failed: Literal["failed", "rejected", "cancelled", "expired"]
    index: int
    task_id: str
    task: str
    error_type: str = ""
    error_message: str = ""
