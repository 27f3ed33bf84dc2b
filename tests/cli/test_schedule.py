"""`asyncq scheduler`, `asyncq worker --scheduler` and `asyncq schedule`, as people start them."""

import asyncio
import json
import signal
from datetime import datetime

import pytest

from support import eventually

TIMETABLE = """
from pathlib import Path

from asyncq import AsyncQ, Cron

app = AsyncQ("shop", timezone="Europe/Berlin")


@app.task(queue="times")
async def note(name: str = "x") -> None:
    with Path("ran.txt").open("a") as ran:
        ran.write(name + "\\n")


app.schedule("often", note.s("often"), 0.5)
app.schedule("daily", note.s("daily"), Cron("30 2 * * *"))
"""


@pytest.fixture
def timetable(shell):
    """A folder with an app that has schedules."""
    (shell.folder / "timetable.py").write_text(TIMETABLE)
    return shell


def ran(shell):
    """What the task has written."""
    path = shell.folder / "ran.txt"
    return path.read_text().split() if path.exists() else []


async def test_a_scheduler_and_a_worker_run_what_is_due_and_stop_when_told(timetable):
    """A program each; the signal hands over, and the exit code is 0."""
    scheduler = timetable.start("scheduler", "timetable:app")
    worker = timetable.start("worker", "timetable:app")
    await eventually(lambda: ran(timetable).count("often") >= 3, 30)
    for number, program in ((signal.SIGTERM, scheduler), (signal.SIGINT, worker)):
        program.signal(number)
        assert await program.ends() == 0
    assert "scheduler leads" in scheduler.stderr
    assert "scheduler hands over" in scheduler.stderr
    assert "daily" not in ran(timetable)


async def test_workers_can_carry_a_scheduler_and_one_of_them_leads(timetable):
    """When it ends, the other one goes on."""
    workers = [timetable.start("worker", "timetable:app", "--scheduler") for _ in range(2)]
    await eventually(lambda: ran(timetable).count("often") >= 2, 30)
    leading = [worker for worker in workers if "scheduler leads" in worker.stderr]
    assert len(leading) == 1
    leading[0].signal()
    assert await leading[0].ends() == 0
    (other,) = [worker for worker in workers if worker not in leading]
    await other.says("scheduler leads")
    count = len(ran(timetable))
    await eventually(lambda: len(ran(timetable)) >= count + 2, 30)


async def test_schedules_are_listed_paused_resumed_and_triggered(timetable):
    """With a leader, which is asked."""
    leader = timetable.start("scheduler", "timetable:app")
    await leader.says("scheduler leads")
    paused = await timetable.arun("schedule", "pause", "timetable:app", "often")
    assert (paused.stdout, paused.returncode) == ("often is paused.\n", 0), paused.stderr
    listed = await timetable.arun("schedule", "list", "timetable:app")
    assert "Leader: " in listed.stdout
    assert "often  every 0.5 s  paused" in listed.stdout
    assert "daily  30 2 * * * Europe/Berlin  next 20" in listed.stdout
    leader.process.kill()
    leader = timetable.start("scheduler", "timetable:app")
    await leader.says("scheduler leads")
    shown = json.loads((await timetable.arun("schedule", "show", "timetable:app", "often")).stdout)
    assert (shown["paused"], shown["next"], shown["task"], shown["missed"]) == (True, None, "shop.note", "once")
    assert shown["leader"]["lag_s"] >= 0
    assert (await timetable.arun("schedule", "resume", "timetable:app", "often")).stdout == "often is resumed.\n"
    told = json.loads((await timetable.arun("schedule", "list", "timetable:app", "--json")).stdout)
    assert told["schedules"]["often"]["paused"] is False
    triggered = await timetable.arun("schedule", "trigger", "timetable:app", "daily")
    assert triggered.returncode == 0, triggered.stderr
    timetable.start("worker", "timetable:app")
    await eventually(lambda: ran(timetable).count("daily") == 1, 30)


FLOWS = """
from pathlib import Path

from asyncq import AsyncQ, Cron, chord

app = AsyncQ("shop", timezone="Europe/Berlin")


@app.task(queue="times")
async def length(word: str) -> int:
    return len(word)


@app.task(queue="times")
async def note(lengths: list[int]) -> None:
    Path("ran.txt").write_text(f"{sum(lengths)}")


app.schedule("words", chord([length.s("größe"), length.s("b")], note), Cron("30 2 * * *"))
"""


