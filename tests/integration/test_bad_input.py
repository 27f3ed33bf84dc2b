"""Bad input: each with a clear error, and nothing lost.

Most of it is tested beside what it is the input of. In full:

- broker absent, wrong password, unknown virtual host
    integration/test_publishing.py::test_an_absent_broker_a_wrong_password_and_an_unknown_vhost_are_told_apart
    cli/test_worker.py::test_an_absent_broker_ends_a_worker_with_3
    cli/test_send_and_call.py::test_a_wrong_password_exits_with_3_and_names_the_user
    cli/test_send_and_call.py::test_an_unknown_virtual_host_exits_with_3_and_names_it
    test_a_worker_that_the_broker_refuses_ends_at_once_and_says_why, below
- wrong arguments
    unit/test_task.py::test_wrong_arguments_never_reach_the_sender
    unit/test_arguments.py::test_wrong_values_fail_in_the_producer_with_pydantics_error
    cli/test_send_and_call.py::test_with_the_app_given_wrong_input_is_refused_before_anything_is_sent
- a body that is not JSON, not an object, of a wrong type; a foreign `asyncq-attempt: "three"`
    conformance/intake.py::test_a_message_that_is_no_task_message_is_a_dead_letter_at_once
- a body of 20 MB
    conformance/publishing.py::test_a_message_that_is_too_large_is_refused_before_it_is_sent_and_harms_no_other
    conformance/intake.py::test_a_body_that_is_too_large_for_a_copy_is_dead_lettered_by_the_broker
    test_a_foreign_body_of_20_mb_is_kept_or_refused_and_the_next_task_runs, below
- an unknown task
    conformance/intake.py::test_a_task_that_nobody_knows_waits_and_is_then_a_dead_letter
    conformance/intake.py::test_a_task_that_is_unknown_at_first_is_run_by_a_worker_that_knows_it
- a missing module or app on the command line
    cli/test_loading.py::test_a_module_that_is_not_there_is_named_with_the_folder_and_a_likely_other
    cli/test_loading.py::test_an_attribute_that_is_not_there_is_told_the_apps_that_are
- a queue that exists with other arguments, or with a name that RabbitMQ or the ladder cannot carry
    integration/test_topology_apply.py::test_a_queue_of_another_type_is_named_with_the_remedy
    cli/test_worker.py::test_a_queue_with_other_arguments_ends_a_worker_with_4
    unit/test_registry.py::test_bad_queue_names_say_why
    test_a_producer_whose_queue_exists_with_other_arguments_is_told_and_nothing_is_touched, below
    test_a_send_to_a_queue_that_cannot_be_called_so_is_refused, below
- a foreign message with `user_id`, `expiration`, `CC` and 140 KB of headers
    integration/test_worker.py::test_a_foreign_message_full_of_poison_ends_as_a_dead_letter_and_harms_nobody
    test_a_foreign_message_with_140_kb_of_headers_is_retried_and_dead_lettered, below
    test_headers_of_every_kind_survive_a_retry, below
- a delayed send to a queue that does not exist
    conformance/publishing.py::test_a_message_for_a_queue_that_does_not_exist_is_unroutable
- a result that cannot be serialised
    conformance/retries.py::test_a_result_that_cannot_be_written_is_a_failure_and_no_retry
- a worker killed in the middle
    integration/test_worker.py::test_a_task_whose_worker_is_killed_is_run_by_another_one
- a task that calls `sys.exit()`, raises `CancelledError` or leaves a thread running
    conformance/working.py::test_no_task_can_end_the_worker
    integration/test_worker.py::test_a_thread_that_overruns_is_settled_and_keeps_its_slot
    cli/test_worker.py::test_a_thread_that_never_ends_does_not_hold_up_the_exit
    test_what_a_task_has_left_running_does_not_hold_up_the_workers_exit, below
- the queue deleted under a running worker
    conformance/working.py::test_a_worker_declares_a_queue_again_that_was_deleted_under_it
- a reply to a producer that is gone
    conformance/intake.py::test_a_reply_to_somebody_who_is_gone_is_no_fault
- a dead-letter queue looked at 50 times
    integration/test_dead_letters.py::test_fifty_looks_destroy_nothing
    integration/test_dead_letters.py::test_a_foreign_look_destroys_nothing_either
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import aio_pika
import aiormq
import pytest

import asyncq.testing
from asyncq import AsyncQ, Fixed, RetryPolicy
from asyncq.errors import InvalidQueueName, TopologyMismatch
from support import eventually, working

TESTS = Path(__file__).parents[1]
CONFORMANCE = Path(asyncq.testing.__file__).parent  # its behaviours are in the package
SOON = RetryPolicy(backoff=Fixed(0.02), jitter=False, max_attempts=2)


def make_app(url: str, **settings) -> AsyncQ:
    app = AsyncQ("shop", broker=url, **settings)

    @app.task(retry=SOON)
    async def fail(x: int) -> None:
        raise ValueError("no")

    @app.task
    async def echo(x: int) -> int:
        return x

    @app.task
    async def length(text: str) -> int:
        return len(text)

    return app


async def dead_letter(url: str, queue: str = "shop.dead") -> aio_pika.abc.AbstractIncomingMessage:
    """Wait for the dead letter, and take it."""
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        dead = await channel.get_queue(queue, ensure=False)
        return await eventually(lambda: dead.get(no_ack=True, fail=False), 20)


def publish_by_management(node, url: str, name: str, properties: dict) -> None:
    """Publish as the management UI does: the broker takes headers there that fit no AMQP frame."""
    vhost = quote(unquote(urlsplit(url).path[1:]), safe="")
    message = {
        "properties": {"type": name, **properties},
        "routing_key": "shop",
        "payload": '{"x": 1}',
        "payload_encoding": "string",
    }
    assert node.api("POST", f"/exchanges/{vhost}/amq.default/publish", message) == {"routed": True}


def test_each_test_that_is_named_above_exists():
    """The list cannot rot."""
    named = re.findall(r"^    (?:(\S+\.py)::)?(test_\w+)", __doc__, flags=re.MULTILINE)
    assert len(named) >= 30
    for file, test in named:
        folder = CONFORMANCE if file.startswith("conformance/") else TESTS
        text = (folder / file if file else Path(__file__)).read_text()
        assert re.search(rf"^(async )?def {test}\(", text, flags=re.MULTILINE), f"{file}::{test}"


# --- the broker

SHOP = """
import asyncio, threading, time
from asyncq import AsyncQ

