"""A rate limit with thousands of messages at once, in a real worker."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from asyncq import AsyncQ
from asyncq.broker import QueueSpec
from support import eventually

sys.path.insert(0, str(Path(__file__).parent))

from delays import QUEUE, ran, real_worker

WAIT_S = 240
RATE = 200  # of `take_turns` in ledger_app.py


async def take_turns(url: str, version: str, folder: Path, count: int) -> None:
    """Send so many at once to a task that may begin 200 times a second; say how well that is kept."""
    app = AsyncQ("faults-producer", broker=url, publish_timeout_s=60)
    async with app:
        await app.broker.ensure([QueueSpec(QUEUE)])
        signatures = (
            app.signature("faults.take_turns", {"key": str(number)}, queue=QUEUE, reply=False)
            for number in range(count)
        )
        await app.send_many(signatures)
        async with real_worker(url, folder):
            await eventually(lambda: len(ran(folder)) >= count, WAIT_S, message="all have run")
    found = ran(folder)
    assert len(found) == count
    assert all(len(times) == 1 for times in found.values())
    log = (folder / "worker.log").read_text()
    throttled = log.count("task over its rate")
    late = sum(key.startswith("late") for key in found)
    began = sorted(times[0] for times in found.values())
    most = max(sum(1 for at in began[i : i + 4 * RATE] if at < began[i] + 1) for i in range(0, count, 20))
    took_s = began[-1] - began[0]
    order = [int(key.split()[-1]) for key, _ in sorted(found.items(), key=lambda item: item[1][0])]
    moved = max(abs(number - place) for place, number in enumerate(order))
    print(
        f"\n{version}: {count} messages at {RATE}/s took {took_s:.1f} s, so {(count - 1) / took_s:.1f}/s; {late} "
        f"waited for their turn, {throttled} delays in all; at most {most} in any second; at most {moved} "
        "places out of order"
    )
    assert throttled == late, "a message was delayed more than once"
    for number, at in enumerate(began):
        assert at - began[0] >= (number - 1) / RATE - 0.05, "more have begun than the rate allows"


async def test_500_messages_over_a_rate_are_delayed_once_each(broker_url, rabbitmq_version, tmp_path):
    """The short form."""
    await take_turns(broker_url, rabbitmq_version, tmp_path, 500)


@pytest.mark.prove
async def test_5000_messages_over_a_rate_are_delayed_once_each(broker_url, rabbitmq_version, tmp_path):
    """The full form."""
    await take_turns(broker_url, rabbitmq_version, tmp_path, 5000)
