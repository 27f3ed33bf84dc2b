"""`asyncq worker --processes`: started, watched, restarted and stopped, as people and process managers do it."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys

import pytest

from asyncq import AsyncQ
from supervised import Supervised, alive, children_of, zombies_of
from support import eventually

pytestmark = pytest.mark.any_version


async def send(shell, task, count=1, **arguments):
    """Send some tasks of the app `pids`."""
    async with AsyncQ("pids", broker=shell.environment["ASYNCQ_BROKER_URL"]) as app:
        for number in range(count):
            given = {"folder": str(shell.folder), **arguments}
            if task == "note":
                given = {"key": str(number), **given}
            await app.send(f"pids.{task}", given, reply=False)


async def test_so_many_processes_consume_and_one_signal_drains_them_all(shell, management):
    """Each with its own slots; the supervisor ends with 0 when all have ended, and says how often it restarted one."""
    supervised = Supervised(shell, "--processes", "3", "--slots", "2")
    await supervised.consumes(3)
    await eventually(lambda: _has_consumers(management, 6))
    assert len(set(supervised.started())) == 3
    (starting,) = supervised.lines("supervisor starting")
    assert starting["pid"] == supervised.pid
    assert {line["process"] for line in supervised.lines("worker consumes")} == {1, 2, 3}
    await send(shell, "slow", 3)
    await eventually(lambda: len(supervised.in_slow()) >= 1)
    supervised.running.signal()
    await supervised.said("stopping; once more stops at once", 3)
    (shell.folder / "go").touch()
    assert await supervised.running.ends() == 0
    assert not any(alive(pid) for pid in supervised.started())
    assert supervised.lines("all worker processes have ended")[0]["restarts"] == 0
    assert all(line["level"] == "info" for line in supervised.lines())


async def _has_consumers(management, count, queue="pids"):
    return len(await management.consumers(queue)) == count


async def test_a_process_that_is_killed_is_started_again_and_the_others_go_on(shell):
    """After a pause, because it died quickly; what it ran goes to the others."""
    supervised = Supervised(shell, "--processes", "2", "--slots", "1")
    await supervised.consumes(2)
    first, second = supervised.started()
    os.kill(first, signal.SIGKILL)
    (ended,) = await supervised.said("worker process ended, starting it again")
    assert ended["pid"] == first
    assert ended["how"] == "killed by SIGKILL, perhaps for want of memory"
    assert ended["in_s"] == 0.5
    assert ended["level"] == "error"
    await supervised.consumes(3)
    assert supervised.lines("worker process started")[-1]["restarts"] == 1
    assert supervised.lines("worker process started")[-1]["process"] == ended["process"]
    assert alive(second)
    await send(shell, "note", 4)
    await eventually(lambda: len(supervised.ran()) == 4)
    supervised.running.signal()
    assert await supervised.running.ends() == 0
    assert supervised.lines("all worker processes have ended")[0]["restarts"] == 1


async def test_a_process_that_gets_a_signal_of_its_own_drains_and_is_replaced_at_once(shell):
    """That is a rolling restart by hand: one after the other."""
    supervised = Supervised(shell, "--processes", "2")
    await supervised.consumes(2)
    for number, pid in enumerate(supervised.started()):
        os.kill(pid, signal.SIGTERM)
        await supervised.consumes(3 + number)
    ended = supervised.lines("worker process ended, starting it again")
    assert [(line["how"], line["in_s"], line["level"]) for line in ended] == [("drained", 0.0, "info")] * 2
    assert len(set(supervised.started())) == 4
    supervised.running.signal()
    assert await supervised.running.ends() == 0


# --- what cannot start


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere:app",), "There is no module 'nowhere'"),
        (("broken:app",), 'broken.py", line 1'),
        (("shop:app", "--queue", "mail.dead"), "mail.dead"),
    ],
)
def test_an_app_that_cannot_be_loaded_ends_all_with_one_message_and_2(offline_shell, arguments, said):
    """Not one for each process, and none is started again."""
    (offline_shell.folder / "broken.py").write_text("import not_there_at_all\n")
    ended = offline_shell.run("worker", *arguments, "--processes", "3")
    assert ended.returncode == 2
    assert ended.stderr.count("error: ") == 1
    assert said in ended.stderr
    assert "giving up" in ended.stderr
    assert ended.stderr.count("worker process started") == 1
    assert "Traceback" not in ended.stderr


def test_wrong_credentials_end_all_with_one_message_and_4(shell, broker_url):
    """Nobody mends them by trying again."""
    wrong = broker_url.replace("//", "//nobody:wrong-password@").replace(
        broker_url.split("//")[1].split("@")[0] + "@", ""
    )
    ended = shell.run("worker", "shop:app", "--processes", "3", "--broker-url", wrong)
    assert ended.returncode == 4, ended.stderr
    assert ended.stderr.count("error: ") == 1
    assert ended.stderr.count("worker process started") == 1
    assert "wrong-password" not in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_absent_broker_ends_all_after_some_attempts_with_3(offline_shell):
    """With a pause between them: it may be starting."""
    ended = offline_shell.run("worker", "shop:app", "--processes", "3", environment={"ASYNCQ_CONNECT_TIMEOUT_S": "0.2"})
    assert ended.returncode == 3, ended.stderr
    assert ended.stderr.count("worker process started") == 5
    assert "5 worker processes in a row ended before they could consume; the last: broker not reachable" in ended.stderr
    assert "secret-word" not in ended.stderr


# --- stopping


async def test_the_second_signal_stops_all_at_once(shell, management):
    """With the exit code of the signal; no process is left, and what they ran is in its queue again."""
    supervised = Supervised(shell, "--processes", "2", "--slots", "1")
    await supervised.consumes(2)
    await send(shell, "slow", 2)
    await eventually(lambda: len(supervised.in_slow()) == 2)
    supervised.running.signal()
    await supervised.said("stopping; once more stops at once", 2)
    supervised.running.signal()
    assert await supervised.running.ends(timeout=5) == 143
    assert not any(alive(pid) for pid in supervised.started())
    assert await eventually(lambda: management.ready("pids")) == 2


async def test_a_signal_to_every_process_at_once_is_no_second_one(shell):
    """Systemd sends SIGTERM to all of a service, and the supervisor does its part as well: running tasks may finish."""
    supervised = Supervised(shell, "--processes", "2", "--slots", "1")
    await supervised.consumes(2)
    await send(shell, "slow", 2)
    await eventually(lambda: len(supervised.in_slow()) == 2)
    for pid in (*supervised.started(), supervised.pid):
        os.kill(pid, signal.SIGTERM)
    await supervised.said("stopping; once more stops at once", 2)
    (shell.folder / "go").touch()
    assert await supervised.running.ends() == 0
    assert len(supervised.ran()) == 2


async def test_ctrl_c_at_a_terminal_reaches_the_supervisor_alone(shell):
    """A terminal signals the foreground process group: the workers are in groups of their own."""
    supervised = Supervised(shell, "--processes", "2", "--slots", "1")
    await supervised.consumes(2)
    assert os.getpgid(supervised.pid) not in [os.getpgid(pid) for pid in supervised.started()]
    await send(shell, "slow", 1)
    await eventually(lambda: len(supervised.in_slow()) == 1)
    supervised.running.signal(signal.SIGINT)
    lines = await supervised.said("stopping; once more stops at once", 2)
    assert {line["signal"] for line in lines} == {"supervisor"}
    (shell.folder / "go").touch()
    assert await supervised.running.ends() == 0
    assert len(supervised.ran()) == 1


async def test_workers_drain_and_end_when_their_supervisor_is_killed(shell):
    """Their end of the link tells them; nobody is left who could stop them."""
    supervised = Supervised(shell, "--processes", "2", "--slots", "1")
    await supervised.consumes(2)
    await send(shell, "slow", 1)
    await eventually(lambda: len(supervised.in_slow()) == 1)
    (busy,) = supervised.in_slow()
    supervised.running.process.kill()
    await eventually(lambda: [pid for pid in supervised.started() if alive(pid)] == [busy], 20)
    (shell.folder / "go").touch()
    await eventually(lambda: not alive(busy), 20)
    assert len(supervised.ran()) == 1


async def test_what_is_handed_back_is_told_by_the_exit_code(shell, management):
    """5, of one process as of all."""
    supervised = Supervised(shell, "--processes", "2", "--slots", "1", "--drain-timeout", "0.2")
    await supervised.consumes(2)
    await send(shell, "slow", 1)
    await eventually(lambda: len(supervised.in_slow()) == 1)
    supervised.running.signal()
    assert await supervised.running.ends() == 5
    assert {line["how"] for line in supervised.lines("worker process ended")} == {
        "drained",
        "drained, and tasks that took too long were handed back",
    }
    assert await eventually(lambda: management.ready("pids")) == 1


# --- --max-tasks


@pytest.mark.parametrize("processes", [(), ("--processes", "2")])
async def test_after_so_many_tasks_a_process_is_replaced_by_a_new_one(shell, management, processes):
    """It drains first, so every task runs once."""
    supervised = Supervised(shell, "--max-tasks", "5", "--slots", "2", *processes)
    await supervised.consumes(1)
    await send(shell, "note", 23)
    await eventually(lambda: len(supervised.ran()) == 23, 40)
    keys = [key for key, _ in supervised.ran()]
    assert sorted(keys, key=int) == [str(number) for number in range(23)]
    by_process = [[pid for _, pid in supervised.ran()].count(pid) for pid in {pid for _, pid in supervised.ran()}]
    assert len(by_process) >= 4
    assert min(sorted(by_process)[1:]) >= 5  # the last one may still be waiting for its fifth
    assert max(by_process) <= 5 + 2  # what the slots had begun by then
    ended = await supervised.said("worker process ended, starting it again", 3)
    assert {(line["how"], line["in_s"]) for line in ended} == {("asked to be started again", 0.0)}
    supervised.running.signal()
    assert await supervised.running.ends() == 0
    assert await management.ready("pids.dead") == 0


# --- process 1


SUBREAPER = """
import ctypes, os, sys
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER
os.execv(sys.argv[1], sys.argv[1:])
"""


async def test_orphans_are_reaped(shell):
    """As process 1 of a container gets them: here as a subreaper, which is the same for a part of the system."""
    supervised = Supervised(
        shell, *("--processes", "1", "--log-level", "debug"), before=(sys.executable, "-c", SUBREAPER)
    )
    await supervised.consumes(1)
    await send(shell, "leave_a_child_behind")
    await eventually((shell.folder / "orphan-ended").exists)
    await supervised.said("an orphan has ended")
    assert zombies_of(supervised.pid) == []
    supervised.running.signal()
    assert await supervised.running.ends() == 0


def _can_unshare():
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not _can_unshare(), reason="this user may not make PID namespaces")
@pytest.mark.parametrize("arguments", [("--processes", "2"), ()])
async def test_a_worker_drains_as_process_1_of_a_container(shell, arguments):
    """The kernel ignores a signal to process 1 that has no handler."""
    supervised = Supervised(shell, *arguments, before=("unshare", "--pid", "--fork", "--kill-child"))
    await supervised.consumes(2 if arguments else 1)
    (inside,) = children_of(supervised.pid)
    os.kill(inside, signal.SIGTERM)
    assert await supervised.running.ends() == 0
    assert supervised.lines()[0]["pid"] == 1


async def test_the_second_signal_stops_also_a_worker_whose_loop_is_blocked(shell):
    """No code of a task can hold it up; a supervisor says before that it has heard the first one."""
    supervised = Supervised(shell, "--slots", "1", "--processes", "1")
    await supervised.consumes(1)
    await send(shell, "block", 1)
    await eventually(lambda: len(supervised.in_slow()) == 1)
    supervised.running.signal()
    await supervised.said("stopping all worker processes; once more stops at once")
    supervised.running.signal()
    assert await supervised.running.ends(timeout=5) == 143


async def test_the_second_signal_stops_also_a_blocked_worker_on_its_own(shell):
    """Its loop hears neither of the two; its process does."""
    supervised = Supervised(shell, "--slots", "1")
    await supervised.consumes(1)
    await send(shell, "block", 1)
    await eventually(lambda: len(supervised.in_slow()) == 1)

    def ended():
        supervised.running.signal()  # two that come at once are one to the kernel
        return supervised.running.process.poll() is not None

    await eventually(ended, 5)
    assert supervised.running.process.returncode == 143


async def test_sigusr1_tells_what_runs_with_stacks(shell):
    """Tasks that wait, in threads, and one that blocks the loop; the supervisor tells of its processes."""
    supervised = Supervised(shell, "--processes", "2", "--slots", "3")
    await supervised.consumes(2)
    await send(shell, "rest")
    await send(shell, "hold")
    await eventually(lambda: supervised.in_slow() and (shell.folder / "held").exists())
    supervised.running.signal(signal.SIGUSR1)
    lines = await supervised.said("worker process", 2)
    assert [(line["process"], line["state"], line["restarts"]) for line in lines] == [(1, "ready", 0), (2, "ready", 0)]
    assert sorted(line["pid"] for line in lines) == sorted(supervised.started())
    told = {line["task"]: line for line in await supervised.said("running task", 2)}
    assert told["pids.rest"]["stack"].index("await inner_rest(folder)") < told["pids.rest"]["stack"].index(
        "await asyncio.sleep(3600)"
    )
    assert told["pids.hold"]["stack"].count("\n  File ") <= 1
    assert "in hold" in told["pids.hold"]["stack"]
    assert {line["attempt"] for line in told.values()} == {1}
    assert all(line["task_id"] and line["queue"] == "pids" and line["process"] in {1, 2} for line in told.values())
    (shell.folder / "go").touch()
    supervised.running.signal()
    supervised.running.signal(signal.SIGINT)
    assert await supervised.running.ends() in {130, 143}


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_a_task_that_blocks_the_loop_is_named_with_its_stack(shell, loop):
    """By the watchdog, and by SIGUSR1, which needs no loop either."""
    environment = {"ASYNCQ_BLOCKED_LOOP_AFTER_S": "0.3"}
    supervised = Supervised(shell, "--slots", "1", "--loop", loop, environment=environment)
    await supervised.consumes(1)
    await send(shell, "block")
    event = "the event loop is blocked: nothing else runs meanwhile, the heartbeats to the broker included"
    # On a busy machine the worker's own start may take as long; that is told as well, and is not what is looked for.
    lines = await eventually(
        lambda: len(found := [line for line in supervised.lines(event) if line["task"] == "pids.block"]) >= 2 and found,
        20,
    )
    assert all("in block" in line["stack"] and "while True:" in line["stack"] for line in lines)
    assert 0.2 <= lines[0]["blocked_s"] < lines[1]["blocked_s"]
    supervised.running.signal(signal.SIGUSR1)
    (told,) = await supervised.said("running task")
    assert told["task"] == "pids.block"
    assert "in block" in told["stack"]
    supervised.running.process.kill()


# --- --reload


async def test_changed_code_is_run_by_new_processes(shell):
    """Also the first version that works after one that did not."""
    supervised = Supervised(shell, "--reload")
    await supervised.consumes(1)
    code = (shell.folder / "pids.py").read_text()
    (shell.folder / "pids.py").write_text(code.replace("{key} {os.getpid()}", "new-{key} {os.getpid()}"))
    (changed,) = await supervised.said("code changed, restarting")
    assert changed["files"] == ["pids.py"]
    await supervised.consumes(2)
    await send(shell, "note")
    await eventually(lambda: [key for key, _ in supervised.ran()] == ["new-0"])

    (shell.folder / "pids.py").write_text("this is no Python\n")
    (failed,) = await supervised.said("worker process ended, waiting for a change of the code")
    assert failed["how"] == "wrong configuration"
    (shell.folder / "pids.py").write_text(code)
    await supervised.consumes(3)
    supervised.running.signal()
    assert await supervised.running.ends() == 0


async def test_code_that_is_wrong_from_the_start_is_waited_for(shell):
    """Whoever develops corrects it and need not start the worker again."""
    (shell.folder / "wrong.py").write_text("import not_there_at_all\n")
    supervised = Supervised(shell, "--reload", "--processes", "2", target="wrong:app")
    await supervised.said("worker process ended, waiting for a change of the code")
    (shell.folder / "wrong.py").write_text("from pids import app\n")
    await supervised.consumes(2)
    supervised.running.signal()
    assert await supervised.running.ends() == 0


async def test_a_running_task_gets_two_seconds_when_the_code_changes(shell, management):
    """Then it is handed back, and the new code runs it from its beginning."""
    watched = shell.folder / "watched"
    watched.mkdir()
    supervised = Supervised(shell, "--reload", "--reload-dir", "watched", "--slots", "1")
    await supervised.consumes(1)
    await send(shell, "slow")
    await eventually(lambda: len(supervised.in_slow()) == 1)
    (shell.folder / "elsewhere.py").write_text("x = 1\n")
    (watched / "notes.txt").write_text("no code\n")
    (watched / "code.py").write_text("x = 1\n")
    (changed,) = await supervised.said("code changed, restarting")
    assert changed["files"] == ["code.py"]
    await eventually(lambda: len(supervised.in_slow()) == 2, 30)
    (shell.folder / "go").touch()
    await eventually(lambda: [key for key, _ in supervised.ran()] == ["slow"])
    supervised.running.signal()
    assert await supervised.running.ends() == 0


# --- wrong options


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--processes", "0"), "--processes"),
        (("--processes", "257"), "--processes"),
        (("--processes", "many"), "--processes"),
        (("--max-tasks", "0"), "--max-tasks"),
        (("--max-tasks", "1.5"), "--max-tasks"),
        (("--loop", "trio"), "--loop"),
        (("--reload-dir", "."), "give --reload as well"),
        (("--reload", "--reload-dir", "nowhere"), "--reload-dir nowhere: there is no such folder"),
    ],
)
def test_options_that_cannot_be_used_are_refused_with_2(refusing, arguments, said):
    """Before any process is started."""
    ended = refusing("worker", "shop:app", *arguments)
    assert ended.exit_code == 2, ended.stderr
    assert said in ended.stderr
    assert "worker process started" not in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("package", "arguments"), [("watchfiles", ("--reload",)), ("uvloop", ("--loop", "uvloop", "--processes", "2"))]
)
def test_an_extra_that_is_not_installed_is_asked_for_by_name(refusing, monkeypatch, package, arguments):
    """One message, with the command that installs it."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find_spec(name))
    ended = refusing("worker", "shop:app", *arguments)
    assert ended.exit_code == 2
    assert f"the package {package}, which is not installed" in ended.stderr
    assert "pip install 'asyncq[" in ended.stderr


# --- event loops


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_both_event_loops_drain_and_stop_at_once(shell, management, loop, number):
    """The loops handle signals in ways of their own."""
    supervised = Supervised(shell, "--loop", loop, "--slots", "2")
    await supervised.consumes(1)
    await send(shell, "note", 20)
    await eventually(lambda: len(supervised.ran()) == 20)
    await send(shell, "slow", 1)
    await eventually(lambda: len(supervised.in_slow()) == 1)
    supervised.running.signal(number)
    await supervised.said("stopping; once more stops at once")
    (shell.folder / "go").touch()
    assert await supervised.running.ends() == 0
    (shell.folder / "go").unlink()

    again = Supervised(shell, "--loop", loop, "--slots", "1")
    await again.consumes(1)
    await send(shell, "slow", 1)
    await eventually(lambda: len(again.in_slow()) == 2)
    again.running.signal(number)
    await again.said("stopping; once more stops at once")
    again.running.signal(number)
    assert await again.running.ends(timeout=5) == 128 + number
    assert await eventually(lambda: management.ready("pids")) == 1
