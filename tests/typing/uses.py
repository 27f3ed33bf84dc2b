"""Uses that must be accepted, with the types that they must have. Checked by mypy and pyright, never run."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, assert_type

from fastapi import FastAPI
from pydantic import BaseModel

from asyncq import (
    AsyncQ,
    AttemptInfo,
    CallNext,
    Chain,
    Chord,
    Depends,
    Exponential,
    FailedMember,
    FailedTask,
    Fixed,
    Group,
    Linear,
    Outcome,
    PartialSignature,
    Progress,
    ResultHandle,
    RetryPolicy,
    Signature,
    Task,
    TaskCancelled,
    TaskContext,
    TaskExpired,
    Workflow,
    chain,
    chord,
    current_context,
    group,
)
from asyncq.control_values import Answers, Drained, QueueState, WorkerPing
from asyncq.integrations.fastapi import (
    AsyncQDep,
    TaskId,
    TaskStatusOut,
    add_error_handlers,
    asyncq_lifespan,
    status_model,
    task_router,
)
from asyncq.workflow_handle import WorkflowHandle

app = AsyncQ("shop")


class Receipt(BaseModel):
    """What the mail server said."""

    message_id: str


# --- declarations: with and without parentheses, `async def` and `def`, with and without the context


@app.task
async def plain(to: str, copies: int = 1) -> Receipt:
    return Receipt(message_id=f"{to}{copies}")


@app.task
def plain_thread(to: str) -> int:
    return len(to)


@app.task()
async def with_parentheses(to: str, *, copies: int = 1) -> Receipt:
    return Receipt(message_id=f"{to}{copies}")


@app.task(
    name="shop.other",
    queue="mail",
    retry=RetryPolicy(on=(ConnectionError,), backoff=Exponential(first=1)),
    time_limit=timedelta(seconds=30),
    rate="100/m",
    reply=False,
)
def with_options(to: str) -> list[int]:
    return [len(to)]


@app.task(run_in="process", soft_time_limit=5, time_limit=timedelta(seconds=10), max_concurrency=2)
def in_a_process(to: str) -> int:
    return len(to)


def is_busy(error: BaseException) -> bool:
    return "busy" in str(error)


@app.task(
    retry=[
        RetryPolicy(on=OSError, never=(PermissionError,), when=is_busy, max_time=timedelta(hours=1)),
        RetryPolicy(never=KeyError, when=lambda error: bool(error.args), max_time=60, backoff=Linear(step=5)),
    ]
)
async def with_several_policies(to: str) -> None: ...


@app.task(retry=None)
async def without_retries(to: str) -> None: ...


AsyncQ(
    "shop", retry=RetryPolicy(), queues={"mail": {"retry": (RetryPolicy(backoff=Fixed(3)),)}, "once": {"retry": None}}
)


@app.task(pass_context=True, queue="mail")
async def with_context(ctx: TaskContext, to: str, copies: int = 1) -> Receipt:
    await ctx.progress(25, 100, label="PROCESSING", file="a.png")
    assert_type(ctx.task_id, str)
    assert_type(ctx.attempt, int)
    assert_type(ctx.deadline, datetime | None)
    assert_type(ctx.expires, datetime | None)
    assert_type(ctx.cancelled, bool)
    assert_type(ctx.soft_limit_reached, bool)
    ctx.log.info("sending", to=to, copies=copies)
    return Receipt(message_id=to)


@app.task(pass_context=True, time_limit=5)
def with_context_thread(ctx: TaskContext, to: str) -> None:
    ctx.sync.progress(1, 2, label=to)
    handle = ctx.sync.send(plain.s("x"))
    assert_type(handle.result(timeout=1), Receipt)
    assert_type(ctx.sync.call(plain_thread.s("x")), int)


@app.task(pass_context=False)
async def without_context(n: int) -> int:
    return n


@app.task
async def nothing() -> None:
    assert_type(current_context(), TaskContext)


# --- a task is a Task of what it takes and what it returns; the context is no part of it


def takes_a_task(task: Task[[str], int]) -> None:
    assert_type(task.s("x"), Signature[int])


def takes_any_task(task: Task[..., Any]) -> str:
    return task.name


takes_a_task(plain_thread)
takes_any_task(plain)
takes_any_task(with_context_thread)


# --- sending


async def sends() -> None:
    async with app:
        assert_type(await plain.send("x", 2), ResultHandle[Receipt])
        assert_type(await plain.send("x", copies=2), ResultHandle[Receipt])
        assert_type(await plain_thread.send("x"), ResultHandle[int])
        assert_type(await with_parentheses.send("x", copies=3), ResultHandle[Receipt])
        assert_type(await with_options.send("x"), ResultHandle[list[int]])
        assert_type(await with_context.send("x", 3), ResultHandle[Receipt])
        assert_type(await with_context_thread.send(to="x"), ResultHandle[None])
        assert_type(await nothing.send(), ResultHandle[None])


async def calls() -> None:
    assert_type(await plain.call("x"), Receipt)
    assert_type(await plain_thread.call("x"), int)
    assert_type(await with_context.call("x", copies=3), Receipt)
    assert_type(await without_context.call(3), int)
    await with_context_thread.call("x")
    await nothing.call()


async def options() -> None:
    later = plain.options(delay=10, queue="other", task_id="t", headers={"shop-a": 1}, reply=True)
    assert_type(await later.send("x", copies=2), ResultHandle[Receipt])
    assert_type(await later.call("x"), Receipt)
    assert_type(later.s("x"), Signature[Receipt])
    assert_type(await with_context.options(eta=datetime.now(UTC)).send("x"), ResultHandle[Receipt])
    assert_type(await plain_thread.options(delay=timedelta(1), timeout=3).call("x"), int)
    assert_type(plain.s("x").options(delay=3), Signature[Receipt])
    assert_type(plain.s("x").options(expires=0.5), Signature[Receipt])
    assert_type(plain.s("x").options(deadline=None, soft_time_limit=1, time_limit=timedelta(1)), Signature[Receipt])
    assert_type(await in_a_process.options(deadline=datetime.now(UTC)).call("x"), int)
    assert_type(await plain.options(delay=1, expires=timedelta(1)).send("x"), ResultHandle[Receipt])
    assert_type(await app.send("shop.unknown", {"to": "x"}, expires=datetime.now(UTC)), ResultHandle[Any])


async def signatures() -> None:
    assert_type(plain.s("x", 2), Signature[Receipt])
    assert_type(with_context_thread.s("x"), Signature[None])
    assert_type(await app.send_many(plain.s(to) for to in ("a", "b")), list[ResultHandle[Receipt]])
    assert_type(await app.send_many([plain_thread.s("x")]), list[ResultHandle[int]])
    mixed: list[Signature[Receipt | int]] = [plain.s("x"), plain_thread.s("x")]
    assert_type(await app.send_many(mixed), list[ResultHandle[Receipt | int]])


async def results() -> None:
    handle = await plain.send("x")
    assert_type(handle.id, str)
    assert_type(await handle.result(), Receipt)
    assert_type(await handle.result(timeout=3), Receipt)
    assert_type(await handle.result(timedelta(seconds=3)), Receipt)
    assert_type((await handle.result()).message_id, str)
    try:
        await handle.result()
    except TaskExpired as error:
        assert_type((error.expires, error.met, error.error), tuple[datetime, datetime, str | None])
    except TaskCancelled:
        assert_type(await handle.cancel(), bool)
    await app.cancel(handle.id, "another")
    await app.undo_cancel(handle.id)
    app.sync.cancel(handle.id)
    assert_type(app.sync.control.ping(host="web-1", timeout=3), Answers[WorkerPing])
    assert_type(app.sync.control.everybody.scale("mail", 20), Answers[QueueState])
    assert_type(app.sync.control.drain(wait=60).remaining, tuple[str, ...])
    assert_type(await app.control.drain(wait=60), Drained)
    assert_type(app.sync.send(plain.s("x")).cancel(), bool)
    assert_type(handle.updates(), AsyncIterator[Progress])
    async for update in handle.updates():
        assert_type(update, Progress)


@app.task
async def notify(failed: FailedTask) -> None: ...


def tell(failed: FailedTask) -> None: ...


@app.task(on_failure=tell)
async def told_by_a_function() -> None: ...


@app.task(on_failure=notify)
async def told_by_a_task() -> None: ...


@app.task(on_failure=plain.s("ops"))
async def told_by_a_signature() -> None: ...


async def callbacks(context: TaskContext) -> None:
    await plain.options(on_failure=notify).send("x")
    await plain.options(on_failure=plain.options(delay=60).s("ops")).send("x")
    await plain.options(on_failure=notify.options(queue="ops")).send("x")
    assert_type(context.failed, FailedTask | None)


async def by_name() -> None:
    assert_type(await app.send("shop.unknown", {"to": "x"}, delay=3), ResultHandle[Any])
    assert_type(await app.send(plain.s("x")), ResultHandle[Receipt])
    assert_type(await app.call(plain.s("x")), Receipt)


def blocking() -> None:
    assert_type(app.sync.send(plain.s("x")).result(timeout=3), Receipt)
    assert_type(app.sync.call(with_context.s("x")), Receipt)


# --- workflows


@app.task
async def add(x: int, y: int = 1) -> int:
    return x + y


@app.task
async def multiply(x: int, y: int) -> int:
    return x * y


@app.task
def half(x: float) -> float:
    return x / 2


@app.task(pass_context=True)
async def counted(ctx: TaskContext, x: int, *, times: int = 3) -> str:
    return ctx.task_id * x * times


@app.task
def as_text(x: object) -> str:
    return str(x)


@app.task
async def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task
async def total_of_the_good(numbers: list[int | FailedMember]) -> int:
    return sum(number for number in numbers if isinstance(number, int))


@app.task
async def many(values: Sequence[object]) -> int:
    return len(values)


async def chains() -> None:
    assert_type(add.s(1).then(half), Workflow[float])
    assert_type(add.s(1) | half, Workflow[float])
    assert_type(add.s(1) | add | counted | as_text, Workflow[str])
    assert_type(add.s(1) | multiply.partial(y=3), Workflow[int])
    assert_type(add.s(1) | nothing.si() | add.si(3), Workflow[int])
    assert_type(add.s(1) | add.options(queue="q") | half.options(delay=1).partial(), Workflow[float])
    assert_type(add.s(1) | chain(add, as_text), Workflow[Any])
    assert_type(chain(add.s(1), half), Chain[Any])
    assert_type(multiply.partial(3), PartialSignature[int])
    assert_type(add.si(3), Signature[int])
    assert_type((add.s(1) | half).options(delay=3, on_failure=notify), Workflow[float])


async def groups() -> None:
    assert_type(group(add.s(1), add.s(2)), Group[list[int]])
    assert_type(group([add.s(1)]), Group[list[int]])
    assert_type(group(add.s(x) for x in range(3)), Group[list[int]])
    assert_type(group(add.s(1)).options(delay=3), Group[list[int]])
    assert_type(group(add.s(1), add.s(1)) | total, Workflow[int])
    assert_type(group(add.s(1), as_text.s(1)) | many, Workflow[int])
    assert_type(add.s(1) | group(half, as_text), Workflow[list[Any]])
    assert_type(add.s(1) | group(half.partial(), half.partial()), Workflow[list[float]])
    assert_type(add.map([1, 2]), Group[list[int]])
    assert_type(add.options(queue="q").map([1, 2]), Group[list[int]])
    assert_type(add.starmap([(1, 2)]), Group[list[int]])
    assert_type(add.chunks([1, 2], 3), Group[list[list[int]]])
    assert_type(add.map([1]) | group(total, total) | as_text, Workflow[str])


async def chords() -> None:
    assert_type(chord([add.s(1)], total), Chord[int])
    assert_type(chord(group(add.s(1)), total, errors="stop"), Chord[int])
    assert_type(chord(add.map([1, 2]), total.partial()), Chord[int])
    assert_type(chord([add.s(1)], total_of_the_good, errors="collect"), Chord[int])
    assert_type(chord([add.s(1), as_text.s(1)], many, errors="collect"), Chord[int])
    assert_type(add.s(1) | chord(group(add, as_text), many), Workflow[int])


async def sent_workflows() -> None:
    assert_type(await (add.s(1) | half).send(), WorkflowHandle[float])
    assert_type(await (await (add.s(1) | half).send()).result(), float)
    assert_type(await (add.s(1) | half).call(), float)
    assert_type(await group(add.s(1)).call(), list[int])


def any_workflow(workflow: Workflow[object]) -> str:
    assert_type(app.workflow_from_json(workflow.to_json()), Workflow[Any])
    return f"{workflow}{workflow.draw()}"


any_workflow(add.s(1) | half)


# --- calling the function itself, as in a unit test


async def direct(context: TaskContext) -> None:
    assert_type(await plain("x", copies=2), Receipt)
    assert_type(plain_thread("x"), int)
    assert_type(with_options("x"), list[int])
    assert_type(await with_context(context, "x", 3), Receipt)
    with_context_thread(context, to="x")
    coroutine: Coroutine[Any, Any, Receipt] = plain("x")
    await coroutine


# --- FastAPI


@asynccontextmanager
async def own_lifespan(api: FastAPI) -> AsyncGenerator[dict[str, str], None]:
    yield {"title": api.title}


api = FastAPI(lifespan=asyncq_lifespan(app, then=own_lifespan))
api.include_router(task_router(prefix="/work", tracebacks=True))
add_error_handlers(api)


@api.get("/receipts/{task_id}", response_model=status_model(plain))
async def look(task_id: TaskId, opened: AsyncQDep) -> TaskStatusOut[Receipt]:
    assert_type(task_id, str)
    assert_type(opened, AsyncQ)
    shown = TaskStatusOut[Receipt].of(await plain.handle(task_id).status())
    assert_type(shown.result, Receipt | None)
    assert_type(status_model(plain), type[TaskStatusOut[Receipt]])
    return shown


# --- middleware, lifespan, dependencies


class Pool:
    """What the lifespan opens."""

    async def fetch(self, query: str) -> list[str]:
        return [query]


class Resources(BaseModel, arbitrary_types_allowed=True):
    """What tasks find in their context."""

    pool: Pool


@app.middleware
async def timed(info: AttemptInfo, call_next: CallNext) -> Outcome:
    assert_type(info.task_id, str)
    assert_type(info.waited_s, float | None)
    return await call_next()


@app.lifespan
async def lifespan(app: AsyncQ) -> AsyncIterator[Resources]:
    yield Resources(pool=Pool())


@asynccontextmanager
async def other_lifespan(app: AsyncQ) -> AsyncGenerator[Resources]:
    yield Resources(pool=Pool())


extended = AsyncQ("extended", middleware=[timed], lifespan=lifespan)
AsyncQ("extended", lifespan=other_lifespan)


@extended.task(pass_context=True, middleware=[timed])
async def with_resources(ctx: TaskContext[Resources], query: str) -> list[str]:
    assert_type(ctx.resources, Resources)
    return await ctx.resources.pool.fetch(query)


@extended.task(pass_context=True)
def with_any_resources(ctx: TaskContext, query: str) -> int:
    assert_type(ctx.resources, Any)
    return len(query)


async def get_pool() -> Pool:
    context: TaskContext[Resources] = current_context()
    return context.resources.pool


PoolDep = Annotated[Pool, Depends(get_pool)]


@extended.task
async def with_default(query: str, pool: Pool = Depends(get_pool)) -> list[str]:
    return await pool.fetch(query)


@extended.task(pass_context=True)
async def with_annotation(ctx: TaskContext[Resources], query: str, pool: PoolDep = Depends()) -> list[str]:
    assert_type(pool, Pool)
    return await pool.fetch(query)


async def extensions(context: TaskContext[Resources]) -> None:
    assert_type(await with_resources.call("q"), list[str])
    assert_type(await with_resources(context, "q"), list[str])
    assert_type(await with_default.send("q"), ResultHandle[list[str]])
    assert_type(await with_default("q", Pool()), list[str])
    assert_type(with_annotation.s("q"), Signature[list[str]])
    assert_type(await with_annotation(context, "q", pool=Pool()), list[str])
    extended.dependency_overrides[get_pool] = Pool
