"""asyncq in FastAPI: a service over real HTTP, a real broker, and a result store in a file."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading
import uuid
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI, Request
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from asyncq import AsyncQ, TaskContext
from asyncq.errors import NotOpen
from asyncq.integrations.fastapi import (
    AsyncQDep,
    TaskStatusOut,
    add_error_handlers,
    asyncq_lifespan,
    status_model,
    task_router,
)
from proxy import proxy_of
from support import eventually, working
from web_server import events_in, serving

GO_ON_S = 30


class Receipt(BaseModel):
    """What the mail task returns."""

    to: str
    pages: int


class Shop:
    """An app as two processes have it: the service, and somebody else who works.

    Attributes:
        app: What the service has.
        worker_app: What the worker has.
        go_on: Set to let a task that has told of its progress go on.
    """

    def __init__(self, broker_url: str, results: str, **settings) -> None:
        self.go_on = threading.Event()
        same = {name: settings[name] for name in settings.keys() & {"namespace"}}
        self.worker_app = self.make(broker_url, results, **same)
        self.app = self.make(broker_url, results, **settings)
        self.api = FastAPI(lifespan=asyncq_lifespan(self.app))
        self.api.include_router(task_router())
        add_error_handlers(self.api)
        self.add_routes()

    def make(self, broker_url: str, results: str, **settings) -> AsyncQ:
        app = AsyncQ("shop", broker=broker_url, results=results, **settings)

        @app.task(pass_context=True)
        async def mail(ctx: TaskContext, to: str, pages: int = 3) -> Receipt:
            for page in range(pages):
                await ctx.progress(page, pages, label=f"page {page}")
                await asyncio.to_thread(self.go_on.wait, GO_ON_S)
            if to == "nobody":
                raise LookupError("there is no such address")
            return Receipt(to=to, pages=pages)

        @app.task
        def count(word: str) -> int:
            return len(word)

        return app

    def add_routes(self) -> None:
        mail, count = self.app.tasks["shop.mail"], self.app.tasks["shop.count"]

        @self.api.post("/mails/{to}")
        async def send(to: str, app: AsyncQDep) -> str:
            assert app is self.app
            return (await mail.send(to)).id

        @self.api.get("/mails/{task_id}", response_model=status_model(mail))
        async def look(task_id: str) -> TaskStatusOut[Receipt]:
            return TaskStatusOut[Receipt].of(await mail.handle(task_id).status())

        @self.api.get("/counts/{word}")
        def call(word: str) -> int:
            return self.app.sync.call(count.s(word))

        @self.api.get("/waits/{task_id}")
        async def wait(task_id: str) -> Receipt:
            return await mail.handle(task_id).result(timeout=0.1)


@pytest.fixture
def results(tmp_path):
    """The URL of a result store in a file."""
    return f"sqlite:///{tmp_path}/results.db"


@pytest.fixture
def shop(broker_url, results):
    """A service, not running yet."""
    return Shop(broker_url, results)


async def status_of(client, task_id):
    """Ask the ready router."""
    answer = await client.get(f"/tasks/{task_id}")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_service_tells_how_far_the_task_is_that_another_process_runs(shop):
    """From queued to the result, by the ready router."""
    async with serving(shop.api) as client:
        task_id = (await client.post("/mails/you")).json()
        queued = await status_of(client, task_id)
        assert (queued["state"], queued["task"], queued["queue"]) == ("queued", "shop.mail", "shop")
        assert (queued["final"], queued["result"]) == (False, None)
        async with working(shop.worker_app):
            started = await eventually(lambda: progress_of(client, task_id))
            assert started["progress"]["label"] == "page 0"
            shop.go_on.set()
            ended = await eventually(lambda: end_of(client, task_id))
        assert (ended["state"], ended["result"]) == ("succeeded", {"to": "you", "pages": 3})
        assert (await client.get(f"/mails/{task_id}")).json() == ended


async def progress_of(client, task_id):
    """Return the status once it has progress."""
    status = await status_of(client, task_id)
    return status if status["progress"] else None


async def end_of(client, task_id):
    """Return the status once it is final."""
    status = await status_of(client, task_id)
    return status if status["final"] else None


async def test_a_failed_task_shows_its_error_and_no_traceback(shop):
    """Where it was raised is nobody's business outside, unless the router is told otherwise."""
    shop.go_on.set()
    shop.api.include_router(task_router(prefix="/internal", tracebacks=True))
    async with working(shop.worker_app), serving(shop.api) as client:
        task_id = (await client.post("/mails/nobody")).json()
        ended = await eventually(lambda: end_of(client, task_id))
        assert (ended["state"], bool(ended["reason"])) == ("failed", True)
        assert ended["error"] == {
            "type": "builtins.LookupError",
            "message": "there is no such address",
            "traceback": None,
        }
        internal = (await client.get(f"/internal/{task_id}")).json()
        assert "raise LookupError" in internal["error"]["traceback"]


