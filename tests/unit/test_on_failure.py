"""Error callbacks: what may be one, what it is told, and when it is sent."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel, field_validator

from asyncq import AsyncQ, FailedTask, Reject, RetryPolicy, Snooze, TaskContext, TaskExpired, TaskFailed
from asyncq.body import with_key
from asyncq.broker import Exchange, Publication, Queue
from asyncq.callback import Callback, callback_in
from asyncq.errors import (
    AccessRefused,
    DuplicateTask,
    InvalidOption,
    MalformedMessage,
    MessageTooLarge,
    NotSent,
    QueueGone,
    Refused,
    Unroutable,
)
from asyncq.failed_task import EXAMPLE
from asyncq.message import PARENT_ID, ROOT_ID, Message, derived_id, new_id
from asyncq.outcome import Expired, Failed, Failure, Rejected, RetryLater, Succeeded
from asyncq.registry import queues_of
from asyncq.retry import Fixed
from asyncq.testing.harness import running
from asyncq.worker.execution import Executed
from worker_kit import Kit, make_kit

FAILURE = Failure("builtins.ValueError", "no luck", "Traceback ...")
PAGE = {"task": "ops.page", "queue": "work", "arguments": {"who": "ops"}}


# --- what may be one


def make_app() -> tuple[AsyncQ, list[Any]]:
    """An app whose tasks fail, and what its callbacks were told."""
    app = AsyncQ("shop")
    told: list[Any] = []

    @app.task
    async def notify(failed: FailedTask) -> None:
        told.append(failed)

    @app.task(pass_context=True)
    async def page(ctx: TaskContext, who: str) -> None:
        told.append((who, ctx.failed, dict(ctx.headers)))

    return app, told


async def test_a_task_that_takes_a_failed_task_is_told_everything():
    """Which one, why, how often, with what arguments."""
    app, told = make_app()

    @app.task(on_failure=app.tasks["shop.notify"], retry=RetryPolicy(backoff=Fixed(1), max_attempts=2))
    async def charge(order: str, cents: int = 5) -> None:
        raise ConnectionError("refused")

    async with running(app) as harness:
        handle = await charge.send("A1")
        await harness.run_until_idle()
    (failed,) = told
    assert (failed.task, failed.task_id, failed.queue) == ("shop.charge", handle.id, "shop")
    assert (failed.reason, failed.attempts) == ("attempts exhausted", 2)
    assert (failed.error_type, failed.error_message) == ("builtins.ConnectionError", "refused")
    assert "raise ConnectionError" in failed.traceback
    assert failed.arguments == {"order": "A1"}
    assert failed.failed_at.tzinfo is not None


async def test_a_function_becomes_a_task_of_its_own_with_its_own_retries():
    """It runs at least once, as any task; and after a failure of its own again."""
    app = AsyncQ("shop", retry=RetryPolicy(backoff=Fixed(1)))
    told: list[str] = []

    def tell(failed: FailedTask) -> None:
        told.append(failed.error_message)
        if len(told) == 1:
            raise ConnectionError("the pager is down")

    @app.task(on_failure=tell, retry=None, queue="payments")
    async def charge() -> None:
        raise ValueError("no money")

    assert app.tasks["shop.charge.on_failure"].queue == "payments"
    async with running(app) as harness:
        await charge.send()
        await harness.run_until_idle()
    assert told == ["no money", "no money"]


async def test_a_signature_keeps_its_arguments_and_finds_the_failure_in_its_context():
    """Its task need not know that it is a callback; and its parent is the failed task."""
    app, told = make_app()

    @app.task(on_failure=app.tasks["shop.page"].s("ops"))
    async def charge(order: str) -> None:
        raise ValueError(order)

    async with running(app) as harness:
        handle = await charge.send("A1")
        await harness.run_until_idle()
    ((who, failed, headers),) = told
    assert (who, failed.task_id, failed.arguments) == ("ops", handle.id, {"order": "A1"})
    assert headers[PARENT_ID] == headers[ROOT_ID] == handle.id


async def test_the_callback_of_a_send_takes_the_place_of_the_tasks():
    """As every option of a send does."""
    app, told = make_app()
    page = app.tasks["shop.page"]

    @app.task(on_failure=page.s("declared"))
    async def charge() -> None:
        raise ValueError

    async with running(app) as harness:
        await charge.options(on_failure=page.s("sent")).send()
        await app.send("shop.charge", on_failure=page.s("by name"))
        await charge.send()
        await harness.run_until_idle()
    assert sorted(who for who, _, _ in told) == ["by name", "declared", "sent"]


async def test_a_callback_may_wait_go_elsewhere_and_have_headers_and_a_callback_of_its_own():
    """What it cannot have is refused where it is given."""
    app, told = make_app()
    page, notify = app.tasks["shop.page"], app.tasks["shop.notify"]
    escalate = page.options(queue="pager", delay=60, headers={"shop-level": 2}, on_failure=notify).s("boss")

    @app.task
    async def charge() -> None:
        raise ValueError

    @app.task
    async def broken(who: str) -> None:
        raise LookupError(who)

    async with running(app, queues={"shop": 2, "pager": 1}) as harness:
        began = harness.clock.now()
        await charge.options(on_failure=escalate).send()
        await harness.settle()
        assert told == []
        await harness.run_until_idle()
        assert harness.clock.now() - began >= timedelta(seconds=60)
        ((who, _, headers),) = told
        assert (who, headers["shop-level"]) == ("boss", 2)
        await charge.options(on_failure=broken.options(on_failure=notify).s("x")).send()
        await harness.run_until_idle()
    assert told[1].task == "shop.broken"
    for options in ({"eta": datetime.now(UTC)}, {"task_id": "x"}, {"timeout": 1}, {"expires": 5}, {"reply": True}):
        (name,) = options
        with pytest.raises(InvalidOption, match=f"a callback has no {name}="):
            charge.options(on_failure=page.options(**options).s("x"))


async def test_what_takes_other_arguments_than_a_failed_task_is_refused_with_the_remedy():
    """At the send, or when the app opens; not in a worker, at night."""
    app, _ = make_app()
    with pytest.raises(InvalidOption, match=r"must take a FailedTask.*page\.s\(\.\.\.\).*current_context\(\)\.failed"):
        app.tasks["shop.page"].options(on_failure=app.tasks["shop.page"])

    def two(failed: FailedTask, more: int) -> None: ...

    @app.task(on_failure=two)
    async def charge() -> None: ...

    with pytest.raises(InvalidOption, match=r"its only parameter must take a FailedTask"):
        await app.__aenter__()


@pytest.mark.parametrize("given", [3, "shop.page", lambda failed: None, [1]])
def test_what_cannot_travel_is_no_callback_of_a_send(given):
    """The message says what can."""
    app, _ = make_app()
    with pytest.raises(InvalidOption, match=r"takes a task or a signature"):
        app.tasks["shop.page"].options(on_failure=given)


def test_a_task_takes_a_function_as_its_callback_and_nothing_else():
    """And two of one name are refused as ever."""
    app, _ = make_app()
    with pytest.raises(InvalidOption, match=r"a task, a signature or a function"):

        @app.task(on_failure=3)
        async def charge() -> None: ...

    def first(failed: FailedTask) -> None: ...

    def second(failed: FailedTask) -> None: ...

    @app.task(name="x", on_failure=first)
    async def one() -> None: ...

    with pytest.raises(DuplicateTask, match=r"x\.on_failure"):

        @app.task(name="x", on_failure=second)
        async def other() -> None: ...


async def test_a_users_own_model_with_the_fields_that_it_wants_will_do():
    """In an app that is written without asyncq's class."""
    app = AsyncQ("shop")
    told: list[str] = []

    class Alarm(BaseModel, extra="ignore"):
        task: str
        error_message: str

    @app.task
    async def alarm(it: Alarm) -> None:
        told.append(f"{it.task}: {it.error_message}")

    @app.task(on_failure=alarm)
    async def charge() -> None:
        raise ValueError("x")

    async with running(app) as harness:
        await charge.send()
        await harness.run_until_idle()
    assert told == ["shop.charge: x"]


