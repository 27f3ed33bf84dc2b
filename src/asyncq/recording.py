"""An app's way to its result store: writing what happens to tasks, and reading it.

Two kinds of writes. What must be kept, a task's end, is written by `write`, which raises where it cannot be. The rest
is a courtesy, by `note`: it takes a moment at most, and while the store is away it takes none.

Invariant: a store that is away, now or from the start, is nothing that a send or a running task fails for. It is
looked for again, and used as soon as it is back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any

from asyncq.clock import Clock
from asyncq.errors import NotOpen, ResultStoreError, StoreUnavailable
from asyncq.keeping import Keeping
from asyncq.life import life_of
from asyncq.loggers import get_logger
from asyncq.message import DEADLINE_AT, DUE_AT, EXPIRES_AT, LATEST_MS, PARENT_ID, ROOT_ID, HeaderValue, Message
from asyncq.result_store import ResultStore, StatusPage
from asyncq.settings import Settings
from asyncq.status import StatusUpdate, TaskState, TaskStatus

__all__ = ["Recorder", "birth_of", "moment_of", "recorder_of", "sent_update"]

log = get_logger("asyncq.results")

_NOTE_TIMEOUT_S = 1.0
_AWAY_S = 5.0
_MAX_IN_BACKGROUND = 10_000
_WATCH_PAUSE_S = 1.0


def moment_of(ms: int) -> datetime:
    """Return a time in milliseconds since the epoch as a moment in UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC)


def birth_of(message: Message, queue: str, keeping: Keeping) -> dict[str, Any]:
    """Return the arguments of `StatusUpdate` that are the same for all updates of one task.

    Args:
        message: The task's message.
        queue: The queue that it was sent to.
        keeping: For how long it is kept.
    """
    headers, life = message.headers, life_of(message)
    ends = [_moment(headers.get(name)) for name in (EXPIRES_AT, DEADLINE_AT)]
    return {
        "id": message.task_id,
        "task": message.type,
        "queue": queue,
        "not_after": min((end for end in ends if end is not None), default=None),
        "parent_id": _text(headers.get(PARENT_ID)),
        "root_id": _text(headers.get(ROOT_ID)),
        "ttl_s": keeping.ttl_s,
        "life": life,
        "queued_at": _moment(life or message.timestamp_ms),
    }


def sent_update(message: Message, queue: str, keeping: Keeping, at_ms: int) -> StatusUpdate:
    """Return what is written of a task that was sent.

    Args:
        message: What was published.
        queue: The queue that it was sent to.
        keeping: For how long it is kept.
        at_ms: When that was, in milliseconds since the epoch.
    """
    due_at = _moment(message.headers.get(DUE_AT))
    return StatusUpdate(
        state=TaskState.QUEUED if due_at is None else TaskState.SCHEDULED,
        at=_moment(at_ms) or moment_of(0),
        due_at=due_at,
        **birth_of(message, queue, keeping),
    )


def _moment(value: HeaderValue) -> datetime | None:
    """Return a time in milliseconds; None for none, and for what a foreign client may have put in its place."""
    is_time = isinstance(value, int) and not isinstance(value, bool) and 0 < value <= LATEST_MS
    return moment_of(value) if is_time else None


def _text(value: HeaderValue) -> str | None:
    return value if isinstance(value, str) else None


def recorder_of(settings: Settings, clock: Clock) -> Recorder | None:
    """Return the way to the result store of the settings, not open yet; None where they name none.

    Raises:
        ConfigurationError: The URL cannot be read, or what the store needs is not installed.
    """
    if settings.results == "none":
        return None
    # SQLAlchemy takes a while to import: only for those who have a store.
    from asyncq.stores.urls import store_of  # noqa: PLC0415

    store = store_of(
        settings.results,
        namespace=settings.namespace,
        ttl_s=settings.result_ttl_s,
        timeout_s=settings.results_timeout_s,
        now=lambda: moment_of(clock.now_ms()),
    )
    return None if store is None else Recorder(store, clock)


