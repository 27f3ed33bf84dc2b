"""The demo's producer: it sends the tasks, follows them and collects what came of them.

Nothing here is played: the failed picture is cut short on disk, and the refusals come from a mail server and a web
service. Import this module only when `ASYNCQ_BROKER_URL` is set, because the workers' apps read it when they are made.
"""

from __future__ import annotations

import asyncio
import csv
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any, TypeVar

from pydantic import JsonValue

import images
import mail
import ml
import reports
import services
from asyncq import ResultHandle, TaskFailed, Unroutable
from demo.samples import readable
from demo.settings import Run
from demo.view import View

R = TypeVar("R")
T = TypeVar("T")

WORKER_START_S = 30
RECIPIENT = "reader@example.org"
LABEL = "picture"
NUMBERS = ["original KB", "WebP KB", "thumbnails KB", "seconds"]
CSV_NAME = "pictures.csv"
TRAINING = ml.Training(model="digits", epochs=30)


@dataclass(slots=True)
class Outcomes:
    """What the tasks answered.

    Attributes:
        described: The answer of the RPC call.
        converted: By source: what the images worker wrote.
        failed: By source: why it did not.
        task_ids: By source: the task's id.
        report: What the reports worker wrote.
        receipt: What the mail worker was told.
        mail_task_id: The mail's task id.
        answer: What the services worker was answered.
        notice_task_id: The notice's task id.
        trained: What the ml worker has trained.
        digits: What the model reads on the pictures that it was not trained on.
        seconds: How long each part took.
    """

    described: images.PictureFacts
    converted: dict[str, images.Converted] = field(default_factory=dict)
    failed: dict[str, TaskFailed] = field(default_factory=dict)
    task_ids: dict[str, str] = field(default_factory=dict)
    report: reports.Report | None = None
    receipt: mail.Receipt | None = None
    mail_task_id: str = ""
    answer: services.ServiceAnswer | None = None
    notice_task_id: str = ""
    trained: ml.Trained | None = None
    digits: list[int] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


