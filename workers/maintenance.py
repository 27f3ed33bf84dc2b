"""Work that nobody asks for: a health check every minute, a daily report at 08:00, a clean-up on Mondays at 09:00.

The folder is what the other workers write to. Each job looks at it, and leaves a line in a journal inside it, so that
the next report can tell what was done.

- The health check writes how much room is left, and fails where it is less than is wanted: the dead letter, and
  whatever watches those, is the alarm.
- The report counts what was written within the last day, by kind of file.
- The clean-up removes files that are older than is kept, never the journal, and nothing outside the folder.
- All of them may run twice, as every task may: a second run finds the same, or nothing to do.

Run it with `asyncq worker maintenance:app --scheduler` in this folder, as often as you like: one of them sends what is
due. Its settings are environment variables, `MAINTENANCE_*`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections import Counter
from pathlib import Path
from stat import S_ISREG
from typing import Annotated, Any

from pydantic import BaseModel, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from asyncq import AsyncQ, Cron, Every

JOURNAL = "maintenance.jsonl"
DAY_S = 24 * 3600.0


class MaintenanceSettings(BaseSettings):
    """What the environment says, for example `MAINTENANCE_FOLDER=/srv/files`.

    Attributes:
        app: The name of the app, and of its queue. Of each name one scheduler leads: another folder needs another one.
        folder: What is watched, reported on and cleaned.
        timezone: Where it is 08:00 and 09:00, by its IANA name.
        health_every_s: How often the health is checked, in seconds.
        keep_days: Older files are removed.
        min_free_bytes: With less room the health check fails.
    """

    model_config = SettingsConfigDict(env_prefix="MAINTENANCE_", frozen=True)

    app: str = "maintenance"
    folder: Path = Path("files")
    timezone: str = "UTC"
    health_every_s: Annotated[float, Field(ge=0.1)] = 60
    keep_days: Annotated[float, Field(gt=0)] = 30
    min_free_bytes: Annotated[int, Field(ge=0)] = 100 * 1024 * 1024


class Health(BaseModel):
    """What a check has found.

    Attributes:
        files: How many files there are.
        free_bytes: How much room is left.
    """

    files: int
    free_bytes: int


class DailyReport(BaseModel):
    """What was written within a day.

    Attributes:
        files: By the ending of their names, without the dot.
        total_bytes: Of all of them.
        checks: How many health checks the journal tells of.
    """

    files: dict[str, int]
    total_bytes: int
    checks: int


class Cleaned(BaseModel):
    """What a clean-up has removed.

    Attributes:
        files: How many files.
        total_bytes: How much room they took.
    """

    files: int
    total_bytes: int


class NoRoomError(Exception):
    """Less room is left than is wanted."""


settings = MaintenanceSettings()
app = AsyncQ(settings.app, timezone=settings.timezone)


@app.task(time_limit=30)
def check_health() -> Health:
    """Count the files, and see how much room is left."""
    settings.folder.mkdir(parents=True, exist_ok=True)
    found = Health(files=len(_files()), free_bytes=shutil.disk_usage(settings.folder).free)
    _note("health", found)
    if found.free_bytes < settings.min_free_bytes:
        raise NoRoomError(f"{settings.folder} has {found.free_bytes} bytes left; {settings.min_free_bytes} are wanted.")
    return found


@app.task(time_limit=300)
def report_day() -> DailyReport:
    """Count what was written within the last day."""
    since_s = time.time() - DAY_S
    written = [(path, stat) for path, stat in _files() if stat.st_mtime >= since_s]
    made = DailyReport(
        files=dict(Counter(path.suffix.lstrip(".") or "none" for path, _ in written)),
        total_bytes=sum(stat.st_size for _, stat in written),
        checks=sum(entry["what"] == "health" and float(entry["at_s"]) >= since_s for entry in _journal()),
    )
    _note("report", made)
    return made


@app.task(time_limit=300)
def clean_up() -> Cleaned:
    """Remove files that are older than is kept."""
    before_s = time.time() - settings.keep_days * DAY_S
    removed = Cleaned(files=0, total_bytes=0)
    for path, stat in _files():
        if stat.st_mtime < before_s:
            path.unlink(missing_ok=True)
            removed = Cleaned(files=removed.files + 1, total_bytes=removed.total_bytes + stat.st_size)
    _note("clean-up", removed)
    return removed


app.schedule("health", check_health.s(), Every(settings.health_every_s), missed="skip", deadline=30)
app.schedule("daily-report", report_day.s(), Cron("0 8 * * *"))
app.schedule("clean-up", clean_up.s(), Cron(hour=9, minute=0, day_of_week="MON"))


def _files() -> list[tuple[Path, os.stat_result]]:
    """Return the files of the folder; links are left alone, wherever they lead, and so is what vanishes meanwhile."""
    found = []
    for path in sorted(settings.folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            stat = path.lstat()
            if S_ISREG(stat.st_mode) and path.name != JOURNAL:
                found.append((path, stat))
    return found


def _note(what: str, found: BaseModel) -> None:
    settings.folder.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"at_s": time.time(), "what": what, **found.model_dump()})
    with (settings.folder / JOURNAL).open("a") as journal:
        journal.write(line + "\n")


def _journal() -> list[dict[str, Any]]:
    path = settings.folder / JOURNAL
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]
