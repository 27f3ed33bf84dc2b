"""The seam for control: a question to all workers at once, and their answers.

    asker ──▶ every worker that the broker knows ──▶ answers
                       └─ the broker itself calls the roll: who is known and silent is told as well

No exchange, queue or header crosses it. The adapters of `asyncq.broker.Broker` stand behind it as well.

Invariant: the roll is the broker's, not the workers': a worker whose process is frozen, or whose loop is blocked, is on
it for as long as the broker holds its connection.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

__all__ = ["Control", "Question", "Roll", "WorkerName"]

_LONGEST_HOST = 64


@dataclass(frozen=True, slots=True)
class WorkerName:
    """Which worker it is.

    Attributes:
        app: Its app's name.
        host: Where it runs.
        pid: Its process id there.
        key: What tells apart the workers of one process, and those that have had this id one after the other.
    """

    app: str
    host: str
    pid: int
    key: str

    @property
    def name(self) -> str:
        """What people call it: `host:pid`. Dead letters and statuses of tasks use the same."""
        return f"{self.host}:{self.pid}"

    def __str__(self) -> str:
        return f"{self.app}:{self.host[:_LONGEST_HOST]}:{self.pid}:{self.key}"

    @classmethod
    def read(cls, text: str) -> WorkerName | None:
        """Return the name that `str()` of one has written; None where it is none."""
        parts = text.split(":")
        if len(parts) != 4 or not parts[2].isdecimal():
            return None
        app, host, pid, key = parts
        return cls(app, host, int(pid), key)


@dataclass(frozen=True, slots=True)
class Roll:
    """What became of a question.

    Attributes:
        known: The workers that the broker knew when it was asked, sorted by name.
        answers: What came in time, in the order of coming.
    """

    known: tuple[WorkerName, ...]
    answers: tuple[tuple[WorkerName, bytes], ...]


class Question(Protocol):
    """One question, as a worker hears it."""

    @property
    def body(self) -> bytes:
        """What was asked."""
        ...

    async def answer(self, body: bytes) -> None:
        """Answer it. Where nobody waits any more nothing happens.

        Raises:
            PublishError: It was not taken, or may not have been.
        """
        ...


@runtime_checkable
class Control(Protocol):
    """A broker by which workers can be asked."""

    async def ask(self, body: bytes, *, wanted: Callable[[WorkerName], bool], timeout_s: float) -> Roll:
        """Ask all workers of this namespace, and wait for the answers.

        Args:
            body: The question.
            wanted: Whose answer is waited for: when all of them have answered, it ends early.
            timeout_s: How long it waits, in seconds.

        Raises:
            PublishError: The question was not taken, or may not have been.
            AnswersLost: The connection was lost while the answers came.
            BrokerError: No answers can be had.
        """
        ...

    def listen(self, name: WorkerName) -> AbstractAsyncContextManager[AsyncIterator[Question]]:
        """Hear what is asked, under this name, until the block ends. Lost connections are mended by the adapter.

        What it is not allowed to hear it tells in the log, and tries again: a worker works without control as well.
        """
        ...
