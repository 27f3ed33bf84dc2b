"""The worker's circuit breaker: a queue whose deliveries fail is paused, and loses nothing by it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, defaultdict

from asyncq.breaker import CircuitBreaker
from asyncq.context import TaskContext
from asyncq.errors import PublishUncertain, Unroutable
from asyncq.retry import Fixed, RetryPolicy
from asyncq.signals import Reject
from asyncq.testing.conformance.bench import (
    QUEUE,
    WAIT_S,
    Bench,
    behaviour,
    dead_letters,
    eventually,
)

_FEW = 5
_SLOTS = 3
LONG = CircuitBreaker(at_least=_FEW, pause=900)
"""Longer than any test: what is paused stays so."""
SHORT = CircuitBreaker(at_least=_FEW, pause=0.3)


@behaviour
async def test_a_queue_whose_deliveries_all_fail_is_paused_and_burns_no_more_attempts(bench: Bench) -> None:
    """Another queue of the worker goes on; a worker that stops in the pause hands back what it has not run."""
    app = bench.app(breaker=LONG)
    failed: list[int] = []
    done: list[tuple[int, int, object]] = []
    fault = True

    @app.task(pass_context=True)
    async def work(ctx: TaskContext, n: int) -> None:
        if fault:
            failed.append(n)
            raise ConnectionError("the service is down")
        done.append((n, ctx.attempt, ctx.message.headers.get("x-delivery-count", 0)))

    @app.task(queue="other")
    async def fine(n: int) -> int:
        return n

    async with app:
        await app.send_many(work.options(reply=False).s(n) for n in range(40))
        async with bench.working(app, {QUEUE: _SLOTS, "other": 1}) as worker:
            await eventually(lambda: worker.stats().breakers == {QUEUE: "open", "other": "closed"})
            assert [await fine.call(n) for n in range(10)] == list(range(10))
            assert _FEW <= len(failed) < _FEW + _SLOTS  # those that ran when it opened
        await eventually(lambda: worker.stats().running == 0)
        assert await bench.count(QUEUE) == 40 - len(failed)
        assert len(await dead_letters(app.broker)) == len(failed)
        fault = False
        async with bench.working(app, {QUEUE: _SLOTS}) as worker:
            await eventually(lambda: len(done) == 40 - len(failed))
            assert worker.stats().breakers == {QUEUE: "closed"}
    assert sorted(failed + [n for n, _, _ in done]) == list(range(40))
    assert {(attempt, count) for _, attempt, count in done} == {(1, 0)}


@behaviour
async def test_after_the_pause_the_queue_goes_on_and_every_message_ends_once(bench: Bench) -> None:
    """However many pauses it took: each message has its attempts in order, and only failures were counted."""
    app = bench.app(breaker=SHORT)
    attempts: defaultdict[int, list[int]] = defaultdict(list)
    done: Counter[int] = Counter()
    fault = True

    @app.task(pass_context=True, retry=RetryPolicy(backoff=Fixed(0.05), max_attempts=10_000))
    async def work(ctx: TaskContext, n: int) -> None:
        attempts[n].append(ctx.attempt)
        if fault:
            raise ConnectionError("the service is down")
        done[n] += 1

    states: set[str] = set()

    async with bench.working(app, {QUEUE: _SLOTS}) as worker:

        async def pauses_again() -> bool:
            states.add(worker.stats().breakers[QUEUE])
            return sum(map(len, attempts.values())) > _FEW + 4 * _SLOTS and "open" in states

        await app.send_many(work.options(reply=False).s(n) for n in range(12))
        await eventually(pauses_again)
        fault = False
        await eventually(lambda: len(done) == 12)
        await eventually(lambda: worker.stats().breakers == {QUEUE: "closed"})
        await eventually(lambda: worker.stats().running == 0)
    assert set(done.values()) == {1}
    assert {n: numbers for n, numbers in attempts.items() if numbers != list(range(1, len(numbers) + 1))} == {}
    assert await bench.count(QUEUE) == 0


@behaviour
async def test_a_lost_connection_does_not_end_the_pause(bench: Bench) -> None:
    """The slots consume again, and take nothing; what they had kept comes again to the next worker."""
    app = bench.app(breaker=LONG)
    runs: list[int] = []
    done: set[int] = set()
    fault = True

    @app.task
    async def work(n: int) -> None:
        if fault:
            runs.append(n)
            raise ConnectionError("the service is down")
        done.add(n)

    @app.task(queue="other")
    async def fine() -> bool:
        return True

    async def works_again() -> bool:
        try:
            return await fine.options(timeout=5).call()
        except (PublishUncertain, TimeoutError):
            return False

    async with app:
        await app.send_many(work.options(reply=False).s(n) for n in range(20))
        async with bench.working(app, {QUEUE: _SLOTS, "other": 1}) as worker:
            await eventually(lambda: worker.stats().breakers[QUEUE] == "open")
            await eventually(lambda: worker.stats().running == 0)
            assert await fine.call()
            before = len(runs)
            await bench.cut(app.broker)
            await eventually(works_again)
            await asyncio.sleep(0.5)  # in which the queue's slots would have taken what came back
            assert len(runs) == before
            assert worker.stats().breakers[QUEUE] == "open"
        fault = False
        async with bench.working(app, {QUEUE: _SLOTS}):
            await eventually(lambda: len(done) + len(set(runs)) >= 20)
    assert done | set(runs) == set(range(20))


@behaviour
async def test_a_queue_that_is_deleted_in_the_pause_is_declared_again_and_goes_on(bench: Bench) -> None:
    """At the latest when the pause is over."""
    app = bench.app(breaker=CircuitBreaker(at_least=_FEW, pause=1))
    fault = True

    done: list[int] = []

    @app.task
    async def work() -> None:
        if fault:
            raise ConnectionError("the service is down")
        done.append(1)

    async def runs_again() -> bool:
        with contextlib.suppress(Unroutable):  # it is not declared yet
            await work.options(reply=False).send()
        return len(done) > 2 * _SLOTS  # more than what the slots may have kept

    async with bench.working(app, {QUEUE: _SLOTS}) as worker:
        await app.send_many(work.options(reply=False).s() for _ in range(20))
        await eventually(lambda: worker.stats().breakers[QUEUE] == "open")
        fault = False
        await bench.delete_queue(QUEUE)
        await eventually(runs_again)
        await eventually(lambda: worker.stats().breakers[QUEUE] == "closed")


@behaviour
async def test_messages_that_are_rejected_and_results_that_do_not_fit_open_no_breaker(bench: Bench) -> None:
    """Neither a message's form nor that of a result says that the queue's work fails."""
    app, foreign = bench.app(breaker=LONG), bench.app("foreign")

    @app.task
    async def work(n: int) -> int:
        if n == 0:
            raise Reject("nothing to do")
        return "no number" if n == 1 else n  # type: ignore[return-value]

    async with bench.working(app, {QUEUE: _SLOTS}) as worker, foreign:
        for _ in range(2 * _FEW):
            await foreign.send("shop.work", {"n": "no number"}, queue=QUEUE, reply=False)
            await app.send_many(work.options(reply=False).s(n) for n in (0, 1))
        await eventually(lambda: worker.stats().outcomes == {"Rejected": 4 * _FEW, "Failed": 2 * _FEW})
        assert worker.stats().breakers == {QUEUE: "closed"}
        assert await work.options(timeout=WAIT_S).call(7) == 7
