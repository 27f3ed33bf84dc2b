"""The options of tasks and of single sends, as typed keywords and as resolved values.

What travels with a message is the producer's to say; how a task runs is the worker's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypedDict

from asyncq.breaker import CircuitBreaker
from asyncq.callback import Callback, CallsBack
from asyncq.errors import InvalidOption
from asyncq.headers import own_headers, text_size
from asyncq.keeping import KEEP_EVERYTHING, Keep, Keeping, keeping_of_options
from asyncq.message import LATEST_MS, HeaderValue
from asyncq.queue_names import check_queue_name
from asyncq.rate import Rate
from asyncq.retry import RetryDefaults, RetryPolicy, policies_of
from asyncq.signals import seconds_of
from asyncq.stages import LONGEST_DELAY_S

if TYPE_CHECKING:  # its model is made when it is first needed
    from asyncq.failed_task import FailedTask

__all__ = ["QueueOptions", "RunOptions", "SendOptions", "Sending", "TaskOptions", "checked_id", "retry_defaults_of"]


class TaskOptions(TypedDict, total=False):
    """The keywords of `@app.task`, beside `pass_context`.

    Attributes:
        name: The task's name on the wire. Without it: `<app>.<function>`.
        queue: The queue that the task is sent to. Without it: the app's name.
        retry: When a failed attempt is followed by another: one policy, or several, of which the first one that
            matches the error decides. None, or an empty list: a failure is final. Without it: the queue's policies,
            else the app's, else a failure is final.
        time_limit: How long one attempt may take, in seconds or as a `timedelta`.
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
    """

    name: str
    queue: str
    retry: RetryPolicy | Sequence[RetryPolicy] | None
    time_limit: float | timedelta
    rate: str
    reply: bool
    on_failure: CallsBack | Callable[[FailedTask], object] | None
    keep: Keep
    result_ttl: float | timedelta


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
    rate: Rate | None = None


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
        expires_s, expires_ms = _expires(options.get("expires"))
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
            keeping=keeping_of_options(options.get("keep"), options.get("result_ttl"), "options"),
        )
        is_relative = sending.expires_s is not None and sending.delay_s is not None
        is_absolute = sending.expires_ms is not None and sending.eta_ms is not None
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
        delay_s = self.delay_s or 0.0
        if self.eta_ms is not None:
            delay_s = max(0.0, (self.eta_ms - now_ms) / 1000)
        expires_ms = self.expires_ms
        if self.expires_s is not None:
            expires_ms = now_ms + max(1, round(self.expires_s * 1000))
        if expires_ms is not None and delay_s > 0 and expires_ms <= now_ms + round(delay_s * 1000):
            due = "delay=" if self.eta_ms is None else "eta="
            raise InvalidOption(
                f"expires= ({_in_words(self.expires_s, self.expires_ms)}) is not after {due} "
                f"({_in_words(self.delay_s, self.eta_ms)}): the task would expire before it is due, and never run."
            )
        return delay_s, expires_ms


def _delay_s(delay: Any) -> float:
    delay_s = seconds_of(delay, "delay=")
    if delay_s > LONGEST_DELAY_S:
        raise InvalidOption(f"delay= must be at most 100 years, not {delay!r}.")
    return delay_s


def _expires(expires: Any) -> tuple[float | None, int | None]:
    """Return the checked `expires=` as seconds from the send, or as milliseconds since the epoch."""
    if expires is None:
        return None, None
    if isinstance(expires, datetime):
        expires_ms = _ms_of(expires, "expires=", round_up=False)  # nothing begins late
        return None, min(max(1, expires_ms), LATEST_MS)
    if isinstance(expires, bool) or not isinstance(expires, (int, float, timedelta)):
        raise InvalidOption(
            "expires= takes seconds or a timedelta from the send, or an aware datetime such as "
            f"datetime.now(UTC) + timedelta(hours=1), not {expires!r}."
        )
    seconds = seconds_of(expires, "expires=")
    if not 0 < seconds <= LONGEST_DELAY_S:
        raise InvalidOption(
            f"expires= must be more than zero and at most 100 years, not {expires!r}. "
            "For a task that never expires, leave it out."
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