async def test_a_task_that_is_no_callback_has_no_failed_task():
    """Also where its arguments look alike."""
    app, _ = make_app()
    seen: list[Any] = []

    @app.task(pass_context=True)
    async def plain(ctx: TaskContext, failed: int) -> None:
        seen.append(ctx.failed)

    async with running(app):
        await plain.call(1)
    assert seen == [None]


# --- when it is sent


async def settle(kit: Kit, outcome: Any, *, attempt: int = 2, body: Any = None, **fields: Any) -> str | None:
    delivery = kit.delivery(
        "work", {"x": 1, "$on_failure": PAGE} if body is None else body, reply_to="caller", **fields
    )
    await kit.settlement.settle(Executed(delivery, attempt, outcome))
    return delivery.settled


def calls(kit: Kit) -> list[Publication]:
    """What was sent as a callback."""
    return [item for item in kit.broker.published if isinstance(item.to, Exchange)]


@pytest.mark.parametrize(
    ("outcome", "is_sent"),
    [
        (Failed(FAILURE, "no retry policy"), True),
        (Rejected(FAILURE, "invalid arguments"), True),
        (Expired(1, 2, FAILURE, 1), True),
        (Expired(1, 2), False),
        (RetryLater(FAILURE, 5, None), False),
        (Succeeded(b"1"), False),
    ],
)
async def test_it_is_sent_when_no_other_attempt_follows_a_failure(outcome, is_sent):
    """After the dead letter and the reply, before the ack."""
    kit = await make_kit()
    assert await settle(kit, outcome) == "acked"
    assert len(calls(kit)) == is_sent
    if is_sent:
        assert kit.broker.log[0] == "dead letter"
        assert kit.broker.log[1].startswith("reply")
        assert kit.broker.log[2:] == ["publish", "ack"]


