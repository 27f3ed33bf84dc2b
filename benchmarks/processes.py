"""The processes that are compared: started, asked, looked at, and ended by us."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

__all__ = ["Child", "ChildFailed"]

_HERE = Path(__file__).parent
_ANSWER_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 20.0


class ChildFailed(Exception):
    """A process of the benchmark ended, or did not answer; the message has what it wrote."""


class Child:
    """One process, with pipes to it. As an async context manager it is ended with the block.

    Args:
        arguments: Of the Python interpreter that runs this program.
        environment: All of its variables.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self._arguments = arguments
        self._environment = environment
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __aexit__

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *self._arguments,
            cwd=_HERE,
            env=self._environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=self._errors,
            limit=16 * 1024 * 1024,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        self._errors.close()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.returncode is None

    async def answer(self) -> dict[str, Any]:
        """Return the next line that it prints.

        Raises:
            ChildFailed: It ended, or it said nothing for too long.
        """
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise ChildFailed(f"{self._arguments}: no answer in {_ANSWER_TIMEOUT_S:g} s.\n{self.errors()}") from None
        if not line:
            raise ChildFailed(f"{self._arguments} ended.\n{self.errors()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def ask(self, do: str, **command: Any) -> dict[str, Any]:
        """Send a command and return the answer. Raises what `answer` raises."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **command}).encode() + b"\n")
        return await self.answer()

    def errors(self) -> str:
        """Return what it has written to standard error, the end of it."""
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - 8000))
        return self._errors.read().decode(errors="replace")

    def pss_mib(self) -> float:
        """Return its memory: what is its own, and its part of what it shares with others (PSS)."""
        for line in Path(f"/proc/{self._process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
        raise ChildFailed("this system does not tell the memory of processes (/proc/PID/smaps_rollup)")
