"""asyncq: RabbitMQ-native async task workers for Python.

Example:
    >>> app = AsyncQ("shop")
    >>> @app.task
    ... async def add(a: int, b: int) -> int:
    ...     return a + b

    Inside `async with app:`, `await add.call(1, 2)` returns 3 as soon as a worker has done it.
"""

from asyncq.app import AsyncQ
from asyncq.context import TaskContext, current_context
from asyncq.errors import (
    AsyncQError,
    BrokerError,
    NotSent,
    PartlySent,
    PublishError,
    PublishUncertain,
    ReplyLost,
    ResultError,
    ResultTimeout,
    TaskFailed,
    TaskRejected,
    TimeLimitExceeded,
    Unroutable,
)
from asyncq.results import Progress, ResultHandle
from asyncq.retry import Exponential, Fixed, RetryPolicy
from asyncq.settings import Settings
from asyncq.signals import Reject, Retry, Snooze
from asyncq.signature import Signature
from asyncq.task import Task

__all__ = [
    "AsyncQ",
    "AsyncQError",
    "BrokerError",
    "Exponential",
    "Fixed",
    "NotSent",
    "PartlySent",
    "Progress",
    "PublishError",
    "PublishUncertain",
    "Reject",
    "ReplyLost",
    "ResultError",
    "ResultHandle",
    "ResultTimeout",
    "Retry",
    "RetryPolicy",
    "Settings",
    "Signature",
    "Snooze",
    "Task",
    "TaskContext",
    "TaskFailed",
    "TaskRejected",
    "TimeLimitExceeded",
    "Unroutable",
    "current_context",
]
