"""Find in RabbitMQ's logs why a node did not start."""

from collections.abc import Iterable
from pathlib import Path

_LINES = 20


def excerpt(files: Iterable[Path]) -> str:
    """Return what a node said first when it failed, with the names of the files for the rest.

    The first error is the cause; what follows it are pages of crash reports.
    Where there is no error at all, the last lines are shown.
    """
    parts = []
    for file in files:
        lines = file.read_text(errors="replace").splitlines() if file.exists() else []
        first = next((number for number, line in enumerate(lines) if "[error]" in line), None)
        shown = lines[-_LINES:] if first is None else lines[first : first + _LINES]
        if shown:
            parts.append("\n".join([f"--- {file}", *shown]))
    return "\n".join(parts)
