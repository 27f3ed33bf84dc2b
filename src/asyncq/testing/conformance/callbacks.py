"""Error callbacks: what is sent when a task has finally failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asyncq.app import AsyncQ
from asyncq.context import TaskContext
from asyncq.failed_task import FailedTask
from asyncq.message import derived_id
from asyncq.retry import Fixed, RetryPolicy
from asyncq.testing.conformance.bench import QUEUE, Bench, behaviour, dead_letter, eventually, take

SOON = RetryPolicy(backoff=Fixed(0.02), jitter=False, max_attempts=2)


def _app_that_is_told(bench: Bench) -> tuple[AsyncQ, list[Any]]:
    app = bench.app(poison_after=1)
    told: list[Any] = []

    @app.task(pass_context=True)
    async def notify(ctx: TaskContext, failed: FailedTask) -> None:
        told.append((ctx.task_id, failed))

    @app.task(pass_context=True)
    async def page(ctx: TaskContext, who: str) -> None:
        told.append((ctx.task_id, who, ctx.failed))

    return app, told


@behaviour
async def test_a_task_that_has_finally_failed_calls_back_once_and_tells_everything(bench: Bench) -> None:
    """Not after each attempt. The callback's id follows from the failed task's."""
    app, told = _app_that_is_told(bench)

    @app.task(retry=SOON, on_failure=app.tasks["shop.notify"])
    async def charge(order: str) -> None:
        raise ConnectionError(f"{order} refused")

    async with bench.working(app):
        handle = await charge.send("A1")
        await eventually(lambda: told)
        letter = await dead_letter(app.broker)
    ((task_id, failed),) = told
    assert task_id == derived_id(handle.id, "$on_failure")
    assert (failed.task, failed.task_id, failed.attempts) == ("shop.charge", handle.id, 2)
    assert (failed.error_message, failed.arguments) == ("A1 refused", {"order": "A1"})
    assert letter.record is not None
    assert (letter.record.reason, letter.record.queue) == (failed.reason, failed.queue)


@behaviour
async def test_a_signature_calls_back_from_another_queue_after_its_delay(bench: Bench) -> None:
    """Its task's arguments are its own; the failure is in the context. The queue need not be there before."""
    app, told = _app_that_is_told(bench)
    page = app.tasks["shop.page"].options(queue="pager", delay=0.3)

    @app.task
    async def charge() -> None:
        raise ValueError("no money")

    async with bench.working(app):
        handle = await charge.options(on_failure=page.s("ops"), reply=False).send()
        async with bench.open() as broker:
            await eventually(lambda: _is_declared(broker.dead_letters("pager").browse))
    async with bench.working(app, {"pager": 1}):
        await eventually(lambda: told)
    ((task_id, who, failed),) = told
    assert (task_id, who) == (derived_id(handle.id, "$on_failure"), "ops")
    assert (failed.task_id, failed.error_message) == (handle.id, "no money")


async def _is_declared(browse: Callable[[], Any]) -> bool:
    try:
        return [letter async for letter in browse()] == []
    except Exception:  # noqa: BLE001 - not yet
        return False


@behaviour
async def test_what_may_kill_workers_calls_back_before_anybody_runs_it_again(bench: Bench) -> None:
    """A delivery that ended with its process has come back once, and here that is too often."""
    app, told = _app_that_is_told(bench)

    @app.task(on_failure=app.tasks["shop.notify"])
    async def crash() -> None:
        raise AssertionError("must not run")

    async with app:
        await crash.send()
        async with app.broker.consume(QUEUE, slots=1) as subscription:
            await take(subscription, 1)
    async with bench.working(app):
        await eventually(lambda: told)
    ((_, failed),) = told
    assert failed.reason == "delivered too often"


@behaviour
async def test_arguments_that_do_not_fit_call_back_as_their_sender_has_asked(bench: Bench) -> None:
    """The callback travels with the message: its worker need not know it."""
    producer = bench.app()
    app, told = _app_that_is_told(bench)

    @app.task
    async def charge(cents: int) -> None:
        raise AssertionError("must not run")

    async with bench.working(app), producer:
        page = producer.signature("shop.page", {"who": "ops"})
        await producer.send("shop.charge", {"cents": "many"}, on_failure=page)
        await eventually(lambda: told)
    ((_, who, failed),) = told
    assert (who, failed.reason, failed.arguments) == ("ops", "invalid arguments", {"cents": "many"})
