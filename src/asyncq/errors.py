"""Every error that asyncq raises to its users, in one tree.

    AsyncQError
    ├── ConfigurationError             a declaration, a setting or a command line is wrong
    │   ├── TaskDefinitionError        the function cannot be a task; says which parameter and why
    │   ├── DuplicateTask              two tasks of one name
    │   ├── UnknownTask                a name that no task of this app has
    │   ├── UnknownDeadLetter          an id that no dead letter of the queue has
    │   ├── InvalidOption              an option's value cannot be used
    │   ├── InvalidWorkflow            the parts of a workflow do not fit together
    │   ├── UnknownQueue               a queue that is not there, or that no worker consumes
    │   ├── UnknownWorker              a worker, or a host, that the broker does not know
    │   ├── InvalidQueueName           RabbitMQ or the delay ladder could not carry it
    │   └── AppNotFound                MODULE:APP does not lead to an app
    ├── UsageError                     a call in the wrong place
    │   ├── AlreadyOpen                the app is open, and what is asked for must come before
    │   ├── NotOpen                    the app was not entered
    │   ├── WrongLoop                  the app is open in another event loop
    │   ├── BlockingCall               a blocking call on the event loop's own thread
    │   ├── MiddlewareError            a middleware returned no outcome, or ran its attempt twice
    │   ├── NoContext                  current_context() outside a task
    │   └── NoResources                ctx.resources of an app without a lifespan
    ├── LifespanFailed                 the app's lifespan raised something, at a worker's start or at its end
    ├── BrokerError                    the broker said no, or nothing
    │   ├── BrokerUnavailable          cannot be reached; trying again may help
    │   ├── BrokerRefused              it is there and will not have us; trying again does not help
    │   │   ├── AuthenticationFailed   user or password
    │   │   ├── VirtualHostNotFound
    │   │   └── AccessRefused          a permission is missing
    │   ├── TopologyMismatch           a queue or exchange exists with other arguments
    │   ├── PublishError               a message was not, or may not have been, taken
    │   │   ├── Unroutable             no queue for it
    │   │   ├── Refused                the broker's nack, or a broken rule of the broker
    │   │   ├── MessageTooLarge
    │   │   ├── NotSent                it never left this process
    │   │   ├── PublishUncertain       it left, and no answer came
    │   │   └── PartlySent             of many messages, some were not taken
    │   ├── PartlyDone                 a replay or a purge of dead letters ended in the middle
    │   ├── LeaseLost                  the delivery is no longer ours
    │   ├── QueueGone                  the queue of a subscription was deleted
    │   ├── ReplyLost                  the reply queue is gone, and with it what was in it
    │   └── AnswersLost                the connection was lost while workers were asked something
    ├── ResultStoreError               the store of statuses and results said no, or nothing
    │   ├── StoreUnavailable           cannot be reached, or does not answer; trying again may help
    │   ├── StoreRefused               it is there and will not have us, or cannot be: a person has to look
    │   └── StoreSchemaMismatch        it was not prepared, or by another version of asyncq
    ├── MalformedMessage               a message that is no task message
    └── ResultError                    what a handle's `result()` can raise
        ├── ResultTimeout              no result in time; the task may still be running
        │   └── TaskNotFound           nothing is known of this id
        ├── NoReply                    the task was sent with reply=False
        ├── NoResultStore              this app has no place where other processes' tasks could be looked up
        ├── ResultNotKept              the task has succeeded, and its result was not to be kept
        ├── WrongTask                  the id belongs to another task than the handle was made for
        ├── TaskFailed                 the task failed, with the remote type, message and traceback
        │   ├── TaskRejected           it was not run: the message was bad, or the task said Reject
        │   ├── ChordFailed            members of a chord have failed, so what follows does not run
        │   └── ChordExpired           a chord's queue was gone before all its members had come
        ├── TaskCancelled
        ├── TaskExpired                its `expires=` was over before it could run, or run again
        ├── ResultNotSerialisable      the task's return value does not fit its declared type or JSON
        ├── ResultTooLarge
        └── InvalidResult              the reply does not fit the declared return type

`AttemptInterrupted` is raised at the `yield` of a dependency whose task did not come to an end by itself.
`ProcessDied` is recorded as the error of a task whose process crashed, or was killed.
`SoftTimeLimit` is raised inside a task at its soft time limit. It is no `Exception`, but a `CancelledError`: code that
cleans up when it is cancelled does so, and `except Exception` lets it through.
`DeliveredTooOften` is recorded as the error of a message that no worker has brought to an end.
`TimeLimitExceeded` is recorded as a task's error. It is a `TimeoutError`, so a policy for `TimeoutError`
retries it only where it says so by this name (see `retry.py`).
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Sequence
from datetime import datetime
from typing import Any


class AsyncQError(Exception):
    """The base of every error that asyncq raises."""


class ConfigurationError(AsyncQError):
    """A declaration, a setting or a command line is wrong."""


class TaskDefinitionError(ConfigurationError):
    """A function cannot be a task. The message names the parameter and the remedy."""


class DuplicateTask(ConfigurationError):
    """Two different functions were declared under one task name."""


class UnknownTask(ConfigurationError):
    """The app has no task of this name."""


class UnknownDeadLetter(ConfigurationError):
    """No dead letter of the queue has this id."""


class InvalidOption(ConfigurationError):
    """The value of an option cannot be used."""


class InvalidWorkflow(ConfigurationError):
    """The parts of a workflow do not fit together. It is raised where the workflow is built."""


class UnknownQueue(ConfigurationError):
    """There is no queue of this name, or no worker consumes it."""


class UnknownWorker(ConfigurationError):
    """The broker knows no worker of this name, or none on this host."""


class InvalidQueueName(ConfigurationError):
    """RabbitMQ or the delay ladder could not carry a queue of this name."""


class AppNotFound(ConfigurationError):
    """MODULE:APP does not lead to an `AsyncQ`."""


class UsageError(AsyncQError):
    """A call was made in a place where it cannot work."""


class AlreadyOpen(UsageError):
    """The app is open, and what was asked for must be done before."""


class NotOpen(UsageError):
    """The app was not entered with `async with app:`."""


class WrongLoop(UsageError):
    """The app is open in another event loop."""


class BlockingCall(UsageError):
    """A blocking call was made on the event loop's own thread, where it would wait for itself."""


