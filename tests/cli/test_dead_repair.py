"""`asyncq dead`: tables, one letter whole, replay, purge, export; and what is refused before anything is changed."""

import asyncio
import json
import re
import signal
import subprocess
import sys

import aio_pika
import pytest

from asyncq import AsyncQ
from asyncq.broker import DeadLetterRecord, QueueSpec
from asyncq.history import FailedAttempt
from asyncq.message import Message, new_id
from asyncq.outcome import Failure
from support import eventually

HISTORY = (FailedAttempt(1, 1_750_000_000_000, "builtins.OSError", "first", "host 1"),)
PLAIN = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def record(error: str = "builtins.ValueError") -> DeadLetterRecord:
    failure = Failure(error, "no\nsuch address", "Traceback (most recent call last):\n  ...")
    return DeadLetterRecord(failure, "attempts exhausted", 1_750_000_000_123, 2, "mail", "host 4711", HISTORY)


@pytest.fixture
async def app(broker_url):
    """An app with the queue `mail` and five dead letters of it: three of one kind, two of another."""
    async with AsyncQ("shop", broker=broker_url) as opened:
        await opened.broker.ensure([QueueSpec("mail"), QueueSpec("slow")])
        for number in range(5):
            kind, error = ("shop.greet", "builtins.ValueError") if number < 3 else ("shop.fail", "a.b.TimeoutError")
            message = Message(
                type=kind,
                body=b'{"name": "Ann"}',
                task_id=f"order-{number}",
                message_id=new_id(),
                headers={"tenant": "blue"},
            )
            await opened.broker.dead_letters("mail").put(message, record(error), timeout_s=30)
        yield opened


async def _ids(app, queue="mail"):
    return [letter.message.task_id async for letter in app.dead_letters(queue).browse()]


async def _waiting(broker_url, queue):
    async with await aio_pika.connect(broker_url) as connection, connection.channel() as channel:
        found = await channel.get_queue(queue)
        messages = []
        while (message := await found.get(fail=False)) is not None:
            messages.append(message)
        return sorted(message.correlation_id for message in messages), messages


# --- looking


async def test_without_a_queue_all_are_counted_by_queue_task_and_error(in_process, app, node, management):
    """Found by the management API, or those of an app; unroutable messages are among them."""
    await eventually(lambda: _shows(management, "mail.dead", "slow.dead", "asyncq.unroutable"))
    api = ("--management-url", node.management_url)
    for options in (api, ("--app", "shop:app")):
        listed = await in_process.arun("dead", "list", *options)
        assert listed.exit_code == 0, listed.stderr
        _, *rows = [line.split() for line in listed.stdout.splitlines()]
        assert [row[:4] for row in rows] == [
            ["mail", "shop.greet", "builtins.ValueError", "3"],
            ["mail", "shop.fail", "a.b.TimeoutError", "2"],
        ]
    listed = await in_process.arun("dead", "list", "--count", "--json", *api)
    counts = {item["dead_letters_of"]: item["count"] for item in map(json.loads, listed.stdout.splitlines())}
    assert counts == {"mail": 5, "slow": 0, "asyncq.unroutable": 0}
    listed = await in_process.arun("dead", "list", "--error", "TimeoutError", "--json", *api)
    (kind,) = map(json.loads, listed.stdout.splitlines())
    assert (kind["dead_letters_of"], kind["task"], kind["count"]) == ("mail", "shop.fail", 2)
    listed = await in_process.arun("dead", "list", "--management-url", "http://127.0.0.1:1")
    assert listed.exit_code == 3
    assert "--app MODULE:APP" in listed.stderr


async def _shows(management, *names):
    return set(names) <= (await management.queues()).keys()


async def test_a_queue_is_listed_by_filters_and_summed_up(in_process, app):
    """The letters, a table of them, or a number."""
    listed = await in_process.arun("dead", "list", "mail", "--task", "*.fail", "--id", "order-4", "--id", "order-0")
    assert listed.stdout.startswith("shop.fail  order-4\n")
    assert "order-0" not in listed.stdout
    listed = await in_process.arun("dead", "list", "mail", "--summary")
    assert [line.split()[3] for line in listed.stdout.splitlines()] == ["COUNT", "3", "2"]
    listed = await in_process.arun("dead", "list", "mail", "--count")
    assert listed.stdout.split() == ["5", "mail"]
    listed = await in_process.arun("dead", "list", "slow", "--summary")
    assert listed.stdout == "No dead letters in 1 queue.\n"
    listed = await in_process.arun("dead", "list", "nowhere", "--count")
    assert listed.exit_code == 3


