"""The test bench: a result store under test, and what the behaviours do with it.

A behaviour is an `async def test_...(bench)` with a sentence for a name, made one by `@behaviour`. It knows the seam
`asyncq.result_store.ResultStore`, and the few things of `StoreUnderTest`; nothing of any one store.

Invariant: waits are for conditions, with limits that only a fault reaches. Nothing asserts that something was fast.
"""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import pytest

from asyncq.result_store import ResultStore
from asyncq.status import StatusUpdate, TaskState, TaskStatus
from asyncq.testing.store_conformance import elsewhere

__all__ = ["NOW", "WAIT_S", "StoreBench", "StoreUnderTest", "behaviour", "read_one", "update"]

WAIT_S = 60.0
"""How long the suite waits for what must happen, in seconds."""

NOW = datetime.now(UTC).replace(microsecond=123456)
"""The present moment, more or less."""

_LIMIT_S = 180.0


class StoreUnderTest(Protocol):
    """What the suite must be able to do to a store, beside the seam.

    Each test gets one that holds nothing and is prepared for use.
    """

    name: str
    """Its name, for people."""

    url: str | None
    """Where other processes find it; None where none can."""

    namespace: str
    """Its prefix there."""

    readable_when_away: bool
    """Whether it can still be read when it is away: then only writing is impossible."""

    def make(self, **options: Any) -> ResultStore:
        """Return a new client of it, not open yet, with `ttl_s=`, `timeout_s=`, `namespace=`. All reach one store."""
        ...

    async def go_away(self) -> None:
        """Make it unreachable: stop its server."""
        ...

    async def come_back(self) -> None:
        """Let it be reached again, with all that it has kept."""
        ...

    async def spoil(self, id: str, data: str) -> None:  # noqa: A002 - the field's own word
        """Put another text in place of what is recorded of a task."""
        ...

    async def set_schema(self, version: int) -> None:
        """Say that another version of asyncq has prepared it."""
        ...


class StoreBench:
    """What a behaviour gets.

    Args:
        under_test: The store under test.
    """

    def __init__(self, under_test: StoreUnderTest) -> None:
        self._under_test = under_test
        self.name = under_test.name
        self.readable_when_away = under_test.readable_when_away
        self.make = under_test.make
        self.go_away = under_test.go_away
        self.come_back = under_test.come_back
        self.spoil = under_test.spoil
        self.set_schema = under_test.set_schema

    @asynccontextmanager
    async def open(self, **options: Any) -> AsyncIterator[ResultStore]:
        """Give an open store."""
        store = self._under_test.make(**options)
        await store.open()
        try:
            yield store
        finally:
            await store.close()

    async def elsewhere(self, *command: str) -> None:
        """Run a command of `asyncq.testing.store_conformance.elsewhere` to its end, in another process.

        In this one, on a client of its own, where no other could reach the store.
        """
        if self._under_test.url is None:
            await elsewhere.run(self._under_test.make(), *command)
            return
        module = elsewhere.__name__
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module, self._under_test.url, self._under_test.namespace, *command),
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            _, errors = await process.communicate()
        except BaseException:
            process.kill()
            await process.wait()
            raise
        assert process.returncode == 0, errors.decode()


def behaviour(test: Callable[[StoreBench], Awaitable[None]]) -> Callable[[StoreBench], Awaitable[None]]:
    """Make a test one of the suite: marked for pytest-asyncio, limited in time."""

    @functools.wraps(test)
    async def run(bench: StoreBench) -> None:
        __tracebackhide__ = True
        async with asyncio.timeout(_LIMIT_S):
            await test(bench)

    marked: Callable[[StoreBench], Awaitable[None]] = pytest.mark.asyncio(run)
    return marked


def update(id: str, text: str, second: float = 0, **fields: Any) -> StatusUpdate:  # noqa: A002 - the field's own word
    """Return an update; `started 2` is the beginning of the second attempt, so many seconds after `NOW`."""
    state, _, attempt = text.partition(" ")
    return StatusUpdate(id, TaskState(state), NOW + timedelta(seconds=second), attempt=int(attempt or 0), **fields)


async def read_one(store: ResultStore, id: str) -> TaskStatus:  # noqa: A002
    """Return the status of a task that is known."""
    (status,) = await store.read([id])
    assert status is not None, f"nothing is known of {id}"
    return status
