"""Verify what the run left behind: by other means than those that made it, as far as there are any.

Each check is one sentence that holds or does not.
"""

from __future__ import annotations

import csv
import email
import email.policy
import html
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from email.message import EmailMessage
from pathlib import Path
from typing import NamedTuple

from PIL import ExifTags, Image

import images
from demo import notice_service
from demo.samples import TRUNCATED, decodes, readable
from demo.settings import Run
from demo.smtp_server import REFUSALS
from demo.stage import DeadTask
from demo.story import (
    CSV_NAME,
    LABEL,
    NUMBERS,
    RECIPIENT,
    TRAINING,
    Outcomes,
    held_back,
    notice_of,
    server_events,
)

Dead = Mapping[str, Sequence[DeadTask]]


class Check(NamedTuple):
    """One sentence about the run.

    Attributes:
        sentence: What should be so.
        holds: Whether it is so.
        found: What was found in its place.
    """

    sentence: str
    holds: bool
    found: str = ""


class Delays(NamedTuple):
    """The first delays that the workers' retry policies were given, in seconds.

    Attributes:
        mail: The mail worker's.
        service: The services worker's.
    """

    mail: float
    service: float


def check_all(run: Run, sources: list[str], outcomes: Outcomes, dead: Dead, delays: Delays) -> list[Check]:
    """Return every check of the run.

    Args:
        run: Its folders and queues.
        sources: The pictures.
        outcomes: What the tasks answered.
        dead: What the dead-letter queues hold, by worker.
        delays: What the workers' retry policies were given.
    """
    return [
        *check_call(run, outcomes),
        *check_pictures(run, sources, outcomes),
        *check_dead_letters(dead, outcomes),
        *check_report(run, outcomes),
        *check_mail(run, outcomes, delays.mail),
        *check_notice(run, outcomes, delays.service),
        *check_network(run, outcomes),
    ]


def check_call(run: Run, outcomes: Outcomes) -> Iterator[Check]:
    """The RPC's answer is what Pillow reads here."""
    said = outcomes.described
    path = run.pictures / said.source
    with Image.open(path) as picture:
        kind = picture.format
        width, height = upright_size(picture)
    wanted = (kind, width, height, path.stat().st_size)
    found = (said.format, said.width, said.height, said.size_bytes)
    yield Check("The RPC call returned the picture's real format, dimensions and size", found == wanted, f"{found}")


def check_pictures(run: Run, sources: list[str], outcomes: Outcomes) -> Iterator[Check]:
    """Every picture is on disk in all its forms, or is rightly not."""
    wrong = [problem for source in outcomes.converted for problem in problems_of(run, source, outcomes)]
    files = sum(1 + len(done.thumbnails) for done in outcomes.converted.values())
    yield Check(
        f"{files} WebP files of {len(outcomes.converted)} pictures open and have the right dimensions and sizes",
        not wrong and files == len(outcomes.converted) * (1 + len(images.settings.thumbnail_edges)),
        "; ".join(wrong),
    )
    leftovers = [path.name for path in run.converted.rglob("*") if path.is_file() and path.suffix != ".webp"]
    on_disk = sum(1 for path in run.converted.rglob("*.webp"))
    yield Check("Nothing else was written there", not leftovers and on_disk == files, f"{on_disk} files, {leftovers}")
    unaccounted = set(sources) - set(outcomes.converted) - set(outcomes.failed)
    yield Check("Every picture's task came to an end", not unaccounted, ", ".join(sorted(unaccounted)))
    sound = [source for source in outcomes.failed if convertible(run.pictures / source)]
    yield Check(
        f"{TRUNCATED} failed, and no picture that can be decoded did",
        TRUNCATED in outcomes.failed and not sound,
        f"failed: {sorted(outcomes.failed)}",
    )


def convertible(path: Path) -> bool:
    """Tell whether a picture's conversion has to succeed."""
    if not readable(path):
        return False
    with Image.open(path) as picture:
        pixels = picture.width * picture.height
        if pixels > images.settings.max_pixels or max(picture.size) > images.WEBP_MAX_SIDE:
            return False
    return decodes(path)


def problems_of_file(run: Run, source: str) -> str | None:
    """Say what is wrong with the WebP of a picture of which no figures came back; None where nothing is."""
    try:
        with (
            Image.open(run.pictures / source) as picture,
            Image.open(run.converted / "webp" / f"{source}.webp", formats=["WEBP"]) as made,
        ):
            made.load()
            size = upright_size(picture)
    except (OSError, SyntaxError) as exc:
        return str(exc)
    return None if made.size == size else f"{made.size[0]} x {made.size[1]} in place of {size[0]} x {size[1]}"


