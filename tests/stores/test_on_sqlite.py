"""What every result store must do, in a file of SQLite."""

import pytest
from stores_under_test import SqliteUnderTest

from asyncq.testing.store_conformance import *  # noqa: F403
from asyncq.testing.store_conformance.bench import StoreBench


@pytest.fixture
async def bench(tmp_path):
    """A place of its own for each behaviour."""
    under_test = SqliteUnderTest(tmp_path / "results.db")
    await under_test.make().init()
    return StoreBench(under_test)
