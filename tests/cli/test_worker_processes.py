"""`asyncq worker` and the processes of its tasks: how they are found, what they log, and that they end with it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from support import eventually

CRUNCH = """
import threading
import time
from pathlib import Path

from asyncq import AsyncQ, TaskContext, current_context

app = AsyncQ("crunch")


@app.task(run_in="process", pass_context=True)
def work(ctx: TaskContext, folder: Path, name: str) -> str:
    ctx.log.warning("crunching", name=name)
    (folder / f"{name}.new").write_text(str(__import__("os").getpid()))
    (folder / f"{name}.new").rename(folder / name)
    while not (folder / "go").exists():
        time.sleep(0.02)
    return name


@app.task(time_limit=0.1)
def stuck() -> None:
    time.sleep(3600)
"""


def runs(pid):
    """Tell whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def start(shell, *options, environment=None):
    (shell.folder / "crunch.py").write_text(CRUNCH)
    worker = shell.start("worker", "crunch:app", *options, environment=environment)
    await worker.says("worker consumes")
    return worker


async def send(shell, name):
    sent = await shell.arun("send", "crunch.work", json.dumps({"folder": str(shell.folder), "name": name}))
    assert sent.returncode == 0, sent.stderr
    await eventually((shell.folder / name).exists, 20)
    return int((shell.folder / name).read_text())


async def test_processes_end_with_a_worker_that_is_killed(shell):
    """Nobody is there to end them: they see the end of their socket. Another worker gets the message."""
    worker = await start(shell, "--slots", "1")
    pid = await send(shell, "a")
    assert runs(pid)
    worker.process.kill()
    await eventually(lambda: not runs(pid))


async def test_a_signal_to_all_its_processes_lets_running_tasks_finish(shell, management):
    """A service manager may signal every process of the service."""
    worker = await start(shell, "--slots", "1")
    pid = await send(shell, "a")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(pid, number)
    worker.signal()
    await worker.says("stopping; once more stops at once")
    (shell.folder / "go").touch()
    assert await worker.ends() == 0
    assert await management.ready("crunch") == 0
    assert await management.ready("crunch.dead") == 0
    assert "task succeeded" in worker.stderr
    await eventually(lambda: not runs(pid))


async def test_what_a_process_logs_is_a_line_of_its_worker(shell):
    """In the worker's format, with the task's id."""
    worker = await start(shell, "--slots", "1", "--log-format", "json")
    await send(shell, "a")
    (shell.folder / "go").touch()
    await worker.says("task succeeded")
    worker.signal()
    assert await worker.ends() == 0
    lines = [json.loads(line) for line in worker.stderr.splitlines()]
    (line,) = [line for line in lines if line["event"] == "crunching"]
    assert (line["level"], line["task"], line["attempt"], line["name"]) == ("warning", "crunch.work", 1, "a")
    assert line["task_id"] in {line["task_id"] for line in lines if line["event"] == "task succeeded"}


async def test_too_many_abandoned_threads_end_the_worker_with_code_75(shell):
    """So that its supervisor starts it again."""
    limits = {"ASYNCQ_MAX_ABANDONED_THREADS": "2", "ASYNCQ_DRAIN_TIMEOUT_S": "1"}
    worker = await start(shell, "--slots", "3", environment=limits)
    for _ in range(2):
        sent = await shell.arun("send", "crunch.stuck", "{}")
        assert sent.returncode == 0, sent.stderr
    assert await worker.ends(timeout=30) == 75
    assert "too many threads go on although their time limit is over" in worker.stderr


async def test_a_task_that_no_process_can_import_ends_the_worker_at_its_start(shell):
    """Its module fails there; the message says why."""
    (shell.folder / "fragile.py").write_text(
        "import os, sys\n"
        "from asyncq import AsyncQ\n"
        'app = AsyncQ("fragile")\n'
        'if "process_pool" in sys.argv[0] or sys.argv[0] == "-c":\n'
        '    raise RuntimeError("not twice")\n'
        '@app.task(run_in="process")\n'
        "def work() -> None: ...\n"
    )
    worker = shell.start("worker", "fragile:app")
    assert await worker.ends(timeout=30) == 2
    assert "task 'fragile.work' runs in a process of its own" in worker.stderr
    assert "RuntimeError: not twice" in worker.stderr


def test_a_program_without_a_guard_is_told_so_and_starts_no_second_one(tmp_path):
    """Its process imports it only for its task; a program that starts with the import would start again and again."""
    (tmp_path / "shop.py").write_text(
        "import asyncio\n"
        "from asyncq import AsyncQ\n"
        'app = AsyncQ("shop", broker="memory://")\n'
        '@app.task(run_in="process")\n'
        "def work() -> int:\n"
        "    return 1\n"
        "async def main() -> None:\n"
        "    async with app:\n"
        "        await app.worker().run()\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "shop.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "Put what starts the program under `if __name__ == '__main__':`" in done.stderr


def test_a_program_with_a_guard_runs_its_own_process_tasks(tmp_path):
    """It is imported by its own name there."""
    (tmp_path / "shop.py").write_text(
        "import asyncio\n"
        "from asyncq import AsyncQ\n"
        'app = AsyncQ("shop", broker="memory://")\n'
        '@app.task(run_in="process")\n'
        "def work(x: int) -> str:\n"
        "    return f'{__name__} {x}'\n"
        "async def main() -> None:\n"
        "    async with app:\n"
        "        worker = app.worker()\n"
        "        running = asyncio.create_task(worker.run())\n"
        "        print(await work.call(5))\n"
        "        worker.stop()\n"
        "        await running\n"
        "if __name__ == '__main__':\n"
        "    asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "shop.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "shop 5\n"), done.stderr
