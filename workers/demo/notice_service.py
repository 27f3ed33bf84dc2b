"""A web service on loopback that takes notices, and is not ready for the first one.

The first requests are answered with 503 and `Retry-After`. Then a notice is kept on disk under its
`Idempotency-Key`; one whose key is known is answered again, and not kept twice. It is also a program of its own, which
outlives the demo where that is asked for:

    python -m demo.notice_service NOTICES_FOLDER LOG_FILE [REFUSALS]
"""

from __future__ import annotations

import json
import re
import threading
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from demo import loopback

REFUSALS = 1
RETRY_AFTER_S = 1
LARGEST = 1024 * 1024
KEY = re.compile(r"[A-Za-z0-9-]{1,100}")


class Notices(loopback.Kept):
    """The notices.

    Args:
        folder: Gets one `.json` file for each notice.
        log: The log file.
        refusals: How many requests are put off at first.
    """

    def __init__(self, folder: Path, log: Path, refusals: int = REFUSALS) -> None:
        super().__init__(folder, log, refusals)
        self.refused = 0
        self.lock = threading.Lock()

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


class Server(loopback.Server):
    """The HTTP side."""

    def __init__(self, notices: Notices) -> None:
        super().__init__(Handler)
        self.notices = notices


class Handler(loopback.Handler):
    """One connection, with one request."""

    server: Server

    def do_POST(self) -> None:  # noqa: N802 - the standard library's name
        """Take a notice."""
        length = self.content_length() or 0
        content = self.rfile.read(min(length, LARGEST))
        if self.path != "/notices":
            self.say(404, {"error": "there is only /notices"})
        elif length > LARGEST:
            self.drop(length - LARGEST)
            self.say(413, {"error": f"a notice has at most {LARGEST} bytes"})
        else:
            self.say(*self.server.notices.take(self.headers.get("Idempotency-Key", ""), content))

    def drop(self, length: int) -> None:
        """Read what is not wanted: a connection that is closed over unread bytes takes the answer with it."""
        while length > 0 and (part := self.rfile.read(min(length, LARGEST))):
            length -= len(part)

    def say(self, status: int, value: dict[str, Any]) -> None:
        """Send an answer as JSON."""
        headers = {"Content-Type": "application/json"}
        if status == 503:
            headers["Retry-After"] = str(RETRY_AFTER_S)
        if "id" in value:
            headers["Location"] = f"/notices/{value['id']}"
        self.answer(status, json.dumps(value).encode(), headers)


def listening(notices: Notices) -> AbstractAsyncContextManager[int]:
    """Serve on a free port of the loopback interface, which is what it yields, until the block ends."""
    return loopback.listening(Server(notices), notices)


if __name__ == "__main__":
    loopback.main(Notices, listening)
