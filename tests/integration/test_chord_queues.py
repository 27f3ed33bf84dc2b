"""The queue of a chord: what it is declared as, who gets its members, and when it goes away."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from asyncq import AsyncQ
from asyncq.barrier import Gathered, Member
from asyncq.broker import Identity, QueueSpec
from asyncq.errors import AccessRefused, BrokerError, QueueGone
from asyncq.message import new_id
from asyncq.program import Fork, Step, Workflow, node_id
from asyncq.rabbitmq.adapter import RabbitMQ
from asyncq.rabbitmq.counting import Counted
from asyncq.settings import Settings
from support import eventually, working

WAIT_S = 30.0


def member(index: int, body: bytes = b"1") -> Member:
    return Member(index, "succeeded", body, f"t{index}", "x")


async def the_winners(arrivals) -> list[Gathered]:
    """Let all arrive at once; whoever gets the members says that it is done with them."""

    async def arrive_at(arrive) -> Gathered | None:
        try:
            gathered = await arrive()
        except QueueGone:  # it came after the others, which had brought all members without it
            return None
        except BrokerError:
            # Brought again, as the contract says: in the moment of its end a quorum queue refuses what is published,
            # and ends the connection of who begins to consume it (541, INTERNAL_ERROR).
            return await arrive_at(arrive)
        if gathered is not None:
            await gathered.done()
        return gathered

    return [item for item in await asyncio.gather(*map(arrive_at, arrivals)) if item is not None]


@pytest.fixture
async def brokers(broker_url):
    """Four clients of one broker, as four workers are."""
    clients = [RabbitMQ(Settings(broker_url=broker_url)) for _ in range(4)]
    for client in clients:
        await client.open(Identity("chords", "worker"))
    yield clients
    for client in clients:
        await client.close()


async def test_it_is_a_quorum_queue_that_expires(brokers, management):
    """With one active consumer, and no limit on deliveries: each worker that dies while it gathers counts as one."""
    await brokers[0].barriers().open("c", b"head", keep_s=3600, timeout_s=WAIT_S)
    queue = await management.queue("asyncq.chord.c")
    assert queue["arguments"] == {
        "x-queue-type": "quorum",
        "x-single-active-consumer": True,
        "x-expires": 3_600_000,
        "x-delivery-limit": 2_000_000_000,
    }


async def test_it_can_wait_for_more_than_a_year(brokers, management):
    """The broker takes that."""
    year_s = 400 * 86400
    await brokers[0].barriers().open("c", b"head", keep_s=year_s, timeout_s=WAIT_S)
    assert (await management.queue("asyncq.chord.c"))["arguments"]["x-expires"] == year_s * 1000


async def test_a_second_sender_with_another_idea_of_how_long_finds_it_as_it_is(brokers):
    """A second settlement after a deploy is no error."""
    for keep_s in (60, 90):
        await brokers[0].barriers().open("c", b"head", keep_s=keep_s, timeout_s=WAIT_S)


async def test_of_many_who_come_last_at_once_one_gathers(brokers):
    """Whichever clients they come by; and the others go when that is done."""
    for round_ in range(5):
        chord, size = f"c{round_}", 12
        await brokers[0].barriers().open(chord, b"head", keep_s=60, timeout_s=WAIT_S)
        arrivals = [
            partial(brokers[index % 4].barriers().arrive, chord, size, member(index, b"%d" % index), timeout_s=WAIT_S)
            for index in range(size)
        ]
        (winner,) = await the_winners(arrivals)
        assert [item.body for item in winner.members] == [b"%d" % index for index in range(size)]
        with pytest.raises(QueueGone):
            await brokers[1].barriers().arrive(chord, size, member(0), timeout_s=WAIT_S)


async def test_duplicates_neither_complete_it_early_nor_hide_the_last_one(brokers):
    """As many arrivals as there are members, and all but one of them twice: the last one completes it all the same."""
    for round_ in range(5):
        chord, size = f"d{round_}", 6
        await brokers[0].barriers().open(chord, b"head", keep_s=60, timeout_s=WAIT_S)
        early = [index for index in range(size - 1) for _ in range(2)]
        arrivals = [*early, size - 1, size - 1]
        (winner,) = await the_winners(
            partial(brokers[place % 4].barriers().arrive, chord, size, member(index), timeout_s=WAIT_S)
            for place, index in enumerate(arrivals)
        )
        assert [item.index for item in winner.members] == list(range(size))


async def test_who_loses_the_connection_while_it_holds_them_leaves_them_to_the_next(brokers):
    """That one is the same task, delivered again: it brings its member again."""
    await brokers[0].barriers().open("c", b"head", keep_s=60, timeout_s=WAIT_S)
    assert await brokers[0].barriers().arrive("c", 2, member(0), timeout_s=WAIT_S) is None
    held = await brokers[1].barriers().arrive("c", 2, member(1), timeout_s=WAIT_S)
    assert held is not None
    await brokers[1].close()
    gathered = await brokers[2].barriers().arrive("c", 2, member(1), timeout_s=WAIT_S)
    assert gathered is not None
    assert [item.index for item in gathered.members] == [0, 1]
    await gathered.done()


async def test_who_comes_while_others_hold_the_members_waits_for_their_end(brokers):
    """The broker may learn late that these others are dead: what was left to them would be left for ever.

    A dead worker's task comes again by one connection of its, while the broker still believes in the other one, by
    which it holds the members.
    """
    await brokers[0].barriers().open("c", b"head", keep_s=60, timeout_s=WAIT_S)
    assert await brokers[0].barriers().arrive("c", 2, member(0), timeout_s=WAIT_S) is None
    held = await brokers[1].barriers().arrive("c", 2, member(1), timeout_s=WAIT_S)
    assert held is not None
    again = asyncio.ensure_future(brokers[2].barriers().arrive("c", 2, member(1), timeout_s=WAIT_S))
    _, pending = await asyncio.wait({again}, timeout=1)
    assert pending == {again}
    await held.give_back()
    gathered = await asyncio.wait_for(again, WAIT_S)
    assert gathered is not None
    assert [item.index for item in gathered.members] == [0, 1]
    await gathered.done()


async def test_a_count_of_nothing_is_asked_for_again(brokers, monkeypatch):
    """While a queue's leader moves it says 0, though an arrival was confirmed just before."""
    barriers = brokers[0].barriers()
    await barriers.open("c", b"head", keep_s=60, timeout_s=WAIT_S)
    real, asked = barriers._counting.count, []

    async def count(queue: str) -> Counted | None:
        asked.append(queue)
        return Counted(0, 0) if len(asked) < 3 else await real(queue)

    monkeypatch.setattr(barriers._counting, "count", count)
    gathered = await barriers.arrive("c", 1, member(0), timeout_s=WAIT_S)
    assert gathered is not None
    assert len(asked) == 3
    await gathered.done()


