"""Bring files from an HTTP server, work on them, and take the outcome back: steps that make workflows.

    picture(name)        download ─▶ shrink ─▶ upload                               a chain
    pictures(names)      so many of these chains at once                            a group
    totals(name, ...)    download ─▶ add_up, N at once ─▶ merge ─▶ upload        a chain with a chord in it

Each step hands the next one a few words about a file, never the file: that lies in a folder which all workers of this
queue share. Every step may run twice, and then writes the same file again; it appears under its name when it is
complete. A server that is away is asked again later, and the steps behind wait for it.

Run it with `asyncq worker files:app` in this folder. Its settings are environment variables, `FILES_*`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated

from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import BaseModel, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from asyncq import AsyncQ, Exponential, RetryPolicy, TaskContext, group
from asyncq.workflow.workflow import Workflow
from csv_part import read_part
from csv_table import CsvError, Table
from file_transfer import Limits, ServerAwayError, fetch, put, sha256_of, written_whole

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)]
"""A file's name, which is part of a URL and of a path: no folders, nothing hidden."""


class FilesSettings(BaseSettings):
    """What the environment says, for example `FILES_BASE_URL=https://files.example.org/exchange`.

    Attributes:
        base_url: Files are brought from below it, and taken there.
        folder: Where they lie meanwhile; all workers of the queue need the same one.
        max_bytes: Larger files are refused.
        max_pixels: Larger pictures are refused before they are decoded.
        webp_quality: 1 to 100.
        connect_timeout_s: For a connection, in seconds.
        read_timeout_s: For each part of an answer, in seconds.
        max_attempts: How often a transfer is tried, the first attempt included.
        retry_first_s: The first delay, in seconds; it doubles each time.
        retry_max_s: The longest delay, in seconds.
        time_limit_s: How long one attempt of a step may take, in seconds.
    """

    model_config = SettingsConfigDict(env_prefix="FILES_", frozen=True)

    base_url: str = "http://127.0.0.1:8080"
    folder: Path = Path("files")
    max_bytes: Annotated[int, Field(ge=1)] = 1024**3
    max_pixels: Annotated[int, Field(ge=1)] = 120_000_000
    webp_quality: Annotated[int, Field(ge=1, le=100)] = 80
    connect_timeout_s: Annotated[float, Field(gt=0)] = 5
    read_timeout_s: Annotated[float, Field(gt=0)] = 30
    max_attempts: Annotated[int, Field(ge=1)] = 6
    retry_first_s: Annotated[float, Field(gt=0)] = 2
    retry_max_s: Annotated[float, Field(gt=0)] = 600
    time_limit_s: Annotated[float, Field(gt=0)] = 600


class FileError(Exception):
    """A file cannot be used. Another attempt would not change that."""


class StoredFile(BaseModel):
    """A file in the workers' folder.

    Attributes:
        name: Its name there.
        size_bytes: Its size.
        sha256: Its checksum, in hexadecimal digits.
    """

    name: Name
    size_bytes: int
    sha256: str


class Uploaded(BaseModel):
    """A file that the server has taken.

    Attributes:
        url: Where it is.
        size_bytes: Its size.
        sha256: Its checksum, in hexadecimal digits.
        attempt: Which attempt of the upload succeeded, from 1.
    """

    url: str
    size_bytes: int
    sha256: str
    attempt: int


class Columns(BaseModel):
    """What of a CSV file is added up.

    Attributes:
        label: The column of the labels.
        number: The column of the numbers.
    """

    label: str
    number: str


class PartSums(BaseModel):
    """What one part of a CSV file comes to.

    Attributes:
        part: Which one, from 0.
        rows: How many rows were used.
        bad_rows: How many were left out.
        first_problem: What was wrong with the first of them, and where: its byte in the file.
        sums: By label.
    """

    part: int
    rows: int
    bad_rows: int
    first_problem: str | None
    sums: dict[str, Decimal]


settings = FilesSettings()
app = AsyncQ("files")
transfers = RetryPolicy(
    on=ServerAwayError,
    max_attempts=settings.max_attempts,
    backoff=Exponential(first=settings.retry_first_s, factor=2, max=settings.retry_max_s),
)


# --- the steps


@app.task(pass_context=True, retry=transfers, time_limit=settings.time_limit_s)
def download(ctx: TaskContext, name: Name) -> StoredFile:
    """Bring a file from the server into the folder."""
    fetch(url_of(name), settings.folder / name, limits(), steps_of(ctx, name))
    return stored(name)


