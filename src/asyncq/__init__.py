"""asyncq: RabbitMQ-native async task workers for Python.

Example:
    >>> app = AsyncQ("shop")
    >>> @app.task
    ... async def add(a: int, b: int) -> int:
    ...     return a + b

    Inside `async with app:`, `await add.call(1, 2)` returns 3 as soon as a worker has done it.

A name is imported when it is first used: pytest loads asyncq's plugin, and with it this package, in every test run of
every project in the same environment.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncq.app import AsyncQ
    from asyncq.breaker import CircuitBreaker
    from asyncq.context import TaskContext, current_context
    from asyncq.cron import Cron
    from asyncq.dead_letters.filters import DeadLetterFilter
    from asyncq.dead_letters.reports import PurgeReport, ReplayReport
    from asyncq.dependencies import Depends
    from asyncq.errors import (
        AsyncQError,
        BrokerError,
        ChordExpired,
        ChordFailed,
        InvalidWorkflow,
        NoResultStore,
        NotSent,
        PartlyDone,
        PartlySent,
        ProcessDied,
        PublishError,
        PublishUncertain,
        ReplyLost,
        ResultError,
        ResultTimeout,
        SoftTimeLimit,
        StoreUnavailable,
        TaskCancelled,
        TaskExpired,
        TaskFailed,
        TaskNotFound,
        TaskRejected,
        TimeLimitExceeded,
        Unroutable,
    )
    from asyncq.failed_member import FailedMember
    from asyncq.failed_task import FailedTask
    from asyncq.middleware import AttemptInfo, CallNext, Middleware
    from asyncq.outcome import Outcome
    from asyncq.results import Progress, ResultHandle, gather_results
    from asyncq.retry import Exponential, Fixed, Linear, RetryPolicy
    from asyncq.schedule import At, Every
    from asyncq.settings import Settings
    from asyncq.signals import Reject, Retry, Snooze
    from asyncq.signature import Signature
    from asyncq.status import TaskState, TaskStatus
    from asyncq.task import Task
    from asyncq.workflow.building import chain, chord, group
    from asyncq.workflow.partial import PartialSignature
    from asyncq.workflow.values import Chain, Chord, Group
    from asyncq.workflow.workflow import Workflow
    from asyncq.workflow_handle import NodeStatus, WorkflowHandle, WorkflowStatus

__all__ = [
    "AsyncQ",
    "AsyncQError",
    "At",
    "AttemptInfo",
    "BrokerError",
    "CallNext",
    "Chain",
    "Chord",
    "ChordExpired",
    "ChordFailed",
    "CircuitBreaker",
    "Cron",
    "DeadLetterFilter",
    "Depends",
    "Every",
    "Exponential",
    "FailedMember",
    "FailedTask",
    "Fixed",
    "Group",
    "InvalidWorkflow",
    "Linear",
    "Middleware",
    "NoResultStore",
    "NodeStatus",
    "NotSent",
    "Outcome",
    "PartialSignature",
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
    "TaskCancelled",
    "TaskContext",
    "TaskExpired",
    "TaskFailed",
    "TaskNotFound",
    "TaskRejected",
    "TaskState",
    "TaskStatus",
    "TimeLimitExceeded",
    "Unroutable",
    "Workflow",
    "WorkflowHandle",
    "WorkflowStatus",
    "chain",
    "chord",
    "current_context",
    "gather_results",
    "group",
]

_HOMES = {
    "AsyncQ": "asyncq.app",
    "AsyncQError": "asyncq.errors",
    "At": "asyncq.schedule",
    "AttemptInfo": "asyncq.middleware",
    "BrokerError": "asyncq.errors",
    "CallNext": "asyncq.middleware",
    "Chain": "asyncq.workflow.values",
    "Chord": "asyncq.workflow.values",
    "ChordExpired": "asyncq.errors",
    "ChordFailed": "asyncq.errors",
    "CircuitBreaker": "asyncq.breaker",
    "Cron": "asyncq.cron",
    "DeadLetterFilter": "asyncq.dead_letters.filters",
    "Depends": "asyncq.dependencies",
    "Every": "asyncq.schedule",
    "Exponential": "asyncq.retry",
    "FailedMember": "asyncq.failed_member",
    "FailedTask": "asyncq.failed_task",
    "Fixed": "asyncq.retry",
    "Group": "asyncq.workflow.values",
    "InvalidWorkflow": "asyncq.errors",
    "Linear": "asyncq.retry",
    "Middleware": "asyncq.middleware",
    "NoResultStore": "asyncq.errors",
    "NodeStatus": "asyncq.workflow_handle",
    "NotSent": "asyncq.errors",
    "Outcome": "asyncq.outcome",
    "PartialSignature": "asyncq.workflow.partial",
    "PartlyDone": "asyncq.errors",
    "PartlySent": "asyncq.errors",
    "ProcessDied": "asyncq.errors",
    "Progress": "asyncq.results",
    "PublishError": "asyncq.errors",
    "PublishUncertain": "asyncq.errors",
    "PurgeReport": "asyncq.dead_letters.reports",
    "Reject": "asyncq.signals",
    "ReplayReport": "asyncq.dead_letters.reports",
    "ReplyLost": "asyncq.errors",
    "ResultError": "asyncq.errors",
    "ResultHandle": "asyncq.results",
    "ResultTimeout": "asyncq.errors",
    "Retry": "asyncq.signals",
    "RetryPolicy": "asyncq.retry",
    "Settings": "asyncq.settings",
    "Signature": "asyncq.signature",
    "Snooze": "asyncq.signals",
    "SoftTimeLimit": "asyncq.errors",
    "StoreUnavailable": "asyncq.errors",
    "Task": "asyncq.task",
    "TaskCancelled": "asyncq.errors",
    "TaskContext": "asyncq.context",
    "TaskExpired": "asyncq.errors",
    "TaskFailed": "asyncq.errors",
    "TaskNotFound": "asyncq.errors",
    "TaskRejected": "asyncq.errors",
    "TaskState": "asyncq.status",
    "TaskStatus": "asyncq.status",
    "TimeLimitExceeded": "asyncq.errors",
    "Unroutable": "asyncq.errors",
    "Workflow": "asyncq.workflow.workflow",
    "WorkflowHandle": "asyncq.workflow_handle",
    "WorkflowStatus": "asyncq.workflow_handle",
    "chain": "asyncq.workflow.building",
    "chord": "asyncq.workflow.building",
    "current_context": "asyncq.context",
    "gather_results": "asyncq.results",
    "group": "asyncq.workflow.building",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
