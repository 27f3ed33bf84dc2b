"""The services worker's own work, with a real HTTP server that fails in every way a service can."""

import asyncio
import gzip
import json
import logging
import socket
from contextvars import ContextVar
from types import SimpleNamespace

import pytest
import pytest_asyncio
from pydantic import ValidationError

import http_call
import services
from asyncq import TaskFailed
from asyncq.loggers import get_logger
from asyncq.testing.harness import running
from circuit_breaker import CircuitBreaker
from http_call import BadAnswerError, ImpossibleCallError, ServiceError, UnavailableError, UnexpectedStatusError
from http_server import Reply
from support import eventually

pytestmark = pytest.mark.any_version

NEVER = Reply(hang=True)
client = ContextVar("client")


@pytest_asyncio.fixture(autouse=True)
async def _client():
    """Open the client that a worker has."""
    async with http_call.open_client() as opened:
        token = client.set(opened)
        yield
        client.reset(token)


def request(**changes):
    """Return a request for `/api/things`."""
    return services.ServiceRequest(**{"service": "shop", "path": "/things", **changes})


async def make(task_id="task-1", **changes):
    """Make one call, as an attempt of a task does."""
    resources = services.Resources(client.get())
    context = SimpleNamespace(task_id=task_id, attempt=1, log=get_logger("tests"), resources=resources)
    return await services.call_service(context, request(**changes))


async def test_a_call_brings_method_path_query_body_and_key_to_the_service(http_server, service_settings):
    """And the answer back; the path goes below the base URL's own."""
    query, body = {"a": "1 &", "b": ["2", "3"]}, {"n": [1, None]}
    answer = await make(method="PUT", path="/things/äb%20c/7", query=query, body=body)
    (asked,) = http_server.requests
    assert (asked.method, asked.target) == ("PUT", "/api/things/%C3%A4b%20c/7?a=1+%26&b=2&b=3")
    assert json.loads(asked.body) == body
    assert asked.headers["content-type"] == "application/json"
    assert asked.key == "task-1"
    assert (answer.status, answer.content_type, answer.attempt) == (200, "application/json", 1)
    assert answer.body["target"] == asked.target


@pytest.mark.parametrize("base", ["/api", "/api/", "", "/"])
async def test_a_base_url_may_end_with_a_slash(http_server, service_settings, base):
    """Or not, or have no path at all."""
    service_settings(base_urls={"shop": http_server.url + base})
    await make()
    assert http_server.requests[0].target == f"{base.rstrip('/')}/things"


async def test_calls_share_a_connection_but_no_cookies(http_server, service_settings):
    """What one task's answer sets does not go out with another task's call."""
    http_server.replies["/api/things"] = Reply(headers={"Set-Cookie": "session=1; Path=/"})
    await make("one")
    await make("two")
    assert [asked.key for asked in http_server.requests] == ["one", "two"]
    assert not any("cookie" in asked.headers for asked in http_server.requests)
    assert http_server.connections == 1


async def test_the_worker_has_one_client_which_is_closed_after_its_last_task(http_server, service_settings):
    """By the app's lifespan."""
    async with services.app.open_lifespan() as resources:
        assert not resources.client.is_closed
    assert resources.client.is_closed


