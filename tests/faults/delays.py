"""Delayed tasks, sent through the public API to a real worker: when each was sent, and when it ran.

Sender and worker are on one machine, so one monotonic clock counts for both.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from asyncq import AsyncQ
from asyncq.rabbitmq.topology import DELAY_LEVELS, Names
from support import eventually

NAMES = Names()
QUEUE = "faults"
TASK = "faults.mark"


@dataclass
class Sent:
    """What was sent.

    Attributes:
        delays: The delay of each confirmed task in seconds, by its key; 0 for one without.
        times: When each send began, in seconds of the monotonic clock.
    """

    delays: dict[str, float] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)

    async def send(self, app: AsyncQ, delay_s: float) -> None:
        """Send one task, and note when."""
        key = f"{len(self.times)}"
        options = {"delay": delay_s} if delay_s else {}
        self.times[key] = time.monotonic()
        await app.send(TASK, {"key": key}, task_id=key, reply=False, **options)
        self.delays[key] = delay_s

    async def send_steadily(self, app: AsyncQ, delays: Sequence[float], rate: float) -> None:
        """Send tasks at a steady rate, however long each send takes.

        Args:
            app: The sender.
            delays: The delay of each, in seconds.
            rate: Sends a second.
        """
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number, delay_s in enumerate(delays):
                await asyncio.sleep(began + number / rate - time.monotonic())
                group.create_task(self.send(app, delay_s))

    def late_s(self, ran: dict[str, list[float]], *, delayed: bool) -> list[float]:
        """Return how much later than due each task ran, sorted, in seconds."""
        return sorted(
            ran[key][0] - self.times[key] - delay_s
            for key, delay_s in self.delays.items()
            if key in ran and (delay_s > 0) == delayed
        )


def ran(folder: Path) -> dict[str, list[float]]:
    """Return when each task ran, by its key: the worker writes one JSON line an execution."""
    found: dict[str, list[float]] = {}
    for path in folder.glob("ran-*.jsonl"):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            found.setdefault(entry["key"], []).append(entry["at"])
    return found


def rungs(longest_s: float) -> Iterator[float]:
    """Yield a delay for each queue of the ladder that delays up to this one go through, in seconds."""
    for level in range(DELAY_LEVELS):
        for digit in range(1, 16):
            delay_s = digit * 16**level / 100
            if delay_s <= longest_s:
                yield delay_s


def ladder_queues() -> list[str]:
    """Return the names of all queues of the ladder."""
    return [NAMES.delay_queue(level, digit) for level in range(DELAY_LEVELS) for digit in range(1, 16)]


async def start_worker(url: str, folder: Path, slots: int = 10, **settings: object) -> asyncio.subprocess.Process:
    """Start `asyncq worker`, and return when it consumes.

    Args:
        url: Its broker.
        folder: Where it writes what it has done, and its log.
        slots: Of its queue.
        settings: By name, as `Settings` has them.
    """
    log = folder / "worker.log"
    begin = log.stat().st_size if log.exists() else 0
    environment = {f"ASYNCQ_{name.upper()}": str(value) for name, value in settings.items()}
    with log.open("ab") as said:
        worker = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "asyncq", "worker", "ledger_app:app", "--queue", f"{QUEUE}:{slots}", "--log-level", "info"),
            cwd=Path(__file__).parent,
            env={**os.environ, **environment, "ASYNCQ_BROKER_URL": url, "LEDGER_FOLDER": str(folder)},
            stdout=said,
            stderr=said,
        )
    try:
        await eventually(lambda: b"worker consumes" in log.read_bytes()[begin:], 60)
    except BaseException:
        worker.kill()
        await worker.wait()
        raise
    return worker


@asynccontextmanager
async def real_worker(url: str, folder: Path, slots: int = 10) -> AsyncIterator[None]:
    """Run `asyncq worker` until the block ends; it consumes when the block begins."""
    worker = await start_worker(url, folder, slots)
    try:
        yield
    finally:
        worker.terminate()
        code = await asyncio.wait_for(worker.wait(), 90)
        assert code == 0, (folder / "worker.log").read_text()[-4000:]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that this share of sorted values does not exceed."""
    return values[min(len(values) - 1, int(len(values) * share))]
