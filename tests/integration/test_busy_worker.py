"""A worker whose threads and processes compute as hard as they can keeps its connection."""

import asyncio
import logging
import threading
import time

from asyncq.app import AsyncQ
from asyncq.testing.process_tasks import compute
from support import eventually

HEARTBEAT_S = 5
BUSY_S = 15.0  # the broker ends a connection that has been silent for two heartbeats


async def test_heartbeats_go_on_while_50_threads_and_2_processes_are_busy(broker_url, caplog):
    """The event loop gets its turns between the threads, and no connection is lost."""
    app = AsyncQ("shop", broker=broker_url, heartbeat_s=HEARTBEAT_S, task_processes=2)
    enough = threading.Event()

    @app.task(queue="threads")
    def in_thread() -> float:
        began, number = time.monotonic(), 1
        while not enough.is_set():
            number = number * 31 % 1_000_003
        return time.monotonic() - began

    in_process = app.task(queue="processes", run_in="process")(compute)

    with caplog.at_level(logging.INFO, "asyncq"):
        async with app:
            worker = app.worker({"threads": 50, "processes": 2})
            running = asyncio.create_task(worker.run())
            handles = await app.send_many(in_process.s(BUSY_S) for _ in range(2))
            await eventually(lambda: worker.stats().processes_busy == 2, 30)
            handles += await app.send_many(in_thread.s() for _ in range(50))
            try:
                await eventually(lambda: worker.stats().threads_busy == 50, 60)
                await asyncio.sleep(BUSY_S)
            finally:
                enough.set()
            took = [await handle.result(120) for handle in handles]
            worker.stop()
            await asyncio.wait_for(running, 30)
    assert len(took) == 52
    assert min(took[:2]) >= BUSY_S - 0.1
    # Threads that begin while others compute begin late; most have been at it for longer than the broker waits.
    assert sorted(took)[len(took) // 2] > 2 * HEARTBEAT_S
    assert [record.getMessage() for record in caplog.records if "lost" in record.getMessage()] == []
    assert worker.stats().outcomes == {"Succeeded": 52}
