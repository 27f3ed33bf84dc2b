"""What the story needs around it: a broker, a mail server, web services, and a worker for each kind of work.

There are two stages: `demo.broker_stage` has a RabbitMQ and a process for each part, `demo.memory_stage` has
everything in this process. The story and its checks know only what is here.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

SLOTS = {"images": 2, "reports": 1, "mail": 2, "services": 2, "ml": 1, "maintenance": 1, "files": 4}
SCHEDULING = "maintenance"  # this worker has a scheduler beside it
STOP_S = 15
MANY = 100_000  # more dead letters than any run makes
NO_ERROR = "no error recorded"


class DeadTask(NamedTuple):
    """A task in a dead-letter queue.

    Attributes:
        id: The task's id.
        error_type: The class of the error that ended it, or `NO_ERROR`.
    """

    id: str
    error_type: str


class Stage(Protocol):
    """Where one run is played. The methods are called in the order in which they stand here."""

    async def provide_broker(self) -> str:
        """Have a broker, and return its URL.

        Raises:
            DemoError: None can be had.
        """

    async def start_mail_server(self) -> int:
        """Start the mail server, and return its port.

        Raises:
            DemoError: It does not come up.
        """

    async def start_notice_service(self) -> int:
        """Start the web service that takes notices, and return its port.

        Raises:
            DemoError: It does not come up.
        """

    async def start_file_server(self) -> int:
        """Start the file server, and return its port.

        Raises:
            DemoError: It does not come up.
        """

    async def start_workers(self) -> None:
        """Start a worker for each of `SLOTS`; the environment is set for them by now."""

    async def start_web_service(self) -> int:
        """Start `web.py`, which lets pictures be converted, and return its port.

        Raises:
            DemoError: It does not come up.
        """

    async def watch(self) -> None:
        """Raise as soon as a part of the stage ends: none may, before it is told to.

        Raises:
            DemoError: With what is known about the reason.
        """

    async def dead_letters(self, queue: str) -> list[DeadTask]:
        """Return what the dead-letter queue of a task queue holds.

        Raises:
            DemoError: It cannot be read.
        """

    async def replay(self, queue: str, task_id: str) -> int:
        """Send a task's dead letter back to its queue, and return how many were sent.

        Raises:
            DemoError: It cannot be done.
        """

    def last_words(self) -> list[str]:
        """Return what the viewer is to know at the end about this stage, and what it cannot show."""

    def leave_up(self) -> list[str]:
        """Return how to look around on a stage that stays up, and how to stop it. Called in place of the rest."""

    async def stop(self) -> None:
        """Stop workers and servers, if they were started."""

    async def delete_queues(self) -> None:
        """Delete the queues of this run. Not called where the broker does not answer.

        Raises:
            DemoError: They could not be deleted.
        """

    async def stop_broker(self) -> None:
        """Stop the broker, if this stage has started it.

        Raises:
            DemoError: It could not be stopped.
        """
