"""`asyncq result`, `status` and `results`: what any process knows of tasks that others send and run."""

import contextlib
import json
import re
import sqlite3
import uuid
from datetime import UTC, datetime

import pytest

from asyncq import AsyncQ, ResultTimeout
from asyncq.status import StatusUpdate, TaskState
from support import eventually

pytestmark = pytest.mark.any_version

APP = """
import asyncio
import os
from pathlib import Path

from pydantic import BaseModel

from asyncq import AsyncQ, Fixed, RetryPolicy, TaskContext

app = AsyncQ("states", progress_interval_s=0)


class Report(BaseModel):
    pages: int
    worker: int


@app.task(pass_context=True, retry=RetryPolicy(max_attempts=2, backoff=Fixed(2), jitter=False))
async def report(ctx: TaskContext, folder: Path) -> Report:
    if (folder / "fail").exists():
        (folder / "fail").unlink()
        raise ConnectionError("printer on fire")
    for page in range(1, 4):
        await ctx.progress(page, 3, "pages")
        while not (folder / f"page-{page}").exists():
            await asyncio.sleep(0.02)
    return Report(pages=3, worker=os.getpid())
"""


@pytest.fixture(params=["sqlite", "postgresql", "redis"])
def store_url(request, tmp_path):
    """The URL of each kind of store."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/results.db"
    return request.getfixturevalue({"postgresql": "postgres_server", "redis": "redis_server"}[request.param]).url


@pytest.fixture
def states(shell, store_url):
    """A folder with an app that has a result store, ready for use."""
    (shell.folder / "states.py").write_text(APP)
    shell.environment |= {"ASYNCQ_RESULTS": store_url, "ASYNCQ_NAMESPACE": f"t-{uuid.uuid4().hex[:12]}"}
    done = shell.run("results", "init")
    assert done.returncode == 0, done.stderr
    assert "is ready" in done.stdout
    assert "password" not in done.stdout
    return shell


@pytest.fixture
async def reader(states):
    """The app in this process, which neither sends nor works."""
    app = AsyncQ(
        "reader",
        broker=states.environment["ASYNCQ_BROKER_URL"],
        results=states.environment["ASYNCQ_RESULTS"],
        namespace=states.environment["ASYNCQ_NAMESPACE"],
    )
    async with app:
        yield app


async def test_one_process_sends_another_reads_and_the_states_are_right_also_when_the_worker_is_killed(states, reader):
    """Sender, reader and workers are processes that share nothing but broker and store."""
    (states.folder / "fail").touch()
    arguments = json.dumps({"folder": str(states.folder)})
    sent = await states.arun("send", "--app", "states:app", "states.report", arguments)
    assert sent.returncode == 0, sent.stderr
    handle = reader.handle(sent.stdout.strip())

    async def reaches(state, attempt, page, worker=None):
        async def reached():
            status = await handle.status()
            page_now = None if status.progress is None else status.progress.done
            assert (status.state, status.attempt, page_now) == (state, attempt, page)
            assert worker is None or status.worker.endswith(f":{worker.process.pid}")
            return status

        return await eventually(reached, 60)

    queued = await handle.status()
    assert (queued.state, queued.attempt, queued.worker) == (TaskState.QUEUED, 0, None)
    first = states.start("worker", "states:app")
    failed = await reaches(TaskState.RETRYING, 1, None, first)
    assert failed.error.message == "printer on fire"
    assert failed.retry_at > failed.updated_at
    began = await reaches(TaskState.STARTED, 2, 1, first)
    (states.folder / "page-1").touch()
    await reaches(TaskState.STARTED, 2, 2, first)

    first.process.kill()
    await first.ends()
    await reaches(TaskState.STARTED, 2, 2, first)  # nobody has told otherwise, and nobody could
    second = states.start("worker", "states:app")
    again = await reaches(TaskState.STARTED, 2, 2, second)
    assert again.started_at > began.started_at
    with pytest.raises(ResultTimeout, match="It is started"):
        await handle.result(0.1)

    (states.folder / "page-2").touch()
    (states.folder / "page-3").touch()
    assert await handle.result(60) == {"pages": 3, "worker": second.process.pid}
    last = await reaches(TaskState.SUCCEEDED, 2, 3, second)
    assert last.error is None
    assert queued.queued_at == last.queued_at <= last.started_at <= last.finished_at
    asked = await states.arun("result", handle.id, "--app", "states:app")
    assert json.loads(asked.stdout) == {"pages": 3, "worker": second.process.pid}, asked.stderr
    shown = json.loads((await states.arun("status", handle.id, "--json")).stdout)
    assert (shown["state"], shown["task"], shown["result"]["pages"]) == ("succeeded", "states.report", 3)


async def test_a_task_sent_with_a_delay_is_scheduled_and_one_that_expired_says_so(states):
    """In the reader's words."""
    arguments = json.dumps({"folder": str(states.folder)})
    late = await states.arun("send", "--app", "states:app", "states.report", arguments, "--delay", "3600")
    shown = await states.arun("status", late.stdout.strip())
    assert re.search(r"  scheduled\n(.*\n)*  due: 20\d\d-", shown.stdout), shown.stdout + shown.stderr
    over = await states.arun("send", "--app", "states:app", "states.report", arguments, "--expires", "0.01")
    worker = states.start("worker", "states:app")
    ended = await states.arun("result", over.stdout.strip(), "--timeout", "30")
    assert ended.returncode == 1
    assert "expired at" in ended.stderr
    listed = await states.arun("status", "--state", "expired")
    assert over.stdout.strip() in listed.stdout
    assert late.stdout.strip() not in listed.stdout
    worker.signal()
    assert await worker.ends() == 0


