"""`app.results`: what the result store knows of all tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from asyncq.errors import InvalidOption, NoResultStore
from asyncq.recording import Recorder
from asyncq.result_store import StatusPage
from asyncq.signals import seconds_of
from asyncq.status import TaskState, TaskStatus

__all__ = ["TaskResults"]


class TaskResults:
    """The tasks in an app's result store.

    Args:
        opened: Returns the app's open way to the store.
        new: Returns one that is not open.
    """

    def __init__(self, opened: Callable[[], Recorder | None], new: Callable[[], Recorder | None]) -> None:
        self._opened = opened
        self._new = new

    async def read(self, ids: Sequence[str]) -> list[TaskStatus]:
        """Return what is known of each id, in this order, in one question; UNKNOWN where nothing is.

        Raises:
            NoResultStore: The app has none.
            StoreUnavailable: It cannot be reached.
            NotOpen: The app was not entered.
        """
        return await self._recorder().read(ids)

    async def clean(self, older_than: datetime | None = None) -> int:
        """Delete what has expired, and what ended before a moment; return how many tasks those were.

        Workers delete what has expired every hour by themselves.

        Args:
            older_than: Aware; without it, only what has expired.

        Raises:
            NoResultStore: The app has none.
            StoreUnavailable: It cannot be reached.
            NotOpen: The app was not entered.
        """
        return await self._recorder().clean(older_than)

    async def init(self) -> str:
        """Create the store's tables, or bring them up to this version. The app need not be open.

        Returns:
            What the store is, for people.

        Raises:
            NoResultStore: The app has none.
            StoreUnavailable: It cannot be reached.
            StoreSchemaMismatch: A later version of asyncq has prepared it.
        """
        recorder = _or_raise(self._new())
        try:
            await recorder.init()
        finally:
            await recorder.close()
        return recorder.shown

    async def list(
        self,
        *,
        task: str | None = None,
        state: TaskState | str | None = None,
        since: datetime | timedelta | float | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> StatusPage:
        """Return a page of tasks, those that became known last first, without their results.

        Args:
            task: Only those of this name.
            state: Only those in this state.
            since: Only those that became known since this moment, an aware `datetime`; or in the last seconds.
            limit: How many, from 1 to 1000.
            cursor: `page.cursor` of the page before.

        Raises:
            InvalidOption: An argument cannot be used.
            NoResultStore: The app has none.
            StoreUnavailable: It cannot be reached.
            NotOpen: The app was not entered.
        """
        return await self._recorder().list(
            task=task, state=_state(state), since=_since(since), limit=limit, cursor=cursor
        )

    def _recorder(self) -> Recorder:
        return _or_raise(self._opened())


def _or_raise(recorder: Recorder | None) -> Recorder:
    if recorder is None:
        raise NoResultStore(
            "This app has no result store. Set ASYNCQ_RESULTS, for example to sqlite:///results.db, here and in the "
            "workers; or AsyncQ(results=...)."
        )
    return recorder


def _state(state: TaskState | str | None) -> TaskState | None:
    if state is None:
        return None
    try:
        return TaskState(state)
    except ValueError:
        known = ", ".join(TaskState)
        raise InvalidOption(f"There is no state {state!r}. The states are: {known}.") from None


def _since(since: datetime | timedelta | float | None) -> datetime | None:
    if since is None or isinstance(since, datetime):
        return since
    return datetime.now(UTC) - timedelta(seconds=seconds_of(since, "since="))
