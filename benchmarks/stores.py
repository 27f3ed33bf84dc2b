"""Where results are kept during a run: a file, and a PostgreSQL and a Redis of the run's own.

The servers are those of the tests, tests/servers.py: own data, own port, on loopback; Redis appends to its file.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from asyncq.testing.node import NodeUnavailable

__all__ = ["Stores", "private_stores"]


@dataclass(frozen=True, slots=True)
class Stores:
    """Result stores of the run, all of them empty.

    Attributes:
        urls: The URL of each, by its name: SQLite, PostgreSQL, Redis.
        missing: Why one is not there, by its name.
    """

    urls: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def private_stores() -> Iterator[Stores]:
    """Yield the stores that can be had here; they end with the block."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    servers = importlib.import_module("servers")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="asyncq-bench-"))
        stores = Stores({"SQLite": f"sqlite:///{folder}/results.db"})
        for name, kind in (("PostgreSQL", servers.Postgres), ("Redis", servers.Redis)):
            try:
                server = kind()
            except NodeUnavailable as error:
                stores.missing[name] = str(error)
                continue
            stack.callback(server.remove)
            server.start()
            stores.urls[name] = server.url
        yield stores
