"""What nobody has sent: the health checks that ran by their schedule while the rest of the demo went on.

That they ran is told by the journal, which the task itself writes. That the schedule sent them, at their times, is told
by the result store: a scheduled task's id ends with its fire time.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from time import monotonic, perf_counter

import maintenance
from asyncq import TaskStatus
from demo.checks import Check
from demo.settings import Run
from demo.story import Outcomes
from demo.view import View

AT_LEAST = 2
MANY = 1000


@dataclass(frozen=True, slots=True)
class HealthChecks:
    """What is known of them.

    Attributes:
        succeeded: Those whose success the result store tells of.
        noted: How many entries the journal has.
    """

    succeeded: Sequence[TaskStatus]
    noted: int


async def look(run: Run, outcomes: Outcomes, view: View, *, timeout_s: float) -> list[Check]:
    """Look how often the health was checked; where the demo was too short for the least, wait until it was.

    Args:
        run: Its folders and queues.
        outcomes: What the tasks answered before.
        view: Where to show it.
        timeout_s: How long to wait, in seconds.
    """
    every_s = maintenance.settings.health_every_s
    view.step(f"What nobody has sent: a health check every {every_s:g} seconds, all the while")
    started, deadline = perf_counter(), monotonic() + timeout_s
    found = await health_checks(run)
    while len(found.succeeded) < AT_LEAST and monotonic() < deadline:
        await asyncio.sleep(0.1)
        found = await health_checks(run)
    outcomes.seconds["waiting for health checks"] = perf_counter() - started
    view.finish("health", f"{len(found.succeeded)} checks", good=len(found.succeeded) >= AT_LEAST)
    return list(checks_of(found, maintenance.app.name, every_s))


async def health_checks(run: Run) -> HealthChecks:
    """Return what store and journal tell. The store first: what it knows to have ended is in the journal by then."""
    async with maintenance.app:
        page = await maintenance.app.results.list(task=maintenance.check_health.name, state="succeeded", limit=MANY)
    journal = run.folder / maintenance.JOURNAL
    lines = journal.read_text().splitlines() if journal.exists() else []
    noted = sum(json.loads(line)["what"] == "health" for line in lines if line.endswith("}"))
    return HealthChecks(page.items, noted)


def checks_of(found: HealthChecks, app: str, every_s: float) -> Iterator[Check]:
    """They ran, each for a fire time of its own, and not before it."""
    wrong = [status.id for status in found.succeeded if not is_due(status, app, every_s)]
    count = len(found.succeeded)
    yield Check(
        f"The health check ran by its schedule at least {AT_LEAST} times while the demo ran",
        count >= AT_LEAST and found.noted >= count,
        f"{count} times, {found.noted} entries in its journal",
    )
    words = f"Each run belongs to a fire time, {every_s:g} seconds apart, and did not begin before it"
    yield Check(words, not wrong, f"{wrong}")


def is_due(status: TaskStatus, app: str, every_s: float) -> bool:
    """Tell whether a task's id is that of a fire time of the schedule, and whether it began then or later."""
    schedule, _, at = status.id.partition("@")
    try:
        fire_time = datetime.fromisoformat(at)
    except ValueError:
        return False
    started = status.started_at
    is_aligned = fire_time.timestamp() % every_s == 0
    return schedule == f"{app}.health" and is_aligned and started is not None and started >= fire_time
