"""What every result store must do, in Redis."""

import pytest
from stores_under_test import RedisUnderTest

from asyncq.testing.store_conformance import *  # noqa: F403
from asyncq.testing.store_conformance.bench import StoreBench


@pytest.fixture
async def bench(redis_server):
    """A place of its own for each behaviour."""
    under_test = RedisUnderTest(redis_server)
    await under_test.make().init()
    return StoreBench(under_test)
