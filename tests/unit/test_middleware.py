"""What runs around an attempt: in which order, what it sees, and what becomes of one that fails or waits for ever."""

import asyncio
import contextvars
import threading
from datetime import timedelta
from functools import partial
from typing import Any, cast

import anyio
import pytest

from asyncq.app import AsyncQ
from asyncq.context import TaskContext, current_context
from asyncq.errors import InvalidOption, MiddlewareError, SoftTimeLimit
from asyncq.life import SENT_AT
from asyncq.message import ATTEMPT, DUE_AT
from asyncq.middleware import AttemptInfo, CallNext
from asyncq.outcome import Cancelled, Drained, Failed, LostLease, Outcome, Rejected, RetryLater, Snoozed, Succeeded
from asyncq.retry import Fixed, RetryPolicy
from asyncq.signals import Reject, Snooze
from asyncq.testing import process_tasks
from asyncq.worker.attempt import GRACE_S
from support import eventually
from worker_kit import Kit, make_kit

POLICY = RetryPolicy(max_attempts=3, backoff=Fixed(5), jitter=False)


async def run(kit: Kit, name: str, body: Any = None, **fields: Any) -> Outcome:
    return (await kit.execution.execute(kit.delivery(name, body, **fields))).outcome


def saying(word: str, said: list[str]) -> Any:
    async def middleware(info: AttemptInfo, call_next: CallNext) -> Outcome:
        said.append(f"{word} before")
        outcome = await call_next()
        said.append(f"{word} after {type(outcome).__name__}")
        return outcome

    return middleware


@pytest.mark.parametrize("kind", ["loop", "thread"])
async def test_the_apps_middleware_runs_outside_of_the_tasks_own(kind: str) -> None:
    """In the order in which they are given."""
    said: list[str] = []
    kit = await make_kit(middleware=[saying("first", said), saying("second", said)])

    async def on_loop() -> int:
        said.append("code")
        return 1

    def in_thread() -> int:
        said.append("code")
        assert threading.current_thread() is not threading.main_thread()
        return 1

    task = kit.task(middleware=[saying("own", said)])(on_loop if kind == "loop" else in_thread)
    assert await run(kit, task.name) == Succeeded(b"1")
    assert said == [
        "first before",
        "second before",
        "own before",
        "code",
        "own after Succeeded",
        "second after Succeeded",
        "first after Succeeded",
    ]


async def test_a_task_in_a_process_has_middleware_in_its_worker() -> None:
    """The process runs the code only."""
    said: list[str] = []
    kit = await make_kit(middleware=[saying("app", said)])
    task = kit.task(run_in="process")(process_tasks.square)
    try:
        assert await run(kit, task.name, {"x": 7}) == Succeeded(b"49")
        assert isinstance(await run(kit, task.name, {"x": "seven"}), Rejected)
    finally:
        await kit.processes.close()
    assert said == ["app before", "app after Succeeded", "app before", "app after Rejected"]
    assert kit.processes.busy == 0


async def test_a_middleware_sees_the_attempt_as_values() -> None:
    """The arguments are read on demand, as they were sent."""
    seen: list[AttemptInfo] = []

    async def look(info: AttemptInfo, call_next: CallNext) -> Outcome:
        seen.append(info)
        assert current_context().task_id == info.task_id
        return await call_next()

    kit = await make_kit(middleware=[look])

    @kit.task()
    async def work(a: int, day: str = "") -> None: ...

    now_ms = kit.clock.now_ms()
    headers = {ATTEMPT: 2, SENT_AT: now_ms - 9000, DUE_AT: now_ms - 1500, "tenant": "x"}
    await run(kit, "work", {"a": 1, "$on_failure": None}, headers=headers, deliveries=1)
    await run(kit, "work", {"a": 1})
    info, plain = seen
    assert (info.task_name, info.task_id, info.attempt, info.queue) == ("work", "task-1", 2, "work")
    assert info.headers["tenant"] == "x"
    assert info.arguments() == {"a": 1}
    assert info.is_redelivered
    assert info.waited_s == 1.5
    assert info.sent_at == kit.clock.now() - timedelta(seconds=9)
    assert not plain.is_redelivered
    assert (plain.sent_at, plain.waited_s) == (None, None)


