"""A real HTTP server on loopback that answers as it is told to, and fails in every way that a service can."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus


@dataclass(frozen=True)
class Request:
    """What was asked: header names in lower case, the target with its query, and when, in seconds."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    at: float

    @property
    def key(self) -> str:
        """The idempotency key."""
        return self.headers["idempotency-key"]


@dataclass(frozen=True)
class Reply:
    """What to answer.

    Attributes:
        status: The status.
        body: The body.
        headers: More headers.
        in_seconds: Adds a `Retry-After` with this number of seconds.
        at_date: Adds a `Retry-After` with a date so many seconds after that of the answer.
        cut: The connection is closed when half of the body is out.
        hang: Nothing is answered, until the client gives up.
        drip_s: The body's bytes go out one by one, with this pause between them.
    """

    status: int = 200
    body: bytes = b'{"well": true}'
    headers: Mapping[str, str] = field(default_factory=dict)
    in_seconds: str | None = None
    at_date: float | None = None
    cut: bool = False
    hang: bool = False
    drip_s: float = 0

    def head(self) -> bytes:
        """Return status line and headers."""
        now = time.time()
        headers = {
            "Date": formatdate(now, usegmt=True),
            "Content-Type": "application/json",
            "Content-Length": str(len(self.body)),
            **self.headers,
        }
        if self.in_seconds is not None:
            headers["Retry-After"] = self.in_seconds
        if self.at_date is not None:
            headers["Retry-After"] = formatdate(now + self.at_date, usegmt=True)
        lines = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}", *(f"{k}: {v}" for k, v in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode()


class HttpServer:
    """The server. What no reply is left for is answered with 200 and what was asked, as JSON.

    Attributes:
        port: Where it listens.
        replies: By path: what to answer, one after the other; a lone reply is given for ever.
        requests: What was asked, in this order.
        connections: How often somebody has connected.
    """

    def __init__(self) -> None:
        self.port = 0
        self.replies: dict[str, list[Reply] | Reply] = {}
        self.requests: list[Request] = []
        self.connections = 0

    @property
    def url(self) -> str:
        """Its URL, without a path."""
        return f"http://127.0.0.1:{self.port}"

    def asked(self, path: str) -> list[Request]:
        """Return what was asked of a path."""
        return [request for request in self.requests if request.target.partition("?")[0] == path]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        self.connections += 1
        try:
            while await self.answer(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away, as one does that reuses connections or gives up
        finally:
            writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request, and return whether the connection stays open."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        request = Request(method, target, headers, body, time.monotonic())
        self.requests.append(request)
        reply = self.reply_to(request)
        if reply.hang:
            await reader.read()
            return False
        writer.write(reply.head())
        if reply.cut:
            writer.write(reply.body[: len(reply.body) // 2])
            await writer.drain()
            return False
        if method == "HEAD":
            return True
        if not reply.drip_s:
            writer.write(reply.body)
        for byte in reply.body if reply.drip_s else b"":
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(reply.drip_s)
        await writer.drain()
        return True

    def reply_to(self, request: Request) -> Reply:
        """Return the next reply to a request."""
        replies = self.replies.get(request.target.partition("?")[0])
        if isinstance(replies, Reply):
            return replies
        if replies:
            return replies.pop(0)
        asked = {"method": request.method, "target": request.target, "body": request.body.decode()}
        return Reply(body=json.dumps(asked).encode())


@contextlib.asynccontextmanager
async def http_serving(bound: socket.socket | None = None) -> AsyncIterator[HttpServer]:
    """A running server, on a free port unless there is a socket that is bound already."""
    server = HttpServer()
    tasks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(server.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    where = {"host": "127.0.0.1", "port": 0} if bound is None else {"sock": bound}
    listener = await asyncio.start_server(connected, **where)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await listener.wait_closed()