app = AsyncQ("shop")

@app.task
async def leave_thread() -> str:
    threading.Thread(target=time.sleep, args=(600,), daemon=False).start()
    return "done"

@app.task
async def leave_executor() -> str:
    asyncio.get_running_loop().run_in_executor(None, time.sleep, 600)
    return "done"

@app.task
async def leave_task() -> str:
    async def stay():
        while True:
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                pass
    app.left = asyncio.create_task(stay())
    return "done"
"""


def start_worker(folder: Path, url: str, *options: str) -> subprocess.Popen:
    """Start `asyncq worker` in a folder with `shop.py`; what it says goes to the file `said`."""
    (folder / "shop.py").write_text(SHOP)
    settings = {name: value for name, value in os.environ.items() if not name.startswith("ASYNCQ_")}
    with (folder / "said").open("wb") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "asyncq", "worker", "shop:app", *options],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=said,
            env={**settings, "ASYNCQ_BROKER_URL": url, "ASYNCQ_DRAIN_TIMEOUT_S": "1"},
        )


@pytest.mark.parametrize("fault", ["password", "virtual host"])
async def test_a_worker_that_the_broker_refuses_ends_at_once_and_says_why(broker_url, tmp_path, fault):
    """It would not get better by trying again; the password is not shown."""
    parts = urlsplit(broker_url)
    if fault == "password":
        url = parts._replace(netloc=f"{parts.username}:wrong-word@{parts.hostname}:{parts.port}").geturl()
        expected = f"does not accept user {parts.username!r} with this password"
    else:
        url = parts._replace(path="/not-there").geturl()
        expected = "has no virtual host 'not-there'"
    worker = start_worker(tmp_path, url)
    try:
        await eventually(lambda: worker.poll() is not None, 20)
    finally:
        worker.kill()
        worker.wait()
    said = (tmp_path / "said").read_text()
    assert worker.returncode == 4, said
    assert expected in said
    assert "wrong-word" not in said
    assert "Traceback" not in said


# --- queues


async def test_a_producer_whose_queue_exists_with_other_arguments_is_told_and_nothing_is_touched(broker_url):
    """Another program's queue `shop`, with its message in it."""
    app = make_app(broker_url)
    async with await aio_pika.connect(broker_url) as connection, connection.channel() as channel:
        theirs = await channel.declare_queue("shop", durable=True)
        await channel.default_exchange.publish(aio_pika.Message(b"theirs"), "shop")
        with pytest.raises(TopologyMismatch, match="'shop'"):
            async with app:
                pytest.fail("it must not open")
        message = await theirs.get(no_ack=True)
        assert message.body == b"theirs"
        await channel.queue_delete("shop")
    async with app:  # and once the queue is gone, the same app opens
        pass


