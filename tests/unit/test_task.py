"""A declared task: what it knows of its function, and what it sends."""

# ruff: noqa: D101 - sample classes speak by name

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

import pytest
from pydantic import BaseModel, ValidationError

from asyncq.context import TaskContext
from asyncq.errors import InvalidOption, TaskDefinitionError
from asyncq.options import RunOptions, Sending
from asyncq.registry import TaskRegistry
from asyncq.results import ResultHandle
from asyncq.retry import RetryPolicy
from asyncq.signature import Signature

R = TypeVar("R")


@dataclass
class Outbox:
    """Keeps what was sent; a call is answered with the next of the given replies."""

    sent: list[Signature[Any]] = field(default_factory=list)
    replies: list[bytes] = field(default_factory=list)

    async def send_signature(self, signature: Signature[R]) -> ResultHandle[R]:
        self.sent.append(signature)
        return ResultHandle("id-1", None, signature.decode)

    async def call_signature(self, signature: Signature[R]) -> R:
        self.sent.append(signature)
        return signature.decode(self.replies.pop(0))


class Receipt(BaseModel):
    message_id: str


@pytest.fixture
def outbox() -> Outbox:
    return Outbox()


@pytest.fixture
def app(outbox: Outbox) -> TaskRegistry:
    return TaskRegistry("shop", [], outbox)


async def test_send_hands_a_checked_signature_to_the_sender(app: TaskRegistry, outbox: Outbox):
    """It holds name, body, queue and whether a result is wanted."""

    @app.task(queue="mail", reply=False)
    async def send_email(to: str, copies: int = 1) -> Receipt: ...

    handle = await send_email.send("x", copies=2)
    (signature,) = outbox.sent
    assert handle.id == "id-1"
    assert (signature.name, signature.queue, signature.reply) == ("shop.send_email", "mail", False)
    assert signature.body == b'{"to":"x","copies":2}'
    assert signature.sending == Sending()


async def test_call_returns_the_result_as_its_declared_type(app: TaskRegistry, outbox: Outbox):
    """The reply is read as the return type."""

    @app.task
    async def send_email(to: str) -> Receipt: ...

    outbox.replies = [b'{"message_id":"m"}', b'{"message_id":"n"}']
    assert await send_email.call("x") == Receipt(message_id="m")
    assert await send_email.options(timeout=3).call("x") == Receipt(message_id="n")
    assert outbox.sent[1].sending.timeout_s == 3


async def test_wrong_arguments_never_reach_the_sender(app: TaskRegistry, outbox: Outbox):
    """They fail where they are given, in all three ways to give them."""

    @app.task
    async def send_email(to: str) -> None: ...

    with pytest.raises(ValidationError):
        await send_email.send(1)  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        send_email.s(1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"shop\.send_email\(\) missing 1 required argument: 'to'"):
        await send_email.options(delay=1).send()  # type: ignore[call-arg]
    assert outbox.sent == []


async def test_a_parameter_may_be_called_self(app: TaskRegistry, outbox: Outbox):
    """Also where it is given by name, and together with the context."""

    @app.task
    async def work(self: int, cls: int) -> None: ...

    @app.task(pass_context=True)
    def work_in_context(ctx: TaskContext, self: int) -> int:
        return self

    await work.send(self=1, cls=2)
    await work.options(delay=1).send(self=1, cls=2)
    context: Any = object()
    assert [item.body for item in outbox.sent] == [b'{"self":1,"cls":2}'] * 2
    assert work_in_context.s(self=3).body == b'{"self":3}'
    assert work_in_context(context, self=3) == 3


async def test_options_travel_with_one_send_only(app: TaskRegistry, outbox: Outbox):
    """The task itself stays as it is."""

    @app.task
    async def send_email(to: str) -> None: ...

    later = send_email.options(delay=10, queue="other", task_id="t", headers={"shop-a": "b"}, reply=False)
    await later.send("x")
    await later.send("y")
    await send_email.send("z")
    expected = Sending(delay_s=10, queue="other", task_id="t", headers={"shop-a": "b"}, reply=False)
    assert [item.sending for item in outbox.sent] == [expected, expected, Sending()]


def test_wrong_options_are_refused_at_once(app: TaskRegistry):
    """Before anything is bound or sent."""

    @app.task
    async def send_email(to: str) -> None: ...

    with pytest.raises(InvalidOption, match="not both"):
        send_email.options(delay=1, eta=datetime.now(UTC))
    with pytest.raises(InvalidOption, match="no option 'dealy'"):
        send_email.options(dealy=1)  # type: ignore[call-arg]