@pytest.mark.parametrize("kind", ["loop", "thread"])
async def test_context_variables_of_a_middleware_reach_the_code_and_no_other_attempt(kind: str) -> None:
    """So a trace's current span is the code's as well."""
    word = contextvars.ContextVar("word", default="none")

    async def setting(info: AttemptInfo, call_next: CallNext) -> Outcome:
        word.set(f"{word.get()} {info.task_id}")
        return await call_next()

    kit = await make_kit(middleware=[setting])

    async def on_loop() -> str:
        return word.get()

    def in_thread() -> str:
        return word.get()

    task = kit.task()(on_loop if kind == "loop" else in_thread)
    for _ in range(2):
        assert await run(kit, task.name) == Succeeded(b'"none task-1"')
    assert word.get() == "none"


# --- what a middleware decides


async def test_what_a_middleware_raises_is_the_attempts_failure_by_the_usual_rules() -> None:
    """Policies and signals, before the code and after it; what is outside of it sees an outcome."""
    raised: list[BaseException] = []
    seen: list[Outcome] = []

    async def outer(info: AttemptInfo, call_next: CallNext) -> Outcome:
        seen.append(await call_next())
        return seen[-1]

    async def raising(info: AttemptInfo, call_next: CallNext) -> Outcome:
        if info.headers.get("late"):
            await call_next()
        raise raised[-1]

    kit = await make_kit(middleware=[outer, raising])
    ran: list[int] = []

    @kit.task(retry=POLICY)
    async def work() -> None:
        ran.append(1)

    raised.append(ValueError("no"))
    outcome = await run(kit, "work")
    assert isinstance(outcome, RetryLater)
    assert outcome.failure.type == "builtins.ValueError"
    assert isinstance(await run(kit, "work", headers={ATTEMPT: 3}), Failed)
    assert ran == []
    assert isinstance(await run(kit, "work", headers={"late": True}), RetryLater)
    assert ran == [1]
    raised.append(Snooze(7))
    assert await run(kit, "work") == Snoozed(7)
    raised.append(Reject("not today"))
    rejected = await run(kit, "work")
    assert isinstance(rejected, Rejected)
    assert seen[-1] == rejected
    raised.append(SystemExit(3))
    assert isinstance(await run(kit, "work"), Failed)


async def test_a_middleware_can_decide_without_the_code_and_the_room_is_given_back() -> None:
    """Threads and `max_concurrency` are free for others."""

    async def cached(info: AttemptInfo, call_next: CallNext) -> Outcome:
        return Succeeded(b'"from the cache"')

    kit = await make_kit(places=1)

    @kit.task(middleware=[cached], max_concurrency=1)
    def work() -> str:
        raise AssertionError("must not run")

    for _ in range(3):
        assert await run(kit, "work") == Succeeded(b'"from the cache"')
    await eventually(lambda: kit.threads.busy == 0)


@pytest.mark.parametrize(
    ("returned", "words"),
    [(Succeeded(cast("bytes", {"a": 1})), "result of type dict, not bytes"), (LostLease(), "LostLease")],
)
async def test_an_outcome_that_cannot_be_settled_is_the_middlewares_failure(returned: Outcome, words: str) -> None:
    """A message that nobody settles would block its slot."""

    async def sloppy(info: AttemptInfo, call_next: CallNext) -> Outcome:
        return returned

    kit = await make_kit()

    @kit.task(middleware=[sloppy])
    async def work() -> None: ...

    outcome = await run(kit, "work")
    assert isinstance(outcome, Failed)
    assert outcome.failure.type == "asyncq.errors.MiddlewareError"
    assert words in outcome.failure.message
    assert "sloppy" in outcome.failure.message


