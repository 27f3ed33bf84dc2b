"""The app that fault tests run in real worker processes: each execution is one line in a file."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path

from asyncq import AsyncQ, Fixed, Retry, RetryPolicy, TaskContext

FOLDER = Path(os.environ["LEDGER_FOLDER"])

app = AsyncQ("faults")


@app.task(pass_context=True, retry=RetryPolicy(max_attempts=3, backoff=Fixed(0.1), jitter=False))
async def note(ctx: TaskContext, key: str) -> str:
    """Work a little, and write down that it was done. Every tenth key needs a second attempt."""
    if ctx.attempt == 1 and key.endswith("7"):
        raise Retry("once more")
    await asyncio.sleep(0.005)
    # One write of one line: it is there whole or not at all, whatever kills the process.
    with (FOLDER / f"executed-{os.getpid()}.jsonl").open("a") as file:
        file.write(json.dumps({"key": key, "attempt": ctx.attempt}) + "\n")
    return key


@app.task
async def mark(key: str) -> None:
    """Write down when this task ran."""
    write_down(key)


@app.task(time_limit=600)
def die(key: str, how: str) -> None:
    """End the worker's process, as soon as there is a file `go` for it."""
    write_down(key)
    while not (FOLDER / f"go-{os.getpid()}").exists():
        time.sleep(0.02)
    if how == "exit":
        os._exit(1)
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(pass_context=True)
async def receive(ctx: TaskContext, key: str, more: list[int] | None = None) -> None:
    """Write down that this task ran, by its id."""
    write_down(ctx.task_id)


@app.task(pass_context=True, queue="rolling")
async def step(ctx: TaskContext, seconds: float) -> None:
    """Write down that this attempt began, work, and write down that it has ended."""
    _note_step(ctx, "began")
    await asyncio.sleep(seconds)
    _note_step(ctx, "ended")


def _note_step(ctx: TaskContext, what: str) -> None:
    entry = {"id": ctx.task_id, "attempt": ctx.attempt, "what": what, "pid": os.getpid()}
    with (FOLDER / f"steps-{os.getpid()}.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")


@app.task(time_limit=600)
async def linger(key: str) -> None:
    """Run until somebody stops it, and write down when that was."""
    write_down(key)
    try:
        await asyncio.sleep(600)
    finally:
        write_down(f"stopped {key}")


@app.task(rate="200/s", pass_context=True)
async def take_turns(ctx: TaskContext, key: str) -> None:
    """Write down that this task ran, and whether it had waited for its turn."""
    write_down(f"{'late' if 'asyncq-turn-at' in ctx.headers else 'at once'} {key}")


@app.task(time_limit=600)
async def member(number: int, seconds: float) -> int:
    """Work a little, as a member of a chord."""
    await asyncio.sleep(seconds)
    return number


@app.task(pass_context=True, time_limit=600)
async def body(ctx: TaskContext, values: list[int]) -> list[int]:
    """Write down that the end of a chord ran, by its id, with what."""
    write_down(f"{ctx.task_id} {values}")
    return values


def write_down(key: str) -> None:
    at = time.monotonic()
    with (FOLDER / f"ran-{os.getpid()}.jsonl").open("a") as file:
        file.write(json.dumps({"key": key, "at": at}) + "\n")
