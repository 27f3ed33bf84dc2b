"""The seam of result stores: what a place must do where the status of tasks is kept for other processes.

Invariant: what stands for one id is what `asyncq.status.merge` makes of all updates that were written, whoever wrote
them, at once or not. A write that returns is kept; one that raises may be.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from asyncq.status import StatusUpdate, TaskState, TaskStatus

__all__ = ["DEFAULT_TTL_S", "ResultStore", "StatusPage"]

DEFAULT_TTL_S = 7 * 24 * 3600.0
"""How long a record is kept after its task has ended, unless told otherwise, in seconds."""


@dataclass(frozen=True, slots=True)
class StatusPage:
    """A part of a listing.

    Attributes:
        items: The tasks, newest first, without their results: those are read by id.
        cursor: Where the next page begins; None where this is the last one.
    """

    items: tuple[TaskStatus, ...]
    cursor: str | None


class ResultStore(Protocol):
    """Keeps the status of tasks. It belongs to the event loop that opens it.

    Every method but `close` can raise StoreUnavailable: the store is away, or does not answer in time. Nothing has to
    be opened again then; it works as soon as the store is back.
    """

    @property
    def shown(self) -> str:
        """What it is, for people: its URL without a password."""
        ...

    async def open(self) -> None:
        """Connect, and look whether the store is ready for use.

        Raises:
            StoreUnavailable: It cannot be reached. It may be opened again later.
            StoreSchemaMismatch: It was not prepared by `init`, or by another version of asyncq.
        """
        ...

    async def close(self) -> None:
        """Let go of connections. Nothing happens where it is not open."""
        ...

    async def init(self) -> None:
        """Create what the store needs, or bring it up to this version; nothing happens where that is so already.

        Several processes may do it at once. The store need not be open.

        Raises:
            StoreSchemaMismatch: A later version of asyncq has prepared it.
        """
        ...

    async def write(self, updates: Sequence[StatusUpdate]) -> None:
        """Merge updates into what is there: each id in one step, in the order given.

        Where it raises, some ids may be written and others not. Writing the same again does no harm.
        """
        ...

    async def read(self, ids: Sequence[str]) -> list[TaskStatus | None]:
        """Return what is known of each id, in this order; None where nothing is.

        A record that cannot be read has the state UNKNOWN, and the log says why.
        """
        ...

    async def list(
        self,
        *,
        task: str | None = None,
        state: TaskState | None = None,
        since: datetime | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> StatusPage:
        """Return a page of tasks, those that became known last first.

        The cursor stands between two tasks: what is added meanwhile neither repeats a task nor skips one.

        Args:
            task: Only those of this name.
            state: Only those in this state.
            since: Only those that became known then or later; aware.
            limit: How many, from 1 to 1000.
            cursor: That of the page before.

        Raises:
            InvalidOption: The cursor is not one of this store's, or the limit is out of range.
        """
        ...

    def watch(self, id: str) -> AsyncIterator[TaskStatus]:  # noqa: A002 - the field's own word
        """Iterate the statuses of a task as they change, beginning with the present one if there is one.

        It ends after a final state, which it never misses, or where the record is deleted, and goes on while the store
        is away. States that last
        only for a moment may be left out. An id that nothing is known of is waited for.
        """
        ...

    async def clean(self, older_than: datetime | None = None) -> int:
        """Delete what has expired, and what has ended before a moment; return how many tasks those were.

        It goes in small steps, so that nobody waits for it long.
        """
        ...
