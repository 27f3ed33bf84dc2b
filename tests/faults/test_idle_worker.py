"""A worker with many slots and nothing to do, and one with very busy threads."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from asyncq import AsyncQ
from support import eventually, working

HERE = Path(__file__).parent
QUEUES = [f"idle-{number}" for number in range(10)]
SLOTS = 50


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has taken so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def rest(url: str, folder: Path, *, seconds: float, loop: str = "auto") -> tuple[float, float]:
    """Start a worker with 500 slots, and let it rest; return its start in seconds, and the part of a core it takes."""
    log = folder / "worker.log"
    environment = {**os.environ, "ASYNCQ_BROKER_URL": url, "LEDGER_FOLDER": str(folder)}
    began = time.monotonic()
    with log.open("wb") as stderr:
        worker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "asyncq", "worker", "ledger_app:app", "--loop", loop),
            *(f"--queue={queue}:{SLOTS}" for queue in QUEUES),
            cwd=HERE,
            env=environment,
            stderr=stderr,
        )
    try:
        await eventually(lambda: "worker consumes" in log.read_text(), 60)
        start_s = time.monotonic() - began
        await asyncio.sleep(1)  # what follows from the start itself
        before, since = cpu_s(worker.pid), time.monotonic()
        await asyncio.sleep(seconds)
        used = (cpu_s(worker.pid) - before) / (time.monotonic() - since)
    finally:
        worker.terminate()
        assert await asyncio.wait_for(worker.wait(), 60) == 0
    return start_s, used


async def test_500_idle_slots_start_soon_and_take_next_to_nothing(broker_url, tmp_path):
    """Over 10 queues, in one worker. Other tests run beside this one; the proof below tells how soon it is."""
    start_s, used = await rest(broker_url, tmp_path, seconds=4)
    assert start_s < 45
    assert used < 0.02


@pytest.mark.prove
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_500_idle_slots_for_half_a_minute(broker_url, tmp_path, node, loop):
    """The figures."""
    start_s, used = await rest(broker_url, tmp_path, seconds=30, loop=loop)
    print(
        f"\n{node.version}, {loop}: 500 slots over 10 queues consume after {start_s:.1f} s; "
        f"at rest {used:.2%} of a core"
    )
    assert start_s < 15
    assert used < 0.02


async def _two(connections):
    found = await connections()
    return len(found) == 2 and found


async def test_heartbeats_go_on_while_50_threads_are_busy(broker_url, management):
    """For some heartbeats: the connections are the same afterwards, and other tasks run meanwhile.

    They compute as libraries do, outside of the interpreter's lock. Fifty loops of pure Python share one core with
    the event loop, which then waits for its turn for up to a second: docs/production.md says what to do about it.
    """
    app = AsyncQ("busy", broker=broker_url, heartbeat_s=5)
    stop = threading.Event()
    running = set()

    @app.task
    def compute() -> int:
        running.add(threading.get_ident())
        block, count = bytes(1_000_000), 0
        while not stop.is_set():
            hashlib.sha256(block)
            count += 1
        return count

    @app.task(queue="other")
    async def ping() -> str:
        return "pong"

    async def connections() -> set[str]:
        shown = await management.connections()
        names = {item["name"]: item.get("client_properties", {}).get("connection_name", "") for item in shown}
        return {name for name, own in names.items() if "-publish " in own or "-consume " in own}

    try:
        async with working(app, {"busy": 50, "other": 1}):
            handles = [await compute.send() for _ in range(50)]
            await eventually(lambda: len(running) == 50, 60)
            before = await eventually(lambda: _two(connections), 20)
            began = time.monotonic()
            while time.monotonic() < began + 16:
                assert await ping.call() == "pong"
            assert before <= await connections()
            stop.set()
            assert all([await handle.result(60) for handle in handles])
    finally:
        stop.set()
