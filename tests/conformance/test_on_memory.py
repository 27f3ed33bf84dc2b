"""What every broker must do, in memory."""

import pytest
from brokers import MemoryUnderTest

from asyncq.testing.conformance import *  # noqa: F403
from asyncq.testing.conformance.bench import Bench


@pytest.fixture
def bench():
    """A node of its own for each behaviour."""
    return Bench(MemoryUnderTest())