async def test_a_schedule_of_a_workflow_is_listed_shown_as_a_tree_and_triggered(shell):
    """In words, and with characters as they are."""
    (shell.folder / "flows.py").write_text(FLOWS)
    listed = await shell.arun("schedule", "list", "flows:app")
    (line,) = listed.stdout.splitlines()
    assert line.startswith("words  30 2 * * * Europe/Berlin  next 20")
    assert line.endswith("  last unknown  chord of 3 tasks")
    shown = await shell.arun("schedule", "show", "flows:app", "words")
    told = json.loads(shown.stdout)
    assert told["tree"][1:] == [
        "├── group",
        '│   ├── shop.length(word="größe")',
        '│   └── shop.length(word="b")',
        "└── shop.note(lengths=…)",
    ]
    assert "größe" in shown.stdout
    assert [item["task"] for item in told["workflow"]["chord"]["group"]] == ["shop.length"] * 2
    triggered = await shell.arun("schedule", "trigger", "flows:app", "words")
    assert (triggered.returncode, len(triggered.stdout.split())) == (0, 1), triggered.stderr
    shell.start("worker", "flows:app")
    await eventually(lambda: ran(shell) == ["6"], 30)


async def test_a_pause_without_a_leader_waits_for_one_and_without_any_ever_is_refused(timetable):
    """And what nobody knows is said with what there is."""
    refused = await timetable.arun("schedule", "pause", "timetable:app", "often")
    assert refused.returncode == 3
    assert "No scheduler of app 'shop' has ever run" in refused.stderr
    listed = await timetable.arun("schedule", "list", "timetable:app")
    assert "No scheduler leads" in listed.stderr
    assert "often  every 0.5 s  next 20" in listed.stdout
    leader = timetable.start("scheduler", "timetable:app")
    await leader.says("scheduler leads")
    leader.signal()
    assert await leader.ends() == 0
    waiting = await timetable.arun("schedule", "pause", "timetable:app", "often")
    assert waiting.stdout == "often will be paused when a scheduler leads; none does at the moment.\n"
    leader = timetable.start("scheduler", "timetable:app")
    await leader.says("schedule paused")
    unknown = await timetable.arun("schedule", "pause", "timetable:app", "never")
    assert (unknown.returncode, "no schedule 'never'. It has: daily, often." in unknown.stderr) == (2, True)


def test_the_next_fire_times_need_no_broker(offline_shell):
    """In UTC, by the zone of the schedule."""
    (offline_shell.folder / "timetable.py").write_text(TIMETABLE)
    told = offline_shell.run("schedule", "next", "timetable:app", "daily", "-n", "3")
    assert told.returncode == 0, told.stderr
    moments = [datetime.fromisoformat(line) for line in told.stdout.split()]
    assert len(moments) == 3
    assert {moment.utcoffset().total_seconds() for moment in moments} == {0}
    assert {f"{moment:%H:%M}" for moment in moments} <= {"00:30", "01:30", "01:00"}


def test_the_topology_of_an_app_with_schedules_has_the_leaders_queue(shell, node):
    """Declared and verified like the others; an app without schedules needs none."""
    (shell.folder / "timetable.py").write_text(TIMETABLE)
    at_management = {"ASYNCQ_MANAGEMENT_URL": node.management_url}
    assert "asyncq.scheduler" not in shell.run("topology", "show", "shop:app").stdout
    assert "x-single-active-consumer = True" in shell.run("topology", "show", "timetable:app").stdout
    assert shell.run("topology", "verify", "timetable:app", environment=at_management).returncode == 1
    assert shell.run("topology", "apply", "timetable:app").returncode == 0
    verified = shell.run("topology", "verify", "timetable:app", environment=at_management)
    assert verified.returncode == 0, verified.stdout
    running = shell.start("scheduler", "timetable:app", environment={"ASYNCQ_DECLARE": "false"})
    asyncio.run(running.says("scheduler leads"))


def test_a_scheduler_without_schedules_or_broker_says_so(offline_shell, shell):
    """Exit codes 3 and 2."""
    unreachable = offline_shell.run("scheduler", "shop:app", environment={"ASYNCQ_CONNECT_TIMEOUT_S": "1"})
    assert unreachable.returncode == 3
    nothing = shell.run("scheduler", "shop:app")
    assert nothing.returncode == 2
    assert "has no schedules" in nothing.stderr
