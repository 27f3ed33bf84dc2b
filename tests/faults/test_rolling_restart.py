"""Workers are restarted under load, one after the other, and one is killed: a deploy, and an accident in it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from asyncq import AsyncQ
from support import VhostManagement, eventually

HERE = Path(__file__).parent
QUEUE = "rolling"
TASK = "faults.step"


class Workers:
    """Worker processes under a supervisor, as its log tells of them."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._lines: list[dict[str, Any]] = []
        self._read = 0

    def lines(self, event: str) -> list[dict[str, Any]]:
        """Return what was logged so far of one event."""
        with self._log.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if line.endswith(b"\n"):
                    self._read += len(line)
                    with contextlib.suppress(json.JSONDecodeError):
                        self._lines.append(json.loads(line))
        return [line for line in self._lines if line["event"] == event]

    async def consumed(self, times: int) -> None:
        """Wait until so many processes have begun to consume, in all."""
        await eventually(lambda: len(self.lines("worker consumes")) >= times, 60, message=f"{times} have consumed")

    def pids(self) -> dict[int, int]:
        """Return the process id that each place has now."""
        return {line["process"]: line["pid"] for line in self.lines("worker process started")}


@contextlib.asynccontextmanager
async def supervised(url: str, folder: Path, processes: int, slots: int) -> AsyncIterator[Workers]:
    log = folder / "workers.log"
    environment = {**os.environ, "ASYNCQ_BROKER_URL": url, "LEDGER_FOLDER": str(folder)}
    with log.open("wb") as stderr:
        supervisor = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "asyncq", "worker", "ledger_app:app", "--queue", f"{QUEUE}:{slots}"),
            *("--processes", str(processes), "--log-format", "json"),
            cwd=HERE,
            env=environment,
            stderr=stderr,
        )
    workers = Workers(log)
    try:
        await workers.consumed(processes)
        yield workers
    finally:
        supervisor.terminate()
        code = await asyncio.wait_for(supervisor.wait(), 60)
    assert code == 0, log.read_text()[-4000:]


def steps(folder: Path, what: str) -> list[dict[str, Any]]:
    """Return what the attempts wrote down: `began` or `ended`. The last line of a killed worker may be cut."""
    found = []
    for path in folder.glob("steps-*.jsonl"):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if entry["what"] == what:
                found.append(entry)
    return found


def under_way(folder: Path, pid: int) -> set[str]:
    """Return what a process has begun and not ended; empty where the queue is empty, too."""
    began = {entry["id"] for entry in steps(folder, "began") if entry["pid"] == pid}
    return began - {entry["id"] for entry in steps(folder, "ended")}


async def restart_in_turn(
    url: str, management: VhostManagement, folder: Path, *, tasks: int, processes: int, slots: int, step_s: float
) -> str:
    """Send, restart each process by SIGTERM, kill one, and compare what was confirmed with what was executed."""
    producer = AsyncQ("faults", broker=url)
    began = time.monotonic()
    async with producer, supervised(url, folder, processes, slots) as workers:
        confirmed: set[str] = set()
        for first in range(0, tasks, 500):
            count = min(500, tasks - first)
            signatures = (producer.signature(TASK, {"seconds": step_s}, queue=QUEUE, reply=False) for _ in range(count))
            confirmed |= {handle.id for handle in await producer.send_many(signatures)}
        await eventually(lambda: len(steps(folder, "ended")) > 50, 60)
        for number, pid in enumerate(workers.pids().values()):
            os.kill(pid, signal.SIGTERM)
            await workers.consumed(processes + number + 1)
        killed = workers.pids()[1]
        await eventually(lambda: under_way(folder, killed), message="the process that is killed runs something")
        os.kill(killed, signal.SIGKILL)
        await eventually(lambda: confirmed <= {entry["id"] for entry in steps(folder, "ended")}, 240)
        await workers.consumed(2 * processes + 1)
    attempts = Counter(entry["id"] for entry in steps(folder, "began"))
    twice = {task_id for task_id, count in attempts.items() if count > 1}
    cut_off = {entry["id"] for entry in steps(folder, "began") if entry["pid"] == killed}
    assert set(attempts) == confirmed
    assert twice <= cut_off
    assert 1 <= len(twice) <= slots
    assert {entry["attempt"] for entry in steps(folder, "began")} == {1}
    assert await management.ready(f"{QUEUE}.dead") == 0
    assert await management.ready(QUEUE) == 0
    ends = Counter(line["how"] for line in workers.lines("worker process ended, starting it again"))
    assert ends == {"drained": processes, "killed by SIGKILL, perhaps for want of memory": 1}
    return (
        f"{len(confirmed)} confirmed, {len(attempts)} executed; {processes} processes of {slots} slots restarted by "
        f"SIGTERM and one killed; {len(twice)} began twice, all of them in the killed one; "
        f"{time.monotonic() - began:.0f} s"
    )


async def test_a_rolling_restart_loses_nothing_and_runs_nothing_twice(broker_url, management, tmp_path):
    """But for what a killed process had begun."""
    await restart_in_turn(broker_url, management, tmp_path, tasks=1200, processes=2, slots=3, step_s=0.1)


@pytest.mark.prove
async def test_a_rolling_restart_of_four_workers_over_10000_tasks(broker_url, management, tmp_path, node):
    """In full."""
    told = await restart_in_turn(broker_url, management, tmp_path, tasks=10_000, processes=4, slots=5, step_s=0.15)
    print(f"\n{node.version}: {told}")
