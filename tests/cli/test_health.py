"""`asyncq health`, `/healthz` and `/readyz`: what a probe is told of a worker, whatever happens to it."""

import asyncio
import json
import os
import shutil
import signal
import socket
import tempfile

import pytest

from asyncq import AsyncQ
from health_probe import get, metrics_url, probe
from supervised import Supervised
from support import eventually


@pytest.fixture
def own_shell(shell):
    """A folder with an app, whose workers are seen by nobody else's `asyncq health`."""
    shell.environment["TMPDIR"] = tempfile.mkdtemp(prefix="aq-", dir="/tmp")  # pytest's are too long for a socket
    yield shell
    shutil.rmtree(shell.environment["TMPDIR"])


async def health(shell, *arguments):
    """Return the exit code and what `asyncq health` prints."""
    done = await shell.arun("health", *arguments)
    assert done.stderr == ""
    return done.returncode, done.stdout.strip()


async def is_told(shell, code, words, *arguments, timeout=30):
    """Wait until `asyncq health` ends with this code and says this."""

    async def told():
        said = await health(shell, *arguments)
        assert said[0] == code, said
        assert words in said[1], said
        return True

    await eventually(told, timeout)


async def send(shell, task, **arguments):
    """Send a task of the app, and let its worker answer."""
    async with AsyncQ("shop", broker=shell.environment["ASYNCQ_BROKER_URL"]) as app:
        return await app.send(f"shop.{task}", {"folder": str(shell.folder)} | arguments, queue="slow")


async def test_a_probe_finds_the_worker_without_a_port_from_its_start_to_its_end(own_shell):
    """Nobody; ready; draining is alive and not ready; nobody, and nothing is left behind."""
    shell = own_shell
    code, said = await health(shell)
    assert (code, said.startswith("No worker or scheduler of this user runs here")) == (1, True)
    worker = shell.start("worker", "shop:app")
    await worker.says("worker consumes")
    pid = worker.process.pid
    await is_told(shell, 0, f"worker shop:app, process {pid}: ready")
    code, said = await health(shell, "--json", "--pid", str(pid))
    (report,) = json.loads(said)["reports"]
    assert (code, report["state"], report["pid"], report["alive"], report["ready"]) == (0, "ready", pid, True, True)
    assert (await health(shell, "--pid", "1"))[0] == 1
    await send(shell, "slow")
    await eventually((shell.folder / "started").exists)
    worker.signal()
    await is_told(shell, 1, "stopping")
    assert (await health(shell, "--alive"))[0] == 0
    (shell.folder / "go").touch()
    assert await worker.ends() == 0
    assert (await health(shell))[0] == 1
    assert not list((shell.folder / "/").glob(f"{shell.environment['TMPDIR']}/asyncq-*/*.sock"))


async def test_a_stuck_event_loop_is_told_while_it_is_stuck_and_is_not_alive(own_shell):
    """By both addresses; a loop that goes on is ready again."""
    shell = own_shell
    (shell.folder / "stuck.py").write_text(
        "import time\nfrom pathlib import Path\nfrom asyncq import AsyncQ\napp = AsyncQ('shop')\n"
        "@app.task(queue='slow')\nasync def block(folder: Path) -> None:\n"
        "    while not (folder / 'go').exists():\n        time.sleep(0.02)\n"
    )
    environment = {"ASYNCQ_STUCK_LOOP_AFTER_S": "1"}
    worker = shell.start("worker", "stuck:app", "--metrics-port", "0", environment=environment)
    url = await metrics_url(worker)
    await eventually(lambda: probe(url, "/readyz")[0] == 200, 20)
    assert probe(url, "/healthz")[0] == 200
    assert get(url + "/")[0] == 404
    await send(shell, "block")
    status, report = await eventually(lambda: (found := probe(url, "/healthz"))[0] == 503 and found, 20)
    assert (report["state"], report["alive"], report["ready"]) == ("stuck", False, False)
    assert "its event loop has not answered for" in report["processes"][0]["detail"]
    port = url.rpartition(":")[2]
    code, said = await health(shell, "--alive", "--port", port)
    assert (code, "stuck: its event loop" in said) == (1, True)
    await is_told(shell, 1, "stuck", "--alive")
    (shell.folder / "go").touch()
    await is_told(shell, 0, "ready")


async def test_a_frozen_worker_does_not_answer_and_the_command_says_so(own_shell):
    """It waits as long as it was told to, and not for ever."""
    worker = own_shell.start("worker", "shop:app")
    await worker.says("worker consumes")
    worker.signal(signal.SIGSTOP)
    try:
        code, said = await health(own_shell, "--timeout", "0.5")
        assert (code, f"process {worker.process.pid} did not answer within 0.5 s" in said) == (1, True)
        answer = json.loads((await health(own_shell, "--timeout", "0.5", "--json"))[1])
        assert (answer["ok"], answer["reports"], len(answer["errors"])) == (False, [], 1)
    finally:
        worker.signal(signal.SIGCONT)
    await is_told(own_shell, 0, "ready")