async def test_one_letter_is_shown_whole(in_process, app):
    """Arguments, headers, error, traceback, failed attempts; the same as JSON; an unknown id says so."""
    text = (await in_process.arun("dead", "show", "mail", "order-3")).stdout
    for part in ("shop.fail  order-3", '"name": "Ann"', "tenant: blue", "a.b.TimeoutError: no", "Traceback (most"):
        assert part in text
    assert "  1  2025-06-15T15:06:40Z  builtins.OSError: first  (host 1)" in text
    letter = json.loads((await in_process.arun("dead", "show", "mail", "order-3", "--json")).stdout)
    assert letter["headers"]["tenant"] == "blue"
    assert [one["message"] for one in letter["history"]] == ["first"]
    unknown = await in_process.arun("dead", "show", "mail", "order-9")
    assert unknown.exit_code == 2
    assert "'order-9'" in unknown.stderr


async def test_letters_are_exported_as_json_lines(in_process, app, tmp_path):
    """To a new file, whole; to standard output; and they stay."""
    path = tmp_path / "letters.jsonl"
    exported = await in_process.arun("dead", "export", "mail", "--output", str(path))
    assert exported.exit_code == 0, exported.stderr
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"order-{number}" for number in range(5)]
    assert {line["headers"]["tenant"] for line in lines} == {"blue"}
    exported = await in_process.arun("dead", "export", "mail", "--output", str(path))
    assert exported.exit_code == 2
    assert "exists already" in exported.stderr
    exported = await in_process.arun("dead", "export", "mail", "--task", "shop.fail")
    assert len(exported.stdout.splitlines()) == 2
    exported = await in_process.arun("dead", "export", "nowhere", "--output", str(tmp_path / "none"))
    assert exported.exit_code == 3
    assert [file.name for file in tmp_path.glob("none*")] == []
    assert len(await _ids(app)) == 5


# --- repairing


async def test_a_replay_sends_back_what_is_meant(in_process, app, broker_url):
    """By a filter; with other arguments, to another queue; with a report as JSON."""
    dry = await in_process.arun("dead", "replay", "mail", "--all", "--dry-run")
    assert dry.stdout == "5 dead letters of 5 would be sent back from mail.\n"
    assert len(await _ids(app)) == 5
    done = await in_process.arun("dead", "replay", "mail", "--error", "TimeoutError", "--yes")
    assert (done.exit_code, done.stdout) == (0, "2 dead letters of 5 sent back from mail.\n"), done.stderr
    assert (await _waiting(broker_url, "mail"))[0] == ["order-3", "order-4"]
    options = ("--id", "order-1", "--to", "slow", "--set", 'name="Bob"', "--set", "times=2", "--rate", "100")
    done = await in_process.arun("dead", "replay", "mail", *options, "--yes", "--json", "--app", "shop:app")
    report = json.loads(done.stdout)
    assert (report["total"], report["replayed"], report["failed"]) == (3, 1, 0)
    ids, (message,) = await _waiting(broker_url, "slow")
    assert (ids, json.loads(message.body)) == (["order-1"], {"name": "Bob", "times": 2})
    assert await _ids(app) == ["order-0", "order-2"]


async def test_what_could_not_be_replayed_is_told_and_exits_with_1(in_process, app):
    """Arguments that the task refuses, a queue that is not there, an id that no letter has."""
    done = await in_process.arun("dead", "replay", "mail", "--all", "--yes", "--set", "times=[]", "--app", "shop:app")
    assert done.exit_code == 1
    assert "3 dead letters stayed: task shop.greet: times: Input should be a valid integer" in done.stderr
    done = await in_process.arun("dead", "replay", "mail", "--all", "--yes", "--to", "nowhere")
    assert done.exit_code == 1
    assert "5 dead letters stayed: There is no queue 'nowhere'" in done.stderr
    done = await in_process.arun("dead", "purge", "mail", "--id", "order-9", "--yes")
    assert done.exit_code == 1
    assert "No dead letter has the id 'order-9'." in done.stderr
    assert len(await _ids(app)) == 5


