"""Records that may be forgotten are, and no others."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from asyncq.testing.store_conformance.bench import StoreBench, behaviour, read_one, update

_DAY = 24 * 3600.0


@behaviour
async def test_what_has_expired_is_not_known_any_more(bench: StoreBench) -> None:
    """Neither read nor listed, also before it is cleaned away; what may be kept is."""
    async with bench.open(ttl_s=_DAY) as store:
        await store.write([update("old", "succeeded 1", -_DAY - 1, result=b"1"), update("new", "succeeded 1", 0)])
        await store.write([update("kept", "succeeded 1", -_DAY - 1, ttl_s=30 * _DAY)])
        await store.write([update("waits", "scheduled", -1000, due_at=datetime.now(UTC) + timedelta(days=300))])
        await store.write([update("runs", "started 1", -_DAY), update("forgotten", "started 1", -8 * _DAY)])
        found = await store.read(["old", "new", "kept", "waits", "runs", "forgotten"])
        assert [status is not None for status in found] == [False, True, True, True, True, False]
        assert {status.id for status in (await store.list()).items} == {"new", "kept", "waits", "runs"}
        assert await store.clean() == 2
        assert await store.clean() == 0
        assert {status.id for status in (await store.list()).items} == {"new", "kept", "waits", "runs"}


@behaviour
async def test_what_has_expired_does_not_come_back_by_a_new_update(bench: StoreBench) -> None:
    """An id that is used again begins from nothing."""
    async with bench.open(ttl_s=60) as store:
        await store.write([update("a", "failed 3", -61, task="old")])
        await store.write([update("a", "queued", 0, task="new")])
        status = await read_one(store, "a")
        assert (status.state, status.attempt, status.task) == ("queued", 0, "new")
        await store.clean()
        assert (await read_one(store, "a")).task == "new"
        assert [item.id for item in (await store.list(task="new")).items] == ["a"]
        assert (await store.list(task="old")).items == ()


@behaviour
async def test_records_without_a_time_to_live_stay(bench: StoreBench) -> None:
    """For ever, as was asked."""
    async with bench.open(ttl_s=None) as store:
        await store.write([update("a", "succeeded 1", -1000 * _DAY)])
        assert await store.clean() == 0
        status = await read_one(store, "a")
        assert (status.state, status.expires_at) == ("succeeded", None)


@behaviour
async def test_a_record_that_gets_a_longer_life_is_not_cleaned(bench: StoreBench) -> None:
    """The last update that counts says how long."""
    async with bench.open() as store:
        now = datetime.now(UTC)
        await store.write([replace(update("a", "failed 1"), at=now, ttl_s=0.5)])
        await store.write([replace(update("a", "succeeded 1"), at=now, ttl_s=_DAY)])
        await asyncio.sleep(0.6)  # the first one's life is over
        await store.clean()
        assert (await read_one(store, "a")).state == "succeeded"


@behaviour
async def test_what_ended_before_a_moment_is_cleaned_on_demand(bench: StoreBench) -> None:
    """Not what is still to come, or has ended since."""
    async with bench.open(ttl_s=None) as store:
        await store.write([update("ended", "failed 1", -7200), update("runs", "started 1", -7200)])
        await store.write([update("waits", "queued", -7200), update("later", "cancelled 1", 7200)])
        # They became known now, whenever they ended: what is to go must have become known before, too.
        assert await store.clean(older_than=datetime.now(UTC) + timedelta(seconds=1)) == 1
        assert {status.id for status in (await store.list()).items} == {"runs", "waits", "later"}
        assert await store.read(["ended"]) == [None]


@behaviour
async def test_many_are_cleaned_in_small_steps(bench: StoreBench) -> None:
    """1,200, while others are written and read."""
    async with bench.open() as store, bench.open() as other:
        await store.write([update(f"old-{number}", "succeeded 1", -8 * _DAY) for number in range(600)])
        await store.write([update(f"ended-{number}", "succeeded 1", -60) for number in range(600)])
        await other.write([update("new", "succeeded 1", 7200)])
        assert await store.clean(older_than=datetime.now(UTC) + timedelta(seconds=1)) == 1200
        assert [status.id for status in (await other.list()).items] == ["new"]