@pytest.mark.parametrize(
    ("reply", "changes", "body"),
    [
        (Reply(204, b""), {"method": "DELETE"}, None),
        (Reply(200, b"12345"), {"method": "HEAD"}, None),
        (Reply(200, b"no JSON"), {"answer": "nothing"}, None),
        (Reply(200, b"null"), {}, None),
        (Reply(200, b"Gr\xfc\xdfe", {"Content-Type": "text/plain; charset=latin-1"}), {"answer": "text"}, "Grüße"),
        (Reply(404, b'{"gone": 1}'), {"statuses": [200, 404]}, {"gone": 1}),
        (Reply(503, b"{}"), {"statuses": [503]}, {}),
        (Reply(303, b"", {"Location": "/things/8"}), {"statuses": [303], "answer": "text"}, ""),
        (Reply(200, gzip.compress(b"[1]"), {"Content-Encoding": "gzip"}), {}, [1]),
    ],
)
async def test_what_is_expected_is_an_answer(http_server, service_settings, reply, changes, body):
    """By status and by kind; a body that nobody wants need not be any."""
    http_server.replies["/api/things"] = reply
    answer = await make(**changes)
    assert (answer.status, answer.body) == (reply.status, body)
    assert answer.location == reply.headers.get("Location")


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
async def test_what_will_be_another_answer_later_is_temporary(http_server, service_settings, status):
    """With what was said; without a `Retry-After` the policy's backoff decides."""
    http_server.replies["/api/things"] = Reply(status, b"not\r\n now\x00")
    with pytest.raises(
        UnavailableError, match=rf"^GET http.*/api/things answered {status} .*: not now\ufffd$"
    ) as caught:
        await make()
    assert caught.value.retry_after_s is None


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (Reply(404, b"no such thing"), "404 Not Found: no such thing"),
        (Reply(401, b""), r"401 Unauthorized: \(empty\)"),
        (Reply(400, b"x" * 5000), r"400 Bad Request: x{300} \.\.\.$"),
        (Reply(501, b"never"), "501 Not Implemented: never"),
        (Reply(404, b"cut short", cut=True), "404 Not Found: cut"),
        (Reply(300, b"choose"), "300 Multiple Choices: choose"),
        (
            Reply(302, b"", {"Location": "http://u:p@b.example/x?a=b"}),
            "302 Found, a redirect to http://b.example/x, which",
        ),
        (Reply(308, b"", {"Location": "/y#z"}), "308 Permanent Redirect, a redirect to /y, which is not followed"),
    ],
)
async def test_another_status_is_final_and_says_what_was_answered(http_server, service_settings, reply, says):
    """Method, URL, status, and the beginning of the body, or where the redirect leads."""
    http_server.replies["/api/things"] = reply
    with pytest.raises(UnexpectedStatusError, match=rf"^GET {http_server.url}/api/things answered {says}"):
        await make()
    assert len(http_server.requests) == 1


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (
            Reply(200, b"<p>Log in", {"Content-Type": "text/html"}),
            r"answered 200 \(text/html\) with no JSON: .*: <p>Log in",
        ),
        (Reply(200, b""), r"with no JSON: .*: \(empty\)"),
        (Reply(200, b'{"n": NaN}'), "with no JSON"),
        (Reply(200, b'"\xff"'), "with no JSON"),
        (Reply(200, b"[" * 100_000), "with no JSON"),
        (Reply(200, b"x" * 999_999), r"answered 200 with more than 200000 bytes: x+ \.\.\.$"),
        (Reply(200, b"no gzip", {"Content-Encoding": "gzip"}), "cannot be decompressed"),
    ],
)
async def test_an_answer_that_is_no_json_or_too_large_is_final(http_server, service_settings, reply, says):
    """With the beginning of what there was instead; no more is read than the limit."""
    service_settings(answer_max_bytes=200_000)
    http_server.replies["/api/things"] = reply
    with pytest.raises(BadAnswerError, match=rf"^GET {http_server.url}/api/things.*{says}"):
        await make()
    assert len(http_server.requests) == 1


async def test_a_text_of_unknown_charset_is_final(http_server, service_settings):
    """Nobody can read it."""
    http_server.replies["/api/things"] = Reply(200, b"x", {"Content-Type": "text/plain; charset=klingon"})
    with pytest.raises(BadAnswerError, match="with no text"):
        await make(answer="text")


@pytest.mark.parametrize(
    ("reply", "changes", "says"),
    [
        (Reply(cut=True), {}, "RemoteProtocolError"),
        (Reply(301, b"", {"Location": "http://x:y/"}), {}, "RemoteProtocolError: Invalid URL in location header"),
        (Reply(200, b"", {"Content-Length": "x"}), {}, "RemoteProtocolError"),
        (NEVER, {"read_timeout_s": 0.2}, r"ReadTimeout \(connect 5 s, read 0.2 s\)"),
        (NEVER, {"call_timeout_s": 0.2}, "no whole answer within 0.2 s"),
        (Reply(drip_s=0.05, body=b"[" + b" " * 100 + b"]"), {"call_timeout_s": 0.5}, "no whole answer within 0.5 s"),
    ],
)
async def test_a_call_without_a_whole_answer_is_temporary(http_server, service_settings, reply, changes, says):
    """Closed in the middle, hanging, or dripping so slowly that no single wait is too long."""
    service_settings(**changes)
    http_server.replies["/api/things"] = reply
    with pytest.raises(UnavailableError, match=rf"^GET http://127.*/api/things: {says}"):
        await make()


