"""`--metrics-port`: a real Prometheus scrapes workers and schedulers, and its figures are those of the ledger."""

import os
import signal
from collections import Counter

import pytest

from asyncq import AsyncQ
from health_probe import get, metrics_url
from supervised import Supervised
from support import eventually

pytestmark = pytest.mark.any_version

LEDGER = """
import asyncio
import os
from pathlib import Path

from prometheus_client import Counter

from asyncq import AsyncQ, Fixed, Reject, RetryPolicy

app = AsyncQ("ledger")
PARCELS = Counter("shop_parcels", "Parcels that were sent.", ["country"])  # a user's own


def write(word: str) -> None:
    with Path("ledger.txt").open("a") as file:
        file.write(f"{word} {os.getpid()}\\n")


@app.task
async def good() -> None:
    PARCELS.labels("de").inc()
    write("succeeded")


@app.task(pass_context=True, retry=RetryPolicy(on=(ConnectionError,), max_attempts=2, backoff=Fixed(0.01)))
async def flaky(ctx) -> None:
    write("retried" if ctx.attempt == 1 else "succeeded")
    if ctx.attempt == 1:
        raise ConnectionError("once")


@app.task
async def bad() -> None:
    write("failed")
    raise ValueError("for ever")


@app.task
def refuse() -> None:
    write("rejected")
    raise Reject("not this one")


@app.task
async def relay() -> None:
    await good.options(reply=False).send()
    write("succeeded")


@app.task
async def hold() -> None:
    Path(f"holding-{os.getpid()}").touch()
    while not Path("go").exists():
        await asyncio.sleep(0.02)
    write("succeeded")
"""


async def send(shell, **counts):
    """Send so many of each task; nobody waits for replies."""
    async with AsyncQ("ledger", broker=shell.environment["ASYNCQ_BROKER_URL"]) as app:
        signatures = [
            app.signature(f"ledger.{task}", reply=False) for task, count in counts.items() for _ in range(count)
        ]
        await app.send_many(signatures)


def ledger(shell):
    """Return how many attempts ended how, as the tasks themselves have written it."""
    path = shell.folder / "ledger.txt"
    return Counter(line.split()[0] for line in path.read_text().splitlines()) if path.exists() else Counter()


def holding(shell):
    """Return the processes in which a task was held."""
    return [int(path.name.removeprefix("holding-")) for path in shell.folder.glob("holding-*")]


async def test_the_figures_of_prometheus_are_those_of_the_ledger_whatever_happens_to_the_processes(
    shell, management, prometheus
):
    """Retries, failures, a process that is killed, and one that is replaced: nothing is lost, and nothing goes down."""
    (shell.folder / "ledger.py").write_text(LEDGER)
    supervised = Supervised(shell, "--processes", "2", "--slots", "3", "--metrics-port", "0", target="ledger:app")
    url = await metrics_url(supervised.running)
    server = prometheus(url.removeprefix("http://"))
    await supervised.consumes(2)

    async def agree(expected):
        """Wait until the ledger is as expected, and Prometheus says the same."""
        await eventually(lambda: ledger(shell) == expected, 30, message=f"{expected}; {ledger(shell)}")

        def equal():
            found = server.query('sum by (outcome) (asyncq_deliveries_total{queue="ledger"})')
            assert {outcome: count for (outcome,), count in found.items() if count} == expected
            return True

        await eventually(equal, 30)

    await send(shell, good=150, flaky=20, bad=3, refuse=2, relay=4)
    expected = Counter(succeeded=150 + 20 + 4 + 4, retried=20, failed=3, rejected=2)
    await agree(expected)

    await send(shell, hold=1)
    (held,) = await eventually(lambda: holding(shell), 20)
    os.kill(held, signal.SIGKILL)
    await eventually(lambda: len(holding(shell)) == 2, 30)
    (shell.folder / "go").touch()
    (other,) = set(supervised.started()[:2]) - {held}
    await send(shell, good=10)
    expected["succeeded"] += 11
    await agree(expected)

    os.kill(other, signal.SIGTERM)  # replaced, in good order
    await supervised.consumes(4)
    await send(shell, good=20, bad=1)
    expected += Counter(succeeded=20, failed=1)
    await agree(expected)

    attempts = sum(expected.values())
    assert server.query("sum(asyncq_attempt_duration_seconds_count)")[()] == attempts
    assert server.query("sum(asyncq_queue_wait_seconds_count)")[()] == attempts
    assert server.query("sum(asyncq_dead_letters_total)")[()] == expected["failed"] + expected["rejected"]
    assert await management.ready("ledger.dead") == expected["failed"] + expected["rejected"]
    assert server.query('asyncq_sends_total{queue="ledger"}') == {
        ("asyncq_sends_total", "127.0.0.1:" + url.rpartition(":")[2], "asyncq", "confirmed", "ledger"): 4
    }
    assert server.query("sum(shop_parcels_total)")[()] == 150 + 4 + 10 + 20
    await eventually(lambda: server.query("sum(asyncq_slots)") == {(): 6})
    await eventually(lambda: server.query('sum(asyncq_connections{state="ready"})') == {(): 2})
    await eventually(lambda: server.query("sum(asyncq_attempts_running)") == {(): 0})
    for name in ("asyncq_deliveries_total", "asyncq_attempt_duration_seconds_count", "shop_parcels_total"):
        assert set(server.query(f"resets({name}[1h])").values()) == {0}
    assert server.query("max(asyncq_event_loop_lag_seconds)")[()] >= 0


@pytest.mark.any_version
async def test_a_worker_without_a_supervisor_and_a_scheduler_beside_it_are_scraped_too(shell):
    """In memory, at the same names; a name that only a foreign message knows makes no time series."""
    (shell.folder / "single.py").write_text(
        LEDGER.replace('"ledger"', '"single"') + "\n\napp.schedule('often', good.s(), 0.2)\n"
    )
    worker = shell.start("worker", "single:app", "--metrics-port", "0", "--scheduler")
    url = await metrics_url(worker)
    await eventually(lambda: ledger(shell)["succeeded"] >= 3, 30)
    async with AsyncQ("single", broker=shell.environment["ASYNCQ_BROKER_URL"]) as app:
        await app.send("single.unheard_of", {}, reply=False)

    def told():
        text = get(url + "/metrics")[1]
        assert "asyncq_scheduler_leads 1.0" in text
        assert 'asyncq_scheduler_ticks_total{schedule="often"}' in text
        assert 'asyncq_deliveries_total{outcome="deferred",queue="single",task="(unknown)"} 1.0' in text
        assert 'asyncq_connections{state="ready"} 1.0' in text
        assert 'asyncq_circuit_breakers{queue="single",state="closed"} 1.0' in text
        assert "process_resident_memory_bytes" in text
        assert "unheard_of" not in text
        return True

    await eventually(told, 20)