@pytest.mark.parametrize(
    ("how", "words"), [("nothing", "has returned None"), ("twice", "has called call_next() twice")]
)
async def test_a_middleware_that_breaks_the_rules_is_named_in_the_failure(how: str, words: str) -> None:
    """With what to write instead."""

    async def sloppy(info: AttemptInfo, call_next: CallNext) -> Any:
        await call_next()
        if how == "twice":
            await call_next()

    kit = await make_kit()
    ran: list[int] = []

    @kit.task(middleware=[sloppy])
    async def work() -> None:
        ran.append(1)

    outcome = await run(kit, "work")
    assert isinstance(outcome, Failed)
    assert outcome.failure.type == "asyncq.errors.MiddlewareError"
    assert words in outcome.failure.message
    assert "sloppy" in outcome.failure.message
    assert ran == [1]


@pytest.mark.parametrize(
    "function", ["text", print, lambda info, call_next: None, dict, saying], ids=["text", "def", "lambda", "class", "1"]
)
def test_what_can_be_no_middleware_is_refused_at_once(function: Any) -> None:
    """With the form that one has."""
    with pytest.raises(InvalidOption, match=r"async def name\(info: AttemptInfo, call_next: CallNext\)"):
        AsyncQ("shop", middleware=[function])
    app = AsyncQ("shop")
    with pytest.raises(InvalidOption, match=r"@task\(middleware=...\)"):
        app.task(name="shop.work", middleware=[function])(lambda: None)
    with pytest.raises(InvalidOption, match=r"takes a list"):
        AsyncQ("shop", middleware=saying)  # type: ignore[arg-type]


async def test_an_object_and_a_partial_function_can_be_middleware() -> None:
    """So they can have settings of their own."""

    class Counting:
        count = 0

        async def __call__(self, info: AttemptInfo, call_next: CallNext) -> Outcome:
            self.count += 1
            return await call_next()

    async def naming(said: list[str], info: AttemptInfo, call_next: CallNext) -> Outcome:
        said.append(info.task_name)
        return await call_next()

    counting, said = Counting(), []
    kit = await make_kit(middleware=AsyncQ("shop", middleware=[counting, partial(naming, said)]).middlewares)

    @kit.task()
    async def work() -> None: ...

    assert await run(kit, "work") == Succeeded(b"null")
    assert (counting.count, said) == (1, ["work"])


def test_the_decorator_adds_to_what_the_app_was_given() -> None:
    """And leaves the function as it is."""
    first = saying("first", [])
    app = AsyncQ("shop", middleware=[first])

    @app.middleware
    async def second(info: AttemptInfo, call_next: CallNext) -> Outcome:
        return await call_next()

    assert app.middlewares == [first, second]


# --- limits and ends


@pytest.mark.parametrize("kind", ["loop", "thread"])
@pytest.mark.parametrize("part", ["before", "after"])
async def test_the_time_limit_ends_a_middleware_that_waits_for_ever(part: str, kind: str) -> None:
    """Work that was done by then counts."""

    async def waiting(info: AttemptInfo, call_next: CallNext) -> Outcome:
        outcome = await call_next() if part == "after" else None
        waits.set()
        await asyncio.get_running_loop().create_future()
        return outcome or await call_next()

    waits = asyncio.Event()
    kit = await make_kit(time_limit_s=30, places=1, middleware=[waiting])

    async def on_loop() -> int:
        return 1

    def in_thread() -> int:
        return 1

    task = kit.task()(on_loop if kind == "loop" else in_thread)
    running = asyncio.create_task(kit.execution.execute(kit.delivery(task.name)))
    await asyncio.wait_for(waits.wait(), 5)
    await kit.clock.advance(30)
    executed = await asyncio.wait_for(running, 5)
    if part == "after":
        assert executed.outcome == Succeeded(b"1")
    else:
        assert isinstance(executed.outcome, Failed)
        assert "longer than its time limit of 30 s" in executed.outcome.failure.message
    assert not executed.hold
    await eventually(lambda: kit.threads.busy == 0)
    assert len(kit.attempts) == 0


