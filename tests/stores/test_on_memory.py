"""What every result store must do, in memory."""

import pytest
from stores_under_test import MemoryUnderTest

from asyncq.testing.store_conformance import *  # noqa: F403
from asyncq.testing.store_conformance.bench import StoreBench


@pytest.fixture
async def bench():
    """A place of its own for each behaviour."""
    under_test = MemoryUnderTest()
    await under_test.make().init()
    return StoreBench(under_test)
