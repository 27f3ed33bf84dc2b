"""What was attempted, confirmed and executed, by task id: the proof that nothing confirmed is lost."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from asyncq import AsyncQ, NotSent, PublishUncertain
from asyncq.errors import BrokerError


@dataclass
class Ledger:
    """The producer's side: ids by what became of their publish."""

    attempted: set[str] = field(default_factory=set)
    confirmed: set[str] = field(default_factory=set)
    uncertain: set[str] = field(default_factory=set)
    not_sent: set[str] = field(default_factory=set)

    def summary(self, executed: Counter[str]) -> str:
        """One line for people."""
        twice = sum(1 for count in executed.values() if count > 1)
        return (
            f"attempted {len(self.attempted)}, confirmed {len(self.confirmed)}, uncertain {len(self.uncertain)}, "
            f"not sent {len(self.not_sent)}, executed {len(executed)} ({twice} more than once)"
        )


async def produce(app: AsyncQ, task: str, ledger: Ledger, stop: asyncio.Event, seed: int) -> None:
    """Send until `stop`, a few at a time, with and without delay; note what became of each."""
    draw = random.Random(seed)
    number = 0
    while not stop.is_set():
        batch = []
        for _ in range(draw.randint(1, 10)):
            number += 1
            task_id = f"{seed}-{number}"
            delay = draw.choice((0.0, 0.0, 0.0, draw.uniform(0.01, 2.0)))
            batch.append(send(app, task, task_id, delay, ledger))
        await asyncio.gather(*batch)


async def send(app: AsyncQ, task: str, task_id: str, delay: float, ledger: Ledger) -> None:
    """Send one task, and note what became of it."""
    ledger.attempted.add(task_id)
    options = {"delay": delay} if delay else {}
    try:
        await app.send(task, {"key": task_id}, task_id=task_id, reply=False, **options)
    except PublishUncertain:
        ledger.uncertain.add(task_id)
    except NotSent:
        ledger.not_sent.add(task_id)
    except BrokerError as error:
        raise AssertionError(f"an unexpected ending of a send: {error!r}") from error
    else:
        ledger.confirmed.add(task_id)


def executed(folder: Path) -> Counter[str]:
    """Read what the workers wrote: one JSON line an execution."""
    counts: Counter[str] = Counter()
    for path in folder.glob("executed-*.jsonl"):
        for line in path.read_text().splitlines():
            counts[json.loads(line)["key"]] += 1
    return counts
