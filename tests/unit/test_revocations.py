"""The set of what shall not run: by id, for so long, and never more than so many."""

from __future__ import annotations

import asyncio
import random
import sys
import time

import pytest

import asyncq.worker.revocations as module
from asyncq.cancellations import Cancellation, checked_ids, entries_of
from asyncq.errors import InvalidOption
from asyncq.testing.clock import ManualClock
from asyncq.worker.revocations import Revocations


def revocations(keep_s: float = 100, most: int = 1000) -> tuple[Revocations, ManualClock]:
    clock = ManualClock()
    return Revocations(clock, keep_s, most), clock


def test_an_id_is_in_it_until_it_is_taken_back():
    """Others never are, whatever they look like."""
    found, clock = revocations()
    assert "a" not in found
    found.add(["a", "größe", "\ud800"], clock.now_ms())
    assert "a" in found
    assert "größe" in found
    assert "\ud800" in found
    assert "A" not in found
    assert "" not in found
    assert 7 not in found
    found.remove(["a", "unknown"])
    assert "a" not in found
    assert len(found) == 2


async def test_an_id_is_forgotten_after_its_time_and_takes_no_room_soon_after():
    """By when it was asked for, not by when it was heard of; asking again begins anew."""
    found, clock = revocations(keep_s=100)
    asked_ms = clock.now_ms()
    found.add(["a", "b"], asked_ms)
    await clock.advance(60)
    found.add(["b"], clock.now_ms())
    found.add(["old"], asked_ms - 50_000)
    assert "old" not in found
    await clock.advance(39.9)
    assert "a" in found
    await clock.advance(0.1)
    assert "a" not in found
    assert "b" in found
    await clock.advance(10)
    found.add(["c"], clock.now_ms())
    assert len(found) == 2


async def test_a_time_from_the_future_is_taken_for_now():
    """Somebody's clock is ahead: that keeps an id no longer than any other."""
    found, clock = revocations(keep_s=100)
    found.add(["a"], clock.now_ms() + 10**9)
    assert "a" in found
    await clock.advance(100)
    assert "a" not in found


def test_of_too_many_the_oldest_are_forgotten_and_that_is_said(caplog):
    """A cancellation that is lost is better than a worker that is killed for its memory."""
    found, clock = revocations(most=1000)
    for number in range(5000):
        found.add([f"task-{number}"], clock.now_ms())
    assert len(found) <= 1000
    assert "task-0" not in found
    assert all(f"task-{number}" in found for number in range(4100, 5000))
    assert "too many tasks are cancelled" in caplog.text


def test_a_hundred_thousand_ids_take_some_ten_megabytes():
    """Whatever the ids look like."""
    found, clock = revocations(keep_s=100, most=10**6)
    found.add((f"{number:0200d}" for number in range(100_000)), clock.now_ms())
    held = found._at_ms
    size = sys.getsizeof(held) + sum(map(sys.getsizeof, held))
    assert size < 16_000_000
    assert len(found) == 100_000


async def test_who_waits_for_it_to_be_current_waits_as_long_as_it_is_behind(caplog, monkeypatch):
    """And not for ever; then it says what that means."""
    found, _ = revocations()
    await found.wait_until_current()
    found.fall_behind()
    assert not found.is_current
    waiting = asyncio.ensure_future(found.wait_until_current())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    found.catch_up()
    await asyncio.wait_for(waiting, 5)
    assert "cannot be read" not in caplog.text
    monkeypatch.setattr(module, "_PATIENCE_S", 0.02)
    found.fall_behind()
    await found.wait_until_current()
    assert "cancellations cannot be read" in caplog.text


async def test_the_deliveries_of_one_outage_wait_together_and_not_each_anew(caplog, monkeypatch):
    """A journal that stays away must not slow each task down, nor fill the log."""
    monkeypatch.setattr(module, "_PATIENCE_S", 0.2)
    found, _ = revocations()
    found.fall_behind()
    began = time.monotonic()
    for _ in range(100):
        await found.wait_until_current()
    assert time.monotonic() - began < 10
    assert caplog.text.count("cancellations cannot be read") == 1
    found.catch_up()
    found.fall_behind()
    waiting = asyncio.ensure_future(found.wait_until_current())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    found.catch_up()
    await asyncio.wait_for(waiting, 5)


# --- on the wire


def test_an_entry_is_read_as_it_was_written_and_thousands_of_ids_are_several_entries():
    """Each of a size that any broker takes."""
    ids = [f"task-{number}" for number in range(random.Random(7).randint(900, 1100))]
    for undone in (False, True):
        entries = list(entries_of(ids, 123, undone=undone))
        assert [Cancellation.read(entry.to_json()) for entry in entries] == entries
        assert [task_id for entry in entries for task_id in entry.ids] == ids
        assert {(entry.at_ms, entry.undone) for entry in entries} == {(123, undone)}
        assert max(len(entry.to_json()) for entry in entries) < 64 * 1024
    assert list(entries_of([], 123)) == []


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"null", b"7", b"[]", b"{}", b'"cancel"', b'{"cancel":["a"]}', b'{"cancel":["a"],"at":true}', b"\xff"),
        *(b'{"cancel":"a","at":1}', b'{"cancel":[1],"at":1}', b'{"cancel":["a"],"at":"1"}', b"[" * 100_000),
    ],
)
def test_what_is_no_entry_is_none(body):
    """A stranger's note stops nobody."""
    assert Cancellation.read(body) is None


def test_ids_are_taken_once_each_and_what_is_none_is_refused():
    """In the order in which they were given."""
    assert checked_ids(["b", "a", "b"]) == ("b", "a")
    for wrong in ("", "x" * 256, None, 7, b"a"):
        with pytest.raises(InvalidOption, match=r"handle\.id"):
            checked_ids(["a", wrong])
