"""`asyncq worker`: what it says at start, how it stops, what it refuses."""

import json
import signal

import aio_pika
import pytest

from asyncq.version import asyncq_version
from support import eventually


async def test_a_worker_says_what_it_is(shell, broker_url):
    """Version, app, broker without password, queues with slots, tasks with their queues."""
    worker = shell.start("worker", "shop:app", "--slots", "3")
    await worker.says("worker consumes")
    said = worker.stderr
    assert f"asyncq {asyncq_version()} worker" in said
    assert "shop (shop:app)" in said
    assert ":***@127.0.0.1" in said
    assert "mail: 3 slots" in said
    assert "slow: 3 slots" in said
    assert "shop.greet  from mail" in said
    assert "\x1b[" not in said


async def test_in_the_json_format_every_line_of_a_worker_is_an_object(shell, tmp_path):
    """The introduction, too; from start to stop."""
    worker = shell.start("worker", "shop:app", "--log-format", "json", "--queue", "mail:2")
    await worker.says("worker consumes")
    called = await shell.arun("call", "shop.fail", '{"text": "broken"}', "--queue", "mail")
    assert called.returncode == 1
    worker.signal()
    assert await worker.ends() == 0
    lines = [json.loads(line) for line in worker.stderr.splitlines()]
    (starting,) = [line for line in lines if line["event"] == "worker starting"]
    assert starting["version"] == asyncq_version()
    assert starting["queues"] == {"mail": 2}
    assert starting["tasks"]["shop.greet"] == "mail"
    assert ":***@" in starting["broker"]
    assert all({"timestamp", "level", "event"} <= set(line) for line in lines)


async def test_only_the_named_queues_are_consumed_with_their_slots(shell, management):
    """One with a number of its own, one with the default, one that no task names."""
    worker = shell.start("worker", "shop:app", "-q", "mail:2", "-q", "extra", "--slots", "1")
    await worker.says("worker consumes")
    await eventually(lambda: _consumers(management, "mail", 2))
    await eventually(lambda: _consumers(management, "extra", 1))
    assert await management.consumers("slow") == []
    assert "queue=extra" in worker.stderr
    assert "warning" in worker.stderr
    assert "queue=mail" not in worker.stderr


async def _consumers(management, queue, count):
    return len(await management.consumers(queue)) == count


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_first_signal_lets_running_tasks_finish_and_exits_with_0(shell, tmp_path, number, management):
    """The task ends after the signal, and its result is kept."""
    worker = shell.start("worker", "shop:app")
    await worker.says("worker consumes")
    arguments = json.dumps({"folder": str(tmp_path)})
    sent = await shell.arun("send", "shop.slow", arguments, "--queue", "slow")
    assert sent.returncode == 0, sent.stderr
    await eventually((tmp_path / "started").exists)
    worker.signal(number)
    await worker.says("stopping; once more stops at once")
    (tmp_path / "go").touch()
    assert await worker.ends() == 0
    assert (tmp_path / "finished").exists()
    assert "Traceback" not in worker.stderr
    assert await management.ready("slow") == 0
    assert await management.ready("slow.dead") == 0


async def test_what_does_not_finish_in_time_is_handed_back(shell, tmp_path, management):
    """After the drain timeout the worker ends; the task is in its queue again, and not dead."""
    worker = shell.start("worker", "shop:app", "--drain-timeout", "0.2")
    await worker.says("worker consumes")
    arguments = json.dumps({"folder": str(tmp_path)})
    await shell.arun("send", "shop.slow", arguments, "--queue", "slow")
    await eventually((tmp_path / "started").exists)
    worker.signal()
    assert await worker.ends() == 5
    assert not (tmp_path / "finished").exists()
    assert await eventually(lambda: management.ready("slow")) == 1


async def test_a_thread_that_never_ends_does_not_hold_up_the_exit(shell, tmp_path, management):
    """Threads cannot be stopped: the process ends without them, and the message is in its queue again."""
    worker = shell.start("worker", "shop:app", "--drain-timeout", "0.2")
    await worker.says("worker consumes")
    await shell.arun("send", "shop.stuck", json.dumps({"folder": str(tmp_path)}), "--queue", "slow")
    await eventually((tmp_path / "started").exists)
    worker.signal()
    assert await worker.ends() == 5
    assert await eventually(lambda: management.ready("slow")) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
async def test_the_second_signal_stops_at_once(shell, tmp_path, management, number, code):
    """With the exit code of the signal; the broker gives the message to another worker."""
    worker = shell.start("worker", "shop:app")
    await worker.says("worker consumes")
    await shell.arun("send", "shop.slow", json.dumps({"folder": str(tmp_path)}), "--queue", "slow")
    await eventually((tmp_path / "started").exists)
    worker.signal(number)
    await worker.says("stopping; once more stops at once")
    worker.signal(number)
    assert await worker.ends(timeout=5) == code
    assert not (tmp_path / "finished").exists()
    assert await eventually(lambda: management.ready("slow")) == 1


async def test_a_signal_while_it_still_connects_ends_it(offline_shell):
    """Nothing has begun, so nothing is lost."""
    worker = offline_shell.start("worker", "shop:app", environment={"ASYNCQ_CONNECT_TIMEOUT_S": "60"})
    try:
        await worker.says("broker not reachable")
        worker.signal()
        assert await worker.ends() == 0
        assert "Traceback" not in worker.stderr
    finally:
        worker.process.kill()
        worker.process.wait()