@pytest.mark.parametrize("name", ["two words", "ümlaut", "a*b", "a#", "mail.dead", "asyncq.tasks", "amq.x", "x" * 201])
async def test_a_send_to_a_queue_that_cannot_be_called_so_is_refused(broker_url, name):
    """Before anything is sent, with and without a delay, and by name."""
    async with make_app(broker_url) as app:
        task = app.tasks["shop.echo"]
        with pytest.raises(InvalidQueueName, match=re.escape(repr(name))):
            await task.options(queue=name).send(1)
        with pytest.raises(InvalidQueueName):
            await task.options(queue=name, delay=1).send(1)
        with pytest.raises(InvalidQueueName):
            await app.send("other.task", {}, queue=name)


# --- foreign messages


async def test_a_foreign_message_with_140_kb_of_headers_is_retried_and_dead_lettered(broker_url, node):
    """A copy of it with all of them would end the connection; so the largest stay behind, and its neighbours live."""
    user = unquote(urlsplit(broker_url).username)
    headers = {"CC": ["other"], "small": "kept", **{f"h{n}": "x" * 1000 for n in range(140)}}
    poison = {"user_id": user, "expiration": "60000", "headers": headers}
    async with working(make_app(broker_url)) as app:
        await asyncio.to_thread(publish_by_management, node, broker_url, "shop.fail", poison)
        await asyncio.to_thread(publish_by_management, node, broker_url, "shop.echo", poison)
        letter = await dead_letter(broker_url)
        assert await app.tasks["shop.echo"].call(7) == 7
    assert letter.headers["asyncq-attempts"] == 2
    assert letter.headers["asyncq-error-type"] == "builtins.ValueError"
    assert letter.headers["small"] == "kept"
    assert "CC" not in letter.headers
    assert letter.user_id is None
    assert letter.expiration is None
    assert letter.body == b'{"x": 1}'


class Raw(str):
    """A string as clients in other languages write them: its bytes are no UTF-8."""

    __slots__ = ()

    def encode(self, *_args: object) -> bytes:
        """What goes on the wire."""
        return b"\xff\xfe" + str.encode(self)


async def publish_raw(url: str, **properties: object) -> None:
    """Publish by the AMQP client below aio-pika, which checks nothing."""
    connection = await aiormq.connect(url)
    channel = await connection.channel()
    with_type = aiormq.spec.Basic.Properties(**{"message_type": "shop.fail", **properties})
    await channel.basic_publish(b'{"x": 1}', routing_key="shop", properties=with_type)
    await connection.close()