class Recorder:
    """Belongs to one event loop.

    Args:
        store: Where things are kept; not open yet.
        clock: The app's.

    Attributes:
        failed_writes: How many writes have failed so far.
        missed: How many states were not written, and will not be.
    """

    def __init__(self, store: ResultStore, clock: Clock) -> None:
        self._store = store
        self.clock = clock
        self._is_open = False
        self._closed = False
        self._opening: asyncio.Task[None] | None = None
        self._away_until = 0.0
        self._missed_before = 0
        self.failed_writes = 0
        self.missed = 0
        self._background: dict[str, StatusUpdate] = {}
        self._flushing: asyncio.Task[None] | None = None

    @property
    def is_closed(self) -> bool:
        """Whether the app was closed."""
        return self._closed

    @property
    def shown(self) -> str:
        """The store, for people."""
        return self._store.shown

    async def open(self) -> None:
        """Connect. Where the store is away, that is logged, and tried again when it is needed.

        Raises:
            StoreSchemaMismatch: A person has to prepare it.
            StoreRefused: It will not have us: a wrong password, no such database or folder.
        """
        try:
            await self._ready()
        except StoreUnavailable as error:
            self._is_away(error)

    async def close(self) -> None:
        """Write what is under way, and let go."""
        self._closed = True
        if self._flushing is not None:
            await asyncio.wait({self._flushing}, timeout=_NOTE_TIMEOUT_S)
        if self._opening is not None and not self._opening.done():
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        await self._store.close()

    # --- writing

    async def write(self, updates: Sequence[StatusUpdate]) -> None:
        """Write what must be kept.

        Raises:
            ResultStoreError: It may or may not have been written: write it again.
        """
        try:
            await self._ready()
            await self._store.write(updates)
        except ResultStoreError:
            self.failed_writes += 1
            raise
        self._is_back()

    async def note(self, updates: Sequence[StatusUpdate]) -> None:
        """Write what is good to know. Raises nothing, and takes a second at most."""
        if asyncio.get_running_loop().time() < self._away_until:
            self.missed += len(updates)
            return
        try:
            async with asyncio.timeout(_NOTE_TIMEOUT_S):
                await self.write(updates)
        except (ResultStoreError, NotOpen, TimeoutError) as error:
            self.missed += len(updates)
            self._is_away(error)
        except Exception:  # a courtesy must not fail what it is paid to
            self.missed += len(updates)
            log.exception("a state could not be written into the result store", store=self.shown)

    def note_soon(self, update: StatusUpdate) -> None:
        """Write what is good to know in the background. Of one task, only the latest news goes."""
        if self._closed or (len(self._background) >= _MAX_IN_BACKGROUND and update.id not in self._background):
            self.missed += 1
            return
        self._background[update.id] = update
        if self._flushing is None:
            self._flushing = asyncio.create_task(self._flush(), name="asyncq status notes")

    def forget(self, task_id: str) -> None:
        """Leave out what would be noted of a task: its end is being written."""
        self._background.pop(task_id, None)

    async def _flush(self) -> None:
        try:
            while self._background:
                updates, self._background = list(self._background.values()), {}
                await self.note(updates)
        finally:
            self._flushing = None

    # --- reading

    async def read(self, ids: Sequence[str]) -> list[TaskStatus]:
        """Return what is known of each id, in this order; UNKNOWN where nothing is.

        Raises:
            ResultStoreError: The store cannot be used.
        """
        await self._ready()
        found = await self._store.read(ids)
        return [TaskStatus(id_) if status is None else status for id_, status in zip(ids, found, strict=True)]

    async def glance(self, task_id: str) -> TaskStatus | None:
        """Return what is known of a task; None while the store is away. Raises nothing, and takes a second at most."""
        if asyncio.get_running_loop().time() < self._away_until:
            return None
        try:
            async with asyncio.timeout(_NOTE_TIMEOUT_S):
                (status,) = await self.read([task_id])
        except (ResultStoreError, NotOpen, TimeoutError) as error:
            self._is_away(error)
        except Exception:  # what is only good to know must not fail whoever asks
            log.exception("a state could not be read from the result store", store=self.shown)
        else:
            return status
        return None

    async def watch(self, task_id: str) -> AsyncIterator[TaskStatus]:
        """Iterate the statuses of a task as they change, up to its end; see `ResultStore.watch`."""
        while True:
            try:
                await self._ready()
                break
            except StoreUnavailable as error:
                self._is_away(error)
                await asyncio.sleep(_WATCH_PAUSE_S)
        try:
            async for status in self._store.watch(task_id):
                yield status
        except NotOpen:
            if not self._closed:
                raise

    async def list(
        self, *, task: str | None, state: TaskState | None, since: datetime | None, limit: int, cursor: str | None
    ) -> StatusPage:
        """See `ResultStore.list`."""
        await self._ready()
        return await self._store.list(task=task, state=state, since=since, limit=limit, cursor=cursor)

    # --- keeping the store itself

    async def init(self) -> None:
        """See `ResultStore.init`."""
        await self._store.init()

    async def clean(self, older_than: datetime | None = None) -> int:
        """See `ResultStore.clean`."""
        await self._ready()
        return await self._store.clean(older_than)

    async def _ready(self) -> None:
        if self._is_open:
            return
        if self._closed:
            raise NotOpen("The app was closed, and its result store with it.")
        if self._opening is None or self._opening.done():
            self._opening = asyncio.create_task(self._open_store(), name="asyncq result store opens")
        opening = self._opening
        try:
            await asyncio.shield(opening)  # for all who wait: who is cancelled must not stop it for others
        except StoreUnavailable as error:
            raise StoreUnavailable(str(error)) from error.__cause__

    async def _open_store(self) -> None:
        await self._store.open()
        self._is_open = True

    def _is_away(self, error: Exception) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._away_until:
            log.warning(
                "the result store cannot be used; states of tasks are missing meanwhile, their ends are kept back",
                store=self.shown,
                error=str(error) or type(error).__name__,
            )
        self._away_until = now + _AWAY_S

    def _is_back(self) -> None:
        if self._away_until:
            self._away_until = 0.0
            log.info(
                "the result store is used again", store=self.shown, states_missed=self.missed - self._missed_before
            )
            self._missed_before = self.missed
