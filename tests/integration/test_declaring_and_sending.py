"""Declaring and sending, with real workers: modules, scripts, names, and the wire contract as other clients see it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aio_pika
import pytest
from pydantic import ValidationError

from asyncq import AsyncQ, Reject, TaskContext
from asyncq.errors import BlockingCall, DuplicateTask, InvalidOption, NoReply, PartlySent
from support import eventually, working

UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


@contextlib.asynccontextmanager
async def plain_client(url: str) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
    """A program that has never heard of asyncq."""
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        yield channel


async def take(channel: aio_pika.abc.AbstractChannel, queue: str) -> aio_pika.abc.AbstractIncomingMessage:
    """Wait for the next message of a queue, and take it."""
    source = await channel.get_queue(queue, ensure=False)
    return await eventually(lambda: source.get(no_ack=True, fail=False))


def own_headers(message: aio_pika.abc.AbstractIncomingMessage) -> dict[str, object]:
    """What the sender has written: the broker's own headers begin with `x-`."""
    return {name: value for name, value in message.headers.items() if not name.startswith("x-")}


# --- modules and scripts

FILES = {
    "shop/__init__.py": "",
    "shop/app.py": """
        from asyncq import AsyncQ

        app = AsyncQ("shop", include=["shop.mail", "shop.pictures"])
        """,
    "shop/mail.py": """
        from shop.app import app

        @app.task
        async def greet(name: str) -> str:
            return f"Hello {name}"
        """,
    "shop/pictures.py": """
        from shop import mail
        from shop.app import app

        @app.task(queue="pictures", pass_context=True)
        def caption(ctx, name: str) -> str:
            return ctx.sync.call(mail.greet.s(name)) + "!"
        """,
    "script.py": """
        from asyncq import AsyncQ

        app = AsyncQ("script", include=["more"])

        @app.task
        def double(x: int) -> int:
            return 2 * x

        if __name__ == "__main__":
            import more
            print(double.name, more.triple.name)
            print(app.sync.call(double.s(21)), app.sync.call(more.triple.s(5)))
        """,
    "more.py": """
        from script import app

        @app.task
        def triple(x: int) -> int:
            return 3 * x
        """,
}