class MiddlewareError(UsageError):
    """A middleware returned no outcome, or ran its attempt twice. It is recorded as the attempt's error."""


class NoContext(UsageError):
    """`current_context()` was called outside a running task."""


class NoResources(UsageError):
    """`ctx.resources` was asked for where there are none: the app has no lifespan, or the task has its own process."""


class LifespanFailed(AsyncQError):
    """The app's lifespan raised something, at a worker's start or at its end. Its cause is what it raised."""


class BrokerError(AsyncQError):
    """The broker said no, or nothing."""


class BrokerUnavailable(BrokerError):
    """The broker cannot be reached. Trying again may help."""


class BrokerRefused(BrokerError):
    """The broker is there and will not have us. Trying again does not help."""


class AuthenticationFailed(BrokerRefused):
    """The broker does not accept the user name or the password."""


class VirtualHostNotFound(BrokerRefused):
    """The broker has no virtual host of this name."""


class AccessRefused(BrokerRefused):
    """The user lacks a permission."""


class TopologyMismatch(BrokerError):
    """A queue or exchange exists with other arguments. The message names the difference and the remedy."""


class PublishError(BrokerError):
    """A message was not taken by the broker, or it is unknown whether it was."""


class Unroutable(PublishError):
    """There is no queue for the message. It was not kept."""


class Refused(PublishError):
    """The broker did not take the message."""


class MessageTooLarge(PublishError):
    """The message is larger than the broker, or the settings, allow. It was not sent."""


class NotSent(PublishError):
    """The message never left this process. It is safe to send it again."""


class PublishUncertain(PublishError):
    """The message left and no answer came: it may or may not be in the queue.

    Sending it again with the same `task_id` makes at worst a second delivery of one task.
    """


class PartlySent(PublishError):
    """Of many messages, some were not taken, or may not have been.

    Attributes:
        outcomes: For each signature, in order: its handle, or the error that it ended with.
    """

    def __init__(self, message: str, outcomes: Sequence[Any]) -> None:
        super().__init__(message)
        self.outcomes = list(outcomes)


class PartlyDone(BrokerError):
    """A replay or a purge of dead letters ended in the middle. No letter is lost, and doing it again goes on with it.

    Attributes:
        report: What was done: a `ReplayReport` or a `PurgeReport`.
    """

    def __init__(self, message: str, report: Any) -> None:
        super().__init__(message)
        self.report = report


class LeaseLost(BrokerError):
    """The delivery is no longer ours: the broker has given, or will give, it to somebody else."""


class QueueGone(BrokerError):
    """The queue of a subscription was deleted."""


class ReplyLost(BrokerError):
    """The reply queue is gone, and with it the replies that were in it. The task itself is not affected."""


class AnswersLost(BrokerError):
    """The connection was lost while workers were asked something, so it is not known who is there and what they did.

    Asking again is safe, whatever it was: what is done already is not done twice.
    """


class ResultStoreError(AsyncQError):
    """The store of statuses and results said no, or nothing."""


class StoreUnavailable(ResultStoreError):
    """The result store cannot be reached, or does not answer in time. Trying again may help."""


