"""`asyncq health`, `/healthz` and `/readyz`: what a probe is told of a worker, whatever happens to it."""

import asyncio
import contextlib
import http.server
import json
import os
import shutil
import signal
import socket
import tempfile
import threading
from pathlib import Path
from urllib.parse import quote

import pytest
from typer.testing import CliRunner

from asyncq import AsyncQ
from asyncq.cli.application import application
from asyncq.testing.node.management import ManagementError
from health_probe import get, metrics_url, probe
from proxy import proxy_of
from supervised import Supervised
from support import eventually


@pytest.fixture
def own_shell(shell, monkeypatch):
    """A folder with an app, whose workers are seen by nobody else's `asyncq health`."""
    folder = tempfile.mkdtemp(prefix="aq-", dir="/tmp")  # pytest's are too long for a socket
    shell.environment["TMPDIR"] = folder
    monkeypatch.setattr(tempfile, "tempdir", folder)
    yield shell
    shutil.rmtree(folder)


async def health(_shell, *arguments):
    """Return the exit code and what `asyncq health` prints: in this process, which is faster."""
    done = await asyncio.to_thread(CliRunner().invoke, application, ["health", *arguments])
    assert done.stderr == ""
    return done.exit_code, done.stdout.strip()


def sockets_in(shell):
    """Return the sockets that are left."""
    return list(Path(shell.environment["TMPDIR"]).glob("asyncq-*/*.sock"))


def systemd(shell):
    """Return the socket of a systemd that wants to hear of its unit."""
    heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    heard.bind(shell.environment["TMPDIR"] + "/notify")
    heard.settimeout(10)
    return heard


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


@pytest.mark.any_version
async def test_a_probe_finds_the_worker_without_a_port_from_its_start_to_its_end(own_shell):
    """Nobody; ready; draining is alive and not ready; nobody, and nothing is left behind."""
    shell = own_shell
    code, said = await health(shell)
    assert (code, said.startswith("No worker or scheduler of this user runs here")) == (1, True)
    worker = shell.start("worker", "shop:app")
    await worker.says("worker consumes")
    pid = worker.process.pid
    await is_told(shell, 0, f"worker shop:app, process {pid}: ready")
    program = await shell.arun("health")
    assert (program.returncode, program.stdout) == (0, f"worker shop:app, process {pid}: ready\n")
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
    assert not sockets_in(shell)


@pytest.mark.any_version
async def test_a_stuck_event_loop_is_told_while_it_is_stuck_and_is_not_alive(own_shell):
    """By both addresses; a loop that goes on is ready again."""
    shell = own_shell
    (shell.folder / "stuck.py").write_text(
        "import time\nfrom pathlib import Path\nfrom asyncq import AsyncQ\napp = AsyncQ('shop')\n"
        "@app.task(queue='slow')\nasync def block(folder: Path) -> None:\n"
        "    while not (folder / 'go').exists():\n        time.sleep(0.02)\n"
    )
    with systemd(shell) as told:
        environment = {"ASYNCQ_STUCK_LOOP_AFTER_S": "1", "NOTIFY_SOCKET": told.getsockname()}
        worker = shell.start("worker", "stuck:app", "--metrics-port", "0", environment=environment)
        url = await metrics_url(worker)
        await eventually(lambda: probe(url, "/readyz")[0] == 200, 20)
        await eventually(lambda: "READY=1" in told.recv(4096).decode())
    assert probe(url, "/healthz")[0] == 200
    assert get(url + "/")[0] == 404
    await send(shell, "block")
    _, report = await eventually(lambda: (found := probe(url, "/healthz"))[0] == 503 and found, 20)
    assert (report["state"], report["alive"], report["ready"]) == ("stuck", False, False)
    assert "its event loop has not answered for" in report["processes"][0]["detail"]
    port = url.rpartition(":")[2]
    code, said = await health(shell, "--alive", "--port", port)
    assert (code, "stuck: its event loop" in said) == (1, True)
    await is_told(shell, 1, "stuck", "--alive")
    (shell.folder / "go").touch()
    await is_told(shell, 0, "ready")


@pytest.mark.any_version
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


async def test_a_worker_is_not_ready_while_the_broker_is_blocked_or_away_and_lives(private_node, own_shell):
    """An alarm and a lost connection are nothing that a restart of the worker helps against."""
    shell = own_shell
    async with proxy_of(private_node.url) as proxy:
        shell.environment["ASYNCQ_BROKER_URL"] = proxy.url
        worker = shell.start("worker", "shop:app")
        await is_told(shell, 0, "ready")
        await proxy.refuse()
        await is_told(shell, 1, "connecting")
        assert (await health(shell, "--alive"))[0] == 0
        await proxy.listen()
        await is_told(shell, 0, "ready", timeout=60)
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
        worker.signal()
        assert await worker.ends(60) == 0


async def test_a_worker_that_the_broker_refuses_from_now_on_ends_and_the_probe_says_that_there_is_none(
    private_node, own_shell
):
    """Its user was deleted: no waiting helps, and the exit code tells whoever supervises it."""
    shell = own_shell
    private_node.api("PUT", "/users/temporary", {"password": "secret-word", "tags": ""})
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    private_node.api("PUT", "/permissions/%2F/temporary", everything)
    host = private_node.url.rpartition("@")[2]
    shell.environment["ASYNCQ_BROKER_URL"] = f"amqp://temporary:secret-word@{host}"
    worker = shell.start("worker", "shop:app")
    await is_told(shell, 0, "ready")
    private_node.api("DELETE", "/users/temporary")
    for connection in private_node.api("GET", "/connections"):
        if connection["user"] == "temporary":
            with contextlib.suppress(ManagementError):  # it has ended by itself
                private_node.api("DELETE", "/connections/" + quote(connection["name"]))
    assert await worker.ends(60) == 4
    assert (await health(shell, "--alive"))[0] == 1


@pytest.mark.any_version
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
    await eventually(lambda: len(supervised.started()) == 3, 30)
    await is_told(shell, 0, "ready (2 processes)")
    report = probe(url, "/readyz")[1]
    assert [process["pid"] for process in report["processes"]] == [first, supervised.started()[2]]


@pytest.mark.any_version
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


@pytest.mark.any_version
async def test_a_port_in_the_code_of_an_app_is_refused_under_a_supervisor_that_cannot_know_it(shell):
    """It would silently serve nothing."""
    (shell.folder / "coded.py").write_text(
        "from asyncq import AsyncQ\napp = AsyncQ('shop', metrics_port=0)\n@app.task\nasync def task() -> None: ...\n"
    )
    done = await shell.arun("worker", "coded:app", "--processes", "2")
    assert done.returncode == 2
    assert "--metrics-port, or ASYNCQ_METRICS_PORT" in done.stderr


@pytest.mark.any_version
def test_whoever_does_not_answer_or_is_somebody_else_is_told_in_words(in_process):
    """A port where nobody listens, and one where something else does."""
    done = in_process.run("health", "--port", "1")
    assert (done.exit_code, done.output) == (1, "127.0.0.1:1 cannot be asked: Connection refused\n")
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as other:
        threading.Thread(target=other.handle_request, daemon=True).start()
        done = in_process.run("health", "--port", str(other.server_port))
    assert (done.exit_code, "but not as a worker or a scheduler of asyncq" in done.output) == (1, True)


@pytest.mark.any_version
def test_options_that_contradict_each_other_are_refused(in_process):
    """By a message, not by guessing."""
    for arguments in (["--host", "example.org"], ["--port", "1", "--pid", "1"]):
        done = in_process.run("health", *arguments)
        assert done.exit_code == 2
        assert "Traceback" not in done.output
