"""The sample service as a program: uvicorn, the workers that it sends to, a real broker, a result store, a browser."""

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from PIL import Image

import mail
from browser import browsing
from demo import samples
from support import eventually

pytestmark = pytest.mark.any_version

WORKERS = Path(mail.__file__).parent
SHOWN_S = 60
EDGES = [320, *range(800, 1900, 100)]


class Service:
    """The service and its workers, as processes of their own.

    Attributes:
        url: Where the service is.
        folder: Pictures are in `in` and `out` there, and the logs beside them.
    """

    def __init__(self, broker_url, folder):
        self.folder = folder
        self.environment = {
            **os.environ,
            "ASYNCQ_BROKER_URL": broker_url,
            "ASYNCQ_RESULTS": f"sqlite:///{folder}/results.db",
            "IMAGES_INPUT_DIR": str(folder / "in"),
            "IMAGES_OUTPUT_DIR": str(folder / "out"),
            "IMAGES_THUMBNAIL_EDGES": json.dumps(EDGES),
            "MAIL_SMTP_HOST": "127.0.0.1",
            "MAIL_SENDER": "us@example.org",
            "WEB_UPLOAD_MAX_BYTES": "20000000",
            "ASYNCQ_PROGRESS_INTERVAL_S": "0.05",
        }
        self.running = contextlib.ExitStack()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self, name, *arguments, **environment):
        """Start a Python module as a program in the folder of the workers; it ends with the test."""
        log = self.running.enter_context((self.folder / f"{name}.log").open("wb"))
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=WORKERS,
            env={**self.environment, **environment},
            stdout=log,
            stderr=log,
        )
        self.running.callback(process.wait, timeout=30)
        self.running.callback(process.terminate)
        return process

    def work(self, name, **environment):
        """Start a worker."""
        return self.start(name, "asyncq", "worker", f"{name}:app", "--slots", "2", **environment)

    def serve(self):
        """Start the service, by the documented command, and wait until it answers."""
        options = ["--port", str(self.port), "--timeout-graceful-shutdown", "3"]
        process = self.start("web", "uvicorn", "web:api", *options)
        deadline = time.monotonic() + SHOWN_S
        while True:
            assert process.poll() is None, (self.folder / "web.log").read_text()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return process
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.fixture
def service(broker_url, tmp_path):
    """The service, with nothing running yet."""
    (tmp_path / "in").mkdir()
    service = Service(broker_url, tmp_path)
    with service.running:
        yield service


@pytest.fixture
async def client(service):
    """A client of the running service."""
    service.serve()
    async with httpx.AsyncClient(base_url=service.url, trust_env=False, timeout=30) as client:
        yield client


def a_picture(width, height):
    """Return a picture as bytes of JPEG: a gradient with some noise, as cameras make them."""
    noise = Image.effect_noise((width, height), 30)
    picture = Image.merge("RGB", [Image.linear_gradient("L").resize((width, height)), noise, noise.rotate(180)])
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return file.getvalue()


async def ended(client, task_id):
    """Return the task as `GET /task/{id}` shows it in the end."""

    async def look():
        answer = (await client.get(f"/task/{task_id}")).json()
        return answer if answer["status"] in {"succeeded", "failed"} else None

    return await eventually(look, timeout=SHOWN_S)


async def test_a_notification_is_answered_at_once_and_sent_later(service, client, mail_server):
    """The example that everybody knows: an id and a status, then the result."""
    sent = await client.post("/send-notification", json={"to": "you@example.org", "text": "It is done."})
    assert sent.status_code == 202
    task_id = sent.json()["task_id"]
    assert sent.json() == {"task_id": task_id, "status": "queued"}
    assert (await client.get(f"/task/{task_id}")).json() == {"task_id": task_id, "status": "queued"}
    assert mail_server.mails == []
    service.work("mail", MAIL_SMTP_PORT=str(mail_server.port))
    answer = await ended(client, task_id)
    receipt = mail.Receipt.model_validate(answer["result"])
    assert answer["status"] == "succeeded"
    assert (receipt.attempt, len(mail_server.mails)) == (1, 1)
    assert b"It is done." in mail_server.mails[0]
    typed = (await client.get(f"/notifications/{task_id}")).json()
    assert (typed["state"], typed["result"]) == ("succeeded", answer["result"])


