"""The public surface is pinned: a change here is a decision, not an accident."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import BaseModel

import asyncq
from asyncq import errors

PUBLIC = [
    "Chain",
    "Chord",
    "FailedMember",
    "Group",
    "InvalidWorkflow",
    "PartialSignature",
    "Workflow",
    "chain",
    "chord",
    "group",
    "At",
    "AsyncQ",
    "AsyncQError",
    "AttemptInfo",
    "BrokerError",
    "ChordExpired",
    "ChordFailed",
    "CallNext",
    "CircuitBreaker",
    "Cron",
    "DeadLetterFilter",
    "Depends",
    "Every",
    "Exponential",
    "FailedTask",
    "Fixed",
    "Linear",
    "Middleware",
    "NoResultStore",
    "NodeStatus",
    "NotSent",
    "Outcome",
    "PartlyDone",
    "PartlySent",
    "ProcessDied",
    "Progress",
    "PublishError",
    "PublishUncertain",
    "PurgeReport",
    "Reject",
    "ReplayReport",
    "ReplyLost",
    "ResultError",
    "ResultHandle",
    "ResultTimeout",
    "Retry",
    "RetryPolicy",
    "Settings",
    "Signature",
    "Snooze",
    "SoftTimeLimit",
    "StoreUnavailable",
    "Task",
    "TaskContext",
    "TaskCancelled",
    "TaskExpired",
    "TaskFailed",
    "TaskNotFound",
    "TaskRejected",
    "TaskState",
    "TaskStatus",
    "TimeLimitExceeded",
    "Unroutable",
    "WorkflowHandle",
    "WorkflowStatus",
    "current_context",
    "gather_results",
]


def test_the_public_names_are_these_and_sorted():
    """`asyncq.__all__`, written down a second time on purpose."""
    assert asyncq.__all__ == sorted(PUBLIC)
    assert all(hasattr(asyncq, name) for name in PUBLIC)
    assert set(asyncq._HOMES) == set(PUBLIC)
    assert set(PUBLIC) <= set(dir(asyncq))
    with pytest.raises(AttributeError, match="module 'asyncq' has no attribute 'Celery'"):
        _ = asyncq.Celery


def test_every_error_is_drawn_in_the_tree_of_the_errors_module():
    """Whoever reads errors.py sees them all, and each has a docstring and the common base."""
    for name in errors.__all__:
        kind = getattr(errors, name)
        # `except Exception` in a task must let its soft limit through.
        assert issubclass(kind, errors.AsyncQError) or name == "SoftTimeLimit", name
        assert kind.__doc__, name
        assert name in (errors.__doc__ or ""), name
    classes = {name for name, value in vars(errors).items() if isinstance(value, type) and name[0] != "_"}
    assert classes - {"Any", "CancelledError", "Sequence", "datetime"} == set(errors.__all__)


def test_importing_asyncq_loads_neither_the_amqp_client_nor_the_command_line():
    """A web process that imports its tasks pays for what it uses."""
    heavy = ("aio_pika", "typer", "rich", "structlog", "fastapi", "sqlalchemy", "opentelemetry")
    code = f"import sys; from asyncq import *; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_task_is_sent_by_name_with_a_mapping_or_a_model_whatever_its_parameters_look_like():
    """Also where the one parameter is the message itself, and where parameters are positional-only."""

    class Mail(BaseModel):
        to: str

    app = asyncq.AsyncQ("shop")

    @app.task
    async def mail(message: Mail) -> None: ...

    @app.task
    async def add(a: int, /, b: int = 2) -> None: ...

    assert (
        app.signature("shop.mail", {"to": "x"}).body == app.signature("shop.mail", Mail(to="x")).body == b'{"to":"x"}'
    )
    assert app.signature("shop.add", {"a": 1}).body == b'{"a":1}'
    unknown = app.signature("billing.charge", Mail(to="x"))
    assert (unknown.body, unknown.queue) == (b'{"to":"x"}', "billing")
