"""Build a report from a CSV file: totals, a chart for each column of numbers, and the rows that were wrong.

The CSV's first line names the columns. One column holds labels, others numbers; rows of one label are added
up.
The report is one HTML file that needs nothing else: its charts are SVG inside it.

- A row that cannot be used is left out, and the report and the result name its line and what is wrong.
- A file that is no CSV, lacks a column or has no good row at all fails at once, without another attempt.
- The report appears under its name when it is complete, and not before.

Run it with `asyncq worker reports:app` in this folder. Its settings are environment variables, `REPORTS_*`.
"""

from __future__ import annotations

import os
import statistics
import uuid
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Annotated

import jinja2
from markupsafe import Markup, escape
from pydantic import BaseModel, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from asyncq import AsyncQ, TaskContext
from csv_table import BadRow, CsvError, Table, read_table

Step = Callable[[int, int, str], None]


class ReportsSettings(BaseSettings):
    """What the environment says, for example `REPORTS_INPUT_DIR=/srv/exports`.

    Attributes:
        input_dir: Only CSV files inside this folder are read.
        output_dir: Gets the reports.
        templates_dir: Holds `report.html.j2`.
        max_bars: A chart shows so many labels, the largest ones; the others are added up in one bar.
        max_bad_rows: So many wrong rows are named; the others are counted.
        time_limit_s: How long one report may take, in seconds.
    """

    model_config = SettingsConfigDict(env_prefix="REPORTS_", frozen=True)

    input_dir: Path = Path("csv")
    output_dir: Path = Path("reports")
    templates_dir: Path = Path(__file__).parent / "templates" / "reports"
    max_bars: Annotated[int, Field(ge=2, le=200)] = 30
    max_bad_rows: Annotated[int, Field(ge=1)] = 100
    time_limit_s: Annotated[float, Field(gt=0)] = 300


class Figures(BaseModel):
    """What one column of numbers comes to, over the labels.

    Attributes:
        column: The column's name.
        total: The sum of all good rows.
        mean: The mean over the labels.
        median: The median over the labels.
        largest: The label with the largest value.
    """

    column: str
    total: Decimal
    mean: Decimal
    median: Decimal
    largest: str


class Report(BaseModel):
    """What was built.

    Attributes:
        path: The HTML file, relative to the output folder.
        size_bytes: Its size.
        rows: How many rows were used.
        labels: How many different labels they have.
        figures: One for each column of numbers.
        bad_rows: The first of the rows that were left out.
        bad_rows_total: How many were left out.
    """

    path: str
    size_bytes: int
    rows: int
    labels: int
    figures: list[Figures]
    bad_rows: list[BadRow]
    bad_rows_total: int


class Order(BaseModel):
    """What to build a report from.

    Attributes:
        source: The CSV file, relative to `REPORTS_INPUT_DIR`.
        title: The report's title.
        label: The column of the labels.
        numbers: The columns of numbers.
        delimiter: What separates the columns.
    """

    source: str
    title: Annotated[str, Field(min_length=1, max_length=200)]
    label: str
    numbers: Annotated[list[str], Field(min_length=1, max_length=20)]
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","


settings = ReportsSettings()
app = AsyncQ("reports")


@app.task(pass_context=True, time_limit=settings.time_limit_s)
def build_report(ctx: TaskContext, order: Order) -> Report:
    """Build one report.

    Raises:
        CsvError: The CSV file cannot be used.
        InterruptedError: The time is up, or the worker stops.
    """

    def step(done: int, total: int, label: str) -> None:
        if ctx.cancelled:  # nobody can stop a thread from outside; the worker knows already what follows
            raise InterruptedError(f"{order.source}: told to stop before {label!r}")
        ctx.sync.progress(done, total, label=label)

    return build(order, step)


