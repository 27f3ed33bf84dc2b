"""Asking for the paused queues where the broker does not answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from asyncq import controller
from asyncq.app import AsyncQ
from asyncq.errors import BrokerUnavailable
from asyncq.journal import Heard
from asyncq.memory.broker import MemoryBroker
from asyncq.memory.node import MemoryNode


class Away:
    """The journal of a broker whose connection is being mended."""

    @asynccontextmanager
    async def follow(self) -> AsyncIterator[AsyncIterator[Heard]]:
        async def heard() -> AsyncIterator[Heard]:
            await asyncio.get_running_loop().create_future()
            raise AssertionError("never")
            yield

        yield heard()


class BrokerAway(MemoryBroker):
    """Works, but for its journals."""

    def journal(self, name: str, *, keep_s: float) -> Any:
        return Away()


@pytest.mark.parametrize("what", ["paused", "resume"])
async def test_a_journal_that_cannot_be_read_in_time_is_an_error_of_the_broker(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line has an exit code for it; a bare TimeoutError would be a fault of ours."""
    monkeypatch.setattr(controller, "_READ_S", 0.05)
    node = MemoryNode()
    app = AsyncQ("shop", broker=lambda settings: BrokerAway(settings, node))
    async with app:
        with pytest.raises(BrokerUnavailable, match=r"could not be read .* within 0.05 s"):
            await (app.control.paused() if what == "paused" else app.control.resume("mail", timeout=0.1))
