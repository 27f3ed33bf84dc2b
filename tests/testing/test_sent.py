"""What was sent: task, arguments, queue, delay, how often; and messages that can be read."""

from datetime import UTC, datetime, timedelta

import pytest
from pydantic import BaseModel, field_validator

from asyncq import AsyncQ, current_context
from asyncq.broker import Exchange, Publication
from asyncq.message import Message
from asyncq.testing.harness import running
from asyncq.testing.sent import Sent


class Order(BaseModel):
    """An order."""

    number: int
    due: datetime


ORDER = Order(number=7, due=datetime(2030, 1, 1, tzinfo=UTC))


@pytest.fixture
def app():
    return AsyncQ("shop")


@pytest.fixture
def tasks(app):
    """Tasks with all kinds of parameters."""

    class Tasks:
        @staticmethod
        @app.task(queue="mail")
        async def mail(to: str, subject: str = "Hello", *, copies: int = 1) -> None: ...

        @staticmethod
        @app.task
        async def place(order: Order) -> None: ...

        @staticmethod
        @app.task
        async def add(a: int, b: int = 2, /, c: int = 3) -> None: ...

        @staticmethod
        @app.task(pass_context=True)
        async def with_context(ctx, day: datetime) -> None: ...

        @staticmethod
        @app.task
        async def parent() -> None:
            await Tasks.mail.options(queue="shop", reply=False).send("child")

    return Tasks


async def test_arguments_are_as_the_task_gets_them(app, tasks):
    """With their types and defaults, in the order of the parameters; the context is none of them."""
    async with running(app) as harness:
        await tasks.mail.send("ann", copies=2)
        await tasks.place.send(ORDER)
        await tasks.add.send(1)
        await tasks.with_context.send(ORDER.due)
        assert [list(item.arguments.items()) for item in harness.sent] == [
            [("to", "ann"), ("subject", "Hello"), ("copies", 2)],
            [("order", ORDER)],
            [("a", 1), ("b", 2), ("c", 3)],
            [("day", ORDER.due)],
        ]


async def test_arguments_are_the_same_when_a_fault_stands_before_the_task(app, tasks):
    """The parameters are the declared ones."""
    async with running(app) as harness:
        harness.faults.fail(tasks.mail)
        harness.faults.fail(tasks.with_context)
        await tasks.mail.send("ann")
        await tasks.with_context.send(ORDER.due)
        harness.sent.once(tasks.mail, arguments={"to": "ann", "subject": "Hello", "copies": 1})
        harness.sent.once(tasks.with_context, arguments={"day": ORDER.due})


async def test_particulars_of_a_send(app, tasks):
    """Queue, delay, id, reply, headers, parent."""
    async with running(app) as harness:
        handle = await tasks.mail.options(delay=60, headers={"tenant": "a"}).send("ann")
        parent = await tasks.parent.send()
        await harness.run_until_idle()
        first, second, child = harness.sent
        assert (first.task, first.queue, first.delay, first.task_id) == ("shop.mail", "mail", 60, handle.id)
        assert (first.reply, first.headers["tenant"], first.parent_id) == (True, "a", None)
        assert (second.task, second.delay) == ("shop.parent", None)
        assert (child.queue, child.reply, child.parent_id) == ("shop", False, parent.id)


async def test_retries_and_hand_backs_are_not_sent_by_anybody(app, tasks):
    """`sent` has what code has sent, once each."""
    async with running(app) as harness:
        harness.faults.fail(tasks.mail, error=OSError("away"))
        await tasks.mail.send("ann")
        await harness.run_until_idle()
        assert harness.node.count("mail.dead") == 1
        assert len(harness.sent) == 1


async def test_it_is_a_sequence(app, tasks):
    """Oldest first; `of` picks one task, `clear` begins anew."""
    async with running(app) as harness:
        sent = harness.sent
        assert not sent
        assert (repr(sent), len(sent)) == ("<nothing was sent>", 0)
        for to in ("ann", "bob", "cy"):
            await tasks.mail.send(to)
        await tasks.place.send(ORDER)
        assert len(sent) == 4
        assert sent[-1].task == "shop.place"
        assert [item.arguments["to"] for item in sent[:2]] == ["ann", "bob"]
        assert [item.arguments["to"] for item in sent.of(tasks.mail)] == ["ann", "bob", "cy"]
        assert sent.of("shop.nothing") == []
        sent.clear()
        assert list(sent) == []