@app.task(time_limit=settings.time_limit_s)
def shrink(file: StoredFile, edge: Annotated[int, Field(ge=16, le=4096)]) -> StoredFile:
    """Write a picture as WebP, upright, its longer edge no longer than `edge` pixels."""
    try:
        with Image.open(path_of(file)) as picture:
            if picture.width * picture.height > settings.max_pixels:
                raise FileError(f"{file.name} has more than {settings.max_pixels} pixels")
            small = ImageOps.exif_transpose(picture).convert("RGB")
            small.thumbnail((edge, edge))
    except (UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as exc:
        raise FileError(f"{file.name} is no picture: {exc}") from exc
    name = f"{file.name}.{edge}.webp"
    with written_whole(settings.folder / name) as target:
        small.save(target, "WEBP", quality=settings.webp_quality)
    return stored(name)


@app.task(pass_context=True, retry=transfers, time_limit=settings.time_limit_s)
def upload(ctx: TaskContext, file: StoredFile) -> Uploaded:
    """Take a file to the server."""
    path = path_of(file)
    if sha256_of(path) != file.sha256:
        raise FileError(f"{file.name} has been changed since the step before")
    put(path, url_of(file.name), limits(), steps_of(ctx, file.name))
    return Uploaded(url=url_of(file.name), size_bytes=file.size_bytes, sha256=file.sha256, attempt=ctx.attempt)


@app.task(time_limit=settings.time_limit_s)
def add_up(file: StoredFile, columns: Columns, part: int, parts: int) -> PartSums:
    """Add up the numbers of one part of a CSV file, by label."""
    table = Table(columns.label, [columns.number], max_bad_rows=1)
    read_part(path_of(file), table, part, parts)
    first = next((f"byte {row.line}: {row.problem}" for row in table.bad_rows), None)
    return PartSums(
        part=part, rows=table.rows, bad_rows=table.bad_rows_total, first_problem=first, sums=table.column(0)
    )


@app.task(time_limit=settings.time_limit_s)
def merge(parts: list[PartSums], name: Name) -> StoredFile:
    """Write what all parts of a CSV file come to, as JSON."""
    if [part.part for part in parts] != list(range(len(parts))):
        raise FileError(f"these are not the parts of one file: {[part.part for part in parts]}")
    sums: dict[str, Decimal] = {}
    for part in parts:
        for label, value in part.sums.items():
            sums[label] = sums.get(label, Decimal(0)) + value
    rows = sum(part.rows for part in parts)
    if not rows:
        problem = next((part.first_problem for part in parts if part.first_problem), "it is empty")
        raise CsvError(f"no row can be used; {problem}")
    found = {
        "rows": rows,
        "bad_rows": sum(part.bad_rows for part in parts),
        "totals": {label: str(sums[label]) for label in sorted(sums)},  # exact, as text
    }
    with written_whole(settings.folder / name) as target:
        target.write(json.dumps(found, indent=2, ensure_ascii=False).encode())
    return stored(name)


# --- the workflows


def picture(name: str, edge: int = 320) -> Workflow[Uploaded]:
    """Return the workflow that makes a small WebP of a picture on the server: `NAME.EDGE.webp` beside it."""
    return download.s(name).then(shrink.partial(edge=edge)).then(upload)


def pictures(names: Sequence[str], edge: int = 320) -> Workflow[list[Uploaded]]:
    """Return the workflow that does so with many pictures at once."""
    return group(picture(name, edge) for name in names)


def totals(name: str, columns: Columns, parts: int) -> Workflow[Uploaded]:
    """Return the workflow that adds up a CSV file on the server, in parts: `NAME.totals.json` beside it."""
    counting = group(add_up.partial(columns=columns, part=part, parts=parts) for part in range(parts))
    return download.s(name).then(counting).then(merge.partial(name=f"{name}.totals.json")).then(upload)


# --- what the steps share


def url_of(name: str) -> str:
    """Return where a file is on the server."""
    return f"{settings.base_url.rstrip('/')}/{name}"


def path_of(file: StoredFile) -> Path:
    """Return where a file is in the folder.

    Raises:
        FileError: It is not there.
    """
    path = settings.folder / file.name
    if not path.is_file():
        raise FileError(f"{file.name} is not in {settings.folder} (FILES_FOLDER): do all workers share it?")
    return path


def stored(name: str) -> StoredFile:
    """Return what the next step is told of a file in the folder."""
    path = settings.folder / name
    return StoredFile(name=name, size_bytes=path.stat().st_size, sha256=sha256_of(path))


def limits() -> Limits:
    """Return what bounds a transfer."""
    return Limits(settings.connect_timeout_s, settings.read_timeout_s, settings.max_bytes)


def steps_of(ctx: TaskContext, name: str) -> Callable[[int, int], None]:
    """Return what tells the sender how far a transfer is, and stops it where the task has to stop."""

    def step(done: int, total: int) -> None:
        if ctx.cancelled:  # nobody can stop a thread from outside; the worker knows already what follows
            raise InterruptedError(f"{name}: told to stop after {done} of {total} bytes")
        ctx.sync.progress(done, total, label=name)

    return step
