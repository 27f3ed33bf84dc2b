"""How Celery is set up here: as careful as asyncq is, and otherwise as fast as it can be.

Publishes are confirmed, messages persistent, the queue is a quorum queue, and a task is acked after its result is in
Redis. What asyncq does not do in these rows either is off: events, gossip, remote control. The broker hands out as many
messages at once as asyncq has slots.

Nothing here needs Celery.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["BACKEND", "POOL", "POOLS", "QUEUE", "settings", "worker_command"]

QUEUE = "bench-celery"
BACKEND, POOL = "BENCH_CELERY_BACKEND", "BENCH_CELERY_POOL"
"""Variables of its processes: the URL of its Redis, and one of `POOLS`."""

POOLS = ("threads:10", "threads:100", "prefork:1", "prefork:2", "prefork:100")
"""Pools and their concurrency. A run takes the one that is fastest in a trial."""

_PREFETCH = 100


def settings(pool: str) -> dict[str, Any]:
    """Return what is not Celery's default, but for where the broker and Redis are."""
    concurrency = int(pool.partition(":")[2])
    return {
        "broker_transport_options": {"confirm_publish": True},
        "task_acks_late": True,
        "worker_prefetch_multiplier": _PREFETCH // concurrency,
        "task_default_queue": QUEUE,
        "task_default_queue_type": "quorum",
        "worker_enable_remote_control": False,
    }


def worker_command(pool: str) -> Sequence[str]:
    """Return the arguments of Python that run a worker."""
    name, _, concurrency = pool.partition(":")
    options = (f"--pool={name}", f"--concurrency={concurrency}", "--loglevel=WARNING")
    quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat")
    return ("-m", "celery", "--quiet", "--app=celery_app", "worker", *options, *quiet)
