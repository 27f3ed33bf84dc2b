"""A store that goes away says so, and works again as soon as it is back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from asyncq.errors import StoreUnavailable
from asyncq.testing.store_conformance.bench import WAIT_S, StoreBench, behaviour, read_one, update


@behaviour
async def test_a_store_that_is_away_says_so_and_works_again_when_it_is_back(bench: StoreBench) -> None:
    """With all that it has kept; nothing has to be opened again."""
    async with bench.open(timeout_s=2) as store:
        await store.write([update("a", "queued"), update("b", "succeeded 1", result=b"1")])
        await bench.go_away()
        try:
            calls: list[Callable[[], Awaitable[object]]] = [lambda: store.write([update("a", "started 1", 1)])]
            if not bench.readable_when_away:
                calls += [lambda: store.read(["a"]), store.list, store.clean]
            for call in calls:
                with pytest.raises(StoreUnavailable) as caught:
                    await call()
                assert store.shown in str(caught.value)
                assert "Check that it runs" in str(caught.value)
                assert "not-checked" not in str(caught.value)  # the password in the URL of tests
        finally:
            await bench.come_back()
        await store.write([update("a", "started 1", 1)])
        assert (await read_one(store, "a")).state == "started"
        assert (await read_one(store, "b")).result == b"1"


@behaviour
async def test_a_store_that_is_away_at_the_start_can_be_opened_later(bench: StoreBench) -> None:
    """By the same object."""
    store = bench.make(timeout_s=2)
    await bench.go_away()
    try:
        if bench.readable_when_away:
            await store.open()
        else:
            with pytest.raises(StoreUnavailable):
                await store.open()
            with pytest.raises(StoreUnavailable):
                await bench.make(timeout_s=2).init()
    finally:
        await bench.come_back()
    await store.open()
    await store.write([update("a", "queued")])
    assert (await read_one(store, "a")).state == "queued"
    await store.close()


@behaviour
async def test_what_a_write_has_returned_for_is_kept_through_an_outage(bench: StoreBench) -> None:
    """Writers go on until they are through: all is there in the end, whole."""
    async with bench.open(timeout_s=2) as store:
        written = asyncio.Event()

        async def write(writer: int) -> None:
            for number in range(20):
                batch = [update(f"{writer}-{number}", "queued"), update(f"{writer}-{number}", "succeeded 1", 1)]
                while True:
                    try:
                        await store.write(batch)
                        break
                    except StoreUnavailable:
                        await asyncio.sleep(0.05)
                if number == 5:
                    written.set()
                await asyncio.sleep(0.01)

        writing = [asyncio.create_task(write(writer)) for writer in range(4)]
        await written.wait()
        await bench.go_away()
        await bench.come_back()
        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(*writing)
        found = await store.read([f"{writer}-{number}" for writer in range(4) for number in range(20)])
        assert {status and str(status.state) for status in found} == {"succeeded"}
