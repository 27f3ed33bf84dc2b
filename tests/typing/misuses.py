"""Misuses that must be errors, each with its error named. Checked by mypy and pyright, never run.

Each line says which error each checker must give. A checker that gives none complains of the comment itself: mypy by
`warn_unused_ignores`, pyright by `reportUnnecessaryTypeIgnoreComment` (see pyrightconfig.json).
"""

from __future__ import annotations

from asyncq import (
    AsyncQ,
    AttemptInfo,
    CallNext,
    ResultHandle,
    RetryPolicy,
    Signature,
    Task,
    TaskContext,
    Workflow,
    chord,
    group,
)

app = AsyncQ("shop")


@app.task
async def plain(to: str, copies: int = 1) -> int:
    return len(to) * copies


@app.task(queue="mail")
def thread(to: str) -> str:
    return to


@app.task(pass_context=True)
async def with_context(ctx: TaskContext, to: str) -> int:
    return len(to) * ctx.attempt


@app.task(pass_context=True)
def with_context_thread(ctx: TaskContext, to: str) -> int:
    return len(to) * ctx.attempt


# --- wrong arguments, in every way to give them


async def wrong_arguments() -> None:
    await plain.send(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await plain.send("x", "y")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await plain.send()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await plain.send("x", 1, 2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await plain.send("x", cc="y")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await plain.call(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    plain.s(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    plain.s()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await thread.send(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await plain.options(delay=1).send(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await plain.options(delay=1).call()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    plain.options(delay=1).s(cc="y")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


# --- the context is not an argument of a send


async def context_is_not_sent(context: TaskContext) -> None:
    await with_context.send(context, "x")  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
    with_context_thread.s(context, "x")  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
    await with_context.send(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await with_context("x")  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]


# --- wrong options


async def wrong_options() -> None:
    plain.options(dealy=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    plain.options(delay="soon")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    plain.options(expires="soon")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    plain.options(deadline="soon")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    plain.options(headers={"a": None})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    plain.s("x").options(queue=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# --- wrong declarations


@app.task(rate=5)  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportArgumentType]
async def rate_is_no_text() -> None: ...


@app.task(run_in="fork")  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportArgumentType]
def runs_nowhere() -> None: ...


@app.task(retry=3)  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportArgumentType]
async def wrong_retry() -> None: ...


AsyncQ("shop", queues={"mail": {"retries": 3}})  # type: ignore[typeddict-unknown-key]  # pyright: ignore[reportArgumentType]
AsyncQ("shop", queues={"mail": {"retry": 3}})  # type: ignore[typeddict-item]  # pyright: ignore[reportArgumentType]
RetryPolicy(when=len)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
RetryPolicy(backoff=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@app.task(max_retries=3)  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportCallIssue, reportUntypedFunctionDecorator]
async def wrong_option() -> None: ...


@app.task(pass_context=True)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue, reportUntypedFunctionDecorator]
async def context_has_no_place() -> None: ...


@app.task(pass_context=True)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue, reportUntypedFunctionDecorator]
async def context_is_no_number(n: int) -> int:
    return n


def takes_a_number(number: int) -> None: ...


@app.task(on_failure=takes_a_number)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
async def wrong_callback() -> None: ...


# --- wrong uses of results


async def wrong_results() -> None:
    handle = await plain.send("x")
    text: str = await handle.result()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    other: ResultHandle[str] = handle  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    number: int = await thread.call("x")  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    await app.cancel(handle)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await handle.result(timeout="soon")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    print(text, other, number)


async def wrong_signatures() -> None:
    signature: Signature[str] = plain.s("x")  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    await app.send_many([plain("x")])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await app.send_many(plain)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    handles = await app.send_many([plain.s("x")])
    text: str = await handles[0].result()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    print(signature, text)


# --- a task is not its function


def takes_a_task(task: Task[[str], str]) -> None: ...


async def not_the_function() -> None:
    takes_a_task(plain)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    number: int = plain("x")  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    await thread("x")  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
    plain.delay("x")  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    print(number)


# --- middleware, resources


async def no_outcome(info: AttemptInfo, call_next: CallNext) -> None:
    await call_next()


AsyncQ("shop", middleware=[no_outcome])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]


async def resources_have_a_type(context: TaskContext[str]) -> None:
    context.resources.fetch()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


# --- workflows whose parts do not fit together


@app.task
async def add(x: int, y: int = 1) -> int:
    return x + y


@app.task
async def half(x: float) -> float:
    return x / 2


@app.task
async def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task
async def nothing() -> None: ...


def takes_a_workflow(workflow: Workflow[object]) -> None: ...


def wrong_chains() -> None:
    takes_a_workflow(plain.s("x") | thread)  # type: ignore[operator]  # pyright: ignore[reportOperatorIssue, reportUnknownArgumentType]
    takes_a_workflow(thread.s("x").then(add))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue, reportUnknownArgumentType]
    takes_a_workflow(half.s(1) | add)  # type: ignore[operator]  # pyright: ignore[reportOperatorIssue, reportUnknownArgumentType]
    takes_a_workflow(add.s(1) | nothing)  # type: ignore[operator]  # pyright: ignore[reportOperatorIssue, reportUnknownArgumentType]
    takes_a_workflow(add.s(1) | total)  # type: ignore[operator]  # pyright: ignore[reportOperatorIssue, reportUnknownArgumentType]
    takes_a_workflow(add.s(1) | 5)  # type: ignore[operator]  # pyright: ignore[reportOperatorIssue, reportUnknownArgumentType]
    text: Workflow[str] = add.s(1) | half  # type: ignore[operator]  # pyright: ignore[reportAssignmentType]
    add.si("a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add.map(["a"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    print(text)


def wrong_chords() -> None:
    takes_a_workflow(group(add.s(1)) | add)  # type: ignore[operator]  # pyright: ignore[reportOperatorIssue, reportUnknownArgumentType]
    takes_a_workflow(group(thread.s("x")) | total)  # type: ignore[operator]  # pyright: ignore[reportOperatorIssue, reportUnknownArgumentType]
    chord([thread.s("x")], total)  # type: ignore[misc]  # pyright: ignore[reportArgumentType, reportCallIssue]
    chord([add.s(1)], add)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    chord([add.s(1)], total, errors="collect")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    chord(add.s(1), total)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]


async def wrong_results_of_workflows() -> None:
    text: str = await (add.s(1) | half).call()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    numbers: list[str] = await group(add.s(1)).call()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    takes_a_workflow(add.partial(3))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    print(text, numbers)
