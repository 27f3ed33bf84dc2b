"""The sample workers as programs: `asyncq worker ...` processes, a real broker, real mail and HTTP servers."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import images
import mail
import reports
import services
from asyncq import AsyncQ, TaskFailed, TaskRejected, Unroutable
from http_server import Reply, http_serving
from support import eventually

pytestmark = pytest.mark.any_version

WORKERS = Path(mail.__file__).parent
RESULT_S = 30


@pytest.fixture
async def producer(broker_url):
    """An app that sends by name: it needs no code of the workers, and has the test's broker."""
    async with AsyncQ("tests", broker=broker_url) as app:
        yield app


@pytest.fixture
def run_worker(broker_url, tmp_path):
    """Start one of the workers with settings from the environment, stop it afterwards."""
    with contextlib.ExitStack() as running:

        def run(name, slots=2, **environment):
            log = running.enter_context((tmp_path / f"{name}.log").open("wb"))
            process = subprocess.Popen(
                [sys.executable, "-m", "asyncq", "worker", f"{name}:app", "--slots", str(slots)],
                cwd=WORKERS,
                env={**os.environ, "ASYNCQ_BROKER_URL": broker_url, **environment},
                stdout=log,
                stderr=log,
            )
            running.callback(process.wait, timeout=30)
            running.callback(process.terminate)

        yield run


async def send(producer, task, argument, queue):
    """Send as soon as the worker has declared its queue."""

    async def sent():
        with contextlib.suppress(Unroutable):
            return await producer.send(task, argument, queue=queue)
        return None

    return await eventually(sent, timeout=30)


def dead_letters(broker_url, queue):
    """Return what `asyncq dead list --json` says."""
    output = subprocess.run(
        [sys.executable, "-m", "asyncq", "dead", "list", queue, "--json", "--broker-url", broker_url],
        check=True,
        capture_output=True,
        timeout=60,
    ).stdout
    return [json.loads(line) for line in output.splitlines()]


def mail_environment(tmp_path, port):
    """Return the mail worker's settings, with quick retries."""
    return {
        "MAIL_SMTP_HOST": "127.0.0.1",
        "MAIL_SMTP_PORT": str(port),
        "MAIL_SENDER": "us@example.org",
        "MAIL_ATTACHMENTS_DIR": str(tmp_path),
        "MAIL_RETRY_FIRST_S": "0.2",
    }


LETTER = mail.Letter(to="you@example.org", subject="Hi", values={"body": "text"})


async def test_a_mail_that_is_put_off_twice_arrives_at_the_third_attempt(producer, run_worker, mail_server, tmp_path):
    """451 is not the end: the delay ladder brings the task back, and it answers once."""
    mail_server.answers = ["451 4.7.1 later", "451 4.7.1 later"]
    run_worker("mail", **mail_environment(tmp_path, mail_server.port))
    handle = await send(producer, "mail.send_email", LETTER, "mail")
    receipt = mail.Receipt.model_validate(await handle.result(RESULT_S))
    assert receipt.attempt == 3
    assert receipt.message_id == f"<{handle.id}@example.org>"
    assert len(mail_server.mails) == 1
    assert f"Message-ID: {receipt.message_id}".encode() in mail_server.mails[0]


async def test_a_mail_that_is_refused_for_good_is_dead_lettered_at_once(
    producer, run_worker, mail_server, tmp_path, broker_url
):
    """550: the server is asked once, and its words are in the dead letter."""
    mail_server.answers = ["550 5.1.1 no such user"]
    run_worker("mail", **mail_environment(tmp_path, mail_server.port))
    handle = await send(producer, "mail.send_email", LETTER, "mail")
    with pytest.raises(TaskRejected, match=r"550 5\.1\.1 no such user"):
        await handle.result(RESULT_S)
    (letter,) = dead_letters(broker_url, "mail")
    assert (letter["id"], letter["attempts"]) == (handle.id, 1)
    assert "550 5.1.1 no such user" in letter["error_message"]
    assert mail_server.asked == 1