class Story:
    """One run of the demo, from the first task to the notice.

    Args:
        run: Its folders and queues.
        sources: The pictures, relative to the run's picture folder.
        view: Where to show it.
        timeout_s: How long to wait for each result, in seconds.
    """

    def __init__(self, run: Run, sources: list[str], view: View, *, timeout_s: float) -> None:
        self.run = run
        self.sources = sources
        self.view = view
        self.timeout_s = timeout_s

    async def play(self) -> Outcomes:
        """Do it all."""
        async with images.app, reports.app, mail.app, services.app, ml.app:
            outcomes = await self.ask()
            await self.convert(outcomes)
            await self.report(outcomes)
            await self.mail(outcomes)
            await self.notify(outcomes)
            await self.learn(outcomes)
        return outcomes

    async def ask(self) -> Outcomes:
        """Call a task and wait for its answer, as one calls a function."""
        source = next((name for name in self.sources if readable(self.run.pictures / name)), self.sources[0])
        self.view.step("One call, one answer (RPC)")
        task = images.describe.options(queue=self.run.queue("images"), timeout=self.timeout_s)
        await self.once_up(lambda: task.call(source))  # the worker is up now; measure the next call
        started = perf_counter()
        facts = await task.call(source)
        seconds = perf_counter() - started
        picture = f"{facts.format}, {facts.width} x {facts.height}, {facts.size_bytes / 1e6:.1f} MB"
        self.view.finish(f"images.describe({source!r})", f"{picture}, after {1000 * seconds:.0f} ms")
        return Outcomes(facts, seconds={"the RPC call": seconds})

    async def convert(self, outcomes: Outcomes) -> None:
        """Send a task for every picture, and follow them all at once."""
        self.view.step(f"{len(self.sources)} pictures to WebP and thumbnails, one of them cut short")
        started = perf_counter()
        queue = self.run.queue("images")
        task = images.convert.options(queue=queue)
        handles = await images.app.send_many(task.s(source) for source in self.sources)
        async with asyncio.TaskGroup() as group:
            for source, handle in zip(self.sources, handles, strict=True):
                group.create_task(self.follow_picture(outcomes, source, handle))
        outcomes.seconds["the pictures"] = perf_counter() - started

    async def follow_picture(self, outcomes: Outcomes, source: str, handle: ResultHandle[images.Converted]) -> None:
        """Show one picture's progress and note its end."""
        outcomes.task_ids[source] = handle.id
        try:
            done = await self.follow(source, handle)
        except TaskFailed as error:
            outcomes.failed[source] = error
            self.view.finish(source, f"dead-lettered: {error.message}", good=False)
            return
        outcomes.converted[source] = done
        sizes = f"{done.source.size_bytes / 1e6:.1f} MB to {done.webp.size_bytes / 1e6:.1f} MB"
        self.view.finish(source, f"{sizes}, {len(done.thumbnails)} thumbnails, {done.seconds:.1f} s")

    async def report(self, outcomes: Outcomes) -> None:
        """Write the figures into a CSV file and have a report made of it."""
        self.view.step("A report from the real figures")
        started = perf_counter()
        await asyncio.to_thread(self.write_csv, self.run.csv / CSV_NAME, outcomes)
        order = reports.Order(source=CSV_NAME, title=f"Pictures of {self.run.id}", label=LABEL, numbers=NUMBERS)
        task = reports.build_report.options(queue=self.run.queue("reports"))
        handle = await self.once_up(lambda: task.send(order))
        report = await self.follow("report", handle)
        outcomes.report = report
        outcomes.seconds["the report"] = perf_counter() - started
        left_out = "".join(f"; line {row.line} left out: {row.problem}" for row in report.bad_rows[:1])
        if report.bad_rows_total > 1:
            left_out += f"; {report.bad_rows_total - 1} more"
        self.view.finish("report", f"{report.path}, {report.rows} rows{left_out}")

    def write_csv(self, path: Path, outcomes: Outcomes) -> None:
        """Write one row a picture; one that failed has no figures, and the report will say so."""
        with path.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow([LABEL, *NUMBERS])
            for source in self.sources:
                done = outcomes.converted.get(source)
                rows.writerow([source, *(figures_of(done) if done else [""] * len(NUMBERS))])

    async def mail(self, outcomes: Outcomes) -> None:
        """Mail the report. The mail server will put the worker off twice."""
        report = outcomes.report
        assert report is not None  # noqa: S101 - the part before this one made it
        self.view.step("The report by mail; the server says 451, try again later, to the first two attempts")
        started = perf_counter()
        letter = mail.Letter(
            to=RECIPIENT,
            subject=f"Pictures of {self.run.id}",
            template="report",
            values={
                "title": f"Pictures of {self.run.id}",
                "figures": {figures.column: str(figures.total) for figures in report.figures},
                "problems": [f"{source}: {error.message}" for source, error in outcomes.failed.items()],
            },
            attachments=[report.path],
        )
        task = mail.send_email.options(queue=self.run.queue("mail"))
        handle = await self.once_up(lambda: task.send(letter))
        outcomes.mail_task_id = handle.id
        words = "mail server: {code} to attempt {time_no}; the broker keeps the mail"
        answers = asyncio.ensure_future(self.show_refusals(self.run.mail_log, words))
        try:
            outcomes.receipt = await self.follow("mail", handle)
        finally:
            answers.cancel()
        outcomes.seconds["the mail"] = perf_counter() - started
        self.view.finish("mail", f"accepted at attempt {outcomes.receipt.attempt}: {outcomes.receipt.answer}")

    async def notify(self, outcomes: Outcomes) -> None:
        """Tell a web service of the report. It will ask the worker to come again in a second."""
        self.view.step("A notice of it to a web service, which says 503, Retry-After: 1, to the first attempt")
        started = perf_counter()
        notice = services.ServiceRequest(
            service="notices", method="POST", path="/notices", body=notice_of(outcomes), statuses=[200, 201]
        )
        task = services.call_service.options(queue=self.run.queue("services"))
        handle = await self.once_up(lambda: task.send(notice))
        outcomes.notice_task_id = handle.id
        words = (
            "web service: {code}, come again in {retry_after_s} s, to attempt {time_no}; the broker keeps the notice"
        )
        answers = asyncio.ensure_future(self.show_refusals(self.run.notice_log, words))
        try:
            outcomes.answer = answer = await self.follow("notice", handle)
        finally:
            answers.cancel()
        outcomes.seconds["the notice"] = perf_counter() - started
        self.view.finish("notice", f"accepted at attempt {answer.attempt}: {answer.status}, {answer.location}")

    async def learn(self, outcomes: Outcomes) -> None:
        """Train a model in a process of its own, and ask it for digits that it has never seen."""
        self.view.step("A network that learns to read handwritten digits, in a process of its own")
        started = perf_counter()
        queue = self.run.queue("ml")
        train = ml.train.options(queue=queue)
        handle = await self.once_up(lambda: train.send(TRAINING))
        outcomes.trained = trained = await self.follow("training", handle)
        self.view.finish("training", f"{trained.epochs} epochs, {trained.accuracy:.1%} right, {trained.seconds:.1f} s")
        pictures, _ = await asyncio.to_thread(held_back)
        predict = ml.predict.options(queue=queue, timeout=self.timeout_s)
        answer = await predict.call(ml.Question(model=TRAINING.model, pictures=pictures))
        outcomes.digits = answer.digits
        outcomes.seconds["the network"] = perf_counter() - started
        self.view.finish("reading", f"{len(answer.digits)} digits, {min(answer.certainties):.0%} sure at least")

    async def show_refusals(self, log: Path, words: str) -> None:
        """Show each refusal of a server as it writes it into its log."""
        shown = 0
        while True:
            events = [event for event in server_events(log) if event["event"] == "refused"]
            for event in events[shown:]:
                self.view.note(words.format(**event))
            shown = len(events)
            await asyncio.sleep(0.1)

    async def once_up(self, send: Callable[[], Awaitable[T]]) -> T:
        """Send to a worker that is perhaps still starting: it is the worker that declares its queue.

        Raises:
            Unroutable: There is still no queue after a while.
        """
        deadline = monotonic() + WORKER_START_S
        while True:
            try:
                return await send()
            except Unroutable:  # no queue yet, so the broker has kept nothing: sending again is safe
                if monotonic() > deadline:
                    raise
            await asyncio.sleep(0.1)

    async def follow(self, key: str, handle: ResultHandle[R]) -> R:
        """Show a task's progress until its end, and return its result.

        Raises:
            TaskFailed: It failed.
            ResultTimeout: It took too long.
        """

        async def show() -> None:
            async for update in handle.updates():
                attempt = update.details.get("attempt")
                label = f"attempt {attempt}: {update.label}" if attempt else (update.label or "")
                self.view.progress(key, update.done, update.total, label)

        showing = asyncio.ensure_future(show())
        try:
            return await handle.result(timeout=self.timeout_s)
        finally:
            showing.cancel()
            await asyncio.gather(showing, return_exceptions=True)