async def test_it_has_the_same_id_each_time_the_failure_is_settled():
    """A crash before the ack makes a second message and no second task."""
    kit = await make_kit()
    for _ in range(2):
        await settle(kit, Failed(FAILURE, "x"), task_id="task-7")
    first, second = [item.message for item in calls(kit)]
    assert first.task_id == second.task_id == derived_id("task-7", "$on_failure") != derived_id("task-8", "$on_failure")
    assert first.message_id != second.message_id


async def test_a_rejected_task_calls_back_too():
    """Whatever ends it without success."""
    app, told = make_app()

    @app.task(on_failure=app.tasks["shop.notify"])
    async def charge() -> None:
        raise Reject("not ours")

    async with running(app) as harness:
        with pytest.raises(TaskFailed):
            await charge.call()
        await harness.run_until_idle()
    assert [failed.reason for failed in told] == ["not ours"]


async def test_a_message_whose_arguments_are_bad_calls_back_with_what_it_held():
    """Its producer asked for that."""
    kit = await make_kit()
    await settle(kit, Rejected(FAILURE, "invalid arguments"), body={"x": "no number", "$on_failure": PAGE})
    (call,) = calls(kit)
    assert json.loads(call.message.body)["$failed"]["arguments"] == {"x": "no number"}


@pytest.mark.parametrize("body", [b'no JSON $on_failure"', b'["$on_failure"]', b'{"x": "$on_failure"}'])
async def test_a_body_that_only_mentions_it_calls_nobody(body):
    """And ends as it would without."""
    kit = await make_kit()
    assert await settle(kit, Failed(FAILURE, "x"), body=body) == "acked"
    assert calls(kit) == []