def test_a_signature_can_be_given_options_later(app: TaskRegistry):
    """A signature is a value."""

    @app.task
    async def send_email(to: str) -> None: ...

    signature = send_email.s("x")
    assert signature.options(delay=3).sending.delay_s == 3
    assert signature.sending.delay_s is None
    assert send_email.options(delay=3).s("x") == signature.options(delay=3)


async def test_calling_a_task_runs_its_function_here(app: TaskRegistry, outbox: Outbox):
    """So unit tests need no broker, and one task can use another's code."""

    @app.task
    async def double(n: int) -> int:
        return 2 * n

    @app.task()
    def triple(n: int) -> int:
        return 3 * n

    @app.task(pass_context=True)
    async def attempt(ctx: TaskContext, n: int) -> int:
        return ctx.attempt * n

    context: Any = type("Fake", (), {"attempt": 5})()
    assert await double(2) == 4
    assert triple(n=2) == 6
    assert await attempt(context, 2) == 10
    assert outbox.sent == []


def test_a_task_looks_like_its_function(app: TaskRegistry):
    """For help(), doctest and people."""

    @app.task
    async def send_email(to: str, copies: int = 1) -> None:
        """Send a mail."""

    assert send_email.__name__ == "send_email"
    assert send_email.__qualname__.endswith("<locals>.send_email")
    assert send_email.__module__ == __name__
    assert inspect.getdoc(send_email) == "Send a mail."
    assert list(inspect.signature(send_email).parameters) == ["to", "copies"]
    assert repr(send_email) == "Task('shop.send_email')"
    assert inspect.unwrap(send_email) is send_email.function


def test_a_task_knows_how_it_runs(app: TaskRegistry):
    """What the worker needs of the declaration."""
    policy = RetryPolicy(max_attempts=2)

    @app.task(retry=policy, time_limit=30, pass_context=True)
    def work(ctx: TaskContext) -> None: ...

    @app.task
    async def plain() -> None: ...

    assert (work.is_async, work.pass_context, work.run) == (False, True, RunOptions((policy,), 30.0))
    assert (plain.is_async, plain.pass_context, plain.run) == (True, False, RunOptions())


def test_results_are_checked_by_the_return_annotation(app: TaskRegistry):
    """The awaited value of an `async def`, the returned one of a `def`."""

    @app.task
    async def a() -> Receipt: ...

    @app.task
    def b(): ...

    assert a.results.encode(Receipt(message_id="x")) == b'{"message_id":"x"}'
    assert b.results.encode([1, None]) == b"[1,null]"


def test_a_decorated_function_is_read_through_its_wrapper(app: TaskRegistry):
    """functools.wraps leads to the annotations of the function inside."""
    import functools

    def logged(function: Any) -> Any:
        @functools.wraps(function)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            return await function(*args, **kwargs)

        return wrapper

    @app.task
    @logged
    async def send_email(to: str) -> Receipt: ...

    assert send_email.s("x").body == b'{"to":"x"}'
    with pytest.raises(ValidationError):
        send_email.s(1)
    assert send_email.results.decode(b'{"message_id":"x"}') == Receipt(message_id="x")


def test_an_object_with_an_async_call_is_an_async_task(app: TaskRegistry):
    """It needs a name, because it has none of its own."""

    class Mailer:
        async def __call__(self, to: str) -> int: ...

    task = app.task(name="shop.mailer")(Mailer())
    assert task.is_async
    assert task.s(to="x").body == b'{"to":"x"}'
    with pytest.raises(TaskDefinitionError, match="no name"):
        app.task(Mailer())


def generator():
    yield 1


async def async_generator():
    yield 1


class Mailer:
    def send(self, to: str) -> None: ...

    @classmethod
    def make(cls, to: str) -> None: ...


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (generator, "generator"),
        (async_generator, "generator"),
        (Mailer.send, "method of Mailer"),
        (Mailer, "no function"),
        (print, r"parameter '\*args' cannot travel"),
        (5, "no function"),
    ],
)
def test_what_is_no_plain_function_is_refused(app: TaskRegistry, thing: Any, message: str):
    """The message says what to do."""
    with pytest.raises(TaskDefinitionError, match=message):
        app.task(name="shop.thing")(thing)


def test_a_task_is_not_declared_twice_over(app: TaskRegistry):
    """Two decorators on one function are a mistake."""

    @app.task
    def a() -> None: ...

    with pytest.raises(TaskDefinitionError, match="is a task already"):
        app.task(name="shop.b")(a)
