"""Call other services over HTTP, each under a base URL of the settings.

A message names a service and a path under its base URL, so whoever may send tasks cannot make the worker call
anything else. Passwords and tokens are in the settings, not in messages, which lie in the broker in clear.

- No connection, no whole answer in time, a connection that breaks, and the answers 408, 425, 429, 500, 502, 503 and
  504: another attempt later, when `Retry-After` says so, else by the policy's backoff.
- Any other status that is not expected, a redirect, an answer that is no JSON or too large: a dead letter at once,
  with method, URL, status and the beginning of the answer. Queries and credentials are left out of it.
- Execution is at least once: each call carries the task's id as its `Idempotency-Key`, the same for every attempt.
- A service that fails again and again is not called for a while. Its tasks are snoozed, which costs no attempts.

That circuit breaker is for one of several services behind one queue: the tasks of the others go on. Where all tasks
of a queue call the same service, a breaker for the whole queue serves better: slots that pause leave the messages
where they are, while each snooze is a message published and acked.

Run it with `asyncq worker services:app` in this folder. Its settings are environment variables, `SERVICES_*`.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import httpx
from pydantic import AnyHttpUrl, BaseModel, Field, JsonValue, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from asyncq import AsyncQ, Exponential, Retry, RetryPolicy, Snooze, TaskContext
from circuit_breaker import CircuitBreaker, CircuitOpen
from http_call import Call, Limits, ServiceError, UnavailableError, make, open_client

OWN_HEADERS = {
    "accept-encoding",
    "authorization",
    "connection",
    "content-length",
    "content-type",
    "cookie",
    "host",
    "idempotency-key",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
}
DOTS = (".", "..", "%2e", "%2e.", ".%2e", "%2e%2e")

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=60)]
HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$", max_length=100)]
HeaderValue = Annotated[str, Field(pattern=r"^[\x20-\x7e]*$", max_length=4000)]
Status = Annotated[int, Field(ge=200, le=599)]


class ServicesSettings(BaseSettings):
    """What the environment says, for example `SERVICES_BASE_URLS={"shop": "https://shop.example.org/api"}`.

    Attributes:
        base_urls: The services by name. A user and password in a URL are sent by basic authentication.
        tokens: By service: sent as `Authorization: Bearer ...`.
        connect_timeout_s: How long to wait for a connection, in seconds.
        read_timeout_s: How long to wait for each part of an answer, in seconds.
        call_timeout_s: How long one call may take in all, in seconds.
        answer_max_bytes: A larger answer is a failure.
        retry_after_max_s: The longest delay that a service can ask for by `Retry-After`, in seconds.
        max_attempts: How often one call is tried, the first attempt included. Snoozes do not count.
        retry_first_s: The delay after the first failed attempt, in seconds. Each further one doubles it.
        retry_max_s: The longest delay, in seconds.
        breaker_failures: After so many failures in a row a service is not called for a while.
        breaker_open_s: That while, in seconds.
        time_limit_s: How long one attempt may take, in seconds; longer than `call_timeout_s`.
    """

    model_config = SettingsConfigDict(env_prefix="SERVICES_", frozen=True, hide_input_in_errors=True)

    base_urls: dict[Name, AnyHttpUrl] = {}
    tokens: dict[Name, SecretStr] = {}
    connect_timeout_s: Annotated[float, Field(gt=0)] = 5
    read_timeout_s: Annotated[float, Field(gt=0)] = 20
    call_timeout_s: Annotated[float, Field(gt=0)] = 30
    answer_max_bytes: Annotated[int, Field(ge=0)] = 1024 * 1024
    retry_after_max_s: Annotated[float, Field(gt=0)] = 3600
    max_attempts: Annotated[int, Field(ge=1)] = 8
    retry_first_s: Annotated[float, Field(ge=0)] = 2
    retry_max_s: Annotated[float, Field(ge=0)] = 600
    breaker_failures: Annotated[int, Field(ge=1)] = 5
    breaker_open_s: Annotated[float, Field(gt=0)] = 30
    time_limit_s: Annotated[float, Field(gt=0)] = 60

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        for name, url in self.base_urls.items():
            if url.query is not None or url.fragment is not None:
                raise ValueError(f"the base URL of {name!r} has a query or a fragment: paths could not follow it")
        if strangers := sorted(set(self.tokens) - set(self.base_urls)):
            raise ValueError(f"there are tokens for {strangers}, which have no base URL (SERVICES_BASE_URLS)")
        if both := sorted(
            name for name in self.tokens if self.base_urls[name].username or self.base_urls[name].password
        ):
            raise ValueError(f"{both} have a token and a user in the base URL; a call can carry only one of them")
        if self.call_timeout_s >= self.time_limit_s:
            raise ValueError(
                f"SERVICES_TIME_LIMIT_S={self.time_limit_s:g} must be longer than "
                f"SERVICES_CALL_TIMEOUT_S={self.call_timeout_s:g}, or a call that hangs is not tried again"
            )
        return self


class ServiceRequest(BaseModel):
    """A call before it is made.

    Attributes:
        service: One of the names in `SERVICES_BASE_URLS`.
        method: The HTTP method.
        path: What follows the base URL; without query.
        query: The query's parameters. They are not shown in errors and logs.
        body: Sent as JSON; None sends no body.
        headers: More headers. Those that the worker sets itself, and credentials, are refused.
        statuses: The expected statuses; without any, all from 200 to 299 are.
        answer: What the answer's body is: it is read as that, or not at all.
    """

    service: Name
    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    path: Annotated[str, Field(pattern=r"^/[^?#\\\x00-\x20\x7f]*$", max_length=2000)]
    query: dict[str, str | list[str]] = {}
    body: JsonValue = None
    headers: dict[HeaderName, HeaderValue] = {}
    statuses: list[Status] = []
    answer: Literal["json", "text", "nothing"] = "json"

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if any(part.lower() in DOTS for part in self.path.split("/")):
            raise ValueError("path has a part '.' or '..', which would lead out of the base URL")
        if refused := sorted(name for name in self.headers if name.lower() in OWN_HEADERS):
            raise ValueError(
                f"headers has {', '.join(refused)}: the worker sets these itself; credentials belong into its "
                "settings (SERVICES_BASE_URLS, SERVICES_TOKENS)"
            )
        return self


class ServiceAnswer(BaseModel):
    """What the service answered.

    Attributes:
        status: The HTTP status.
        body: The JSON value, the text, or None.
        content_type: The answer's `Content-Type`, if it has one.
        location: The answer's `Location`, if it has one: where what was created is.
        attempt: The attempt that got it; 1 is the first.
        seconds: How long this call took.
    """

    status: int
    body: JsonValue
    content_type: str | None
    location: str | None
    attempt: int
    seconds: float


class UnknownServiceError(ServiceError):
    """The settings have no such service."""


settings = ServicesSettings()
app = AsyncQ("services")
breakers: dict[str, CircuitBreaker] = {}  # by service; as old as the process


@dataclass(frozen=True, slots=True)
class Resources:
    """What all calls of one worker share."""

    client: httpx.AsyncClient


@app.lifespan
async def lifespan(_: AsyncQ) -> AsyncIterator[Resources]:
    """Open the HTTP client before the first call, and close it after the last one."""
    async with open_client() as client:
        yield Resources(client)


@app.task(
    pass_context=True,
    retry=RetryPolicy(
        on=UnavailableError,
        max_attempts=settings.max_attempts,
        backoff=Exponential(first=settings.retry_first_s, factor=2, max=settings.retry_max_s),
    ),
    time_limit=settings.time_limit_s,
)
async def call_service(ctx: TaskContext[Resources], request: ServiceRequest) -> ServiceAnswer:
    """Make one call and return the answer.

    Raises:
        Snooze: The service has failed again and again, and is not called now.
        Retry: It asks to be called again after some time.
        UnavailableError: There is no answer, or one that will be another later. The policy retries it.
        ServiceError: The answer is of no use, and another attempt would not change that.
    """
    call = call_of(request, key=ctx.task_id)
    breaker = breaker_of(request.service)
    try:
        permit = breaker.admit()
    except CircuitOpen as circuit:
        ctx.log.info("not called: circuit open", service=request.service, wait_s=round(circuit.wait_s, 3))
        # A little later for some than for others: they were all told the same moment.
        raise Snooze(circuit.wait_s * random.uniform(1, 1.25)) from None  # noqa: S311 - no secret
    started = time.perf_counter()
    try:
        answer = await make(ctx.resources.client, call, limits())
    except UnavailableError as error:
        if breaker.failed(permit):
            ctx.log.warning("circuit opened", service=request.service, open_s=settings.breaker_open_s, error=str(error))
        if error.retry_after_s is not None:
            raise Retry(after=error.retry_after_s) from error
        raise
    except ServiceError:
        close(ctx, breaker, permit, request.service)  # it has answered: the fault is in the question, or for ever
        raise
    except BaseException:  # cancelled, for example, because the worker stops
        breaker.dropped(permit)
        raise
    close(ctx, breaker, permit, request.service)
    return ServiceAnswer(
        status=answer.status,
        body=answer.body,
        content_type=answer.content_type,
        location=answer.location,
        attempt=ctx.attempt,
        seconds=round(time.perf_counter() - started, 3),
    )


def call_of(request: ServiceRequest, *, key: str) -> Call:
    """Return the call that a request asks for.

    Raises:
        UnknownServiceError: The settings have no such service.
    """
    base_url = settings.base_urls.get(request.service)
    if base_url is None:
        known = ", ".join(sorted(settings.base_urls)) or "none"
        raise UnknownServiceError(f"there is no service {request.service!r} in SERVICES_BASE_URLS; known: {known}")
    token = settings.tokens.get(request.service)
    return Call(
        method=request.method,
        base_url=str(base_url),
        path=request.path,
        query=request.query,
        body=request.body,
        headers={**request.headers, "Idempotency-Key": key},
        token=token.get_secret_value() if token else None,
        statuses=frozenset(request.statuses),
        reads=request.answer,
    )


def limits() -> Limits:
    """Return what bounds every call."""
    return Limits(
        connect_s=settings.connect_timeout_s,
        read_s=settings.read_timeout_s,
        call_s=settings.call_timeout_s,
        answer_bytes=settings.answer_max_bytes,
        retry_after_s=settings.retry_after_max_s,
    )


def breaker_of(service: str) -> CircuitBreaker:
    """Return the breaker of a service, in this process."""
    if service not in breakers:
        breakers[service] = CircuitBreaker(
            failures=settings.breaker_failures, open_s=settings.breaker_open_s, clock=time.monotonic
        )
    return breakers[service]


def close(ctx: TaskContext, breaker: CircuitBreaker, permit: int, service: str) -> None:
    """Note that the service is well, and say so where it was not."""
    if breaker.succeeded(permit):
        ctx.log.info("circuit closed", service=service)