async def test_events_tell_states_and_progress_as_they_come_and_end_with_the_task(shop):
    """The server ends the response after the final one."""
    async with serving(shop.api) as client:
        task_id = (await client.post("/mails/you")).json()
        async with client.stream("GET", f"/tasks/{task_id}/events") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            assert response.headers["cache-control"] == "no-store"
            events = events_in(response)
            assert (await anext(events)).data["state"] == "queued"
            async with working(shop.worker_app):
                seen = []
                async for event in events:
                    seen.append(event.data)
                    if event.data["progress"]:
                        shop.go_on.set()
        assert seen[-1]["state"] == "succeeded"
        assert seen[-1]["result"] == {"to": "you", "pages": 3}
        assert {status["state"] for status in seen[:-1]} == {"started"}
        assert any(status["progress"] for status in seen[:-1])


async def test_a_client_that_comes_again_after_the_end_is_told_that_there_is_no_more(shop):
    """204 keeps an EventSource from asking for ever; one that has not seen the end gets it."""
    shop.go_on.set()
    async with working(shop.worker_app), serving(shop.api) as client:
        task_id = (await client.post("/mails/you")).json()
        async with client.stream("GET", f"/tasks/{task_id}/events") as response:
            seen = [event async for event in events_in(response)]
        path, headers = f"/tasks/{task_id}/events", {"Last-Event-ID": seen[-1].id}
        assert (await client.get(path, headers=headers)).status_code == 204
        async with client.stream("GET", path, headers={"Last-Event-ID": "0-queued-"}) as response:
            assert [event async for event in events_in(response)] == [seen[-1]]


async def test_a_task_is_cancelled_by_its_id_and_its_events_end_with_that(shop):
    """Where it runs, and where it waits; what has ended is told as it is."""
    async with serving(shop.api) as client:
        async with working(shop.worker_app):
            task_id = (await client.post("/mails/you")).json()
            async with client.stream("GET", f"/tasks/{task_id}/events") as response:
                states = []
                async for event in events_in(response):
                    states.append(event.data["state"])
                    if event.data["progress"] and not event.data["final"]:
                        asked = await client.delete(f"/tasks/{task_id}")
                        assert (asked.status_code, asked.json()["state"]) == (202, "started")
            assert states[-1] == "cancelled"
            shop.go_on.set()  # for its thread, which nobody waits for any more
            again = await client.delete(f"/tasks/{task_id}")
            assert (again.status_code, again.json()["state"]) == (200, "cancelled")
        waiting = (await client.post("/mails/you")).json()
        assert (await client.delete(f"/tasks/{waiting}")).json()["state"] == "queued"
        async with working(shop.worker_app):
            assert (await eventually(lambda: end_of(client, waiting)))["state"] == "cancelled"
        assert (await client.delete("/tasks/no-such-id")).status_code == 404


async def test_a_service_may_have_no_cancelling(broker_url, results):
    """By the router's option, or by the app's setting."""
    shop = Shop(broker_url, results, cancellations_kept_s=0)
    shop.api.include_router(task_router(prefix="/looking", cancelling=False))
    async with serving(shop.api) as client:
        task_id = (await client.post("/mails/you")).json()
        answer = await client.delete(f"/tasks/{task_id}")
        assert (answer.status_code, answer.json()["detail"]) == (501, "This service cancels no tasks.")
        assert (await client.delete(f"/looking/{task_id}")).status_code == 405


