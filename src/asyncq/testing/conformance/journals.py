"""Journals: what was appended is read by everybody, from the first entry on, and then as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from asyncq.broker import QueueSpec
from asyncq.errors import NotOpen, NotSent, PublishError
from asyncq.journal import CaughtUp, Entry, Following, Heard, Interrupted, Journal
from asyncq.testing.conformance.bench import WAIT_S, Bench, behaviour, eventually

_NAME = "notes"
_KEEP_S = 3600.0


async def _append(journal: Journal, *bodies: bytes) -> None:
    for body in bodies:
        await journal.append(body, timeout_s=WAIT_S)


async def _hear(following: Following, count: int) -> list[Heard]:
    heard = aiter(following)
    async with asyncio.timeout(WAIT_S):
        return [await anext(heard) for _ in range(count)]


async def _until_caught_up(following: Following) -> list[bytes]:
    """Return the entries that come before `CaughtUp`."""
    found: list[bytes] = []
    async with asyncio.timeout(WAIT_S):
        async for item in following:
            if isinstance(item, CaughtUp):
                return found
            if isinstance(item, Entry):
                found.append(item.body)
    raise AssertionError("the following has ended")


def _entries(*bodies: bytes) -> Sequence[Heard]:
    return [Entry(body) for body in bodies]


@behaviour
async def test_a_follower_hears_what_is_there_then_that_it_has_caught_up_then_what_comes(bench: Bench) -> None:
    """In the order of the appends, from whatever connection they come."""
    async with bench.open() as broker, bench.open() as other:
        await _append(broker.journal(_NAME, keep_s=_KEEP_S), b"1", b"2", b"3")
        async with other.journal(_NAME, keep_s=_KEEP_S).follow() as following:
            assert await _hear(following, 4) == [*_entries(b"1", b"2", b"3"), CaughtUp()]
            await _append(broker.journal(_NAME, keep_s=_KEEP_S), b"4", b"5")
            await _append(other.journal(_NAME, keep_s=_KEEP_S), b"6")
            assert await _hear(following, 3) == _entries(b"4", b"5", b"6")


@behaviour
async def test_a_journal_that_nobody_has_written_is_read_to_its_end(bench: Bench) -> None:
    """Who follows need not wait for a first entry to know that there is none."""
    async with bench.open() as broker, broker.journal(_NAME, keep_s=_KEEP_S).follow() as following:
        assert await _hear(following, 1) == [CaughtUp()]


@behaviour
async def test_entries_outlive_those_who_wrote_and_read_them(bench: Bench) -> None:
    """Nothing is taken out by reading: each follower reads all, those that come later too."""
    async with bench.open() as broker:
        await _append(broker.journal(_NAME, keep_s=_KEEP_S), b"1", b"2")
        for _ in range(2):
            async with broker.journal(_NAME, keep_s=_KEEP_S).follow() as following:
                assert await _until_caught_up(following) == [b"1", b"2"]
    async with bench.open() as late, late.journal(_NAME, keep_s=_KEEP_S).follow() as following:
        assert await _until_caught_up(following) == [b"1", b"2"]


@behaviour
async def test_several_followers_hear_the_same_in_the_same_order(bench: Bench) -> None:
    """While several write at once."""
    async with (
        bench.open() as one,
        bench.open() as two,
        one.journal(_NAME, keep_s=_KEEP_S).follow() as first,
        one.journal(_NAME, keep_s=_KEEP_S).follow() as second,
        two.journal(_NAME, keep_s=_KEEP_S).follow() as third,
    ):
        for following in (first, second, third):
            assert await _until_caught_up(following) == []
        await asyncio.gather(
            *(
                _append(broker.journal(_NAME, keep_s=_KEEP_S), b"%d" % number)
                for number in range(50)
                for broker in (one, two)
            )
        )
        heard = [await _hear(following, 100) for following in (first, second, third)]
    assert heard[0] == heard[1] == heard[2]
    assert sorted(item.body for item in heard[0] if isinstance(item, Entry)) == sorted(
        b"%d" % number for number in range(50) for _ in range(2)
    )


@behaviour
async def test_journals_of_different_names_and_namespaces_know_nothing_of_each_other(bench: Bench) -> None:
    """Each has its own entries."""
    async with bench.open() as broker, bench.open(QueueSpec("another"), namespace="other") as other:
        await _append(broker.journal("a", keep_s=_KEEP_S), b"a")
        await _append(broker.journal("b", keep_s=_KEEP_S), b"b")
        await _append(other.journal("a", keep_s=_KEEP_S), b"c")
        for asking, name, body in ((broker, "a", b"a"), (broker, "b", b"b"), (other, "a", b"c")):
            async with asking.journal(name, keep_s=_KEEP_S).follow() as following:
                assert await _until_caught_up(following) == [body]


@behaviour
async def test_after_a_lost_connection_a_follower_says_so_and_catches_up(bench: Bench) -> None:
    """It hears what was appended meanwhile before it says that it has caught up."""
    async with bench.open() as broker, bench.open() as other:
        journal = other.journal(_NAME, keep_s=_KEEP_S)
        async with broker.journal(_NAME, keep_s=_KEEP_S).follow() as following:
            assert await _until_caught_up(following) == []
            for number in range(3):
                await bench.cut(broker)

                async def appended(body: bytes = b"%d" % number) -> bool:
                    try:
                        await _append(journal, body)
                    except PublishError:  # its connection was cut as well
                        return False
                    return True

                await eventually(appended)
                await _hear_interrupted(following)
                await _until_caught_up_with(following, b"%d" % number)


async def _hear_interrupted(following: Following) -> None:
    async with asyncio.timeout(WAIT_S):
        async for item in following:
            if isinstance(item, Interrupted):
                return


async def _until_caught_up_with(following: Following, body: bytes) -> None:
    """Wait until the follower has caught up, and this entry has come, before that or after."""
    found: set[bytes] = set()
    caught_up = False
    async with asyncio.timeout(WAIT_S):
        async for item in following:
            caught_up = caught_up or isinstance(item, CaughtUp)
            if isinstance(item, Entry):
                found.add(item.body)
            if caught_up and body in found:
                return


@behaviour
async def test_a_journal_that_was_deleted_is_empty_and_goes_on(bench: Bench) -> None:
    """Who follows it hears of an interruption, and then what is appended to the new one."""
    async with bench.open() as broker:
        journal = broker.journal(_NAME, keep_s=_KEEP_S)
        await _append(journal, b"1", b"2")
        async with journal.follow() as following:
            assert await _until_caught_up(following) == [b"1", b"2"]
            await bench.delete_queue(f"asyncq.{_NAME}")
            await _hear_interrupted(following)
            assert await _until_caught_up(following) == []
            await _append(journal, b"3")
            assert await _hear(following, 1) == _entries(b"3")
        await bench.delete_queue(f"asyncq.{_NAME}")
        await _append(journal, b"4")
        async with journal.follow() as following:
            assert await _until_caught_up(following) == [b"4"]


@behaviour
async def test_thousands_of_entries_are_read_in_order(bench: Bench) -> None:
    """More than a follower asks for at once, of several sizes."""
    bodies = [b"%d" % number + b"x" * (number % 700) for number in range(3000)]
    async with bench.open() as broker:
        journal = broker.journal(_NAME, keep_s=_KEEP_S)
        for begin in range(0, len(bodies), 500):
            await asyncio.gather(*(_append(journal, body) for body in bodies[begin : begin + 500]))
        async with journal.follow() as following:
            assert sorted(await _until_caught_up(following)) == sorted(bodies)


@behaviour
async def test_closing_ends_the_iteration_and_a_closed_broker_is_said(bench: Bench) -> None:
    """Whoever waits for an entry does not wait for ever."""
    async with bench.open() as broker:
        journal = broker.journal(_NAME, keep_s=_KEEP_S)
        async with journal.follow() as following:
            assert await _hear(following, 1) == [CaughtUp()]
            waiting = asyncio.ensure_future(anext(aiter(following), None))
            await asyncio.sleep(0)
        assert await asyncio.wait_for(waiting, WAIT_S) is None
        async with journal.follow() as following:
            assert await _hear(following, 1) == [CaughtUp()]
            await broker.close()
            with pytest.raises(NotOpen):
                await _hear(following, 2)  # an interruption first, perhaps
        with pytest.raises(NotSent):
            await _append(journal, b"1")
