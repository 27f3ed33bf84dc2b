"""The stage without RabbitMQ: broker, servers and workers in this process, on one event loop.

The work is the same; `last_words` says what cannot be seen this way. Nothing of the stage outlives the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI

from asyncq import AsyncQ, DeadLetterFilter
from asyncq.scheduler.service import Scheduler
from asyncq.worker.worker import Worker
from demo import file_server, notice_service, smtp_server
from demo.settings import DemoError, Run
from demo.stage import MANY, NO_ERROR, SCHEDULING, SLOTS, STOP_S, DeadTask
from demo.view import View


class MemoryStage:
    """Everything in one process.

    Args:
        run: The run's folders and queues.
        view: Where to say what is started and stopped.
    """

    def __init__(self, run: Run, view: View) -> None:
        self.run = run
        self.view = view
        self.opened = contextlib.AsyncExitStack()
        self.apps: dict[str, AsyncQ] = {}
        self.workers: list[Worker | Scheduler] = []
        self.running: list[asyncio.Task[Any]] = []

    async def provide_broker(self) -> str:
        """Name a broker that the apps of this process share."""
        self.view.note("the broker is in the memory of this process (BROKER=memory); no RabbitMQ is used")
        return f"memory://demo-{self.run.id}"

    async def start_mail_server(self) -> int:
        """Start the mail server on this loop; its connections are real ones."""
        handler = smtp_server.Greylisting(self.run.mails, self.run.mail_log)
        port = await self.opened.enter_async_context(smtp_server.listening(handler))
        self.view.note(f"mail server: in this process, port {port}")
        return port

    async def start_notice_service(self) -> int:
        """Start the web service in a thread; its connections are real ones."""
        notices = notice_service.Notices(self.run.notices, self.run.notice_log)
        port = await self.opened.enter_async_context(notice_service.listening(notices))
        self.view.note(f"notice service: in this process, port {port}")
        return port

    async def start_file_server(self) -> int:
        """Start the file server in a thread; its connections are real ones."""
        files = file_server.Files(self.run.served, self.run.file_log)
        port = await self.opened.enter_async_context(file_server.listening(files))
        self.view.note(f"file server: in this process, port {port}")
        return port

    async def start_workers(self) -> None:
        """Run each worker on this loop."""
        for name, slots in SLOTS.items():
            queue = self.run.queue(name)
            app: AsyncQ = importlib.import_module(name).app
            self.apps[queue] = await self.opened.enter_async_context(app.open(role="worker"))
            worker = app.worker({queue: slots})
            self.workers.append(worker)
            self.running.append(asyncio.create_task(worker.run(), name=f"worker {name}"))
            self.view.note(f"worker {name}: in this process, {slots} slot(s) on {queue}")
            if name == SCHEDULING:
                scheduler = app.scheduler()
                self.workers.append(scheduler)
                self.running.append(asyncio.create_task(scheduler.run(), name=f"scheduler {name}"))

    async def start_web_service(self) -> int:
        """Run the service on this loop; its connections are real ones."""
        port = await self.opened.enter_async_context(web_listening(importlib.import_module("web").api))
        self.view.note(f"web service: in this process, port {port}")
        return port

    async def watch(self) -> None:
        """Raise as soon as one of the workers ends."""
        ended, _ = await asyncio.wait(self.running, return_when=asyncio.FIRST_COMPLETED)
        worker = ended.pop()
        raise DemoError(f"The {worker.get_name()} ended by itself: {worker.exception()!r}. See {self.run.logs}.")

    async def dead_letters(self, queue: str) -> list[DeadTask]:
        """Look into the broker of this process: nobody else can."""
        return [
            DeadTask(letter.message.task_id, letter.record.failure.type if letter.record else NO_ERROR)
            async for letter in self.apps[queue].dead_letters(queue).browse(limit=MANY)
        ]

    async def replay(self, queue: str, task_id: str) -> int:
        """Do it by the library: no other process reaches this broker."""
        report = await self.apps[queue].dead_letters(queue).replay(DeadLetterFilter(ids=[task_id]))
        return report.replayed

    def last_words(self) -> list[str]:
        """Say what this stage cannot show."""
        return [
            "left out, since it takes a RabbitMQ, which make demo without BROKER=memory has:",
            "  its management UI, with the queues, connections and messages of this run",
            "  workers in processes of their own, one of which may be killed without losing a task",
            "  messages that are still there when a process has ended; `asyncq dead list` from a terminal; KEEP=1",
        ]

    def leave_up(self) -> list[str]:
        """Say nothing: the settings refuse KEEP=1 here, because nothing can stay."""
        return []

    async def stop(self) -> None:
        """Let the workers finish what they do, and close apps and servers."""
        if self.running:
            self.view.note("stopping the workers and the servers")
            for worker in self.workers:
                worker.stop()
            _, late = await asyncio.wait(self.running, timeout=STOP_S)
            for task in late:
                task.cancel()
                self.view.note(f"{task.get_name()} did not stop when asked to, and was cancelled; see {self.run.logs}")
            await asyncio.gather(*self.running, return_exceptions=True)
        await self.opened.aclose()

    async def delete_queues(self) -> None:
        """Do nothing: the queues end with the process."""

    async def stop_broker(self) -> None:
        """Do nothing: the broker ends with the process."""


class QuietServer(uvicorn.Server):
    """A uvicorn that leaves Ctrl-C to the program that it is a part of."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take no signals."""
        yield


@contextlib.asynccontextmanager
async def web_listening(api: FastAPI) -> AsyncIterator[int]:
    """Serve on a free port of the loopback interface, which is what it yields, until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = QuietServer(uvicorn.Config(api, log_config=None, timeout_graceful_shutdown=5))
        serving = asyncio.create_task(server.serve([listening]), name="web service")
        try:
            while not server.started:
                if serving.done():
                    raise DemoError(f"The web service did not come up: {serving.exception()!r}")
                await asyncio.sleep(0.02)
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            await serving
