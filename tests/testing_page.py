"""docs/testing.md as a project: its blocks are files, and what it shows of a terminal is run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "testing.md"

PLUGINS = ["-p", "pytest_asyncio.plugin", "-p", "asyncq.testing.plugin"]


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        kind: What stands behind the fence: `python`, `toml`, `console`, `sh`.
        text: What it holds.
    """

    kind: str
    text: str

    @property
    def file(self) -> str | None:
        """The name in its first line; None where it is no file."""
        named = re.match(r"# (\S+\.(?:py|toml))\n", self.text)
        return named[1] if named and self.kind in {"python", "toml"} else None

    @property
    def command(self) -> list[str] | None:
        """What is typed; None where it shows no terminal."""
        typed = re.match(r"\$ (.+)\n", self.text)
        return shlex.split(typed[1]) if typed and self.kind == "console" else None

    @property
    def shown(self) -> list[str]:
        """The lines that the command prints, among others."""
        return self.text.splitlines()[1:]


def blocks() -> list[Block]:
    """Return all fenced blocks of the page, in order."""
    text = PAGE.read_text()
    found = [Block(kind, body) for kind, body in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)]
    assert len(found) * 2 == len(re.findall(r"^\s*(?:```|~~~)", text, re.MULTILINE)), "a fence that nobody reads"
    return found


def write_files(folder: Path) -> None:
    """Make the page's files in a folder."""
    for block in blocks():
        if block.file is not None:
            path = folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)


def run(command: Sequence[str], folder: Path, *, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """Run `pytest ...` or `python ...` in a folder."""
    program, *arguments = command
    # By name, so that this run does not depend on when asyncq was installed here; the entry point has its own test.
    before = ["-m", "pytest", "--color=no", *PLUGINS] if program == "pytest" else []
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("ASYNCQ_BROKER", "PYTEST_"))}
    return subprocess.run(
        [sys.executable, *before, *arguments],
        cwd=folder,
        env={**environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
