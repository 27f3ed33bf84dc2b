"""The demo: as a whole with a real broker and without any, and that its checks can say no."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from PIL import Image

import http_call
import images
import services
from asyncq.status import TaskState, TaskStatus
from demo import by_schedule, checks, notice_service, repair, samples, upload
from demo.settings import DemoError, Run
from demo.stage import SLOTS, DeadTask
from demo.story import Outcomes, notice_of
from demo.upload import Uploaded
from support import eventually

pytestmark = pytest.mark.any_version

WORKERS = Path(images.__file__).parent


def start_demo(broker_url, output, **environment):
    """Start the demo with one painted picture, beside the one that is cut short."""
    return subprocess.Popen(
        [sys.executable, "-m", "demo"],
        cwd=WORKERS,
        env={
            **os.environ,
            "ASYNCQ_BROKER_URL": broker_url,
            "DEMO_OUTPUT": str(output),
            "DEMO_SAMPLES": "1",
            "BROKER": "",
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def processes_of(folder):
    """Return the processes that have a folder's name in their command line or environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            known = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in known and int(process.name) != os.getpid():
            found.append(process.name)
    return found


needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")


async def whole_run(*arguments, **environment):
    """Run the demo to its end and return what it said."""
    demo = start_demo(*arguments, **environment)
    output, _ = await asyncio.to_thread(demo.communicate, timeout=100)
    assert demo.returncode == 0, output
    assert "All of it is true." in output
    assert " NO " not in output
    return output


@needs_proc
async def test_the_demo_is_right_beside_another_one_that_was_left_up(broker_url, management, tmp_path):
    """KEEP=1 leaves workers and dead letters; the next run has its own, and leaves nothing."""
    kept, passing = tmp_path / "kept", tmp_path / "passing"
    output = await whole_run(broker_url, kept, KEEP="1")
    (command,) = re.findall(r"kill ([\d ]+\d)", output)
    pids = [int(pid) for pid in command.split()]
    try:
        await whole_run(broker_url, passing)
        assert not processes_of(passing)
        queues = await management.queues()
        left = [name for name in queues if name.startswith("demo-")]
        (run,) = kept.iterdir()
        assert len(left) == 14
        assert all(name.startswith(f"demo-{run.name}.") for name in left)
        leaders = [name for name in queues if name.startswith("asyncq.scheduler.demo-")]
        assert leaders == [f"asyncq.scheduler.demo-{run.name}.maintenance"]
        assert len(processes_of(kept)) == 12  # with the ml worker, and the process of its tasks
        (page,) = re.findall(r"http://127.0.0.1:\d+/(?=   # upload)", output)
        async with httpx.AsyncClient(trust_env=False) as client:
            assert "<form>" in (await client.get(page)).text
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
    await eventually(lambda: not processes_of(kept), timeout=30)


@needs_proc
async def test_an_interrupted_demo_cleans_up(broker_url, tmp_path):
    """Ctrl-C while the workers are busy: all processes end, and the exit code says so."""
    demo = start_demo(broker_url, tmp_path, DEMO_SAMPLES="3")
    await eventually(lambda: list(tmp_path.glob("*/converted/webp/*.webp")), timeout=60)
    demo.send_signal(signal.SIGINT)
    output, _ = await asyncio.to_thread(demo.communicate, timeout=60)
    assert demo.returncode == 130, output
    assert not processes_of(tmp_path)


@needs_proc
async def test_a_demo_that_nobody_reads_cleans_up(broker_url, tmp_path):
    """As with `make demo | head`: the pipe is closed early, and the run goes to its end."""
    demo = start_demo(broker_url, tmp_path)
    demo.stdout.readline()
    demo.stdout.close()
    assert await asyncio.to_thread(demo.wait, 100) == 0
    assert not processes_of(tmp_path)


WATCHED = """
import sys

EVENTS = ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.system", "socket.connect")


def note(event, args):
    if event in EVENTS:
        with open({log!r}, "a") as file:
            print(event, args[1], file=file)


sys.addaudithook(note)
"""
NOBODY = "amqp://nobody:nothing@127.0.0.1:1/"


