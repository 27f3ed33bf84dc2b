"""Chords through the deaths of their workers: what follows a chord always runs, with all values."""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from asyncq import AsyncQ
from asyncq.broker import QueueSpec
from asyncq.message import new_id
from asyncq.program import Fork, Step, Workflow, node_id
from support import eventually

sys.path.insert(0, str(Path(__file__).parent))

from delays import QUEUE, ran, start_worker

MEMBERS = 10
WORKERS = 3
# Each death counts as a delivery of what it held: these are no poison.
PATIENT = {"poison_after": 100_000, "delivery_limit": 100_000}


def chord(workflow_id: str, seconds: float) -> tuple[Fork, Step]:
    """Return a chord of ten members."""
    members = tuple(
        (Step(node_id(workflow_id, f"0.{number}"), "faults.member", QUEUE, arguments(number, seconds)),)
        for number in range(MEMBERS)
    )
    return Fork(node_id(workflow_id, "0"), members), Step(
        node_id(workflow_id, "1"), "faults.body", QUEUE, into="values", reply=False
    )


def arguments(number: int, seconds: float) -> bytes:
    return json.dumps({"number": number, "seconds": seconds}).encode()


def bodies(folder: Path) -> dict[str, list[str]]:
    """Return with what each chord's end ran, by its id."""
    found: dict[str, list[str]] = {}
    for key, times in ran(folder).items():
        task_id, _, values = key.partition(" ")
        found.setdefault(task_id, []).extend([values] * len(times))
    return found


async def run_chords(url: str, version: str, management, folder: Path, chords: int, *, deaths: int) -> None:
    """Send chords while workers are killed, at random moments, and started again; then look at what has run.

    Args:
        url: The broker.
        version: Its version, for the report.
        management: Its queues.
        folder: Where the workers write.
        chords: How many.
        deaths: How many workers are killed meanwhile.
    """
    seed = random.randrange(2**32)
    print(f"\nseed {seed}")
    draw = random.Random(seed)
    app = AsyncQ("faults-producer", broker=url, **PATIENT)
    async with app:
        await app.broker.ensure([QueueSpec(QUEUE, app.settings.delivery_limit)])
        workers = list(await asyncio.gather(*(start_worker(url, folder, **PATIENT) for _ in range(WORKERS))))
        killed = 0

        async def kill() -> None:
            nonlocal killed
            while killed < deaths:
                await asyncio.sleep(draw.uniform(0, 0.3))
                victim = draw.randrange(WORKERS)
                workers[victim].kill()
                await workers[victim].wait()
                killed += 1
                workers[victim] = await start_worker(url, folder, **PATIENT)

        killing = asyncio.create_task(kill())
        try:
            ids = [new_id() for _ in range(chords)]
            pending = {}
            for number, workflow_id in enumerate(ids):
                await eventually(lambda number=number: killed >= number * deaths // chords, 120)
                program = chord(workflow_id, draw.uniform(0, 0.1))
                sent = await app.send_program(program, Workflow(workflow_id), expect=[workflow_id])
                pending[workflow_id] = sent[workflow_id]
            wanted = {node_id(workflow_id, "1") for workflow_id in ids}
            await eventually(lambda: wanted <= set(bodies(folder)), 300, message="the end of every chord runs")
            await killing
            for workflow_id in ids:
                await eventually(lambda workflow_id=workflow_id: pending[workflow_id].final, 60)
            assert {item.final.type for item in pending.values()} == {"succeeded"}
            await eventually(lambda: chord_queues_gone(management), 60)
        finally:
            killing.cancel()
            await asyncio.gather(killing, return_exceptions=True)
            for worker in workers:
                if worker.returncode is None:
                    worker.kill()
                    await worker.wait()
    found = bodies(folder)
    assert {values for runs in found.values() for values in runs} == {str(list(range(MEMBERS)))}
    runs = Counter(len(item) for item in found.values())
    print(f"{version}: {chords} chords of {MEMBERS}, {killed} workers killed; runs of one end: {dict(runs)}")


async def chord_queues_gone(management) -> bool:
    return not [name for name in await management.queues() if re.match(r"asyncq\.chord\.", name)]


async def test_a_chord_comes_to_its_end_whenever_its_workers_die(broker_url, rabbitmq_version, management, tmp_path):
    """The short form."""
    await run_chords(broker_url, rabbitmq_version, management, tmp_path, 15, deaths=4)


@pytest.mark.prove
async def test_two_hundred_chords_come_to_their_ends(broker_url, rabbitmq_version, management, tmp_path):
    """The full form: deaths one after the other, as fast as workers can be started again."""
    await run_chords(broker_url, rabbitmq_version, management, tmp_path, 200, deaths=70)
