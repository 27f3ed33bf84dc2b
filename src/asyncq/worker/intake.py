"""Read a delivery: what is to run, or why it is not run.

Invariant: whatever a foreign producer has sent ends in a value. A message that asyncq cannot run is rejected at
once, with a reason that its sender can act on; only an unknown task's name gets some time, because a rolling
deploy sends new names to old workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from asyncq.broker import Delivery
from asyncq.chunk import called_by
from asyncq.clock import Clock
from asyncq.errors import DeliveredTooOften, MalformedMessage, UnknownTask
from asyncq.history import last_failure
from asyncq.keeping import keeping_of
from asyncq.life import check_life
from asyncq.message import (
    CONTENT_TYPE_JSON,
    Message,
    attempt_of,
    first_at_ms_of,
    limits_ms_of,
    staged_until_ms_of,
    too_late_ms_of,
    turn_at_ms_of,
    unknown_since_ms_of,
)
from asyncq.outcome import Deferred, Expired, Failed, Failure, Outcome, Rejected, Staged
from asyncq.program_json import place_in
from asyncq.worker.attempt import AnyTask
from asyncq.worker.turns import Turns

__all__ = ["Call", "Intake", "Refusal"]

_LOOK_AGAIN_S = 10.0
_KNOWN_ENCODINGS = {"", "identity", "utf-8", "utf8"}
_NAMES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Call:
    """What is to run.

    Attributes:
        task: The declared task.
        attempt: 1 for the first run.
        args: Positional arguments, validated; none for a process of its own, which reads them itself.
        kwargs: Keyword arguments, validated; as `args`.
    """

    task: AnyTask
    attempt: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Refusal:
    """The message is not run; `outcome` says what becomes of it."""

    attempt: int
    outcome: Outcome


class Intake:
    """Reads deliveries.

    Args:
        tasks: The tasks of this worker by name.
        clock: For how long a name has been unknown, and whether a task has expired.
        unknown_task_patience_s: How long a name may be unknown.
        poison_after: A message that has come back to the broker so often without an end is not run again: it may be
            what kills the workers.
    """

    def __init__(
        self, tasks: Mapping[str, AnyTask], clock: Clock, *, unknown_task_patience_s: float, poison_after: int
    ) -> None:
        self._tasks = tasks
        self._clock = clock
        self._patience_s = unknown_task_patience_s
        self._poison_after = poison_after
        self._turns = Turns(clock)

    def read(self, delivery: Delivery) -> Call | Refusal:
        """Return what is to run, or why it is not run."""
        message = delivery.message
        attempt = 1
        try:
            attempt = attempt_of(message)
            first_at_ms_of(message)  # read after the run only, and malformed it must be refused before
            limits_ms_of(message)
            keeping_of(message)
            check_life(message)
            place_in(message.body)  # read after the run, and by then it must be known to be sound
            turn_at_ms_of(message)
            _check_form(message)
            task = self._tasks.get(message.type)
            outcome = self._barred(delivery, is_known=task is not None)
            if task is None or outcome is not None:
                return Refusal(attempt, outcome or self._unknown(message))
            # A process of its own validates them itself: that takes time, and the event loop has none.
            task = task if task.runs_in == "process" else called_by(message.body, task)
            args, kwargs = ((), {}) if task.runs_in == "process" else task.arguments.decode(message.body)
        except MalformedMessage as error:
            return Refusal(attempt, Rejected(Failure.of(error), "malformed message"))
        except ValidationError as error:
            return Refusal(attempt, Rejected(Failure.of(error), "invalid arguments"))
        except BaseException as error:  # noqa: BLE001 - a validator of the user's may raise anything; nothing awaits here
            return Refusal(attempt, Rejected(Failure.of(error), "invalid arguments"))
        throttled = self._turns.take(task.name, task.run.rate, message)
        return Call(task, attempt, args, kwargs) if throttled is None else Refusal(attempt, throttled)

    def _barred(self, delivery: Delivery, *, is_known: bool) -> Failed | Expired | Staged | None:
        """Return why a well-formed message must not run, whatever its arguments are; mostly there is nothing."""
        message = delivery.message
        expires_ms = too_late_ms_of(message)
        # First, expired or not: what may kill workers has failed, and somebody has to see it.
        if is_known and (deliveries := delivery.deliveries or 0) >= self._poison_after:
            return _poison(message, deliveries)
        if expires_ms is not None and (now_ms := self._clock.now_ms()) >= expires_ms:
            return Expired(expires_ms, now_ms, last_failure(message.headers), attempt_of(message) - 1)
        until_ms = staged_until_ms_of(message)
        if until_ms is not None and (left_ms := until_ms - self._clock.now_ms()) > 0:
            return Staged(until_ms, left_ms / 1000)
        return None

    def _unknown(self, message: Message) -> Outcome:
        """Wait for a worker that knows the name, until the patience is over; one wait, however often it returns.

        A task that expires sooner is looked at then, so that its sender hears of it at once.
        """
        now_ms = self._clock.now_ms()
        # A time from the future comes from a clock that is ahead: it must not make the wait longer.
        since_ms = min(unknown_since_ms_of(message) or now_ms, now_ms)
        remaining_s = self._patience_s - (now_ms - since_ms) / 1000
        if remaining_s > 0:
            expires_ms = too_late_ms_of(message)
            expires_s = _LOOK_AGAIN_S if expires_ms is None else max(1, expires_ms - now_ms) / 1000
            return Deferred(since_ms, min(_LOOK_AGAIN_S, remaining_s, expires_s))
        known = sorted(self._tasks)
        shown = ", ".join(known[:_NAMES_SHOWN]) + (" ..." if len(known) > _NAMES_SHOWN else "")
        error = UnknownTask(
            f"No worker of this queue knew a task named {message.type!r} for {self._patience_s:g} s. This worker has: "
            f"{shown or 'none'}. Check the name, and that the module which declares it is in AsyncQ(include=[...])."
        )
        return Rejected(Failure.of(error), "unknown task")


def _check_form(message: Message) -> None:
    if not message.type:
        raise MalformedMessage("The message has no type. Set the AMQP property `type` to the task's name.")
    content_type = message.content_type
    if content_type is not None and content_type != CONTENT_TYPE_JSON and not _is_json(content_type):
        raise MalformedMessage(f"The content type is {content_type!r}. A task message is {CONTENT_TYPE_JSON}.")
    encoding = message.content_encoding
    if encoding is not None and encoding.lower() not in _KNOWN_ENCODINGS:
        raise MalformedMessage(f"The content encoding is {encoding!r}. A task message is plain JSON in UTF-8.")


def _is_json(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() in {"", CONTENT_TYPE_JSON}


def _poison(message: Message, deliveries: int) -> Failed:
    text = (
        f"The broker has delivered task {message.task_id} {deliveries} times and no worker has brought it to an end: "
        "it may be what kills them, or their connections, or have run beside what does. It was not run again."
    )
    return Failed(Failure.of(DeliveredTooOften(text)), "delivered too often")