async def test_without_rabbitmq_the_demo_is_right_and_needs_nobody_else(tmp_path):
    """BROKER=memory: the same checks hold; only the network has a process, and only its own servers are spoken to."""
    log = tmp_path / "events"
    (tmp_path / "sitecustomize.py").write_text(WATCHED.format(log=str(log)))
    output = await whole_run(NOBODY, tmp_path / "out", BROKER="memory", PYTHONPATH=str(tmp_path))
    for told in ("It took three attempts", "dead-letter queue holds exactly the 1 failed task", "left out, since"):
        assert told in output
    (run,) = tmp_path.glob("out/*")
    mail, notices, files = (
        f"socket.connect ('127.0.0.1', {json.loads((run / 'logs' / name).read_text().splitlines()[0])['port']})"
        for name in ("smtp.jsonl", "notices.jsonl", "files.jsonl")
    )
    (port,) = re.findall(r"web service: in this process, port (\d+)", output)
    # httpx loads trio where it is installed, as it is here for Selenium, and that one looks a library up.
    events = [line for line in log.read_text().splitlines() if "ldconfig" not in line]
    web = f"socket.connect ('127.0.0.1', {port})"
    connections = Counter(event for event in events if event.startswith("socket"))
    assert connections.pop(files) > 0
    assert connections == {mail: 3, notices: 2, web: 1}
    (started,) = (event for event in events if not event.startswith("socket"))
    assert "asyncq.worker.process_pool.child" in started


async def test_an_interrupted_demo_without_rabbitmq_ends(tmp_path):
    """Ctrl-C while the workers are busy in the demo's own process."""
    demo = start_demo(NOBODY, tmp_path, BROKER="memory", DEMO_SAMPLES="3")
    await eventually(lambda: list(tmp_path.glob("*/converted/webp/*.webp")), timeout=60)
    demo.send_signal(signal.SIGINT)
    output, _ = await asyncio.to_thread(demo.communicate, timeout=60)
    assert demo.returncode == 130, output
    assert "stopping the workers" in output
    assert "was cancelled" not in output


@pytest.mark.parametrize("content", [None, b"no picture"])
def test_a_folder_without_pictures_is_told_so(tmp_path, content):
    """Before anything is started."""
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DemoError, match="holds no picture"):
        samples.take_all(tmp_path, tmp_path / "to")


