"""The stage with a real RabbitMQ: a worker process for each kind of work, and one for each server."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from demo.broker import Broker, delete_queues, start_private_broker, stop_private_broker
from demo.processes import Processes
from demo.settings import WORKERS, DemoError, Run
from demo.stage import MANY, NO_ERROR, SCHEDULING, SLOTS, DeadTask
from demo.view import View

SERVER_S = 20


class BrokerStage:
    """A broker that others can look into, and processes that can be left up.

    Args:
        run: The run's folders and queues.
        view: Where to say what is started and stopped.
        url: The broker to use; None starts a private one.
    """

    def __init__(self, run: Run, view: View, url: str | None) -> None:
        self.run = run
        self.view = view
        self.url = url
        self.broker: Broker | None = None
        self.processes = Processes(run.logs)
        self.web_port: int | None = None

    async def provide_broker(self) -> str:
        """Use the broker that the environment names, or start a private one."""
        if self.url is not None:
            self.view.note("the broker that ASYNCQ_BROKER_URL names; it stays as it is")
            self.broker = Broker(url=self.url)
            return self.url
        self.view.note("starting a private RabbitMQ (some 10 seconds) ...")
        self.broker = broker = await start_private_broker()
        state = "started" if broker.started_by_us else "was running already, and stays up"
        self.view.note(f"RabbitMQ {broker.version} {state}: {broker.management_url}")
        return broker.url

    async def start_mail_server(self) -> int:
        """Start the mail server as a process."""
        arguments = ("demo.smtp_server", str(self.run.mails), str(self.run.mail_log))
        return await self._start_server("mail-server", *arguments, port=lambda: port_in(self.run.mail_log))

    async def start_notice_service(self) -> int:
        """Start the web service as a process."""
        arguments = ("demo.notice_service", str(self.run.notices), str(self.run.notice_log))
        return await self._start_server("notice-service", *arguments, port=lambda: port_in(self.run.notice_log))

    async def start_file_server(self) -> int:
        """Start the file server as a process."""
        arguments = ("demo.file_server", str(self.run.served), str(self.run.file_log))
        return await self._start_server("file-server", *arguments, port=lambda: port_in(self.run.file_log))

    async def start_web_service(self) -> int:
        """Start the service by the command that anybody would use."""
        log = self.run.logs / "web-service.log"
        arguments = ("uvicorn", "web:api", "--port", "0", "--timeout-graceful-shutdown", "5")
        self.web_port = await self._start_server("web-service", *arguments, port=lambda: uvicorn_port_in(log))
        return self.web_port

    async def _start_server(self, name: str, *arguments: str, port: Callable[[], int | None]) -> int:
        """Start a server, and return its port once that is known."""
        server = self.processes.start(name, *arguments)
        waited = asyncio.ensure_future(self.processes.watch())
        try:
            async with asyncio.timeout(SERVER_S):
                while (number := port()) is None:
                    if waited.done():
                        waited.result()
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise DemoError(f"The {name} did not come up:\n{server.last_lines()}") from None
        finally:
            waited.cancel()
        self.view.note(f"{name}: process {server.process.pid}, port {number}")
        return number

    async def start_workers(self) -> None:
        """Start each worker by the command that anybody would use."""
        for name, slots in SLOTS.items():
            queue = self.run.queue(name)
            options = ["--queue", f"{queue}:{slots}", *(["--scheduler"] if name == SCHEDULING else [])]
            child = self.processes.start(name, "asyncq", "worker", f"{name}:app", *options)
            self.view.note(f"worker {name}: process {child.process.pid}, {slots} slot(s) on {queue}")

    async def watch(self) -> None:
        """Raise as soon as one of the processes ends, with the end of its log."""
        await self.processes.watch()

    async def dead_letters(self, queue: str) -> list[DeadTask]:
        """Read what `asyncq dead list QUEUE --json` prints."""
        output = await self._asyncq("dead", "list", queue, "--json", "--limit", str(MANY))
        letters = [json.loads(line) for line in output.splitlines()]
        return [DeadTask(letter["id"], letter.get("error_type", NO_ERROR)) for letter in letters]

    async def replay(self, queue: str, task_id: str) -> int:
        """Do it by the command that the person on call would use."""
        report = json.loads(await self._asyncq("dead", "replay", queue, "--id", task_id, "--yes", "--json"))
        return int(report["replayed"])

    @staticmethod
    async def _asyncq(*arguments: str) -> bytes:
        """Run the command line, and return what it prints."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "asyncq", *arguments),
            cwd=WORKERS,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await process.communicate()
        if process.returncode:
            raise DemoError(f"`asyncq {' '.join(arguments)}` failed: {errors.decode(errors='replace').strip()}")
        return output

    def last_words(self) -> list[str]:
        """Say where the broker's own page is."""
        broker = self.broker
        if broker is None or not broker.management_url:
            return []
        return [f"RabbitMQ  {broker.management_url}  user {broker.user}, password {broker.password}"]

    def leave_up(self) -> list[str]:
        """Say what to look at, and how to stop the processes and the broker."""
        broker = self.broker
        assert broker is not None  # noqa: S101 - the run is over
        pids = " ".join(str(child.process.pid) for child in self.processes.children)
        return [
            f"export ASYNCQ_BROKER_URL={broker.url}",
            f"asyncq dead list {self.run.queue('images')}",
            f"tail -f {self.run.logs}/*.log",
            f"http://127.0.0.1:{self.web_port}/   # upload a picture",
            f"kill {pids}" + ("; rabbitmq/broker stop" if broker.started_by_us else "") + "   # stops them",
        ]

    async def stop(self) -> None:
        """Stop the processes, and say which of them did not want to."""
        if not self.processes.children:
            return
        self.view.note("stopping the workers and the servers")
        for name in await self.processes.stop():
            self.view.note(f"{name} did not stop when asked to, and was killed; see {self.run.logs}")

    async def delete_queues(self) -> None:
        """Delete this run's queues; nobody uses them any more."""
        if self.broker is None or not self.processes.children:
            return
        self.view.note("deleting the queues of this run")
        queues = [self.run.queue(worker) for worker in SLOTS]
        namespace = os.environ.get("ASYNCQ_NAMESPACE", "asyncq")
        leaders = f"{namespace}.scheduler.{self.run.queue(SCHEDULING)}"
        await delete_queues(self.broker.url, [*queues, *(f"{name}.dead" for name in queues), leaders])

    async def stop_broker(self) -> None:
        """Stop the private node, if this run has started it."""
        if self.broker is not None and self.broker.started_by_us:
            self.view.note("stopping the broker (after a good run, KEEP=1 leaves everything up)")
            await stop_private_broker()


def uvicorn_port_in(log: Path) -> int | None:
    """Return the port that uvicorn says it runs on; None as long as it has not."""
    found = re.search(r"Uvicorn running on http://127\.0\.0\.1:(\d+)", log.read_text(errors="replace"))
    return int(found[1]) if found else None


def port_in(log: Path) -> int | None:
    """Return the port that a server has written into the first line of its log; None as long as it has not."""
    first, ended, _ = log.read_text().partition("\n") if log.exists() else ("", "", "")
    return int(json.loads(first)["port"]) if ended else None
