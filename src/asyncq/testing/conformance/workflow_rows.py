"""What the table of workflows is made of: rows, the tasks that they use, and a run of many rows at once.

All rows of a table share one worker and run beside each other, so a table takes little longer than its longest row.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

from pydantic import BaseModel

from asyncq.app import AsyncQ
from asyncq.broker import QueueSpec
from asyncq.context import TaskContext
from asyncq.errors import ResultError
from asyncq.failed_member import FailedMember
from asyncq.failed_task import FailedTask
from asyncq.retry import Fixed, RetryPolicy
from asyncq.signals import Reject
from asyncq.testing.conformance.bench import QUEUE, WAIT_S, Bench
from asyncq.workflow.workflow import Workflow

__all__ = ["SOON", "Fails", "Order", "Row", "Tasks", "differing"]

SOON = RetryPolicy(backoff=Fixed(0.02), jitter=False, max_attempts=3)


class Order(BaseModel):
    """A model that is handed from task to task."""

    number: int
    day: date = date(2026, 1, 1)
    price: Decimal = Decimal("1.50")


# --- tasks that compute


async def add(x: int, y: int = 1) -> int:
    """Add."""
    return x + y


def multiply(x: int, y: int) -> int:
    """Multiply, in a thread."""
    return x * y


async def negative(x: int, *, times: int = 1) -> int:
    """Change the sign."""
    return -x * times


async def total(numbers: list[int]) -> int:
    """Add all."""
    return sum(numbers)


def deep_total(values: Any) -> int:
    """Add all that there is, however deep it is nested."""
    return sum(map(deep_total, values)) if isinstance(values, list) else int(values)


async def spread(count: int) -> list[int]:
    """Count."""
    return list(range(count))


async def difference(pair: tuple[int, int]) -> int:
    """Subtract."""
    return pair[0] - pair[1]


async def echo(value: Any = "nothing") -> Any:
    """Return what was given."""
    return value


async def both(x: Any, y: Any) -> list[Any]:
    """Return both, in order."""
    return [x, y]


async def nothing() -> None:
    """Do nothing."""


async def make_order(number: int) -> Order:
    """Return a model."""
    return Order(number=number)


async def dearer(order: Order) -> Order:
    """Take a model, and return another one."""
    return order.model_copy(update={"price": order.price * 2})


def price_of(order: Order, factor: int = 1) -> Decimal:
    """Take a model and more."""
    return order.price * factor


# --- tasks that fail


async def fail(word: Any = "no") -> int:
    """Fail."""
    raise ValueError(str(word))


async def reject(word: Any = "no") -> int:
    """Reject the message."""
    raise Reject(str(word))


async def flaky(ctx: TaskContext, x: int) -> int:
    """Succeed at the third attempt."""
    if ctx.attempt < 3:
        raise ConnectionError("not yet")
    return x


async def wrong(x: Any = None) -> int:
    """Return what was not promised."""
    return f"text {x}"  # type: ignore[return-value]


async def in_words(values: list[Any]) -> list[Any]:
    """Tell which members have failed, and how."""
    read = [FailedMember.model_validate(value) if isinstance(value, dict) else value for value in values]
    return [
        f"{item.index} {item.failed} {item.error_type}" if isinstance(item, FailedMember) else item for item in read
    ]


# --- tasks that take time, and tasks that tell


async def slow(seconds: float, value: int = 0) -> int:
    """Take some time."""
    await asyncio.sleep(seconds)
    return value


async def known(ctx: TaskContext, key: str, before: Any = None) -> Any:
    """Tell what a task knows of its message."""
    return {"queue": ctx.queue, "header": ctx.message.headers.get("shop-a"), "before": before, "id": ctx.task_id}[key]


_FUNCTIONS: Sequence[Callable[..., Any]] = (
    *(add, multiply, negative, total, deep_total, spread, difference, echo, both, nothing),
    *(make_order, dearer, price_of, fail, reject, wrong, in_words, slow),
)


class Tasks:
    """The tasks of an app that the rows are made of, each under its function's name.

    Args:
        app: The app.

    Attributes:
        app: The same.
        seen: What `note` and `tell` were given, in the order in which they ran.
    """

    def __init__(self, app: AsyncQ) -> None:
        self.app = app
        self.seen: list[Any] = []

        @app.task
        async def note(word: Any) -> Any:
            self.seen.append(word)
            return word

        @app.task(pass_context=True)
        async def tell(ctx: TaskContext, failed: FailedTask) -> None:
            self.seen.append((ctx.task_id, failed))

        for function in _FUNCTIONS:
            app.task(function)
        app.task(pass_context=True)(known)
        app.task(pass_context=True, retry=SOON)(flaky)

    def __getattr__(self, name: str) -> Any:
        """Return a task."""
        return self.app.tasks[f"{self.app.name}.{name}"]


@dataclass(frozen=True, slots=True)
class Fails:
    """The error that a workflow ends with.

    Attributes:
        kind: Its class, exactly.
        text: What its text has in it.
    """

    kind: type[ResultError]
    text: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table.

    Attributes:
        name: What it shows.
        build: Makes the workflow.
        expected: Its result, or `Fails`.
    """

    name: str
    build: Callable[[Tasks], Workflow[Any]]
    expected: Any


async def differing(bench: Bench, rows: Sequence[Row]) -> list[str]:
    """Run all rows beside each other, and return what differs from what is expected, in words."""
    app = bench.app()
    tasks = Tasks(app)
    workflows = [row.build(tasks) for row in rows]
    async with bench.working(app, {QUEUE: 20, "other": 4, "inner": 4}):
        await app.broker.ensure([QueueSpec(name) for name in ("other", "inner")])  # the worker has only just begun
        found = await asyncio.gather(*(_difference(app, row, made) for row, made in zip(rows, workflows, strict=True)))
    return [difference for difference in found if difference is not None]


async def _difference(app: AsyncQ, row: Row, workflow: Workflow[Any]) -> str | None:
    try:
        handle = await app.send(workflow)
        result = await handle.result(WAIT_S)
    except Exception as error:  # noqa: BLE001 - told with its row
        expected = row.expected
        if isinstance(expected, Fails) and type(error) is expected.kind and expected.text in str(error):
            return None
        return f"{row.name}: {type(error).__name__}: {error}, and not {expected!r}"
    if result == row.expected and type(result) is type(row.expected):
        return None
    return f"{row.name}: {result!r}, and not {row.expected!r}"