async def test_questions_that_hold(app, tasks):
    """Particulars that are not named may be anything."""
    async with running(app, queues={"shop": 1}) as harness:
        sent = harness.sent
        await tasks.mail.send("ann")
        await tasks.mail.options(delay=60).send("bob")
        await tasks.mail.options(eta=harness.clock.now() + timedelta(hours=1), queue="shop").send("bob")
        assert sent.once(tasks.mail, arguments={"to": "ann"}).arguments["to"] == "ann"
        assert sent.once("shop.mail", delay=0).arguments["to"] == "ann"
        assert len(sent.times(3, tasks.mail)) == 3
        assert len(sent.times(2, tasks.mail, arguments={"to": "bob"})) == 2
        sent.once(tasks.mail, delay=60)
        sent.once(tasks.mail, delay=timedelta(hours=1), queue="shop")
        sent.never(tasks.mail, delay=61)
        sent.never(tasks.mail, arguments={"to": "cy"})
        sent.never(tasks.mail, queue="elsewhere")
        sent.never(tasks.place)
        sent.never("another.app.task", arguments={"anything": 1})


async def test_questions_that_do_not_hold_say_what_was_asked_and_what_was_sent(app, tasks):
    """In words; the whole list follows."""
    async with running(app) as harness:
        sent = harness.sent
        with pytest.raises(AssertionError) as caught:
            sent.once(tasks.mail)
        assert str(caught.value) == "shop.mail() should have been sent once, and never was; nothing was sent"

        await tasks.mail.send("ann")
        await tasks.mail.options(delay=90).send("ann", "Bye")
        listed = (
            "what was sent:\n"
            "  1. shop.mail(to='ann', subject='Hello', copies=1) to queue 'mail'\n"
            "  2. shop.mail(to='ann', subject='Bye', copies=1) to queue 'mail', in 90 s"
        )
        assert str(sent) == listed

        with pytest.raises(AssertionError) as caught:
            sent.once(tasks.mail, arguments={"to": "ann"}, queue="mail")
        assert str(caught.value) == (
            f"shop.mail(to='ann') to queue 'mail' should have been sent once, and was sent twice; {listed}"
        )
        with pytest.raises(AssertionError) as caught:
            sent.never(tasks.mail, delay=timedelta(seconds=90))
        assert str(caught.value) == f"shop.mail() in 90 s should never have been sent, and was sent once; {listed}"
        with pytest.raises(AssertionError, match="should have been sent 3 times, and was sent twice"):
            sent.times(3, tasks.mail)


async def test_a_misspelt_argument_is_no_answer(app, tasks):
    """Else `never` would hold for it, always."""
    async with running(app) as harness:
        with pytest.raises(TypeError, match=r"shop\.mail has no parameter 'too'\. It has: to, subject, copies\."):
            harness.sent.never(tasks.mail, arguments={"too": "ann"})


async def test_long_lists_and_long_values_are_cut(app, tasks):
    """A message that nobody reads helps nobody."""
    async with running(app) as harness:
        await app.send_many(tasks.mail.s("x" * 10_000) for _ in range(30))
        text = str(harness.sent)
        assert len(text.splitlines()) == 22
        assert text.endswith("and 10 more")
        assert len(text) < 10_000
        assert len(harness.sent) == 30


async def test_tasks_of_another_app_are_shown_as_json(app):
    """What is not declared here has no types."""
    async with running(app) as harness:
        await app.send("shop.unknown", {"order": 7, "tags": ["a"]})
        (item,) = harness.sent
        assert str(item) == "shop.unknown(order=7, tags=['a']) to queue 'shop'"


@pytest.mark.parametrize(("body", "arguments"), [(b"{", {"": b"{"}), (b"[1]", {"": [1]}), (b'{"to": 1}', {"to": 1})])
async def test_whatever_the_body_is_it_is_noted(app, tasks, body, arguments):
    """The worker will say what is wrong with it."""
    sent = Sent(app.tasks)
    message = Message(type="shop.mail", body=body, task_id="1", message_id="2")
    sent.add(Publication(message, Exchange("asyncq.tasks", "mail"), None))
    assert sent[0].arguments == arguments


async def test_a_task_sent_by_a_task_is_known_by_its_parent(app):
    """Also down a chain of them."""

    @app.task
    async def count_down(number: int) -> None:
        if number:
            await count_down.send(number - 1)
        assert current_context().task_id

    async with running(app) as harness:
        await count_down.send(3)
        await harness.run_until_idle()
        ids = [item.task_id for item in harness.sent]
        assert [item.parent_id for item in harness.sent] == [None, *ids[:-1]]


async def test_a_validator_that_raises_anything_does_not_fail_the_send(app):
    """With RabbitMQ nothing of the user's runs after the message was sent."""
    calls = []

    class Odd(BaseModel):
        x: int

        @field_validator("x")
        @classmethod
        def once(cls, value: int) -> int:
            calls.append(value)
            if len(calls) > 1:
                raise RuntimeError("asked twice")
            return value

    @app.task
    async def odd(item: Odd) -> None: ...

    async with running(app) as harness:
        await odd.send(Odd(x=1))
        assert harness.sent[0].arguments == {"x": 1}
