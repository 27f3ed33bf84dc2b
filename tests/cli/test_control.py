"""`asyncq ping | active | stats | pause | resume | scale | drain`, against workers that are processes of their own."""

import asyncio
import json
import os
import signal

import pytest

from asyncq import AsyncQ
from supervised import Supervised, alive
from support import eventually

FIELD = """
import asyncio
from pathlib import Path

from asyncq import AsyncQ, TaskContext

app = AsyncQ("field")
other = AsyncQ("other")


@app.task(queue="mail", pass_context=True)
async def wait(ctx: TaskContext, folder: Path, key: str) -> str:
    await ctx.progress(1, 2, "waits")
    (folder / f"started-{key}").touch()
    while not (folder / "go").exists():
        await asyncio.sleep(0.02)
    return key


@other.task(queue="post")
async def post() -> None: ...
"""


class Field:
    """Workers of the app `field`, and commands that ask them.

    Args:
        shell: The folder, and the broker.
        in_process: Runs commands in this process, which is faster.
    """

    def __init__(self, shell, in_process):
        self.shell = shell
        self.in_process = in_process
        self.folder = shell.folder
        self.workers = []
        (shell.folder / "field.py").write_text(FIELD)

    def start(self, *arguments, target="field:app", environment=None):
        """Start a worker."""
        started = self.shell.start("worker", target, "--log-format", "json", *arguments, environment=environment)
        self.workers.append(started)
        return started

    async def begin(self, count, *arguments, environment=None):
        """Start so many workers, and wait until all of them can be asked."""
        for _ in range(count):
            self.start(*arguments, environment=environment)
        await eventually(lambda: self.are_there(len(self.workers)), 40)

    async def are_there(self, count):
        """Tell whether so many workers are there, and work."""
        async with AsyncQ("asking", broker=self.shell.environment["ASYNCQ_BROKER_URL"]) as app:
            found = await app.control.everybody.ping(timeout=1)
        return len(found.answers) == count and {answer.state for answer in found.answers} == {"consuming"}

    async def ask(self, *arguments, code=0):
        """Run a command with `--json`, and return what it printed, and what it said besides."""
        said, besides = await self.say(*arguments, "--json", code=code)
        return json.loads(said), besides

    async def say(self, *arguments, code=0):
        """Run a command, and return what it printed, and what it said besides."""
        patience = () if "--timeout" in arguments else ("--timeout", "60")  # it ends sooner, when all have answered
        done = await self.in_process.arun(*arguments, *patience)
        assert done.exit_code == code, (arguments, done.exit_code, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done.stdout, done.stderr

    async def send(self, *keys):
        """Send tasks that wait, and wait until they run."""
        async with AsyncQ("asking", broker=self.shell.environment["ASYNCQ_BROKER_URL"]) as app:
            for key in keys:
                given = {"folder": str(self.folder), "key": key}
                await app.send("field.wait", given, queue="mail", task_id=key, reply=False)

    def started(self):
        """Return the keys of the tasks that have begun."""
        return {path.name.removeprefix("started-") for path in self.folder.glob("started-*")}

    def name_of(self, worker):
        """Return a worker's name."""
        return f"{os.uname().nodename}:{worker.process.pid}"


@pytest.fixture
def field(shell, in_process):
    """No workers yet. What is frozen goes on in the end, to be killed."""
    prepared = Field(shell, in_process)
    yield prepared
    for worker in prepared.workers:
        if worker.process.poll() is None:
            worker.signal(signal.SIGCONT)


async def test_each_command_tells_of_two_workers_and_of_the_third_that_is_frozen(field):
    """Its name, in words and in JSON, and exit code 1; when it goes on, it is there again."""
    await field.begin(3, "--slots", "2", environment={"ASYNCQ_HEARTBEAT_S": "60"})
    await field.send("a", "b", "c")
    await eventually(lambda: field.started() == {"a", "b", "c"})
    names = sorted(map(field.name_of, field.workers))
    frozen = field.workers[1]
    frozen.signal(signal.SIGSTOP)
    awake = sorted(set(names) - {field.name_of(frozen)})

    frozen_name = field.name_of(frozen)

    async def ask(*command):
        """Ask until those that are awake have answered: on a busy machine that takes its time."""

        async def asked():
            found, said = await field.ask(*command, "--timeout", "1", code=1)
            assert found["silent"] == sorted({frozen_name, *awake} - {answer["name"] for answer in found["answers"]})
            assert "No answer within 1 s from: " in said
            assert frozen_name in said
            return found["answers"] if len(found["answers"]) == 2 else None

        return await eventually(asked, 60)

    for command in (("ping",), ("stats",), ("scale", "mail:5"), ("active",)):
        answers = await ask(*command)
        assert [answer["name"] for answer in answers] == awake
    running = [item for answer in answers for item in answer["running"]]
    assert {item["task"] for item in running} == {"field.wait"}
    assert all(item["progress"]["label"] == "waits" for item in running)
    assert [queue["slots"] for answer in answers for queue in answer["queues"]] == [5, 5]
    alone, said = await field.ask("ping", "--worker", awake[0])
    assert ([answer["name"] for answer in alone["answers"]], said) == ([awake[0]], "")

    answers = await ask("pause", "mail")
    assert [answer["queue"]["paused"] for answer in answers] == ["everywhere"] * 2
    begun = field.started()
    await field.send(*(f"later-{number}" for number in range(6)))
    answers = await ask("resume", "mail")
    assert [answer["queue"]["paused"] for answer in answers] == [None] * 2
    # The frozen one still has its consumers: what the broker gives to them waits for it.
    await eventually(lambda: len(field.started() - begun) >= 4, 30)

    (field.folder / "go").touch()
    said, of_frozen = await field.say("drain", "--timeout", "5", code=1)
    assert all(line.split()[0] in awake for line in said.splitlines())
    assert frozen_name in of_frozen
    for worker in field.workers:
        if worker is not frozen:
            assert await worker.ends() == 0
    frozen.signal(signal.SIGCONT)  # and now it does what it was asked, as the command has said that it may
    assert await frozen.ends() == 0


async def test_a_pause_is_kept_for_workers_that_start_later(field):
    """All of them may have ended meanwhile."""
    await field.begin(1)
    said, _ = await field.say("pause", "mail")
    assert said.splitlines()[0] == "Queue mail is paused for all workers."
    await field.send("a")
    field.workers.pop().signal()
    await eventually(lambda: _nobody(field), 30)
    said, besides = await field.say("pause", "mail")
    assert (said, besides) == ("Queue mail is paused for all workers.\n", "No worker is there.\n")
    await field.begin(1)
    table, _ = await field.say("active")
    assert table.splitlines()[1:] == ["  mail: 0 of 10 slots at work, paused everywhere"]
    assert field.started() == set()
    await field.say("resume", "mail")
    await eventually(lambda: field.started() == {"a"})


async def _nobody(field):
    async with AsyncQ("asking", broker=field.shell.environment["ASYNCQ_BROKER_URL"]) as app:
        found = await app.control.everybody.ping(timeout=1)
    return not found.answers and not found.silent


async def test_processes_of_one_supervisor_answer_each_and_are_drained_for_good(shell, in_process):
    """One of them alone, and then all; the supervisor ends with their exit code, and starts none again."""
    supervised = Supervised(shell, "--processes", "3", "--slots", "2")
    await supervised.consumes(3)
    first, *others = supervised.started()
    host = os.uname().nodename

    async def pids():
        async with AsyncQ("pids", broker=shell.environment["ASYNCQ_BROKER_URL"]) as app:
            return {answer.pid for answer in (await app.control.ping(timeout=1)).answers}

    async def has(wanted):
        return await pids() == wanted

    await eventually(lambda: has({first, *others}))
    done = await in_process.arun("scale", "pids:7", "--json", "--timeout", "60")
    assert [answer["queue"]["slots"] for answer in json.loads(done.stdout)["answers"]] == [7, 7, 7]
    done = await in_process.arun("drain", "--worker", f"{host}:{first}", "--timeout", "60")
    assert (done.exit_code, done.stdout) == (0, f"{host}:{first} drains, 0 running\n")
    await eventually(lambda: not alive(first))
    await supervised.said("worker process ended; it was asked to drain, so it is not started again")
    assert await eventually(lambda: has(set(others)))
    assert len(supervised.started()) == 3
    done = await in_process.arun("drain", "--timeout", "60")
    assert (done.exit_code, len(done.stdout.splitlines())) == (0, 2)
    assert await supervised.running.ends() == 0
    assert len(supervised.started()) == 3


async def test_a_drain_that_waits_tells_who_has_ended_and_fails_while_somebody_has_not(field):
    """As a deploy script needs it."""
    await field.begin(1, environment={"ASYNCQ_DRAIN_TIMEOUT_S": "300"})
    await field.send("a")
    await eventually(lambda: field.started() == {"a"})
    await field.begin(1)
    busy, idle = map(field.name_of, field.workers)
    said, besides = await field.say("drain", "--worker", busy, "--wait", "2", code=1)
    assert said == f"{busy} drains, 1 running\n"
    assert besides == f"Not ended within 2 s: {busy}. `asyncq active` tells what they run.\n"
    waiting = asyncio.create_task(field.ask("drain", "--wait", "300"))
    assert await field.workers[1].ends() == 0
    assert not waiting.done()
    (field.folder / "go").touch()
    found, besides = await waiting
    assert (sorted(found["ended"]), found["remaining"], besides) == (sorted((busy, idle)), [], "")
    assert {answer["name"]: answer["already"] for answer in found["answers"]} == {busy: True, idle: False}
    assert await field.workers[0].ends() == 0


async def test_who_or_what_is_not_there_is_said_in_words(field):
    """Nobody: 1. A wrong name, host or queue: 2."""
    _, said = await field.say("ping", code=1)
    assert said == "No worker is there.\n"
    found, _ = await field.ask("ping", code=1)
    assert found == {"answers": [], "silent": [], "failed": {}}
    _, said = await field.say("pause", "mail", code=2)
    assert said.startswith("error: There is no queue 'mail'")
    await field.begin(1)
    for command, words in (
        (("ping", "--worker", "nobody:1"), "The broker knows no worker 'nobody:1'. There is: "),
        (("drain", "--host", "nowhere"), "The broker knows no worker on host 'nowhere'. There is: "),
        (("pause", "mial"), "There is no queue 'mial'"),
        (("scale", "post:3"), "None of the 1 workers that answered consumes queue 'post'"),
    ):
        _, said = await field.say(*command, code=2)
        assert words in said, command
    _, said = await field.say("ping", "--app", "field:other", code=1)
    assert said == "No worker is there.\n"
    table, _ = await field.say("ping", "--app", "field:app")
    head, row = table.splitlines()
    assert head.split() == ["WORKER", "APP", "STATE", "UPTIME", "VERSION", "QUEUES"]
    assert row.split()[:3] == [field.name_of(field.workers[0]), "field", "consuming"]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("scale", "mail"), "QUEUE:SLOTS is wanted, for example mail:20"),
        (("scale", "mail:many"), "QUEUE:SLOTS is wanted"),
        (("scale", ":3"), "QUEUE:SLOTS is wanted"),
        (("ping", "--timeout", "0"), "--timeout"),
        (("pause",), "QUEUE"),
    ],
)
def test_a_wrong_command_line_is_refused_before_anything_is_asked(offline_in_process, command, words):
    """With the right form."""
    done = offline_in_process.run(*command)
    assert done.exit_code == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_an_absent_broker_is_told_with_3(offline_in_process):
    """And without its password."""
    done = offline_in_process.run("ping", environment={"ASYNCQ_CONNECT_TIMEOUT_S": "0.2"})
    assert done.exit_code == 3
    assert "secret-word" not in done.stderr


async def test_a_worker_whose_loop_is_blocked_is_known_and_silent(shell):
    """Its process runs, and nothing in it can answer."""
    supervised = Supervised(shell, "--slots", "2")
    await supervised.consumes(1)
    async with AsyncQ("pids", broker=shell.environment["ASYNCQ_BROKER_URL"]) as app:

        async def answers():
            return (await app.control.ping(timeout=1)).answers

        await eventually(answers)
        await app.send("pids.block", {"folder": str(shell.folder)}, reply=False)
        await eventually(supervised.in_slow)
        found = await app.control.ping(timeout=1)
        assert (found.answers, found.silent) == ((), (f"{os.uname().nodename}:{supervised.pid}",))
