"""The options of tasks and of single sends, as typed keywords and as resolved values.

What travels with a message is the producer's to say; how a task runs is the worker's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from asyncq.breaker import CircuitBreaker
from asyncq.callback import Callback, CallsBack
from asyncq.errors import InvalidOption
from asyncq.headers import own_headers, text_size
from asyncq.keeping import KEEP_EVERYTHING, Keep, Keeping, keeping_of_options
from asyncq.message import LATEST_MS, HeaderValue
from asyncq.middleware import Middleware
from asyncq.queue_names import check_queue_name
from asyncq.rate import Rate
from asyncq.retry import RetryDefaults, RetryPolicy, policies_of
from asyncq.signals import seconds_of
from asyncq.stages import LONGEST_DELAY_S

if TYPE_CHECKING:  # its model is made when it is first needed
    from asyncq.failed_task import FailedTask

__all__ = [
    "QueueOptions",
    "RunIn",
    "RunOptions",
    "SendOptions",
    "Sending",
    "TaskOptions",
    "checked_id",
    "retry_defaults_of",
    "time_limits_of",
]

RunIn = Literal["thread", "process"]
"""Where a `def` task runs. An `async def` task runs on the worker's event loop."""


class TaskOptions(TypedDict, total=False):
    """The keywords of `@app.task`, beside `pass_context`.

    Attributes:
        name: The task's name on the wire. Without it: `<app>.<function>`.
        queue: The queue that the task is sent to. Without it: the app's name.
        retry: When a failed attempt is followed by another: one policy, or several, of which the first one that
            matches the error decides. None, or an empty list: a failure is final. Without it: the queue's policies,
            else the app's, else a failure is final.
        time_limit: How long one attempt may take, in seconds or as a `timedelta`.
        soft_time_limit: When `SoftTimeLimit` is raised inside an attempt, so that it can clean up or return what it
            has, in seconds or as a `timedelta`; shorter than `time_limit`. In a thread nothing can be raised:
            `ctx.soft_limit_reached` tells.
        run_in: Where a `def` function runs: "thread", or "process" for work that computes. Without it: in a thread.
        max_concurrency: How many attempts of the task one worker runs at once.
        rate: How many attempts begin in one worker process, evenly spaced: "5/s", "100/m", "1000/h", "20/d". A message
            over it waits for its turn on the broker.
        reply: Whether senders get a result back unless they say otherwise.
        on_failure: What is sent when the task has finally failed, unless the send says otherwise: a task, or a
            function, that takes a `FailedTask` as its only argument; or a signature, whose task finds it in
            `ctx.failed`. A function becomes a task of its own, `<task>.on_failure`. Whether a task takes it is
            checked when the app opens.
        keep: What the result store keeps, unless the send says otherwise: "result" (states, progress, result, errors),
            "errors" (only how a task ended that did not succeed) or "nothing".
        result_ttl: For how long after the task's end, in seconds or as a `timedelta`. Without it: `result_ttl_s` of
            the settings.
        middleware: What runs around each attempt, from the outside to the inside; inside of the app's own. See
            `asyncq.middleware`.
    """

    name: str
    queue: str
    retry: RetryPolicy | Sequence[RetryPolicy] | None
    time_limit: float | timedelta
    soft_time_limit: float | timedelta
    run_in: RunIn
    max_concurrency: int
    rate: str
    reply: bool
    on_failure: CallsBack | Callable[[FailedTask], object] | None
    keep: Keep
    result_ttl: float | timedelta
    middleware: Sequence[Middleware]


class QueueOptions(TypedDict, total=False):
    """What an app says about one queue: `AsyncQ("shop", queues={"mail": {"retry": ...}})`.

    Attributes:
        retry: The policies of tasks that come out of this queue and have none of their own. None, or an empty list:
            there is no retry, whatever the app's default says.
        breaker: When this queue's slots pause. None: never, whatever the app's default says.
    """

    retry: RetryPolicy | Sequence[RetryPolicy] | None
    breaker: CircuitBreaker | None


