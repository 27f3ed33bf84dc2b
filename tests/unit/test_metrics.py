"""The names of the metrics are those that the documentation has, and labels are those that were declared."""

import random
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, Histogram
from prometheus_client.core import Metric

from asyncq import AsyncQ, Cron
from asyncq.broker import BrokerStatus
from asyncq.cli.observing import Observation, Observing
from asyncq.message import Message
from asyncq.observability.metrics.process import ProcessMetrics
from asyncq.observability.metrics.scheduler import SchedulerMetrics
from asyncq.observability.metrics.sends import SendMetrics
from asyncq.observability.metrics.tally import Sums
from asyncq.observability.metrics.worker import OUTCOMES, WorkerMetrics
from asyncq.outcome import Failed, Failure, Outcome, Succeeded
from asyncq.sends import Sent
from asyncq.worker.execution import Executed
from support import eventually

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


async def test_the_table_of_the_page_on_metrics_is_what_is_exposed():
    """Names, kinds and labels; no more and no less."""
    rows = re.findall(r"^\| `(asyncq_\w+)` \| (\w+) \| (.*?) \|", PAGE.read_text(), re.MULTILINE)
    documented = {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    registry = CollectorRegistry()
    app = AsyncQ("shop", broker="memory://metrics-table")
    async with app:
        made = [
            ProcessMetrics(registry),
            SendMetrics(registry),
            SchedulerMetrics(registry),
            WorkerMetrics(app.worker(), app.tasks, registry),
        ]
    collectors = [value for metrics in made for value in vars(metrics).values() if hasattr(value, "_labelnames")]
    exposed = {_exposed_name(item): (item._type, item._labelnames) for item in collectors}
    assert documented == exposed


def _exposed_name(metric) -> str:
    return metric._name + ("_total" if metric._type == "counter" else "")


def test_every_outcome_has_a_word_and_the_page_tells_it():
    """A new one is counted, too."""
    assert set(OUTCOMES) == set(Outcome.__args__)
    assert len(set(OUTCOMES.values())) == len(OUTCOMES)
    for word in OUTCOMES.values():
        assert f"`{word}`" in PAGE.read_text(), word


async def test_a_worker_is_counted_as_it_settles_and_shows_what_runs():
    """From the first delivery on; what another program has sent by a name of its own makes no label."""
    registry = CollectorRegistry()
    app = AsyncQ("shop", broker="memory://metrics-worker")

    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    async with app:
        worker = app.worker({"shop": 3})
        metrics = WorkerMetrics(worker, app.tasks, registry)
        (observe,) = worker.observers
        for task, outcome in (("shop.add", Succeeded(b"3")), ("x.y", Failed(Failure("E", ""), "why"))):
            observe(executed(task, waited_s=2), outcome, 0.2)
        metrics.look()
    values = _values(registry)
    assert values["asyncq_deliveries_total", "succeeded", "shop", "shop.add"] == 1
    assert values["asyncq_deliveries_total", "failed", "shop", "(unknown)"] == 1
    assert values["asyncq_dead_letters_total", "shop", "(unknown)"] == 1
    assert values["asyncq_attempt_duration_seconds_sum", "shop", "shop.add"] == pytest.approx(0.1)
    assert values["asyncq_queue_wait_seconds_sum", "shop"] == pytest.approx(4.0, abs=0.2)
    assert values["asyncq_attempts_running", "shop", "shop.add"] == 0
    assert values["asyncq_slots", "shop"] == 3
    assert values["asyncq_circuit_breakers", "shop", "closed"] == 1


def executed(task, *, waited_s=0.0, ran_s=0.1):
    """What a slot tells of a delivery that took 0.2 s, of a message that had waited so long before."""
    sent_ms = round((time.time() - 0.2 - waited_s) * 1000)
    message = Message(type=task, body=b"{}", task_id="id", message_id="id", timestamp_ms=sent_ms)
    return Executed(SimpleNamespace(message=message, queue="shop"), 1, Succeeded(b"3"), ran_s=ran_s)


async def test_what_was_counted_is_added_once_whoever_looks_and_a_histogram_has_each_value_in_its_bucket():
    """Beside `prometheus_client`'s own histogram, which takes one value at a time, also for values on a bound."""
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    registry, own = CollectorRegistry(), CollectorRegistry()
    app = AsyncQ("shop", broker="memory://metrics-tally")

    @app.task
    async def add() -> None: ...

    values = [0.005, 0.1, 1500.0, 1501.0, 0.0] + [chance.expovariate(0.1) for _ in range(500)]
    async with app:
        worker = app.worker({"shop": 1})
        metrics = WorkerMetrics(worker, app.tasks, registry)
        buckets = [bound for bound in metrics._run._upper_bounds if bound != float("inf")]
        plain = Histogram(
            "asyncq_attempt_duration_seconds", "Likewise.", ("queue", "task"), buckets=buckets, registry=own
        )
        with ThreadPoolExecutor(2) as threads:
            looking = []
            for number, value in enumerate(values):
                metrics.settled(executed("shop.add", ran_s=value), Succeeded(b""), 0.2)
                plain.labels("shop", "shop.add").observe(value)
                if number % 50 == 0:
                    looking.append(threads.submit(metrics.add_up))
            for each in looking:
                each.result()
        metrics.add_up()
        metrics.add_up()
    found, expected = _values(registry), _values(own)
    assert found["asyncq_deliveries_total", "succeeded", "shop", "shop.add"] == len(values), seed
    for key, value in expected.items():
        if not key[0].endswith("_created"):
            assert found[key] == pytest.approx(value), (key, seed)


def test_an_amount_is_not_left_behind_by_a_scrape_in_the_middle_of_counting_it():
    """Another thread may take what is new between any two steps of the event loop."""
    sums, taken = Sums((1.0, 10.0)), []

    class Interrupted(list):
        def __setitem__(self, index, value):
            super().__setitem__(index, value)
            taken.append(sums.new())

    sums._counts = Interrupted(sums._counts)
    sums.observe(1500.0)
    assert taken == [([0, 0, 1], 1500.0)]
    assert sums.new() is None


async def test_sends_are_counted_by_how_the_broker_has_answered():
    """One by one, many at once, and where there is no queue."""
    seen = []
    app = AsyncQ("shop", broker="memory://metrics-sends")
    app.observe_sends(seen.append)

    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    async with app:
        await add.options(reply=False).send(1, 2)
        await app.send_many([add.options(reply=False).s(1, 2)])
        with pytest.raises(Exception, match="nowhere"):
            await add.options(queue="nowhere", reply=False).send(1, 2)
    assert seen == [
        Sent("shop.add", "shop", "confirmed"),
        Sent("shop.add", "shop", "confirmed"),
        Sent("shop.add", "nowhere", "unroutable"),
    ]


async def test_what_a_scheduler_has_done_is_counted_once_however_often_it_is_looked_at():
    """The scheduler keeps totals; the metrics take what is new."""
    registry = CollectorRegistry()
    metrics = SchedulerMetrics(registry)
    app = AsyncQ("shop", broker="memory://metrics-scheduler")

    @app.task
    async def tick() -> None: ...

    app.schedule("often", tick.s(), 0.1)
    app.schedule("daily", tick.s(), Cron("0 8 * * *"))
    async with app:
        import asyncio

        scheduler = app.scheduler()
        running = asyncio.create_task(scheduler.run())
        await eventually(lambda: scheduler.stats.sent.get("often", 0) >= 2)
        for _ in range(3):
            metrics.look(scheduler.stats)
        stats = scheduler.stats
        values = _values(registry)
        scheduler.stop()
        await running
    assert values["asyncq_scheduler_leads",] == 1
    assert values["asyncq_scheduler_terms_total",] == 1
    assert 2 <= values["asyncq_scheduler_ticks_total", "often"] <= stats.sent["often"]
    assert values["asyncq_scheduler_next_fire_timestamp_seconds", "daily"] == stats.upcoming["daily"] / 1000


def test_the_connection_has_one_state_at_a_time():
    """Of all states, one is 1."""
    registry = CollectorRegistry()
    metrics = ProcessMetrics(registry)
    for state in ("connecting", "ready", "blocked"):
        metrics.look(BrokerStatus(state), None)
        states = {key[1]: value for key, value in _values(registry).items() if key[0] == "asyncq_connections"}
        assert {name for name, value in states.items() if value} == {state}
    metrics.set_lag(0.5)
    assert _values(registry)["asyncq_event_loop_lag_seconds",] == 0.5


async def test_the_lag_of_a_loop_that_is_blocked_is_shown_while_it_is():
    """Afterwards it is over within a second, and no scrape would have seen it."""
    app = AsyncQ("shop", broker="memory://metrics-lag", metrics_port=0)
    before = set(REGISTRY._collector_to_names)
    try:
        with Observation(app, Observing("shop:app")):
            until = time.monotonic() + 10
            while _lag_s() < 0.9 and time.monotonic() < until:
                time.sleep(0.02)  # noqa: ASYNC251 - this is what blocks the loop
            assert _lag_s() >= 0.9
            await eventually(lambda: _lag_s() < 0.9)
    finally:
        for collector in set(REGISTRY._collector_to_names) - before:
            REGISTRY.unregister(collector)


def _lag_s() -> float:
    return REGISTRY.get_sample_value("asyncq_event_loop_lag_seconds") or 0.0


def _values(registry: CollectorRegistry) -> dict[tuple[str, ...], float]:
    """Return all samples by name and the values of their labels, in the order of the labels' names."""
    found: list[Metric] = list(registry.collect())
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for metric in found
        for sample in metric.samples
    }
