"""Three schedulers, one leader after the other killed, frozen and cut off: each fire time has one id, and runs once."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import aio_pika
import pytest

from asyncq import AsyncQ
from asyncq.ticks import Tick
from proxy import proxy_of
from support import eventually, working

APP = """
from asyncq import AsyncQ

app = AsyncQ("ticking", heartbeat_s=2)


@app.task(queue="ticks")
async def tick() -> None: ...


@app.task(queue="runs")
async def run() -> None: ...


app.schedule("second", tick.s(), 1, missed="all")
app.schedule("run", run.s(), 1, missed="all")
"""


LONGEST_GAP_S = 25
"""About three heartbeats of 2 s, a connection, and a machine with other work."""


class Candidate:
    """A scheduler in a process of its own, behind a proxy of its own."""

    def __init__(self, folder, number, url):
        self.log = Path(folder, f"scheduler-{number}-{time.time_ns()}.log")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ASYNCQ_")}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "asyncq", "scheduler", "ticking:app", "--log-format", "json"],
                stderr=log,
                cwd=folder,
                env={**environment, "ASYNCQ_BROKER_URL": url},
            )

    def end(self):
        """Kill it."""
        self.process.kill()
        self.process.wait()

    @property
    def leads(self):
        """Whether the last that it said about it is that it leads."""
        events = [json.loads(line)["event"] for line in self.log.read_text().splitlines() if line.startswith("{")]
        told = [event for event in events if event in {"scheduler leads", "leads no longer", "scheduler hands over"}]
        return bool(told) and told[-1] == "scheduler leads" and self.process.poll() is None


class Ledger:
    """What came out of the queue: each tick with the time of its arrival."""

    def __init__(self):
        self.ticks = []

    async def take(self, url):
        connection = await aio_pika.connect(url)
        async with connection:
            channel = await connection.channel()
            await channel.set_qos(prefetch_count=100)
            queue = await channel.get_queue("ticks")
            async with queue.iterator() as messages:
                async for message in messages:
                    self.ticks.append((message.headers["asyncq-fire-time"], message.correlation_id, time.time()))
                    await message.ack()

    def gaps(self):
        arrivals = sorted(arrived for _, _, arrived in self.ticks)
        return [later - sooner for sooner, later in pairwise(arrivals)]


class Executions:
    """What a real worker runs: the ids of the second schedule's ticks."""

    def __init__(self, url):
        self.ids = Counter()
        self.app = AsyncQ("ticking", broker=url)

        @self.app.task(queue="runs", pass_context=True)
        async def run(ctx) -> None:
            self.ids[ctx.task_id] += 1

    def has_run(self, at_ms):
        return tick_id(at_ms) in self.ids


def tick_id(at_ms):
    return Tick(at_ms, "run").id("ticking")


class Number(int):
    """A number that is true when it is 0."""

    def __bool__(self):
        return True


class Trial:
    """Three schedulers, each behind a proxy of its own."""

    def __init__(self, folder, proxies):
        self.folder = folder
        self.proxies = proxies
        self.candidates = {number: Candidate(folder, number, proxy.url) for number, proxy in enumerate(proxies)}
        self.deeds = []

    def leading(self, but=None):
        """The number of the one that says that it leads; None where there is none, or more than one."""
        found = [number for number, candidate in self.candidates.items() if number != but and candidate.leads]
        return Number(found[0]) if len(found) == 1 else None

    async def harm(self, kind):
        """Stop the leader, wait for its successor, let it go on, and wait until it knows that it leads no longer."""
        leader = await eventually(self.leading, 60)
        candidate, proxy, at = self.candidates[leader], self.proxies[leader], time.time()
        if kind == "kill":
            candidate.end()
        elif kind == "freeze":
            candidate.process.send_signal(signal.SIGSTOP)
        else:
            proxy.freeze()
        await eventually(lambda: self.leading(but=leader), 60)
        self.deeds.append((kind, round(time.time() - at, 1)))
        if kind == "kill":
            self.candidates[leader] = Candidate(self.folder, leader, proxy.url)
        elif kind == "freeze":
            candidate.process.send_signal(signal.SIGCONT)
        else:
            proxy.thaw()
        await eventually(lambda: not candidate.leads, 60)


async def run(tmp_path, broker_url, seconds, version):
    """Harm one leader after the other, in turn, for so long; return what was done to them."""
    (tmp_path / "ticking.py").write_text(APP)
    ledger, executions = Ledger(), Executions(broker_url)
    async with (
        proxy_of(broker_url) as one,
        proxy_of(broker_url) as two,
        proxy_of(broker_url) as three,
        working(executions.app, {"runs": 5}),
    ):
        trial = Trial(tmp_path, [one, two, three])
        taking = None
        try:
            await eventually(trial.leading, 60)
            taking = asyncio.create_task(ledger.take(broker_url))
            ends = time.time() + seconds
            while time.time() < ends or len(trial.deeds) < 3:
                count = len(ledger.ticks)
                await eventually(lambda: len(ledger.ticks) > count + 2, 60)  # noqa: B023 - asked at once
                await trial.harm(("kill", "freeze", "cut")[len(trial.deeds) % 3])
            last_ms = int(time.time()) * 1000
            await eventually(lambda: max(ledger.ticks)[0] > last_ms, 60)
            await eventually(lambda: executions.has_run(last_ms), 60)
        finally:
            for candidate in trial.candidates.values():
                candidate.end()
            if taking is not None:
                taking.cancel()
                await asyncio.gather(taking, return_exceptions=True)
    check(ledger, executions, trial, last_ms, version)
    return trial.deeds


def check(ledger, executions, trial, last_ms, version):
    """Every fire time has one id, came, and was run once; no gap was longer than a failover may take."""
    fired = [at for at, _, _ in ledger.ticks]
    ids = {at: {name for tick_at, name, _ in ledger.ticks if tick_at == at} for at in set(fired)}
    expected = set(range(min(fired), last_ms + 1, 1000))
    print(
        f"RabbitMQ {version}: leaders {trial.deeds}; fire times {len(expected)}, ticks {len(fired)}, "
        f"more than once {len(fired) - len(ids)}, longest gap {max(ledger.gaps()):.1f} s; "
        f"executed {len(executions.ids)}, more than once {sum(count > 1 for count in executions.ids.values())}"
    )
    assert expected <= set(fired), sorted(expected - set(fired))
    assert all(len(names) == 1 for names in ids.values())
    assert max(ledger.gaps()) < LONGEST_GAP_S
    # The second schedule may have begun a second later; its worker knows what it has run.
    assert {tick_id(at) for at in expected if at > min(fired) + 1000} <= set(executions.ids)
    assert set(executions.ids.values()) == {1}
    # Each leader sends again what the one before has sent since it saved last, and a request may be under way.
    assert len(fired) - len(ids) <= 3 * len(trial.deeds)


async def test_whoever_leads_may_be_killed_frozen_or_cut_off_and_no_fire_time_is_lost(tmp_path, node, broker_url):
    """Once each."""
    deeds = await run(tmp_path, broker_url, 30, node.version)
    assert {kind for kind, _ in deeds} == {"kill", "freeze", "cut"}


@pytest.mark.prove
async def test_three_minutes_of_killing_freezing_and_cutting_off_lose_no_fire_time(tmp_path, node, broker_url):
    """In turn."""
    await run(tmp_path, broker_url, 180, node.version)