@pytest.mark.parametrize(
    "callback",
    [
        3,
        [],
        {},
        {"task": "", "queue": "work"},
        {"task": "x" * 256, "queue": "work"},
        {"task": "x"},
        {"task": "x", "queue": "no such name!"},
        {"task": "x", "queue": "work", "arguments": [1]},
        {"task": "x", "queue": "work", "delay": -1},
        {"task": "x", "queue": "work", "delay": "soon"},
        {"task": "x", "queue": "work", "headers": {"asyncq-attempt": 7}},
        {"task": "x", "queue": "work", "headers": 7},
        {"task": "x", "queue": "work", "on_failure": {"task": "y"}},
    ],
    ids=repr,
)
async def test_a_foreign_callback_that_is_none_keeps_no_task_from_its_end(callback, caplog):
    """The log says what is wrong with it; the dead letter is there."""
    kit = await make_kit()
    assert await settle(kit, Failed(FAILURE, "x"), body={"$on_failure": callback}) == "acked"
    assert kit.broker.log == ["dead letter", "reply failed", "ack"]
    assert "callback of a failed task was not sent" in caplog.text
    with pytest.raises(MalformedMessage):
        callback_in(json.dumps({"$on_failure": callback}).encode())


def test_callbacks_of_callbacks_end_somewhere():
    """A foreign client may have nested them a thousand times; the error says what is wrong."""
    nested: dict[str, Any] = {"task": "x", "queue": "work"}
    for _ in range(50):
        nested = {"task": "x", "queue": "work", "on_failure": nested}
    with pytest.raises(MalformedMessage, match="nested too deep"):
        callback_in(json.dumps({"$on_failure": nested}).encode())


async def test_a_chain_of_callbacks_that_is_too_long_is_refused_where_it_is_made():
    """Not dropped by a worker."""
    app, _ = make_app()
    page = app.tasks["shop.page"]
    chain = page.s("0")
    for number in range(1, 5):
        chain = page.options(on_failure=chain).s(str(number))
    longest = page.options(on_failure=chain)
    with pytest.raises(InvalidOption, match="5 deep"):
        longest.s("5").as_callback()


@pytest.mark.parametrize("whose", ["each other's", "its own"])
async def test_tasks_that_call_each_other_back_come_to_an_end(whose, caplog):
    """Each failure would be a new task, for ever."""
    app = AsyncQ("shop", breaker=None)
    runs: list[str] = []

    @app.task(on_failure=app.signature("shop.second" if whose == "each other's" else "shop.first", {}))
    async def first() -> None:
        runs.append("first")
        raise ValueError

    @app.task(on_failure=first.s())
    async def second() -> None:
        runs.append("second")
        raise ValueError

    async with running(app) as harness:
        await first.send()
        await harness.run_until_idle()
    assert len(runs) == 6
    assert "Callbacks of callbacks go 5 deep" in caplog.text


async def test_none_switches_the_tasks_own_callback_off_for_a_send():
    """As None does for other options of a task."""
    app, told = make_app()

    @app.task(on_failure=app.tasks["shop.notify"])
    async def charge() -> None:
        raise ValueError

    async with running(app) as harness:
        await charge.options(on_failure=None).send()
        await harness.run_until_idle()
        assert told == []
        await charge.options(delay=1).send()
        await harness.run_until_idle()
    assert len(told) == 1


async def test_a_foreign_callback_that_is_none_leaves_the_declared_one():
    """The task's own still wants to know."""
    app, told = make_app()

    @app.task(on_failure=app.tasks["shop.notify"])
    async def charge() -> None:
        raise ValueError

    async with running(app) as harness:
        message = Message(type="shop.charge", body=b'{"$on_failure": 3}', task_id="t", message_id=new_id())
        await app.broker.publish(message, Queue("shop"), timeout_s=5)
        await harness.run_until_idle()
    assert [failed.task_id for failed in told] == ["t"]


