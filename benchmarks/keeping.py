"""Drain tasks whose results are kept: asyncq with each of its stores, and Celery with Redis.

Each is one worker process on the same RabbitMQ. It drains a quorum queue of the same messages, which its own producer
has sent before, confirmed; asyncq's has also written into the store that they are queued. All take turns in each round,
and each ratio is of one round. A task counts when its code has run: at either end of what is timed, about as many are
on their way into the store. After it, all results must be there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec

from asyncq import AsyncQ
from bench import SLOTS, Bench, alternate, producer_command, worker_command
from celery_settings import BACKEND, POOL, POOLS, settings
from celery_settings import worker_command as worker_command_of_celery
from figures import Figure, Limit, Pair
from meter import metered
from processes import Child, ChildFailed
from stores import private_stores

__all__ = ["measure_keeping"]

NOTHING, REPLIES, REDIS, CELERY = "no result", "reply queue", "Redis", "Celery, Redis"
_LIMIT = Limit("at least", 1.3)
_ALL_KEPT_S = 60.0


@dataclass(frozen=True, slots=True)
class Way:
    """A way of keeping results.

    Attributes:
        name: In words.
        configuration: What it is, for people.
        producer: What sends its tasks.
        worker: The arguments of what runs them.
        environment: The variables of both.
    """

    name: str
    configuration: str
    producer: Child
    worker: Sequence[str]
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Drained:
    """How fast one drain was.

    Attributes:
        rate: Messages a second.
        cpu_us: The worker's CPU time for each, in microseconds.
    """

    rate: float
    cpu_us: float


async def measure_keeping(bench: Bench) -> list[Figure]:
    """Return the rates beside those without results, and beside Celery's."""
    async with contextlib.AsyncExitStack() as stack:
        ways = await _ways(bench, stack)
        bench.told += [f"{way.name}: {way.configuration}" for way in ways]
        rounds = [
            {way.name: await _drain(bench, way) for way in alternate(number, ways)}
            for number in range(bench.sizes.kept_rounds)
        ]
    figures = []
    for name in (way.name for way in ways if way.name not in {NOTHING, CELERY}):
        figures += _figures(rounds, name, NOTHING, "no result", None)
    if {REDIS, CELERY} <= rounds[0].keys():
        figures += _figures(rounds, REDIS, CELERY, "Celery", _LIMIT)
    return figures


def _figures(
    rounds: Sequence[Mapping[str, Drained]], own: str, other: str, beside: str, limit: Limit | None
) -> list[Figure]:
    """Return the rates of one way beside those of another, and the CPU time of their workers."""
    rates = [Pair(drained[other].rate, drained[own].rate) for drained in rounds]
    cpu = [Pair(drained[other].cpu_us, drained[own].cpu_us) for drained in rounds]
    return [
        Figure(f"drain, results: {own}", "msg/s", limit, rates, beside),
        Figure("  worker CPU", "us/msg", None, cpu, beside),
    ]


async def _drain(bench: Bench, way: Way) -> Drained:
    """Drain what the way's producer sends, with a fresh worker."""
    sizes = bench.sizes
    await bench.purge()
    await way.producer.ask("fill_kept", count=sizes.kept)
    async with Child(way.worker, {**way.environment, **metered(sizes.kept, sizes.kept_warm_up)}) as worker:
        answer = await worker.answer()
        kept = (await way.producer.ask("count_kept", timeout_s=_ALL_KEPT_S))["count"]
        if kept != sizes.kept:
            raise ChildFailed(f"{way.name}: {kept} of {sizes.kept} results were kept.\n{worker.errors()}")
    return Drained(answer["count"] / answer["seconds"], answer["cpu_s"] / answer["count"] * 1e6)


async def _ways(bench: Bench, stack: contextlib.AsyncExitStack) -> list[Way]:
    """Return all that can be had here; what cannot is told."""
    stores = stack.enter_context(private_stores())
    bench.told += [f"{name} is left out: {why}" for name, why in stores.missing.items()]
    urls = {NOTHING: "none", REPLIES: "none", **stores.urls}
    ways = [await _asyncq(bench, stack, name, url) for name, url in urls.items()]
    if REDIS not in stores.urls:
        return ways
    if find_spec("celery") is None:
        bench.told.append("Celery is left out, as it is not installed: pip install 'asyncq[benchmarks]'")
        return ways
    return [*ways, await _celery(bench, stack, stores.urls[REDIS].removesuffix("/0") + "/1")]


async def _asyncq(bench: Bench, stack: contextlib.AsyncExitStack, name: str, url: str) -> Way:
    environment = {**bench.environment, "ASYNCQ_RESULTS": url, "BENCH_REPLY": str(name == REPLIES)}
    if url != "none":
        await AsyncQ("bench", results=url).results.init()
    producer = await stack.enter_async_context(Child(producer_command("asyncq"), environment))
    await producer.answer()
    configuration = (
        f"asyncq, {SLOTS} slots, {'reply=True' if name == REPLIES else 'reply=False'}, ASYNCQ_RESULTS={url}, "
        "the rest by default: publishes confirmed, acked after the end is kept"
    )
    return Way(name, configuration, producer, worker_command("asyncq"), environment)


async def _celery(bench: Bench, stack: contextlib.AsyncExitStack, redis_url: str) -> Way:
    """Return Celery with the pool that is fastest in a trial; a quick run takes the first one."""
    producer_environment = {**bench.environment, BACKEND: redis_url, POOL: POOLS[0]}
    producer = await stack.enter_async_context(Child(["celery_producer.py"], producer_environment))
    await producer.answer()
    pools = POOLS[: bench.sizes.celery_pools]
    ways = {pool: _celery_with(pool, producer, {**producer_environment, POOL: pool}) for pool in pools}
    if len(ways) == 1:
        return ways[POOLS[0]]
    rates = {pool: (await _drain(bench, way)).rate for pool, way in ways.items()}
    told = ", ".join(f"{pool} {rate:,.0f}" for pool, rate in rates.items())
    bench.told.append(f"Celery's pools in a trial, tasks/s: {told}. The fastest one is taken.")
    return ways[max(rates, key=lambda pool: rates[pool])]


def _celery_with(pool: str, producer: Child, environment: Mapping[str, str]) -> Way:
    command = worker_command_of_celery(pool)
    configuration = (
        f"Celery {version('celery')}, {' '.join(command[2:])}, {settings(pool)}, "
        f"result_backend={environment[BACKEND]}, the rest by default"
    )
    return Way(CELERY, configuration, producer, command, environment)