async def test_a_client_that_goes_away_ends_the_reading(shop):
    """Nothing is left of it in the service."""

    def reading() -> list[str]:
        return [task.get_name() for task in asyncio.all_tasks() if task.get_name() == "asyncq events"]

    async with serving(shop.api) as client:
        task_id = (await client.post("/mails/you")).json()
        async with client.stream("GET", f"/tasks/{task_id}/events") as response:
            await anext(events_in(response))
            assert len(reading()) == 1
        await eventually(lambda: not reading())
        assert (await status_of(client, task_id))["state"] == "queued"


async def test_a_quiet_stream_is_kept_alive(broker_url, results):
    """By comments, which are no events."""
    shop = Shop(broker_url, results)
    shop.api.include_router(task_router(prefix="/often", keep_alive_s=0.05))
    async with serving(shop.api) as client:
        task_id = (await client.post("/mails/you")).json()
        async with client.stream("GET", f"/often/{task_id}/events") as response:
            lines = response.aiter_lines()
            comments = 0
            while comments < 3:
                comments += (await anext(lines)).startswith(":")


@pytest.mark.parametrize("path", ["/tasks/{id}", "/tasks/{id}/events"])
async def test_an_id_that_nothing_is_known_of_is_404(shop, path):
    """Unknown is not queued; and an id that no task can have is no id."""
    async with serving(shop.api) as client:
        answer = await client.get(path.format(id="no-such-id"))
        assert (answer.status_code, answer.json()["detail"]) == (404, "Nothing is known of a task with this id.")
        assert (await client.get(path.format(id="%00"))).status_code == 422
        assert (await client.get(path.format(id="x" * 129))).status_code == 422
        assert (await client.get(path.format(id="é" * 65))).status_code == 422


async def test_the_id_of_another_task_is_404_where_one_kind_is_asked_for(shop):
    """The typed handle refuses it, and the handler says so."""
    async with working(shop.worker_app), serving(shop.api) as client:
        handle = await shop.app.tasks["shop.count"].send("word")
        assert await handle.result(timeout=GO_ON_S) == 4
        answer = await client.get(f"/mails/{handle.id}")
        assert (answer.status_code, answer.json()["detail"]) == (404, "The task with this id is of another kind.")


async def test_a_def_route_calls_a_task_and_leaves_no_connection_behind(shop, management):
    """FastAPI runs it in a thread; `app.sync` has connections of its own, which the lifespan closes."""
    async with working(shop.worker_app):
        async with serving(shop.api) as client:
            answers = await asyncio.gather(*(client.get(f"/counts/{'x' * length}") for length in range(1, 20)))
            assert [answer.json() for answer in answers] == list(range(1, 20))
            assert shop.app.sync.is_open
        assert not shop.app.sync.is_open


async def test_a_result_that_does_not_come_in_time_is_504_and_an_unknown_one_404(shop):
    """By the handlers; the task itself goes on."""
    async with serving(shop.api) as client:
        task_id = (await client.post("/mails/you")).json()
        assert (await client.get(f"/waits/{task_id}")).status_code == 504
        assert (await client.get("/waits/no-such-id")).status_code == 404


async def test_a_broker_that_is_away_is_503_and_the_service_goes_on_when_it_is_back(broker_url, results, caplog):
    """For both kinds of routes; names and addresses are in the log, and not in the answer."""
    async with proxy_of(broker_url) as proxy:
        shop = Shop(proxy.url, results, publish_timeout_s=1, connect_timeout_s=1)
        shop.go_on.set()
        async with serving(shop.api) as client:
            await proxy.refuse()
            for answer in (await client.post("/mails/you"), await client.get("/counts/word")):
                assert answer.status_code == 503
                assert answer.headers["retry-after"] == "5"
                assert "127.0.0.1" not in answer.text
            await proxy.listen()

            async def sent() -> bool:
                return (await client.post("/mails/you")).status_code == 200

            await eventually(sent, timeout=GO_ON_S)


