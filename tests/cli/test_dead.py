"""`asyncq dead list`: what is parked, and why; looking takes nothing away."""

import base64
import json

import aio_pika
import pytest

from asyncq import AsyncQ
from asyncq.broker import DeadLetter, QueueSpec
from asyncq.cli.dead_text import as_json
from asyncq.message import Message
from support import eventually


@pytest.mark.parametrize(
    "body",
    [rb'{"text": "\ud800"}', b'{"text": NaN}', b'{"text": ' + b"9" * 5000 + b"}", b"[" * 5000, b"\xff", b""],
    ids=["half a surrogate pair", "not a number", "a long number", "nested deep", "not UTF-8", "empty"],
)
def test_a_body_that_cannot_be_printed_as_json_is_printed_in_base64(body):
    """One odd letter must not keep the others from being listed."""
    letter = DeadLetter(Message(type="shop.fail", body=body, task_id="1", message_id="2"), None)
    printed = json.dumps(as_json(letter), ensure_ascii=False).encode()
    assert base64.b64decode(json.loads(printed)["body_base64"]) == body


async def _fail(shell, management, count):
    """Have a worker fail some tasks, one after the other."""
    worker = shell.start("worker", "shop:app", "--slots", "1")
    await worker.says("worker consumes")
    async with AsyncQ("shop", broker=shell.environment["ASYNCQ_BROKER_URL"]) as app:
        for number in range(count):
            arguments = {"text": f"no customer {number}\x1b[31m\nsecond line"}
            await app.send("shop.fail", arguments, queue="mail", task_id=f"order-{number}", reply=False)
    await eventually(lambda: _has_ready(management, count))


async def test_dead_letters_are_listed_with_what_went_wrong(shell, management):
    """Task, id, error, message, reason, attempts, when; and safe for the terminal."""
    await _fail(shell, management, 2)
    listed = await shell.arun("dead", "list", "mail")
    assert listed.returncode == 0, listed.stderr
    first, second = listed.stdout.strip().split("\n\n")
    assert first.startswith("shop.fail  order-0\n")
    assert "builtins.ValueError: no customer 0\\x1b[31m\n" in first
    assert "1 attempt" in first
    assert "Z, by " in first
    assert "order-1" in second
    assert "\x1b" not in listed.stdout


async def test_json_lists_everything_one_object_a_line(shell, management):
    """For jq and other programs."""
    await _fail(shell, management, 1)
    listed = await shell.arun("dead", "list", "mail", "--json")
    (letter,) = [json.loads(line) for line in listed.stdout.splitlines()]
    assert (letter["task"], letter["id"], letter["queue"]) == ("shop.fail", "order-0", "mail")
    assert letter["error_type"] == "builtins.ValueError"
    assert letter["error_message"] == "no customer 0\x1b[31m\nsecond line"
    assert letter["arguments"] == {"text": letter["error_message"]}
    assert letter["attempts"] == 1
    assert letter["failed_at"].endswith("Z")
    assert "Traceback" in letter["traceback"]
    assert letter["reason"]


async def test_what_the_broker_itself_has_dead_lettered_is_listed_without_an_error(shell, broker_url):
    """No record says why; a body that is no JSON is shown as it can be."""
    async with AsyncQ("shop", broker=broker_url) as app:
        await app.broker.ensure([QueueSpec("mail")])
    async with await aio_pika.connect(broker_url) as connection, connection.channel() as channel:
        message = aio_pika.Message(b"\xff", type="foreign", correlation_id="their-id", delivery_mode=2)
        await channel.default_exchange.publish(message, "mail")
        queue = await channel.get_queue("mail")
        await (await queue.get()).reject(requeue=False)

    async def listed(*options):
        ended = await shell.arun("dead", "list", "mail", *options)
        assert ended.returncode == 0, ended.stderr
        return "their-id" in ended.stdout and ended.stdout

    text = await eventually(listed)
    assert text.startswith("foreign  their-id\n")
    assert "by the broker itself" in text
    letter = json.loads(await listed("--json"))
    assert letter == {
        "task": "foreign",
        "id": "their-id",
        "body_base64": "/w==",
        "reason": "dead-lettered by the broker itself",
        "broker_reason": "rejected",
        "failed_at": letter["failed_at"],
        "queue": "mail",
    }
    assert letter["failed_at"].endswith("Z")


async def test_looking_takes_nothing_away(shell, management):
    """However often, and with a limit that leaves some unseen."""
    await _fail(shell, management, 3)
    for _ in range(3):
        listed = await shell.arun("dead", "list", "mail", "--limit", "2")
        assert listed.returncode == 0, listed.stderr
        assert listed.stdout.count("shop.fail") == 2
        assert "--limit shows more" in listed.stdout
    await eventually(lambda: _has_ready(management, 3))


async def test_an_empty_queue_says_so(shell, broker_url):
    """It is no error."""
    async with AsyncQ("shop", broker=broker_url) as app:
        await app.broker.ensure([QueueSpec("mail")])
    listed = await shell.arun("dead", "list", "mail")
    assert (listed.returncode, listed.stdout) == (0, "No dead letters of queue mail.\n"), listed.stderr
    listed = await shell.arun("dead", "list", "mail", "--json")
    assert (listed.returncode, listed.stdout) == (0, ""), listed.stderr


async def test_a_queue_that_does_not_exist_exits_with_3(shell):
    """An empty list would be a lie."""
    listed = await shell.arun("dead", "list", "nowhere")
    assert listed.returncode == 3
    assert "nowhere" in listed.stderr
    assert listed.stdout == ""


def test_the_dead_letter_queue_itself_is_not_the_argument(refusing):
    """The task queue's name is wanted, and it is said before anybody is asked."""
    listed = refusing("dead", "list", "mail.dead")
    assert listed.exit_code == 2
    assert "mail.dead" in listed.stderr


async def _has_ready(management, count):
    return "mail.dead" in await management.queues() and await management.ready("mail.dead") == count