async def test_a_refused_connection_is_temporary(service_settings):
    """Nobody listens there."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening
        service_settings(base_urls={"shop": f"http://127.0.0.1:{taken.getsockname()[1]}"})
        with pytest.raises(UnavailableError, match="ConnectError"):
            await make()


async def test_words_that_hang_do_not_hide_the_status(http_server, service_settings, monkeypatch):
    """The status of a 503 decides, with its `Retry-After`, even where its body never ends."""
    monkeypatch.setattr("http_call.EXCERPT_S", 0.2)
    http_server.replies["/api/things"] = Reply(503, b"x" * 100, in_seconds="7", drip_s=0.05)
    with pytest.raises(services.Retry) as caught:
        await make()
    assert caught.value.after_s == 7
    assert isinstance(caught.value.__cause__, UnavailableError)


@pytest.mark.parametrize(
    ("reply", "seconds"),
    [
        (Reply(503, in_seconds="30"), 30),
        (Reply(429, in_seconds="1.5"), 1.5),
        (Reply(503, at_date=90), 90),
        (Reply(503, in_seconds="99999999999"), 600),
        (Reply(503, at_date=10**8), 600),
    ],
)
async def test_retry_after_is_honoured_in_both_forms_up_to_the_limit(http_server, service_settings, reply, seconds):
    """Exactly, as `Retry(after=...)`, with the answer as its cause."""
    service_settings(retry_after_max_s=600)
    http_server.replies["/api/things"] = reply
    with pytest.raises(services.Retry) as caught:
        await make()
    assert caught.value.after_s == seconds
    assert f"answered {reply.status}" in str(caught.value.__cause__)


@pytest.mark.parametrize("reply", [Reply(503, in_seconds="soon"), Reply(503, in_seconds="0"), Reply(503, at_date=-60)])
async def test_a_retry_after_that_gives_no_delay_leaves_it_to_the_policy(http_server, service_settings, reply):
    """Nonsense, now, or in the past."""
    http_server.replies["/api/things"] = reply
    with pytest.raises(UnavailableError):
        await make()


async def test_neither_credentials_nor_the_query_are_shown(http_server, service_settings, caplog):
    """In errors and in logs; the service gets them all the same."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("httpcore").setLevel(logging.INFO)
    http_server.replies["/api/things"] = Reply(404)
    service_settings(
        base_urls={"shop": http_server.url.replace("//", "//me:pass%40word@") + "/api", "other": http_server.url},
        tokens={"other": "bearer-secret"},
    )
    with pytest.raises(UnexpectedStatusError) as first:
        await make(query={"api_key": "query-secret"})
    await make(service="other")
    assert [asked.headers["authorization"] for asked in http_server.requests] == [
        "Basic bWU6cGFzc0B3b3Jk",
        "Bearer bearer-secret",
    ]
    assert "api_key=query-secret" in http_server.requests[0].target
    shown = f"{first.value} {first.value!r} {caplog.text} {services.settings!r}"
    assert f"GET {http_server.url}/api/things?..." in shown
    assert not any(secret in shown for secret in ("query-secret", "bearer-secret", "api_key"))
    assert "pass" not in str(first.value) + caplog.text


async def test_a_service_that_the_settings_lack_is_final(service_settings):
    """And the error names those that there are."""
    with pytest.raises(services.UnknownServiceError, match=r"no service 'bank' in SERVICES_BASE_URLS; known: shop"):
        await make(service="bank")