async def test_a_mail_server_that_stays_away_uses_the_attempts_up(producer, run_worker, tmp_path, broker_url):
    """The recorded error is the last attempt's own."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening
        run_worker("mail", **mail_environment(tmp_path, taken.getsockname()[1]), MAIL_MAX_ATTEMPTS="2")
        handle = await send(producer, "mail.send_email", LETTER, "mail")
        with pytest.raises(TaskFailed) as caught:
            await handle.result(RESULT_S)
    assert "SMTPConnectError" in caught.value.type
    (letter,) = dead_letters(broker_url, "mail")
    assert letter["attempts"] == 2


async def test_a_picture_is_converted_in_a_thread_and_tells_how_far_it_is(producer, run_worker, tmp_path):
    """Progress comes from the thread, in order, and the result names files that are there."""
    Image.effect_noise((800, 600), 90).save(tmp_path / "a.jpg")
    run_worker("images", IMAGES_INPUT_DIR=str(tmp_path), IMAGES_OUTPUT_DIR=str(tmp_path / "out"))
    handle = await send(producer, "images.convert", {"source": "a.jpg"}, "images")
    updates = [update async for update in handle.updates()]
    done = images.Converted.model_validate(await handle.result(RESULT_S))
    assert [update.label for update in updates] == ["decoding", "WebP", "thumbnail 320", "thumbnail 1024", "done"]
    assert all((tmp_path / "out" / output.path).is_file() for output in (done.webp, *done.thumbnails))
    facts = await producer.call("images.describe", {"source": "a.jpg"}, queue="images")
    assert images.PictureFacts.model_validate(facts) == done.source


async def test_a_picture_cut_short_is_dead_lettered_at_its_first_attempt(producer, run_worker, tmp_path, broker_url):
    """With the error's type and the file's name."""
    Image.effect_noise((800, 600), 90).save(tmp_path / "whole.jpg")
    content = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    run_worker("images", IMAGES_INPUT_DIR=str(tmp_path), IMAGES_OUTPUT_DIR=str(tmp_path / "out"))
    handle = await send(producer, "images.convert", {"source": "cut.jpg"}, "images")
    with pytest.raises(TaskFailed, match=r"cut\.jpg cannot be decoded") as caught:
        await handle.result(RESULT_S)
    (letter,) = dead_letters(broker_url, "images")
    assert (letter["id"], letter["attempts"]) == (handle.id, 1)
    assert letter["error_type"] == caught.value.type == "images.BrokenPictureError"


async def test_a_conversion_that_takes_too_long_stops_at_its_next_part(producer, run_worker, tmp_path):
    """The thread keeps its only slot until it has seen that it shall stop; then the slot works on."""
    Image.effect_noise((3000, 3000), 90).save(tmp_path / "large.jpg")
    folders = {"IMAGES_INPUT_DIR": str(tmp_path), "IMAGES_OUTPUT_DIR": str(tmp_path / "out")}
    run_worker("images", slots=1, IMAGES_TIME_LIMIT_S="1", IMAGES_WEBP_EFFORT="6", **folders)
    handle = await send(producer, "images.convert", {"source": "large.jpg"}, "images")
    with pytest.raises(TaskFailed, match="TimeLimitExceeded"):
        await handle.result(RESULT_S)
    await producer.call("images.describe", {"source": "large.jpg"}, queue="images", timeout=RESULT_S)
    assert not (tmp_path / "out" / "thumbnails").exists()


async def test_a_report_is_built_from_a_csv_file(producer, run_worker, tmp_path):
    """Decimals survive the way back, and the bad row is named."""
    (tmp_path / "sales.csv").write_text("region,revenue\nnorth,0.10\nsouth,0.20\nnorth,0.10\nwest,lots\n")
    run_worker("reports", REPORTS_INPUT_DIR=str(tmp_path), REPORTS_OUTPUT_DIR=str(tmp_path / "out"))
    order = reports.Order(source="sales.csv", title="Sales", label="region", numbers=["revenue"])
    handle = await send(producer, "reports.build_report", order, "reports")
    report = reports.Report.model_validate(await handle.result(RESULT_S))
    assert str(report.figures[0].total) == "0.40"
    assert [(row.line, row.problem) for row in report.bad_rows] == [(5, "revenue is not a number: 'lots'")]
    assert "<svg " in (tmp_path / "out" / report.path).read_text()


def services_environment(http_server, **changes):
    """Return the services worker's settings, with quick retries, and a breaker that stays out of the way."""
    given = {
        "SERVICES_BASE_URLS": json.dumps({"shop": http_server.url}),
        "SERVICES_RETRY_FIRST_S": "0.1",
        "SERVICES_BREAKER_FAILURES": "1000",
        "no_proxy": "127.0.0.1",
    }
    return {**given, **changes}


def get(path, service="shop"):
    """Return a request."""
    return services.ServiceRequest(service=service, path=path)


async def test_a_service_that_fails_in_every_temporary_way_answers_in_the_end(producer, run_worker, http_server):
    """Each task gets its answer at the attempt that was not disturbed, never early, and always by one key."""
    attempts = {
        "/seconds-then-date": [Reply(503, in_seconds="1"), Reply(503, at_date=2)],
        "/slow-down": [Reply(429, in_seconds="1")],
        "/twice": [Reply(500), Reply(500)],
        "/cut": [Reply(cut=True)],
        "/hang": [Reply(hang=True)],
        "/drip": [Reply(body=b"[" + b" " * 100 + b"]", drip_s=0.1)],
        "/well": [],
    }
    http_server.replies.update({path: list(replies) for path, replies in attempts.items()})
    limits = {"SERVICES_READ_TIMEOUT_S": "4", "SERVICES_CALL_TIMEOUT_S": "6"}
    run_worker("services", slots=8, **services_environment(http_server, **limits))
    handles = {path: await send(producer, "services.call_service", get(path), "services") for path in attempts}
    for path, handle in handles.items():
        answer = services.ServiceAnswer.model_validate(await handle.result(RESULT_S))
        asked = http_server.asked(path)
        assert (path, answer.attempt, len(asked)) == (path, len(attempts[path]) + 1, len(attempts[path]) + 1)
        assert {request.key for request in asked} == {handle.id}
    first, second, third = (request.at for request in http_server.asked("/seconds-then-date"))
    assert second - first >= 1
    assert third - second >= 2
    first, second = (request.at for request in http_server.asked("/slow-down"))
    assert second - first >= 1


