"""`asyncq send` and `asyncq call` against a broker and a worker of their own."""

import asyncio
import json
import signal
import uuid
from urllib.parse import quote, urlsplit, urlunsplit

import aio_pika
import pytest

from asyncq import AsyncQ
from asyncq.broker import QueueSpec
from support import eventually

pytestmark = pytest.mark.any_version


@pytest.fixture
async def working_shell(shell):
    """A shell whose app has a worker."""
    worker = shell.start("worker", "shop:app", "--slots", "2")
    await worker.says("worker consumes")
    return shell


async def test_call_prints_the_result_as_json(working_shell):
    """Nothing else is on standard output, so that it can be piped."""
    called = await working_shell.arun("call", "shop.greet", '{"name": "Ü", "times": 2}', "--queue", "mail")
    assert called.returncode == 0, called.stderr
    assert called.stdout == '["Hello Ü","Hello Ü"]\n'
    assert called.stderr == ""


async def test_call_takes_its_arguments_from_standard_input(working_shell):
    """With the app given, the queue is known."""
    called = await working_shell.arun("call", "shop.greet", "-", "--app", "shop:app", stdin='{"name": "You"}\n')
    assert called.returncode == 0, called.stderr
    assert json.loads(called.stdout) == ["Hello You"]


async def test_a_call_whose_task_fails_exits_with_1_and_the_remote_error(working_shell):
    """Type, message and traceback of the other side."""
    called = await working_shell.arun("call", "shop.fail", '{"text": "no such customer"}', "--queue", "mail")
    assert called.returncode == 1
    assert called.stdout == ""
    assert "builtins.ValueError: no such customer" in called.stderr
    assert "raise ValueError(text)" in called.stderr
    assert "asyncq/cli" not in called.stderr


async def test_a_task_that_has_expired_exits_with_1_and_says_when(working_shell):
    """`--expires` takes a moment, or seconds from now; what would never run is not sent."""
    body = '{"name": "You"}'
    called = await working_shell.arun("call", "shop.greet", body, "-q", "mail", "--expires", "2020-01-31T08:00:00Z")
    assert (called.returncode, called.stdout) == (1, "")
    assert "expired at 2020-01-31 08:00:00.000+00:00 and was not run" in called.stderr
    called = await working_shell.arun("call", "shop.greet", body, "-q", "mail", "--expires", "600")
    assert (called.returncode, called.stdout) == (0, '["Hello You"]\n')
    sent = await working_shell.arun("send", "shop.greet", body, "-q", "mail", "--expires", "5", "--delay", "5")
    assert (sent.returncode, sent.stdout) == (2, "")
    assert "is not after delay=" in sent.stderr


async def test_wrong_arguments_without_the_app_are_refused_by_the_worker(working_shell):
    """They went as they were; the failure comes back."""
    called = await working_shell.arun("call", "shop.greet", '{"name": "You", "times": "many"}', "--queue", "mail")
    assert called.returncode == 1
    assert "times" in called.stderr
    assert "ValidationError" in called.stderr


async def test_a_call_without_an_answer_in_time_exits_with_1(working_shell, tmp_path):
    """The message says that the task may still be running."""
    arguments = json.dumps({"folder": str(tmp_path)})
    called = await working_shell.arun("call", "shop.slow", arguments, "--queue", "slow", "--timeout", "0.5")
    assert called.returncode == 1
    assert "may still" in called.stderr
    assert "Traceback" not in called.stderr
    (tmp_path / "go").touch()


async def test_a_result_of_another_type_than_the_app_declares_exits_with_1(working_shell):
    """The worker runs other code than this machine has; that is said, not printed as a result."""
    code = (working_shell.folder / "shop.py").read_text().replace("-> list[str]", "-> int")
    (working_shell.folder / "newer.py").write_text(code)
    called = await working_shell.arun("call", "shop.greet", '{"name": "You"}', "--app", "newer:app")
    assert called.returncode == 1
    assert called.stdout == ""
    assert "does not fit the return type" in called.stderr


async def test_ctrl_c_ends_a_waiting_call_without_a_word(working_shell, tmp_path):
    """Exit code 130; the task itself goes on."""
    call = working_shell.start("call", "shop.slow", json.dumps({"folder": str(tmp_path)}), "--queue", "slow")
    await eventually((tmp_path / "started").exists)
    call.signal(signal.SIGINT)
    assert await call.ends() == 130
    assert call.stderr == ""
    (tmp_path / "go").touch()
    await eventually((tmp_path / "finished").exists)


