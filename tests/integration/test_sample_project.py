"""A project of somebody else, with asyncq's wheel in an environment of its own: `tests/sample_project`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "tests" / "sample_project"

# What the project must show, and its test of that.
SHOWN = {
    "a retry with backoff over an hour": "test_a_mail_server_that_is_away_for_an_hour_costs_no_mail",
    "a dead letter": "test_a_mail_server_that_stays_away_leaves_a_dead_letter",
    "an RPC call": "test_an_order_is_priced_by_another_task",
    "a validation error": "test_wrong_arguments_fail_where_they_are_sent",
    "a delay": "test_a_review_is_asked_for_two_weeks_later",
    "a time limit": "test_a_report_that_hangs_ends_at_its_time_limit",
}
TESTS = 8


def run(command: Sequence[str | Path], folder: Path) -> str:
    """Run a command with nothing of this checkout in its environment, and return what it printed."""
    ours = ("PYTHON", "PYTEST", "ASYNCQ", "VIRTUAL_ENV")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environ["PYTHONNOUSERSITE"] = "1"
    answer = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=300, check=False)
    assert answer.returncode == 0, f"{answer.stdout}\n{answer.stderr}"
    return answer.stdout


@pytest.fixture
def project(tmp_path):
    """A copy of the project."""
    return Path(shutil.copytree(SAMPLE, tmp_path / "bookshop", ignore=shutil.ignore_patterns("__pycache__")))


@pytest.fixture
def python(tmp_path, project):
    """The Python of a fresh environment: asyncq from its wheel, and what the project names for its tests."""
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "dist"], ROOT)
    (wheel,) = (tmp_path / "dist").glob("asyncq-*.whl")
    # Without a pip of its own: Debian's Python may lack ensurepip, and ours can install there.
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    wanted = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    assert wanted["dependencies"] == ["asyncq"]
    pip = [sys.executable, "-m", "pip", "--python", python, "--no-input", "--disable-pip-version-check"]
    run([*pip, "install", "-q", "--no-compile", wheel, *wanted["optional-dependencies"]["dev"]], tmp_path)
    return python


def test_a_project_tests_its_tasks_with_the_installed_wheel_and_no_rabbitmq(python, project):
    """Everything that the plugin gives, found by its entry point alone, in pytest-asyncio's strict mode."""
    imported = run([python, "-c", "import asyncq.testing.plugin as plugin; print(plugin.__file__)"], project)
    assert Path(imported.strip()).is_relative_to(python.parents[1])

    output = run([python, "-m", "pytest", "-v", "--junitxml=report.xml"], project)
    print(output)
    (plugins,) = [line for line in output.splitlines() if line.startswith("plugins: ")]
    assert "asyncq-" in plugins  # only what comes by entry point is listed here
    assert "mode=Mode.STRICT" in output

    (suite,) = ET.parse(project / "report.xml").getroot().iter("testsuite")
    counts = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": TESTS, "failures": 0, "errors": 0, "skipped": 0}
    seconds = {case.attrib["name"]: float(case.attrib["time"]) for case in suite.iter("testcase")}
    for what, test in SHOWN.items():
        print(f"{what}: {seconds[test]:.3f} s")
    assert seconds[SHOWN["a retry with backoff over an hour"]] < 60
