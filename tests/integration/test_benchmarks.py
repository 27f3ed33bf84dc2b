"""`python benchmarks` runs, prints its figures, and keeps its limits."""

import asyncio
import importlib
import json
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from asyncq.testing.node import Node, NodeUnavailable
from servers import postgres_programs, redis_program

pytestmark = pytest.mark.any_version

ROOT = Path(__file__).parents[2]

FIGURES = [
    "publish",
    "drain",
    "round trip",
    "idle worker's memory",
    "import, all that `asyncq worker` loads",
    "drain, results: reply queue",
    "drain, results: SQLite",
    "drain, metrics",
    "metrics: counting",
]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that judges."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("figures")


async def benchmarks(node: Node, *options: str, timeout_s: float) -> tuple[int | None, str]:
    """Run the program on the test's broker and return its exit code and its output."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "benchmarks",
        *options,
        cwd=ROOT,
        env={
            **os.environ,
            "ASYNCQ_TEST_BROKER_URL": node.url,
            "ASYNCQ_TEST_MANAGEMENT_URL": node.management_url,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(timeout_s):
            output, _ = await process.communicate()
    except TimeoutError:
        process.terminate()
        await process.wait()
        raise
    return process.returncode, output.decode()


async def test_the_quick_form_runs_and_prints_a_ratio_for_everything(node, tmp_path):
    """It runs both sides on a real broker; it is too short to judge, so it never fails for its figures."""
    record = tmp_path / "figures.json"
    code, output = await benchmarks(node, "--quick", "--json", str(record), timeout_s=300)
    assert code == 0, output
    for name in FIGURES:
        assert name in output
    measured = json.loads(record.read_text())
    for name, is_there in (("PostgreSQL", postgres_programs), ("Redis", redis_program)):
        assert (f"drain, results: {name}" in output) is can_be_had(is_there)
    for beside in ("Celery", "Celery, Redis"):
        assert any(figure["beside"] == beside for figure in measured["figures"]) is (
            can_be_had(redis_program) and find_spec("celery") is not None
        )
    assert measured["broker"] == node.version
    assert all(pair["other"] > 0 and pair["asyncq"] > 0 for figure in measured["figures"] for pair in figure["rounds"])
    assert {figure["limit"] for figure in measured["figures"]} > {">= 0.7", "<= 1.3", "<= 2.3", "<= 1.9", ">= 0.95"}


def can_be_had(find: Callable[[], object]) -> bool:
    """Tell whether a server's programs are here."""
    try:
        find()
    except NodeUnavailable:
        return False
    return True


@pytest.mark.parametrize(
    ("kind", "limit", "ratios", "kept"),
    [
        ("at least", 0.7, (0.69, 0.71, 0.72), True),
        ("at least", 0.7, (0.1, 0.69, 3.0), False),
        ("at most", 1.3, (1.2, 1.3, 9.0), True),
        ("at most", 1.3, (0.5, 1.31, 1.4), False),
    ],
)
def test_the_median_of_the_rounds_is_what_must_keep_the_limit(figures, kind, limit, ratios, kept):
    """One bad round on a busy machine is no failure, and one good round is no success."""
    figure = figures.Figure("a rate", "msg/s", figures.Limit(kind, limit), [figures.Pair(1.0, r) for r in ratios])
    assert figure.kept is kept
    assert (figure in figures.missed([figure])) is not kept


@pytest.mark.prove
async def test_asyncq_keeps_its_limits_beside_raw_aio_pika_and_celery(node, tmp_path):
    """The full form, with its tables printed. Celery must be there: `sh .ci/venv benchmarks`."""
    record = tmp_path / "figures.json"
    code, output = await benchmarks(node, "--json", str(record), timeout_s=1800)
    sys.stdout.write(f"\n{output}")
    assert code == 0, output
    figures = json.loads(record.read_text())["figures"]
    assert [figure["limit"] for figure in figures if figure["beside"] == "Celery" and figure["limit"]] == [">= 1.3"]
    workflows = [figure["limit"] for figure in figures if figure["beside"] == "Celery, Redis"]
    assert workflows == ["<= 1.5", "<= 1", "<= 1.5", "<= 1"]


# --- the memory of a worker


async def endurance(node: Node, *options: str, timeout_s: float) -> tuple[int | None, str]:
    """Run `benchmarks/endurance.py` on the test's broker and return its exit code and its output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "endurance.py", *options),
        cwd=ROOT / "benchmarks",
        env={**os.environ, "ASYNCQ_TEST_BROKER_URL": node.url, "ASYNCQ_TEST_MANAGEMENT_URL": node.management_url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), timeout_s)
    except TimeoutError:
        process.terminate()
        await process.wait()
        raise
    return process.returncode, output.decode()


async def test_a_workers_memory_is_told_and_drawn(node, tmp_path):
    """Some thousand tasks are too few to prove anything, and enough to see a large leak."""
    code, told = await endurance(node, "--tasks", "5000", "--svg", str(tmp_path / "memory.svg"), timeout_s=180)
    assert code == 0, told
    assert "grown by" in told
    picture = (tmp_path / "memory.svg").read_text()
    assert picture.startswith("<svg")
    assert "<polyline" in picture


@pytest.mark.prove
async def test_a_workers_memory_is_flat_over_100000_tasks(node):
    """After its warm-up; tasks of every kind and every end."""
    code, told = await endurance(node, "--tasks", "100000", timeout_s=1200)
    print(f"\n{told}")
    assert code == 0, told


def test_memory_that_grows_is_seen_whatever_the_warm_up_was(monkeypatch):
    """The growth is that of the straight line through what follows the warm-up."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    growth_mib = importlib.import_module("endurance").growth_mib
    warm_up = [(number * 1000, 20.0 + number) for number in range(1, 21)]
    flat = [(number * 1000, 40.0 + number % 2) for number in range(21, 101)]
    assert abs(growth_mib(warm_up + flat)) < 0.1
    growing = [(number * 1000, 40.0 + number / 10) for number in range(21, 101)]
    assert growth_mib(warm_up + growing) == pytest.approx(7.9, abs=0.1)
