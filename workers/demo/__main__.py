"""Run the demo: the stage (broker, servers, workers) up, the story, the checks, everything down again.

What was started is stopped in every case: at the end, on errors, on Ctrl-C. Only `KEEP=1` leaves it up, and then
only after a whole run.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING

from pydantic import ValidationError

from asyncq.errors import AsyncQError, BrokerError
from asyncq.observability.logs import configure_logging
from demo import samples
from demo.broker_stage import BrokerStage
from demo.memory_stage import MemoryStage
from demo.settings import DemoError, DemoSettings, Run
from demo.stage import SLOTS, Stage
from demo.view import View, choose_view

if TYPE_CHECKING:  # their modules import the workers' apps
    from demo.checks import Check
    from demo.story import Outcomes

HEALTH_EVERY_S = 2.0
RETRY_FIRST_S = 1.0
SERVICE_BACKOFF_S = 120.0
INTERRUPTED = 130


class Demo:
    """One run.

    Args:
        settings: What was asked for.
        run: Its folders and queues.
        view: Where to show it.
    """

    def __init__(self, settings: DemoSettings, run: Run, view: View) -> None:
        self.settings = settings
        self.run = run
        self.view = view
        self.stage: Stage = (
            MemoryStage(run, view) if settings.in_memory else BrokerStage(run, view, settings.asyncq_broker_url)
        )
        self.whole = False
        self.broker_answers = True

    async def go(self) -> bool:
        """Do everything, and return whether every check holds. The stage is still up then."""
        started = perf_counter()
        if self.settings.pictures is not None and not self.settings.pictures.is_dir():
            raise DemoError(f"PICTURES={self.settings.pictures} is no folder.")
        self.view.step("A broker, and pictures to work on")
        preparing = asyncio.ensure_future(asyncio.to_thread(self.prepare_pictures))
        broker_url = await self.stage.provide_broker()
        sources = await preparing
        self.view.note(f"{len(sources)} pictures in {self.run.pictures}")
        self.view.step("A mail server, two web services, a file server, and a worker for each kind of work")
        self.set_environment(broker_url)
        os.environ["MAIL_SMTP_PORT"] = str(await self.stage.start_mail_server())
        notices_url = f"http://127.0.0.1:{await self.stage.start_notice_service()}"
        os.environ["SERVICES_BASE_URLS"] = json.dumps({"notices": notices_url})
        os.environ["FILES_BASE_URL"] = f"http://127.0.0.1:{await self.stage.start_file_server()}"
        await self.stage.start_workers()
        web_url = f"http://127.0.0.1:{await self.stage.start_web_service()}"

        # The workers' apps read the environment when they are made, so these modules come only now.
        story = importlib.import_module("demo.story")
        checks = importlib.import_module("demo.checks")
        playing = asyncio.ensure_future(
            story.Story(self.run, sources, self.view, timeout_s=self.settings.demo_timeout_s).play()
        )
        watching = asyncio.ensure_future(self.stage.watch())
        try:
            await asyncio.wait({playing, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not playing.done():
                watching.result()
            outcomes = await playing
        finally:
            playing.cancel()
            watching.cancel()
            await asyncio.gather(playing, watching, return_exceptions=True)
        self.view.step("Is it all true?")
        lists = await asyncio.gather(*(self.stage.dead_letters(self.run.queue(worker)) for worker in SLOTS))
        dead = dict(zip(SLOTS, lists, strict=True))
        results = await asyncio.to_thread(
            checks.check_all, self.run, sources, outcomes, dead, checks.Delays(RETRY_FIRST_S, SERVICE_BACKOFF_S)
        )
        self.judge(results)
        results += await self.play_on(outcomes, web_url)
        outcomes.seconds["everything"] = perf_counter() - started
        self.whole = all(check.holds for check in results)
        self.summarise(outcomes.seconds, failed=[check.sentence for check in results if not check.holds])
        return self.whole

    async def play_on(self, outcomes: Outcomes, web_url: str) -> list[Check]:
        """Play what comes after the story, and judge each part."""
        repair, upload, flows, by_schedule = (
            importlib.import_module(f"demo.{name}") for name in ("repair", "upload", "flows", "by_schedule")
        )
        run, view, timeout_s = self.run, self.view, self.settings.demo_timeout_s
        results: list[Check] = []
        parts: list[Callable[[], Awaitable[list[Check]]]] = [
            lambda: repair.repair(self.stage, run, outcomes, view, timeout_s=timeout_s),
            lambda: upload.upload(web_url, run, outcomes, view, timeout_s=timeout_s),
            lambda: flows.play(run, outcomes, view, timeout_s=timeout_s),
            lambda: by_schedule.look(run, outcomes, view, timeout_s=timeout_s),
        ]
        for part in parts:
            checks = await part()
            self.judge(checks)
            results += checks
        return results

    def judge(self, checks: Sequence[Check]) -> None:
        """Show what holds and what does not."""
        for check in checks:
            self.view.verdict(check.sentence, check.found, good=check.holds)

    def prepare_pictures(self) -> list[str]:
        """Fill the folder of pictures, and return their names."""
        folder = self.run.pictures
        if self.settings.pictures is None:
            names = samples.paint_all(folder, self.settings.demo_samples)
        else:
            names = samples.take_all(self.settings.pictures, folder)
        half = (len(names) + 1) // 2  # in the middle: one broken picture does not stop the others
        return [*names[:half], samples.cut_short(folder, names), *names[half:]]

    def set_environment(self, broker_url: str) -> None:
        """Set what the workers read: theirs and, since this process imports their tasks, this one's too."""
        for name in list(os.environ):
            if name.startswith(("IMAGES_", "REPORTS_", "MAIL_", "SERVICES_", "WEB_", "ML_", "MAINTENANCE_", "FILES_")):
                del os.environ[name]  # settings for somebody's real workers are not meant for these
        os.environ.update(
            PYTHONUNBUFFERED="1",
            ASYNCQ_BROKER_URL=broker_url,
            ASYNCQ_RESULTS=f"sqlite:///{self.run.folder}/results.db",
            IMAGES_INPUT_DIR=str(self.run.pictures),
            IMAGES_OUTPUT_DIR=str(self.run.converted),
            IMAGES_WEBP_EFFORT="2",  # half the time of the default, and files about as small
            REPORTS_INPUT_DIR=str(self.run.csv),
            REPORTS_OUTPUT_DIR=str(self.run.reports),
            ML_MODELS_DIR=str(self.run.models),
            FILES_FOLDER=str(self.run.files),
            FILES_RETRY_FIRST_S=str(RETRY_FIRST_S),
            MAINTENANCE_APP=self.run.queue("maintenance"),
            MAINTENANCE_FOLDER=str(self.run.folder),
            MAINTENANCE_HEALTH_EVERY_S=str(HEALTH_EVERY_S),
            MAINTENANCE_MIN_FREE_BYTES="0",  # how full the user's disk is, is not the demo's to judge
            MAIL_ATTACHMENTS_DIR=str(self.run.reports),
            MAIL_SENDER="demo@example.org",
            MAIL_SMTP_HOST="127.0.0.1",
            MAIL_RETRY_FIRST_S=str(RETRY_FIRST_S),
            WEB_IMAGES_QUEUE=self.run.queue("images"),
            WEB_MAIL_QUEUE=self.run.queue("mail"),
            WEB_UPLOAD_MAX_BYTES=str(1 << 30),  # whatever the user's pictures are
            SERVICES_RETRY_FIRST_S=str(SERVICE_BACKOFF_S),  # so long that only `Retry-After` can come before
            no_proxy=",".join(filter(None, [os.environ.get("no_proxy", os.environ.get("NO_PROXY")), "127.0.0.1"])),
        )

    def summarise(self, seconds: dict[str, float], *, failed: list[str]) -> None:
        """Say what was done, where the files are, how long it took, and what is missing."""
        self.view.step("MISSING: " + "; ".join(failed) if failed else "All of it is true.")
        self.view.note("times: " + ", ".join(f"{what} {taken:.2f} s" for what, taken in seconds.items()))
        self.view.note(f"pictures  {self.run.converted}")
        self.view.note(f"report    {self.run.reports}")
        self.view.note(f"mail      {self.run.mails}")
        self.view.note(f"notice    {self.run.notices}")
        self.view.note(f"model     {self.run.models}")
        self.view.note(f"files     {self.run.served}")
        self.view.note(f"logs      {self.run.logs}")
        for line in self.stage.last_words():
            self.view.note(line)

    async def clean_up(self) -> None:
        """Stop what this run has started, or say how to, where it is to stay."""
        if self.settings.keep and self.whole:
            self.view.step("Broker and workers stay up (KEEP=1)")
            for line in self.stage.leave_up():
                self.view.note(line)
            return
        try:
            await self.stage.stop()
            if self.broker_answers:
                await self.stage.delete_queues()
        finally:
            await self.stage.stop_broker()


