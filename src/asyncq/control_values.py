"""What workers are asked, and what they answer: the values of `app.control`, and their form on the wire.

A question is a JSON object with a `do`; an answer is one of the classes below, as JSON. Fields that a reader does not
know are left alone, so that workers and askers of neighbouring versions understand each other.

Invariant: pure.
"""

from __future__ import annotations

from typing import Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from asyncq.breaker import BreakerState
from asyncq.control import WorkerName

__all__ = [
    "MOST_SLOTS",
    "Act",
    "Answers",
    "Drained",
    "Draining",
    "Order",
    "PoolStats",
    "QueueState",
    "QueueView",
    "RunningView",
    "WorkerAnswer",
    "WorkerPhase",
    "WorkerPing",
    "WorkerStatistics",
    "WorkerTasks",
]

Act = Literal["ping", "active", "stats", "pause", "resume", "scale", "drain"]
WorkerPhase = Literal["starting", "consuming", "stopping"]

MOST_SLOTS = 2000
"""Of one queue in one worker."""

_VALUE = ConfigDict(frozen=True, extra="ignore")


class Order(BaseModel):
    """One question.

    Attributes:
        do: What is asked for.
        app: Only workers of this app are meant.
        host: Only workers on this host are meant.
        worker: Only the worker of this name is meant, `host:pid`.
        queue: Of `pause`, `resume`, `scale`.
        slots: Of `scale`.
        everywhere: Whether `pause` and `resume` are about all workers, as the journal says too.
        pause_id: Of a pause everywhere.
        ends: The ids of the pauses that a resume everywhere ends.
        at_ms: When it was asked, in milliseconds since the epoch.
    """

    model_config = _VALUE

    do: Act
    app: str | None = None
    host: str | None = None
    worker: str | None = None
    queue: str | None = None
    slots: int | None = None
    everywhere: bool = False
    pause_id: str | None = None
    ends: tuple[str, ...] = ()
    at_ms: int = 0

    def is_for(self, name: WorkerName) -> bool:
        """Tell whether this worker is meant."""
        return (
            self.app in {None, name.app}
            and self.host in {None, name.host}
            and (self.worker is None or self.worker == name.name)
        )


class WorkerAnswer(BaseModel):
    """What every answer says.

    Attributes:
        name: The worker, as it is addressed: `host:pid`.
        app: Its app.
        host: Where it runs.
        pid: Its process id there.
    """

    model_config = _VALUE

    name: str
    app: str
    host: str
    pid: int


class WorkerPing(WorkerAnswer):
    """A worker that is there.

    Attributes:
        version: Of asyncq.
        state: `starting`, `consuming` or `stopping`.
        uptime_s: For how long it has been there, in seconds.
        queues: The queues that it consumes.
    """

    version: str
    state: WorkerPhase
    uptime_s: float
    queues: tuple[str, ...]


class QueueView(BaseModel):
    """One queue of a worker.

    Attributes:
        name: The queue.
        slots: How many tasks of it may run here at once.
        running: How many run. After a `scale` down they may be more, until they have finished.
        paused: `everywhere`: no worker takes from it; `here`: this worker does not; None: it is not paused.
        breaker: The state of its circuit breaker: `open` means that its slots pause; None where it has none.
    """

    model_config = _VALUE

    name: str
    slots: int
    running: int
    paused: Literal["everywhere", "here"] | None = None
    breaker: BreakerState | None = None


class RunningView(BaseModel):
    """One attempt that runs.

    Attributes:
        task: The task's name.
        task_id: Its id.
        attempt: Which attempt it is, from 1.
        queue: The queue that it came from.
        since_ms: When it began, in milliseconds since the epoch, by the worker's clock.
        seconds: For how long it has run.
        deadline_ms: When it is stopped, in milliseconds since the epoch; None for never.
        stopping: Why it was told to stop, if it was: `limit`, `cancel`, `drain`, `lease`.
        progress: What it has told of its progress last, where that is kept: `{"done": 3, "total": 10, ...}`.
    """

    model_config = _VALUE

    task: str
    task_id: str
    attempt: int
    queue: str
    since_ms: int
    seconds: float
    deadline_ms: int | None = None
    stopping: str | None = None
    progress: dict[str, object] | None = None


class WorkerTasks(WorkerAnswer):
    """What a worker runs.

    Attributes:
        queues: Its queues, with slots.
        running: Its attempts, the oldest first.
    """

    queues: tuple[QueueView, ...]
    running: tuple[RunningView, ...]


class PoolStats(BaseModel):
    """The processes of tasks with `run_in="process"`.

    Attributes:
        places: How many there may be.
        processes: How many there are.
        busy: How many run a task.
    """

    model_config = _VALUE

    places: int
    processes: int
    busy: int


class WorkerStatistics(WorkerAnswer):
    """What a worker has done since its start, and how it is.

    Attributes:
        state: `starting`, `consuming` or `stopping`.
        uptime_s: For how long it has been there, in seconds.
        queues: Its queues, with slots.
        in_flight: How many attempts run.
        started: How many attempts have begun.
        outcomes: How many deliveries have ended how: `Succeeded`, `RetryLater`, `Failed` ...
        retries: How many of them are tried again later.
        overdue: How many attempts were given up, and their code goes on.
        threads_busy: How many threads run code.
        connection: The state of its connections to the broker: `ready`, `connecting`, `blocked`.
        memory_bytes: The resident memory of its process.
        loop_lag_s: How late its event loop was, at worst, in the moment of the question, in seconds.
        process_pool: The processes of its tasks.
    """

    state: WorkerPhase
    uptime_s: float
    queues: tuple[QueueView, ...]
    in_flight: int
    started: int
    outcomes: dict[str, int]
    retries: int
    overdue: int
    threads_busy: int
    connection: str
    memory_bytes: int | None
    loop_lag_s: float
    process_pool: PoolStats


class QueueState(WorkerAnswer):
    """How a queue is after a pause, a resume or a scale.

    Attributes:
        queue: The queue; None where this worker does not consume it.
    """

    queue: QueueView | None


class Draining(WorkerAnswer):
    """A worker that drains.

    Attributes:
        running: How many attempts still run.
        already: Whether it did so before it was asked.
    """

    running: int
    already: bool


A = TypeVar("A", bound=WorkerAnswer)


class Answers(BaseModel, Generic[A]):
    """What became of a question.

    Attributes:
        answers: Of the workers that answered, sorted by name.
        silent: The workers that the broker knows, and that did not answer in time: frozen, blocked or overloaded.
        failed: What workers said that could not do it, by their names: those of another version, for example.
    """

    model_config = ConfigDict(frozen=True)

    answers: tuple[A, ...]
    silent: tuple[str, ...]
    failed: dict[str, str]

    @property
    def complete(self) -> bool:
        """Whether every worker that was meant has answered, and there is one."""
        return bool(self.answers) and not self.silent and not self.failed


class Drained(Answers[Draining]):
    """What became of a drain. Without a `wait` nobody has looked who ended, and the two are empty.

    Attributes:
        ended: The workers that had ended when the wait was over: the broker did not know them any more.
        remaining: Those that had not.
    """

    ended: tuple[str, ...] = ()
    remaining: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every worker that was meant has ended, or, without a wait, has answered; and there is one."""
        return not self.remaining if self.ended or self.remaining else super().complete