def problems_of(run: Run, source: str, outcomes: Outcomes) -> Iterator[str]:
    """Say what is wrong with the files of one picture."""
    done = outcomes.converted[source]
    with Image.open(run.pictures / source) as picture:
        size = upright_size(picture)
    wanted = [size, *(fitted(size, edge) for edge in images.settings.thumbnail_edges)]
    for output, dimensions in zip((done.webp, *done.thumbnails), wanted, strict=True):
        path = run.converted / output.path
        try:
            with Image.open(path, formats=["WEBP"]) as picture:
                picture.load()
                found = picture.size
        except (OSError, SyntaxError) as exc:
            yield f"{output.path}: {exc}"
            continue
        off = max(abs(found[0] - dimensions[0]), abs(found[1] - dimensions[1]))
        if off > 1 or found != (output.width, output.height) or path.stat().st_size != output.size_bytes:
            yield f"{output.path} is {found[0]} x {found[1]}, {path.stat().st_size} bytes"


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """Return a picture's dimensions as it is to be shown; the pixels need not be decoded for that."""
    turned = picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    return (picture.height, picture.width) if turned else picture.size


def fitted(size: tuple[int, int], edge: int) -> tuple[int, int]:
    """Return the dimensions of a thumbnail, which may be one pixel off for rounding."""
    factor = min(1.0, edge / max(size))
    return round(size[0] * factor), round(size[1] * factor)


def check_dead_letters(dead: Dead, outcomes: Outcomes) -> Iterator[Check]:
    """The dead-letter queues hold exactly what failed, with the reason."""
    found = {letter.id: letter.error_type for letter in dead["images"]}
    wanted = {outcomes.task_ids[source]: error.type for source, error in outcomes.failed.items()}
    yield Check(
        f"The images worker's dead-letter queue holds exactly the {len(wanted)} failed task(s), with error type",
        found == wanted and len(dead["images"]) == len(wanted),
        f"{found} in place of {wanted}",
    )
    kind = found.get(outcomes.task_ids[TRUNCATED], "nothing")
    yield Check(
        f"{TRUNCATED} is there as {images.BrokenPictureError.__name__}", kind.endswith("BrokenPictureError"), kind
    )
    others = [*dead["reports"], *dead["mail"], *dead["services"], *dead["maintenance"], *dead["files"]]
    yield Check("The other dead-letter queues are empty", not others, f"{others}")


def check_report(run: Run, outcomes: Outcomes) -> Iterator[Check]:
    """The report holds the figures of the files on disk."""
    report = outcomes.report
    if report is None:
        yield Check("There is a report", holds=False)
        return
    with (run.csv / CSV_NAME).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    good = [row for row in rows if row[LABEL] in outcomes.converted]
    totals = {name: sum((Decimal(row[name]) for row in good), Decimal(0)) for name in NUMBERS}
    found = {figures.column: figures.total for figures in report.figures}
    yield Check("The report's totals are the sums of the figures", found == totals, f"{found} in place of {totals}")
    webp_bytes = sum((run.converted / done.webp.path).stat().st_size for done in outcomes.converted.values())
    off = abs(totals["WebP KB"] * 1000 - webp_bytes)
    yield Check("They are those of the files on disk", off <= 50 * len(good), f"{off} bytes apart")
    text = html.unescape((run.reports / report.path).read_text(encoding="utf-8"))
    absent = [f"{total:,.2f}".rstrip("0").rstrip(".") for total in totals.values()]
    absent = [figure for figure in absent if figure not in text]
    absent += [] if len(good) > 20 else [row[LABEL][:34] for row in good if row[LABEL][:34] not in text]
    yield Check("The HTML file shows them, a chart for each and every picture's name", not absent, f"not: {absent}")
    yield Check("It has a chart for each column", text.count("<svg ") == len(NUMBERS), f"{text.count('<svg ')}")
    lines = [number for number, row in enumerate(rows, start=2) if row[LABEL] in outcomes.failed]
    named = [row.line for row in report.bad_rows]
    yield Check(
        "It names the CSV's lines without figures, those of the failed pictures",
        report.bad_rows_total == len(lines) and named == lines[: len(named)],
        f"{named} in place of {lines}",
    )


