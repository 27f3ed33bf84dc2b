"""A file server on loopback: `GET /NAME` and `PUT /NAME` in one folder, as an exchange of files has them.

The first PUTs are answered with 503: a server that is busy. It is also a program of its own:

    python -m demo.file_server FOLDER LOG_FILE [REFUSALS]
"""

from __future__ import annotations

import re
import shutil
import threading
import uuid
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from demo import loopback

REFUSALS = 1
NAME = re.compile(r"/([A-Za-z0-9][A-Za-z0-9._-]{0,199})")
CHUNK_BYTES = 256 * 1024


class Files(loopback.Kept):
    """The files of the folder, and how many uploads are put off yet.

    Args:
        folder: Where the files are.
        log: The log file.
        refusals: How many uploads are put off at first.
    """

    def __init__(self, folder: Path, log: Path, refusals: int = REFUSALS) -> None:
        super().__init__(folder, log, refusals)
        self.lock = threading.Lock()

    def puts_off(self) -> bool:
        """Tell whether this upload is one of the first."""
        with self.lock:
            self.refusals -= 1
            return self.refusals >= 0


class Server(loopback.Server):
    """The HTTP side."""

    def __init__(self, files: Files) -> None:
        super().__init__(Handler)
        self.files = files


class Handler(loopback.Handler):
    """One connection, with one request."""

    server: Server

    def do_GET(self) -> None:  # noqa: N802 - the standard library's name
        """Send a file."""
        path = self.path_asked()
        if path is None or not path.is_file():
            self.say(404, "there is no such file")
            return
        with path.open("rb") as file:
            self.send_response(200)
            self.send_header("Content-Length", str(path.stat().st_size))
            self.end_headers()
            shutil.copyfileobj(file, self.wfile, CHUNK_BYTES)
        self.server.files.note("sent", name=path.name)

    def do_PUT(self) -> None:  # noqa: N802 - the standard library's name
        """Take a file, whole."""
        path, given = self.path_asked(), self.content_length()
        left = given or 0
        refused = self.server.files.puts_off()
        temporary = self.server.files.folder / f".{uuid.uuid4().hex}.tmp"
        with temporary.open("wb") as file:  # also what is refused: unread bytes would take the answer with them
            while left > 0 and (part := self.rfile.read(min(left, CHUNK_BYTES))):
                file.write(part)
                left -= len(part)
        if refused or path is None or left or given is None:
            temporary.unlink()
        if refused:
            self.server.files.note("refused", name=path and path.name, code=503)
            self.say(503, "busy, come again")
        elif path is None or left or given is None:
            self.say(400, "a file has a plain name, and its Content-Length")
        else:
            temporary.replace(path)
            self.server.files.note("taken", name=path.name)
            self.say(201, "taken")

    def path_asked(self) -> Path | None:
        """Return the path of the file that is asked for; None where that is no name of a file."""
        found = NAME.fullmatch(self.path)
        return self.server.files.folder / found[1] if found else None

    def say(self, status: int, words: str) -> None:
        """Send a short answer."""
        self.answer(status, words.encode())


def listening(files: Files) -> AbstractAsyncContextManager[int]:
    """Serve on a free port of the loopback interface, which is what it yields, until the block ends."""
    return loopback.listening(Server(files), files)


if __name__ == "__main__":
    loopback.main(Files, listening)