class Interruption:
    """Turns the first Ctrl-C, SIGTERM or SIGHUP into a cancellation of the current task.

    Later ones do nothing: cutting the cleaning up short would leave processes behind.

    Args:
        view: Where to say so.
    """

    def __init__(self, view: View) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in a task
        self.task = task
        self.view = view
        self.done = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, self.receive)

    def receive(self) -> None:
        """Take a signal."""
        if not self.done:
            self.done = True
            self.view.step("Interrupted; what was started is being stopped")
            self.task.cancel()

    def over(self) -> None:
        """Let the cleaning up run to its end."""
        self.done = True
        self.task.uncancel()


async def run_demo(settings: DemoSettings) -> int:
    """Run the demo and return its exit code."""
    run = Run.create(settings.demo_output)
    with contextlib.ExitStack() as stack:
        # This process's own log goes to a file as well: on the screen it would run through the bars.
        stack.enter_context(contextlib.redirect_stderr(stack.enter_context((run.logs / "demo.log").open("w"))))
        configure_logging()
        view = stack.enter_context(choose_view())
        interruption = Interruption(view)
        demo = Demo(settings, run, view)
        code = 1
        try:
            code = 0 if await demo.go() else 1
        except asyncio.CancelledError:
            code = INTERRUPTED
        except (DemoError, AsyncQError, OSError) as exc:
            demo.broker_answers = not isinstance(exc, BrokerError)
            view.step(f"The demo failed: {exc}")
        except ExceptionGroup as group:
            view.step("The demo failed: " + "; ".join(str(exc) for exc in group.exceptions))
        finally:
            interruption.over()
            view.clear()
            try:
                await demo.clean_up()
            except DemoError as exc:
                view.step(f"Not everything could be cleaned up: {exc}")
                code = code or 1
    return code


def main() -> int:
    """Read the settings and run."""
    try:
        settings = DemoSettings()
    except ValidationError as exc:
        lines = [
            ": ".join([*(str(name).upper() for name in error["loc"]), error["msg"].removeprefix("Value error, ")])
            for error in exc.errors()
        ]
        sys.stderr.write("\n  ".join(["The demo's settings cannot be used:", *lines]) + "\n")
        return 2
    return asyncio.run(run_demo(settings))


if __name__ == "__main__":
    sys.exit(main())
