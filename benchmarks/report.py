"""The table, and the same as JSON."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from broker import BenchBroker
from figures import Figure

__all__ = ["circumstances", "table"]

_VERDICTS = {True: "ok", False: "FAILED", None: ""}


def circumstances(broker: BenchBroker) -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "broker": broker.version,
        "broker_by": broker.how,
        "python": platform.python_version(),
        "asyncq": version("asyncq"),
        "aio_pika": version("aio-pika"),
        "aiormq": version("aiormq"),
        "pydantic": version("pydantic"),
        "cpus": os.cpu_count(),
        "load": [round(value, 2) for value in os.getloadavg()],
    }


def table(figures: Sequence[Figure], *, judged: bool) -> str:
    """Return the figures as tables, one for each side that asyncq is beside.

    Args:
        figures: In their order.
        judged: Whether the run was long enough to say that a limit is kept.
    """
    sides = dict.fromkeys(figure.beside for figure in figures)
    return "\n\n".join(
        _table([figure for figure in figures if figure.beside == side], side, judged=judged) for side in sides
    )


def _table(figures: Sequence[Figure], beside: str, *, judged: bool) -> str:
    head = ("", "ratio", "min..max", "limit", "", beside, "asyncq", "")
    rows = [head]
    for figure in figures:
        low, high = figure.spread
        rows.append(
            (
                figure.name,
                f"{figure.ratio:.2f}",
                f"{low:.2f}..{high:.2f}",
                str(figure.limit or ""),
                _VERDICTS[figure.kept if judged else None],
                _number(figure.other),
                _number(figure.asyncq),
                figure.unit,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    right = {1, 2, 5, 6}
    lines = [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join((lines[0], "-" * max(map(len, lines)), *lines[1:]))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