def test_an_absent_broker_ends_a_worker_with_3(offline_shell):
    """After its connect timeout, so that a supervisor can start it again."""
    ended = offline_shell.run("worker", "shop:app", environment={"ASYNCQ_CONNECT_TIMEOUT_S": "1"})
    assert ended.returncode == 3
    assert "error: No RabbitMQ can be reached at amqp://guest:***@127.0.0.1:1" in ended.stderr
    assert "secret-word" not in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("target", "error", "code"), [("shop:app", "BrokerUnavailable", 3), ("nowhere:app", "AppNotFound", 2)]
)
def test_in_the_json_format_the_reason_of_the_end_is_an_object_too(offline_shell, target, error, code):
    """A log collector gets it whole, and without the password."""
    ended = offline_shell.run("worker", target, "--log-format", "json", environment={"ASYNCQ_CONNECT_TIMEOUT_S": "1"})
    assert ended.returncode == code
    last = [json.loads(line) for line in ended.stderr.splitlines()][-1]
    assert (last["event"], last["level"], last["error"]) == ("worker failed", "critical", error)
    assert last["exit_code"] == code
    assert "secret-word" not in ended.stderr


async def test_a_queue_with_other_arguments_ends_a_worker_with_4(shell, broker_url):
    """The message names the queue and the difference; nothing is changed or deleted."""
    async with await aio_pika.connect(broker_url) as connection, connection.channel() as channel:
        await channel.declare_queue("mail", durable=True)
    ended = await shell.arun("worker", "shop:app", "-q", "mail")
    assert ended.returncode == 4
    assert "error: " in ended.stderr
    assert "'mail'" in ended.stderr
    assert "x-dead-letter-exchange" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_command_line_has_the_last_word_on_the_broker(offline_shell):
    """Even where the app's code names one."""
    (offline_shell.folder / "fixed.py").write_text(
        "from asyncq import AsyncQ\n"
        "app = AsyncQ('fixed', broker='amqp://127.0.0.1:2/')\n"
        "@app.task\n"
        "async def nothing() -> None: ...\n"
    )
    ended = offline_shell.run(
        "worker", "fixed:app", "--broker-url", "amqp://127.0.0.1:3/", environment={"ASYNCQ_CONNECT_TIMEOUT_S": "1"}
    )
    assert ended.returncode == 3
    assert "127.0.0.1:3" in ended.stderr
    assert "127.0.0.1:2" not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere:app",), "There is no module 'nowhere'"),
        (("shop:application",), "Its apps: shop:app."),
        (("shop:greet",), "not an AsyncQ app"),
        (("shop",), "for example shop:app"),
        (("empty:app",), "has no tasks"),
        (("broken:app",), 'broken.py", line 1'),
        (("shop:app", "-q", "mail:0"), "from 1 to 2000"),
        (("shop:app", "-q", "mail.dead"), "mail.dead"),
        (("shop:app", "-q", "mail", "-q", "mail:2"), "given twice"),
        (("shop:app", "--broker-url", "amqp://"), "amqp://user:password@host"),
    ],
)
def test_a_worker_that_cannot_start_exits_with_2_and_says_why(refusing, offline_shell, arguments, said):
    """One message, before anything is connected."""
    (offline_shell.folder / "empty.py").write_text("from asyncq import AsyncQ\napp = AsyncQ('empty')\n")
    (offline_shell.folder / "broken.py").write_text("import not_there_at_all\n")
    ended = refusing("worker", *arguments)
    assert ended.exit_code == 2, ended.stderr
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


EXITING = """
import asyncio
import sys

from asyncq import AsyncQ

app = AsyncQ("exiting")


async def leave() -> None:
    {statement}
    await asyncio.sleep(0.01)


@app.task
async def child() -> None:
    await asyncio.wait_for(asyncio.gather(leave(), asyncio.sleep(0.05)), 5)


@app.task
async def fine() -> str:
    return "as ever"
"""


@pytest.mark.parametrize(
    ("statement", "failed"),
    [("sys.exit(3)", "SystemExit"), ("raise KeyboardInterrupt", "KeyboardInterrupt"), ("_LOOP_STOP", None)],
)
async def test_code_that_ends_the_loop_from_a_task_of_its_own_does_not_end_the_worker(shell, statement, failed):
    """Such an exit goes through asyncio to whoever runs the loop: the task fails, and the next one runs as ever."""
    statement = statement.replace("_LOOP_STOP", "asyncio.get_running_loop().stop()")
    (shell.folder / "exiting.py").write_text(EXITING.replace("{statement}", statement))
    worker = shell.start("worker", "exiting:app")
    await worker.says("worker consumes")
    called = await shell.arun("call", "exiting.child", "{}", "--queue", "exiting")
    assert called.returncode == (1 if failed else 0)
    assert failed is None or failed in called.stderr
    called = await shell.arun("call", "exiting.fine", "{}", "--queue", "exiting")
    assert "as ever" in called.stdout
    assert "tried to end the worker" in worker.stderr
    worker.signal()
    assert await worker.ends() == 0