async def test_a_purge_removes_what_is_meant(in_process, app):
    """And says how many."""
    done = await in_process.arun("dead", "purge", "mail", "--task", "shop.fail", "--yes")
    assert (done.exit_code, done.stdout) == (0, "2 dead letters of 5 of mail removed.\n"), done.stderr
    done = await in_process.arun("dead", "purge", "mail", "--all", "--limit", "1", "--yes", "--json")
    assert json.loads(done.stdout)["purged"] == 1
    assert await _ids(app) == ["order-1", "order-2"]


async def test_at_a_terminal_it_is_asked_first(shell, app):
    """With how many there are; no means no; and a progress bar does not disturb the answer."""
    for answer, left in (("n", 5), ("y", 0)):
        said = await asyncio.to_thread(_at_a_terminal, shell, answer, "dead", "purge", "mail", "--all")
        assert "Remove 5 dead letters of 5 of mail for good? [y/N]" in said
        assert ("Nothing was changed." in said) is (answer == "n")
        assert len(await _ids(app)) == left


AT_A_TERMINAL = """
import sys
for stream in (sys.stdin, sys.stdout, sys.stderr):
    stream.isatty = lambda: True
from asyncq.cli import main
main()
"""


def _at_a_terminal(shell, answer, *arguments):
    """Run a command whose streams say that they are a terminal (a machine may have none to lend); what it showed."""
    done = subprocess.run(
        [sys.executable, "-c", AT_A_TERMINAL, *arguments],
        input=f"{answer}\n",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
        cwd=shell.folder,
        env={**shell.environment, "COLUMNS": "200"},
    )
    return PLAIN.sub("", done.stdout)


async def test_an_interrupted_replay_tells_how_far_it_came_and_loses_nothing(shell, app, broker_url):
    """Ctrl-C: what is under way is finished, the rest stays."""
    running = shell.start("dead", "replay", "mail", "--all", "--yes", "--rate", "0.05")
    await eventually(lambda: _counts(app, "mail", 1), 60)
    running.signal(signal.SIGINT)
    assert await running.ends(60) == 130
    assert "Interrupted after 1 dead letter. The rest is where it was" in running.stderr
    await eventually(lambda: _has_letters(app, 4), 60)
    assert (await _waiting(broker_url, "mail"))[0] == ["order-0"]


async def _counts(app, queue, count):
    async with app.broker._administration.channel() as channel:
        return (await channel.queue_declare(queue, passive=True)).message_count == count


async def _has_letters(app, count):
    return await app.dead_letters("mail").count() == count


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["replay", "mail"], "--all, or a filter"),
        (["purge", "mail", "--limit", "3"], "--all, or a filter"),
        (["replay", "mail", "--all", "--task", "x"], "contradict"),
        (["replay", "mail", "--all"], "--yes, or --dry-run"),
        (["replay", "mail.dead", "--all", "--yes"], "name the task queue: mail"),
        (["replay", "asyncq.tasks", "--all", "--yes"], "asyncq's own"),
        (["replay", "mail", "--older-than", "soon", "--yes"], "--older-than takes an age"),
        (["replay", "mail", "--all", "--set", "a=b", "--yes"], "not JSON"),
        (["replay", "mail", "--all", "--arguments", "{", "--yes"], "this is not JSON"),
        (["replay", "mail", "--task", "", "--yes"], "--task takes a text"),
        (["list", "mail", "--count", "--task", "x"], "--summary in its place"),
        (["list", "mail.dead"], "name the task queue: mail"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_meant_is_refused_before_anybody_is_asked(refusing, arguments, said):
    """In one line, with exit code 2."""
    refused = refusing("dead", *arguments)
    assert refused.exit_code == 2
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr


async def test_no_broker_and_no_queue_end_with_3(in_process, offline_shell, app):
    """One clear line."""
    for options in (["--broker-url", offline_shell.environment["ASYNCQ_BROKER_URL"]], []):
        queue = "mail" if options else "nowhere"
        done = await in_process.arun("dead", "replay", queue, "--all", "--yes", *options)
        assert done.exit_code == 3
        assert "secret-word" not in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    done = await in_process.arun("dead", "replay", "mail", "--all", "--yes", "--rate", "0")
    assert done.exit_code == 2
    assert "letters a second" in done.stderr
