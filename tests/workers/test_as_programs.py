"""The sample workers as programs: `asyncq worker ...` processes, a real broker, a real mail server."""

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
from asyncq import AsyncQ, TaskFailed, TaskRejected, Unroutable
from support import eventually

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
