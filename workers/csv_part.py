"""Add up one part of a CSV file: so that many workers share a large one.

A file is cut by its bytes, without reading it: a part has the rows that begin in it. So a row is a line here; a field
with a line break in it makes two wrong rows of one.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from csv_table import CsvError, Table, parse


def read_part(path: Path, table: Table, part: int, parts: int) -> None:
    """Fill a table with the rows of one part. All parts together have every row once.

    Args:
        path: The CSV file; its first line names the columns.
        table: What to fill. Of a wrong row it is told the byte at which the row begins.
        part: Which one, from 0.
        parts: How many there are.

    Raises:
        CsvError: The file is empty, or has not the columns that the table needs.
    """
    with path.open("rb") as file:
        head = file.readline()
        names = next(_rows(head), [])
        missing = [name for name in (table.label, *table.numbers) if name not in names]
        if missing:
            raise CsvError(f"{path.name} has the columns {names}, but not {missing}")
        label_at, numbers_at = names.index(table.label), [names.index(name) for name in table.numbers]
        size = path.stat().st_size - len(head)
        at, end = (len(head) + size * number // parts for number in (part, part + 1))
        # A row that begins exactly here is ours; to see that, we begin with the byte before.
        file.seek(at - 1)
        at = at - 1 + len(file.readline())
        while at < end and (line := file.readline()):
            try:
                for row in _rows(line):
                    table.add(*parse(row, names, label_at, numbers_at))
            except (ValueError, csv.Error) as exc:
                table.leave_out(at, str(exc))
            at += len(line)


def _rows(line: bytes) -> Iterator[list[str]]:
    """Yield the row of a line; none for an empty one."""
    text = line.decode("utf-8", errors="surrogateescape").removeprefix("\ufeff")
    return (row for row in csv.reader([text.rstrip("\r\n")], strict=True) if row)
