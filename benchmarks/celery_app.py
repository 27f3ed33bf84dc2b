"""Celery's side: the app that its producer uses, and that `celery worker` runs.

As careful as asyncq is: publishes are confirmed, messages persistent, the queue is a quorum queue, and a task is acked
after its result is in Redis. What asyncq does not do in these rows either is off: events, gossip, remote control.
"""

from __future__ import annotations

import os
import threading
from typing import Any

from celery import Celery

from meter import Meter

__all__ = ["BACKEND", "PREFETCH", "QUEUE", "SETTINGS", "THREADS", "WORKER", "app", "number_of"]

QUEUE = "bench-celery"
BACKEND = "BENCH_CELERY_BACKEND"
PREFETCH = 100
THREADS = 10
WORKER = [
    "--pool=threads",
    f"--concurrency={THREADS}",
    "--loglevel=WARNING",
    "--without-gossip",
    "--without-mingle",
    "--without-heartbeat",
]
"""The options of `celery worker`."""
SETTINGS: dict[str, Any] = {
    "broker_transport_options": {"confirm_publish": True},
    "task_acks_late": True,
    "worker_prefetch_multiplier": PREFETCH // THREADS,
    "task_default_queue": QUEUE,
    "task_default_queue_type": "quorum",
    "worker_enable_remote_control": False,
}
"""What is not Celery's default, but for where the broker and Redis are."""

app = Celery("bench", broker=os.environ["ASYNCQ_BROKER_URL"], backend=os.environ[BACKEND])
app.conf.update(SETTINGS, worker_redirect_stdouts=False)  # standard output is the meter's
meter = Meter()
one_at_a_time = threading.Lock()


@app.task(name="number_of")
def number_of(number: int, customer: str, price: float) -> int:  # noqa: ARG001 - the same message as asyncq's
    """Answer with one of the fields."""
    with one_at_a_time:
        meter.tick()
    return number
