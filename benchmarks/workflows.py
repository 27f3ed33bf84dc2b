"""Chords, groups and chains of tasks that do next to nothing, beside Celery with RabbitMQ and its Redis backend.

Each side has one worker process and its own producer, which sends a workflow, waits for its result and checks it. They
take turns in each round, and each ratio is of one round. Celery's chords count their members in Redis; asyncq has no
store here: the chord's members meet in a queue.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec

from bench import SLOTS, Bench, Sizes, alternate, producer_command, worker_command
from celery_settings import BACKEND, POOL, POOLS, settings
from celery_settings import worker_command as worker_command_of_celery
from figures import Figure, Limit, Pair
from processes import Child, ChildFailed
from stores import private_stores

__all__ = ["measure_workflows"]

CELERY, ASYNCQ = "Celery", "asyncq"
_FASTER, _NEARLY_AS_FAST = Limit("at most", 1.0), Limit("at most", 1.5)


@dataclass(frozen=True, slots=True)
class Kind:
    """A workflow.

    Attributes:
        shape: What it is.
        size: How many tasks it has, the body of a chord not among them.
        limit: What is wanted of it.
        in_a_row: How many of them make one measurement: of a short one several, one after the other.
    """

    shape: str
    size: int
    limit: Limit
    in_a_row: int = 1

    @property
    def name(self) -> str:
        """It in words."""
        return f"{self.shape} of {self.size:,}"


_TRIAL = Kind("chord", 200, _FASTER)


def kinds(sizes: Sizes) -> Sequence[Kind]:
    """Return the workflows that are measured."""
    return (
        Kind("chord", 10, _NEARLY_AS_FAST, sizes.workflows_in_a_row),
        Kind("chord", sizes.workflow_members, _FASTER),
        Kind("chain", sizes.workflow_members // 10, _NEARLY_AS_FAST, 1 + sizes.workflows_in_a_row // 20),
        Kind("group", sizes.workflow_members, _FASTER),
    )


async def measure_workflows(bench: Bench) -> list[Figure]:
    """Return how long each takes, from before the send until the result is there."""
    async with contextlib.AsyncExitStack() as stack:
        producers = {ASYNCQ: await _asyncq(bench, stack)}
        celery = await _celery(bench, stack)
        if celery is None:
            return []
        producers[CELERY] = celery
        for producer in producers.values():
            await _seconds(producer, kinds(bench.sizes)[1])  # imports, caches, the reply queue
        figures = []
        for kind in kinds(bench.sizes):
            rounds = []
            for number in range(bench.sizes.workflow_rounds):
                seconds = {side: await _seconds(producers[side], kind) for side in alternate(number, (CELERY, ASYNCQ))}
                rounds.append(Pair(seconds[CELERY] * 1000, seconds[ASYNCQ] * 1000))
            figures.append(Figure(kind.name, "ms", kind.limit, rounds, "Celery, Redis"))
    return figures


async def _seconds(producer: Child, kind: Kind) -> float:
    """Return how long a workflow takes on one side, in seconds.

    Raises:
        ChildFailed: It has not ended in time.
    """
    seconds = 0.0
    for _ in range(kind.in_a_row):
        answer = await producer.ask("workflow", kind=kind.shape, size=kind.size)
        if answer["seconds"] is None:
            raise ChildFailed(f"a {kind.name} has not ended in time.\n{producer.errors()}")
        seconds += answer["seconds"]
    return seconds / kind.in_a_row


async def _asyncq(bench: Bench, stack: contextlib.AsyncExitStack) -> Child:
    worker = await stack.enter_async_context(Child(worker_command("asyncq"), bench.environment))
    await bench.consuming("asyncq", worker, SLOTS)
    producer = await stack.enter_async_context(Child(producer_command("asyncq"), bench.environment))
    await producer.answer()
    bench.told.append(f"asyncq, {SLOTS} slots, no result store, the rest by default: publishes confirmed, acked late")
    return producer


async def _celery(bench: Bench, stack: contextlib.AsyncExitStack) -> Child | None:
    """Return the producer of a Celery whose worker has the pool that is fastest in a trial; None without Celery."""
    stores = stack.enter_context(private_stores())
    if "Redis" not in stores.urls:
        bench.told.append(f"Celery's workflows are left out: {stores.missing['Redis']}")
        return None
    if find_spec("celery") is None:
        bench.told.append("Celery is left out, as it is not installed: pip install 'asyncq[benchmarks]'")
        return None
    environment = {**bench.environment, BACKEND: stores.urls["Redis"]}
    producer = await stack.enter_async_context(Child(["celery_producer.py"], {**environment, POOL: POOLS[0]}))
    await producer.answer()
    pool = await _fastest_pool(bench, producer, environment)
    await stack.enter_async_context(_celery_worker(pool, environment))
    bench.told.append(
        f"Celery {version('celery')}, {' '.join(worker_command_of_celery(pool)[2:])}, {settings(pool)}, "
        f"result_backend={environment[BACKEND]}, the rest by default"
    )
    return producer


def _celery_worker(pool: str, environment: Mapping[str, str]) -> Child:
    return Child(worker_command_of_celery(pool), {**environment, POOL: pool})


async def _fastest_pool(bench: Bench, producer: Child, environment: Mapping[str, str]) -> str:
    pools: Sequence[str] = POOLS[: bench.sizes.celery_pools]
    if len(pools) == 1:
        return pools[0]
    seconds = {}
    for pool in pools:
        async with _celery_worker(pool, environment):
            try:
                await _seconds(producer, _TRIAL)  # until it is up
                seconds[pool] = await _seconds(producer, _TRIAL)
            except ChildFailed:
                bench.told.append(f"Celery's pool {pool} was too slow for the trial, and is left out.")
    told = ", ".join(f"{pool} {taken:.2f}" for pool, taken in seconds.items())
    bench.told.append(f"Celery's pools in a trial, seconds for a {_TRIAL.name}: {told}. The fastest one is taken.")
    return min(seconds, key=lambda pool: seconds[pool])
