"""The end of the demo: one more picture, by way of the web service `web.py`, as a browser would send and follow it.

The service knows the task's progress and result from the result store alone: it is a process of its own, which neither
runs tasks nor shares memory with who does. (But for `BROKER=memory`, where everything is one process.)
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import httpx
from PIL import Image

import images
from demo import samples
from demo.checks import Check
from demo.settings import DemoError, Run
from demo.story import Outcomes
from demo.view import View


@dataclass(frozen=True, slots=True)
class Uploaded:
    """What a client of the service has seen.

    Attributes:
        statuses: The data of the events, in the order in which they came.
        asked: What `GET /task/{id}` answered afterwards.
        shown: The thumbnail that the page would show.
    """

    statuses: list[dict[str, Any]]
    asked: dict[str, Any]
    shown: bytes


async def upload(url: str, run: Run, outcomes: Outcomes, view: View, *, timeout_s: float) -> list[Check]:
    """Upload a picture, follow it by its events, and say what came of it.

    Args:
        url: Where the service is.
        run: Its folders and queues.
        outcomes: What the tasks answered before.
        view: Where to show it.
        timeout_s: How long to wait for each answer, in seconds.

    Raises:
        DemoError: The service does not answer as it should.
    """
    view.step("One more picture, uploaded to a web service; its progress comes back as server-sent events")
    started = perf_counter()
    name, content = await asyncio.to_thread(a_picture, run, outcomes)
    try:
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=timeout_s) as client:
            uploaded = await send_and_follow(client, name, content, view)
    except httpx.HTTPError as error:
        raise DemoError(f"The web service at {url} failed: {error!r}. Its log is in {run.logs}.") from error
    outcomes.seconds["the upload"] = perf_counter() - started
    last = uploaded.statuses[-1]
    view.finish(name, f"{len(uploaded.statuses)} events, the last one: {last['state']}", good=last["error"] is None)
    return list(checks_of(run, uploaded))


def a_picture(run: Run, outcomes: Outcomes) -> tuple[str, bytes]:
    """Return the smallest picture that was converted, or one that is painted for the purpose."""
    if outcomes.converted:
        name = min(outcomes.converted, key=lambda source: outcomes.converted[source].source.size_bytes)
        return name, (run.pictures / name).read_bytes()
    samples.paint(run.folder / "upload.jpg", seed=0)
    return "upload.jpg", (run.folder / "upload.jpg").read_bytes()


async def send_and_follow(client: httpx.AsyncClient, name: str, content: bytes, view: View) -> Uploaded:
    """Do what the page does."""
    answer = await client.post("/pictures", files={"picture": (name, content)})
    task_id = answer.raise_for_status().json()["task_id"]
    statuses = []
    async for status in events(client, task_id):
        statuses.append(status)
        if progress := status["progress"]:
            view.progress(name, progress["done"], progress["total"], progress["label"] or "")
    asked = (await client.get(f"/task/{task_id}")).raise_for_status().json()
    shown = b""
    if asked["status"] == "succeeded":
        thumbnail = asked["result"]["thumbnails"][0]["path"]
        shown = (await client.get(f"/pictures/{thumbnail}")).raise_for_status().content
    return Uploaded(statuses, asked, shown)


async def events(client: httpx.AsyncClient, task_id: str) -> AsyncIterator[dict[str, Any]]:
    """Yield the data of a task's events, up to the end of the stream."""
    async with client.stream("GET", f"/tasks/{task_id}/events") as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))


def checks_of(run: Run, uploaded: Uploaded) -> Iterator[Check]:
    """The events lead to the end, the service says the same when it is asked, and the picture is the worker's own."""
    states = [status["state"] for status in uploaded.statuses]
    progress = [status["progress"] for status in uploaded.statuses if status["progress"]]
    done = [each["done"] for each in progress]
    yield Check(
        "The web service's events told how the upload's task went on, to its success",
        states[-1:] == ["succeeded"]
        and done == sorted(done)
        and done[-1:] == [each["total"] for each in progress[-1:]],
        f"{states}, {done}",
    )
    result = uploaded.statuses[-1]["result"] if uploaded.statuses else None
    yield Check("Asked afterwards, it said the same", uploaded.asked.get("result") == result, f"{uploaded.asked}")
    wrong = problem_of(run, uploaded.asked.get("result"), uploaded.shown)
    yield Check("The picture that its page would show is the worker's own file", wrong is None, wrong or "")


def problem_of(run: Run, result: Any, shown: bytes) -> str | None:
    """Say what is wrong with what the page would show; None where nothing is."""
    if not shown:
        return "there is none"
    thumbnail = images.Converted.model_validate(result).thumbnails[0]
    if (run.converted / thumbnail.path).read_bytes() != shown:
        return f"{thumbnail.path} is another file"
    with Image.open(io.BytesIO(shown), formats=["WEBP"]) as picture:
        picture.load()
        return None if picture.size == (thumbnail.width, thumbnail.height) else f"it is {picture.size}"
