"""A pytest plugin: under CI a skipped test fails the run. Use as `PYTHONPATH=.ci pytest -p no_skips`.

What a run leaves out must be seen. A person sees pytest's list of skips; nobody
reads the output of a CI run that is green.
"""
# ruff: noqa: INP001 - a plugin, not a package

import os

import pytest


def skipped(terminal: pytest.TerminalReporter) -> list[pytest.TestReport | pytest.CollectReport]:
    """Return the reports of what was skipped; an expected failure is none of them."""
    return [report for report in terminal.stats.get("skipped", []) if not hasattr(report, "wasxfail")]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Turn success into failure."""
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and terminal is not None and exitstatus == pytest.ExitCode.OK and skipped(terminal):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say why."""
    if os.environ.get("CI") and (left_out := len(skipped(terminalreporter))):
        terminalreporter.write_line(f"CI is set, so {left_out} skipped tests or modules fail the run", red=True)