async def test_a_callbacks_queue_is_declared_with_those_of_the_tasks():
    """Nested ones too; that of another app is for that app to declare."""
    app, _ = make_app()
    page = app.tasks["shop.page"]
    foreign = app.signature("billing.page", {})

    @app.task(on_failure=page.options(queue="pager", on_failure=page.options(queue="boss").s("x")).s("y"))
    async def charge() -> None: ...

    @app.task(on_failure=foreign)
    async def ship() -> None: ...

    assert queues_of(app.tasks) == ["boss", "pager", "shop"]


async def test_a_users_model_may_have_typed_arguments_and_a_validator_that_breaks_is_told():
    """The example has no arguments to show; and no bare error comes out of opening the app."""
    app = AsyncQ("shop")

    class Arguments(BaseModel):
        order: str

    class Alarm(BaseModel, extra="ignore"):
        task: str
        arguments: Arguments

    @app.task
    async def alarm(it: Alarm) -> None: ...

    assert alarm.as_callback().task == "shop.alarm"

    class Broken(BaseModel, extra="ignore"):
        task: str

        @field_validator("task")
        @classmethod
        def look_up(cls, task: str) -> str:
            raise KeyError(task)

    @app.task
    async def broken(it: Broken) -> None: ...

    with pytest.raises(InvalidOption, match="KeyError"):
        broken.as_callback()


def test_a_newer_worker_may_tell_more():
    """During a rolling deploy, an older one must not refuse the message."""
    app, _ = make_app()
    body = json.dumps({**EXAMPLE, "mood": "bad"}).encode()
    _, values = app.tasks["shop.notify"].arguments.decode(body)
    assert values["failed"].task == EXAMPLE["task"]


# --- when it cannot be sent