async def test_headers_of_every_kind_survive_a_retry(broker_url):
    """What other clients write must not be what keeps a copy from being published."""
    foreign = {
        "text": "é\u202e",
        "bytes": bytearray(b"\xff\x00"),
        "raw": Raw("text"),
        "integer": 2**63 - 1,
        "negative": -(2**63),
        "float": 2.5,
        "decimal": Decimal("1.25"),
        "moment": datetime(2026, 1, 2, tzinfo=UTC),
        "nothing": None,
        "yes": True,
        "list": [1, "two", {"three": 3.0}],
        "table": {"a": {"b": [None]}},
    }
    async with working(make_app(broker_url)) as app:
        await publish_raw(broker_url, headers=foreign, priority=200)
        letter = await dead_letter(broker_url)
        assert await app.tasks["shop.echo"].call(7) == 7
    assert letter.headers["asyncq-attempts"] == 2
    assert bytes(letter.headers["raw"]) == b"\xff\xfetext"
    for name in foreign.keys() - {"raw"}:
        assert letter.headers[name] == foreign[name], name


@pytest.mark.parametrize(
    "properties",
    [
        {"message_id": Raw("id"), "correlation_id": Raw("id")},
        {"app_id": Raw("app"), "reply_to": Raw("nobody")},
        {"headers": {"moment": datetime(9999, 1, 1, tzinfo=UTC)}},
    ],
    ids=["ids", "names", "moment"],
)
async def test_properties_that_cannot_be_read_harm_nobody(broker_url, properties):
    """An id of raw bytes is usual in some languages. It must not cost the connection, again and again."""
    async with working(make_app(broker_url)) as app:
        await publish_raw(broker_url, **properties)
        letter = await dead_letter(broker_url)
        assert await app.tasks["shop.echo"].call(7) == 7
    assert letter.headers["asyncq-attempts"] == 2


async def test_a_moment_that_no_calendar_has_harms_nobody(broker_url, node):
    """Some clients write microseconds where AMQP wants seconds."""
    async with working(make_app(broker_url)) as app:
        await asyncio.to_thread(publish_by_management, node, broker_url, "shop.fail", {"timestamp": 10**17})
        letter = await dead_letter(broker_url)
        assert await app.tasks["shop.echo"].call(7) == 7
    assert letter.headers["asyncq-attempts"] == 2


async def test_a_foreign_body_of_20_mb_is_kept_or_refused_and_the_next_task_runs(broker_url, node):
    """RabbitMQ before 4.0 takes it, and so does the task; where it does not fit, its dead letter is whole."""
    bodies = {
        "shop.length": json.dumps({"text": "x" * 20_000_000}).encode(),
        "shop.fail": json.dumps({"x": "y" * 20_000_000}).encode(),
    }
    async with working(make_app(broker_url)) as app:
        async with await aio_pika.connect(broker_url) as connection:
            for name, body in bodies.items():
                channel = await connection.channel()
                message = aio_pika.Message(body, type=name)
                if int(node.version.partition(".")[0]) >= 4:
                    with pytest.raises(aiormq.exceptions.ChannelPreconditionFailed):
                        await channel.default_exchange.publish(message, "shop")
                else:
                    await channel.default_exchange.publish(message, "shop")
                    await channel.close()
        if int(node.version.partition(".")[0]) < 4:
            letter = await dead_letter(broker_url)
            assert letter.body == bodies["shop.fail"]
        assert await app.tasks["shop.echo"].call(7) == 7


# --- tasks that leave something behind


@pytest.mark.parametrize("what", ["thread", "executor", "task"])
async def test_what_a_task_has_left_running_does_not_hold_up_the_workers_exit(broker_url, tmp_path, what):
    """A thread of its own, one of asyncio's, an asyncio task that will not be cancelled: the task itself is done."""
    worker = start_worker(tmp_path, broker_url)
    client = AsyncQ("client", broker=broker_url)
    try:
        async with client:
            await eventually(lambda: b"worker consumes" in (tmp_path / "said").read_bytes(), 20)
            assert await client.call(f"shop.leave_{what}", timeout=10) == "done"
        worker.send_signal(signal.SIGTERM)
        await eventually(lambda: worker.poll() is not None, 15)
        assert worker.returncode == 0, (tmp_path / "said").read_text()
    finally:
        worker.kill()
        worker.wait()
