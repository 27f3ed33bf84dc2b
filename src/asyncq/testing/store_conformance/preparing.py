"""Creating what a store needs, and versions of asyncq that differ."""

from __future__ import annotations

import asyncio

import pytest

from asyncq.errors import NotOpen, StoreSchemaMismatch
from asyncq.testing.store_conformance.bench import StoreBench, behaviour, read_one, update


@behaviour
async def test_preparing_again_changes_nothing(bench: StoreBench) -> None:
    """Also several at once, and beside a store in use."""
    async with bench.open() as store:
        await store.write([update("a", "queued")])
        await asyncio.gather(*(bench.make().init() for _ in range(4)), store.init())
        assert (await read_one(store, "a")).state == "queued"


@behaviour
async def test_a_new_namespace_can_be_prepared_by_several_at_once(bench: StoreBench) -> None:
    """Whoever comes first creates it; nobody fails."""
    stores = [bench.make(namespace="brand-new") for _ in range(4)]
    await asyncio.gather(*(store.init() for store in stores))
    async with bench.open(namespace="brand-new") as store:
        await store.write([update("a", "queued")])
        assert (await read_one(store, "a")).state == "queued"


@behaviour
async def test_namespaces_do_not_see_each_other(bench: StoreBench) -> None:
    """Two projects in one database."""
    await bench.make(namespace="other-one").init()
    async with bench.open() as store, bench.open(namespace="other-one") as other:
        await store.write([update("a", "queued")])
        assert await other.read(["a"]) == [None]
        assert (await other.list()).items == ()


@behaviour
async def test_a_store_of_a_newer_asyncq_is_left_alone(bench: StoreBench) -> None:
    """Neither opened nor changed; the message says what to do."""
    await bench.set_schema(999)
    for call in (bench.make().open, bench.make().init):
        with pytest.raises(StoreSchemaMismatch, match=r"schema 999 of a newer asyncq.*Install"):
            await call()


@behaviour
async def test_a_store_of_an_older_asyncq_is_not_opened(bench: StoreBench) -> None:
    """Migrating is a decision."""
    await bench.set_schema(0)
    with pytest.raises(StoreSchemaMismatch, match=r"schema 0 of an older asyncq.*init"):
        await bench.make().open()


@behaviour
async def test_a_store_that_is_not_open_says_so(bench: StoreBench) -> None:
    """Before it is opened and after it is closed; it can be opened again."""
    store = bench.make()
    await store.close()
    with pytest.raises(NotOpen, match="open"):
        await store.read(["a"])
    for _ in range(2):
        await store.open()
        await store.open()
        assert await store.read(["a"]) == [None]
        await store.close()
    with pytest.raises(NotOpen):
        await store.write([update("a", "queued")])