class StoreRefused(ResultStoreError):
    """The result store will not have us: a wrong password, no such database or folder, one that may not be written."""


class StoreSchemaMismatch(ResultStoreError):
    """The result store was not prepared for use, or by another version of asyncq. The message says what to do."""


class MalformedMessage(AsyncQError):
    """A message is not a task message. Its sender has to change it."""


class ResultError(AsyncQError):
    """The base of what `ResultHandle.result()` can raise."""


class ResultTimeout(ResultError, TimeoutError):
    """No reply came in time. The task may still be waiting or running."""


class NoReply(ResultError):
    """The task was sent with `reply=False`, so no reply will come."""


class NoResultStore(ResultError):
    """What is asked for is kept in a result store, and this app has none."""


class TaskNotFound(ResultTimeout):
    """Nothing is known of a task of this id, and nothing became known in time."""


class ResultNotKept(ResultError):
    """The task has succeeded, and its result was not to be kept."""


class WrongTask(ResultError):
    """The id belongs to another task than the one that the handle was made from."""


class TaskFailed(ResultError):
    """The task has finally failed.

    Attributes:
        task_id: The task's id.
        type: The remote exception's type, for example `builtins.ValueError`.
        message: The remote exception's message.
        traceback: The remote traceback as text; empty where there is none.
    """

    def __init__(self, task_id: str, type: str, message: str, traceback: str = "") -> None:  # noqa: A002 - the wire's own word
        super().__init__(task_id, type, message, traceback)
        self.task_id = task_id
        self.type = type
        self.message = message
        self.traceback = traceback

    def __str__(self) -> str:
        text = f"task {self.task_id} failed: {self.type}: {self.message}"
        return f"{text}\n\nRemote traceback:\n{self.traceback}" if self.traceback else text


class TaskRejected(TaskFailed):
    """The task was not run, or it rejected its message: bad arguments, a bad body, an unknown name."""


class ChordFailed(TaskFailed):
    """Members of a chord, or of a group that something follows, have failed; so what follows does not run.

    Attributes:
        members: A `FailedMember` for each that failed, with its id and error; 100 at most.
    """

    def __init__(
        self,
        task_id: str,
        type: str,  # noqa: A002 - the wire's own word
        message: str,
        traceback: str = "",
        members: Sequence[Any] = (),
    ) -> None:
        super().__init__(task_id, type, message, traceback)
        self.members = tuple(members)


class ChordExpired(TaskFailed):
    """The queue of a chord was gone before all its members had come: it has expired, or somebody has deleted it."""


class TaskCancelled(ResultError):
    """The task was cancelled."""


class TaskExpired(ResultError):
    """The task's `expires=` was over before it could run, or would have been before it could run again.

    Attributes:
        task_id: The task's id.
        expires: When it expires, in UTC.
        met: When a worker saw that, by the worker's clock, in UTC; before `expires` where the next attempt would
            have come too late.
        error: Type and message of the last failed attempt; None where none has failed.
    """

    def __init__(self, task_id: str, expires: datetime, met: datetime, error: str | None = None) -> None:
        super().__init__(task_id, expires, met, error)
        self.task_id = task_id
        self.expires = expires
        self.met = met
        self.error = error

    def __str__(self) -> str:
        expires, met = (moment.isoformat(sep=" ", timespec="milliseconds") for moment in (self.expires, self.met))
        if self.met < self.expires:
            text = f"task {self.task_id} ended at {met}: it expires at {expires}, before its next attempt could begin"
        else:
            text = f"task {self.task_id} expired at {expires} and was not run: a worker met it at {met}"
        return text if self.error is None else f"{text}; its last error was {self.error}"


class ResultNotSerialisable(ResultError):
    """The task's return value does not fit its declared type, or cannot be written as JSON."""


class ResultTooLarge(ResultError):
    """The task's return value is larger than a message may be."""


class InvalidResult(ResultError):
    """A reply arrived that does not fit the declared return type."""


class DeliveredTooOften(AsyncQError):
    """The broker has delivered a message again and again, and no worker has brought it to an end: it may kill them."""


class TimeLimitExceeded(AsyncQError, TimeoutError):
    """The task ran longer than its time limit."""


class AttemptInterrupted(AsyncQError):
    """Raised at the `yield` of a dependency where the attempt was stopped: limit, cancellation, drain, `sys.exit()`."""


class ProcessDied(AsyncQError):
    """The process that ran the task has ended in the middle of it: it crashed, left by `os._exit()`, or was killed."""


class SoftTimeLimit(CancelledError):
    """Raised inside a task at its soft time limit, so that it can clean up, or return what it has so far.

    A retry policy retries it only where it names it.
    """