class SendOptions(TypedDict, total=False):
    """The keywords of `task.options(...)`, for one send.

    Attributes:
        delay: Run no earlier than so long from now, in seconds or as a `timedelta`.
        eta: Run no earlier than this moment: an aware `datetime`.
        expires: Do not begin to run after this: seconds or a `timedelta` from the send, or an aware `datetime`.
        queue: Another queue than the task's own.
        task_id: The id to use, in place of a new one. At most 128 characters.
        headers: Headers of your own; names that begin with `asyncq-` and `x-` are not yours.
        reply: Whether a result comes back.
        timeout: How long `call` waits for the result, in seconds or as a `timedelta`.
        time_limit: How long one attempt may take, in place of what its declaration says.
        soft_time_limit: When `SoftTimeLimit` is raised inside an attempt, in place of what its declaration says.
        deadline: By when the work must be done: seconds or a `timedelta` from the send, or an aware `datetime`. No
            attempt begins after it, one that runs is stopped at it, and tasks that the task sends inherit it. None:
            a task that another one sends inherits none.
        on_failure: What is sent when this task has finally failed, in place of what its declaration says: a task that
            takes a `FailedTask`, or a signature. None: nothing.
        keep: What the result store keeps, in place of what the task's declaration says: "result", "errors", "nothing".
        result_ttl: For how long after the task's end, in seconds or as a `timedelta`.
    """

    delay: float | timedelta
    eta: datetime
    expires: float | timedelta | datetime
    queue: str
    task_id: str
    headers: Mapping[str, str | int | float | bool]
    reply: bool
    timeout: float | timedelta
    time_limit: float | timedelta
    soft_time_limit: float | timedelta
    deadline: float | timedelta | datetime | None
    on_failure: CallsBack | None
    keep: Keep
    result_ttl: float | timedelta


def retry_defaults_of(retry: Any, queues: Any) -> RetryDefaults:
    """Return the checked defaults of an app.

    Args:
        retry: What was given as `AsyncQ(retry=...)`.
        queues: What was given as `AsyncQ(queues=...)`.

    Raises:
        InvalidOption: A value cannot be used; the message says what is wanted.
        InvalidQueueName: No queue can be called so.
    """
    if not isinstance(queues, Mapping):
        raise InvalidOption(f"AsyncQ(queues=...) takes options by the queue's name, not {queues!r}.")
    found = {}
    for name, options in queues.items():
        check_queue_name(name)
        where = f"AsyncQ(queues={{{name!r}: ...}})"
        if not isinstance(options, Mapping):
            raise InvalidOption(f"{where} takes the queue's options, such as {{'retry': ...}}, not {options!r}.")
        for option in options:
            if option not in QueueOptions.__annotations__:
                known = ", ".join(sorted(QueueOptions.__annotations__))
                raise InvalidOption(f"{where} has no option {option!r}. Known options: {known}.")
        if "retry" in options:
            found[name] = policies_of(options["retry"], f"{where}['retry']")
    return RetryDefaults(policies_of(retry, "AsyncQ(retry=...)"), found)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a task runs in a worker; None where the app's default holds."""

    retry: tuple[RetryPolicy, ...] | None = None
    time_limit_s: float | None = None
    on_failure: CallsBack | None = None
    soft_time_limit_s: float | None = None
    run_in: RunIn | None = None
    max_concurrency: int | None = None
    rate: Rate | None = None
    middleware: tuple[Middleware, ...] = ()


