"""Nodes of a cluster are killed, whichever leads most queues: what was confirmed runs, and chords come to their ends.

The sender's own node lives, and with it the sender's reply queue. A second sender, and the workers, are connected to
nodes that are killed, and go on with the next URL.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aio_pika
import pytest

from asyncq import AsyncQ, ReplyLost, chord
from asyncq.broker import QueueSpec
from asyncq.errors import BrokerError
from asyncq.testing.node import NodeUnavailable
from cluster import Cluster
from support import eventually
from versions import TEST_SETUP, VERSIONS

sys.path.insert(0, str(Path(__file__).parent))

from delays import QUEUE, Sent, percentile, ran, rungs, start_worker

MEMBERS = 10
AT_ONCE = 5
KILLS = 4
HOME, VICTIMS = 0, (1, 2)
LIMIT = 100_000  # each death counts as a delivery of what was held: these are no poison
SETTINGS = {"poison_after": LIMIT, "delivery_limit": LIMIT, "heartbeat_s": 5}
# How long it may take until all has run: a delayed task may wait for three minutes where a kill met it on the ladder.
PATIENCE_S = 400

pytestmark = pytest.mark.prove


@pytest.fixture(scope="module", params=[version for version in VERSIONS if not version.startswith("3.")])
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes, all of them up. Not of RabbitMQ 3: docs/production.md says why."""
    try:
        made = Cluster(request.param, tmp_path_factory.mktemp("cluster"), TEST_SETUP)
    except NodeUnavailable as error:
        pytest.skip(f"RabbitMQ {request.param} cannot be had: {error}")
    try:
        made.start()
        yield made
    finally:
        made.remove()


@pytest.fixture
def vhost(cluster: Cluster) -> str:
    """A fresh virtual host. It goes away with the cluster."""
    name = f"asyncq-test-{uuid.uuid4().hex[:12]}"
    cluster.add_vhost(name)
    return name


@pytest.fixture
def draw() -> random.Random:
    """Random numbers that can be repeated."""
    seed = int(os.environ.get("SEED", random.randrange(10**6)))
    print(f"\nseed {seed}")
    return random.Random(seed)


class Failovers:
    """Kills of nodes, one after the other.

    Attributes:
        led: How many queues each victim led when it was killed.
        away_s: For how long each was away, until it served again.
    """

    def __init__(self, cluster: Cluster, vhost: str, draw: random.Random) -> None:
        self._cluster = cluster
        self._vhost = vhost
        self._draw = draw
        self.led: list[int] = []
        self.away_s: list[float] = []

    async def one(self, queue: str | None = None) -> None:
        """Kill a node at a random moment and start it again; return when all copies are back.

        Args:
            queue: Its leader is killed; None for the node that leads the most.
        """
        await self._cluster.whole(self._vhost)
        await asyncio.sleep(self._draw.uniform(0, 2))  # the load goes on meanwhile: this is no wait for a condition
        leaders = await self._cluster.leaders(self._vhost)
        leads = Counter(leaders.values())
        victim = leaders[queue] if queue else max(VICTIMS, key=lambda number: leads[number])
        node, at = self._cluster.nodes[victim], time.monotonic()
        await asyncio.to_thread(node.kill)
        self.led.append(leads[victim])
        await asyncio.sleep(self._draw.uniform(0, 2))
        await asyncio.to_thread(node.start)
        self.away_s.append(round(time.monotonic() - at, 1))
        await self._cluster.whole(self._vhost)

    def __str__(self) -> str:
        return f"{len(self.led)} nodes killed, which led {self.led} queues and were away for {self.away_s} s"


@contextlib.asynccontextmanager
async def workers_on_victims(cluster: Cluster, vhost: str, folder: Path) -> AsyncIterator[None]:
    """Two workers, each connected to a node that is killed sooner or later; they end well."""
    orders = ((1, 2, HOME), (2, HOME, 1))
    workers = [await start_worker(cluster.urls(vhost, *order), folder, **SETTINGS) for order in orders]
    try:
        yield
    finally:
        for worker in workers:
            if worker.returncode is None:
                worker.terminate()
        codes = [await asyncio.wait_for(worker.wait(), 90) for worker in workers]
    assert codes == [0, 0], (folder / "worker.log").read_text()[-4000:]