async def test_send_prints_the_id_that_the_task_has(working_shell, broker_url):
    """And returns at once."""
    sent = await working_shell.arun("send", "shop.greet", '{"name": "You"}', "--queue", "mail")
    assert sent.returncode == 0, sent.stderr
    assert uuid.UUID(sent.stdout.strip()).version == 7


async def test_what_send_was_told_travels_with_the_message(shell, broker_url):
    """The very JSON, the id, the headers; read back by a consumer that is not ours."""
    async with AsyncQ("shop", broker=broker_url) as app:
        await app.broker.ensure([QueueSpec("mail")])
    body = '{"name":  "x", "amount": 1.10}'
    sent = await shell.arun(
        "send", "mail.greet", body, "--task-id", "order-7", "--header", "tenant=blue", "--delay", "0.2"
    )
    assert (sent.returncode, sent.stdout) == (0, "order-7\n"), sent.stderr
    async with await aio_pika.connect(broker_url) as connection, connection.channel() as channel:
        queue = await channel.get_queue("mail")
        async with asyncio.timeout(20), queue.iterator() as messages:
            async for message in messages:
                async with message.process():
                    break
    assert message.body.decode() == body
    assert (message.type, message.correlation_id, message.reply_to) == ("mail.greet", "order-7", None)
    assert message.headers["tenant"] == "blue"
    assert message.content_type == "application/json"


async def test_a_send_to_a_queue_that_does_not_exist_exits_with_3(shell):
    """The broker keeps nothing, and it is said."""
    sent = await shell.arun("send", "nowhere.greet", "{}")
    assert sent.returncode == 3
    assert "nowhere" in sent.stderr
    assert sent.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("shop.greet", '{"name": 7, "times": "many"}'),
            ["nothing was sent", "name: Input should be a valid string", "times:"],
        ),
        (("shop.greet", "{}"), ["name: Field required"]),
        (("shop.greet", '{"name": "x", "colour": "red"}'), ["colour:"]),
        (("shop.gret", "{}"), ["no task 'shop.gret'", "'shop.greet'"]),
        (("shop.greet", '{"name": "x"}', "--queue", "mail box"), ["mail box"]),
        (("shop.greet", '{"name": "x"}', "--header", "x-a=b"), ["x-a"]),
        (("shop.greet", '{"name": "x"}', "--task-id", "i" * 129), ["task_id"]),
    ],
)
@pytest.mark.parametrize("command", ["send", "call"])
def test_with_the_app_given_wrong_input_is_refused_before_anything_is_sent(refusing, command, arguments, said):
    """No broker is there, and none is needed to say so."""
    ended = refusing(command, *arguments, "--app", "shop:app")
    assert ended.exit_code == 2, ended.stderr
    for part in said:
        assert part in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_a_task_name_without_a_dot_needs_a_queue(refusing):
    """There is nothing to guess it from."""
    ended = refusing("send", "greet", "{}")
    assert ended.exit_code == 2
    assert "--queue" in ended.stderr


@pytest.mark.parametrize(
    "command", [("send", "shop.greet", "{}"), ("call", "shop.greet", "{}"), ("dead", "list", "mail")]
)
def test_an_absent_broker_exits_with_3_and_its_address_without_the_password(offline_shell, command):
    """One message, no traceback, no flood of attempts."""
    ended = offline_shell.run(*command, environment={"ASYNCQ_CONNECT_TIMEOUT_S": "1"})
    assert ended.returncode == 3
    assert ended.stderr.startswith("error: No RabbitMQ can be reached at amqp://guest:***@127.0.0.1:1")
    assert len(ended.stderr.splitlines()) == 1
    assert "secret-word" not in ended.stderr


async def test_a_wrong_password_exits_with_3_and_names_the_user(shell, broker_url):
    """At once: it would not get better."""
    parts = urlsplit(broker_url)
    wrong = urlunsplit(parts._replace(netloc=f"{parts.username}:wr%40ng@{parts.hostname}:{parts.port}"))
    ended = await shell.arun("send", "mail.greet", "{}", "--broker-url", wrong)
    assert ended.returncode == 3
    assert repr(parts.username) in ended.stderr
    assert "password" in ended.stderr
    assert "wr%40ng" not in ended.stderr
    assert "wr@ng" not in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


