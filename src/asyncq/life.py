"""Which life of a task, and which run in it, a message belongs to: for the order of what is written of a task.

An id can have several lives: a dead letter is sent back, or a program sends a fixed `task_id` every day. Each begins
with a send, and is known by its time, which travels with every copy. A later life counts more than an earlier one,
whatever that still writes. A tick of a schedule was sent at its fire time, so all its messages are one life.

Within one attempt a message can be given out several times: by the broker, when a worker was lost, and as a copy, when
the task snoozes or its worker stops. Their number tells which of two workers is the later one, where clocks do not.
"""

from __future__ import annotations

from asyncq.errors import MalformedMessage
from asyncq.message import DUE_AT, LATEST_MS, HeaderValue, Message

__all__ = [
    "REPLAYS",
    "RUNS",
    "SENT_AT",
    "check_life",
    "life_of",
    "new_life_after",
    "replays_of",
    "runs_of",
    "waited_s_of",
]

SENT_AT = "asyncq-sent-at"
RUNS = "asyncq-runs"
REPLAYS = "asyncq-replays"


def check_life(message: Message) -> None:
    """Refuse headers that say something else.

    Raises:
        MalformedMessage: One is no positive integer.
    """
    for name, largest in ((SENT_AT, LATEST_MS), (RUNS, LATEST_MS), (REPLAYS, LATEST_MS)):
        value = message.headers.get(name)
        if value is not None and _number(value) is None:
            raise MalformedMessage(
                f"Header {name} of task {message.task_id} must be an integer from 1 to {largest}, not {value!r}. Leave "
                "it out: asyncq sets it itself."
            )


def life_of(message: Message) -> int:
    """Return when this life was sent, in milliseconds since the epoch; 0 where a foreign producer does not say it."""
    return _number(message.headers.get(SENT_AT)) or 0


def runs_of(message: Message) -> int:
    """Return how many copies of this attempt there were before this one."""
    return _number(message.headers.get(RUNS)) or 0


def replays_of(message: Message) -> int:
    """Return how often this task was sent back from the dead letters."""
    return _number(message.headers.get(REPLAYS)) or 0


def new_life_after(message: Message, now_ms: int) -> dict[str, HeaderValue]:
    """Return the headers of a message that is sent back: a later life, whatever the clock of who sends it back says."""
    return {SENT_AT: max(now_ms, life_of(message) + 1), REPLAYS: replays_of(message) + 1}


def waited_s_of(message: Message, began_ms: int) -> float | None:
    """Return how long a message had waited before it was begun, in seconds; None where it does not tell.

    Since it was sent, or since it was due. Two machines' clocks differ: what seems to have been begun before that has
    not waited.

    Args:
        message: What was run.
        began_ms: When, in milliseconds since the epoch.
    """
    since_ms = life_of(message) or message.timestamp_ms or 0
    due_at = message.headers.get(DUE_AT)
    if due_at is not None:
        since_ms = max(_number(due_at) or 0, since_ms)
    if not since_ms:
        return None
    waited_ms = began_ms - since_ms
    return waited_ms / 1000 if waited_ms > 0 else 0.0


def _number(value: HeaderValue) -> int | None:
    # A bool is an int too, but of another type.
    return value if type(value) is int and 1 <= value <= LATEST_MS else None
