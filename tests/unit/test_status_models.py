"""The status of a task as a pydantic model."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from pydantic import BaseModel, TypeAdapter

from asyncq import AsyncQ, Progress
from asyncq.errors import InvalidResult
from asyncq.integrations.status_models import TaskStatusOut, status_model
from asyncq.outcome import Failure
from asyncq.status import TaskState, TaskStatus

NOW = datetime(2026, 11, 26, 14, 0, tzinfo=UTC)

app = AsyncQ("shop")


class Receipt(BaseModel):
    """What a task returns, with values that JSON has no words for."""

    total: Decimal
    seal: bytes
    rate: float


@app.task
async def pay(amount: int) -> Receipt:
    """Pay."""
    return Receipt(total=Decimal(amount), seal=b"", rate=0)


@app.task
def count(of: str) -> list[int]:
    """Count."""
    return [len(of)]


RECEIPT = Receipt(total=Decimal("0.10"), seal=b"\xff\x00", rate=float("nan"))
SUCCEEDED = TaskStatus(
    "42",
    TaskState.SUCCEEDED,
    task="shop.pay",
    queue="shop",
    attempt=2,
    worker="host-of-ours-17",
    progress=Progress(3, 4, "nearly", {"page": 3}),
    result=pay.results.encode(RECEIPT),
    queued_at=NOW,
    finished_at=NOW,
)


def test_it_says_what_the_status_says():
    """But for who has run it: that is nobody's business outside."""
    shown = json.loads(TaskStatusOut[Receipt].of(SUCCEEDED).model_dump_json(exclude_none=True))
    assert shown == {
        "id": "42",
        "state": "succeeded",
        "final": True,
        "task": "shop.pay",
        "queue": "shop",
        "attempt": 2,
        "progress": {"done": 3, "total": 4, "label": "nearly", "details": {"page": 3}},
        "result": json.loads(SUCCEEDED.result),
        "queued_at": "2026-11-26T14:00:00Z",
        "finished_at": "2026-11-26T14:00:00Z",
    }


def test_a_result_leaves_as_the_store_holds_it_and_is_its_own_type_here():
    """Bytes that are no text, and no number, would not survive pydantic's defaults."""
    shown = TaskStatusOut[Receipt].of(SUCCEEDED)
    assert (shown.result.total, shown.result.seal) == (Decimal("0.10"), b"\xff\x00")
    written = json.loads(shown.model_dump_json())["result"]
    assert written == {"total": "0.10", "seal": "_wA=", "rate": "NaN"}


def test_a_result_of_any_type_is_shown_as_it_is():
    """Where nobody says what it should be."""
    for model in (TaskStatusOut, TaskStatusOut[object]):
        assert json.loads(model.of(SUCCEEDED).model_dump_json())["result"]["total"] == "0.10"


def test_a_result_that_does_not_fit_its_type_says_so_with_the_id():
    """The type has changed since, or it is another task's."""
    with pytest.raises(InvalidResult, match="The result of task 42 does not fit"):
        TaskStatusOut[list[int]].of(SUCCEEDED)


def test_the_model_of_a_task_is_the_one_of_its_return_type():
    """So OpenAPI shows it; one class for both spellings."""
    assert status_model(pay) is TaskStatusOut[Receipt]
    assert status_model(count) is TaskStatusOut[list[int]]
    schema = TypeAdapter(status_model(pay)).json_schema(mode="serialization")
    assert {"$ref": "#/$defs/Receipt"} in schema["properties"]["result"]["anyOf"]


def test_a_return_type_that_is_declared_later_is_resolved():
    """Annotations are text in most modules today."""

    @app.task
    def later() -> Later:
        return Later()

    assert status_model(later) is TaskStatusOut[Later]


class Later(BaseModel):
    """Declared after the task that returns it, as the code stands."""


@pytest.mark.parametrize(("tracebacks", "shown"), [(False, None), (True, "line 1\nline 2")])
def test_where_an_error_was_raised_is_shown_only_where_that_is_asked_for(tracebacks, shown):
    """Type and message are always there."""
    failed = TaskStatus("42", TaskState.FAILED, error=Failure("shop.Oops", "no money", "line 1\nline 2"))
    error = TaskStatusOut.of(failed, tracebacks=tracebacks).error
    assert (error.type, error.message, error.traceback) == ("shop.Oops", "no money", shown)


def test_a_task_that_returns_none_has_succeeded_with_none():
    """And one whose result is not there yet has none either: the state tells them apart."""
    done = replace(SUCCEEDED, result=b"null")
    assert TaskStatusOut[None].of(done).result is None
    assert TaskStatusOut[None].of(replace(done, state=TaskState.STARTED, result=None)).final is False
