"""Make one HTTP call and tell an answer, a temporary failure and a final one apart.

Errors say method, URL, status and the beginning of the answer, but neither credentials nor the query. One client
serves a worker, so connections are used again; it keeps no cookies: one task's must not go out with another one's call.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Literal

import httpx
from pydantic import JsonValue
from pydantic_core import from_json

from retry_after import retry_after_s

TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504})
NO_CONTENT = frozenset({204, 205, 304})
EXCERPT_BYTES = 300
EXCERPT_S = 2.0

# At INFO it would write every URL with its query into the log.
logging.getLogger("httpx").setLevel(logging.WARNING)


class ServiceError(Exception):
    """The answer is of no use, and another attempt would not change that."""


class UnavailableError(ServiceError):
    """There is no answer, or one that will be another later.

    Args:
        message: What happened.
        retry_after_s: When the service asks to be called again, in seconds; None where it does not say.
    """

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnexpectedStatusError(ServiceError):
    """A status that was not expected, and that will be the same the next time. Redirects are not followed."""


class BadAnswerError(ServiceError):
    """The status was expected, but the body is not what it should be, or too large."""


class ImpossibleCallError(ServiceError):
    """The call cannot be sent at all."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a call.

    Args:
        connect_s: Until there is a connection, in seconds.
        read_s: Until each part of the answer, in seconds.
        call_s: For all of it, in seconds.
        answer_bytes: The largest answer.
        retry_after_s: The longest delay that the service can ask for, in seconds.
    """

    connect_s: float
    read_s: float
    call_s: float
    answer_bytes: int
    retry_after_s: float


@dataclass(frozen=True, slots=True)
class Call:
    """What to send, and what to expect.

    Args:
        method: The HTTP method.
        base_url: The service's; with user and password where it wants them.
        path: What follows the base URL; begins with a slash.
        query: The query's parameters.
        body: Sent as JSON; None sends no body.
        headers: The headers.
        token: Sent as bearer token.
        statuses: The expected statuses; empty for 200 to 299.
        reads: What the answer's body is.
    """

    method: str
    base_url: str
    path: str
    query: Mapping[str, str | list[str]] = field(default_factory=dict)
    body: JsonValue = None
    headers: Mapping[str, str] = field(default_factory=dict)
    token: str | None = None
    statuses: frozenset[int] = frozenset()
    reads: Literal["json", "text", "nothing"] = "json"

    def __str__(self) -> str:
        """What may be shown: without credentials and query."""
        return f"{self.method} {self.url}{'?...' if self.query else ''}"

    @property
    def url(self) -> httpx.URL:
        """The URL without credentials and query."""
        base = httpx.URL(self.base_url)
        return httpx.URL(str(base.copy_with(userinfo=b"")).rstrip("/") + self.path)

    @property
    def auth(self) -> httpx.BasicAuth | None:
        """The base URL's user and password."""
        base = httpx.URL(self.base_url)
        return httpx.BasicAuth(base.username, base.password) if base.userinfo else None

    def expects(self, status: int) -> bool:
        """Tell whether an answer of this status is one."""
        return status in self.statuses if self.statuses else 200 <= status < 300


@dataclass(frozen=True, slots=True)
class Answer:
    """An expected answer."""

    status: int
    body: JsonValue
    content_type: str | None
    location: str | None


async def make(client: httpx.AsyncClient, call: Call, limits: Limits) -> Answer:
    """Make a call and return the answer.

    Args:
        client: Of `open_client`.
        call: What to send, and what to expect.
        limits: What bounds it.

    Raises:
        UnavailableError: Another attempt may get an answer.
        ServiceError: It would not.
    """
    try:
        async with (
            asyncio.timeout(limits.call_s),  # an answer that drips in slowly never reaches the read time-out
            client.stream(
                call.method,
                call.url,
                params=call.query or None,
                json=call.body,
                headers=headers_of(call),
                auth=call.auth,
                timeout=httpx.Timeout(limits.read_s, connect=limits.connect_s, pool=None),
            ) as response,
        ):
            if not call.expects(response.status_code):
                raise await refusal(call, response, limits)
            content = b"" if call.reads == "nothing" else await read(call, response, limits)
    except TimeoutError as exc:
        raise UnavailableError(f"{call}: no whole answer within {limits.call_s:g} s") from exc
    except httpx.TimeoutException as exc:
        raise UnavailableError(
            f"{call}: {words_of(exc)} (connect {limits.connect_s:g} s, read {limits.read_s:g} s)"
        ) from exc
    except (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError) as exc:
        raise UnavailableError(f"{call}: {words_of(exc)}") from exc
    except httpx.DecodingError as exc:
        raise BadAnswerError(f"{call}: the answer cannot be decompressed: {exc}") from exc
    except (httpx.RequestError, httpx.InvalidURL) as exc:
        raise ImpossibleCallError(f"{call}: {words_of(exc)}") from exc
    return Answer(
        status=response.status_code,
        body=value_of(call, response, content),
        content_type=response.headers.get("Content-Type"),
        location=response.headers.get("Location"),
    )