@dataclass(frozen=True, slots=True)
class Sending:
    """The checked options of one send. None means: the task's or the app's default."""

    delay_s: float | None = None
    eta_ms: int | None = None
    expires_s: float | None = None
    expires_ms: int | None = None
    queue: str | None = None
    task_id: str | None = None
    headers: Mapping[str, HeaderValue] = field(default_factory=dict)
    reply: bool | None = None
    timeout_s: float | None = None
    on_failure: Callback | None = None
    says_on_failure: bool = False
    time_limit_s: float | None = None
    soft_time_limit_s: float | None = None
    deadline_s: float | None = None
    deadline_ms: int | None = None
    says_deadline: bool = False
    keeping: Keeping = KEEP_EVERYTHING

    @classmethod
    def of(cls, options: SendOptions) -> Sending:
        """Check what the user has given.

        Raises:
            InvalidOption: A value cannot be used; the message says what is wanted.
        """
        known = SendOptions.__annotations__
        for name in options:
            if name not in known:
                raise InvalidOption(f"There is no option {name!r}. Known options: {', '.join(sorted(known))}.")
        delay, eta, timeout = options.get("delay"), options.get("eta"), options.get("timeout")
        if delay is not None and eta is not None:
            raise InvalidOption("Give either delay= or eta=, not both.")
        expires_s, expires_ms = _moment(options.get("expires"), "expires=", "a task that never expires")
        deadline_s, deadline_ms = _moment(options.get("deadline"), "deadline=", "a task without a deadline")
        time_limit_s, soft_time_limit_s = time_limits_of(options, "")
        sending = cls(
            delay_s=None if delay is None else _delay_s(delay),
            eta_ms=None if eta is None else _ms_of(eta, "eta=", round_up=True),  # nothing runs early
            expires_s=expires_s,
            expires_ms=expires_ms,
            queue=options.get("queue"),
            task_id=None if options.get("task_id") is None else checked_id(options["task_id"]),
            headers=own_headers(options.get("headers") or {}),
            reply=_reply(options.get("reply")),
            timeout_s=None if timeout is None else seconds_of(timeout, "timeout="),
            on_failure=_on_failure(options.get("on_failure")),
            says_on_failure="on_failure" in options,
            time_limit_s=time_limit_s,
            soft_time_limit_s=soft_time_limit_s,
            deadline_s=deadline_s,
            deadline_ms=deadline_ms,
            says_deadline="deadline" in options,
            keeping=keeping_of_options(options.get("keep"), options.get("result_ttl"), "options"),
        )
        is_relative = sending.delay_s is not None and (expires_s or deadline_s) is not None
        is_absolute = sending.eta_ms is not None and (expires_ms or deadline_ms) is not None
        if is_relative or is_absolute:  # a mixture is for the clock of the send
            sending.times_at(0)
        return sending

    def times_at(self, now_ms: int) -> tuple[float, int | None]:
        """Return the delay of a send at this moment, in seconds, and when its task expires, or None.

        Args:
            now_ms: In milliseconds since the epoch, as is the answer's second part.

        Raises:
            InvalidOption: The task would expire before it is due, so it would never run.
        """
        delay_s = self._delay_s(now_ms)
        expires_ms = _at(self.expires_s, self.expires_ms, now_ms)
        if self._is_over(expires_ms, now_ms + delay_s * 1000):
            said = _in_words(self.expires_s, self.expires_ms)
            raise InvalidOption(
                f"expires= ({said}) is not after {self._due_in_words()}: the task would expire before it is due, and "
                "never run."
            )
        return delay_s, expires_ms

    def deadline_at(self, now_ms: int) -> int | None:
        """Return the deadline of a send at this moment, in milliseconds since the epoch, or None.

        Raises:
            InvalidOption: It is over before the task is due, so the task would never run.
        """
        deadline_ms = _at(self.deadline_s, self.deadline_ms, now_ms)
        if self._is_over(deadline_ms, now_ms + self._delay_s(now_ms) * 1000):
            raise InvalidOption(
                f"deadline= ({_in_words(self.deadline_s, self.deadline_ms)}) is not after {self._due_in_words()}: it "
                "would be over before the task is due, so the task would never run."
            )
        return deadline_ms

    def _delay_s(self, now_ms: int) -> float:
        return (self.delay_s or 0.0) if self.eta_ms is None else max(0.0, (self.eta_ms - now_ms) / 1000)

    def _is_over(self, end_ms: int | None, due_ms: float) -> bool:
        """Tell whether an end comes before a delayed task is due. What is not delayed is sent, and not run."""
        has_delay = self.delay_s or self.eta_ms is not None
        return end_ms is not None and bool(has_delay) and end_ms <= round(due_ms)

    def _due_in_words(self) -> str:
        return f"{'delay=' if self.eta_ms is None else 'eta='} ({_in_words(self.delay_s, self.eta_ms)})"