async def stand(app: AsyncQ, cluster: Cluster, longest_s: float = 0) -> None:
    """Declare what the load will use, and let the cluster settle: nothing of it is declared in the moment of a kill.

    RabbitMQ 4.3 may never have such a queue again; docs/production.md tells of it.

    Args:
        app: Declares.
        cluster: Its broker.
        longest_s: The longest delay of the load.
    """
    await app.broker.ensure([QueueSpec(QUEUE, LIMIT)])
    await app.cancel("nobody")  # declares the stream that workers read
    for delay_s in rungs(longest_s):
        await app.send("faults.mark", {"key": "first"}, queue=QUEUE, delay=delay_s, reply=False)
    await asyncio.to_thread(cluster.settle)


class Chords:
    """One sender's chords, by their numbers; the values of each tell which it is."""

    def __init__(self, app: AsyncQ, numbers: Iterator[int], draw: random.Random) -> None:
        self._app = app
        self._numbers = numbers
        self._draw = draw
        self.handles = {}
        self.errors: list[BrokerError] = []

    async def keep_sending(self, stop: asyncio.Event, folder: Path) -> None:
        """Send until then; no more at once than the workers can keep up with."""
        while not stop.is_set():
            await self.send()
            await eventually(lambda: stop.is_set() or len(self.not_run(folder)) < AT_ONCE, PATIENCE_S)

    async def send(self) -> None:
        """Send one. What the broker has not confirmed may run or not."""
        number = next(self._numbers)
        members = [
            self._app.signature("faults.member", {"number": value, "seconds": self._draw.uniform(0, 1)}, queue=QUEUE)
            for value in values(number)
        ]
        body = self._app.signature("faults.body", queue=QUEUE).taking("values")
        try:
            self.handles[number] = await chord(members, body).send()
        except BrokerError as error:
            self.errors.append(error)

    def not_run(self, folder: Path) -> list[int]:
        """Return the confirmed ones whose body has not run yet."""
        found = bodies(folder)
        return [number for number in self.handles if str(values(number)) not in found]

    async def ends(self) -> Counter[str]:
        """Wait for the end of each, and return how many ended how."""

        async def end(number: int) -> str:
            try:
                assert await self.handles[number].result(timeout=120) == values(number)
            except ReplyLost:
                return "reply lost"
            return "succeeded"

        return Counter(await asyncio.gather(*map(end, self.handles)))


def values(number: int) -> list[int]:
    """Return those of a chord."""
    return list(range(number * MEMBERS, (number + 1) * MEMBERS))


def bodies(folder: Path) -> Counter[str]:
    """Return how often the body of each chord ran, by its values."""
    found: Counter[str] = Counter()
    for key, times in ran(folder).items():
        found[key.partition(" ")[2]] += len(times)
    return found


async def test_chords_come_to_their_ends_while_the_leaders_of_their_queues_are_killed(cluster, vhost, draw, tmp_path):
    """Each body runs, with all values. Who sent from a node that lives hears of each end; others may lose replies."""
    home = AsyncQ("faults-home", broker=cluster.urls(vhost, HOME, 1, 2), publish_timeout_s=60, **SETTINGS)
    moved = AsyncQ("faults-moved", broker=cluster.urls(vhost, 1, 2, HOME), publish_timeout_s=60, **SETTINGS)
    failovers, stop, numbers = Failovers(cluster, vhost, draw), asyncio.Event(), iter(range(10**6))
    async with home, moved:
        await stand(home, cluster)
        async with workers_on_victims(cluster, vhost, tmp_path):
            senders = Chords(home, numbers, draw), Chords(moved, numbers, draw)
            sending = [asyncio.create_task(sender.keep_sending(stop, tmp_path)) for sender in senders]
            for _ in range(KILLS):
                await failovers.one()
            stop.set()
            await asyncio.gather(*sending)

            def all_have_run() -> bool:
                assert [number for sender in senders for number in sender.not_run(tmp_path)] == []
                return True

            await eventually(all_have_run, PATIENCE_S, message="the end of every chord runs")
            ends = [await sender.ends() for sender in senders]
    confirmed = [str(values(number)) for sender in senders for number in sender.handles]
    found = bodies(tmp_path)
    unconfirmed = [type(error).__name__ for sender in senders for error in sender.errors]
    print(
        f"{cluster.version}: {failovers}. {len(confirmed)} chords of {MEMBERS}; "
        f"runs of one body: {dict(Counter(found[key] for key in confirmed))}; "
        f"handles at home {dict(ends[0])}, at a node that was killed {dict(ends[1])}; "
        f"sends not confirmed: {dict(Counter(unconfirmed))}"
    )
    assert len(confirmed) >= 30
    assert set(ends[0]) == {"succeeded"}
    assert sum(failovers.led) > 0


