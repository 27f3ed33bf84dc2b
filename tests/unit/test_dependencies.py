"""Dependencies of an attempt: made before its code, closed after it, and no part of its message."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import pytest
from pydantic import BaseModel
from typing_extensions import TypeAliasType

from asyncq.app import AsyncQ
from asyncq.context import TaskContext, current_context
from asyncq.dependencies import Depends
from asyncq.errors import AttemptInterrupted, InvalidOption, SoftTimeLimit, TaskDefinitionError
from asyncq.message import ATTEMPT
from asyncq.middleware import AttemptInfo, CallNext
from asyncq.outcome import Cancelled, Drained, Failed, Outcome, RetryLater, Succeeded
from asyncq.retry import Fixed, RetryPolicy
from asyncq.worker.attempt import GRACE_S
from support import eventually
from worker_kit import Kit, make_kit

POLICY = RetryPolicy(on=ConnectionError, max_attempts=3, backoff=Fixed(5), jitter=False)


class Session:
    """What a task works with."""

    made = 0

    def __init__(self) -> None:
        Session.made += 1
        self.said: list[str] = []


async def run(kit: Kit, name: str, body: Any = None, **fields: Any) -> Outcome:
    return (await kit.execution.execute(kit.delivery(name, body, **fields))).outcome


def opened(said: list[str], word: str = "session") -> Any:
    """Return an async generator that says what happens to it."""

    async def dependency() -> AsyncIterator[str]:
        said.append(f"{word} opened")
        try:
            yield word
        except BaseException as error:
            await asyncio.sleep(0)  # clean-up may wait
            said.append(f"{word} saw {type(error).__name__}")
            raise
        finally:
            said.append(f"{word} closed")

    return dependency


def opened_in_thread(said: list[str], word: str = "session") -> Any:
    """The same as a `def` generator."""

    def dependency() -> Iterator[str]:
        assert threading.current_thread() is not threading.main_thread()
        said.append(f"{word} opened")
        try:
            yield word
        except BaseException as error:
            said.append(f"{word} saw {type(error).__name__}")
            raise
        finally:
            said.append(f"{word} closed")

    return dependency


# --- what is made


@pytest.mark.parametrize("kind", ["loop", "thread"])
async def test_each_attempt_gets_its_own_and_it_is_closed_after_the_code(kind: str) -> None:
    """Whether it is the default or in the annotation; the message has no part of it."""
    kit = await make_kit()
    said: list[str] = []
    session = opened(said)

    async def on_loop(to: str, a: str = Depends(session), *, b: Annotated[str, Depends(session)]) -> str:
        said.append(f"code with {a} and {b}")
        return to

    def in_thread(to: str, a: str = Depends(session), *, b: Annotated[str, Depends(session)]) -> str:
        said.append(f"code with {a} and {b}")
        return to

    task = kit.task()(on_loop if kind == "loop" else in_thread)
    assert task.arguments.encode(("ann",), {}) == b'{"to":"ann"}'
    for _ in range(2):
        assert await run(kit, task.name, {"to": "ann"}) == Succeeded(b'"ann"')
    assert said == ["session opened", "code with session and session", "session closed"] * 2


async def test_dependencies_depend_on_each_other_and_on_arguments_by_name() -> None:
    """`async def` and `def` ones; what several need is made once, unless they want one each."""
    kit = await make_kit()

    def tenant(order: int) -> str:
        return f"tenant of {order} in {threading.current_thread() is threading.main_thread()}"

    async def session(tenant: Annotated[str, Depends(tenant)], isolation: str = "none") -> Session:
        assert tenant == "tenant of 7 in False"
        return Session()

    class Repository:
        """A class is a dependency too."""

        def __init__(self, session: Annotated[Session, Depends(session)]) -> None:
            self.session = session

    @kit.task()
    async def work(
        order: int,
        one: Annotated[Repository, Depends(Repository)] = Depends(),
        same: Session = Depends(session),
        another: Session = Depends(session, use_cache=False),
    ) -> list[bool]:
        return [one.session is same, another is same]

    assert await run(kit, "work", {"order": 7}) == Succeeded(b"[true,false]")


async def test_a_dependency_takes_arguments_whatever_they_are_called_and_the_tasks_own_defaults() -> None:
    """What the message leaves out is what the code gets."""
    kit = await make_kit()

    def shown(tenant: str) -> str:
        return tenant.upper()

    @kit.task()
    async def work(stack: int, nested: bool = True, tenant: str = "north", shown: str = Depends(shown)) -> str:
        return f"{shown} {stack} {nested}"

    assert await run(kit, "work", {"stack": 1}) == Succeeded(b'"NORTH 1 True"')
    assert await run(kit, "work", {"stack": 2, "tenant": "south", "nested": False}) == Succeeded(b'"SOUTH 2 False"')

    @kit.task()
    async def cannot(stack: int, shown: str = Depends(lambda stack: stack)) -> None: ...

    with pytest.raises(TaskDefinitionError, match="needs 'stack'"):
        kit.execution.prepare([cannot])


async def test_closing_that_hangs_after_the_limit_does_not_keep_the_slot_of_a_thread() -> None:
    """The thread has returned; what was opened is closed when it can be."""
    kit = await make_kit(time_limit_s=30)
    began, go_on, closes = threading.Event(), threading.Event(), asyncio.Event()

    async def hanging() -> AsyncIterator[None]:
        try:
            yield
        finally:
            closes.set()
            await asyncio.get_running_loop().create_future()

    @kit.task()
    def work(session: None = Depends(hanging)) -> None:
        began.set()
        go_on.wait(30)

    running = asyncio.create_task(kit.execution.execute(kit.delivery("work")))
    await eventually(began.is_set)
    for attempt in kit.attempts:
        code = attempt
    await kit.clock.advance(30)
    await kit.clock.advance(GRACE_S)
    executed = await asyncio.wait_for(running, 5)
    assert isinstance(executed.outcome, Failed)
    assert executed.holding is not None
    go_on.set()
    await asyncio.wait_for(closes.wait(), 5)
    await asyncio.wait_for(executed.holding.returned(), 5)
    assert code.code is not None
    code.code.cancel()
    await asyncio.wait({code.code}, timeout=5)


async def test_a_dependency_sees_the_context_of_its_attempt() -> None:
    """Also in a thread."""
    kit = await make_kit()

    def who() -> str:
        return f"{current_context().task_name} {current_context().attempt}"

    @kit.task(pass_context=True)
    async def work(ctx: TaskContext, who: str = Depends(who)) -> str:
        return f"{ctx.task_id} {who}"

    assert await run(kit, "work", headers={ATTEMPT: 2}) == Succeeded(b'"task-1 work 2"')


async def test_a_model_that_is_the_message_stays_the_message() -> None:
    """The dependency beside it is no second argument."""
    kit = await make_kit()

    class Order(BaseModel):
        number: int

    @kit.task()
    async def work(order: Order, double: int = Depends(lambda order: order.number * 2)) -> int:
        return double

    assert await run(kit, "work", {"number": 4}) == Succeeded(b"8")


async def test_a_named_type_may_hold_the_dependency() -> None:
    """As `type SessionDep = Annotated[...]` of Python 3.12."""
    kit = await make_kit()
    named = TypeAliasType("named", Annotated[str, Depends(lambda: "made")])

    @kit.task()
    async def work(value: named = Depends()) -> str:  # type: ignore[valid-type]
        return value

    assert await run(kit, "work") == Succeeded(b'"made"')


async def test_annotations_that_are_text_are_resolved_when_the_app_opens() -> None:
    """A dependency may be declared after the task."""
    app = AsyncQ("shop")

    @app.task
    async def work(n: int, db: "Annotated[Session, Depends(make)]") -> None: ...

    assert [item.name for item in work.arguments.parameters] == ["n"] or work.arguments.dependencies == {}

    def make() -> Session:
        return Session()

    globals()["make"] = make
    try:
        work.resolve()
    finally:
        del globals()["make"]
    assert list(work.arguments.dependencies) == ["db"]
    assert work.s(1).body == b'{"n":1}'


# --- how it ends


@pytest.mark.parametrize("make", [opened, opened_in_thread])
@pytest.mark.parametrize(
    ("why", "ending", "seen"),
    [
        ("error", RetryLater, "ConnectionError"),
        ("limit", Failed, "AttemptInterrupted"),
        ("cancel", Cancelled, "AttemptInterrupted"),
        ("drain", Drained, "AttemptInterrupted"),
        ("exit", Failed, "AttemptInterrupted"),
    ],
)
async def test_a_generator_is_closed_whatever_the_end_and_sees_why(
    make: Any, why: str, ending: type[Outcome], seen: str
) -> None:
    """`async def` and `def` ones, in the reverse order."""
    kit = await make_kit(time_limit_s=30)
    said: list[str] = []
    began = asyncio.Event()

    @kit.task(retry=POLICY)
    async def work(first: str = Depends(make(said, "first")), second: str = Depends(make(said, "second"))) -> None:
        began.set()
        if why == "error":
            raise ConnectionError
        if why == "exit":
            raise SystemExit(3)
        await asyncio.get_running_loop().create_future()

    running = asyncio.create_task(kit.execution.execute(kit.delivery("work")))
    await asyncio.wait_for(began.wait(), 5)
    if why == "limit":
        await kit.clock.advance(30)
    elif why in {"cancel", "drain"}:
        for attempt in kit.attempts:
            attempt.interrupt(why)  # type: ignore[arg-type]
    assert isinstance((await asyncio.wait_for(running, 5)).outcome, ending)
    assert said == [
        "first opened",
        "second opened",
        f"second saw {seen}",
        "second closed",
        f"first saw {seen}",
        "first closed",
    ]


async def test_the_soft_limit_reaches_the_code_and_its_dependencies_are_closed() -> None:
    """A task that catches it has ended well."""
    kit = await make_kit(time_limit_s=60)
    said: list[str] = []
    began = asyncio.Event()

    @kit.task(soft_time_limit_s=10)
    async def work(session: str = Depends(opened(said))) -> str:
        began.set()
        try:
            await asyncio.get_running_loop().create_future()
        except SoftTimeLimit:
            return "in time"
        return "never"

    running = asyncio.create_task(kit.execution.execute(kit.delivery("work")))
    await asyncio.wait_for(began.wait(), 5)
    await kit.clock.advance(10)
    assert (await asyncio.wait_for(running, 5)).outcome == Succeeded(b'"in time"')
    assert said == ["session opened", "session closed"]


async def test_an_error_of_a_dependency_is_the_attempts_with_its_retry_policy() -> None:
    """What was made before it is closed, and the code does not run."""
    kit = await make_kit()
    said: list[str] = []

    async def broken() -> None:
        raise ConnectionError("no database")

    @kit.task(retry=POLICY)
    def work(session: str = Depends(opened(said)), other: None = Depends(broken)) -> None:
        said.append("must not run")

    outcome = await run(kit, "work")
    assert isinstance(outcome, RetryLater)
    assert outcome.failure.message == "no database"
    assert said == ["session opened", "session saw ConnectionError", "session closed"]
    await eventually(lambda: kit.threads.busy == 0)


async def test_an_error_while_closing_fails_an_attempt_that_had_succeeded() -> None:
    """The commit may be what failed. Where the code has raised, its own error stands."""
    kit = await make_kit()

    async def committed() -> AsyncIterator[None]:
        try:
            yield
        finally:
            raise ConnectionError("commit failed")

    @kit.task(retry=POLICY)
    async def work(session: None = Depends(committed), *, fails: bool = False) -> None:
        if fails:
            raise ValueError("the code's own")

    outcome = await run(kit, "work")
    assert isinstance(outcome, RetryLater)
    assert outcome.failure.message == "commit failed"
    failed = await run(kit, "work", {"fails": True})
    assert isinstance(failed, Failed)
    assert failed.failure.message == "the code's own"


async def test_a_dependency_that_keeps_the_error_to_itself_does_not_make_a_success_of_it() -> None:
    """A forgotten `raise` must not lose a failure."""
    kit = await make_kit()

    async def swallowing() -> AsyncIterator[None]:
        with contextlib.suppress(ConnectionError):
            yield

    @kit.task()
    async def work(session: None = Depends(swallowing)) -> None:
        raise ConnectionError

    assert isinstance(await run(kit, "work"), Failed)


async def test_the_time_limit_ends_a_dependency_that_waits_for_ever() -> None:
    """As it ends the code."""
    kit = await make_kit(time_limit_s=30)
    said: list[str] = []
    waits = asyncio.Event()

    async def waiting() -> None:
        waits.set()
        await asyncio.get_running_loop().create_future()

    @kit.task()
    async def work(session: str = Depends(opened(said)), pool: None = Depends(waiting)) -> None: ...

    running = asyncio.create_task(kit.execution.execute(kit.delivery("work")))
    await asyncio.wait_for(waits.wait(), 5)
    await kit.clock.advance(30)
    outcome = (await asyncio.wait_for(running, 5)).outcome
    assert isinstance(outcome, Failed)
    assert outcome.failure.type == "asyncq.errors.TimeLimitExceeded"
    assert said == ["session opened", f"session saw {AttemptInterrupted.__name__}", "session closed"]


async def test_middleware_runs_outside_of_the_dependencies() -> None:
    """So it sees what a commit that failed has made of the attempt."""
    said: list[str] = []

    async def outside(info: AttemptInfo, call_next: CallNext) -> Outcome:
        said.append("before")
        outcome = await call_next()
        said.append(type(outcome).__name__)
        return outcome

    kit = await make_kit(middleware=[outside])

    @kit.task()
    async def work(session: str = Depends(opened(said))) -> None: ...

    await run(kit, "work")
    assert said == ["before", "session opened", "session closed", "Succeeded"]


# --- overrides, and what is refused


async def test_a_test_lets_something_else_stand_in_for_a_dependency() -> None:
    """At once, for nested ones as well, and taken back."""

    def real() -> str:
        return "real"

    async def outer(inner: Annotated[str, Depends(real)]) -> str:
        return f"outer of {inner}"

    async def fake(n: int) -> AsyncIterator[str]:
        yield f"fake {n}"

    overrides: dict[Any, Any] = {}
    kit = await make_kit(overrides=overrides)

    @kit.task()
    async def work(n: int, plain: str = Depends(real), nested: str = Depends(outer)) -> str:
        return f"{plain}, {nested}"

    assert await run(kit, "work", {"n": 1}) == Succeeded(b'"real, outer of real"')
    overrides[real] = fake
    assert await run(kit, "work", {"n": 2}) == Succeeded(b'"fake 2, outer of fake 2"')
    overrides[outer] = lambda: "another"
    assert await run(kit, "work", {"n": 3}) == Succeeded(b'"fake 3, another"')
    overrides.clear()
    assert await run(kit, "work", {"n": 4}) == Succeeded(b'"real, outer of real"')


async def test_what_a_dependency_cannot_get_is_told_before_anything_runs() -> None:
    """With the parameter and the remedy."""
    kit = await make_kit()

    def tenant(customer: str) -> str:
        return customer

    @kit.task()
    async def work(order: int, tenant: str = Depends(tenant)) -> None: ...

    with pytest.raises(TaskDefinitionError, match=r"task 'work'.*'tenant' needs 'customer'.*no argument of that name"):
        kit.execution.prepare([work])


def test_what_cannot_be_a_dependency_is_refused() -> None:
    """At the declaration, or when the app opens."""
    app = AsyncQ("shop")
    with pytest.raises(InvalidOption, match=r"Depends\(...\) takes a function"):
        Depends("session")  # type: ignore[arg-type]
    with pytest.raises(TaskDefinitionError, match=r"parameter 'db'.*does not say what makes it"):

        @app.task
        def without(db: str = Depends()) -> None: ...


def test_a_sender_cannot_give_what_is_made_where_the_task_runs() -> None:
    """The error says so."""
    app = AsyncQ("shop")

    @app.task
    def work(n: int, db: str = Depends(lambda: "db")) -> None: ...

    with pytest.raises(TypeError, match=r"makes 'db' where it runs \(Depends\)"):
        work.s(1, db="mine")
    assert work(1, db="mine") is None


async def test_an_override_that_cannot_be_read_never_lets_the_real_one_through() -> None:
    """A test must not reach the real database, in the second attempt neither."""

    def real() -> str:
        raise AssertionError("must not be made")

    overrides: dict[Any, Any] = {real: 7}
    kit = await make_kit(overrides=overrides)

    @kit.task()
    async def work(value: str = Depends(real)) -> str:
        return value

    for _ in range(2):
        outcome = await run(kit, "work")
        assert isinstance(outcome, Failed)
        assert outcome.failure.type == "asyncq.errors.TaskDefinitionError"
        assert "dependency_overrides" in outcome.failure.message
    overrides[real] = lambda: "fake"
    assert await run(kit, "work") == Succeeded(b'"fake"')
