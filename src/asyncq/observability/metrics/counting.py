"""Metrics of several worker processes as one: each counts in files of its own, and the supervisor reads them all.

    worker process 1 ──▶ counter_1.db, histogram_1.db, gauge_livesum_1.db ... ──┐
    worker process 2 ──▶ counter_2.db ...                                     ──┴──▶ supervisor: /metrics

This is `prometheus_client`'s own way. The files are named by the number of the process, not by its id: whoever takes
the place of a process that has ended counts on from its figures, so nothing goes down or is lost by a restart, and
there are never more files than places. The files are mapped memory: what was added before a SIGKILL is in them, and a
worker adds up once a second.

What is a state, such as slots, ends with its process: `forget_states` removes those files.
"""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client import CollectorRegistry, values
from prometheus_client.multiprocess import MultiProcessCollector

from asyncq.observability.metrics.registry import scrape_of

__all__ = ["FOLDER_VARIABLE", "count_in", "forget_states", "scrape_folder"]

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


def count_in(folder: Path, process: int) -> None:
    """Let all metrics that are made from now on be counted in files.

    Args:
        folder: Where they are.
        process: The number of this process; no other process that lives has the same.
    """
    os.environ[FOLDER_VARIABLE] = str(folder)
    # As its documentation does it for uWSGI, whose workers have numbers too.
    values.ValueClass = values.MultiProcessValue(lambda: process)  # type: ignore[no-untyped-call]


def forget_states(folder: Path, process: int) -> None:
    """Remove what was a state of a process that has ended; what it has counted stays."""
    for path in folder.glob(f"gauge_live*_{process}.db"):
        path.unlink(missing_ok=True)


def scrape_folder(folder: Path, accept: str) -> tuple[str, bytes]:
    """Return the content type and the text of what all processes have counted."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(folder))  # type: ignore[no-untyped-call]
    return scrape_of(registry, accept)
