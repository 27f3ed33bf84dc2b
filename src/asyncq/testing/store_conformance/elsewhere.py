"""What the suite lets another process do to a store.

`python -m asyncq.testing.store_conformance.elsewhere URL NAMESPACE COMMAND ...`:

produce PREFIX COUNT    write `queued` of so many tasks, one after the other, each told apart by its queue
work PREFIX COUNT       write `started`, then `succeeded` of the same tasks
finish ID               write `started`, two updates of progress, then `succeeded` of one task
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from asyncq.result_store import ResultStore
from asyncq.status import Progress, StatusUpdate, TaskState
from asyncq.stores.urls import store_of

__all__ = ["run"]

_BATCH = 10


async def run(store: ResultStore, command: str, id: str, count: str = "0") -> None:  # noqa: A002 - the field's own word
    """Open the store, run a command, and close it."""
    await store.open()
    try:
        if command == "finish":
            await _finish(store, id)
            return
        await _meet(store, command)
        for first in range(0, int(count), _BATCH):
            await (_produce if command == "produce" else _work)(
                store, [f"{id}-{number}" for number in range(first, first + _BATCH)]
            )
    finally:
        await store.close()


async def _meet(store: ResultStore, command: str) -> None:
    """Wait until both processes have said that they are there."""
    await store.write([StatusUpdate(f"{command} is there", TaskState.QUEUED, datetime.now(UTC))])
    while None in await store.read(["produce is there", "work is there"]):  # noqa: ASYNC110 - of two processes
        await asyncio.sleep(0.001)


async def _produce(store: ResultStore, ids: Sequence[str]) -> None:
    now = datetime.now(UTC)
    await store.write([StatusUpdate(id_, TaskState.QUEUED, now, task="shop.work", queue=f"of {id_}") for id_ in ids])


async def _work(store: ResultStore, ids: Sequence[str]) -> None:
    now = datetime.now(UTC)
    await store.write([StatusUpdate(id_, TaskState.STARTED, now, attempt=1) for id_ in ids])
    await store.write([StatusUpdate(id_, TaskState.SUCCEEDED, now, attempt=1, result=id_.encode()) for id_ in ids])


async def _finish(store: ResultStore, id: str) -> None:  # noqa: A002
    started = datetime.now(UTC)
    await store.write([StatusUpdate(id, TaskState.STARTED, started, attempt=1)])
    for done in (1, 2):
        progress = Progress(done, 2)
        now = datetime.now(UTC)
        await store.write([StatusUpdate(id, TaskState.STARTED, now, attempt=1, started_at=started, progress=progress)])
    await store.write([StatusUpdate(id, TaskState.SUCCEEDED, datetime.now(UTC), attempt=1, result=b'"done"')])


async def _main(url: str, namespace: str, *command: str) -> None:
    store = store_of(url, namespace=namespace)
    if store is None:
        raise SystemExit(f"{url} is no store")
    await run(store, *command)


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
