"""What the demo's servers on loopback share: what they keep, how they listen, and how they run as programs.

A server's log has a JSON line for each thing that happens; the first one names the port. As programs they all are
started in one way, and end at SIGTERM or SIGINT:

    python -m demo.NAME FOLDER LOG_FILE [REFUSALS]
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import time
from typing import Any, TypeVar


class Kept:
    """What a server keeps. Its requests may come in threads.

    Args:
        folder: Where its files are.
        log: The log file.
        refusals: How many requests are put off at first.
    """

    def __init__(self, folder: Path, log: Path, refusals: int) -> None:
        self.folder = folder
        self.log = log
        self.refusals = refusals
        self.log_lock = threading.Lock()

    def note(self, event: str, **details: Any) -> None:
        """Append a line to the log."""
        with self.log_lock, self.log.open("a") as file:
            file.write(json.dumps({"at": round(time(), 3), "event": event, **details}) + "\n")


class Handler(BaseHTTPRequestHandler):
    """One connection, with one request."""

    timeout = 10  # seconds that a client may leave it waiting

    def content_length(self) -> int | None:
        """Return how many bytes the client says it sends; None where it does not say."""
        given = self.headers.get("Content-Length", "")
        return int(given) if given.isdecimal() else None

    def answer(self, status: int, content: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Send an answer."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the standard library's name
        """Say nothing: what matters is in the log."""


class Server(ThreadingHTTPServer):
    """The HTTP side, on a free port of the loopback interface."""

    daemon_threads = True
    request_queue_size = 50

    def __init__(self, handler: type[Handler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)


@contextlib.asynccontextmanager
async def listening(server: Server, kept: Kept) -> AsyncIterator[int]:
    """Serve in a thread until the block ends, and yield the port."""
    with server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1})
        serving.start()
        try:
            port = server.server_address[1]
            kept.note("listening", port=port)
            yield port
        finally:
            await asyncio.to_thread(server.shutdown)
            serving.join()


K = TypeVar("K", bound=Kept)


def main(keep: Callable[..., K], listen: Callable[[K], AbstractAsyncContextManager[int]]) -> None:
    """Run a server as a program, with the arguments of the command line.

    Args:
        keep: Makes what it keeps, of the folder, the log file, and how many are put off.
        listen: Serves until its block ends.
    """
    folder, log, *rest = sys.argv[1:]
    kept = keep(Path(folder), Path(log), *(int(number) for number in rest[:1]))
    asyncio.run(_until_told(listen(kept)))


async def _until_told(serving: AbstractAsyncContextManager[int]) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with serving:
        await stop.wait()