@pytest.mark.parametrize(("why", "ending"), [("cancel", Cancelled()), ("drain", Drained())])
async def test_a_middleware_hears_that_the_code_was_interrupted(why: Any, ending: Outcome) -> None:
    """As an outcome, so that it can finish what it has begun."""
    said: list[str] = []
    kit = await make_kit(middleware=[saying("app", said)])
    began = asyncio.Event()

    @kit.task()
    async def work() -> None:
        began.set()
        await asyncio.get_running_loop().create_future()

    running = asyncio.create_task(kit.execution.execute(kit.delivery("work")))
    await asyncio.wait_for(began.wait(), 5)
    for attempt in kit.attempts:
        attempt.interrupt(why)
    assert (await asyncio.wait_for(running, 5)).outcome == ending
    assert said == ["app before", f"app after {type(ending).__name__}"]


async def test_a_middleware_of_a_thread_that_is_given_up_hears_of_it_when_the_thread_returns() -> None:
    """The slot is free when the thread is, and no middleware can keep it longer."""
    said: list[str] = []
    kit = await make_kit(time_limit_s=30, middleware=[saying("app", said)])
    began, go_on = threading.Event(), threading.Event()

    @kit.task()
    def work() -> int:
        began.set()
        go_on.wait(30)
        return 1

    running = asyncio.create_task(kit.execution.execute(kit.delivery("work")))
    await eventually(began.is_set)
    await kit.clock.advance(30)
    await kit.clock.advance(GRACE_S)
    executed = await asyncio.wait_for(running, 5)
    assert isinstance(executed.outcome, Failed)
    assert executed.holding is not None
    assert said == ["app before"]
    go_on.set()
    await asyncio.wait_for(executed.holding.returned(), 5)
    await eventually(lambda: said == ["app before", "app after Failed"])
    assert kit.attempts.overdue == 0


@pytest.mark.parametrize("how", ["asyncio", "anyio"])
async def test_a_timeout_of_a_middleware_ends_no_thread_and_frees_no_place(how: str) -> None:
    """A thread cannot be stopped: it is told, and what it returns counts, for the work was done."""

    async def impatient(info: AttemptInfo, call_next: CallNext) -> Outcome:
        if how == "asyncio":
            async with asyncio.timeout(0.01):
                return await call_next()
        with anyio.move_on_after(0.01):
            return await call_next()

    kit = await make_kit(places=2, middleware=[impatient])
    told, go_on = threading.Event(), threading.Event()

    @kit.task(max_concurrency=1, pass_context=True)
    def work(ctx: TaskContext) -> int:
        while not ctx.cancelled and not go_on.wait(0.01):
            pass
        told.set()
        go_on.wait(30)
        return 1

    running = asyncio.create_task(kit.execution.execute(kit.delivery("work")))
    try:
        await eventually(told.is_set)
        await asyncio.sleep(0)
        assert not running.done()
        assert kit.threads.busy == 1
        assert len(kit.attempts) == 1
    finally:
        go_on.set()
    assert (await asyncio.wait_for(running, 5)).outcome == Succeeded(b"1")
    await eventually(lambda: kit.threads.busy == 0)


async def test_a_timeout_of_a_middleware_stops_a_process() -> None:
    """It sees that it shall stop; one that does not is killed."""

    async def impatient(info: AttemptInfo, call_next: CallNext) -> Outcome:
        async with asyncio.timeout(0.01):
            return await call_next()

    kit = await make_kit(middleware=[impatient])
    task = kit.task(run_in="process")(process_tasks.until_cancelled)
    try:
        assert await asyncio.wait_for(run(kit, task.name), 30) == Succeeded(b'"saw it"')
    finally:
        await kit.processes.close()


