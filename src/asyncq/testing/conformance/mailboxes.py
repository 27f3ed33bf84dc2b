"""Mailboxes, and the state of the connection."""

from __future__ import annotations

import asyncio

import pytest

from asyncq.broker import Broker, Mailbox, ReplyTo
from asyncq.errors import PublishUncertain, ReplyLost, Unroutable
from asyncq.message import Message
from asyncq.testing.conformance.bench import WAIT_S, Bench, behaviour, eventually, make_message, put


async def _replies(mailbox: Mailbox, count: int) -> list[Message]:
    replies = aiter(mailbox)
    async with asyncio.timeout(WAIT_S):
        return [await anext(replies) for _ in range(count)]


@behaviour
async def test_a_mailbox_gets_what_is_sent_to_its_address_in_order(bench: Bench) -> None:
    """From any connection; the body and the task's id come as they went."""
    async with bench.open() as broker, bench.open() as other, broker.mailbox() as mailbox:
        for number in range(20):
            reply = make_message(number, type="progress")
            await other.publish(reply, ReplyTo(mailbox.address), timeout_s=WAIT_S)
        replies = await _replies(mailbox, 20)
    assert [reply.task_id for reply in replies] == [f"task-{number}" for number in range(20)]
    assert {reply.type for reply in replies} == {"progress"}


@behaviour
async def test_each_mailbox_has_an_address_of_its_own(bench: Bench) -> None:
    """Also two of one connection; each gets its own replies."""
    async with bench.open() as broker, broker.mailbox() as one, broker.mailbox() as two:
        assert one.address != two.address
        await put(broker, 1, first=1, to=ReplyTo(one.address))
        await put(broker, 1, first=2, to=ReplyTo(two.address))
        assert [(await _replies(mailbox, 1))[0].task_id for mailbox in (one, two)] == ["task-1", "task-2"]


@behaviour
async def test_a_mailbox_that_was_closed_takes_nothing_any_more(bench: Bench) -> None:
    """Who replies is told that nobody waits: closed by itself, or with its broker."""
    async with bench.open() as broker:
        async with broker.mailbox() as mailbox:
            first = mailbox.address
        with pytest.raises(Unroutable):
            await put(broker, to=ReplyTo(first))
        async with bench.open() as other, other.mailbox() as second:
            await put(broker, to=ReplyTo(second.address))
        with pytest.raises(Unroutable):
            await put(broker, to=ReplyTo(second.address))


@behaviour
async def test_a_mailbox_ends_the_iteration_when_it_is_closed(bench: Bench) -> None:
    """Whoever waits for a reply does not wait for ever."""
    async with bench.open() as broker:
        async with broker.mailbox() as mailbox:
            waiting = asyncio.ensure_future(anext(aiter(mailbox), None))
            await asyncio.sleep(0)
        assert await asyncio.wait_for(waiting, WAIT_S) is None


@behaviour
async def test_a_deleted_mailbox_is_told_and_has_a_new_address(bench: Bench) -> None:
    """What was in it is lost; iterating again reads the new one, and the old address is unroutable."""
    async with bench.open() as broker, broker.mailbox() as mailbox:
        old = mailbox.address
        await bench.delete_queue(old)
        with pytest.raises(ReplyLost, match="not affected"):
            await _replies(mailbox, 1)
        assert mailbox.address != old
        await put(broker, 1, first=5, to=ReplyTo(mailbox.address))
        assert (await _replies(mailbox, 1))[0].task_id == "task-5"
        with pytest.raises(Unroutable):
            await put(broker, to=ReplyTo(old))


@behaviour
async def test_a_mailbox_outlives_a_lost_connection(bench: Bench) -> None:
    """Its address stays, and what was sent to it meanwhile is read."""
    async with bench.open() as broker, bench.open() as other, broker.mailbox() as mailbox:
        address = mailbox.address
        await bench.cut(broker)

        async def sent() -> bool:
            try:
                await put(other, 1, first=5, to=ReplyTo(address))
            except PublishUncertain:
                return False
            return True

        await eventually(sent)
        assert (await _replies(mailbox, 1))[0].task_id == "task-5"
        assert mailbox.address == address


@behaviour
async def test_the_state_of_a_broker_is_closed_then_ready_then_closed(bench: Bench) -> None:
    """Before it is opened, while it is open, and after; closing twice is no fault."""
    async with bench.open() as broker:
        assert (broker.status().state, broker.status().cause) == ("ready", None)
        async with broker.mailbox():
            assert broker.status().state == "ready"
        await broker.close()
        assert broker.status().state == "closed"
        await broker.close()
        assert broker.status().state == "closed"


@behaviour
async def test_after_a_lost_connection_the_state_is_ready_again(bench: Bench) -> None:
    """By itself."""
    async with bench.open() as broker:
        await bench.cut(broker)
        await eventually(lambda: _publishes(broker))
        assert broker.status().state == "ready"


async def _publishes(broker: Broker) -> bool:
    try:
        await put(broker)
    except PublishUncertain:
        return False
    return True
