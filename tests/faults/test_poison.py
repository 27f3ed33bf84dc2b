"""A task that kills its process again and again is put aside before it runs once more, and the others go on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from asyncq import AsyncQ
from asyncq.broker import QueueSpec
from asyncq.errors import TaskFailed
from support import eventually

sys.path.insert(0, str(Path(__file__).parent))

from delays import QUEUE, ran, start_worker

RUNS = 3
LIMIT = {"poison_after": RUNS}
DEADLY = "deadly"
BATCH = 5  # other tasks while each worker lives


async def others(app: AsyncQ, folder: Path, batch: int) -> set[str]:
    """Send other tasks to the same queue, and wait until they have run."""
    keys = {f"{batch}-{number}" for number in range(BATCH)}
    for key in keys:
        await app.send("faults.mark", {"key": key}, task_id=key, reply=False)
    await eventually(lambda: keys <= set(ran(folder)), 60, message="other tasks run beside the deadly one")
    return keys


async def kill_workers(url: str, version: str, folder: Path, how: str) -> None:
    """Start workers one after the other, as a process manager does, until one of them lives."""
    app, sent = AsyncQ("faults-producer", broker=url, **LIMIT), set()
    async with app:
        await app.broker.ensure([QueueSpec(QUEUE, app.settings.delivery_limit)])
        handle = await app.send("faults.die", {"key": DEADLY, "how": how}, task_id=DEADLY)
        codes = []
        for life in range(RUNS):
            worker = await start_worker(url, folder, **LIMIT)
            try:
                await eventually(lambda life=life: len(ran(folder).get(DEADLY, [])) == life + 1, 60)
                sent |= await others(app, folder, life)
                (folder / f"go-{worker.pid}").touch()
                codes.append(await worker.wait())
            finally:
                if worker.returncode is None:
                    worker.kill()
        last = await start_worker(url, folder, **LIMIT)
        try:
            with pytest.raises(TaskFailed) as failed:
                await handle.result(timeout=120)
            sent |= await others(app, folder, len(codes))
            last.terminate()
            codes.append(await last.wait())
        finally:
            if last.returncode is None:
                last.kill()
        letters = [letter async for letter in app.broker.dead_letters(QUEUE).browse()]
    runs = len(ran(folder)[DEADLY])
    print(f"\n{version}, {how}: it ran {runs} times, and was then put aside; exit codes of the workers {codes}")
    assert runs == RUNS
    assert codes == [1 if how == "exit" else -9] * runs + [0]
    assert "DeliveredTooOften" in str(failed.value)
    assert [letter.message.task_id for letter in letters] == [DEADLY]
    record = letters[0].record
    assert record is not None
    assert (record.reason, record.failure.type) == ("delivered too often", "asyncq.errors.DeliveredTooOften")
    assert sent <= set(ran(folder))


async def test_a_task_that_kills_its_worker_is_put_aside(broker_url, rabbitmq_version, tmp_path):
    """By `os._exit`: after the configured count it is a dead letter with a reason, and its sender hears of it."""
    await kill_workers(broker_url, rabbitmq_version, tmp_path, "exit")


@pytest.mark.prove
@pytest.mark.also_on("4.0")
@pytest.mark.parametrize("how", ["exit", "kill"])
async def test_a_task_that_kills_its_worker_is_put_aside_on_each_version(broker_url, rabbitmq_version, tmp_path, how):
    """By `os._exit` and by SIGKILL. Versions differ in what they count as a delivery."""
    await kill_workers(broker_url, rabbitmq_version, tmp_path, how)
