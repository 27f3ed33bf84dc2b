"""Run the demo: broker, mail server and workers up, the story, the checks, everything down again.

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
from time import perf_counter

from pydantic import ValidationError

from asyncq.errors import AsyncQError, BrokerError
from asyncq.observability.logs import configure_logging
from demo import samples
from demo.broker import Broker, delete_queues, start_private_broker, stop_private_broker
from demo.processes import Processes
from demo.settings import DemoError, DemoSettings, Run
from demo.view import View, choose_view

SLOTS = {"images": 2, "reports": 1, "mail": 2}
RETRY_FIRST_S = 1.0
MAIL_SERVER_S = 20
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
        self.processes = Processes(run.logs)
        self.broker: Broker | None = None
        self.whole = False
        self.broker_answers = True

    async def go(self) -> bool:
        """Do everything, and return whether every check holds. Broker and workers are still up then."""
        started = perf_counter()
        if self.settings.pictures is not None and not self.settings.pictures.is_dir():
            raise DemoError(f"PICTURES={self.settings.pictures} is no folder.")
        self.view.step("A broker, and pictures to work on")
        preparing = asyncio.ensure_future(asyncio.to_thread(self.prepare_pictures))
        self.broker = await self.provide_broker()
        sources = await preparing
        self.view.note(f"{len(sources)} pictures in {self.run.pictures}")
        self.view.step("A mail server and a worker process for each kind of work")
        self.set_environment(self.broker)
        await self.start_mail_server()
        for name, slots in SLOTS.items():
            queue = f"{self.run.queue(name)}:{slots}"
            child = self.processes.start(name, "asyncq", "worker", f"{name}:app", "--queue", queue)
            self.view.note(f"worker {name}: process {child.process.pid}, {slots} slot(s) on {self.run.queue(name)}")

        # The workers' apps read the environment when they are made, so these modules come only now.
        story = importlib.import_module("demo.story")
        checks = importlib.import_module("demo.checks")
        playing = asyncio.ensure_future(
            story.Story(self.run, sources, self.view, timeout_s=self.settings.demo_timeout_s).play()
        )
        watching = asyncio.ensure_future(self.processes.watch())
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
        results = await checks.check_all(self.run, sources, outcomes, retry_first_s=RETRY_FIRST_S)
        for check in results:
            self.view.verdict(check.sentence, check.found, good=check.holds)
        outcomes.seconds["everything"] = perf_counter() - started
        self.whole = all(check.holds for check in results)
        self.summarise(outcomes.seconds, failed=[check.sentence for check in results if not check.holds])
        return self.whole

    def prepare_pictures(self) -> list[str]:
        """Fill the folder of pictures, and return their names."""
        folder = self.run.pictures
        if self.settings.pictures is None:
            names = samples.paint_all(folder, self.settings.demo_samples)
        else:
            names = samples.take_all(self.settings.pictures, folder)
        half = (len(names) + 1) // 2  # in the middle: one broken picture does not stop the others
        return [*names[:half], samples.cut_short(folder, names), *names[half:]]

    async def provide_broker(self) -> Broker:
        """Return the broker that the environment names, or a private one."""
        if self.settings.asyncq_broker_url:
            self.view.note("the broker that ASYNCQ_BROKER_URL names; it stays as it is")
            return Broker(url=self.settings.asyncq_broker_url)
        self.view.note("starting a private RabbitMQ (some 10 seconds) ...")
        broker = await start_private_broker()
        state = "started" if broker.started_by_us else "was running already, and stays up"
        self.view.note(f"RabbitMQ {broker.version} {state}: {broker.management_url}")
        return broker

    def set_environment(self, broker: Broker) -> None:
        """Set what the workers read: theirs and, since this process imports their tasks, this one's too."""
        for name in list(os.environ):
            if name.startswith(("IMAGES_", "REPORTS_", "MAIL_")):
                del os.environ[name]  # settings for somebody's real workers are not meant for these
        os.environ.update(
            PYTHONUNBUFFERED="1",
            ASYNCQ_BROKER_URL=broker.url,
            IMAGES_INPUT_DIR=str(self.run.pictures),
            IMAGES_OUTPUT_DIR=str(self.run.converted),
            IMAGES_WEBP_EFFORT="2",  # half the time of the default, and files about as small
            REPORTS_INPUT_DIR=str(self.run.csv),
            REPORTS_OUTPUT_DIR=str(self.run.reports),
            MAIL_ATTACHMENTS_DIR=str(self.run.reports),
            MAIL_SENDER="demo@example.org",
            MAIL_SMTP_HOST="127.0.0.1",
            MAIL_RETRY_FIRST_S=str(RETRY_FIRST_S),
        )

    async def start_mail_server(self) -> None:
        """Start the mail server, and tell the mail worker its port.

        Raises:
            DemoError: It does not come up.
        """
        log = self.run.logs / "smtp.jsonl"
        server = self.processes.start("mail-server", "demo.smtp_server", str(self.run.mails), str(log))
        waited = asyncio.ensure_future(self.processes.watch())
        try:
            async with asyncio.timeout(MAIL_SERVER_S):
                while not (log.exists() and log.read_text().endswith("\n")):
                    if waited.done():
                        waited.result()
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise DemoError(f"The mail server did not come up:\n{server.last_lines()}") from None
        finally:
            waited.cancel()
        port = json.loads(log.read_text().splitlines()[0])["port"]
        os.environ["MAIL_SMTP_PORT"] = str(port)
        self.view.note(f"mail server: process {server.process.pid}, port {port}")

    def summarise(self, seconds: dict[str, float], *, failed: list[str]) -> None:
        """Say what was done, where the files are, how long it took, and what is missing."""
        self.view.step("MISSING: " + "; ".join(failed) if failed else "All of it is true.")
        self.view.note("times: " + ", ".join(f"{what} {taken:.2f} s" for what, taken in seconds.items()))
        self.view.note(f"pictures  {self.run.converted}")
        self.view.note(f"report    {self.run.reports}")
        self.view.note(f"mail      {self.run.mails}")
        self.view.note(f"logs      {self.run.logs}")
        broker = self.broker
        if broker is not None and broker.management_url:
            self.view.note(f"RabbitMQ  {broker.management_url}  user {broker.user}, password {broker.password}")

    async def clean_up(self) -> None:
        """Stop what this run has started, or say how to, where it is to stay."""
        if self.settings.keep and self.whole:
            self.say_how_to_look_around()
            return
        try:
            if self.processes.children:
                await self.stop_workers()
        finally:
            if self.broker is not None and self.broker.started_by_us:
                self.view.note("stopping the broker" + (" (KEEP=1 leaves everything up)" if self.whole else ""))
                await stop_private_broker()

    async def stop_workers(self) -> None:
        """Stop the processes, and delete the queues that nobody uses any more."""
        self.view.note("stopping the workers and the mail server")
        for name in await self.processes.stop():
            self.view.note(f"{name} did not stop when asked to, and was killed; see {self.run.logs}")
        if not self.broker_answers:
            return
        self.view.note("deleting the queues of this run")
        queues = [self.run.queue(worker) for worker in SLOTS]
        await delete_queues(os.environ["ASYNCQ_BROKER_URL"], [*queues, *(f"{name}.dead" for name in queues)])

    def say_how_to_look_around(self) -> None:
        """Say what is still up, what to look at, and how to stop it."""
        pids = " ".join(str(child.process.pid) for child in self.processes.children)
        own = self.broker is not None and self.broker.started_by_us
        self.view.step("Broker and workers stay up (KEEP=1)")
        for line in (
            f"export ASYNCQ_BROKER_URL={os.environ['ASYNCQ_BROKER_URL']}",
            f"asyncq dead list {self.run.queue('images')}",
            f"tail -f {self.run.logs}/*.log",
            f"kill {pids}" + ("; rabbitmq/broker stop" if own else "") + "   # stops them",
        ):
            self.view.note(line)


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
        sys.stderr.write(f"The demo's settings cannot be used: {exc}\n")
        return 2
    return asyncio.run(run_demo(settings))


if __name__ == "__main__":
    sys.exit(main())
