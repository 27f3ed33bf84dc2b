"""Bring a file from an HTTP server into a folder, and back: whole or not at all, and no larger than allowed.

Errors tell what would be the same the next time from what may pass.
"""

from __future__ import annotations

import hashlib
import logging
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import httpx

PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
CHUNK_BYTES = 256 * 1024
EXCERPT_BYTES = 200

# At INFO it would write every URL into the log, with whatever password it may have.
logging.getLogger("httpx").setLevel(logging.WARNING)


class TransferError(Exception):
    """The file cannot be had, or is not taken, and another attempt would not change that."""


class ServerAwayError(TransferError):
    """The server does not answer, or asks to be called again later."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a transfer.

    Args:
        connect_s: Until there is a connection, in seconds.
        read_s: Until each part of an answer, in seconds.
        file_bytes: The largest file.
    """

    connect_s: float
    read_s: float
    file_bytes: int


def fetch(url: str, target: Path, limits: Limits, step: Callable[[int, int], None]) -> None:
    """Write what a URL answers with under a name.

    Args:
        url: Where it is.
        target: Where it is to be.
        limits: What bounds it.
        step: Called with the bytes that are here and those that there are; it may raise to stop.

    Raises:
        ServerAwayError: Another attempt may help.
        TransferError: There is no such file, or it is too large.
    """
    with _client(limits) as client, _speaking("GET", url), client.stream("GET", url) as answer:
        _check(answer)
        size = int(answer.headers.get("Content-Length", "0"))
        if size > limits.file_bytes:
            raise TransferError(f"GET {_shown(url)}: {size} bytes, and {limits.file_bytes} are allowed")
        with written_whole(target) as file:
            done = 0
            for part in answer.iter_bytes(CHUNK_BYTES):
                done += len(part)
                if done > limits.file_bytes:
                    raise TransferError(f"GET {_shown(url)}: more than the {limits.file_bytes} bytes that are allowed")
                file.write(part)
                step(done, max(size, done))


def put(source: Path, url: str, limits: Limits, step: Callable[[int, int], None]) -> None:
    """Send a file to a URL. Sending it again changes nothing: PUT is made for that.

    Args:
        source: The file.
        url: Where it is to be.
        limits: What bounds it.
        step: As for `fetch`.

    Raises:
        ServerAwayError: Another attempt may help.
        TransferError: The server does not take it.
    """
    size = source.stat().st_size

    def parts() -> Iterator[bytes]:
        done = 0
        with source.open("rb") as file:
            while part := file.read(CHUNK_BYTES):
                yield part
                done += len(part)
                step(done, size)

    with _client(limits) as client, _speaking("PUT", url):
        # With a length the body is not cut into chunks, which plain servers cannot read.
        _check(client.put(url, content=parts(), headers={"Content-Length": str(size)}))


@contextmanager
def written_whole(target: Path) -> Iterator[BinaryIO]:
    """Yield a file that appears under its name when the block has ended without an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: a redelivered task may run while its first attempt still writes.
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Return the checksum of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _client(limits: Limits) -> httpx.Client:
    return httpx.Client(timeout=httpx.Timeout(limits.read_s, connect=limits.connect_s))


@contextmanager
def _speaking(method: str, url: str) -> Iterator[None]:
    try:
        yield
    except httpx.TransportError as error:
        raise ServerAwayError(f"{method} {_shown(url)}: {type(error).__name__}: {error}") from error


def _check(answer: httpx.Response) -> None:
    if answer.is_success:
        return
    answer.read()
    words = answer.content[:EXCERPT_BYTES].decode(errors="replace")
    kind = ServerAwayError if answer.status_code in PASSING else TransferError
    raise kind(f"{answer.request.method} {_shown(str(answer.request.url))}: {answer.status_code} {words}".rstrip())


def _shown(url: str) -> str:
    """Return a URL without user and password."""
    return str(httpx.URL(url).copy_with(username=None, password=None))
