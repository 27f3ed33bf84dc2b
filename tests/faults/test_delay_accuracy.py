"""Delays to a real worker: nothing runs early, nothing waits behind a longer delay, and how late it is."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path

import pytest

from asyncq import AsyncQ
from asyncq.broker import QueueSpec
from support import eventually

sys.path.insert(0, str(Path(__file__).parent))

from delays import QUEUE, Sent, ladder_queues, percentile, ran, real_worker, rungs

WAIT_S = 120


def new_chance() -> random.Random:
    seed = int(os.environ.get("SEED", random.randrange(10**6)))
    print(f"\nseed {seed}")
    return random.Random(seed)


async def sender(url: str) -> AsyncQ:
    return AsyncQ("faults-producer", broker=url, publish_timeout_s=60)


async def all_ran(folder: Path, keys: set[str]) -> None:
    await eventually(lambda: keys <= set(ran(folder)), WAIT_S, message="all that are due have run")


async def measure(url: str, version: str, folder: Path, count: int, longest_s: float) -> None:
    """Send delayed tasks at 300/s, one in ten without a delay, and say how late they were beyond those."""
    chance = new_chance()
    delays = [chance.uniform(0, longest_s) if number % 10 else 0.0 for number in range(count * 10 // 9)]
    app, warm, sent = await sender(url), Sent(), Sent()
    async with app:
        await app.broker.ensure([QueueSpec(QUEUE)])
        async with real_worker(url, folder / "warm"):
            for delay_s in rungs(longest_s):  # declaring a rung takes a while, once
                await warm.send(app, delay_s)
            await all_ran(folder / "warm", set(warm.times))
        async with real_worker(url, folder):
            await sent.send_steadily(app, delays, rate=300)
            await all_ran(folder, set(sent.times))
    found = ran(folder)
    floor, late = (sent.late_s(found, delayed=delayed) for delayed in (False, True))
    print(
        f"{version}: {len(late)} tasks with 0 to {longest_s:g} s of delay at 300/s: none early (earliest "
        f"{late[0] * 1000:.1f} ms late), late by p50 {percentile(late, 0.5) * 1000:.0f} ms, p99 "
        f"{percentile(late, 0.99) * 1000:.0f} ms, at most {late[-1] * 1000:.0f} ms; without a delay p50 "
        f"{percentile(floor, 0.5) * 1000:.0f} ms, p99 {percentile(floor, 0.99) * 1000:.0f} ms; so beyond that p50 "
        f"{(percentile(late, 0.5) - percentile(floor, 0.5)) * 1000:.0f} ms, p99 "
        f"{(percentile(late, 0.99) - percentile(floor, 0.99)) * 1000:.0f} ms"
    )
    assert len(sent.delays) == len(delays)
    assert late[0] >= 0
    assert percentile(late, 0.5) < 10  # a blocked ladder takes minutes; a busy machine may take seconds
    assert all(len(times) == 1 for times in found.values())


async def mix(url: str, version: str, management, folder: Path, count: int, due_s: float) -> None:
    """Send delays of 20 ms to 1 h in random order; wait for the short ones, and look for the others in the ladder."""
    chance = new_chance()
    delays = [0.02 * (3600 / 0.02) ** chance.random() for _ in range(count)]  # as many short ones as long ones
    app, sent = await sender(url), Sent()
    async with app:
        await app.broker.ensure([QueueSpec(QUEUE)])
        await sent.send_steadily(app, [3600.0, *delays, 0.02], rate=300)
        async with real_worker(url, folder):
            short = {key for key, delay_s in sent.delays.items() if delay_s <= due_s}
            await all_ran(folder, short)

            async def all_there() -> bool:
                return len(ran(folder)) + await in_the_ladder(management) == len(sent.delays)

            await eventually(all_there, WAIT_S)
            waiting = await in_the_ladder(management)
    found = ran(folder)
    late = sorted(found[key][0] - sent.times[key] - sent.delays[key] for key in found)
    print(f"{version}: {len(found)} of {len(sent.delays)} tasks have run, none early; {waiting} wait in the ladder")
    assert late[0] >= 0
    assert all(len(times) == 1 for times in found.values())
    assert waiting >= sum(delay_s > WAIT_S * 3 for delay_s in sent.delays.values()) > count / 10


async def in_the_ladder(management) -> int:
    there = set(await management.queues())
    counts = await asyncio.gather(*(management.ready(name) for name in ladder_queues() if name in there))
    return sum(counts)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "warm").mkdir()
    return tmp_path


async def test_300_delayed_tasks_run_on_time(broker_url, rabbitmq_version, folder):
    """The short form."""
    await measure(broker_url, rabbitmq_version, folder, count=300, longest_s=2)


@pytest.mark.prove
async def test_3000_delayed_tasks_run_on_time(broker_url, rabbitmq_version, folder):
    """Ten seconds of a steady 300/s, and delays as long as that."""
    await measure(broker_url, rabbitmq_version, folder, count=3000, longest_s=10)


async def test_no_delay_waits_behind_a_longer_one(broker_url, rabbitmq_version, management, folder):
    """Those of seconds come while those of minutes and hours, which were sent before them, wait."""
    await mix(broker_url, rabbitmq_version, management, folder, count=200, due_s=2)


@pytest.mark.prove
async def test_of_a_thousand_mixed_delays_none_waits_behind_a_longer_one(
    broker_url, rabbitmq_version, management, folder
):
    """The full form."""
    await mix(broker_url, rabbitmq_version, management, folder, count=1000, due_s=10)
