"""What a run of the demo is given, and where it keeps its things.

Every run has a folder and queues of its own. So a broker that still holds queues of an earlier run, or workers
that one left up on purpose, cannot mix with it, and nobody else's queue is touched.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

ROOT = Path(__file__).resolve().parents[2]
WORKERS = ROOT / "workers"
WITHOUT_RABBITMQ = "make demo BROKER=memory"


class DemoError(Exception):
    """The demo cannot go on. The message says why and what to do."""


class DemoSettings(BaseSettings):
    """What the environment says, or `make demo NAME=VALUE`.

    Attributes:
        pictures: A folder of pictures to convert. Without it the demo paints some.
        keep: Leave broker and workers up at the end.
        broker: `memory` for a broker, workers and all in one process. Without it there is a RabbitMQ.
        asyncq_broker_url: The broker to use. Without it the demo starts a private one.
        demo_output: The folder that gets a folder for each run.
        demo_samples: How many pictures to paint.
        demo_timeout_s: How long to wait for the results of one step, in seconds.
    """

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True)

    pictures: Path | None = None
    keep: bool = False
    broker: str | None = None
    asyncq_broker_url: str | None = None
    demo_output: Path = ROOT / "demo-output"
    demo_samples: Annotated[int, Field(ge=1, le=100)] = 6
    demo_timeout_s: Annotated[float, Field(gt=0)] = 600

    @property
    def in_memory(self) -> bool:
        """Whether the demo runs without RabbitMQ."""
        return self.broker == "memory"

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.broker not in {None, "memory"}:
            raise ValueError(
                f"BROKER={self.broker} is not known. BROKER=memory runs the demo without RabbitMQ; leave BROKER out "
                "for a private RabbitMQ, or set ASYNCQ_BROKER_URL to a broker that you have"
            )
        if self.in_memory and self.keep:
            raise ValueError(
                "KEEP=1 leaves a RabbitMQ and worker processes up, and with BROKER=memory there are none: "
                "leave one of the two out"
            )
        if not self.in_memory and (self.asyncq_broker_url or "").startswith("memory:"):
            raise ValueError(
                f"ASYNCQ_BROKER_URL={self.asyncq_broker_url} is a broker within one process, and this demo starts "
                f"several. In one process: {WITHOUT_RABBITMQ}"
            )
        return self


@dataclass(frozen=True, slots=True)
class Run:
    """One run's name and folders.

    Args:
        id: The run's name, part of its queues' names.
        folder: Holds everything that the run leaves behind.
    """

    id: str
    folder: Path

    @classmethod
    def create(cls, output: Path) -> Run:
        """Make the folders of a new run."""
        name = f"{datetime.now().astimezone():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        run = cls(name, output.resolve() / name)
        worked_in = (run.pictures, run.converted, run.csv, run.reports, run.mails, run.notices, run.models, run.files)
        for folder in (*worked_in, run.served, run.logs):
            folder.mkdir(parents=True)
        return run

    def queue(self, worker: str) -> str:
        """Return the name of this run's queue for a worker."""
        return f"demo-{self.id}.{worker}"

    @property
    def pictures(self) -> Path:
        """What the images worker reads."""
        return self.folder / "pictures"

    @property
    def converted(self) -> Path:
        """What the images worker writes."""
        return self.folder / "converted"

    @property
    def csv(self) -> Path:
        """What the reports worker reads."""
        return self.folder / "csv"

    @property
    def reports(self) -> Path:
        """What the reports worker writes and the mail worker attaches."""
        return self.folder / "reports"

    @property
    def mails(self) -> Path:
        """What the mail server accepted."""
        return self.folder / "mails"

    @property
    def notices(self) -> Path:
        """What the web service accepted."""
        return self.folder / "notices"

    @property
    def models(self) -> Path:
        """What the ml worker has trained."""
        return self.folder / "models"

    @property
    def files(self) -> Path:
        """Where the files worker keeps what it works on."""
        return self.folder / "files"

    @property
    def served(self) -> Path:
        """What the file server has: what the files worker downloads, and what it has uploaded."""
        return self.folder / "served"

    @property
    def logs(self) -> Path:
        """What the processes of this run wrote."""
        return self.folder / "logs"

    @property
    def mail_log(self) -> Path:
        """What the mail server did, as JSON lines."""
        return self.logs / "smtp.jsonl"

    @property
    def notice_log(self) -> Path:
        """What the web service did, as JSON lines."""
        return self.logs / "notices.jsonl"

    @property
    def file_log(self) -> Path:
        """What the file server did, as JSON lines."""
        return self.logs / "files.jsonl"