def build(order: Order, step: Step) -> Report:
    """Do the work of `build_report`; `step(percent, 100, label)` is called as it goes on."""
    path = find(order.source)
    step(0, 100, "reading")
    table = Table(order.label, order.numbers, max_bad_rows=settings.max_bad_rows)
    size_bytes = path.stat().st_size
    read_table(
        path,
        table,
        delimiter=order.delimiter,
        step=lambda line, bytes_read: step(80 * bytes_read // size_bytes, 100, f"line {line}"),
    )
    if not table.rows:
        first = f"; line {table.bad_rows[0].line}: {table.bad_rows[0].problem}" if table.bad_rows else ""
        raise CsvError(f"{order.source} has no row that can be used{first}")
    step(80, 100, "adding up")
    figures = [figures_of(name, table.column(index)) for index, name in enumerate(order.numbers)]
    step(85, 100, "drawing")
    charts = [draw(name, table.column(index)) for index, name in enumerate(order.numbers)]
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(settings.templates_dir),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["number"] = readable
    html = templates.get_template("report.html.j2").render(order=order, table=table, figures=figures, charts=charts)
    step(95, 100, "writing")
    name = f"{order.source.removesuffix('.csv')}.html"
    size_bytes = write(settings.output_dir / name, html.encode())
    step(100, 100, "done")
    return Report(
        path=name,
        size_bytes=size_bytes,
        rows=table.rows,
        labels=len(table.sums),
        figures=figures,
        bad_rows=table.bad_rows,
        bad_rows_total=table.bad_rows_total,
    )


def find(source: str) -> Path:
    """Return the CSV file's path.

    Raises:
        CsvError: It is missing or outside the input folder (symbolic links are followed first).
    """
    folder = settings.input_dir.resolve()
    path = (folder / source).resolve()
    if not path.is_relative_to(folder) or not path.is_file():
        raise CsvError(f"there is no file {source!r} in {folder} (REPORTS_INPUT_DIR)")
    return path


def figures_of(column: str, sums: dict[str, Decimal]) -> Figures:
    """Return what a column of numbers comes to."""
    values = list(sums.values())
    return Figures(
        column=column,
        total=sum(values, Decimal(0)),
        mean=statistics.mean(values),
        median=statistics.median(values),
        largest=max(sums, key=lambda label: sums[label]),
    )


def draw(title: str, sums: dict[str, Decimal]) -> Markup:
    """Return a bar chart as SVG, the largest values first; negative bars go to the left."""
    bars = sorted(sums.items(), key=lambda item: item[1], reverse=True)
    if len(bars) > settings.max_bars:
        kept, others = bars[: settings.max_bars - 1], bars[settings.max_bars - 1 :]
        bars = [*kept, (f"{len(others)} others", sum((value for _, value in others), Decimal(0)))]
    low, high = min(Decimal(0), *(v for _, v in bars)), max(Decimal(0), *(v for _, v in bars))
    unit = 420 / float(high - low or 1)
    zero = 230 - float(low) * unit
    parts: list[str] = []
    for index, (label, value) in enumerate(bars):
        y = 26 * index
        end = zero + float(value) * unit
        left, right = min(zero, end), max(zero, end)
        parts += (
            f'<text x="220" y="{y + 17}" text-anchor="end">{escape(label[:34])}</text>',
            f'<rect x="{left:.1f}" y="{y + 3}" width="{right - left:.1f}" height="19" rx="2"/>',
            f'<text x="{right + 6:.1f}" y="{y + 17}">{readable(value)}</text>',
        )
    frame = f'viewBox="0 0 760 {26 * len(bars)}" role="img" aria-label="{escape(title)}"'
    return Markup(f"<svg {frame}>{''.join(parts)}</svg>")  # noqa: S704 - every text in it is escaped above


def readable(value: Decimal) -> str:
    """Return a number as people write it: thousands apart, at most two decimals."""
    text = f"{value:,.2f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def write(target: Path, content: bytes) -> int:
    """Write a file completely or not at all, and return its size."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: a redelivered task may run while its first attempt still writes.
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return len(content)
