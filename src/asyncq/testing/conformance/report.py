"""A pytest plugin that prints the conformance report: behaviours beside brokers.

Use as `pytest -p asyncq.testing.conformance.report`. Each row is a behaviour, each column a broker; a number is a
declared difference, explained below the table. What failed is red in pytest's own part; here it is FAILED.

A test is one of the suite if its fixture `bench` is a `Bench`. The broker's name travels as a property of the test's
reports, so that this works with pytest-xdist as well.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING

from asyncq.testing.conformance import THEMES
from asyncq.testing.conformance.bench import Bench
from asyncq.testing.conformance.differences import DIFFERENCES, Difference

if TYPE_CHECKING:
    import pytest

__all__ = ["Results", "render"]

PROPERTY = "asyncq-conformance"


@dataclass
class Results:
    """How each behaviour ended on each broker: `ok`, `FAILED` or `skipped`."""

    outcomes: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, behaviour: str, broker: str, outcome: str) -> None:
        """Note one phase of a test; a failure of any phase counts."""
        word = {"passed": "ok", "failed": "FAILED"}.get(outcome, outcome)
        if self.outcomes.get((behaviour, broker)) not in {"FAILED", "skipped"}:
            self.outcomes[behaviour, broker] = word

    @property
    def brokers(self) -> list[str]:
        """The brokers, `memory` first, then by version."""
        return sorted({broker for _, broker in self.outcomes}, key=_order)


def _order(broker: str) -> tuple[bool, list[tuple[int, str]]]:
    parts = broker.replace(".", " ").split()
    return broker != "memory", [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def render(
    results: Results, themes: Iterable[tuple[str, Sequence[str]]], differences: Sequence[Difference] = DIFFERENCES
) -> list[str]:
    """Return the report's lines.

    Args:
        results: What ran.
        themes: Each theme, with the names of its behaviours in order.
        differences: What is declared.
    """
    brokers = results.brokers
    shown: list[Difference] = []
    rows: list[tuple[str, list[str]]] = []
    for theme, behaviours in themes:
        rows.append((theme, []))
        rows += [(f"  {_sentence(name)}", _cells(name, results, differences, shown)) for name in behaviours]
    totals = [_total(results, broker) for broker in brokers]
    width = max(len(text) for text, _ in rows)
    widths = [max(map(len, column)) for column in zip(brokers, totals, ["differs (9)"] * len(brokers), strict=True)]

    def line(text: str, cells: Sequence[str]) -> str:
        padded = [cell.ljust(size) for cell, size in zip(cells, widths, strict=False)]
        return f"{text.ljust(width)}  {'  '.join(padded)}".rstrip()

    lines = [line("behaviour", brokers), *(line(*row) for row in rows), line("total", totals)]
    for number, item in enumerate(shown, 1):
        text = f"({number}) {', '.join(item.brokers)}: {item.what}. {item.reason}"
        lines += ["", *textwrap.wrap(text, 110, subsequent_indent="    ", break_long_words=False)]
    return lines


def _cells(name: str, results: Results, differences: Sequence[Difference], shown: list[Difference]) -> list[str]:
    cells = []
    for broker in results.brokers:
        cell = results.outcomes.get((name, broker), "not run")
        declared = [item for item in differences if item.behaviour == name and item.holds_for(broker)]
        shown += [item for item in declared if item not in shown]
        if cell == "ok" and declared:
            cell = "differs " + " ".join(f"({shown.index(item) + 1})" for item in declared)
        cells.append(cell)
    return cells


def _sentence(name: str) -> str:
    return name.removeprefix("test_").replace("_", " ")


def _total(results: Results, broker: str) -> str:
    outcomes = [outcome for (_, where), outcome in results.outcomes.items() if where == broker]
    return f"{outcomes.count('ok')}/{len(outcomes)}"


# --- the plugin

_results = Results()


def pytest_runtest_call(item: pytest.Item) -> None:
    """Say which broker the test runs on."""
    bench = getattr(item, "funcargs", {}).get("bench")
    if isinstance(bench, Bench):
        item.user_properties.append((PROPERTY, bench.name))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note a phase of a test, wherever it ran."""
    for name, value in report.user_properties:
        if name == PROPERTY:
            behaviour = report.nodeid.rpartition("::")[2].partition("[")[0]
            _results.add(behaviour, str(value), report.outcome)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    if not _results.outcomes:
        return
    terminalreporter.section("conformance")
    for line in render(_results, _themes()):
        terminalreporter.write_line(line)


def _themes() -> list[tuple[str, list[str]]]:
    modules = {theme: import_module(f"asyncq.testing.conformance.{theme}") for theme in THEMES}
    return [
        (theme.replace("_", " "), [name for name in vars(module) if name.startswith("test_")])
        for theme, module in modules.items()
    ]
