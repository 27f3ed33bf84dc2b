"""The tables of the SQL stores, their version, and the way from one version to the next.

    <namespace>_results          one row for each task: columns to find it by, and the record as JSON text
    <namespace>_results_schema   one row: the version

Invariant: an installed version is changed by a numbered step only, in one transaction with its number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

__all__ = ["STEPS", "VERSION", "Tables", "prepare", "read_version"]

VERSION: Final = 1
"""What this version of asyncq reads and writes."""

STEPS: Mapping[int, Sequence[str]] = {}
"""The statements that make a version out of the one before; `{records}` stands for the table. The first version has
none: new tables are made as they are now."""

_KEY: Final = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")  # compared by bytes, which is faster


@dataclass(frozen=True)
class Tables:
    """The tables of one namespace."""

    metadata: sa.MetaData
    records: sa.Table
    schema: sa.Table

    @classmethod
    def of(cls, namespace: str) -> Tables:
        """Return the tables of a namespace."""
        name = f"{namespace}_results"
        metadata = sa.MetaData()
        records = sa.Table(
            name,
            metadata,
            sa.Column("id", _KEY, primary_key=True),
            sa.Column("task", sa.Text),
            sa.Column("state", sa.Text, nullable=False),
            sa.Column("created", sa.BigInteger, nullable=False),  # this and the next two: microseconds since the epoch
            sa.Column("updated", sa.BigInteger, nullable=False),
            sa.Column("expires", sa.BigInteger),
            sa.Column("version", sa.BigInteger, nullable=False),
            sa.Column("data", sa.Text, nullable=False),
            sa.Column("result", sa.LargeBinary),
        )
        for columns in (("created", "id"), ("task", "created", "id"), ("state", "created", "id"), ("expires",)):
            sa.Index(f"{name}_{columns[0]}", *(records.c[column] for column in columns))
        return cls(metadata, records, sa.Table(f"{name}_schema", metadata, sa.Column("version", sa.Integer)))


def read_version(connection: sa.Connection, tables: Tables) -> int | None:
    """Return the version that is installed; None where there is none."""
    if not sa.inspect(connection).has_table(tables.schema.name):
        return None
    version: int | None = connection.execute(sa.select(sa.func.max(tables.schema.c.version))).scalar()
    return version


def prepare(connection: sa.Connection, tables: Tables) -> int:
    """Create the tables, or bring them up to `VERSION`; return the version that they have now.

    The caller has begun a transaction in which nobody else prepares. A later version is left as it is.
    """
    found = read_version(connection, tables)
    if found is None:
        tables.metadata.create_all(connection)
        connection.execute(tables.schema.insert().values(version=VERSION))
        return VERSION
    for version in range(found + 1, VERSION + 1):
        for statement in STEPS[version]:
            connection.exec_driver_sql(statement.format(records=tables.records.name))
        connection.execute(tables.schema.update().values(version=version))
    return max(found, VERSION)