async def test_confirmed_tasks_run_while_the_leaders_of_their_queues_are_killed(cluster, vhost, draw, tmp_path):
    """Plain ones, and delayed ones that become due during a failover or wait through several; none early."""
    app = AsyncQ("faults-home", broker=cluster.urls(vhost, HOME, 1, 2), publish_timeout_s=60, **SETTINGS)
    failovers, stop, sent, errors = Failovers(cluster, vhost, draw), asyncio.Event(), Sent(), []

    async def send() -> None:
        while not stop.is_set():
            delay_s = draw.choice((0, draw.uniform(1, 10)))
            try:
                await sent.send(app, delay_s)
            except BrokerError as error:
                errors.append(type(error).__name__)

    async with app:
        await stand(app, cluster, 10)
        async with workers_on_victims(cluster, vhost, tmp_path):
            sending = [asyncio.create_task(send()) for _ in range(5)]
            for _ in range(KILLS):
                await failovers.one()
            stop.set()
            await asyncio.gather(*sending)

            def all_have_run() -> bool:
                found_now = ran(tmp_path)
                missing = {key: delay_s for key, delay_s in sent.delays.items() if key not in found_now}
                assert missing == {}
                return True

            await eventually(all_have_run, PATIENCE_S, message="all have run")
    found = ran(tmp_path)
    twice = sum(len(times) > 1 for times in found.values())
    print(f"{cluster.version}: {failovers}. Sends not confirmed: {dict(Counter(errors))}; {twice} ran more than once")
    for delayed in (False, True):
        late = sent.late_s(found, delayed=delayed)
        print(
            f"{len(late)} {'delayed' if delayed else 'plain'} tasks: late by p50 {percentile(late, 0.5):.2f} s, "
            f"p99 {percentile(late, 0.99):.1f} s, at most {late[-1]:.1f} s"
        )
        assert late[0] >= 0
        assert len(late) > 100


async def test_a_scheduler_keeps_every_fire_time_while_the_leader_of_its_queue_is_killed(cluster, vhost, draw):
    """Two stand by; whichever node leads their queue is killed. Each fire time comes, and has one id."""
    apps = [AsyncQ("ticking", broker=cluster.urls(vhost, *order), heartbeat_s=5) for order in ((0, 1, 2), (2, 0, 1))]
    for app in apps:
        app.task(tick, queue="ticks")
        app.schedule("second", "ticking.tick", 1, missed="all")
    failovers = Failovers(cluster, vhost, draw)
    async with apps[0], apps[1]:
        schedulers = [app.scheduler() for app in apps]
        running = [asyncio.create_task(scheduler.run()) for scheduler in schedulers]

        async def leads() -> None:
            """One of them has caught up, and goes on."""

            def sent() -> int:
                return sum(scheduler.stats.sent.get("second", 0) for scheduler in schedulers)

            before = sent()
            await eventually(
                lambda: sent() > before + 2 and any(it.stats.leads and it.stats.lag_s < 2 for it in schedulers), 120
            )

        for _ in range(KILLS):
            await leads()
            await failovers.one("asyncq.scheduler.ticking")
        await leads()
        for scheduler in schedulers:
            scheduler.stop()
        await asyncio.wait_for(asyncio.gather(*running), 60)
    ticks = await taken(cluster.urls(vhost, HOME), "ticks")
    fired = sorted(at for at, _ in ticks)
    expected = set(range(fired[0], fired[-1] + 1, 1000))
    terms = [scheduler.stats.terms for scheduler in schedulers]
    print(f"{cluster.version}: {failovers}. Fire times {len(expected)}, ticks {len(ticks)}, terms {terms}")
    assert set(fired) == expected
    assert len(set(ticks)) == len(expected)


async def tick() -> None:
    """Nobody runs it: what is sent is looked at."""


async def taken(url: str, queue: str) -> list[tuple[int, str]]:
    """Take all that is in the queue: fire times and ids."""
    found = []
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        ticks = await channel.get_queue(queue)
        while (message := await ticks.get(no_ack=True, fail=False)) is not None:
            found.append((message.headers["asyncq-fire-time"], message.correlation_id))
    return found