def figures_of(done: images.Converted) -> list[str]:
    """Return a picture's figures for the CSV, in the order of `NUMBERS`."""
    thumbnails = sum(thumbnail.size_bytes for thumbnail in done.thumbnails)
    return [
        f"{done.source.size_bytes / 1000:.1f}",
        f"{done.webp.size_bytes / 1000:.1f}",
        f"{thumbnails / 1000:.1f}",
        f"{done.seconds:.3f}",
    ]


def notice_of(outcomes: Outcomes) -> dict[str, JsonValue]:
    """Return what the web service is told."""
    report = outcomes.report
    assert report is not None  # noqa: S101 - an earlier part made it
    return {
        "report": report.path,
        "size_bytes": report.size_bytes,
        "totals": {figures.column: str(figures.total) for figures in report.figures},
    }


def held_back() -> tuple[list[list[float]], list[int]]:
    """Return the pictures that the network is not trained on, and the digits that they really show."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 - not before it is needed: its import takes a second
    from sklearn.model_selection import train_test_split  # noqa: PLC0415

    data = load_digits()
    _, pictures, _, digits = train_test_split(
        data.data,
        data.target,
        test_size=TRAINING.held_back,
        random_state=TRAINING.seed,
        stratify=data.target,
    )
    return pictures.tolist(), digits.tolist()


def server_events(log: Path) -> list[dict[str, Any]]:
    """Return what a server has written into its log."""
    text = log.read_text()
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