def test_the_users_pictures_are_taken_with_their_folders(tmp_path):
    """And stay as they are: what is cut short is a copy."""
    source, to = tmp_path / "source", tmp_path / "to"
    (source / "sub").mkdir(parents=True)
    to.mkdir()
    for name in ("a.jpg", "sub/b.PNG"):
        Image.effect_noise((64, 64), 90).save(source / name)
    before = (source / "a.jpg").read_bytes()
    names = samples.take_all(source, to)
    assert names == ["a.jpg", "sub/b.PNG"]
    assert samples.cut_short(to, names) == samples.TRUNCATED
    assert (to / samples.TRUNCATED).read_bytes() == before[: len(before) // 2]
    assert (source / "a.jpg").read_bytes() == before
    assert not samples.decodes(to / samples.TRUNCATED)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_pictures_with_names_in_an_old_encoding_are_taken(tmp_path):
    """Two names that look alike in UTF-8 stay two pictures."""
    (tmp_path / "to").mkdir()
    (tmp_path / "source").mkdir()
    for name in (b"gr\xfc\xdfe.png", b"gr\xfd\xdfe.png"):
        Image.effect_noise((64, 64), 90).save(os.path.join(os.fsencode(tmp_path / "source"), name), "PNG")  # noqa: PTH118
    names = samples.take_all(tmp_path / "source", tmp_path / "to")
    assert len(set(names)) == 2
    assert all((tmp_path / "to" / name.encode().decode()).is_file() for name in names)


def test_what_is_cut_short_begins_as_a_picture(tmp_path):
    """A file that only calls itself a JPEG does not serve; where there is none at all, one is painted."""
    (tmp_path / "a.jpg").write_bytes(b"no picture at all")
    samples.cut_short(tmp_path, ["a.jpg"])
    assert samples.readable(tmp_path / samples.TRUNCATED)
    assert not samples.decodes(tmp_path / samples.TRUNCATED)


@pytest.fixture
def converted(tmp_path, image_settings):
    """A run with one picture, really converted, and the checks' view of it."""
    run = Run("test", tmp_path)
    image_settings(input_dir=run.pictures, output_dir=run.converted, thumbnail_edges=(64,))
    Image.effect_noise((200, 100), 90).save(run.pictures / "a.jpg")
    content = (run.pictures / "a.jpg").read_bytes()
    (run.pictures / samples.TRUNCATED).write_bytes(content[: len(content) // 2])
    outcomes = Outcomes(images.describe("a.jpg"))
    outcomes.converted["a.jpg"] = images.convert_picture("a.jpg", lambda *_: None)
    outcomes.failed[samples.TRUNCATED] = None

    def failed():
        found = checks.check_pictures(run, ["a.jpg", samples.TRUNCATED], outcomes)
        return [check.sentence for check in found if not check.holds]

    return run, outcomes, failed


def test_the_checks_hold_for_what_is_right(converted):
    """Otherwise the next tests would prove nothing."""
    assert converted[2]() == []


@pytest.mark.parametrize("harm", ["cut", "swap", "remove", "leftover"])
def test_the_checks_notice_what_is_wrong_on_disk(converted, harm):
    """A file cut short, of other dimensions, missing, or one too many."""
    run, outcomes, failed = converted
    webp = run.converted / outcomes.converted["a.jpg"].webp.path
    match harm:
        case "cut":
            webp.write_bytes(webp.read_bytes()[:-100])
        case "swap":
            webp.write_bytes((run.converted / outcomes.converted["a.jpg"].thumbnails[0].path).read_bytes())
        case "remove":
            webp.unlink()
        case "leftover":
            webp.with_suffix(".tmp").touch()
    assert len(failed()) >= 1


def test_the_checks_notice_a_sound_picture_that_failed(converted):
    """A worker that dead-letters everything does not pass."""
    _, outcomes, failed = converted
    del outcomes.converted["a.jpg"]
    outcomes.failed["a.jpg"] = None
    assert any("no picture that can be decoded did" in sentence for sentence in failed())


def test_the_checks_notice_dead_letters_that_are_missing_or_too_many():
    """Exactly what failed, with the right error type, and nothing in the other queues."""

    class Failure:
        type = "images.BrokenPictureError"

    outcomes = Outcomes(None, failed={samples.TRUNCATED: Failure}, task_ids={samples.TRUNCATED: "t1"})
    right = {**{worker: [] for worker in SLOTS}, "images": [DeadTask("t1", Failure.type)]}
    assert all(check.holds for check in checks.check_dead_letters(right, outcomes))
    for wrong in (
        {**right, "images": []},
        {**right, "images": right["images"] * 2},
        {**right, "images": [DeadTask("t2", Failure.type)]},
        {**right, "images": [DeadTask("t1", "builtins.OSError")]},
        {**right, "mail": [DeadTask("t3", "x")]},
        {**right, "services": [DeadTask("t3", "x")]},
        {**right, "maintenance": [DeadTask("t3", "x")]},
    ):
        assert not all(check.holds for check in checks.check_dead_letters(wrong, outcomes))


@pytest.mark.parametrize(
    ("replayed", "dead", "whole", "holds"),
    [(1, set(), True, True), (0, set(), True, False), (1, {"t1"}, True, False), (1, set(), False, False)],
)
def test_the_checks_notice_a_repair_that_did_not_happen(tmp_path, replayed, dead, whole, holds):
    """No letter was sent back, it is still there, or nothing came of it."""
    run = Run.create(tmp_path)
    Image.effect_noise((40, 30), 90).save(run.pictures / samples.TRUNCATED)
    if whole:
        (run.converted / "webp").mkdir(parents=True)
        Image.effect_noise((40, 30), 90).save(run.converted / "webp" / f"{samples.TRUNCATED}.webp")
    outcomes = Outcomes(None, failed={samples.TRUNCATED: None}, task_ids={samples.TRUNCATED: "t1"})
    assert all(check.holds for check in repair.checks_of(run, outcomes, replayed, dead)) == holds


def test_the_whole_picture_takes_the_place_of_its_half(tmp_path):
    """That of the user, or the painted one."""
    Image.effect_noise((400, 300), 90).save(tmp_path / "a.jpg")
    samples.cut_short(tmp_path, ["a.jpg"])
    samples.make_whole(tmp_path, ["a.jpg"])
    assert (tmp_path / samples.TRUNCATED).read_bytes() == (tmp_path / "a.jpg").read_bytes()


@pytest.fixture
async def noticed(tmp_path, service_settings):
    """A run with a notice that a real service took at the second attempt, and the checks' view of it."""
    run = Run.create(tmp_path)
    figures = SimpleNamespace(column="KB", total=Decimal("1.50"))
    outcomes = Outcomes(None, report=SimpleNamespace(path="r.html", size_bytes=5, figures=[figures]))
    outcomes.notice_task_id = "task-1"
    request = services.ServiceRequest(service="notices", method="POST", path="/notices", body=notice_of(outcomes))
    notices = notice_service.Notices(run.notices, run.notice_log)
    async with notice_service.listening(notices) as port, http_call.open_client() as client:
        context = SimpleNamespace(task_id="task-1", attempt=1, resources=services.Resources(client))
        service_settings(base_urls={"notices": f"http://127.0.0.1:{port}"})
        with pytest.raises(services.Retry):
            await services.call_service(context, request)
        context.attempt = 2
        outcomes.answer = await services.call_service(context, request)
        again = await services.call_service(context, request)
    assert (outcomes.answer.status, again.status) == (201, 200)  # known, and not kept twice
    first, refused, accepted, _ = [json.loads(line) for line in run.notice_log.read_text().splitlines()]

    def failed(gap=1.0):
        accepted["at"] = refused["at"] + gap
        run.notice_log.write_text("".join(f"{json.dumps(event)}\n" for event in (first, refused, accepted)))
        return [check.sentence for check in checks.check_notice(run, outcomes, 120) if not check.holds]

    return run, outcomes, failed


async def test_the_checks_hold_for_a_notice_that_came_as_asked(noticed):
    """Otherwise the next test would prove nothing."""
    assert noticed[2]() == []


@pytest.mark.parametrize("harm", ["remove", "twice", "other words", "attempt", "early", "by the policy", "no answer"])
async def test_the_checks_notice_what_is_wrong_with_the_notice(noticed, harm):
    """Missing, kept twice, not what was sent, at another attempt, or not when the service asked for it."""
    run, outcomes, failed = noticed
    kept = run.notices / "task-1.json"
    match harm:
        case "remove":
            kept.unlink()
        case "twice":
            (run.notices / "task-2.json").write_bytes(kept.read_bytes())
        case "other words":
            kept.write_text(kept.read_text().replace("1.50", "1.5"))
        case "attempt":
            outcomes.answer.attempt = 1
        case "no answer":
            outcomes.answer = None
    assert failed({"early": 0.9, "by the policy": 60}.get(harm, 1.0))


@pytest.mark.parametrize(
    ("changes", "status"),
    [({"path": "/other"}, 404), ({"body": None}, 400), ({"body": "x" * 2_000_000}, 413), ({"method": "GET"}, 501)],
)
async def test_the_notice_service_refuses_what_is_no_notice(tmp_path, service_settings, changes, status):
    """And keeps nothing."""
    request = {"service": "notices", "method": "POST", "path": "/notices", "body": {}, "statuses": [status], **changes}
    notices = notice_service.Notices(tmp_path, tmp_path / "log", refusals=0)
    async with notice_service.listening(notices) as port, http_call.open_client() as client:
        service_settings(base_urls={"notices": f"http://127.0.0.1:{port}"})
        context = SimpleNamespace(task_id="task-1", attempt=1, resources=services.Resources(client))
        answer = await services.call_service(context, services.ServiceRequest(**request, answer="nothing"))
    assert answer.status == status
    assert not list(tmp_path.glob("*.json"))


STATUS = {"state": "started", "progress": None, "result": None, "error": None}


@pytest.fixture
def uploaded(converted):
    """What a client saw of a picture that was really converted."""
    run, outcomes, _ = converted
    result = json.loads(outcomes.converted["a.jpg"].model_dump_json())
    statuses = [
        {**STATUS, "progress": {"done": 0, "total": 3}},
        {**STATUS, "progress": {"done": 3, "total": 3}, "state": "succeeded", "result": result},
    ]
    shown = (run.converted / result["thumbnails"][0]["path"]).read_bytes()
    return run, Uploaded(statuses, {"status": "succeeded", "result": result}, shown)


def test_the_checks_hold_for_an_upload_that_went_well(uploaded):
    """Otherwise the next test would prove nothing."""
    assert all(check.holds for check in upload.checks_of(*uploaded))


@pytest.mark.parametrize("harm", ["no end", "backwards", "half", "other answer", "other picture", "no picture"])
def test_the_checks_notice_what_is_wrong_with_an_upload(uploaded, harm):
    """Events that do not end, go back or stop early; an answer or a picture that is another one."""
    run, seen = uploaded
    first, last = seen.statuses
    changed = {
        "no end": {"statuses": [first]},
        "backwards": {"statuses": [{**first, "progress": {"done": 5, "total": 3}}, last]},
        "half": {"statuses": [first, {**last, "progress": {"done": 2, "total": 3}}]},
        "other answer": {"asked": {"status": "succeeded", "result": {**seen.asked["result"], "seconds": -1.0}}},
        "other picture": {"shown": seen.shown[:-1]},
        "no picture": {"shown": b""},
    }[harm]
    assert sum(not check.holds for check in upload.checks_of(run, replace(seen, **changed))) >= 1


def health_check(app="demo-x.maintenance", second=2, late_s=0.1, name="health"):
    """Return what the result store tells of a check."""
    fire_time = datetime(2026, 1, 1, 12, 0, second, tzinfo=UTC)
    id_ = f"{app}.{name}@{fire_time:%Y-%m-%dT%H:%M:%S}.000Z"
    return TaskStatus(id_, TaskState.SUCCEEDED, started_at=fire_time + timedelta(seconds=late_s))


def failed_of(statuses, noted):
    """Return the checks that do not hold for a check every 2 seconds."""
    found = by_schedule.HealthChecks(statuses, noted)
    return [check for check in by_schedule.checks_of(found, "demo-x.maintenance", 2.0) if not check.holds]


def test_the_checks_hold_for_what_ran_by_its_schedule():
    """Otherwise the next test would prove nothing. A check that is under way is in the journal only."""
    assert not failed_of([health_check(), health_check(second=4)], 2)
    assert not failed_of([health_check(), health_check(second=4)], 3)


@pytest.mark.parametrize(
    ("second", "noted"),
    [
        (None, 1),
        (health_check(second=4), 1),
        (health_check(second=3), 2),
        (health_check(second=4, late_s=-0.1), 2),
        (health_check(second=4, name="daily-report"), 2),
        (health_check(second=4, app="maintenance"), 2),
        (TaskStatus("01a2188e-df4b-7dd0", TaskState.SUCCEEDED), 2),
    ],
    ids=["one only", "not in the journal", "no fire time", "early", "another schedule", "another app", "sent by hand"],
)
def test_the_checks_notice_what_did_not_run_by_its_schedule(second, noted):
    """Too few, not done, or not sent by the schedule."""
    assert failed_of([health_check(), *([second] if second else [])], noted)