def time_limits_of(options: Mapping[str, Any], where: str) -> tuple[float | None, float | None]:
    """Return the checked hard and soft time limit of a task or a send, in seconds; None for what was not given.

    Args:
        options: What was given.
        where: Its place, for error messages: `@task`, or nothing.

    Raises:
        InvalidOption: One cannot be used, or the soft one would never be reached.
    """
    found = []
    for name in ("time_limit", "soft_time_limit"):
        value, what = options.get(name), f"{where}({name}=...)" if where else f"{name}="
        limit_s = None if value is None else seconds_of(value, what)
        if limit_s is not None and not 0.001 <= limit_s <= LONGEST_DELAY_S:
            raise InvalidOption(f"{what} must be more than zero and at most 100 years, not {value!r}.")
        found.append(limit_s)
    hard_s, soft_s = found
    if hard_s is not None and soft_s is not None and soft_s >= hard_s:
        raise InvalidOption(
            f"{where or 'options'}(soft_time_limit=...) of {soft_s:g} s must be shorter than time_limit=, {hard_s:g} "
            "s: the task needs the time between the two to clean up."
        )
    return hard_s, soft_s


def _delay_s(delay: Any) -> float:
    delay_s = seconds_of(delay, "delay=")
    if delay_s > LONGEST_DELAY_S:
        raise InvalidOption(f"delay= must be at most 100 years, not {delay!r}.")
    return delay_s


def _at(seconds: float | None, moment_ms: int | None, now_ms: int) -> int | None:
    """Return a moment that was given as seconds from now, or as such; in milliseconds since the epoch."""
    return moment_ms if seconds is None else now_ms + max(1, round(seconds * 1000))


def _moment(given: Any, option: str, without: str) -> tuple[float | None, int | None]:
    """Return a checked moment as seconds from the send, or as milliseconds since the epoch.

    Args:
        given: What the user gave.
        option: Its name.
        without: What a send without it is, for the message.
    """
    if given is None:
        return None, None
    if isinstance(given, datetime):
        moment_ms = _ms_of(given, option, round_up=False)  # nothing begins late
        return None, min(max(1, moment_ms), LATEST_MS)
    if isinstance(given, bool) or not isinstance(given, (int, float, timedelta)):
        raise InvalidOption(
            f"{option} takes seconds or a timedelta from the send, or an aware datetime such as "
            f"datetime.now(UTC) + timedelta(hours=1), not {given!r}."
        )
    seconds = seconds_of(given, option)
    if not 0 < seconds <= LONGEST_DELAY_S:
        raise InvalidOption(
            f"{option} must be more than zero and at most 100 years, not {given!r}. For {without}, leave it out."
        )
    return seconds, None


def _ms_of(moment: Any, option: str, *, round_up: bool) -> int:
    if not isinstance(moment, datetime):
        raise InvalidOption(f"{option} takes an aware datetime, for example datetime.now(UTC), not {moment!r}.")
    if moment.tzinfo is None or moment.utcoffset() is None:
        raise InvalidOption(
            f"{option}{moment!r} has no time zone, so it is unknown which moment it means. "
            "Use datetime.now(UTC) + timedelta(...), or add tzinfo."
        )
    microseconds = (moment - _EPOCH) // timedelta(microseconds=1)
    return -(-microseconds // 1000) if round_up else microseconds // 1000


def _in_words(seconds: float | None, moment_ms: int | None) -> str:
    if moment_ms is None:
        return f"{seconds:g} s from the send"
    return (_EPOCH + timedelta(milliseconds=moment_ms)).isoformat(timespec="milliseconds")


def _on_failure(callback: Any) -> Callback | None:
    if callback is None:
        return None
    if not callable(getattr(callback, "as_callback", None)):
        raise InvalidOption(
            f"on_failure= of a send takes a task or a signature, such as notify or notify.s('ops'), not {callback!r}. "
            "A plain function cannot travel: declare it with @app.task."
        )
    made: Callback = callback.as_callback()
    return made


def checked_id(task_id: Any) -> str:
    """Return a task's id.

    Raises:
        InvalidOption: It is none.
    """
    if not isinstance(task_id, str) or not 1 <= text_size(task_id) <= 128:
        raise InvalidOption(f"A task's id (task_id) is a string of 1 to 128 bytes, not {task_id!r}.")
    return task_id


def _reply(reply: Any) -> bool | None:
    if reply is not None and not isinstance(reply, bool):
        raise InvalidOption(f"reply= takes True or False, not {reply!r}.")
    return reply