async def test_one_answer_serves_all_who_ask_meanwhile(brokers):
    """And it is never from before their question."""
    barriers = brokers[0].barriers()
    await barriers.open("c", b"head", keep_s=60, timeout_s=WAIT_S)
    counted = await asyncio.gather(*(barriers._counting.count("asyncq.chord.c") for _ in range(50)))
    assert {item and item.ready for item in counted} == {1}
    await barriers.arrive("c", 9, member(0), timeout_s=WAIT_S)
    counted = await asyncio.gather(*(barriers._counting.count(name) for name in ("asyncq.chord.c", "none") * 20))
    assert counted == [Counted(2, 0), None] * 20


async def test_an_app_that_declares_nothing_says_what_it_cannot_do(broker_url):
    """Before anything is sent."""
    async with AsyncQ("shop", broker=broker_url) as declares:
        await declares.broker.ensure([QueueSpec("shop")])
    workflow_id = new_id()
    fork = Fork(node_id(workflow_id, "0"), ((Step(new_id(), "shop.a", "shop"),),), joined=True)
    async with AsyncQ("shop", broker=broker_url, declare=False) as app:
        with pytest.raises(AccessRefused, match="declare=False"):
            await app.send_program((fork,), Workflow(workflow_id))


async def test_nothing_is_left_of_what_could_not_be_sent(broker_url, management):
    """Its members have no queue, so the chord's own is removed."""
    workflow_id = new_id()
    fork = Fork(node_id(workflow_id, "0"), ((Step(new_id(), "shop.a", "nowhere"),),), joined=True)
    async with AsyncQ("shop", broker=broker_url) as app:
        with pytest.raises(Exception, match="nowhere"):
            await app.send_program((fork,), Workflow(workflow_id))
    assert not [name for name in await management.queues() if "chord" in name]


async def test_a_large_chord_is_gathered_whole(broker_url, management):
    """More members than a consumer of a quorum queue gets without a prefetch of its own."""
    app = AsyncQ("shop", broker=broker_url)

    @app.task
    async def number(n: int) -> int:
        return n

    @app.task
    async def total(values: list[int]) -> int:
        return sum(values)

    workflow_id, size = new_id(), 2500
    members = tuple(
        ((Step(node_id(workflow_id, f"0.{n}"), "shop.number", "shop", b'{"n":%d}' % n, reply=False)),)
        for n in range(size)
    )
    program = (
        Fork(node_id(workflow_id, "0"), members),
        Step(node_id(workflow_id, "1"), "shop.total", "shop", into="values", reply=False),
    )
    async with working(app, {"shop": 100}):
        pending = await app.send_program(program, Workflow(workflow_id), expect=[workflow_id])
        message = await eventually(lambda: pending[workflow_id].final, 100)
    assert message.body == b"%d" % sum(range(size))
