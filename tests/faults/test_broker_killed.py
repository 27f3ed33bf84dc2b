"""The broker is killed and comes back under producers and workers: every confirmed task is executed."""

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

from delays import Sent, percentile, ran, real_worker, rungs
from ledger import Ledger, executed, produce, send

HERE = Path(__file__).parent
QUEUE = "faults"
TASK = "faults.note"


async def start_worker(url: str, folder: Path) -> asyncio.subprocess.Process:
    environment = {**os.environ, "ASYNCQ_BROKER_URL": url, "LEDGER_FOLDER": str(folder)}
    with (folder / "worker.log").open("ab") as log:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "asyncq", "worker", "ledger_app:app", "--queue", f"{QUEUE}:10", "--log-level", "info"),
            cwd=HERE,
            env=environment,
            stdout=log,
            stderr=log,
        )


async def stand_the_ladder(app: AsyncQ, ledger: Ledger) -> None:
    """Send by each queue of the ladder that the load will use, so that none is declared in the moment of a kill."""
    for digit in range(1, 16):
        for level, unit_s in enumerate((0.01, 0.16)):
            await send(app, TASK, f"ladder-{level}-{digit}", digit * unit_s, ledger)


async def settle_the_broker(node) -> None:
    """Restart it once in order: RabbitMQ may lose a quorum queue that is only seconds old when it is killed.

    Such a queue may come back empty, or never; docs/failures.md tells of it.
    """
    await asyncio.to_thread(node.stop)
    await asyncio.to_thread(node.start)


async def kill_and_restart(node, draw: random.Random) -> None:
    await asyncio.sleep(draw.uniform(0.5, 1.5))  # the load goes on meanwhile: this is no wait for a condition
    node.kill()
    await asyncio.to_thread(node.start)


async def run_with_kills(node, folder: Path, kills: int, seed: int) -> None:
    print(f"seed {seed}")
    url = node.url
    producer = AsyncQ("faults-producer", broker=url, heartbeat_s=5, publish_timeout_s=60)
    ledger, stop = Ledger(), asyncio.Event()
    async with producer:
        await producer.broker.ensure([QueueSpec(QUEUE)])
        await producer.cancel("nobody")  # declares the stream that workers read
        await stand_the_ladder(producer, ledger)
    await settle_the_broker(node)
    workers = [await start_worker(url, folder) for _ in range(2)]
    try:
        async with producer:
            producing = asyncio.create_task(produce(producer, TASK, ledger, stop, seed))
            draw = random.Random(seed)
            # Both of them: a worker that finds no broker when it starts ends with exit code 3.
            await eventually(lambda: len(executed(folder)) > 20 and len(list(folder.glob("executed-*"))) == 2, 60)
            for _ in range(kills):
                before = len(executed(folder))
                await kill_and_restart(node, draw)
                await eventually(lambda before=before: len(executed(folder)) > before + 20, timeout=120)
            stop.set()
            await producing
        # Dead-lettering at least once may take up to three minutes after a broker crash to give messages on.
        await eventually(lambda: not ledger.confirmed - set(executed(folder)), timeout=400)
    finally:
        for worker in workers:
            if worker.returncode is None:
                worker.terminate()
        codes = [await asyncio.wait_for(worker.wait(), 60) for worker in workers]
        print(f"{node.version}: {kills} kills; {ledger.summary(executed(folder))}; worker exit codes {codes}")
        if ledger.confirmed - set(executed(folder)):
            warnings = [line for line in (folder / "worker.log").read_text().splitlines() if "[info" not in line]
            print("\n".join(warnings[-40:]))
    counts = executed(folder)
    assert not ledger.confirmed - set(counts)
    assert set(counts) <= ledger.attempted
    assert codes == [0, 0]
    assert len(ledger.confirmed) > 100


async def test_every_confirmed_task_is_executed_although_the_broker_is_killed(private_node, tmp_path):
    """One SIGKILL under load: producers and workers resume by themselves."""
    await run_with_kills(private_node, tmp_path, kills=1, seed=int(os.environ.get("SEED", random.randrange(10**6))))


@pytest.mark.prove
async def test_every_confirmed_task_is_executed_although_the_broker_is_killed_again_and_again(private_node, tmp_path):
    """Five times, at random moments."""
    await run_with_kills(private_node, tmp_path, kills=5, seed=int(os.environ.get("SEED", random.randrange(10**6))))


@pytest.mark.prove
async def test_a_thousand_delayed_tasks_run_although_the_broker_is_killed(private_node, tmp_path):
    """SIGKILL with tasks at every step of the ladder, many of which become due while the broker is away.

    Those that it was handing down wait until at-least-once dead-lettering sends them again: up to about 3 minutes.
    """
    seed, longest_s = int(os.environ.get("SEED", random.randrange(10**6))), 30
    chance, warm, sent = random.Random(seed), Sent(), Sent()
    print(f"\nseed {seed}")
    (tmp_path / "warm").mkdir()
    app = AsyncQ("faults-producer", broker=private_node.url, heartbeat_s=5, publish_timeout_s=60)
    async with app:
        await app.broker.ensure([QueueSpec(QUEUE)])
        for delay_s in rungs(longest_s):
            await warm.send(app, delay_s)
        async with real_worker(private_node.url, tmp_path / "warm"):
            await eventually(lambda: set(ran(tmp_path / "warm")) == set(warm.times), 120)
    await settle_the_broker(private_node)
    async with app, real_worker(private_node.url, tmp_path):
        await sent.send_steadily(app, [chance.uniform(0.5, longest_s) for _ in range(1000)], rate=500)
        before = len(ran(tmp_path))
        private_node.kill()
        await asyncio.to_thread(private_node.start)
        await eventually(lambda: set(ran(tmp_path)) >= set(sent.times), 400, message="all have run")
    found = ran(tmp_path)
    late = sent.late_s(found, delayed=True)
    print(
        f"{private_node.version}: 1000 delayed tasks, {before} had run before the kill; none early, late by p50 "
        f"{percentile(late, 0.5):.2f} s, p99 {percentile(late, 0.99):.1f} s, at most {late[-1]:.1f} s; "
        f"{sum(len(times) > 1 for times in found.values())} ran more than once"
    )
    assert len(sent.delays) == 1000
    assert before < 1000  # or the kill would have met an empty ladder
    assert late[0] >= 0
