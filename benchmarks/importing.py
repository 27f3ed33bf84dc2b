"""How long imports take: `python -c "import ..."` in fresh processes that alternate.

The CPU time is what has a limit: on an idle machine it is the time that one waits, on a busy one it is still the
time that the import takes. A worker's imports are what a real `asyncq worker` has loaded when it runs a task: it is
asked for them.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench import SIDES, Bench, alternate
from figures import Figure, Limit, Pair
from processes import ChildFailed

__all__ = ["measure_imports"]


_NAMES = "from asyncq import *"
"""All that a program can use: `import asyncq` alone loads nothing of it."""


@dataclass(frozen=True, slots=True)
class _Taken:
    """What one process took, in milliseconds."""

    cpu_ms: float
    wall_ms: float


async def measure_imports(bench: Bench) -> list[Figure]:
    """Return the times of all that a worker imports, and of asyncq's names, beside those of `import aio_pika`."""
    loaded = await _worker_modules(bench)
    programs = {
        "import, all that `asyncq worker` loads": loaded,
        "import, a worker without the command line": [name for name in loaded if not _is_command_line(name)],
        _NAMES: [_NAMES],
    }
    figures = []
    for name, modules in programs.items():
        # The limit is for the import as a program writes it; what a worker loads besides is there to be seen.
        limit = Limit("at most", 1.9) if name == _NAMES else None
        cpu, wall = Figure(f"{name}: CPU", "ms", limit), Figure("  as one waits for it", "ms")
        wanted = {"raw": ["aio_pika"], "asyncq": modules}
        for side in SIDES:
            await _import(bench, wanted[side])  # writes the bytecode
        for number in range(bench.sizes.import_rounds):
            taken = {side: await _import(bench, wanted[side]) for side in alternate(number)}
            cpu.rounds.append(Pair(taken["raw"].cpu_ms, taken["asyncq"].cpu_ms))
            wall.rounds.append(Pair(taken["raw"].wall_ms, taken["asyncq"].wall_ms))
        figures += [cpu, wall]
    return figures


async def _worker_modules(bench: Bench) -> list[str]:
    await bench.purge()
    async with bench.worker("asyncq") as worker:
        await bench.consuming("asyncq", worker, bench.consumers("asyncq"))
        async with bench.producer("asyncq") as producer:
            loaded: list[str] = (await producer.ask("imported"))["modules"]
    return [name for name in loaded if name == "asyncq" or name.startswith("asyncq.")]


def _is_command_line(module: str) -> bool:
    return module.startswith(("asyncq.cli", "asyncq.observability")) or module == "asyncq.__main__"


async def _import(bench: Bench, modules: Sequence[str]) -> _Taken:
    program = _NAMES if modules == [_NAMES] else f"import {', '.join(modules)}"
    return await asyncio.to_thread(_run, program, bench.environment)


def _run(program: str, environment: Mapping[str, str]) -> _Taken:
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", program], env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise ChildFailed(f"python -c {program!r} ended with {process.returncode}")
    return _Taken((usage.ru_utime + usage.ru_stime) * 1000, (time.perf_counter() - started) * 1000)
