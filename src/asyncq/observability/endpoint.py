"""A small HTTP server in threads of its own: `/healthz`, `/readyz`, and `/metrics` where there are any.

It answers also while the event loop is stuck, which is what it is asked for. One address is a TCP port, if one was
asked for; the other a socket in a folder of this user's, by which `asyncq health` finds the process without a port.

Invariant: nothing here reads anything but what `report` and `scrape` return, which are safe in any thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import socketserver
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from asyncq.errors import ConfigurationError
from asyncq.health import HealthReport
from asyncq.loggers import get_logger
from asyncq.observability.sockets import socket_of

__all__ = ["Endpoint", "Scrape"]

log = get_logger("asyncq.health")

Scrape = Callable[[str], tuple[str, bytes]]
"""Returns the content type and the text of the metrics, for what a request's `Accept` says."""

_REQUEST_TIMEOUT_S = 10.0


class Endpoint:
    """Serves health, and metrics.

    Args:
        report: How the processes are.
        scrape: Makes the text of the metrics; None where there are none.
    """

    def __init__(self, report: Callable[[], HealthReport], scrape: Scrape | None = None) -> None:
        self._report = report
        self._scrape = scrape
        self._servers: list[socketserver.BaseServer] = []
        self._path: Path | None = None

    def listen(self, host: str, port: int) -> int:
        """Serve on a TCP port, and return which; 0 takes any free one.

        Raises:
            ConfigurationError: It cannot be had.
        """
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, address = found[0][0], found[0][4]
            kind = _TcpServer6 if family == socket.AF_INET6 else _TcpServer
            server = kind((str(address[0]), port), self._handler())
        except OSError as error:
            raise ConfigurationError(
                f"Metrics cannot be served on {host}:{port}: {error.strerror or error}. Where another process has the "
                "port, give each command its own --metrics-port (0 takes any free one, which the log tells); one "
                "port is enough for all processes of --processes."
            ) from error
        self._serve(server)
        chosen = int(server.server_address[1])
        log.info("metrics and health are served", url=f"http://{_shown(host)}:{chosen}")
        return chosen

    def listen_locally(self) -> None:
        """Serve on a socket that `asyncq health` finds. Where that cannot be, it is told, and nothing is lost else."""
        try:
            path = socket_of(os.getpid())
            self._serve(_UnixServer(str(path), self._handler()))
        except OSError as error:
            log.warning(
                "`asyncq health` will not find this process, unless it is given --metrics-port",
                cause=error.strerror or str(error),
            )
            return
        self._path = path

    def close(self) -> None:
        """Serve no more."""
        for server in self._servers:
            server.shutdown()
            server.server_close()
        self._servers.clear()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _serve(self, server: socketserver.BaseServer) -> None:
        self._servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.1,), name="asyncq-endpoint", daemon=True).start()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        report, scrape = self._report, self._scrape

        class Handler(_Handler):
            def answer(self) -> tuple[int, str, bytes]:
                path = self.path.partition("?")[0]
                if path in {"/healthz", "/readyz"}:
                    health = report()
                    good = health.ready if path == "/readyz" else health.alive
                    return (200 if good else 503), "application/json", json.dumps(health.as_json()).encode() + b"\n"
                if path == "/metrics" and scrape is not None:
                    return 200, *scrape(self.headers.get("Accept", ""))
                there = "/healthz and /readyz" if scrape is None else "/metrics, /healthz and /readyz"
                return 404, "text/plain; charset=utf-8", f"Here are {there}.\n".encode()

        return Handler


class _Handler(BaseHTTPRequestHandler):
    """Answers one GET or HEAD."""

    server_version = "asyncq"
    timeout = _REQUEST_TIMEOUT_S  # a client that says nothing must not keep its thread

    def answer(self) -> tuple[int, str, bytes]:
        raise NotImplementedError

    def do_GET(self) -> None:
        try:
            status, kind, body = self.answer()
        except Exception:
            log.exception("health or metrics could not be told", path=self.path)
            status, kind, body = 500, "text/plain; charset=utf-8", b"See the log.\n"
        with contextlib.suppress(OSError):  # the other side has gone
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - the name that the base class looks for

    def address_string(self) -> str:
        return ""

    def log_message(self, *_: Any) -> None:
        """Write nothing: a probe comes every few seconds."""


class _Threads(socketserver.ThreadingMixIn):
    daemon_threads = True
    block_on_close = False


class _TcpServer(_Threads, socketserver.TCPServer):
    allow_reuse_address = True

    def handle_error(self, *_: Any) -> None:
        """Write nothing: the other side has gone."""


class _TcpServer6(_TcpServer):
    address_family = socket.AF_INET6


class _UnixServer(_Threads, socketserver.UnixStreamServer):
    def handle_error(self, *_: Any) -> None:
        """Write nothing: the other side has gone."""


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