@pytest.fixture
def folder(tmp_path):
    """An app in a package, with modules that import it and each other; and a script that declares tasks."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))
    return tmp_path


def environment(url: str) -> dict[str, str]:
    others = {name: value for name, value in os.environ.items() if not name.startswith("ASYNCQ_")}
    return {**others, "ASYNCQ_BROKER_URL": url}


def start_worker(folder: Path, target: str, url: str) -> subprocess.Popen:
    """Start `asyncq worker`; what it says goes to the file `said`."""
    with (folder / "said").open("wb") as log:
        command = [sys.executable, "-m", "asyncq", "worker", target]
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment(url))


@contextlib.asynccontextmanager
async def worker_process(folder: Path, target: str, url: str) -> AsyncIterator[None]:
    """Run `asyncq worker` until the block ends."""
    process = start_worker(folder, target, url)
    said = folder / "said"
    try:
        await eventually(lambda: "worker consumes" in said.read_text(), 20)
        yield
        process.send_signal(signal.SIGTERM)
        await eventually(lambda: process.poll() is not None, 20)
        assert process.returncode == 0, said.read_text()
    finally:
        process.kill()
        process.wait()


async def run_python(folder: Path, url: str, *arguments: str) -> str:
    """Run a program to its end and return what it printed; it must not complain."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        cwd=folder,
        env=environment(url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    assert (process.returncode, err.decode()) == (0, "")
    return out.decode()


async def test_modules_that_import_the_app_work_with_one_that_includes_them(broker_url, folder):
    """The producer imports one of them only; the worker has the tasks of all."""
    program = "from shop.pictures import app, caption; print(caption.name, app.sync.call(caption.s('Ann')))"
    async with worker_process(folder, "shop.app:app", broker_url):
        assert await run_python(folder, broker_url, "-c", program) == "shop.caption Hello Ann!\n"


async def test_the_tasks_of_a_script_that_is_run_directly_are_run_by_a_worker_that_imports_it(broker_url, folder):
    """Their names do not depend on who runs the file, and the module that imports it sees the same app."""
    async with worker_process(folder, "script:app", broker_url):
        assert await run_python(folder, broker_url, "script.py") == "script.double script.triple\n42 15\n"


def test_two_tasks_of_one_name_are_an_error_at_once():
    """It says where both are."""
    app = AsyncQ("shop")

    @app.task
    def first() -> None: ...

    with pytest.raises(DuplicateTask, match=r"'shop\.first'.*test_declaring_and_sending\.py"):

        @app.task(name="shop.first")
        def second() -> None: ...


# --- by name, and with or without a reply


async def test_reply_false_on_a_task_or_a_send_asks_for_no_reply(broker_url, management):
    """And what one send says wins over what the task says."""
    app = AsyncQ("shop", broker=broker_url)

    @app.task(reply=False)
    async def quiet(x: int) -> int:
        return x

    @app.task
    async def loud(x: int) -> int:
        return x

    async with app, plain_client(broker_url) as channel:
        for handle in (await quiet.send(1), await loud.options(reply=False).send(1)):
            assert (await take(channel, "shop")).reply_to is None
            with pytest.raises(NoReply, match="reply=True"):
                await handle.result(1)
        assert not [name for name in await management.queues() if ".reply." in name]
        await quiet.options(reply=True).send(1)
        assert (await take(channel, "shop")).reply_to
    async with working(app):
        assert await quiet.call(4) == 4  # a call waits for a result by its nature
        assert await loud.call(5) == 5


# --- the wire contract, from asyncq to others


async def test_a_sent_task_has_the_properties_of_the_contract_and_no_others(broker_url, management):
    """As a consumer in any language reads it."""
    app = AsyncQ("shop", broker=broker_url)

    @app.task
    async def work(text: str, raw: bytes, number: float, nested: dict[str, list[int]]) -> None:
        """Nobody runs it."""

    async with app, plain_client(broker_url) as channel:
        before = time.time()
        handle = await work.send("é", b"\xff\x00", float("nan"), {"a": [1]})
        message = await take(channel, "shop")
        queues = await management.queues()
    body = json.loads(message.body)
    assert body == {"text": "é", "raw": "_wA=", "number": "NaN", "nested": {"a": [1]}}
    assert (message.exchange, message.routing_key) == ("asyncq.tasks", "shop")
    assert (message.type, message.app_id) == ("shop.work", "shop")
    assert (message.content_type, message.content_encoding) == ("application/json", None)
    assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
    assert message.correlation_id == handle.id
    assert UUID7.fullmatch(message.correlation_id)
    assert UUID7.fullmatch(message.message_id)
    assert message.message_id != message.correlation_id
    assert before - 2 < message.timestamp.timestamp() < time.time() + 2
    assert (message.user_id, message.expiration, message.priority) == (None, None, 0)
    assert own_headers(message).keys() == {"asyncq-sent-at"}
    assert abs(own_headers(message)["asyncq-sent-at"] / 1000 - time.time()) < 60
    assert re.fullmatch(
        rf"asyncq\.reply\.shop\.{re.escape(socket.gethostname())}\.{os.getpid()}\.\w+", message.reply_to
    )
    reply_queue = queues[message.reply_to]
    assert reply_queue["durable"] is True
    assert reply_queue["arguments"]["x-expires"] > 0


async def test_a_delayed_task_says_when_it_is_due(broker_url):
    """In milliseconds since the epoch; it comes through the ladder with all that it had."""
    app = AsyncQ("shop", broker=broker_url)

    @app.task(reply=False)
    async def work(x: int) -> None:
        """Nobody runs it."""

    async with app, plain_client(broker_url) as channel:
        sent_ms = int(time.time() * 1000)
        handle = await work.options(delay=0.3, headers={"tenant": "a"}, task_id="my-id").send(1)
        message = await take(channel, "shop")
    due_ms = own_headers(message)["asyncq-due-at"]
    assert sent_ms + 300 <= due_ms <= time.time() * 1000
    sent_ms = own_headers(message)["asyncq-sent-at"]
    assert own_headers(message) == {"tenant": "a", "asyncq-due-at": due_ms, "asyncq-sent-at": sent_ms}
    assert (message.correlation_id, message.type, message.body) == (handle.id, "shop.work", b'{"x":1}')
    assert handle.id == "my-id"
    assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT


# --- the wire contract, from others to asyncq


async def test_a_plain_client_sends_tasks_and_reads_their_replies(broker_url):
    """Progress, result, failure and rejection, each by its `type`, with the task's id."""
    app = AsyncQ("shop", broker=broker_url)

    @app.task(pass_context=True)
    async def work(ctx: TaskContext, how: str) -> list[str]:
        if how == "fail":
            raise ValueError("no")
        if how == "reject":
            raise Reject("not today")
        await ctx.progress(1, 4, label="HALF", note="x")
        return [how, ctx.task_id]

    async with working(app), plain_client(broker_url) as channel:
        tasks = await channel.get_exchange("asyncq.tasks", ensure=False)
        mine = await channel.declare_queue(exclusive=True)

        async def ask(body: dict[str, object], **ids: str) -> list[tuple[str, object]]:
            message = aio_pika.Message(json.dumps(body).encode(), type="shop.work", reply_to=mine.name, **ids)
            await tasks.publish(message, "shop")
            replies = []
            while not replies or replies[-1].type == "progress":
                replies.append(await take(channel, mine.name))
            for reply in replies:
                assert reply.correlation_id == ids.get("correlation_id", ids["message_id"])
                assert reply.content_type == "application/json"
                assert reply.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
            return [(reply.type, json.loads(reply.body)) for reply in replies]

        progress = {"done": 1, "total": 4, "label": "HALF", "details": {"note": "x"}}
        # Keys with $ belong to workflows, not to the task. Without a correlation_id the message_id is the task's id.
        assert await ask({"how": "run", "$then": []}, message_id="m-1") == [
            ("progress", progress),
            ("succeeded", ["run", "m-1"]),
        ]
        assert await ask({"how": "run"}, message_id="m-2", correlation_id="c-2") == [
            ("progress", progress),
            ("succeeded", ["run", "c-2"]),
        ]
        ((kind, error),) = await ask({"how": "fail"}, message_id="m-3")
        assert (kind, error["type"], error["message"]) == ("failed", "builtins.ValueError", "no")
        assert 'raise ValueError("no")' in error["traceback"]
        ((kind, error),) = await ask({"how": "reject"}, message_id="m-4")
        assert (kind, error["message"]) == ("rejected", "not today")
        ((kind, error),) = await ask({"how": 5}, message_id="m-5")
        assert kind == "rejected"
        assert "how" in error["message"]
        letters = [await take(channel, "shop.dead") for _ in range(3)]
    assert [letter.correlation_id for letter in letters] == ["m-3", "m-4", "m-5"]


async def test_a_plain_client_may_use_rabbitmqs_direct_reply_to(broker_url):
    """The usual way of calling in other languages: no reply queue of one's own."""
    app = AsyncQ("shop", broker=broker_url)

    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    async with working(app), plain_client(broker_url) as channel:
        replies: asyncio.Queue[aio_pika.abc.AbstractIncomingMessage] = asyncio.Queue()
        direct = await channel.get_queue("amq.rabbitmq.reply-to", ensure=False)
        await direct.consume(replies.put, no_ack=True)
        message = aio_pika.Message(b'{"a":1,"b":2}', type="shop.add", reply_to=direct.name, correlation_id="mine")
        await channel.default_exchange.publish(message, "shop")
        reply = await asyncio.wait_for(replies.get(), 10)
    assert (reply.type, reply.body, reply.correlation_id) == ("succeeded", b"3", "mine")


@pytest.mark.parametrize(
    ("content_type", "runs"),
    [
        (None, True),
        ("application/json", True),
        ("application/json; charset=utf-8", True),
        ("text/plain", False),
        ("application/x-python-serialize", False),
        ("application/msgpack", False),
    ],
)
async def test_only_json_is_run_and_everything_else_is_a_dead_letter(broker_url, content_type, runs):
    """Although the body would be JSON: what its sender says counts."""
    app = AsyncQ("shop", broker=broker_url)
    ran = asyncio.Event()

    @app.task
    async def work() -> None:
        ran.set()

    async with working(app), plain_client(broker_url) as channel:
        message = aio_pika.Message(b"{}", type="shop.work", content_type=content_type)
        await channel.default_exchange.publish(message, "shop")
        if runs:
            await asyncio.wait_for(ran.wait(), 10)
        else:
            letter = await take(channel, "shop.dead")
            assert letter.headers["asyncq-reason"] == "malformed message"
            assert content_type in letter.headers["asyncq-error-message"]
            assert not ran.is_set()


# --- what the management UI shows


async def test_connections_and_consumers_have_names_that_say_who_they_are(broker_url, management):
    """App, role, purpose, host and process; app, queue and number of the slot."""
    app = AsyncQ("shop", broker=broker_url)

    @app.task(queue="mail")
    async def work() -> int:
        return 1

    async with working(app, {"mail": 2}):
        assert await work.call() == 1
        assert await asyncio.to_thread(app.sync.call, work.s()) == 1
        who = f"{socket.gethostname()} {os.getpid()}"

        async def names() -> set[str]:
            connections = await management.connections()
            return {connection.get("client_properties", {}).get("connection_name") for connection in connections}

        expected = {f"asyncq shop producer-{purpose} {who}" for purpose in ("publish", "consume")}
        expected |= {f"asyncq shop sync-{purpose} {who}" for purpose in ("publish", "consume")}

        async def all_are_seen() -> bool:
            return expected <= await names()

        await eventually(all_are_seen, 20)

        async def both_slots_are_seen() -> bool:
            consumers = await management.consumers("mail")
            tags = {(consumer["consumer_tag"], consumer["prefetch_count"]) for consumer in consumers}
            return {(tag.split(":")[0], prefetch) for tag, prefetch in tags} == {("shop.mail.1", 1), ("shop.mail.2", 1)}

        await eventually(both_slots_are_seen, 20)
        await asyncio.to_thread(app.sync.close)


# --- wrong use


async def test_what_is_no_signature_is_refused_and_the_message_shows_one(broker_url):
    """A task without its arguments, a name where a signature is wanted, a coroutine."""
    app = AsyncQ("shop", broker=broker_url)

    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    async with app:
        for send in (app.send, app.call, lambda thing: app.send_many([thing])):
            with pytest.raises(InvalidOption, match=r"task\.s\(1, 2\)"):
                await send(add)
    for blocking in (app.sync.send, app.sync.call):
        for thing in (add, "shop.add"):
            with pytest.raises(InvalidOption, match=r"task\.s\(1, 2\)"):
                await asyncio.to_thread(blocking, thing)
    await asyncio.to_thread(app.sync.close)


async def test_send_many_tells_what_was_sent_before_a_signature_that_cannot_be(broker_url, management):
    """A generator that fails in the middle; where nothing was sent yet, its own error is raised."""
    app = AsyncQ("shop", broker=broker_url)

    @app.task(reply=False)
    async def note(number: int) -> None:
        """Nobody runs it."""

    async with app:
        with pytest.raises(ValidationError):
            await app.send_many(note.s(number) for number in [1, 2, "three"])
        assert await management.ready("shop") == 0
        with pytest.raises(PartlySent, match=r"first 1000 tasks.*one of those cannot be") as caught:
            await app.send_many(note.s(number if number < 1500 else "bad") for number in range(3000))
        assert len({handle.id for handle in caught.value.outcomes}) == 1000
        assert isinstance(caught.value.__cause__, ValidationError)
        assert await management.ready("shop") == 1000


async def test_blocking_calls_on_a_loops_thread_name_the_call_to_await(broker_url):
    """Of the app, and of the context of an async task."""
    app = AsyncQ("shop", broker=broker_url)
    refused = []

    @app.task(pass_context=True)
    async def work(ctx: TaskContext) -> None:
        for call, instead in (
            (lambda: ctx.sync.send(work.s()), "await task.send(...)"),
            (lambda: ctx.sync.call(work.s()), "await task.call(...)"),
            (lambda: ctx.sync.progress(1), "await ctx.progress(...)"),
            (lambda: app.sync.send(work.s()), "await task.send(...)"),
            (lambda: app.sync.call(work.s()), "await task.call(...)"),
            (lambda: app.sync.send_many([work.s()]), "await app.send_many(...)"),
        ):
            with pytest.raises(BlockingCall, match=re.escape(instead)):
                call()
            refused.append(instead)

    async with working(app):
        await work.call()
    assert len(refused) == 6
