"""Leadership: of many candidates one leads, and its states outlive it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from asyncq.broker import Broker, Exchange, Queue
from asyncq.errors import LeaseLost, Unroutable
from asyncq.leadership import Leadership, Term
from asyncq.testing.conformance.bench import QUEUE, WAIT_S, Bench, behaviour, make_message, take

NAME = "scheduler.shop"

_QUIET_S = 0.5
_MANY = 1_050


def _leadership(broker: Broker) -> Leadership:
    assert isinstance(broker, Leadership)
    return broker


@asynccontextmanager
async def _standing(broker: Broker) -> AsyncIterator[AsyncIterator[Term]]:
    async with _leadership(broker).campaign(NAME) as terms:
        yield terms


async def _term(terms: AsyncIterator[Term]) -> Term:
    async with asyncio.timeout(WAIT_S):
        return await anext(terms)


async def _next(terms: AsyncIterator[Term]) -> Term:
    return await anext(terms)


@behaviour
async def test_of_several_candidates_one_leads_and_the_next_one_follows_when_it_leaves(bench: Bench) -> None:
    """At once, without waiting for a timeout."""
    async with bench.open() as one, bench.open() as two, _standing(two) as followers:
        async with _standing(one) as terms:
            first = await _term(terms)
            waiting = asyncio.create_task(_next(followers))
            done, _ = await asyncio.wait({waiting}, timeout=_QUIET_S)
            assert (done, first.is_lost) == (set(), False)
        second = await asyncio.wait_for(waiting, WAIT_S)
        assert (first.is_lost, second.is_lost) == (True, False)


@behaviour
async def test_states_are_kept_for_those_who_follow_and_the_newest_counts(bench: Bench) -> None:
    """Each by its name; the first leader finds none."""
    async with bench.open() as one, bench.open() as two:
        async with _standing(one) as terms:
            term = await _term(terms)
            assert dict(term.states) == {}
            for number in range(20):
                await term.save("watermark", b'{"n":%d}' % number, timeout_s=WAIT_S)
            await term.save("definitions", b'{"a":1}', timeout_s=WAIT_S)
        for broker in (two, one, two):
            async with _standing(broker) as terms:
                term = await _term(terms)
                assert dict(term.states) == {"watermark": b'{"n":19}', "definitions": b'{"a":1}'}


@behaviour
async def test_states_outlive_many_leaders_that_are_cut_off(bench: Bench) -> None:
    """Returned again and again, whatever limits the broker has for that; each leader goes on from the one before."""
    async with bench.open() as broker, _standing(broker) as terms:
        for number in range(50):
            term = await _term(terms)
            assert term.states.get("n", b"0") == b"%d" % number
            await term.save("n", b"%d" % (number + 1), timeout_s=WAIT_S)
            await bench.cut(broker)
            await asyncio.wait_for(term.lost(), WAIT_S)
            assert term.is_lost


@behaviour
async def test_a_leader_publishes_to_task_queues(bench: Bench) -> None:
    """Confirmed and routed, or an error: the term goes on after one."""
    async with bench.open() as broker, _standing(broker) as terms, broker.consume(QUEUE, slots=5) as subscription:
        term = await _term(terms)
        for number in range(3):
            await term.publish(make_message(number), Exchange("asyncq.tasks", QUEUE), timeout_s=WAIT_S)
        with pytest.raises(Unroutable):
            await term.publish(make_message(3), Queue("nowhere"), timeout_s=WAIT_S)
        await term.publish(make_message(4), Queue(QUEUE), timeout_s=WAIT_S)
        assert [delivery.message.task_id for delivery in await take(subscription, 4)] == [
            "task-0",
            "task-1",
            "task-2",
            "task-4",
        ]
        assert not term.is_lost


@behaviour
async def test_a_term_that_is_over_publishes_and_saves_nothing(bench: Bench) -> None:
    """Whoever led before is told so."""
    async with bench.open() as broker, _standing(broker) as terms:
        term = await _term(terms)
        await term.save("n", b"1", timeout_s=WAIT_S)
        waiting = asyncio.ensure_future(term.note())
        await bench.cut(broker)
        await asyncio.wait_for(term.lost(), WAIT_S)
        with pytest.raises(LeaseLost):
            await asyncio.wait_for(waiting, WAIT_S)
        with pytest.raises(LeaseLost):
            await term.publish(make_message(), Queue(QUEUE), timeout_s=WAIT_S)
        with pytest.raises(LeaseLost):
            await term.save("n", b"2", timeout_s=WAIT_S)
        assert dict((await _term(terms)).states) == {"n": b"1"}
    assert await bench.count(QUEUE) == 0


@behaviour
async def test_a_note_reaches_the_leader_or_the_next_one_until_it_is_done(bench: Bench) -> None:
    """Also one that was sent while nobody led; in order."""
    async with bench.open() as broker, bench.open() as other:
        leadership = _leadership(other)
        async with _standing(broker) as terms:
            term = await _term(terms)
            for number in range(3):
                await leadership.tell_leader(NAME, make_message(number, type="pause"), timeout_s=WAIT_S)
            notes = [await asyncio.wait_for(term.note(), WAIT_S) for _ in range(3)]
            assert [note.message.task_id for note in notes] == ["task-0", "task-1", "task-2"]
            await notes[0].done()
            await notes[2].done()
        await leadership.tell_leader(NAME, make_message(3, type="pause"), timeout_s=WAIT_S)
        async with _standing(other) as terms:
            term = await _term(terms)
            notes = [await asyncio.wait_for(term.note(), WAIT_S) for _ in range(2)]
            assert [note.message.task_id for note in notes] == ["task-1", "task-3"]
            assert notes[0].message.body == b'{"n":1}'


@behaviour
async def test_many_notes_that_nobody_took_hold_up_no_leader(bench: Bench) -> None:
    """More than it is given at once, as from a monitor that asks while no scheduler runs; in order, all the same."""
    async with bench.open() as broker, bench.open() as other:
        async with _standing(broker) as terms:
            await (await _term(terms)).save("n", b"1", timeout_s=WAIT_S)
        for _ in range(_MANY // 50):
            told = (_leadership(other).tell_leader(NAME, make_message(), timeout_s=WAIT_S) for _ in range(50))
            await asyncio.gather(*told)
        await _leadership(other).tell_leader(NAME, make_message(7), timeout_s=WAIT_S)
        async with _standing(broker) as terms:
            term = await _term(terms)
            assert dict(term.states) == {"n": b"1"}
            for _ in range(_MANY):
                note = await asyncio.wait_for(term.note(), WAIT_S)
                assert note.message.task_id == "task-0"
                await note.done()
            last = await asyncio.wait_for(term.note(), WAIT_S)
            assert last.message.task_id == "task-7"
            await last.done()


@behaviour
async def test_nobody_is_told_anything_where_nobody_ever_stood(bench: Bench) -> None:
    """The sender hears of it."""
    async with bench.open() as broker:
        with pytest.raises(Unroutable):
            await _leadership(broker).tell_leader("scheduler.none", make_message(), timeout_s=WAIT_S)


@behaviour
async def test_a_deleted_queue_ends_the_term_and_another_begins_anew(bench: Bench) -> None:
    """The states are gone with it."""
    async with bench.open() as broker, _standing(broker) as terms:
        term = await _term(terms)
        await term.save("n", b"1", timeout_s=WAIT_S)
        await bench.delete_queue(f"asyncq.{NAME}")
        await asyncio.wait_for(term.lost(), WAIT_S)
        assert dict((await _term(terms)).states) == {}


@behaviour
async def test_names_have_leaders_of_their_own(bench: Bench) -> None:
    """Two apps on one broker do not wait for each other."""
    async with bench.open() as broker, _standing(broker) as terms:
        first = await _term(terms)
        async with _leadership(broker).campaign("scheduler.other") as others:
            second = await _term(others)
            assert (first.is_lost, second.is_lost) == (False, False)
