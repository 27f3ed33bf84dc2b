"""What is known of an id, and what is not."""

from __future__ import annotations

from asyncq.status import TaskStatus
from asyncq.testing.store_conformance.bench import StoreBench, behaviour, read_one, update


@behaviour
async def test_an_unknown_id_is_none(bench: StoreBench) -> None:
    """That is not the same as queued; the order is that of the question."""
    async with bench.open() as store:
        await store.write([update("a", "queued"), update("b", "started 1")])
        found = await store.read(["b", "nobody", "a", "b", ""])
        assert await store.read([]) == []
    assert [status and str(status.state) for status in found] == ["started", None, "queued", "started", None]


@behaviour
async def test_ids_may_be_any_text(bench: StoreBench) -> None:
    """Foreign clients choose them."""
    ids = ["a:b", "ä" * 127, "%00", "\0", "a\0b", "'; DROP TABLE x; --", "\ud800", "*", "x" * 255]
    async with bench.open() as store:
        await store.write([update(id_, "started 1") for id_ in ids])
        found = await store.read(ids)
        listed = (await store.list()).items
    assert [status and status.id for status in found] == ids
    assert sorted(status.id for status in listed) == sorted(ids)


@behaviour
async def test_a_record_that_cannot_be_read_is_unknown_and_hides_no_other(bench: StoreBench) -> None:
    """Not an error of whoever reads, and the next update takes its place."""
    async with bench.open() as store:
        for foreign in ("", "no JSON", "[]", '{"state":"dancing"}', '{"state":"queued","queued_at":"today"}'):
            await store.write([update("a", "queued"), update("b", "queued")])
            await bench.spoil("a", foreign)
            spoilt, other = await store.read(["a", "b"])
            assert (spoilt, other and other.state) == (TaskStatus("a"), "queued")
            assert {status.id for status in (await store.list()).items} == {"a", "b"}
            await store.write([update("a", "started 1")])
            assert (await read_one(store, "a")).state == "started"