async def test_answers_that_will_not_change_are_dead_lettered_at_once(producer, run_worker, http_server, broker_url):
    """Under the error's own type, with what was answered; the service is asked once for each."""
    http_server.replies = {
        "/missing": Reply(404, b"no such thing"),
        "/moved": Reply(302, b"", {"Location": "/login"}),
        "/page": Reply(200, b"<html>", {"Content-Type": "text/html"}),
        "/large": Reply(200, b"x" * 100_000),
    }
    run_worker("services", slots=4, **services_environment(http_server, SERVICES_ANSWER_MAX_BYTES="50000"))
    handles = {
        path: await send(producer, "services.call_service", get(path), "services") for path in http_server.replies
    }
    for path, handle in handles.items():
        with pytest.raises(TaskFailed, match=f"GET {http_server.url}{path} answered"):
            await handle.result(RESULT_S)
    letters = {letter["id"]: letter for letter in dead_letters(broker_url, "services")}
    found = {path: letters[handle.id]["error_type"].removeprefix("http_call.") for path, handle in handles.items()}
    assert found == {
        "/missing": "UnexpectedStatusError",
        "/moved": "UnexpectedStatusError",
        "/page": "BadAnswerError",
        "/large": "BadAnswerError",
    }
    assert {letter["attempts"] for letter in letters.values()} == {1}
    assert len(http_server.requests) == 4


async def test_a_failure_keeps_all_tasks_away_from_its_service_and_costs_them_no_attempts(
    producer, run_worker, http_server
):
    """One call fails and opens the breaker: the next call is made two seconds later, and nobody else has lost."""
    http_server.replies["/"] = [Reply(500)]
    breaker = {"SERVICES_BREAKER_FAILURES": "1", "SERVICES_BREAKER_OPEN_S": "2"}
    run_worker("services", slots=1, **services_environment(http_server, **breaker))
    handles = [await send(producer, "services.call_service", get("/"), "services") for _ in range(10)]
    answers = [services.ServiceAnswer.model_validate(await handle.result(RESULT_S)) for handle in handles]
    assert sorted(answer.attempt for answer in answers) == [1] * 9 + [2]
    assert len(http_server.requests) == 11
    assert http_server.requests[1].at - http_server.requests[0].at >= 2


async def test_a_service_that_is_not_there_does_not_hold_up_another_one(producer, run_worker, http_server):
    """Nobody listens at its port; its tasks are done when somebody does."""
    away = socket.socket()
    away.bind(("127.0.0.1", 0))  # bound, not listening
    urls = json.dumps({"shop": http_server.url, "away": f"http://127.0.0.1:{away.getsockname()[1]}"})
    breaker = {"SERVICES_BREAKER_FAILURES": "1", "SERVICES_BREAKER_OPEN_S": "0.3", "SERVICES_MAX_ATTEMPTS": "100"}
    run_worker("services", slots=1, **services_environment(http_server, SERVICES_BASE_URLS=urls, **breaker))
    handles = [await send(producer, "services.call_service", get("/", "away"), "services") for _ in range(10)]
    other = await send(producer, "services.call_service", get("/other"), "services")
    assert (await other.result(RESULT_S))["attempt"] == 1
    async with http_serving(away) as back:
        answers = [services.ServiceAnswer.model_validate(await handle.result(RESULT_S)) for handle in handles]
        assert sorted(request.key for request in back.requests) == sorted(handle.id for handle in handles)
    assert max(answer.attempt for answer in answers) > 1


async def test_the_ml_worker_trains_in_a_process_that_keeps_to_its_limits(producer, run_worker, tmp_path):
    """Progress from the process; at the soft limit what there is; at the hard one the end, and the worker goes on."""
    models = tmp_path / "models"
    run_worker("ml", ML_MODELS_DIR=str(models))
    training = {"model": "digits", "epochs": 8}
    handle = await send(producer, "ml.train", training, "ml")
    updates = [(update.done, update.total) async for update in handle.updates()]
    trained = await handle.result(RESULT_S)
    assert (trained["epochs"], trained["complete"]) == (8, True)
    assert updates[-1] == (8, 8)
    endless = {"model": "endless", "epochs": 10_000, "hidden": 500}
    trained = await producer.call("ml.train", endless, queue="ml", soft_time_limit=3, timeout=RESULT_S)
    assert not trained["complete"]
    assert 0 < trained["epochs"] < 10_000
    assert {path.name for path in models.iterdir()} == {"digits.joblib", "endless.joblib"}
    with pytest.raises(TaskFailed, match=r"longer than its time limit of 1 s"):
        await producer.call("ml.train", {**endless, "model": "lost"}, queue="ml", time_limit=1, timeout=RESULT_S)
    answer = await producer.call("ml.predict", {"model": "digits", "pictures": [[0] * 64]}, queue="ml")
    assert len(answer["digits"]) == 1
    assert not (models / "lost.joblib").exists()
