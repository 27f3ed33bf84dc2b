"""The end of the story: what had failed is repaired, as the person on call would.

The broken upload comes again, whole, and its dead letter is sent back by `asyncq dead replay`: the same task runs
again, with its old id, and this time it has something to work on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from time import monotonic, perf_counter

from demo import samples
from demo.checks import Check, problems_of_file
from demo.samples import TRUNCATED
from demo.settings import Run
from demo.stage import Stage
from demo.story import Outcomes
from demo.view import View


async def repair(stage: Stage, run: Run, outcomes: Outcomes, view: View, *, timeout_s: float) -> list[Check]:
    """Bring the picture, replay its dead letter, and say what came of it.

    Args:
        stage: Where it is played.
        run: Its folders and queues.
        outcomes: What the tasks answered before.
        view: Where to show it.
        timeout_s: How long to wait for the picture, in seconds.
    """
    view.step("The broken upload comes again, whole, and its dead letter is sent back")
    started = perf_counter()
    queue, task_id = run.queue("images"), outcomes.task_ids[TRUNCATED]
    await asyncio.to_thread(samples.make_whole, run.pictures, list(outcomes.converted))
    replayed = await stage.replay(queue, task_id)
    view.note(f"asyncq dead replay {queue} --id {task_id} --yes")
    webp = run.converted / "webp" / f"{TRUNCATED}.webp"
    deadline = monotonic() + timeout_s
    while not webp.exists() and monotonic() < deadline:  # noqa: ASYNC110 - a file of another process
        await asyncio.sleep(0.05)
    outcomes.seconds["the repair"] = perf_counter() - started
    dead = {letter.id for letter in await stage.dead_letters(queue)}
    there = webp.exists()
    view.finish(TRUNCATED, "converted, by the task that had failed" if there else "still not there", good=there)
    return list(checks_of(run, outcomes, replayed, dead))


def checks_of(run: Run, outcomes: Outcomes, replayed: int, dead: set[str]) -> Iterator[Check]:
    """The letter is gone, and the picture is there."""
    wanted = {outcomes.task_ids[source] for source in outcomes.failed} - {outcomes.task_ids[TRUNCATED]}
    yield Check("One dead letter was sent back", replayed == 1, f"{replayed}")
    yield Check("It is no dead letter any more, and the others are still there", dead == wanted, f"{dead}")
    wrong = problems_of_file(run, TRUNCATED)
    yield Check("The repaired picture is there, whole", wrong is None, wrong or "")