async def test_tasks_are_listed_in_pages_and_cleaned(states, reader):
    """As a table for people, as JSON lines for programs."""
    for number in range(5):
        name, moment = f"shop.t{number % 2}", datetime.now(UTC)
        update = StatusUpdate(f"task-{number}", TaskState.SUCCEEDED, moment, attempt=1, task=name, result=b"1")
        await reader.recorder.write([update])
    first = states.run("status", "--limit", "3", "--json")
    assert [json.loads(line)["id"] for line in first.stdout.splitlines()] == ["task-4", "task-3", "task-2"]
    cursor = first.stderr.split("--cursor ")[1].strip()
    rest = states.run("status", "--limit", "3", "--cursor", cursor, "--json")
    assert [json.loads(line)["id"] for line in rest.stdout.splitlines()] == ["task-1", "task-0"]
    table = states.run("status", "--task", "shop.t1").stdout.splitlines()
    assert table[0].split() == ["ID", "TASK", "STATE", "ATTEMPT", "QUEUED", "TOOK"]
    assert [line.split()[:4] for line in table[1:]] == [[f"task-{n}", "shop.t1", "succeeded", "1"] for n in (3, 1)]
    assert states.run("status", "--since", "2090-01-01T00:00:00Z").stdout == "No tasks.\n"
    assert states.run("results", "clean", "--older-than", "0s").stdout == "5 tasks deleted.\n"
    assert states.run("status", "--json").stdout == ""


def test_an_id_that_nothing_is_known_of_exits_with_1(states):
    """And says what that may mean."""
    for command in ("status", "result"):
        asked = states.run(command, "nobody")
        assert asked.returncode == 1
        assert "knows nothing of a task 'nobody'" in asked.stderr
        assert asked.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "said"),
    [
        (["status"], {}, 2, "ASYNCQ_RESULTS"),
        (["result", "x"], {}, 2, "ASYNCQ_RESULTS"),
        (["results", "init"], {}, 2, "ASYNCQ_RESULTS"),
        (["status", "--results", "mongodb://x"], {}, 2, "no result store of the kind 'mongodb'"),
        (["status"], {"ASYNCQ_RESULTS": "redis://:secret-word@127.0.0.1:1/0"}, 3, "redis://127.0.0.1:1/0"),
        (["status"], {"ASYNCQ_RESULTS": "postgresql://u:secret-word@127.0.0.1:1/d"}, 3, "u@127.0.0.1:1/d"),
        (["results", "init", "--results", "sqlite:////no/such/folder/x.db"], {}, 3, "/no/such/folder/x.db"),
        (["status", "x", "--task", "y", "--results", "memory://"], {}, 2, "either the ID of one task, or filters"),
        (["status", "--state", "done", "--results", "memory://"], {}, 2, "There is no state 'done'"),
        (["status", "--since", "soon", "--results", "memory://"], {}, 2, "--since takes an age"),
        (["status", "--since", "2026-01-02T03:04:05", "--results", "memory://"], {}, 2, "no time zone"),
        (["status", "--cursor", "x", "--results", "memory://"], {}, 2, "not the cursor"),
        (["status", "--limit", "0", "--results", "memory://"], {}, 2, "--limit"),
        (["result", "--results", "memory://", "y" * 300], {}, 2, "1 to 128 bytes"),
        (["results", "clean", "--older-than", "x", "--results", "memory://"], {}, 2, "--older-than takes an age"),
    ],
    ids=lambda value: "-".join(value)[:40] if isinstance(value, list) else None,
)
def test_wrong_input_and_absent_stores_are_told_in_one_message(refusing, arguments, environment, code, said):
    """Without a traceback, and without a password."""
    refused = refusing(*arguments, environment=environment)
    assert refused.exit_code == code, refused.output
    assert said in refused.output
    assert "Traceback" not in refused.output
    assert "secret-word" not in refused.output


async def test_a_worker_does_not_start_with_a_store_of_another_version(shell, tmp_path):
    """A person has to decide; the message says what to do. The stores' own suite covers the other kinds."""
    (shell.folder / "states.py").write_text(APP)
    shell.environment["ASYNCQ_RESULTS"] = f"sqlite:///{tmp_path}/results.db"
    assert shell.run("results", "init").returncode == 0
    with contextlib.closing(sqlite3.connect(tmp_path / "results.db")) as database, database:
        (table,) = database.execute("SELECT name FROM sqlite_master WHERE name LIKE '%schema%'").fetchone()
        database.execute(f'UPDATE "{table}" SET version = 99')
    worker = shell.start("worker", "states:app")
    assert await worker.ends() == 3
    assert "newer asyncq" in worker.stderr
    assert "Traceback" not in worker.stderr