async def test_a_result_store_that_is_away_is_503_for_who_asks_and_nothing_for_who_sends(broker_url):
    """Nobody listens at its port."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        shop = Shop(broker_url, f"redis://127.0.0.1:{taken.getsockname()[1]}/0")
        async with serving(shop.api) as client:
            answer = await client.post("/mails/you")
            assert answer.status_code == 200
            for path in (f"/tasks/{answer.json()}", f"/tasks/{answer.json()}/events", f"/mails/{answer.json()}"):
                asked = await client.get(path)
                assert asked.status_code == 503
                assert asked.headers["retry-after"] == "5"
                assert asked.json() == {"detail": "The status of tasks cannot be read at the moment. Try again later."}


async def test_without_a_result_store_the_router_says_that_there_is_none(broker_url):
    """501, also where no handlers are installed."""
    app = AsyncQ("shop", broker=broker_url, results="none")
    api = FastAPI(lifespan=asyncq_lifespan(app))
    api.include_router(task_router())
    async with serving(api) as client:
        for path in ("/tasks/42", "/tasks/42/events"):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()) == (501, {"detail": "This service keeps no results."})


async def test_the_lifespan_of_the_app_is_for_workers_and_not_for_the_service(broker_url, results):
    """A worker in the service's own process enters it once."""
    app = AsyncQ("shop", broker=broker_url, results=results)
    opened = []

    @app.lifespan
    async def lifespan(app: AsyncQ):
        opened.append(1)
        yield "resource"

    @app.task(pass_context=True)
    async def look(ctx: TaskContext[str]) -> str:
        return ctx.resources

    api = FastAPI(lifespan=asyncq_lifespan(app))

    @api.get("/")
    async def route() -> str:
        return await look.call()

    async with serving(api) as client:
        assert opened == []
        async with working(app):
            assert (await client.get("/")).json() == "resource"
    assert opened == [1]


async def test_a_message_that_is_too_large_is_413(broker_url, results):
    """The client's own doing."""
    shop = Shop(broker_url, results, max_message_bytes=1024)
    async with serving(shop.api) as client:
        assert (await client.post(f"/mails/{'x' * 2000}")).status_code == 413


async def test_openapi_shows_the_type_of_the_result(shop):
    """So that clients are made from it."""
    async with serving(shop.api) as client:
        document = (await client.get("/openapi.json")).json()
    answer = document["paths"]["/mails/{task_id}"]["get"]["responses"]["200"]["content"]["application/json"]
    name = answer["schema"]["$ref"].rpartition("/")[2]
    result = document["components"]["schemas"][name]["properties"]["result"]
    assert {"$ref": "#/components/schemas/Receipt"} in result["anyOf"]
    assert "text/event-stream" in document["paths"]["/tasks/{task_id}/events"]["get"]["responses"]["200"]["content"]


async def test_a_lifespan_of_ones_own_runs_inside_and_its_state_is_there(shop):
    """In its beginning and its end the app is open; afterwards it is not."""
    told = []

    @asynccontextmanager
    async def own(api: FastAPI):
        told.append((await shop.app.tasks["shop.mail"].send("me")).id)
        yield {"colour": "green"}
        told.append((await shop.app.tasks["shop.mail"].send("me")).id)

    api = FastAPI(lifespan=asyncq_lifespan(shop.app, then=own))

    @api.get("/")
    async def look(request: Request, app: AsyncQDep) -> str:
        return f"{app.name} {request.state.colour}"

    async with serving(api) as client:
        assert (await client.get("/")).json() == "shop green"
    assert len(told) == 2
    with pytest.raises(NotOpen):
        await shop.app.tasks["shop.mail"].send("me")


async def test_a_mounted_service_has_the_app_of_the_outer_one(shop):
    """A mounted FastAPI's own lifespan is not run."""
    inner = FastAPI()

    @inner.get("/")
    async def look(app: AsyncQDep) -> str:
        return app.name

    shop.api.mount("/inner", inner)
    async with serving(shop.api) as client:
        assert (await client.get("/inner/")).json() == "shop"