async def test_a_notification_that_is_refused_shows_its_error(service, client, mail_server):
    """The mail server's own words."""
    mail_server.answers = ["550 5.1.1 no such user"]
    service.work("mail", MAIL_SMTP_PORT=str(mail_server.port))
    sent = await client.post("/send-notification", json={"to": "nobody@example.org", "text": "Hello?"})
    answer = await ended(client, sent.json()["task_id"])
    assert answer["status"] == "failed"
    assert "550 5.1.1 no such user" in answer["error"]
    assert "result" not in answer


async def test_what_is_no_notification_and_what_is_no_task_is_told_apart(service, client):
    """422 for the first, 404 for the second."""
    assert (await client.post("/send-notification", json={"to": "nobody", "text": "Hello?"})).status_code == 422
    for path in ("/task/no-such-id", "/notifications/no-such-id", "/tasks/no-such-id"):
        assert (await client.get(path)).status_code == 404


async def test_a_picture_that_is_uploaded_is_converted_and_can_be_fetched(service, client):
    """By a route that is a `def`; a picture that is too large is refused."""
    service.work("images")
    sent = await client.post("/pictures", files={"picture": ("../a.jpg", a_picture(900, 600))})
    assert sent.status_code == 202
    answer = await ended(client, sent.json()["task_id"])
    assert (answer["result"]["source"]["width"], answer["result"]["source"]["format"]) == (900, "JPEG")
    thumbnail = await client.get(f"/pictures/{answer['result']['thumbnails'][0]['path']}")
    assert Image.open(io.BytesIO(thumbnail.content)).size == (320, 213)
    assert (await client.get(f"/notifications/{sent.json()['task_id']}")).status_code == 404
    assert (await client.post("/pictures", files={"picture": ("a.jpg", b"x" * 20_000_001)})).status_code == 413


async def test_openapi_shows_what_a_notification_returns(client):
    """Typed by the mail worker's task."""
    document = (await client.get("/openapi.json")).json()
    answer = document["paths"]["/notifications/{task_id}"]["get"]["responses"]["200"]["content"]["application/json"]
    schema = document["components"]["schemas"][answer["schema"]["$ref"].rpartition("/")[2]]
    assert {"$ref": "#/components/schemas/Receipt"} in schema["properties"]["result"]["anyOf"]


WATCH = """
window.seen = [];
new MutationObserver(() => {
  const card = document.querySelector("article");
  if (!card) return;
  const bar = card.querySelector("progress");
  const now = [card.dataset.state, bar.value, bar.max, card.querySelector(".facts").textContent];
  if (JSON.stringify(now) !== JSON.stringify(window.seen.at(-1))) window.seen.push(now);
}).observe(document.querySelector("main"), {subtree: true, childList: true, attributes: true, characterData: true});
"""


def upload(browser, path):
    """Choose a file on the page, and send it."""
    browser.find_element("name", "picture").send_keys(str(path))
    browser.find_element("css selector", "form button").click()


def wait_in(browser, script):
    """Wait until a script on the page returns something true, and return that."""
    deadline = time.monotonic() + SHOWN_S
    while not (value := browser.execute_script(f"return {script}")):
        assert time.monotonic() < deadline, (script, browser.execute_script("return window.seen"))
        time.sleep(0.02)
    return value


MOVING = "window.seen.some(([, done, total]) => done > 1 && done < total)"
SHOWN = "document.querySelector('article img')?.complete"


