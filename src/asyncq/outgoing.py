"""The headers and the delay of a task that is sent: by a client, or by a worker that goes on with a workflow.

Pure: the time and where the task comes from are arguments.
"""

from __future__ import annotations

from dataclasses import dataclass

from asyncq.broker import Delay
from asyncq.keeping import Keeping
from asyncq.life import SENT_AT
from asyncq.message import (
    DEADLINE_AT,
    DUE_AT,
    EXPIRES_AT,
    PARENT_ID,
    ROOT_ID,
    SOFT_LIMIT_MS,
    TIME_LIMIT_MS,
    HeaderValue,
)
from asyncq.options import Sending
from asyncq.stages import first_leg

__all__ = ["Lineage", "headers_and_delay"]


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a task comes from.

    Attributes:
        parent_id: The task that sends it; None where no task does.
        root_id: The beginning of it all.
        deadline_ms: The deadline that it inherits, in milliseconds since the epoch.
    """

    parent_id: str | None = None
    root_id: str | None = None
    deadline_ms: int | None = None


def headers_and_delay(
    sending: Sending, keeping: Keeping, lineage: Lineage, now_ms: int
) -> tuple[dict[str, HeaderValue], Delay | None]:
    """Return what a message says about its sending, and how long the broker keeps it before it delivers it.

    Args:
        sending: The options of the send.
        keeping: What the result store keeps.
        lineage: Where the task comes from.
        now_ms: The time, in milliseconds since the epoch.

    Raises:
        InvalidOption: It would expire before it is due.
    """
    delay_s, expires_ms = sending.times_at(now_ms)
    headers: dict[str, HeaderValue] = {
        SENT_AT: now_ms,  # before the headers: a tick was sent at its fire time, and users have no such header
        **sending.headers,
        **keeping.headers(),
    }
    if lineage.parent_id is not None:
        headers[PARENT_ID] = lineage.parent_id
    if lineage.root_id is not None:
        headers[ROOT_ID] = lineage.root_id
    for name, limit_s in ((TIME_LIMIT_MS, sending.time_limit_s), (SOFT_LIMIT_MS, sending.soft_time_limit_s)):
        if limit_s is not None:
            headers[name] = round(limit_s * 1000)
    if (deadline_ms := _deadline(sending, lineage, now_ms)) is not None:
        headers[DEADLINE_AT] = deadline_ms
    if delay_s > 0:
        due_ms = headers[DUE_AT] = now_ms + round(delay_s * 1000)
        delay_s, staged = first_leg(delay_s, due_ms)
        headers.update(staged)
    if expires_ms is not None:
        headers[EXPIRES_AT] = expires_ms
    return headers, Delay(delay_s) if delay_s > 0 else None


def _deadline(sending: Sending, lineage: Lineage, now_ms: int) -> int | None:
    """Return by when the work must be done. A later deadline than that of what sends it does not help anybody."""
    own_ms = sending.deadline_at(now_ms)
    inherited_ms = None if sending.says_deadline and own_ms is None else lineage.deadline_ms
    return min((end for end in (own_ms, inherited_ms) if end is not None), default=None)