async def test_a_thread_that_was_given_up_keeps_its_slot_whatever_its_middleware_does() -> None:
    """Its own timeout comes after the time limit."""

    async def patient(info: AttemptInfo, call_next: CallNext) -> Outcome:
        async with asyncio.timeout(None) as timeout:
            timeouts.append(timeout)
            return await call_next()

    timeouts: list[asyncio.Timeout] = []
    kit = await make_kit(time_limit_s=30, middleware=[patient])
    began, go_on = threading.Event(), threading.Event()

    @kit.task()
    def work() -> int:
        began.set()
        go_on.wait(30)
        return 1

    running = asyncio.create_task(kit.execution.execute(kit.delivery("work")))
    await eventually(began.is_set)
    await kit.clock.advance(30)
    await kit.clock.advance(GRACE_S)
    executed = await asyncio.wait_for(running, 5)
    assert executed.holding is not None
    timeouts[0].reschedule(asyncio.get_running_loop().time())
    await eventually(timeouts[0].expired)
    for _ in range(10):
        await asyncio.sleep(0)
    assert not executed.holding.finished
    assert kit.attempts.overdue == 1
    go_on.set()
    await asyncio.wait_for(executed.holding.returned(), 5)
    await eventually(lambda: kit.attempts.overdue == 0)


@pytest.mark.parametrize("part", ["before", "after"])
async def test_a_cancellation_reaches_the_middleware_of_a_thread_that_waits(part: str) -> None:
    """What has not begun does not begin any more; what was done stands."""

    async def waiting(info: AttemptInfo, call_next: CallNext) -> Outcome:
        outcome = await call_next() if part == "after" else None
        waits.set()
        await asyncio.get_running_loop().create_future()
        return outcome or await call_next()

    waits, ran = asyncio.Event(), []
    kit = await make_kit(middleware=[waiting])

    @kit.task()
    def work() -> int:
        ran.append(1)
        return 1

    running = asyncio.create_task(kit.execution.execute(kit.delivery("work")))
    await asyncio.wait_for(waits.wait(), 5)
    for attempt in kit.attempts:
        attempt.interrupt("cancel")
    executed = await asyncio.wait_for(running, 5)
    assert executed.outcome == (Succeeded(b"1") if part == "after" else Cancelled())
    assert ran == ([1] if part == "after" else [])
    await eventually(lambda: kit.threads.busy == 0)


async def test_a_middleware_that_has_ended_can_begin_nothing() -> None:
    """The room of the attempt has gone to others by then."""
    late: list[asyncio.Task[Outcome]] = []

    async def hasty(info: AttemptInfo, call_next: CallNext) -> Outcome:
        async def later() -> Outcome:
            return await call_next()

        late.append(asyncio.create_task(later()))
        return Succeeded(b"1")

    kit = await make_kit(places=1, middleware=[hasty])

    @kit.task(max_concurrency=1)
    def work() -> None:
        raise AssertionError("must not run")

    assert await run(kit, "work") == Succeeded(b"1")
    with pytest.raises(MiddlewareError, match="hasty"):
        await late[0]
    await eventually(lambda: kit.threads.busy == 0)


async def test_the_soft_limit_is_raised_in_the_code_and_not_in_its_middleware() -> None:
    """Also where the middleware goes on after it."""
    kit = await make_kit(time_limit_s=60)
    waits = asyncio.Event()

    async def slow(info: AttemptInfo, call_next: CallNext) -> Outcome:
        outcome = await call_next()
        waits.set()
        await after.wait()
        return outcome

    after = asyncio.Event()

    @kit.task(middleware=[slow], soft_time_limit_s=10)
    async def quick() -> str:
        return "done"

    @kit.task(middleware=[slow], soft_time_limit_s=10, pass_context=True)
    async def long(ctx: TaskContext) -> str:
        began.set()
        try:
            await asyncio.get_running_loop().create_future()
        except SoftTimeLimit:
            return "soft"
        return "never"

    began = asyncio.Event()
    running = asyncio.create_task(kit.execution.execute(kit.delivery("quick")))
    await asyncio.wait_for(waits.wait(), 5)
    await kit.clock.advance(20)
    after.set()
    assert (await asyncio.wait_for(running, 5)).outcome == Succeeded(b'"done"')
    running = asyncio.create_task(kit.execution.execute(kit.delivery("long")))
    await asyncio.wait_for(began.wait(), 5)
    await kit.clock.advance(10)
    assert (await asyncio.wait_for(running, 5)).outcome == Succeeded(b'"soft"')
