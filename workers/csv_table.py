"""Read a CSV file of any size into sums by label, and note the rows that cannot be used.

The file's first line names the columns. A wrong row never stops the others; its line number is kept.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel

LINES_A_STEP = 5000
MAX_DIGITS = 30  # "1e999999" is a number, and a chart of it would be a megabyte of zeros


class Rows(Protocol):
    """What `csv.reader` returns; the class has no public name."""

    line_num: int

    def __next__(self) -> list[str]:
        """Return the next row."""


class CsvError(Exception):
    """The CSV file cannot be used. Another attempt would not change that."""


class BadRow(BaseModel):
    """A row that was left out.

    Attributes:
        line: Its line in the file; 1 is the line of the column names.
        problem: What is wrong with it.
    """

    line: int
    problem: str


class Table:
    """The good rows of a CSV file, added up by label, and what was wrong with the others.

    Args:
        label: The column of the labels.
        numbers: The columns of numbers.
        max_bad_rows: So many wrong rows are kept; the others are counted.
    """

    def __init__(self, label: str, numbers: list[str], *, max_bad_rows: int) -> None:
        self.label = label
        self.numbers = numbers
        self.max_bad_rows = max_bad_rows
        self.sums: dict[str, list[Decimal]] = {}
        self.rows = 0
        self.bad_rows: list[BadRow] = []
        self.bad_rows_total = 0

    def add(self, label: str, values: list[Decimal]) -> None:
        """Add a row to its label."""
        sums = self.sums.setdefault(label, [Decimal(0)] * len(self.numbers))
        for index, value in enumerate(values):
            sums[index] += value
        self.rows += 1

    def leave_out(self, line: int, problem: str) -> None:
        """Note a row that cannot be used."""
        self.bad_rows_total += 1
        if len(self.bad_rows) < self.max_bad_rows:
            self.bad_rows.append(BadRow(line=line, problem=problem))

    def column(self, index: int) -> dict[str, Decimal]:
        """Return the sums of one column of numbers, by label."""
        return {label: sums[index] for label, sums in self.sums.items()}


def read_table(path: Path, table: Table, *, delimiter: str, step: Callable[[int, int], None]) -> None:
    """Fill the table row by row, so that the file may be larger than the memory.

    Args:
        path: The CSV file.
        table: What to fill.
        delimiter: What separates the columns.
        step: Called with line number and bytes read, every few thousand lines.

    Raises:
        CsvError: The file is empty, or has not the columns that the table needs.
    """
    with path.open("rb") as file:
        rows = csv.reader(lines(file), delimiter=delimiter, strict=True)
        try:
            names = next(rows, [])
        except csv.Error as exc:
            raise CsvError(f"{path.name}, line 1: {exc}") from exc
        missing = [name for name in (table.label, *table.numbers) if name not in names]
        if missing:
            raise CsvError(f"{path.name} has the columns {names}, but not {missing}")
        label_at = names.index(table.label)
        numbers_at = [names.index(name) for name in table.numbers]
        for count, (line, row) in enumerate(numbered(rows, table), start=1):
            try:
                table.add(*parse(row, names, label_at, numbers_at))
            except ValueError as exc:
                table.leave_out(line, str(exc))
            if count % LINES_A_STEP == 0:
                step(line, file.tell())


def numbered(rows: Rows, table: Table) -> Iterator[tuple[int, list[str]]]:
    """Yield each row with the line on which it begins: a row may have line breaks inside quotes."""
    while True:
        line = rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as exc:
            table.leave_out(line, str(exc))
            continue
        if row is None:
            return
        if row:  # an empty line is no row
            yield line, row


def lines(file: io.BufferedReader) -> Iterator[str]:
    """Yield the file's lines as text. What is not UTF-8 stays visible, for `parse` to refuse its row."""
    for number, line in enumerate(file):
        text = line.decode("utf-8", errors="surrogateescape")
        yield text.removeprefix("\ufeff") if number == 0 else text


def parse(row: list[str], names: list[str], label_at: int, numbers_at: list[int]) -> tuple[str, list[Decimal]]:
    """Return a row's label and numbers.

    Raises:
        ValueError: The row cannot be used; says why.
    """
    if len(row) != len(names):
        raise ValueError(f"{len(row)} columns in place of {len(names)}")
    label = row[label_at].strip()
    if not label:
        raise ValueError(f"{names[label_at]} is empty")
    if not label.isascii() and any("\udc80" <= letter <= "\udcff" for letter in label):
        raise ValueError(f"{names[label_at]} is not UTF-8")
    values = []
    for index in numbers_at:
        text = row[index].strip()
        try:
            value = Decimal(text)
        except InvalidOperation:
            value = Decimal("NaN")
        if not value.is_finite():
            raise ValueError(f"{names[index]} is not a number: {text!a}")
        if value.adjusted() > MAX_DIGITS:
            raise ValueError(f"{names[index]} has more than {MAX_DIGITS} digits")
        values.append(value)
    return label, values
