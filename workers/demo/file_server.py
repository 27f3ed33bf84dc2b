"""A file server on loopback: `GET /NAME` and `PUT /NAME` in one folder, as an exchange of files has them.

The first PUTs are answered with 503: a server that is busy. What it says goes into a log of JSON lines, whose first
line names the port. It is also a program of its own:

    python -m demo.file_server FOLDER LOG_FILE [REFUSALS]
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import signal
import sys
import threading
import uuid
from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import time
from typing import Any

REFUSALS = 1
NAME = re.compile(r"/([A-Za-z0-9][A-Za-z0-9._-]{0,199})")
CHUNK_BYTES = 256 * 1024


class Files:
    """What the server keeps. Its requests come in threads.

    Args:
        folder: Where the files are.
        log: The log file.
        refusals: How many uploads are put off at first.
    """

    def __init__(self, folder: Path, log: Path, refusals: int = REFUSALS) -> None:
        self.folder = folder
        self.log = log
        self.refusals = refusals
        self.lock = threading.Lock()

    def note(self, event: str, **details: Any) -> None:
        """Append a line to the log."""
        with self.lock, self.log.open("a") as file:
            file.write(json.dumps({"at": round(time(), 3), "event": event, **details}) + "\n")

    def puts_off(self) -> bool:
        """Tell whether this upload is one of the first."""
        with self.lock:
            self.refusals -= 1
            return self.refusals >= 0


class Server(ThreadingHTTPServer):
    """The HTTP side, on a free port of the loopback interface."""

    daemon_threads = True
    request_queue_size = 50

    def __init__(self, files: Files) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = files


class Handler(BaseHTTPRequestHandler):
    """One connection, with one request."""

    server: Server
    timeout = 10  # seconds that a client may leave it waiting

    def do_GET(self) -> None:
        """Send a file."""
        path = self.path_asked()
        if path is None or not path.is_file():
            self.answer(404, "there is no such file")
            return
        with path.open("rb") as file:
            self.send_response(200)
            self.send_header("Content-Length", str(path.stat().st_size))
            self.end_headers()
            shutil.copyfileobj(file, self.wfile, CHUNK_BYTES)
        self.server.files.note("sent", name=path.name)

    def do_PUT(self) -> None:
        """Take a file, whole."""
        path, given = self.path_asked(), self.headers.get("Content-Length", "")
        left = int(given) if given.isdecimal() else 0
        refused = self.server.files.puts_off()
        temporary = self.server.files.folder / f".{uuid.uuid4().hex}.tmp"
        with temporary.open("wb") as file:  # also what is refused: unread bytes would take the answer with them
            while left > 0 and (part := self.rfile.read(min(left, CHUNK_BYTES))):
                file.write(part)
                left -= len(part)
        if refused or path is None or left or not given:
            temporary.unlink()
        if refused:
            self.server.files.note("refused", name=path and path.name, code=503)
            self.answer(503, "busy, come again")
        elif path is None or left or not given:
            self.answer(400, "a file has a plain name, and its Content-Length")
        else:
            temporary.replace(path)
            self.server.files.note("taken", name=path.name)
            self.answer(201, "taken")

    def path_asked(self) -> Path | None:
        """Return the path of the file that is asked for; None where that is no name of a file."""
        found = NAME.fullmatch(self.path)
        return self.server.files.folder / found[1] if found else None

    def answer(self, status: int, words: str) -> None:
        """Send a short answer."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(words)))
        self.end_headers()
        self.wfile.write(words.encode())

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the standard library's name
        """Say nothing: what matters is in the log."""


@contextlib.asynccontextmanager
async def listening(files: Files) -> AsyncIterator[int]:
    """Serve on a free port of the loopback interface, which is what it yields, until the block ends."""
    with Server(files) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="file server")
        serving.start()
        try:
            port = server.server_address[1]
            files.note("listening", port=port)
            yield port
        finally:
            await asyncio.to_thread(server.shutdown)
            serving.join()


async def serve(files: Files) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with listening(files):
        await stop.wait()


if __name__ == "__main__":
    folder_name, log_name, *rest = sys.argv[1:]
    asyncio.run(serve(Files(Path(folder_name), Path(log_name), *(int(number) for number in rest[:1]))))
