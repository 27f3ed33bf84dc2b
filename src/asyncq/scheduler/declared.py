"""The schedules that an app declares.

Invariant: a name stands for one schedule. Everything that can be wrong with one is said when it is declared; only
tasks that are named by `AsyncQ(schedules=...)` are looked up when a scheduler starts, for they come later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypedDict

from pydantic import ValidationError

from asyncq.errors import InvalidOption, UnknownTask
from asyncq.message import HeaderValue
from asyncq.options import Sending, SendOptions
from asyncq.queue_names import check_queue_name
from asyncq.schedule import Missed, Schedule
from asyncq.signature import Signature
from asyncq.wall_time import zone_of
from asyncq.workflow.connecting import check_beginning
from asyncq.workflow.workflow import Workflow, leaves

__all__ = ["ScheduleOptions", "Scheduled", "Schedules", "Sends"]

_OPTIONS = ("missed", "catch_up", "deadline")


class ScheduleOptions(TypedDict, total=False):
    """The keywords of `app.schedule(...)`.

    Attributes:
        missed: What becomes of fire times that passed while no scheduler ran: `skip`, `once` (one run for all of
            them, the default) or `all`. Up to 5 seconds count as late, not as missed.
        catch_up: With `all`: at most so many runs, the latest ones; 100 by default.
        deadline: A run that would be sent later than this is skipped, in seconds or as a `timedelta`.
    """

    missed: Missed
    catch_up: int
    deadline: float | timedelta


Sends = Signature[Any] | Workflow[Any]


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A schedule, and what it sends."""

    schedule: Schedule
    sends: Sends

    @property
    def named(self) -> str:
        """What it sends, in a few words: the task's name, or `chain of 3 tasks`."""
        if isinstance(self.sends, Signature):
            return self.sends.name
        count = sum(1 for _ in leaves(self.sends))
        return f"{self.sends.kind} of {count} task{'' if count == 1 else 's'}"

    def at(self, task_id: str, headers: Mapping[str, HeaderValue]) -> Sends:
        """Return what is sent for one fire time.

        Args:
            task_id: Its id; those of a workflow's tasks follow from it.
            headers: What its messages have beside their own headers.
        """
        sending = self.sends.sending
        sending = replace(sending, task_id=task_id, headers={**sending.headers, **headers})
        if isinstance(self.sends, Signature):
            return replace(self.sends, sending=sending)
        return self.sends.sent_with(sending)


class Schedules:
    """The schedules of one app.

    Args:
        by_task: What `AsyncQ(schedules=...)` was given.
        tz: The time zone of a `Cron` that names none.

    Raises:
        InvalidOption: A value cannot be used.
    """

    def __init__(self, by_task: Any, tz: str) -> None:
        zone_of(tz)
        self.tz = tz
        self._declared: dict[str, Scheduled] = {}
        self._by_task: dict[str, tuple[Schedule, Mapping[str, Any], Mapping[str, Any]]] = {}
        if not isinstance(by_task, Mapping):
            raise InvalidOption(f"AsyncQ(schedules=...) takes schedules by the task's name, not {by_task!r}.")
        for task, value in by_task.items():
            self._by_task[task] = _read(task, value)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._declared or self._by_task)

    def add(self, name: str, sends: Sends, when: Any, options: ScheduleOptions) -> None:
        """Declare a schedule.

        Raises:
            InvalidOption: A value cannot be used, or the name is taken.
            InvalidQueueName: The queue of its signature cannot be called so.
        """
        schedule = _schedule(name, when, options)
        if name in self._declared or name in self._by_task:
            raise InvalidOption(f"There is a schedule {name!r} already. Each has a name of its own.")
        self._declared[name] = Scheduled(schedule, _checked(name, sends))

    def resolve(self, signature_of: Callable[..., Signature[Any]], tasks: Mapping[str, Any]) -> dict[str, Scheduled]:
        """Return all schedules by name.

        Args:
            signature_of: Makes the signature of a task by its name, with arguments and send options.
            tasks: The tasks that the app knows.

        Raises:
            UnknownTask: `AsyncQ(schedules=...)` names a task that the app has not.
            pydantic.ValidationError: Its arguments do not fit.
            InvalidOption: Its options cannot be used.
        """
        found = dict(self._declared)
        for task, (schedule, arguments, options) in self._by_task.items():
            if task not in tasks:
                known = ", ".join(sorted(tasks)) or "none"
                raise UnknownTask(f"AsyncQ(schedules=...) names the task {task!r}, which this app has not: {known}.")
            try:
                signature = signature_of(task, arguments, **options)
            except ValidationError as error:
                error.add_note(f"These are the 'arguments' of AsyncQ(schedules={{{task!r}: ...}}).")
                raise
            found[task] = Scheduled(schedule, _checked(task, signature))
        return found


def _read(task: Any, value: Any) -> tuple[Schedule, Mapping[str, Any], Mapping[str, Any]]:
    where = f"AsyncQ(schedules={{{task!r}: ...}})"
    if not isinstance(value, Mapping):
        value = {"when": value}
    if "when" not in value:
        raise InvalidOption(f"{where} has no 'when'. It takes a timing, or {{'when': ..., 'arguments': {{...}}}}.")
    known = {"when", "arguments", *_OPTIONS, *SendOptions.__annotations__}
    for option in value:
        if option not in known:
            raise InvalidOption(f"{where} has no option {option!r}. Known options: {', '.join(sorted(known))}.")
    schedule = _schedule(task, value["when"], {name: value[name] for name in _OPTIONS if name in value})
    arguments = value.get("arguments", {})
    if not isinstance(arguments, Mapping):
        raise InvalidOption(
            f"{where} has 'arguments', which takes them by name, such as {{'x': 1}}, not {arguments!r}."
        )
    options = {name: value[name] for name in SendOptions.__annotations__ if name in value}
    return schedule, arguments, options


def _schedule(name: Any, when: Any, options: Mapping[str, Any]) -> Schedule:
    for option in options:
        if option not in _OPTIONS:
            raise InvalidOption(
                f"The schedule {name!r} has no option {option!r}. Known options: {', '.join(_OPTIONS)}. Options of the "
                "send belong to its signature: task.options(queue='reports').s()."
            )
    return Schedule(name=name, when=when, **options)


def _checked(name: str, sends: Any) -> Sends:
    if not isinstance(sends, Signature | Workflow):
        raise InvalidOption(
            f"The schedule {name!r} takes a signature, such as task.s(1, 2), or a workflow, and not {sends!r}."
        )
    if isinstance(sends, Signature):
        _check_options(name, sends.sending, "its signature")
        return replace(sends, sending=replace(sends.sending, reply=False))
    check_beginning(sends)
    _check_options(name, sends.sending, "its workflow")
    for leaf in leaves(sends):
        _check_options(name, leaf.sending, f"the task {leaf.name!r} of its workflow")
    return sends.sent_with(replace(sends.sending, reply=False))


def _check_options(name: str, sending: Sending, where: str) -> None:
    if sending.queue is not None:
        check_queue_name(sending.queue)
    given = {
        "task_id": sending.task_id,
        "eta": sending.eta_ms,
        "timeout": sending.timeout_s,
        "reply": sending.reply or None,
        "expires": sending.expires_ms,
    }
    for option, value in given.items():
        if value is not None:
            raise InvalidOption(
                f"The schedule {name!r} has {option}= on {where}, which means nothing for runs again and again. "
                "It may have queue=, delay=, headers=, on_failure= and expires= in seconds."
            )
