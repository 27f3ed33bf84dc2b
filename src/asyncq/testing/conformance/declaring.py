"""Declaring queues: idempotent, checked, and loud where something else stands there."""

from __future__ import annotations

import pytest

from asyncq.broker import Delay, Exchange, QueueSpec
from asyncq.errors import InvalidQueueName, TopologyMismatch
from asyncq.testing.conformance.bench import QUEUE, Bench, behaviour, dead_letters, nothing_comes, put, take


@behaviour
async def test_declaring_again_changes_nothing(bench: Bench) -> None:
    """By the same connection or by another; what is in the queue stays."""
    async with bench.open() as broker, bench.open() as other:
        await put(broker, 2)
        await broker.ensure([QueueSpec(QUEUE)])
        await other.ensure([QueueSpec(QUEUE), QueueSpec("another")])
        await other.ensure([])
    assert await bench.count(QUEUE) == 2
    assert await bench.count("another") == 0


@behaviour
async def test_a_task_queue_comes_with_its_dead_letter_queue(bench: Bench) -> None:
    """Which is empty, and can be looked at."""
    async with bench.open(QueueSpec("one"), QueueSpec("two")) as broker:
        assert await dead_letters(broker, "one") == []
        assert await dead_letters(broker, "two") == []


@behaviour
async def test_a_queue_that_was_deleted_is_declared_again(bench: Bench) -> None:
    """It is a new one: reachable at once and with a delay, and empty."""
    async with bench.open() as broker:
        await put(broker, 2)
        await bench.delete_queue(QUEUE)
        await broker.ensure([QueueSpec(QUEUE)])
        assert await bench.count(QUEUE) == 0
        async with broker.consume(QUEUE, slots=2) as subscription:
            await put(broker, 1, first=10, to=Exchange("asyncq.tasks", QUEUE))
            await put(broker, 1, first=11, to=Exchange("asyncq.tasks", QUEUE), delay=Delay(0.02))
            assert [item.message.task_id for item in await take(subscription, 2)] == ["task-10", "task-11"]


@behaviour
async def test_names_that_cannot_be_are_refused_with_the_reason(bench: Bench) -> None:
    """Letters that no broker carries, names that are kept for others, and names that are too long."""
    async with bench.open() as broker:
        for name in ("", "a b", "größe", "a/b", "a*", "x" * 201, "amq.mine", "asyncq.mine", "mine.dead"):
            with pytest.raises(InvalidQueueName):
                await broker.ensure([QueueSpec("good"), QueueSpec(name)])


@behaviour
async def test_the_namespaces_own_names_are_refused(bench: Bench) -> None:
    """Another namespace keeps other names for itself."""
    async with bench.open(QueueSpec("mine"), namespace="other") as broker:
        with pytest.raises(InvalidQueueName, match="other"):
            await broker.ensure([QueueSpec("other.mine")])


@behaviour
async def test_a_queue_that_stands_with_other_arguments_is_a_mismatch_that_names_both_values(bench: Bench) -> None:
    """Nothing is changed by the attempt, and the connection goes on."""
    async with bench.open(QueueSpec(QUEUE, delivery_limit=33)) as broker, bench.open(QueueSpec("other")) as late:
        await put(broker)
        for asking in (broker, late):
            with pytest.raises(TopologyMismatch, match=rf"'{QUEUE}'.*'x-delivery-limit' is '33' there.*'44'"):
                await asking.ensure([QueueSpec(QUEUE, delivery_limit=44)])
        await late.ensure([QueueSpec(QUEUE, delivery_limit=33)])
        await put(late)
    assert await bench.count(QUEUE) == 2


@behaviour
async def test_names_with_dots_are_queues_of_their_own(bench: Bench) -> None:
    """Each message reaches exactly the queue that it names, at once and with a delay; also the longest name."""
    names = ["mail", "a.mail", "mail.a", "a..mail", ".mail", "mail.", "x" * 200]
    async with bench.open(*map(QueueSpec, names)) as broker:
        for number, name in enumerate(names):
            await put(broker, 1, first=number, to=Exchange("asyncq.tasks", name))
            await put(broker, 1, first=number, to=Exchange("asyncq.tasks", name), delay=Delay(0.03))
        for number, name in enumerate(names):
            async with broker.consume(name, slots=3) as subscription:
                deliveries = await take(subscription, 2)
                assert [item.message.task_id for item in deliveries] == [f"task-{number}"] * 2
                assert {item.queue for item in deliveries} == {name}
                if name == names[-1]:
                    await nothing_comes(subscription)
                for item in deliveries:
                    await item.ack()
        for name in names:
            assert await bench.count(name) == 0