def test_the_page_shows_the_progress_as_it_comes_and_then_the_picture(service):
    """In a real browser: a bar that moves through several values, in one direction, and an image that was loaded."""
    service.work("images")
    service.serve()
    (service.folder / "mountains.jpg").write_bytes(a_landscape(service.folder, seed=0))
    with browsing(service.folder / "profile") as browser:
        browser.get(service.url)
        browser.execute_script(WATCH)
        upload(browser, service.folder / "mountains.jpg")
        wait_in(browser, MOVING)
        assert browser.get_screenshot_as_png().startswith(b"\x89PNG")
        wait_in(browser, SHOWN)
        shown = browser.execute_script("return document.querySelector('article img').naturalWidth")
        seen = browser.execute_script("return window.seen")
        errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        if "ASYNCQ_SCREENSHOTS" in os.environ:
            picture_for_the_docs(browser, service.folder)
    assert shown == 320
    bar = [done for _, done, total, _ in seen if total == 2 + len(EDGES)]
    assert bar == sorted(bar)
    assert len(set(bar)) >= 4, bar
    assert bar[-1] == 2 + len(EDGES)
    states = list(dict.fromkeys(state for state, *_ in seen))
    assert (states[0], states[-1]) == ("uploading", "succeeded")
    assert "started" in states
    assert any(label.startswith("thumbnail") or label == "WebP" for *_, label in seen)
    assert [entry for entry in errors if "favicon" not in entry["message"]] == []


def a_landscape(folder, *, seed):
    """Return a picture that looks like one, as bytes of JPEG."""
    samples.paint(folder / "landscape.jpg", seed=seed)
    file = io.BytesIO()
    with Image.open(folder / "landscape.jpg") as picture:
        picture.resize((2400, 1800)).save(file, "JPEG", quality=90)
    return file.getvalue()


def picture_for_the_docs(browser, folder):
    """Send a second picture, and take a picture of the page while it is converted: ASYNCQ_SCREENSHOTS=docs/images."""
    (folder / "evening.jpg").write_bytes(a_landscape(folder, seed=2))
    browser.execute_script("window.seen = []")
    upload(browser, folder / "evening.jpg")
    wait_in(browser, MOVING)
    page = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    page = page.quantize(200, dither=Image.Dither.NONE)
    page.save(Path(os.environ["ASYNCQ_SCREENSHOTS"]) / "fastapi-page.png", optimize=True)


def test_the_page_says_why_a_file_is_not_converted(service):
    """It is no picture, and the worker says so."""
    service.work("images")
    service.serve()
    (service.folder / "notes.jpg").write_text("not a picture")
    with browsing(service.folder / "profile") as browser:
        browser.get(service.url)
        upload(browser, service.folder / "notes.jpg")
        wait_in(browser, "document.querySelector('article')?.dataset.state === 'failed'")
        assert "no picture of a format that is known here" in browser.find_element("css selector", ".facts").text
        assert browser.find_elements("css selector", "article img") == []


def test_the_page_cancels_a_picture_that_is_being_converted(service):
    """The worker's thread sees it at its next part, and the page hears of it as of everything else."""
    service.work("images", IMAGES_WEBP_EFFORT="6")
    service.serve()
    (service.folder / "holiday.jpg").write_bytes(a_picture(3000, 2000))
    with browsing(service.folder / "profile") as browser:
        browser.get(service.url)
        upload(browser, service.folder / "holiday.jpg")
        wait_in(browser, "document.querySelector('article')?.dataset.state === 'started'")
        browser.find_element("css selector", ".cancel").click()
        wait_in(browser, "document.querySelector('article')?.dataset.state === 'cancelled'")
        assert browser.find_element("css selector", ".facts").text == "It was cancelled."
        assert browser.find_elements("css selector", "article img") == []
        assert not browser.find_element("css selector", ".cancel").is_displayed()


def test_a_page_that_was_cut_off_in_the_middle_shows_the_end_all_the_same(service):
    """The service is stopped while the browser listens, with its stream open, and started again."""
    serving = service.serve()
    (service.folder / "holiday.jpg").write_bytes(a_picture(600, 400))
    with browsing(service.folder / "profile") as browser:
        browser.get(service.url)
        upload(browser, service.folder / "holiday.jpg")
        wait_in(browser, "document.querySelector('article')?.dataset.state === 'queued'")
        serving.terminate()
        serving.wait(timeout=30)
        assert "Application shutdown complete" in (service.folder / "web.log").read_text()
        service.work("images")
        service.serve()
        wait_in(browser, SHOWN)
        assert browser.find_element("css selector", ".state").text == "succeeded"
