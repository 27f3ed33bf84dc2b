"""What every broker must do, on every RabbitMQ."""

import pytest
from brokers import RabbitMQUnderTest

from asyncq.testing.conformance import *  # noqa: F403
from asyncq.testing.conformance.bench import Bench
from proxy import proxy_of


@pytest.fixture
async def bench(node, broker_url):
    """A virtual host of its own for each behaviour."""
    async with proxy_of(broker_url) as proxy:
        yield Bench(RabbitMQUnderTest(node.version, broker_url, proxy))
