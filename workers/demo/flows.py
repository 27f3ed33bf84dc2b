"""Workflows: pictures that are brought, shrunk and taken back, each in three steps, and a large CSV file in parts.

What they made is looked at on the file server's disk, and compared with what is worked out here, by other means.
"""

from __future__ import annotations

import asyncio
import csv
import json
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from time import perf_counter
from typing import Any, TypeVar

from PIL import Image

import files
from asyncq import WorkflowHandle
from demo import file_server, samples
from demo.checks import Check
from demo.settings import Run
from demo.story import Outcomes, server_events
from demo.view import View

R = TypeVar("R")

PICTURES, SIZE, EDGE = 10, (800, 600), 320
CSV_NAME, ROWS, PARTS = "orders.csv", 100_000, 8
CITIES = ("Moscow", "Kazan", "Samara", "Tver", "Omsk", "Sochi")
COLUMNS = files.Columns(label="city", number="amount")


@dataclass(frozen=True, slots=True)
class Flown:
    """What the workflows answered.

    Attributes:
        pictures: The pictures that were taken back, in the order in which they were asked for.
        totals: The totals that were taken back.
    """

    pictures: Sequence[files.Uploaded]
    totals: files.Uploaded


async def play(run: Run, outcomes: Outcomes, view: View, *, timeout_s: float) -> list[Check]:
    """Send both workflows, follow them, and say what came of them.

    Args:
        run: Its folders and queues.
        outcomes: What the tasks answered before.
        view: Where to show it.
        timeout_s: How long to wait for each, in seconds.
    """
    view.step(f"Workflows: {PICTURES} pictures, download, shrink, upload each; a CSV file added up in {PARTS} parts")
    names, wanted = await asyncio.to_thread(prepare, run)
    started = perf_counter()
    queue = run.queue("files")
    async with files.app:
        pictures = files.pictures(names, EDGE).options(queue=queue)
        totals = files.totals(CSV_NAME, COLUMNS, PARTS).options(queue=queue)
        for line in str(totals).splitlines()[:4]:
            view.note(line)
        of_pictures, of_totals = await pictures.send(), await totals.send()
        shown = [
            asyncio.ensure_future(show(view, "pictures", of_pictures)),
            asyncio.ensure_future(show(view, "CSV", of_totals)),
        ]
        try:
            flown = Flown(await of_pictures.result(timeout_s), await of_totals.result(timeout_s))
        finally:
            for showing in shown:
                showing.cancel()
            await asyncio.gather(*shown, return_exceptions=True)
    outcomes.seconds["the workflows"] = perf_counter() - started
    view.finish("pictures", f"{len(flown.pictures)} in three steps each, at the server again")
    view.finish("CSV", f"{ROWS:,} rows in {PARTS} parts, one list of totals")
    return list(checks_of(run, names, wanted, flown))


async def show(view: View, key: str, handle: WorkflowHandle[Any]) -> None:
    """Show how far a workflow is."""
    async for update in handle.updates():
        view.progress(key, update.done, update.total, update.label or "")


def prepare(run: Run) -> tuple[list[str], dict[str, Decimal]]:
    """Give the server its files; return the pictures' names, and what the CSV file comes to."""
    names = [f"holiday-{number}.jpg" for number in range(1, PICTURES + 1)]
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda item: samples.paint(run.served / item[1], seed=item[0], size=SIZE), enumerate(names)))
    chance = random.Random(7)  # noqa: S311 - no secret
    wanted = dict.fromkeys(CITIES, Decimal(0))
    with (run.served / CSV_NAME).open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["number", COLUMNS.label, COLUMNS.number])
        for number in range(ROWS):
            city, amount = chance.choice(CITIES), Decimal(chance.randrange(1, 1_000_000)) / 100
            rows.writerow([number, city, amount])
            wanted[city] += amount
    return names, wanted


def checks_of(run: Run, names: Sequence[str], wanted: dict[str, Decimal], flown: Flown) -> Iterator[Check]:
    """Everything is on the server's disk, and right."""
    made = [answer.url.rpartition("/")[2] for answer in flown.pictures]
    yield Check(
        "The group's result is in the order of its members", made == [f"{n}.{EDGE}.webp" for n in names], f"{made}"
    )
    wrong = [problem for name in made if (problem := problem_of(run, name)) is not None]
    yield Check(f"{PICTURES} small pictures are on the file server, and open", not wrong, "; ".join(wrong))
    path = run.served / f"{CSV_NAME}.totals.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    right = {city: Decimal(text) for city, text in found.get("totals", {}).items()} == wanted
    yield Check("The chord's totals are those that were added up here, to the cent", right, f"{found}")
    counts = (found.get("rows"), found.get("bad_rows"))
    yield Check(f"They are made of all {ROWS:,} rows", counts == (ROWS, 0), f"{counts}")
    refused = [event for event in server_events(run.file_log) if event["event"] == "refused"]
    attempts = [answer.attempt for answer in (*flown.pictures, flown.totals)]
    yield Check(
        "The upload that the server put off was tried again, and its workflow went on",
        len(refused) == file_server.REFUSALS and sum(attempts) == len(attempts) + len(refused),
        f"{len(refused)} refused, attempts {attempts}",
    )


def problem_of(run: Run, name: str) -> str | None:
    """Say what is wrong with an uploaded picture; None where nothing is."""
    try:
        with Image.open(run.served / name, formats=["WEBP"]) as picture:
            picture.load()
            size = picture.size
    except (OSError, SyntaxError) as exc:
        return f"{name}: {exc}"
    return None if max(size) == EDGE else f"{name} is {size[0]} x {size[1]}"