def headers_of(call: Call) -> dict[str, str]:
    """Return all headers that are not httpx's own."""
    headers = {"Accept": "application/json" if call.reads == "json" else "*/*", **call.headers}
    headers["Accept-Encoding"] = "identity"  # so that a small answer cannot unpack to a large one
    if call.token is not None:
        headers["Authorization"] = f"Bearer {call.token}"
    return headers


async def refusal(call: Call, response: httpx.Response, limits: Limits) -> ServiceError:
    """Return the error for an answer of an unexpected status."""
    status = response.status_code
    said = f"{call} answered {status} {response.reason_phrase}".rstrip()
    if response.has_redirect_location:
        target = httpx.URL(response.headers["Location"]).copy_with(userinfo=b"", query=None, fragment=None)
        return UnexpectedStatusError(f"{said}, a redirect to {target}, which is not followed")
    said += f": {await beginning(response)}"
    if status not in TEMPORARY:
        return UnexpectedStatusError(said)
    wait_s = retry_after_s(
        response.headers.get("Retry-After"),
        date=response.headers.get("Date"),
        now=datetime.now(UTC),
        at_most_s=limits.retry_after_s,
    )
    return UnavailableError(said, wait_s)


async def beginning(response: httpx.Response) -> str:
    """Return the beginning of an answer's body, as far as it comes: the status has decided, this is for people."""
    content = bytearray()
    with contextlib.suppress(httpx.RequestError, TimeoutError):
        async with asyncio.timeout(EXCERPT_S):
            async for chunk in response.aiter_bytes():
                content += chunk
                if len(content) > EXCERPT_BYTES:
                    break
    return excerpt(content)


def excerpt(content: bytes | bytearray) -> str:
    """Return the beginning of a body on one line."""
    text = " ".join(content[:EXCERPT_BYTES].decode(errors="replace").split())
    text = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    return (text or "(empty)") + (" ..." if len(content) > EXCERPT_BYTES else "")


async def read(call: Call, response: httpx.Response, limits: Limits) -> bytes:
    """Return the body.

    Raises:
        BadAnswerError: It is too large; no more of it is read then.
    """
    content = bytearray()
    async for chunk in response.aiter_bytes():
        content += chunk
        if len(content) > limits.answer_bytes:
            raise BadAnswerError(
                f"{call} answered {response.status_code} with more than {limits.answer_bytes} bytes: {excerpt(content)}"
            )
    return bytes(content)


def value_of(call: Call, response: httpx.Response, content: bytes) -> JsonValue:
    """Return what the body says.

    Raises:
        BadAnswerError: It is not what it should be.
    """
    if call.reads == "nothing" or (not content and (call.method == "HEAD" or response.status_code in NO_CONTENT)):
        return None
    kind = response.headers.get("Content-Type", "no Content-Type")
    try:
        if call.reads == "text":
            return content.decode(response.charset_encoding or "utf-8")
        value: JsonValue = from_json(content, allow_inf_nan=False)
    except (ValueError, LookupError) as exc:
        wanted = "JSON" if call.reads == "json" else "text"
        said = f"{call} answered {response.status_code} ({kind}) with no {wanted}: {exc}: {excerpt(content)}"
        raise BadAnswerError(said) from exc
    return value


def words_of(error: Exception) -> str:
    """Return an error's type and text; httpx has errors without any text."""
    return f"{type(error).__name__}: {error}".rstrip(": ")


@contextlib.asynccontextmanager
async def open_client() -> AsyncGenerator[httpx.AsyncClient]:
    """Open the client that serves all calls of a worker; a lifespan enters this."""
    trusted = await asyncio.to_thread(httpx.create_ssl_context)  # reads many certificates, for a third of a second
    async with httpx.AsyncClient(
        verify=trusted,
        follow_redirects=False,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),  # the slots are the limit
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
    ) as client:
        yield client