@pytest.fixture
async def parts(monkeypatch) -> Kit:
    """A worker's parts, with short pauses between the repeats of a publish."""
    monkeypatch.setattr("asyncq.worker.publishing._FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr("asyncq.worker.publishing._LONGEST_PAUSE_S", 0.002)
    return await make_kit()


async def test_arguments_that_are_too_large_to_be_sent_on_stay_behind(parts):
    """The callback comes all the same; the arguments are in the dead letter."""
    parts.broker.fail("publish", MessageTooLarge("too large"))
    assert await settle(parts, Failed(FAILURE, "x")) == "acked"
    (call,) = calls(parts)
    assert json.loads(call.message.body)["$failed"]["arguments"] is None


async def test_a_queue_that_is_not_there_yet_is_declared(parts):
    """The callback waits in it for the first worker."""
    body = {"$on_failure": {**PAGE, "queue": "ops"}}
    assert await settle(parts, Failed(FAILURE, "x"), body=body) == "acked"
    assert parts.broker.declared == ["ops"]
    assert parts.node.count("ops") == 1


@pytest.mark.parametrize("error", [Unroutable("nowhere"), Refused("full")])
async def test_a_callback_that_is_refused_again_and_again_is_given_up_and_said(parts, error, caplog):
    """It must not keep the failed task in its slot for ever."""
    parts.broker.fail("publish", *[error] * 20)
    assert await settle(parts, Failed(FAILURE, "x")) == "acked"
    assert calls(parts) == []
    assert "callback of a failed task was not sent" in caplog.text


async def test_a_callback_that_is_too_large_by_itself_is_given_up_and_said(parts, caplog):
    """There is nothing left to leave behind."""
    parts.broker.fail("publish", MessageTooLarge("1"), MessageTooLarge("2"))
    assert await settle(parts, Failed(FAILURE, "x")) == "acked"
    assert "callback of a failed task was not sent" in caplog.text


@pytest.mark.parametrize("root", ["r" * 100_000, 7, "", {"a": 1}], ids=["long", "number", "empty", "table"])
async def test_a_foreign_root_id_that_can_be_none_is_not_handed_on(root):
    """Beside the callback's own headers it would not fit one frame, and RabbitMQ would end the connection."""
    kit = await make_kit()
    body = {"$on_failure": {**PAGE, "headers": {"a": "x" * 60_000}}}
    assert await settle(kit, Failed(FAILURE, "x"), body=body, headers={ROOT_ID: root}) == "acked"
    (call,) = calls(kit)
    assert call.message.headers[ROOT_ID] == "task-1"


async def test_headers_that_would_not_fit_one_frame_are_not_sent(caplog):
    """The user's 64 KB and asyncq's own are too many."""
    kit = await make_kit()
    body = {"$on_failure": {**PAGE, "headers": {"a": "x" * 65_500}}}
    assert await settle(kit, Failed(FAILURE, "x"), body=body) == "acked"
    assert calls(kit) == []
    assert "callback of a failed task was not sent" in caplog.text


@pytest.mark.parametrize("cause", [QueueGone("no ladder"), AccessRefused("may not declare")])
async def test_a_delay_whose_ladder_cannot_be_had_gives_the_callback_up(parts, cause, caplog):
    """It would be tried for ever, and the failed task would run again after each restart."""
    errors = []
    for _ in range(20):
        error = NotSent("no delayed message was sent")
        error.__cause__ = cause
        errors.append(error)
    parts.broker.fail("publish", *errors)
    assert await settle(parts, Failed(FAILURE, "x"), body={"$on_failure": {**PAGE, "delay": 5}}) == "acked"
    assert "callback of a failed task was not sent" in caplog.text


async def test_arguments_that_would_be_nested_too_deep_stay_behind():
    """The failed task is one level around them; what could not be read must not be sent."""
    kit = await make_kit()
    nested: Any = 1
    for _ in range(198):
        nested = [nested]
    assert await settle(kit, Failed(FAILURE, "x"), body={"a": nested, "$on_failure": PAGE}) == "acked"
    (call,) = calls(kit)
    assert json.loads(call.message.body)["$failed"]["arguments"] is None


async def test_a_reason_that_utf_8_cannot_express_makes_one_dead_letter_and_one_callback():
    """Not a second of each, with an error of ours."""
    app, told = make_app()

    @app.task(on_failure=app.tasks["shop.notify"])
    async def charge() -> None:
        raise Reject("a\ud800")

    async with running(app) as harness:
        await charge.send()
        await harness.run_until_idle()
        assert harness.node.count("shop.dead") == 1
    assert [failed.reason for failed in told] == ["a?"]


async def test_a_failure_that_a_snooze_carries_past_the_expiry_is_told():
    """Whoever sees the expiry first: the snooze, or a worker later."""
    app, told = make_app()

    @app.task(pass_context=True, retry=RetryPolicy(backoff=Fixed(1), jitter=False), on_failure=app.tasks["shop.notify"])
    async def charge(ctx: TaskContext) -> None:
        if ctx.attempt == 1:
            raise ConnectionError("refused")
        raise Snooze(3600)

    async with running(app) as harness:
        with pytest.raises(TaskExpired, match="refused"), harness.clock.jumping():
            await charge.options(expires=60).call()
        await harness.run_until_idle()
        (letter,) = [letter async for letter in app.dead_letters("shop").browse()]
    assert letter.record is not None
    assert (letter.record.reason, letter.record.attempts, len(letter.record.history)) == ("expired", 1, 1)
    assert [(failed.reason, failed.attempts) for failed in told] == [("expired", 1)]


# --- the wire


@pytest.mark.parametrize("body", [b"{}", b" { } ", b'{"a":1.10}', b'{"a":{"b":"}"}}'])
def test_a_key_is_added_and_the_rest_stays_byte_by_byte(body):
    """1.10 is not 1.1 to everybody."""
    longer = with_key(body, "$k", b'{"x":1}')
    assert json.loads(longer) == {**json.loads(body), "$k": {"x": 1}}
    assert body.strip()[1:-1].strip() in longer


def test_a_callback_comes_back_from_the_wire_as_it_was():
    """With all that it may have."""
    inner = Callback("shop.notify", "shop")
    callback = Callback("shop.page", "ops", b'{"who":"x"}', {"shop-a": 1}, 2.5, inner)
    assert callback_in(with_key(b"{}", "$on_failure", callback.to_json())) == (True, callback)
