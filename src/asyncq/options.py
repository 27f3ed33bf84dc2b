"""The options of tasks and of single sends, as typed keywords and as resolved values.

What travels with a message is the producer's to say; how a task runs is the worker's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict

from asyncq.errors import InvalidOption
from asyncq.message import MAX_HEADERS_BYTES, RESERVED_HEADER_PREFIX, HeaderValue, headers_size
from asyncq.queue_names import check_queue_name
from asyncq.retry import RetryDefaults, RetryPolicy, policies_of
from asyncq.signals import seconds_of

__all__ = ["QueueOptions", "RunOptions", "SendOptions", "Sending", "TaskOptions", "retry_defaults_of"]


class TaskOptions(TypedDict, total=False):
    """The keywords of `@app.task`, beside `pass_context`.

    Attributes:
        name: The task's name on the wire. Without it: `<app>.<function>`.
        queue: The queue that the task is sent to. Without it: the app's name.
        retry: When a failed attempt is followed by another: one policy, or several, of which the first one that
            matches the error decides. None, or an empty list: a failure is final. Without it: the queue's policies,
            else the app's, else a failure is final.
        time_limit: How long one attempt may take, in seconds or as a `timedelta`.
        reply: Whether senders get a result back unless they say otherwise.
    """

    name: str
    queue: str
    retry: RetryPolicy | Sequence[RetryPolicy] | None
    time_limit: float | timedelta
    reply: bool


class QueueOptions(TypedDict, total=False):
    """What an app says about one queue: `AsyncQ("shop", queues={"mail": {"retry": ...}})`.

    Attributes:
        retry: The policies of tasks that come out of this queue and have none of their own. None, or an empty list:
            there is no retry, whatever the app's default says.
    """

    retry: RetryPolicy | Sequence[RetryPolicy] | None


class SendOptions(TypedDict, total=False):
    """The keywords of `task.options(...)`, for one send.

    Attributes:
        delay: Run no earlier than so long from now, in seconds or as a `timedelta`.
        eta: Run no earlier than this moment: an aware `datetime`.
        queue: Another queue than the task's own.
        task_id: The id to use, in place of a new one. At most 128 characters.
        headers: Headers of your own; names that begin with `asyncq-` and `x-` are not yours.
        reply: Whether a result comes back.
        timeout: How long `call` waits for the result, in seconds or as a `timedelta`.
    """

    delay: float | timedelta
    eta: datetime
    queue: str
    task_id: str
    headers: Mapping[str, str | int | float | bool]
    reply: bool
    timeout: float | timedelta


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


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a task runs in a worker; None where the app's default holds."""

    retry: tuple[RetryPolicy, ...] | None = None
    time_limit_s: float | None = None


@dataclass(frozen=True, slots=True)
class Sending:
    """The checked options of one send. None means: the task's or the app's default."""

    delay_s: float | None = None
    eta_ms: int | None = None
    queue: str | None = None
    task_id: str | None = None
    headers: Mapping[str, HeaderValue] = field(default_factory=dict)
    reply: bool | None = None
    timeout_s: float | None = None

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
        return cls(
            delay_s=None if delay is None else seconds_of(delay, "delay="),
            eta_ms=None if eta is None else _eta_ms(eta),
            queue=options.get("queue"),
            task_id=_task_id(options.get("task_id")),
            headers=_headers(options.get("headers") or {}),
            reply=_reply(options.get("reply")),
            timeout_s=None if timeout is None else seconds_of(timeout, "timeout="),
        )


def _eta_ms(eta: Any) -> int:
    if not isinstance(eta, datetime):
        raise InvalidOption(f"eta= takes an aware datetime, for example datetime.now(UTC), not {eta!r}.")
    if eta.tzinfo is None or eta.utcoffset() is None:
        raise InvalidOption(
            f"eta={eta!r} has no time zone, so it is unknown which moment it means. "
            "Use datetime.now(UTC) + timedelta(...), or add tzinfo."
        )
    since_epoch = eta - datetime(1970, 1, 1, tzinfo=UTC)
    return -(-(since_epoch // timedelta(microseconds=1)) // 1000)  # rounded up: nothing runs early


def _task_id(task_id: Any) -> str | None:
    if task_id is None:
        return None
    if not isinstance(task_id, str) or not 1 <= _size(task_id) <= 128:
        raise InvalidOption(f"task_id= takes a string of 1 to 128 bytes, not {task_id!r}.")
    return task_id


def _reply(reply: Any) -> bool | None:
    if reply is not None and not isinstance(reply, bool):
        raise InvalidOption(f"reply= takes True or False, not {reply!r}.")
    return reply


def _size(text: str) -> int:
    """Return the bytes that a text takes as UTF-8; 0 where it has none (a lone surrogate), so that it is refused."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return 0


def _headers(headers: Any) -> dict[str, HeaderValue]:
    if not isinstance(headers, Mapping):
        raise InvalidOption(f"headers= takes a mapping of names to values, not {headers!r}.")
    for name, value in headers.items():
        if not isinstance(name, str) or not 1 <= _size(name) <= 128:
            raise InvalidOption(f"A header's name must be a string of 1 to 128 bytes, not {name!r}.")
        if name.startswith((RESERVED_HEADER_PREFIX, "x-")) or name in {"CC", "BCC"}:
            raise InvalidOption(
                f"The header {name!r} belongs to asyncq or to RabbitMQ. Use a name of your own, such as 'shop-{name}'."
            )
        if not isinstance(value, (str, int, float, bool)):
            raise InvalidOption(
                f"The header {name!r} must be a string, a number or a boolean, not {type(value).__name__}."
            )
        if isinstance(value, str) and value and not _size(value):
            raise InvalidOption(f"The header {name!r} is no text that UTF-8 can express: {value!r}.")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise InvalidOption(f"The header {name!r} does not fit into 64 bits. Send it as a string.")
    size = headers_size(headers)
    if size > MAX_HEADERS_BYTES:
        raise InvalidOption(
            f"The headers take {size} bytes; RabbitMQ carries them in one frame, so asyncq allows {MAX_HEADERS_BYTES}. "
            "Put the data into the task's arguments."
        )
    return dict(headers)