async def test_several_apps_are_opened_and_the_first_one_is_given(broker_url, results):
    """Each is sent to by its own tasks."""
    first, second = (AsyncQ(name, broker=broker_url, results=results) for name in ("first", "second"))

    @second.task
    async def work() -> None: ...

    api = FastAPI(lifespan=asyncq_lifespan(first, second))

    @api.post("/")
    async def send(app: AsyncQDep) -> list[str]:
        return [app.name, (await work.send()).id]

    async with serving(api) as client:
        name, task_id = (await client.post("/")).json()
    assert name == "first"
    assert task_id


async def test_a_service_without_the_lifespan_says_what_is_missing():
    """As a client does that runs none."""
    api = FastAPI()

    @api.get("/")
    async def look(app: AsyncQDep) -> str:
        return app.name

    transport = httpx.ASGITransport(api)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        with pytest.raises(NotOpen, match="lifespan=asyncq_lifespan"):
            await client.get("/")


SERVICE = """
from fastapi import FastAPI
from asyncq import AsyncQ
from asyncq.integrations.fastapi import asyncq_lifespan, task_router

app = AsyncQ("shop")
api = FastAPI(lifespan=asyncq_lifespan(app))
api.include_router(task_router())
"""


def test_a_service_does_not_start_without_a_broker_and_says_why(tmp_path):
    """As a program: its last words are the cause, not the inside of an AMQP client."""
    (tmp_path / "service.py").write_text(SERVICE)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "uvicorn", "service:api", "--port", "0"],
            cwd=tmp_path,
            env={
                **os.environ,
                "ASYNCQ_BROKER_URL": f"amqp://guest:guest@127.0.0.1:{port}/",
                "ASYNCQ_CONNECT_TIMEOUT_S": "1",
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 3
    words = done.stderr.partition("Traceback")[2].partition("ERROR:    Application startup failed")[0].strip()
    assert words.splitlines()[-1].startswith("asyncq.errors.BrokerUnavailable: No RabbitMQ can be reached")
    assert f"127.0.0.1:{port}" in words
    assert "asyncq/rabbitmq" not in words


async def test_a_client_that_goes_away_ends_the_reading_also_where_the_server_only_says_so_by_an_error(shop):
    """As servers of ASGI 2.4 do: the next thing that is sent raises OSError."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        if len(sent) == 2:
            raise OSError("the client has gone")
        sent.append(message)

    shop.api.include_router(task_router(prefix="/often", keep_alive_s=0.01))
    async with shop.api.router.lifespan_context(shop.api):
        handle = await shop.app.tasks["shop.mail"].send("you")
        path = f"/often/{handle.id}/events"
        scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1"}
        scope |= {"method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"", "headers": []}
        with contextlib.suppress(ClientDisconnect):
            await shop.api(scope, receive, send)
        assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
        await eventually(lambda: "asyncq events" not in {task.get_name() for task in asyncio.all_tasks()})


async def events_by(results: str) -> list[dict]:
    """Run a task from its sending to its end, and return what a client hears meanwhile."""
    name = uuid.uuid4().hex[:12]
    shop = Shop(f"memory://{name}", results, namespace=f"t-{name}")
    await shop.app.results.init()
    async with serving(shop.api) as client:
        task_id = (await client.post("/mails/you")).json()
        async with client.stream("GET", f"/tasks/{task_id}/events") as response:
            events = events_in(response)
            seen = [(await anext(events)).data]
            async with working(shop.worker_app):
                async for event in events:
                    seen.append(event.data)
                    if event.data["progress"]:
                        shop.go_on.set()
    return seen


def check_events(seen: list[dict]) -> None:
    """From the beginning to the end, with progress in between."""
    states = [status["state"] for status in seen]
    assert (states[0], states[-1]) == ("queued", "succeeded")
    assert "started" in states
    assert any(status["progress"] for status in seen[:-1])
    assert seen[-1]["result"] == {"to": "you", "pages": 3}


async def test_events_come_from_a_store_in_postgresql(postgres_server):
    """Which tells of changes by notifications."""
    check_events(await events_by(postgres_server.url))


async def test_events_come_from_a_store_in_redis(redis_server):
    """Which tells of changes by pub/sub."""
    check_events(await events_by(redis_server.url))