def check_mail(run: Run, outcomes: Outcomes, retry_first_s: float) -> Iterator[Check]:
    """The mail is on disk, whole, once, after the delays that the policy asks for."""
    files = list(run.mails.iterdir())
    yield Check("The mail server keeps exactly one mail", len(files) == 1, f"{[file.name for file in files]}")
    report, receipt = outcomes.report, outcomes.receipt
    if len(files) != 1 or report is None or receipt is None:
        return
    message = email.message_from_bytes(files[0].read_bytes(), policy=email.policy.default)
    assert isinstance(message, EmailMessage)  # noqa: S101 - the policy says so
    yield Check("It is addressed to the recipient", message["To"] == RECIPIENT, f"{message['To']}")
    attached = [part.get_payload(decode=True) for part in message.iter_attachments()]
    same = attached == [(run.reports / report.path).read_bytes()]
    yield Check("Its attachment is the report, byte for byte", same, f"{len(attached)} attachments")
    known = message["Message-ID"] == receipt.message_id and outcomes.mail_task_id in receipt.message_id
    yield Check("Its Message-ID is the task's id", known, f"{message['Message-ID']}, task {outcomes.mail_task_id}")
    yield Check("It took three attempts", receipt.attempt == REFUSALS + 1, f"{receipt.attempt}")
    events = [event for event in server_events(run.mail_log) if event["event"] in {"refused", "accepted"}]
    answers = [event["code"] for event in events]
    yield Check("The mail server said 451, 451, 250", answers == [451, 451, 250], f"{answers}")
    gaps = [after["at"] - before["at"] for before, after in itertools.pairwise(events)]
    least = [retry_first_s * 2**n / 2 for n in range(len(gaps))]  # jitter takes up to half off
    yield Check(
        f"No attempt came early: {', '.join(f'{gap:.1f} s' for gap in gaps)} between them",
        all(gap >= shortest for gap, shortest in zip(gaps, least, strict=True)),
        f"at least {least}",
    )


def check_notice(run: Run, outcomes: Outcomes, backoff_s: float) -> Iterator[Check]:
    """The notice is with the web service, once, at the time that it has asked for."""
    files = {file.name: json.loads(file.read_text()) for file in run.notices.iterdir()}
    wanted = f"{outcomes.notice_task_id}.json"
    yield Check("The web service keeps exactly one notice, under the task's id", list(files) == [wanted], f"{[*files]}")
    answer = outcomes.answer
    yield Check("The services worker was answered", answer is not None)
    if list(files) != [wanted] or answer is None:
        return
    right = files[wanted] == notice_of(outcomes)
    yield Check("It tells of the report, with its totals", right, f"{files[wanted]}")
    events = [event for event in server_events(run.notice_log) if event["event"] in {"refused", "accepted"}]
    said = [event["code"] for event in events]
    yield Check("The web service said 503, 201", (said, answer.status) == ([503, 201], 201), f"{said}, {answer.status}")
    keys = {event["key"] for event in events}
    yield Check("Both attempts had the same Idempotency-Key", keys == {outcomes.notice_task_id}, f"{keys}")
    yield Check("It took two attempts", answer.attempt == notice_service.REFUSALS + 1, f"{answer.attempt}")
    gap = events[-1]["at"] - events[0]["at"]
    yield Check(
        f"The second came when Retry-After had asked for it: {gap:.1f} s later",
        notice_service.RETRY_AFTER_S <= gap < backoff_s / 2,  # the policy's own delay would have been longer
        f"{gap} s",
    )


def check_network(run: Run, outcomes: Outcomes) -> Iterator[Check]:
    """The model is there, and reads what it was not trained on; how well is counted here."""
    trained = outcomes.trained
    if trained is None:
        yield Check("The network was trained", holds=False, found="no answer")
        return
    path = run.models / f"{TRAINING.model}.joblib"
    size = path.stat().st_size if path.exists() else None
    yield Check("The model's file has the size that the worker says", size == trained.size_bytes, f"{size}")
    _, digits = held_back()
    right = sum(said == real for said, real in zip(outcomes.digits, digits, strict=False))
    count = len(digits)
    yield Check(
        f"The network reads {right} of {count} digits rightly that it was not trained on: 9 of 10 at least",
        len(outcomes.digits) == count and right >= 0.9 * count,
        f"{right} of {count}, {len(outcomes.digits)} answers",
    )
    yield Check(
        "That is the accuracy that the worker says", abs(right / count - trained.accuracy) < 1e-9, f"{trained.accuracy}"
    )