async def test_a_worker_is_not_ready_while_the_broker_is_blocked_or_away_and_lives(private_node, tmp_path, own_shell):
    """An alarm and a broker that was killed are nothing that a restart of the worker helps against."""
    shell = own_shell
    shell.environment["ASYNCQ_BROKER_URL"] = private_node.url
    worker = shell.start("worker", "shop:app")
    await worker.says("worker consumes")
    await is_told(shell, 0, "ready")
    await send(shell, "slow")
    await eventually((shell.folder / "started").exists)
    await asyncio.to_thread(private_node.rabbitmqctl, "set_vm_memory_high_watermark", "0.00001")
    try:
        (shell.folder / "go").touch()  # the broker tells who publishes: here, the reply
        await is_told(shell, 1, "blocked: The broker's memory or disk alarm is on.")
        assert (await health(shell, "--alive"))[0] == 0
    finally:
        await asyncio.to_thread(private_node.rabbitmqctl, "set_vm_memory_high_watermark", "0.6")
    await is_told(shell, 0, "ready")
    await asyncio.to_thread(private_node.kill)
    await is_told(shell, 1, "connecting")
    assert (await health(shell, "--alive"))[0] == 0
    await asyncio.to_thread(private_node.start)
    await is_told(shell, 0, "ready", timeout=60)


async def test_a_worker_that_the_broker_refuses_from_now_on_is_not_alive(private_node, own_shell):
    """Its user was deleted; what it runs may finish, and meanwhile the probe says what is wrong."""
    shell = own_shell
    private_node.api("PUT", "/users/temporary", {"password": "secret-word", "tags": ""})
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    private_node.api("PUT", "/permissions/%2F/temporary", everything)
    host = private_node.url.rpartition("@")[2]
    shell.environment["ASYNCQ_BROKER_URL"] = f"amqp://temporary:secret-word@{host}"
    worker = shell.start("worker", "shop:app")
    await worker.says("worker consumes")
    await send(shell, "slow")
    await eventually((shell.folder / "started").exists)
    private_node.api("DELETE", "/users/temporary")
    for connection in private_node.api("GET", "/connections"):
        if connection["user"] == "temporary":
            private_node.api("DELETE", "/connections/" + connection["name"].replace(" ", "%20").replace(">", "%3E"))
    await is_told(shell, 1, "refused", "--alive")
    assert "secret-word" not in (await health(shell))[1]
    (shell.folder / "go").touch()
    assert await worker.ends(60) == 4


async def test_a_supervisor_answers_for_all_its_processes(own_shell):
    """Ready when each is; one that is frozen makes it all not alive; one that was killed, not ready."""
    shell = own_shell
    supervised = Supervised(
        shell, "--processes", "2", "--metrics-port", "0", environment={"ASYNCQ_STUCK_LOOP_AFTER_S": "2"}
    )
    url = await metrics_url(supervised.running)
    await is_told(shell, 0, f"worker pids:app, process {supervised.pid}: ready (2 processes)")
    assert probe(url, "/readyz")[0] == 200
    first, second = supervised.started()
    os.kill(second, signal.SIGSTOP)
    try:
        await is_told(shell, 1, "process 2: silent: nothing was heard from it for", "--alive")
        assert probe(url, "/healthz")[0] == 503
    finally:
        os.kill(second, signal.SIGCONT)
    await is_told(shell, 0, "ready")
    os.kill(second, signal.SIGKILL)
    os.kill(first, signal.SIGKILL)
    await eventually(lambda: len(supervised.started()) == 4, 30)
    await is_told(shell, 0, "ready (2 processes)")
    report = probe(url, "/readyz")[1]
    assert [process["pid"] for process in report["processes"]] == [
        line["pid"] for line in sorted(supervised.lines("worker process started")[2:], key=lambda line: line["process"])
    ]


async def test_a_scheduler_is_ready_when_it_stands_by(own_shell):
    """It has the same probes as a worker."""
    (own_shell.folder / "plan.py").write_text(
        "from asyncq import AsyncQ\napp = AsyncQ('shop')\n"
        "@app.task\nasync def tick() -> None: ...\napp.schedule('often', tick.s(), 3600)\n"
    )
    scheduler = own_shell.start("scheduler", "plan:app", "--metrics-port", "0")
    url = await metrics_url(scheduler)
    await is_told(own_shell, 0, "scheduler plan:app")
    assert probe(url, "/readyz")[1]["role"] == "scheduler"
    scheduler.signal()
    assert await scheduler.ends() == 0


@pytest.mark.parametrize("more", [[], ["--processes", "2"]])
async def test_a_port_that_is_taken_is_told_before_anything_runs(offline_shell, more):
    """With what to do about it, and the exit code of a wrong configuration."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = await offline_shell.arun("worker", "shop:app", "--metrics-port", port, *more)
    assert done.returncode == 2
    assert f"Metrics cannot be served on 127.0.0.1:{port}: Address already in use" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("more", [[], ["--processes", "2"]])
async def test_without_the_extra_the_message_says_what_to_install(offline_shell, more):
    """As on a machine that has not got it."""
    (offline_shell.folder / "sitecustomize.py").write_text("import sys\nsys.modules['prometheus_client'] = None\n")
    environment = {"PYTHONPATH": str(offline_shell.folder)}
    done = await offline_shell.arun("worker", "shop:app", "--metrics-port", "0", *more, environment=environment)
    assert done.returncode == 2
    assert "pip install 'asyncq[metrics]'" in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_port_in_the_code_of_an_app_is_refused_under_a_supervisor_that_cannot_know_it(shell):
    """It would silently serve nothing."""
    (shell.folder / "coded.py").write_text(
        "from asyncq import AsyncQ\napp = AsyncQ('shop', metrics_port=0)\n@app.task\nasync def task() -> None: ...\n"
    )
    done = await shell.arun("worker", "coded:app", "--processes", "2")
    assert done.returncode == 2
    assert "--metrics-port, or ASYNCQ_METRICS_PORT" in done.stderr


def test_options_that_contradict_each_other_are_refused(in_process):
    """By a message, not by guessing."""
    for arguments in (["--host", "example.org"], ["--port", "1", "--pid", "1"]):
        done = in_process.run("health", *arguments)
        assert done.exit_code == 2
        assert "Traceback" not in done.output
