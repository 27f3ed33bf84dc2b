"""A web service on loopback that takes notices, and is not ready for the first one.

The first requests are answered with 503 and `Retry-After`. Then a notice is kept on disk under its
`Idempotency-Key`; one whose key is known is answered again, and not kept twice. What it says goes into a log of JSON
lines, whose first line names the port. It is also a program of its own, which outlives the demo where that is asked
for:

    python -m demo.notice_service NOTICES_FOLDER LOG_FILE [REFUSALS]
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import sys
import threading
from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import time
from typing import Any

REFUSALS = 1
RETRY_AFTER_S = 1
LARGEST = 1024 * 1024
KEY = re.compile(r"[A-Za-z0-9-]{1,100}")


class Notices:
    """What the service keeps. Its requests come in threads.

    Args:
        folder: Gets one `.json` file for each notice.
        log: The log file.
        refusals: How many requests are put off at first.
    """

    def __init__(self, folder: Path, log: Path, refusals: int = REFUSALS) -> None:
        self.folder = folder
        self.log = log
        self.refusals = refusals
        self.refused = 0
        self.lock = threading.Lock()

    def note(self, event: str, **details: Any) -> None:
        """Append a line to the log."""
        with self.log.open("a") as file:
            file.write(json.dumps({"at": round(time(), 3), "event": event, **details}) + "\n")

    def take(self, key: str, content: bytes) -> tuple[int, dict[str, Any]]:
        """Return status and answer for a notice, which may be put off, kept, or known already."""
        try:
            notice = json.loads(content)
        except ValueError:
            return 400, {"error": "a notice is JSON"}
        if not KEY.fullmatch(key):
            return 400, {"error": "a notice needs an Idempotency-Key of letters, digits and '-'"}
        with self.lock:
            if self.refused < self.refusals:
                self.refused += 1
                self.note("refused", code=503, time_no=self.refused, key=key, retry_after_s=RETRY_AFTER_S)
                return 503, {"error": "not ready yet"}
            target = self.folder / f"{key}.json"
            code = 200 if target.exists() else 201
            temporary = target.with_suffix(".tmp")
            temporary.write_text(json.dumps(notice, indent=2))
            temporary.replace(target)
            self.note("accepted", code=code, key=key, file=target.name)
            return code, {"id": key}


class Server(ThreadingHTTPServer):
    """The HTTP side, on a free port of the loopback interface."""

    daemon_threads = True

    def __init__(self, notices: Notices) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.notices = notices


class Handler(BaseHTTPRequestHandler):
    """One connection, with one request."""

    server: Server
    timeout = 10  # seconds that a client may leave it waiting

    def do_POST(self) -> None:
        """Take a notice."""
        given = self.headers.get("Content-Length", "")
        length = int(given) if given.isdecimal() else 0
        content = self.rfile.read(min(length, LARGEST))
        if self.path != "/notices":
            self.answer(404, {"error": "there is only /notices"})
        elif length > LARGEST:
            self.drop(length - LARGEST)
            self.answer(413, {"error": f"a notice has at most {LARGEST} bytes"})
        else:
            self.answer(*self.server.notices.take(self.headers.get("Idempotency-Key", ""), content))

    def drop(self, length: int) -> None:
        """Read what is not wanted: a connection that is closed over unread bytes takes the answer with it."""
        while length > 0 and (part := self.rfile.read(min(length, LARGEST))):
            length -= len(part)

    def answer(self, status: int, value: dict[str, Any]) -> None:
        """Send an answer as JSON."""
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if status == 503:
            self.send_header("Retry-After", str(RETRY_AFTER_S))
        if "id" in value:
            self.send_header("Location", f"/notices/{value['id']}")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the standard library's name
        """Say nothing: what matters is in the log."""


@contextlib.asynccontextmanager
async def listening(notices: Notices) -> AsyncIterator[int]:
    """Serve on a free port of the loopback interface, which is what it yields, until the block ends."""
    with Server(notices) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="notice service")
        serving.start()
        try:
            port = server.server_address[1]
            notices.note("listening", port=port)
            yield port
        finally:
            await asyncio.to_thread(server.shutdown)
            serving.join()


async def serve(notices: Notices) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with listening(notices):
        await stop.wait()


if __name__ == "__main__":
    folder_name, log_name, *rest = sys.argv[1:]
    asyncio.run(serve(Notices(Path(folder_name), Path(log_name), *(int(number) for number in rest[:1]))))
