"""The sample workers as modules, each with folders of the test's own, and real mail and HTTP servers."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiosmtpd.smtp import SMTP

WORKERS = Path(__file__).resolve().parents[2] / "workers"
sys.path.insert(0, str(WORKERS))

import files  # noqa: E402 - found by the line above
import images  # noqa: E402
import mail  # noqa: E402
import ml  # noqa: E402
import reports  # noqa: E402
import services  # noqa: E402
from demo import file_server  # noqa: E402
from http_server import HttpServer, http_serving  # noqa: E402


class MailServer:
    """A real SMTP server on loopback that answers as it is told to.

    Attributes:
        port: Where it listens.
        answers: What it says to the next RCPT commands; then it accepts.
        mails: The content of the mails that it took.
    """

    def __init__(self):
        self.port = 0
        self.answers = []
        self.asked = 0
        self.mails = []

    async def handle_RCPT(self, server, session, envelope, address, options):  # noqa: N802 - aiosmtpd's name
        self.asked += 1
        if self.answers:
            return self.answers.pop(0)
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def handle_DATA(self, server, session, envelope):  # noqa: N802 - aiosmtpd's name
        self.mails.append(envelope.content)
        return "250 2.0.0 OK"


@pytest.fixture
async def mail_server() -> AsyncIterator[MailServer]:
    """A running mail server."""
    handler = MailServer()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(handler, hostname="localhost"), "127.0.0.1", 0)
    handler.port = server.sockets[0].getsockname()[1]
    yield handler
    server.close()
    await server.wait_closed()


@pytest.fixture
def mail_settings(tmp_path, monkeypatch):
    """The mail worker's settings; call it with what should be different."""

    def use(**changes):
        given = {"smtp_host": "127.0.0.1", "sender": "us@example.org", "attachments_dir": tmp_path / "attachments"}
        monkeypatch.setattr(mail, "settings", mail.MailSettings(**{**given, **changes}))
        return mail.settings

    (tmp_path / "attachments").mkdir()
    use()
    return use


@pytest.fixture
def image_settings(tmp_path, monkeypatch):
    """The images worker's settings; call it with what should be different."""

    def use(**changes):
        given = {"input_dir": tmp_path / "pictures", "output_dir": tmp_path / "converted"}
        monkeypatch.setattr(images, "settings", images.ImagesSettings(**{**given, **changes}))
        return images.settings

    (tmp_path / "pictures").mkdir()
    use()
    return use


@pytest.fixture
def report_settings(tmp_path, monkeypatch):
    """The reports worker's settings; call it with what should be different."""

    def use(**changes):
        given = {"input_dir": tmp_path / "csv", "output_dir": tmp_path / "reports"}
        monkeypatch.setattr(reports, "settings", reports.ReportsSettings(**{**given, **changes}))
        return reports.settings

    (tmp_path / "csv").mkdir()
    use()
    return use


@pytest.fixture
def ml_settings(tmp_path, monkeypatch):
    """The ml worker's settings, here and in the processes that it starts; they have models of their own."""
    monkeypatch.setenv("ML_MODELS_DIR", str(tmp_path / "models"))
    monkeypatch.setattr(ml, "settings", ml.MlSettings())
    monkeypatch.setattr(ml, "_models", {})
    return ml.settings


@pytest.fixture
async def http_server() -> AsyncIterator[HttpServer]:
    """A running HTTP server."""
    async with http_serving() as server:
        yield server


@pytest.fixture
def service_settings(http_server, monkeypatch):
    """The services worker's settings, with `http_server` as the service `shop`; call it with what should be different.

    Its circuit breakers are as in a new process.
    """

    def use(**changes):
        given = {"base_urls": {"shop": f"{http_server.url}/api"}}
        monkeypatch.setattr(services, "settings", services.ServicesSettings(**{**given, **changes}))
        return services.settings

    monkeypatch.setattr(services, "breakers", {})
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    use()
    return use


@pytest.fixture
async def file_server_url(tmp_path) -> AsyncIterator[str]:
    """A running file server, which has the folder `served`, and puts nobody off."""
    (tmp_path / "served").mkdir()
    kept = file_server.Files(tmp_path / "served", tmp_path / "served.log", refusals=0)
    async with file_server.listening(kept) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def file_settings(tmp_path, file_server_url, monkeypatch):
    """The files worker's settings, with the server above; call it with what should be different."""

    def use(**changes):
        given = {"base_url": file_server_url, "folder": tmp_path / "files"}
        monkeypatch.setattr(files, "settings", files.FilesSettings(**{**given, **changes}))
        return files.settings

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    use()
    return use