async def test_an_unknown_virtual_host_exits_with_3_and_names_it(shell, broker_url):
    """And how to make it."""
    wrong = urlunsplit(urlsplit(broker_url)._replace(path="/" + quote("no such vhost", safe="")))
    ended = await shell.arun("call", "mail.greet", "{}", "--broker-url", wrong)
    assert ended.returncode == 3
    assert "no such vhost" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("url", ["localhost:5672", "http://localhost", "amqp://", "amqp://u:sec,ret@h:port/", ""])
def test_a_broker_url_that_cannot_be_used_exits_with_2(refusing, url):
    """It shows the right form, and nothing of what may be a password."""
    ended = refusing("send", "mail.greet", "{}", "--broker-url", url)
    assert ended.exit_code == 2, ended.stderr
    assert "amqp://user:password@host:5672/vhost" in ended.stderr
    assert "sec" not in ended.stderr.replace("secret", "")


def test_a_setting_in_the_environment_that_cannot_be_used_exits_with_2(refusing):
    """The message names the variable."""
    ended = refusing("send", "mail.greet", "{}", environment={"ASYNCQ_HEARTBEAT_S": "often"})
    assert ended.exit_code == 2
    assert "ASYNCQ_HEARTBEAT_S" in ended.stderr


# --- cancel


async def test_cancel_stops_what_runs_and_what_waits(working_shell, tmp_path):
    """By ids, from the command line or from standard input; what runs and what is queued behind it."""
    folder = json.dumps({"folder": str(tmp_path)})
    ids = []
    for _ in range(3):
        sent = await working_shell.arun("send", "shop.slow", folder, "-q", "slow")
        ids.append(sent.stdout.strip())
    await eventually((tmp_path / "started").exists, 20, message="it runs")
    cancelled = await working_shell.arun("cancel", *ids[:2], "--app", "shop:app")
    assert (cancelled.returncode, cancelled.stdout, cancelled.stderr) == (0, "2 tasks cancelled.\n", "")
    cancelled = await working_shell.arun("cancel", "-", stdin=f"\n {ids[2]} \nunknown\n{ids[2]}\n")
    assert (cancelled.returncode, cancelled.stdout) == (0, "2 tasks cancelled.\n")
    (tmp_path / "go").touch()
    called = await working_shell.arun("call", "shop.greet", '{"name": "You"}', "-q", "mail", "--task-id", "x")
    assert called.returncode == 0, called.stderr
    assert not (tmp_path / "finished").exists()


async def test_a_call_that_is_cancelled_exits_with_1_until_the_cancellation_is_taken_back(working_shell):
    """`--undo`; a cancelled id stays cancelled."""
    call = ("call", "shop.greet", '{"name": "You"}', "-q", "mail", "--task-id", "order-17")
    assert (await working_shell.arun("cancel", "order-17")).stdout == "1 task cancelled.\n"
    called = await working_shell.arun(*call)
    assert (called.returncode, called.stdout) == (1, "")
    assert "order-17 was cancelled" in called.stderr
    undone = await working_shell.arun("cancel", "--undo", "order-17")
    assert undone.stdout == "The cancellation of 1 task is taken back.\n"
    called = await working_shell.arun(*call)
    assert (called.returncode, called.stdout) == (0, '["Hello You"]\n')


@pytest.mark.parametrize(
    ("arguments", "stdin", "said"),
    [
        (["x" * 256], "", "handle.id"),
        ([""], "", "handle.id"),
        (["-"], " \n", "Standard input has no ids"),
        (["-", "a"], "a\n", "no others beside it"),
    ],
)
def test_what_is_no_id_exits_with_2(offline_shell, arguments, stdin, said):
    """Before a broker is asked."""
    ended = offline_shell.run("cancel", *arguments, stdin=stdin)
    assert ended.returncode == 2
    assert said in ended.stderr


def test_cancelling_that_is_switched_off_is_said(shell):
    """And which setting does it."""
    ended = shell.run("cancel", "a", environment={"ASYNCQ_CANCELLATIONS_KEPT_S": "0"})
    assert ended.returncode == 2
    assert "cancellations_kept_s is 0" in ended.stderr
