"""Drain a filled queue by workers that are observed, beside one that is not: what logs, metrics and traces cost.

All take turns in each round, and each ratio is of one round. The limit is of the rate; the worker's CPU time for a task
stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec

from asyncq_app import QUEUE
from bench import SLOTS, Bench, alternate
from collecting import collecting
from figures import Figure, Limit, Pair
from meter import metered
from processes import Child
from switching import measure_switching

__all__ = ["measure_operating"]

NOTHING, NOTHING_SUPERVISED = "nothing on", "nothing on, --processes"
_METRICS_COST = Limit("at least", 0.95)


@dataclass(frozen=True, slots=True)
class Way:
    """A way to run a worker.

    Attributes:
        name: What is on.
        options: Of `asyncq worker`.
        beside: The name of the way that it is compared with; None for one that others are compared with.
        limit: What its rate must be, in units of the other's.
        environment: Variables of the worker that differ.
        needs: A package without which there is no such way.
    """

    name: str
    options: Sequence[str] = ()
    beside: str | None = NOTHING
    limit: Limit | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    needs: str = "asyncq"


_QUIET = "--log-level=warning"
_LOGS = ("--log-level=info", "--log-format=json")
_PORT = "--metrics-port=0"
_SUPERVISED = "--processes=1"
_TRACING, _OTEL = "--tracing", "opentelemetry"
_METRICS = "prometheus_client"
_SAMPLED = {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"}
WAYS = (
    Way(NOTHING, (_QUIET,), beside=None),
    Way("metrics", (_QUIET, _PORT), limit=_METRICS_COST, needs=_METRICS),
    Way(NOTHING_SUPERVISED, (_QUIET, _SUPERVISED), beside=None),
    Way(
        "metrics, --processes",
        (_QUIET, _PORT, _SUPERVISED),
        beside=NOTHING_SUPERVISED,
        limit=_METRICS_COST,
        needs=_METRICS,
    ),
    Way("logs at info, JSON", _LOGS),
    Way("metrics and logs at info", (*_LOGS, _PORT), needs=_METRICS),
    Way("traces, all", (_QUIET, _TRACING), needs=_OTEL),
    Way("traces, 1 of 100", (_QUIET, _TRACING), environment=_SAMPLED, needs=_OTEL),
)


@dataclass(frozen=True, slots=True)
class Drained:
    """How fast one drain was: messages a second, and the worker's CPU time for each in microseconds."""

    rate: float
    cpu_us: float


async def measure_operating(bench: Bench) -> list[Figure]:
    """Return the rates and the CPU times beside those of a worker that is not observed."""
    ways = [way for way in WAYS if find_spec(way.needs) is not None][: bench.sizes.operated_ways]
    missing = [way for way in WAYS if find_spec(way.needs) is None]
    bench.told += [f"{way.name} is left out: {way.needs} is not installed" for way in missing]
    rounds: list[dict[str, Drained]] = []
    async with bench.producer("asyncq") as filler:
        with collecting() as collector:
            for number in range(bench.sizes.operated_rounds):
                drained = {way.name: await _drain(bench, filler, way, collector) for way in alternate(number, ways)}
                rounds.append(drained)
        counting = [await measure_switching(bench, filler)] if find_spec(_METRICS) is not None else []
    return counting + [figure for way in ways if way.beside is not None for figure in _figures(rounds, way, way.beside)]


def _figures(rounds: Sequence[Mapping[str, Drained]], way: Way, beside: str) -> list[Figure]:
    rates = [Pair(drained[beside].rate, drained[way.name].rate) for drained in rounds]
    cpu = [Pair(drained[beside].cpu_us, drained[way.name].cpu_us) for drained in rounds]
    return [
        Figure(f"drain, {way.name}", "msg/s", way.limit, rates, beside),
        Figure("  worker CPU", "us/msg", None, cpu, beside),
    ]


async def _drain(bench: Bench, filler: Child, way: Way, collector: str) -> Drained:
    sizes = bench.sizes
    await bench.purge()
    await filler.ask("fill", queue=QUEUE, count=sizes.operated)
    command = ("-m", "asyncq", "worker", "asyncq_app:app", f"--queue={QUEUE}:{SLOTS}", "--loop=asyncio", *way.options)
    meter = metered(sizes.operated, sizes.operated_warm_up)
    environment = {**bench.environment, **meter, "OTEL_EXPORTER_OTLP_ENDPOINT": collector, **way.environment}
    async with Child(command, environment) as worker:
        answer = await worker.answer()
    return Drained(answer["count"] / answer["seconds"], answer["cpu_s"] / answer["count"] * 1e6)