async def test_a_call_that_cannot_be_sent_is_final(service_settings):
    """A host that no URL can have."""
    service_settings(base_urls={"shop": "http://" + "x" * 70 + ".example"})
    with pytest.raises((ImpossibleCallError, UnavailableError), match=r"GET http://x+"):
        await make()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"path": "things"}, "path"),
        ({"path": "/a?b=c"}, "path"),
        ({"path": "/a#b"}, "path"),
        ({"path": "/a\r\nHost: b"}, "path"),
        ({"path": "/../admin"}, "lead out"),
        ({"path": "/a/%2E%2e/b"}, "lead out"),
        ({"path": "/.%2e"}, "lead out"),
        ({"service": "http://b.example"}, "service"),
        ({"method": "CONNECT"}, "method"),
        ({"headers": {"Authorization": "Bearer x"}}, "SERVICES_TOKENS"),
        ({"headers": {"idempotency-key": "x"}}, "idempotency-key"),
        ({"headers": {"X-A": "b\r\nX-B: c"}}, "headers"),
        ({"headers": {"X A": "b"}}, "headers"),
        ({"statuses": [700]}, "statuses"),
    ],
)
def test_a_wrong_request_is_refused_before_it_is_sent(changes, says):
    """The producer gets pydantic's error."""
    with pytest.raises(ValidationError, match=says):
        request(**changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"base_urls": {"shop": "shop.example.org"}}, "base_urls.shop"),
        ({"base_urls": {"shop": "http://shop.example.org/?a=b"}}, "query"),
        ({"tokens": {"bank": "secret"}}, r"tokens for \['bank'\]"),
        (
            {"base_urls": {"a": "http://u:secret@a.example"}, "tokens": {"a": "secret"}},
            r"\['a'\] have a token and a user",
        ),
        ({"call_timeout_s": 60}, "SERVICES_TIME_LIMIT_S=60 must be longer"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_without_showing_them(changes, says):
    """They may hold passwords."""
    with pytest.raises(ValidationError, match=says) as caught:
        services.ServicesSettings(**changes)
    assert "secret" not in str(caught.value)


@pytest.fixture
def breaker_time(service_settings, monkeypatch):
    """The time of the breaker of `shop`, which the test moves; two failures open it for 30 s."""
    time = SimpleNamespace(now=100.0)
    breaker = CircuitBreaker(failures=2, open_s=30, clock=lambda: time.now)
    monkeypatch.setitem(services.breakers, "shop", breaker)
    return time


async def test_a_failing_service_is_not_called_until_a_probe_succeeds(http_server, service_settings, breaker_time):
    """Calls are snoozed, one is the probe, and it alone decides; another service is not touched by it."""
    service_settings(base_urls={"shop": f"{http_server.url}/api", "other": http_server.url})
    http_server.replies["/api/things"] = [Reply(500), Reply(500), Reply(500)]
    for _ in range(2):
        with pytest.raises(UnavailableError):
            await make()
    breaker_time.now += 20
    with pytest.raises(services.Snooze) as caught:
        await make()
    assert 10 <= caught.value.after_s <= 10 * 1.25
    assert (await make(service="other")).status == 200
    breaker_time.now += 10
    with pytest.raises(UnavailableError):  # the probe
        await make()
    with pytest.raises(services.Snooze):
        await make()
    assert len(http_server.asked("/api/things")) == 3
    breaker_time.now += 30
    assert [(await make()).status for _ in range(3)] == [200, 200, 200]


async def test_a_probe_that_is_cancelled_makes_way_for_the_next(http_server, service_settings, breaker_time):
    """A worker that stops in the middle of it has learnt nothing; meanwhile nobody else calls."""
    http_server.replies["/api/things"] = [Reply(500), Reply(500), NEVER]
    for _ in range(2):
        with pytest.raises(UnavailableError):
            await make()
    breaker_time.now += 30
    probe = asyncio.ensure_future(make())
    await eventually(lambda: len(http_server.requests) == 3)
    with pytest.raises(services.Snooze):
        await make()
    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe
    assert (await make()).status == 200


async def test_a_service_that_says_404_is_well(http_server, service_settings, breaker_time):
    """A final answer ends a row of failures, and as the probe's answer it closes the breaker."""
    replies = [Reply(500), Reply(404), Reply(500), Reply(500), Reply(404)]
    http_server.replies["/api/things"] = [*replies]
    for reply in replies:
        if reply is replies[-1]:
            with pytest.raises(services.Snooze):
                await make()
            breaker_time.now += 30
        with pytest.raises(ServiceError, match=f"answered {reply.status}"):
            await make()
    assert [(await make()).status for _ in range(3)] == [200, 200, 200]


async def test_hours_of_retry_after_pass_in_a_test_of_the_app(http_server, service_settings):
    """In memory, with a clock that jumps: each attempt has the same key, and the delays are exact."""
    http_server.replies["/api/things"] = [Reply(503, in_seconds="1800"), Reply(429, at_date=3000), Reply(500)]
    async with running(services.app) as harness:
        began = harness.clock.now()
        with harness.clock.jumping():
            answer = await services.call_service.options(timeout=30).call(request())
        hours = (harness.clock.now() - began).total_seconds() / 3600
    assert answer.attempt == 4
    assert len({asked.key for asked in http_server.requests}) == 1
    assert 4800 <= hours * 3600 < 4900


async def test_a_final_answer_is_a_dead_letter_in_the_app_too(http_server, service_settings):
    """At the first attempt, under the error's own name."""
    http_server.replies["/api/things"] = Reply(404, b"no such thing")
    async with running(services.app) as harness:
        with pytest.raises(TaskFailed, match="answered 404 Not Found: no such thing") as caught:
            await services.call_service.call(request())
        assert harness.node.count("services.dead") == 1
    assert caught.value.type == "http_call.UnexpectedStatusError"
